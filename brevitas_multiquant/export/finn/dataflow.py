"""Resources of a network whose bits are still to be chosen, layer by layer.

An integer network that was lowered once tells what there is; the rules of
`brevitas_multiquant.export.finn.hardware` are then asked for each layer alone, with other integers
for its weights and other tables. Sums are as wide as the actual weights make them. Tables are those
of the lowered network, at the scale that the sums have with fewer bits: what a threshold means in
real numbers does not change.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache

import torch
from torch import Tensor

from brevitas_multiquant.cost.luts import Resources, fold, total
from brevitas_multiquant.cost.luts.cycles import cycles
from brevitas_multiquant.cost.luts.products import DspBlock
from brevitas_multiquant.cost.terms import Term
from brevitas_multiquant.export.finn.hardware import Integers, hardware_layers, made_of
from brevitas_multiquant.export.finn.integer_graph import (
    Convolution,
    IntegerGraph,
    Layer,
    Stream,
    Thresholds,
)

Width = tuple[str, str]
"""(site, ``"weight"`` or ``"activation"``)."""

WEIGHT, ACTIVATION = "weight", "activation"


@dataclass(frozen=True, eq=False)
class Weights:
    """A convolution's integers at each bit-width that they may have.

    Args:
        of: bits -> integers, of the form of the lowered convolution's.
        units: bits -> the real number that the integer 1 stands for.
    """

    of: Mapping[int, Tensor]
    units: Mapping[int, float]


@dataclass(frozen=True, eq=False)
class Dataflow:
    """An integer network, and which bits in it can be chosen.

    Args:
        graph: lowered with the most bits that can be chosen at every site.
        base: the bits that it was lowered with.
        site_of: ``where`` of a convolution -> the site that it reads; others are fixed.
        weights: ``where`` of a convolution -> its integers; none: its weights are fixed.
        uniform: bits -> the network lowered with these everywhere, which tells how coarse weights
            change what norms see.
        target: cycles a frame.
        dsp: the board's kind of DSP.
    """

    graph: IntegerGraph
    base: Mapping[Width, int]
    site_of: Mapping[str, str]
    weights: Mapping[str, Weights]
    uniform: Mapping[int, IntegerGraph]
    target: int
    dsp: DspBlock = "DSP48E2"
    _giver: dict[str, Layer] = field(default_factory=dict, init=False)
    _site: dict[str, str] = field(default_factory=dict, init=False)
    _known: dict[tuple[str, int], float] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self._giver.update({layer.output.name: layer for layer in self.graph.layers})
        for layer in self.graph.layers:
            site = self.site_of.get(layer.where) if isinstance(layer, Convolution) else None
            if site is not None:
                self._site[self._codes(layer.inputs[0]).name] = site
        folded = fold(hardware_layers(self.graph), self.target, self.dsp)
        # FINN folds all for what the slowest manages, if that one misses the frame rate
        slowest = max(map(cycles, folded), default=self.target)
        object.__setattr__(self, "target", max(self.target, slowest))

    def _codes(self, stream: Stream) -> Stream:
        """The stream of codes that one is made of without sums: through pools and slices."""
        giver = self._giver.get(stream.name)
        if giver is None or isinstance(giver, (Thresholds, Convolution)) or len(giver.inputs) > 1:
            return stream
        return self._codes(giver.inputs[0])

    def terms(self, dsp_price: float = 0.0) -> list[Term]:
        """(LUTs, DSPs) of each layer, by the bits that they depend on.

        Args:
            dsp_price: LUTs that a DSP counts as, in the LUTs.
        """
        found = []
        for layer in self.graph.layers:
            widths = self._widths(layer)
            found.append(Term(widths, self._counted(layer, widths, dsp_price), self._label(layer)))
        return found

    def _counted(
        self, layer: Layer, widths: tuple[Width, ...], dsp_price: float
    ) -> Callable[..., tuple[float, float]]:
        @cache
        def counted(*bits: int) -> tuple[float, float]:
            found = self.resources(layer, dict(zip(widths, bits, strict=True)))
            return found.priced(dsp=dsp_price), found.dsp

        return counted

    def resources(self, layer: Layer, bits: Mapping[Width, int]) -> Resources:
        """What one layer takes.

        Args:
            layer: of the graph.
            bits: of the widths that it depends on.
        """
        inputs = [self._kind(stream, bits) for stream in layer.inputs]
        is_last = layer.output.name == self.graph.output.name
        nodes, _ = made_of(self._at(layer, bits), inputs, is_last)
        return total(fold(list(nodes), self.target, self.dsp), self.dsp)

    def _label(self, layer: Layer) -> str:
        """Whose cost it is: a table's is that of the layers that read its codes."""
        site = self._site.get(layer.output.name)
        if isinstance(layer, Thresholds) and site is not None:
            return site
        return self.layer_name(layer.where)

    def layer_name(self, where: str) -> str:
        """A module path without the part of the network that it is in."""
        part, _, name = where.partition(".")
        return name.partition(".")[2] if part == "branches" else name or part

    # ------------------------------------------------------------------ what depends on what

    def _widths(self, layer: Layer) -> tuple[Width, ...]:
        """The bits that a layer's resources depend on."""
        found = dict.fromkeys(w for one in layer.inputs for w in self._widths_of(one))
        if isinstance(layer, Convolution) and layer.where in self.weights:
            found[self.site_of[layer.where], WEIGHT] = None
        if layer.output.name in self._site and isinstance(layer, Thresholds):
            found[self._site[layer.output.name], ACTIVATION] = None
        return tuple(found)

    def _widths_of(self, stream: Stream) -> tuple[Width, ...]:
        """The bits that a stream's type depends on."""
        giver = self._giver.get(stream.name)
        if isinstance(giver, Thresholds):
            site = self._site.get(stream.name)
            return () if site is None else ((site, ACTIVATION),)
        return () if giver is None else self._widths(giver)

    # ------------------------------------------------------------------ at other bits

    def _kind(self, stream: Stream, bits: Mapping[Width, int]) -> Integers:
        giver = self._giver.get(stream.name)
        if giver is None:
            return Integers.holding(stream.lowest, stream.highest)
        if isinstance(giver, Thresholds):
            own = self._own_bits(giver, bits)
            return Integers(own, giver.first_code < 0)
        inputs = [self._kind(one, bits) for one in giver.inputs]
        return made_of(self._at(giver, bits), inputs, False)[1]

    def _own_bits(self, layer: Thresholds, bits: Mapping[Width, int]) -> int:
        site = self._site.get(layer.output.name)
        return layer.bits if site is None else bits[site, ACTIVATION]

    def _at(self, layer: Layer, bits: Mapping[Width, int]) -> Layer:
        """The layer with other integers in it."""
        if isinstance(layer, Convolution) and layer.where in self.weights:
            own = self.weights[layer.where].of[bits[self.site_of[layer.where], WEIGHT]]
            return replace(layer, weight=own)
        if isinstance(layer, Thresholds):
            scale = self._unit(layer.inputs[0], self.base) / self._unit(layer.inputs[0], bits)
            own_bits = self._own_bits(layer, bits)
            scale *= self._spread(layer, bits)
            if (scale, own_bits) == (1.0, layer.bits):
                return layer
            return replace(layer, table=ends(layer.table, own_bits, scale), bits=own_bits)
        return layer

    def _spread(self, layer: Thresholds, bits: Mapping[Width, int]) -> float:
        """How much farther apart thresholds are with the weights in fewer bits.

        Coarse weights are larger on the whole than what they are rounded from, and so are sums;
        the norm behind them, and with it the thresholds, follows.
        """
        source = self._convolution(layer.inputs[0])
        width = None if source is None else bits[self.site_of[source.where], WEIGHT]
        return 1.0 if width is None else self._spreads(layer.where, width)

    def _convolution(self, stream: Stream) -> Convolution | None:
        """The convolution of weights that can be chosen whose sums a stream is made of, if any."""
        giver = self._giver.get(stream.name)
        if giver is None or isinstance(giver, Thresholds):
            return None
        if isinstance(giver, Convolution):
            return giver if giver.where in self.weights else None
        return self._convolution(giver.inputs[0])

    def _spreads(self, where: str, bits: int) -> float:
        """`_spread` in the network of uniform bits."""
        if (where, bits) not in self._known:
            (mine,) = (one for one in self._tables(self.graph) if one.where == where)
            found = [one for one in self._tables(self.uniform[bits]) if one.where == where]
            self._known[where, bits] = self._compared(mine, found[0], bits) if found else 1.0
        return self._known[where, bits]

    @staticmethod
    def _tables(graph: IntegerGraph) -> list[Thresholds]:
        return [layer for layer in graph.layers if isinstance(layer, Thresholds)]

    def _compared(self, mine: Thresholds, other: Thresholds, bits: int) -> float:
        everywhere = dict.fromkeys(self.base, bits)
        source = mine.inputs[0]
        scale = self._unit(source, self.base) / self._unit(source, everywhere)
        expected, got = ends(mine.table, other.bits, scale), ends(other.table, other.bits, 1.0)
        span = int(expected.max()) - int(expected.min())
        return (int(got.max()) - int(got.min())) / span if span > 0 else 1.0

    def _unit(self, stream: Stream, bits: Mapping[Width, int]) -> float:
        """The real number that 1 stands for in a stream, but for a factor that bits leave alone."""
        giver = self._giver.get(stream.name)
        if giver is None:
            return 1.0
        if isinstance(giver, Thresholds):
            site = self._site.get(stream.name)
            return 1.0 if site is None else 1 / (2 ** bits[site, ACTIVATION] - 1)
        unit = self._unit(giver.inputs[0], bits)
        if isinstance(giver, Convolution) and giver.where in self.weights:
            unit *= self.weights[giver.where].units[bits[self.site_of[giver.where], WEIGHT]]
        return unit


def ends(table: Tensor, bits: int, scale: float) -> Tensor:
    """First and last threshold of each channel, of a table with other levels at another scale.

    Between two levels of the finer table the threshold is as far as the level is.

    Args:
        table: (C, levels) of integers, ascending.
        bits: of the codes that the other table gives.
        scale: what the integers are multiplied with.

    Returns:
        (C, 2) integers.

    Example:
        >>> ends(torch.tensor([[10, 30, 50]]), 1, 0.5)  # one level of three: in the middle
        tensor([[15, 15]])
    """
    levels, own = table.shape[1], 2**bits - 1
    found = []
    for level in (0.5, own - 0.5):
        place = min(max(level / own * levels - 0.5, 0.0), levels - 1.0)
        low = int(place)
        high = min(low + 1, levels - 1)
        part = place - low
        between = table[:, low].double() * (1 - part) + table[:, high].double() * part
        found.append((between * scale - 1e-6).ceil())  # a rounding error is no integer more
    return torch.stack(found, 1).long()
