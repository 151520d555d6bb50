"""A parameter that belongs to another part of the network."""

from collections.abc import Iterable
from dataclasses import replace

from torch import Tensor, nn

from brevitas_multiquant.quant.entries import Entry, float_entry
from brevitas_multiquant.quant.member import Member, has_no_sites
from brevitas_multiquant.quant.plain import Constant


class SharedParameter(Member):
    """Gives a parameter of another module, which keeps it: no child, nothing in the state dict.

    Args:
        owner: the module that has the parameter.
        name: its name there.

    Example:
        >>> owner = nn.PReLU(2)
        >>> shared = SharedParameter(owner, "weight")
        >>> shared() is owner.weight, list(shared.parameters())
        (True, [])
    """

    owner: nn.Module
    sites = has_no_sites

    def __init__(self, owner: nn.Module, name: str) -> None:
        super().__init__()
        self.__dict__["owner"] = owner  # not a child
        self.name = name

    def forward(self) -> Tensor:
        """The parameter as it is now."""
        return getattr(self.owner, self.name)

    def stored(self, name: str) -> Iterable[Entry]:
        """The parameter, which its owner has in the file."""
        yield replace(float_entry(name, self()), owner=self.owner)

    def frozen(self, bits: int, name: str) -> Constant:
        """The parameter as a constant."""
        return Constant(self())
