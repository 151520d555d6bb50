"""Train, evaluate and export a multi-branch network from the command line."""
