"""Models of which the truth is known, for the page that `what_an_atlas_finds.py` prints and for the tests."""
