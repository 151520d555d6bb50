"""From the plain network of one bit-width to a network of integers, or every reason why not.

The graph is walked once (`walk`). Each module has a rule (`rules`, `pools`, `joins`); calls become
modules, or lay numbers elsewhere (`calls`, `layout`). Between two integers torch computes factors,
norms and activations, which are collected (`values`) until a quantizer ends them and they become
its threshold tables (`tables`); what moves positions waits for them (`moves`).
"""

from brevitas_multiquant.export.finn.lower import joins, pools, rules  # noqa: F401  (they register)
from brevitas_multiquant.export.finn.lower.walk import lower, problems_of

__all__ = ["lower", "problems_of"]
