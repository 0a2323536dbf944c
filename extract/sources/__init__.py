"""What photos there are, and how the bytes of one are read."""
