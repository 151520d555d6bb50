"""Switchable modules and the multi-branch network."""

from brevitas_multiquant.nn.network import MultiQuantNet
from brevitas_multiquant.nn.switchable import SwitchableNorm, SwitchableQuantizer

__all__ = ["MultiQuantNet", "SwitchableNorm", "SwitchableQuantizer"]
