"""The nouns of a question: what is asked about, as data."""
