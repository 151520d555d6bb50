"""How branch outputs become the input of the head."""

from collections.abc import Sequence

from torch import Tensor

from brevitas_multiquant.core.output_structure import Value
from brevitas_multiquant.quant.member import (
    Member,
    has_no_sites,
    stays_as_it_is,
    stores_nothing,
)


def merge_values(values: Sequence[Value], merge: str) -> Value:
    """`merge_outputs` of each tensor that branches give.

    A tensor that all branches hand on as they read it, such as the image of a residual, is nothing
    that they made: it stays as it is.

    Args:
        values: of each branch, a tensor or a tuple of tensors.
        merge: ``"sum"`` or ``"mean"``.
    """
    if isinstance(values[0], Tensor):
        return merge_outputs(values, merge)  # type: ignore[arg-type]
    return tuple(
        same[0] if all(one is same[0] for one in same) else merge_outputs(same, merge)
        for same in zip(*values, strict=True)
    )


def merge_outputs(outputs: Sequence[Tensor], merge: str) -> Tensor:
    """Sum (eq. 6) or mean of the branch outputs, by binary additions in the given order.

    Args:
        outputs: one tensor per branch, all of one shape.
        merge: ``"sum"`` or ``"mean"``.

    Example:
        >>> import torch
        >>> merge_outputs([torch.tensor([1.0]), torch.tensor([3.0])], "mean")
        tensor([2.])
    """
    total = outputs[0]
    for output in outputs[1:]:
        total = total + output
    return total / len(outputs) if merge == "mean" and len(outputs) > 1 else total


class OnlyOutput(Member):
    """The output of the one body that there is, as it is."""

    stored = stores_nothing
    frozen = stays_as_it_is
    sites = has_no_sites

    def forward(self, outputs: Sequence[Value]) -> Value:
        """What the one body gives."""
        (output,) = outputs
        return output


class Merge(Member):
    """`merge_outputs` as a module, so that another kind of merge can take its place."""

    stored = stores_nothing
    frozen = stays_as_it_is
    sites = has_no_sites

    def __init__(self, merge: str) -> None:
        super().__init__()
        self.merge = merge

    def forward(self, outputs: Sequence[Value]) -> Value:
        """One value of the branches' values, all of one shape."""
        return merge_values(outputs, self.merge)

    def extra_repr(self) -> str:
        """Sum or mean."""
        return repr(self.merge)
