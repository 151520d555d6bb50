"""From the plain network of one bit-width to a network of integers, or every reason why not.

The graph is walked once (`walk`). Each module has a rule (`rules`); between two integers torch
computes factors, norms and activations, which are collected (`values`) until a quantizer ends them
and they become its threshold table (`tables`).
"""

from brevitas_multiquant.export.finn.lower.walk import lower, problems_of

__all__ = ["lower", "problems_of"]
