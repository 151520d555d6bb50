"""What clips weights and activations, beside a trainable pair (l, u): rows of two tables.

Values of the product lie between -1 and 1 whatever range they came from (paper, eq. 3). A norm that
follows makes that the same network as one whose values keep their scale, with the same gradients:
its output does not depend on a factor in front of it.
"""

from collections.abc import Callable, Iterable

import torch
from brevitas.core.utils import StatelessBuffer
from torch import Tensor, nn

from brevitas_multiquant.core.clip_quantize import activation_levels
from brevitas_multiquant.core.grids import ODD, Grid
from brevitas_multiquant.core.packing import Array
from brevitas_multiquant.quant.entries import Entry, fp32_numbers
from brevitas_multiquant.quant.member import Member, has_no_sites, stays_as_it_is, stores_nothing
from brevitas_multiquant.quant.ranges import ActivationRange, WeightRange

_SMALLEST = 1e-6
"""The largest magnitude of a tensor counts as no less: all weights may be 0."""


class WeightStep(WeightRange):
    """One trainable step s between the integers of the most bits, symmetric: u = s (2**(B-1) - 1).

    The step of b bits is 2**(B-b) s (Double Rounding, 2502.01199). It starts where `WeightRange`
    does, at three standard deviations of the weights.

    Args:
        weight_format: the grid of the most bits, or one that is rounded from it.
        scaling_shape: as of `WeightRange`.

    Example:
        >>> from brevitas_multiquant.core.grids import symmetric
        >>> learned = WeightStep(symmetric(8))
        >>> learned.set_from(torch.tensor([-1.0, 1.0]))
        >>> round(learned.step.item() * 127, 4), round(learned.lower.item(), 4)
        (3.0, -3.0)
    """

    step: nn.Parameter

    def __init__(self, weight_format: Grid = ODD, scaling_shape: tuple[int, ...] = ()) -> None:
        super().__init__(weight_format, scaling_shape)
        self.largest = (weight_format.finer or weight_format).highest

    def _make(self, shape: tuple[int, ...]) -> None:
        self.step = nn.Parameter(torch.ones(shape))

    @property
    def upper(self) -> Tensor:  # type: ignore[override]
        """U."""
        return self.step * self.largest

    @property
    def lower(self) -> Tensor:  # type: ignore[override]
        """L."""
        return -self.upper

    def put(self, lower: Tensor, upper: Tensor) -> None:
        """Take the step of a range; l is where u says."""
        self.step.copy_(upper / self.largest)

    def stored(self, name: str) -> Iterable[Entry]:
        """The step."""
        return self._stored_numbers(name, ("step",))


class ActivationStep(ActivationRange):
    """One trainable step s between codes: u = l + s (2**b - 1).

    l is not trained: it is 0 behind a ReLU, as published (LSQ; Double Rounding), and where values
    are negative too, the lower end that the data had.

    Args:
        bit_width: b.

    Example:
        >>> learned = ActivationStep(2)
        >>> with torch.no_grad():
        ...     learned.put(torch.tensor(0.0), torch.tensor(1.5))
        >>> learned.step.item(), [name for name, _ in learned.named_parameters()]
        (0.5, ['step'])
    """

    step: nn.Parameter
    levels: int

    def __init__(self, bit_width: int) -> None:
        self.levels = activation_levels(bit_width)
        super().__init__()
        self.told_levels = StatelessBuffer(torch.tensor(self.levels))

    def _make(self, shape: tuple[int, ...]) -> None:
        self.step = nn.Parameter(torch.ones(shape) / self.levels)
        self.register_buffer("lower", torch.zeros(shape))

    @property
    def upper(self) -> Tensor:  # type: ignore[override]
        """U. A graph reads the levels as a tensor: at another bit-width it is the same text."""
        levels = self.told_levels() if torch.compiler.is_compiling() else self.levels
        return self.lower + self.step * levels

    def put(self, lower: Tensor, upper: Tensor) -> None:
        """Take the step of a range, and its lower end."""
        self.lower.copy_(lower)
        self.step.copy_((upper - lower) / self.levels)

    def stored(self, name: str) -> Iterable[Entry]:
        """The lower end and the step."""
        return self._stored_numbers(name, ("lower", "step"))


