"""The traced graph of a float network: making it, cleaning it up, questions about it."""
