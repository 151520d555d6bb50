"""The self-check: one branch with quantizers off is the original model, to the bit."""
