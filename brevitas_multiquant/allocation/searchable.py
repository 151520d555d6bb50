"""What a search for bit-widths can run on."""

from math import inf

from brevitas_multiquant.errors import ConfigError
from brevitas_multiquant.methods.settle import CHANNEL_GRID, INDIVIDUAL
from brevitas_multiquant.nn.network import MultiQuantNet

MOVERS = {"regulariser", "policy", "masks"}
"""Names of what moves bits, in networks whose bits are open."""


def require_positive(**numbers: float | None) -> None:
    """Refuse numbers that are not positive; None is one that was not given.

    Raises:
        ConfigError: naming it.
    """
    for name, value in numbers.items():
        if value is not None and not 0 < value < inf:
            raise ConfigError(f"{name}: expected a positive number, got {value!r}")


def require_searchable(net: MultiQuantNet) -> None:
    """Refuse a network whose bits cannot be learned.

    Raises:
        ConfigError: of another method or grid, of an assignment, or one that has a search.
    """
    if net.config.method != INDIVIDUAL or net.config.assignment is not None:
        raise ConfigError(
            f"search: expected a network of one bit-width, multiquantize(model, [8], "
            f"method={INDIVIDUAL!r}), got the method {net.config.method!r}"
            + (" with an assignment" if net.config.assignment is not None else "")
        )
    if net.config.grid != CHANNEL_GRID:
        raise ConfigError(
            f"search: expected a network of the grid {CHANNEL_GRID!r}, on which bits are "
            f"learned, got {net.config.grid!r}"
        )
    if not MOVERS.isdisjoint(net._modules):
        raise ConfigError("search: expected a network without a search, got one that has one")
