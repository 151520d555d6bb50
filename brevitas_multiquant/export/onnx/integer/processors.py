"""Processors that run a file of integers, told apart by what their kernels hold."""

from typing import Literal, get_args

from brevitas_multiquant.errors import ExportError

Processor = Literal["any", "vnni"]
PROCESSORS: tuple[Processor, ...] = get_args(Processor)
PAIR_SUMS: dict[Processor, int] = {"any": 2**15 - 1, "vnni": 2**31 - 1}
"""The largest sum of two products of a byte and an int8 weight that is exact.

x86 without VNNI adds two of them in 16 bits and cuts off what is larger; with VNNI, as on Arm with
its dot product, all is added in 32 bits.
"""


def require_processor(processor: str) -> None:
    """Refuse what is none.

    Raises:
        ExportError: not one of `PROCESSORS`.

    Example:
        >>> require_processor("vnni")
    """
    if processor not in PROCESSORS:
        expected = " or ".join(map(repr, PROCESSORS))
        raise ExportError(f"export_onnx: processor: expected {expected}, got {processor!r}")
