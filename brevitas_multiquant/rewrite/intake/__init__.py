"""Float models as people have them, made ready for the trace or refused by name."""
