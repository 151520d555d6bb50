"""Initialising ranges, running statistics, and the training objective."""
