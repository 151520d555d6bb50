"""Trainable clipping ranges (l, u) and the rules that initialise them from data."""

import math
from collections.abc import Callable, Iterable
from typing import Protocol

import torch
import torch.distributed
from torch import Tensor, nn

from brevitas_multiquant.core.clip_gradient import MIN_WIDTH
from brevitas_multiquant.core.grids import ODD, Grid
from brevitas_multiquant.core.packing import Array
from brevitas_multiquant.errors import CalibrationError
from brevitas_multiquant.quant.entries import Entry, fp32_numbers
from brevitas_multiquant.quant.member import Member, has_no_sites, stays_as_it_is

SIGMAS = 3.0
"""Activation ranges start three standard deviations wide (published code; docs/concepts.md)."""


class Observer(Protocol):
    """Sees batches, then names a range."""

    def observe(self, x: Tensor) -> None:
        """Take one batch into account."""

    def bounds(self) -> tuple[Tensor, Tensor]:
        """(l, u) of everything seen so far."""


class MeanObserver:
    """Averages the bounds that a rule gives for each batch."""

    def __init__(self, rule: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
        self.rule = rule
        self.seen: list[tuple[Tensor, Tensor]] = []

    def observe(self, x: Tensor) -> None:
        """Keep the bounds of one batch."""
        self.seen.append(self.rule(x))

    def bounds(self) -> tuple[Tensor, Tensor]:
        """Mean (l, u) over the batches."""
        lowers, uppers = zip(*self.seen, strict=True)
        return torch.stack(lowers).mean(0), torch.stack(uppers).mean(0)


def weight_bounds(
    weight: Tensor, weight_format: Grid = ODD, spread: float = 1.0
) -> tuple[Tensor, Tensor]:
    """The range that puts the weight 0 where the format's integer 0 is, as wide as it asks for.

    The real weight 1 is ``spread * sigmas`` standard deviations of the weights; for the paper's
    format that is l, u = -/+ 3 standard deviations. Weights too much alike for that have another
    size in place of the deviation (`_size`), so that no layer starts outside of its range.

    Example:
        >>> weight_bounds(torch.full((4, 2), 0.5))
        (tensor(-1.5000), tensor(1.5000))
    """
    lowest, highest = weight_format.span
    sigmas = weight_format.sigmas * spread
    reach = sigmas * _size(weight, sigmas * lowest, sigmas * highest)
    return reach * lowest, reach * highest


def _size(weight: Tensor, lowest: float, highest: float) -> Tensor:
    """The standard deviation, if a range between these multiples of it holds any weight.

    Where all weights lie on one side of it, and none would ever get a gradient, the largest
    magnitude. Where the range would be narrower than ranges are, 1 / sqrt(fan-in): the size at
    which layers usually start, and at which the gradients of weights that start at 0 have theirs.
    """
    size = weight.std(correction=0)
    smallest, largest = torch.aminmax(weight)
    outside = (smallest > highest * size) | (largest < lowest * size)
    size = torch.where(outside, torch.maximum(-smallest, largest), size)
    fan_in = weight[0].numel() if weight.dim() else 1
    return torch.where(size * (highest - lowest) < MIN_WIDTH, fan_in**-0.5, size)


def activation_bounds(x: Tensor) -> tuple[Tensor, Tensor]:
    """The paper's activation range, for either sign of the data.

    After a ReLU the values are the positive half of a normal distribution: l is their minimum, 0,
    and u = 3 std / sqrt(1 - 2 / pi). Where values are negative too, the range is
    mean -/+ 3 std, no wider than the data.
    """
    lowest, highest = torch.aminmax(x)
    deviation = SIGMAS * x.std(correction=0)
    two_sided = lowest < 0
    half_normal = lowest + deviation / math.sqrt(1 - 2 / math.pi)
    lower = torch.where(two_sided, torch.maximum(lowest, x.mean() - deviation), lowest)
    upper = torch.where(two_sided, torch.minimum(highest, x.mean() + deviation), half_normal)
    return lower, upper


class LearnedRange(Member):
    """A trainable pair (l, u), from the first batch it trains on unless it was set before.

    `brevitas_multiquant.calibrate` is the deliberate way to set it; a network that is trained
    without takes each range from the first batch. One that evaluates without is refused: what is
    to be measured must not depend on the first image. The counter of observed batches is in the
    state dict, so that a resumed run neither repeats nor skips the initialisation.

    Subclasses name the rule, data -> (l, u), used when no other observer is given.

    Args:
        shape: of l and u; it broadcasts to that of the data.
    """

    observed: Tensor
    lower: Tensor
    upper: Tensor

    frozen = stays_as_it_is  # a plain quantizer or layer has none
    sites = has_no_sites

    def __init__(self, shape: tuple[int, ...] = ()) -> None:
        super().__init__()
        self._make(shape)
        self.register_buffer("observed", torch.tensor(0))
        self.observer: Observer | None = None
        self._ready = False

    def _make(self, shape: tuple[int, ...]) -> None:
        """Register what is trained."""
        self.lower = nn.Parameter(torch.zeros(shape))
        self.upper = nn.Parameter(torch.ones(shape))

    def put(self, lower: Tensor, upper: Tensor) -> None:
        """Take the ends of a range; no gradient is recorded."""
        self.lower.copy_(lower)
        self.upper.copy_(upper)

    def note_readiness(self) -> None:
        """Read the counter anew, now: a graph that is compiled cannot."""
        self._ready = not self.observed.is_meta and bool(self.observed > 0)

    @property
    def ready(self) -> bool:
        """Whether the range was set from data. Reads the counter once, then remembers."""
        if not self._ready:
            self._ready = bool(self.observed > 0)
        return self._ready

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(l, u), after taking ``x`` into account where that is due.

        Raises:
            CalibrationError: in evaluation mode, and it has seen no data.
        """
        if self.observer is not None:
            self._observe(self.observer, x)
        elif not self.ready:
            self._refuse_unless_training()
            self._refuse_when_distributed()
            self._observe(MeanObserver(self.rule), x)
        return self.lower, self.upper

    def require_ready(self, where: str) -> None:
        """Refuse to go on with a range that was not set from data.

        Raises:
            CalibrationError: naming ``where``.
        """
        if not self.ready:
            raise CalibrationError(
                f"{where}: expected a range initialised from data, got one that has seen none; "
                "call calibrate(net, loader) or train first; a layer of a module that cannot be "
                "traced has to run on those images, so take out one that never runs"
            )

    def stored(self, name: str) -> Iterable[Entry]:
        """Both ends, of all channels that have one."""
        return self._stored_numbers(name, ("lower", "upper"))

    def _stored_numbers(self, name: str, numbers: tuple[str, ...]) -> Iterable[Entry]:
        """Some of its tensors. What is stored of it has seen data."""

        def read() -> Array:
            self.require_ready(name)
            return fp32_numbers(name, torch.stack([getattr(self, one) for one in numbers]))

        def write(values: Array, trainable: bool) -> None:
            kept = torch.from_numpy(values.copy()).view(len(numbers), *self.lower.shape)
            for one, value in zip(numbers, kept, strict=True):
                getattr(self, one).copy_(value)
            self.observed.fill_(1)
            self.note_readiness()

        yield Entry("ranges", name, len(numbers) * self.lower.numel(), read, write)

    def set_from(self, x: Tensor) -> None:
        """Initialise from one tensor by the rule."""
        self._observe(MeanObserver(self.rule), x)

    def rule(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(l, u) for the data ``x``."""
        raise NotImplementedError

    @torch.no_grad()
    def _observe(self, observer: Observer, x: Tensor) -> None:
        if not x.numel() or x.is_meta:
            return
        observer.observe(x.detach().float())
        self.put(*observer.bounds())
        self.observed += 1
        self._ready = True

    def _refuse_unless_training(self) -> None:
        if not self.training:
            self.require_ready("forward in evaluation mode")

    def _refuse_when_distributed(self) -> None:
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if distributed and torch.distributed.get_world_size() > 1:
            raise CalibrationError(
                "ranges: expected calibrate(net, loader) before a run of several processes, "
                "got a forward with ranges that have seen no data; each process would start "
                "from its own"
            )

    def _load_from_state_dict(self, *args: object, **kwargs: object) -> None:
        super()._load_from_state_dict(*args, **kwargs)  # type: ignore[arg-type]
        self.note_readiness()


class WeightRange(LearnedRange):
    """Starts where `weight_bounds` says; ``spread`` widens that.

    Args:
        weight_format: which integers the weights become.
        scaling_shape: ``()``, or ``(C, 1, ...)`` for a range of its own for each output channel;
            Brevitas's word for the shape of what scales a weight.

    Example:
        >>> per_channel = WeightRange(scaling_shape=(2, 1))
        >>> per_channel.set_from(torch.tensor([[1.0, -1.0], [4.0, -4.0]]))
        >>> per_channel.upper.flatten().tolist()
        [3.0, 12.0]
    """

    def __init__(self, weight_format: Grid = ODD, scaling_shape: tuple[int, ...] = ()) -> None:
        super().__init__(scaling_shape)
        self.weight_format = weight_format
        self.spread = 1.0

    def placed(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The weights as they are, l and u."""
        return weight, *self(weight)

    def take_values(self) -> None:
        """Told where the weights of a file are put within its range: so they are always."""

    def of_weights(self, name: str, weight: Callable[[], Tensor]) -> Iterable[Entry]:
        """What a file has of the weights beside themselves: nothing."""
        return ()

    def factor(self, weight: Callable[[], Tensor]) -> float | Tensor:
        """By what the values, between -1 and 1, are multiplied: nothing.

        Args:
            weight: gives the weights that the layer uses.
        """
        return 1.0

    def rule(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(l, u) for the weights ``x``."""
        if not self.lower.dim():
            return weight_bounds(x, self.weight_format, self.spread)
        channel = lambda w: weight_bounds(w[None], self.weight_format, self.spread)  # noqa: E731
        lower, upper = torch.vmap(channel)(x)
        return lower.view_as(self.lower), upper.view_as(self.upper)

    def _refuse_unless_training(self) -> None:
        """Weights are all the data there is, whatever the mode."""


class ActivationRange(LearnedRange):
    """Starts at the paper's activation range."""

    def rule(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(l, u) for the activations ``x``."""
        return activation_bounds(x)
