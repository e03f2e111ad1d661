"""Images for people: counts as colours, in a terminal or as a PNG file."""
