"""The network that a run trains: made, held by its kind, examined, measured."""
