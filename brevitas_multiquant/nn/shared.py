"""A parameter that belongs to another part of the network."""

from torch import Tensor, nn


class SharedParameter(nn.Module):
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

    def __init__(self, owner: nn.Module, name: str) -> None:
        super().__init__()
        self.__dict__["owner"] = owner  # not a child
        self.name = name

    def forward(self) -> Tensor:
        """The parameter as it is now."""
        return getattr(self.owner, self.name)
