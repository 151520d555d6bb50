"""How branch outputs become the input of the head."""

from collections.abc import Sequence

from torch import Tensor

from brevitas_multiquant.quant.member import (
    Member,
    has_no_sites,
    stays_as_it_is,
    stores_nothing,
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

    def forward(self, outputs: Sequence[Tensor]) -> Tensor:
        """The one tensor."""
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

    def forward(self, outputs: Sequence[Tensor]) -> Tensor:
        """One tensor of the branch outputs, all of one shape."""
        return merge_outputs(outputs, self.merge)

    def extra_repr(self) -> str:
        """Sum or mean."""
        return repr(self.merge)
