"""Linear algebra under everything else: maps and their spaces, dyads, comparison of decompositions, extremes."""
