"""One training run: its network, its steps, its checkpoints, its results."""
