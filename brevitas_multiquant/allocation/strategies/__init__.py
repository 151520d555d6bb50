"""Ways to choose bits: a file each, and what they share."""
