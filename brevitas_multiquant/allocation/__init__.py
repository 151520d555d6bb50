"""A budget in, bit-widths out."""
