"""Pure pieces: formulas, grids, selections, configurations. Nothing here knows a network."""
