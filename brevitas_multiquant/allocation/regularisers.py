"""What a budget adds to the loss of a search: terms in the cost over the budget, whatever its unit.

Both are functions of the ratio C/T of cost and budget, so that nothing depends on whether that is
in BitOPs, bytes or LUTs, nor on the size of a network.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from brevitas_multiquant.errors import ConfigError


class Regulariser(nn.Module, ABC):
    """Cost over budget -> what is added to the loss; its state is in the state dict."""

    @abstractmethod
    def forward(self, ratio: Tensor) -> Tensor:
        """The term, a scalar that is differentiable in ``ratio``."""

    def observe(self, ratio: Tensor) -> None:
        """Take into account where an update started, once for each."""

    @property
    @abstractmethod
    def multiplier(self) -> float:
        """How much the loss grows by the ratio now, on the budget."""


class Controller(Regulariser):
    """A linear PI law for the multiplier of C/T: it holds the budget, and lets bits trade.

    With e = C/T - 1 the term is ``(I + k_p e) C/T``, the gradient of an augmented Lagrangian, and
    ``I += k_i e`` after each update. It is smooth at the budget, where the L1 term of the paper
    switches sign, and I may be negative: a cost below the budget is drawn up to it.

    The gains follow from how fast bits move: ``k_p = 1 / (rate T_c)`` closes a gap within about
    ``T_c`` updates, and ``k_i = k_p / (4 T_c)`` damps critically.

    Args:
        rate: by how much one update changes C/T under a multiplier of 1.
        horizon: T_c, in updates.

    Raises:
        ConfigError: numbers that are not positive.

    Example:
        >>> controller = Controller(rate=0.1, horizon=5)
        >>> controller(torch.tensor(1.5)).item()  # (0 + 2 x 0.5) x 1.5
        1.5
        >>> controller.observe(torch.tensor(1.5))
        >>> controller.multiplier
        0.05000000074505806
    """

    integral: Tensor

    def __init__(self, rate: float = 0.1, horizon: float = 5.0) -> None:
        super().__init__()
        for name, value in (("rate", rate), ("horizon", horizon)):
            if not value > 0:
                raise ConfigError(f"{name}: expected a positive number, got {value!r}")
        self.rate = rate
        self.proportional = 1 / (rate * horizon)
        self.rise = self.proportional / (4 * horizon)
        self.register_buffer("integral", torch.zeros(()))

    def forward(self, ratio: Tensor) -> Tensor:
        """``(I + k_p e) C/T``; what is in brackets is a constant of this update."""
        error = ratio.detach() - 1
        return (self.integral + self.proportional * error) * ratio

    def observe(self, ratio: Tensor) -> None:
        """``I += k_i e``."""
        self.integral += self.rise * (ratio.detach() - 1)

    @property
    def multiplier(self) -> float:
        """I."""
        return self.integral.item()


class L1(Regulariser):
    """``kappa |C/T - 1|``, as published but for the unit: there C and T are in GBitOPs or MB.

    It draws all bits by the same force until the budget is met. Where ``kappa`` is larger than what
    any bit is worth, all of them end just where they are drawn to, and round to a uniform network.

    Args:
        kappa: how strongly.

    Raises:
        ConfigError: a number that is not positive.

    Example:
        >>> L1()(torch.tensor(0.75))
        tensor(0.2500)
    """

    def __init__(self, kappa: float = 1.0) -> None:
        super().__init__()
        if not kappa > 0:
            raise ConfigError(f"kappa: expected a positive number, got {kappa!r}")
        self.kappa = kappa

    def forward(self, ratio: Tensor) -> Tensor:
        """``kappa |C/T - 1|``."""
        return self.kappa * (ratio - 1).abs()

    @property
    def multiplier(self) -> float:
        """``kappa``."""
        return self.kappa
