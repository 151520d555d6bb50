"""The half branch: which channels it keeps, and the body of that width."""
