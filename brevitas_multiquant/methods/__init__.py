"""From a float network to one of run-time bit-widths."""
