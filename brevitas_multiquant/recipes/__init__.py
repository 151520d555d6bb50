"""Train, evaluate and export a network from the command line."""
