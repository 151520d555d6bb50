"""The rewrite in five acts: trace, plan, build, swap, self-check."""

from brevitas_multiquant.rewrite.multiquantize import multiquantize

__all__ = ["multiquantize"]
