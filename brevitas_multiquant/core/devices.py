"""What devices cannot compute."""

import torch
from torch import Tensor

WITHOUT_FP64 = ("mps",)
"""Types of devices that refuse fp64 tensors."""


def widest_float(device: torch.device) -> torch.dtype:
    """fp64, or fp32 where a device has none.

    Example:
        >>> widest_float(torch.device("cpu")), widest_float(torch.device("mps"))
        (torch.float64, torch.float32)
    """
    return torch.float32 if device.type in WITHOUT_FP64 else torch.float64


def in_fp64(x: Tensor) -> Tensor:
    """The same numbers in fp64: on the CPU where their device has none.

    Example:
        >>> in_fp64(torch.ones(2)).dtype
        torch.float64
    """
    return (x.cpu() if x.device.type in WITHOUT_FP64 else x).double()
