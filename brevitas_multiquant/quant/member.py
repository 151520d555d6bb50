"""What every module of a network answers: what it stores, its form at one bit-width, its sites.

Packed files, subnets, exports and costs ask the modules, and know none of them by type. A module of
this package is a `Member` and answers itself; one that leaves out an answer cannot be made. Modules
of others are answered for: by `Stock`, or by what `answers_for` registered for their kind.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from brevitas.core.utils import StatelessBuffer
from torch import nn

from brevitas_multiquant.core.copying import copied
from brevitas_multiquant.core.panel import Dial, Panel
from brevitas_multiquant.core.precision import Assignment, Setting, network_bits
from brevitas_multiquant.quant.entries import Entry, float_entries


@dataclass(frozen=True)
class Site:
    """A tensor of integers: the weights of a layer, what a layer reads, what a quantizer makes.

    Args:
        bits: of the integers: the same always, or by the network's bit-width; None: they have
            the network's. A mean, where channels have bits of their own.
        numbers: of the tensor, for weights; how many activations there are depends on the image.
        assigned: what of an assignment says their bits instead, where it does: a site's name, and
            a field of `Precision`. None: no assignment changes them.

    Example:
        >>> Site().at(4), Site(8).at(4), Site({2: 4, 4: 6}).at(4)
        (4, 8, 6)
        >>> Site(assigned=("conv", "activation")).at(Assignment(4, {"conv": (2, 3)}))
        3
    """

    bits: float | Mapping[int, int] | None = None
    numbers: int = 0
    assigned: tuple[str, str] | None = None

    def at(self, setting: Setting) -> Any:
        """Bits of the integers while the network runs at a setting."""
        if isinstance(setting, Assignment) and self.assigned is not None:
            site, field = self.assigned
            if site in setting:
                return int(getattr(setting[site], field))
        bits = network_bits(setting)
        if self.bits is None:
            return bits
        return self.bits[bits] if isinstance(self.bits, Mapping) else self.bits


WEIGHT, INPUT, ACTIVATION = "weight", "input", "activation"
"""Names of sites: a layer's weights, what it multiplies them with, what a quantizer makes."""


class Member(nn.Module, ABC):
    """A module of this package, which answers for itself.

    Example:
        >>> class Doubled(Member):
        ...     stored = stores_floats
        ...     sites = has_no_sites
        ...     def forward(self, x):
        ...         return 2 * x
        >>> Doubled()  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        TypeError: Can't instantiate abstract class Doubled ...frozen...
        >>> class Complete(Doubled):
        ...     frozen = stays_as_it_is
        >>> list(Complete().stored("doubled"))
        []
    """

    @abstractmethod
    def stored(self, name: str) -> Iterable[Entry]:
        """Its share of a packed file, its children aside.

        Args:
            name: its own, for errors.
        """

    @abstractmethod
    def frozen(self, bits: int, name: str) -> nn.Module | None:
        """Its plain form at one bit-width: stock modules and constants.

        Args:
            bits: one of the network's.
            name: its own, for errors.

        Returns:
            None where it may stay: a copy of it takes its place, with its children frozen.
        """

    @abstractmethod
    def sites(self) -> Mapping[str, Site]:
        """The tensors of integers that it holds, makes or multiplies, its children's aside."""

    def running(self, bits: int) -> Iterable[nn.Module]:
        """Which of its children run at a bit-width of the network."""
        return self.children()

    def look_at(self, dial: Dial | Panel) -> None:
        """Be told of the site that it reads, in a network: its dial shows the bits that run."""
        self.input_dial = dial


def stores_floats(self: nn.Module, name: str) -> Iterable[Entry]:
    """An answer to `Member.stored`: every float that its state dict has."""
    return float_entries(self, name)


def stores_nothing(self: nn.Module, name: str) -> Iterable[Entry]:
    """An answer to `Member.stored`: it has no numbers of its own, or they are known when built."""
    return ()


def stays_as_it_is(self: nn.Module, bits: int, name: str) -> nn.Module | None:
    """An answer to `Member.frozen`: the same at every bit-width."""
    return None


def has_no_sites(self: nn.Module) -> Mapping[str, Site]:
    """An answer to `Member.sites`: no integers of its own."""
    return {}


class Stock:
    """Answers for a module of torch, Brevitas or a user: floats, frozen as it is, no sites."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def stored(self, name: str) -> Iterable[Entry]:
        """Every float that its state dict has."""
        return float_entries(self.module, name)

    def frozen(self, bits: int, name: str) -> nn.Module | None:
        """As it is."""
        return None

    def sites(self) -> Mapping[str, Site]:
        """None."""
        return {}

    def running(self, bits: int) -> Iterable[nn.Module]:
        """All of its children."""
        return self.module.children()


StockType = TypeVar("StockType", bound=type[Stock])
_STOCK: list[tuple[Callable[[nn.Module], bool], type[Stock]]] = []


def answers_for(applies: Callable[[nn.Module], bool]) -> Callable[[StockType], StockType]:
    """Register a kind of `Stock` that answers for some modules of others.

    Args:
        applies: whether it answers for a module; the first that does is asked.
    """

    def register(stock: StockType) -> StockType:
        _STOCK.append((applies, stock))
        return stock

    return register


@answers_for(lambda module: isinstance(module, StatelessBuffer))
class _Constant(Stock):
    """Brevitas keeps the constants of its quantizers out of state dicts."""

    def stored(self, name: str) -> Iterable[Entry]:
        return ()


def answers_of(module: nn.Module) -> Member | Stock:
    """Who answers for a module: a `Member` itself."""
    if isinstance(module, Member):
        return module
    return next((stock for applies, stock in _STOCK if applies(module)), Stock)(module)


def frozen_copy(root: nn.Module, bits: int, name: str = "") -> nn.Module:
    """A copy of a module at one bit-width: every module in it that has a plain form is that.

    Args:
        root: not changed.
        bits: one of the network's.
        name: of the root, for errors.
    """
    plain: dict[int, nn.Module] = {}

    def freeze(module: nn.Module, path: str) -> None:
        if id(module) in plain:
            return
        form = answers_of(module).frozen(bits, path)
        if form is not None:
            plain[id(module)] = form
            return
        for key, child in module.named_children():
            freeze(child, f"{path}.{key}" if path else key)

    freeze(root, name)
    return copied(root, plain)  # type: ignore[arg-type, no-any-return]  # what is replaced is not copied


def running_modules(root: nn.Module, bits: int) -> Iterator[nn.Module]:
    """The modules that run at one bit-width of the network, each before its children."""
    yield root
    for child in answers_of(root).running(bits):
        yield from running_modules(child, bits)