class _Given(Member):
    """A range that data do not change: nothing of it is trained, calibrated or stored."""

    stored = stores_nothing
    frozen = stays_as_it_is
    sites = has_no_sites
    ready = True

    def set_from(self, x: Tensor) -> None:
        """Nothing to set."""

    def require_ready(self, where: str) -> None:
        """It always is."""


class UnitRange(_Given):
    """Activations between 0 and 1, as they are (Any-Precision, 1911.07346).

    Example:
        >>> lower, upper = UnitRange()(torch.tensor([-3.0, 5.0]))
        >>> lower.item(), upper.item()
        (0.0, 1.0)
    """

    lower: Tensor
    upper: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("lower", torch.tensor(0.0), persistent=False)
        self.register_buffer("upper", torch.tensor(1.0), persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(0, 1)."""
        return self.lower, self.upper


class WeightTanh(_Given):
    """Weights as tanh(w) / max |tanh(w)|, from -1 to 1 (DoReFa, 1606.06160).

    The whole tensor shares the maximum, and gradients pass through it to the largest weight.

    Args:
        weight_format: which integers the weights become.

    Attributes:
        of_values: the weights are such values already, as those of a file are.

    Example:
        >>> values, lower, upper = WeightTanh().placed(torch.tensor([0.0, -100.0]))
        >>> values.tolist(), lower.item(), upper.item()
        ([0.0, -1.0], -1.0, 1.0)
    """

    lower: Tensor
    upper: Tensor

    def __init__(self, weight_format: Grid = ODD) -> None:
        super().__init__()
        self.weight_format = weight_format
        self.of_values = False
        self.register_buffer("lower", torch.tensor(-1.0), persistent=False)
        self.register_buffer("upper", torch.tensor(1.0), persistent=False)

    def placed(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The values in fp32 or wider, -1 and 1."""
        values = weight.to(torch.promote_types(weight.dtype, torch.float32))
        if not self.of_values:
            values = torch.tanh(values)
            values = values / values.abs().amax().clamp(min=_SMALLEST)
        return values, self.lower, self.upper

    def take_values(self) -> None:
        """From here on the weights are values as they are."""
        self.of_values = True

    def of_weights(self, name: str, weight: Callable[[], Tensor]) -> Iterable[Entry]:
        """What a file has of the weights beside these values: nothing.

        Args:
            name: of the layer.
            weight: gives the weights that it uses.
        """
        return ()

    def factor(self, weight: Callable[[], Tensor]) -> float | Tensor:
        """1: the values are between -1 and 1."""
        return 1.0


class WeightTanhTimesMean(WeightTanh):
    """`WeightTanh`, whose values are multiplied by E = mean |w| (Any-Precision, 1911.07346).

    No gradient passes E, which is the same at every bit-width.

    Attributes:
        mean_of_file: E of the weights of a file.

    Example:
        >>> WeightTanhTimesMean().factor(lambda: torch.tensor([1.0, -3.0]))
        tensor(2.)
    """

    mean_of_file: Tensor

    def __init__(self, weight_format: Grid = ODD) -> None:
        super().__init__(weight_format)
        self.register_buffer("mean_of_file", torch.tensor(0.0), persistent=False)

    def of_weights(self, name: str, weight: Callable[[], Tensor]) -> Iterable[Entry]:
        """E, which the values do not tell."""

        def read() -> Array:
            return fp32_numbers(name, torch.as_tensor(self.factor(weight)))

        def write(values: Array, trainable: bool) -> None:
            self.mean_of_file.fill_(float(values[0]))

        yield Entry("ranges", name, 1, read, write)

    def factor(self, weight: Callable[[], Tensor]) -> float | Tensor:
        """E, a scalar in fp32 or wider; of the weights of a file, the one that it has."""
        if self.of_values:
            return self.mean_of_file
        detached = weight().detach()
        return detached.to(torch.promote_types(detached.dtype, torch.float32)).abs().mean()


WEIGHT_RANGES: dict[str, type[Member]] = {
    "learned": WeightRange,
    "step": WeightStep,
    "tanh": WeightTanh,
    "tanh_times_mean": WeightTanhTimesMean,
}
"""Name -> what places weights between -1 and 1."""

ACTIVATION_RANGES: dict[str, type[Member]] = {
    "learned": ActivationRange,
    "step": ActivationStep,
    "unit": UnitRange,
}
"""Name -> what places activations between 0 and 1."""
