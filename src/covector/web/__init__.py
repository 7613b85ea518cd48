"""The explorer and the report: an atlas, and whatever else is known of its model, for people who look.

Everything here translates: the numbers come from the atlas and from the commands, which the page shows.
"""
