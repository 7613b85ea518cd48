"""Floor 8: the command line; one file per command, each a translation of an analysis."""
