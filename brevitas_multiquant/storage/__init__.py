"""Packed files, and sharing them."""
