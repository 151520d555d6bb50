"""What an allocator gives: bits of every site, what they cost, and what else was possible."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from brevitas_multiquant.allocation.accuracy import Accuracy
from brevitas_multiquant.core.optional_packages import optional_package
from brevitas_multiquant.core.precision import Assignment
from brevitas_multiquant.core.text_table import text_table
from brevitas_multiquant.core.units import unit_of_bytes

UNITS = {"bitops": (1e9, "GBitOPs"), "luts": (1e3, "thousand LUTs")}
"""Unit of a budget -> what people read it in; bytes by their size."""


class LayerShare(NamedTuple):
    """A layer's part in the cost.

    Args:
        layer: its name.
        weight: bits of its weights; None where they are float, or it is no layer.
        activation: bits of what it reads; None as for weights.
        cost: in the unit of the budget.
        share: of the whole cost.
    """

    layer: str
    weight: int | None
    activation: int | None
    cost: float
    share: float


class CurvePoint(NamedTuple):
    """One choice out of the curve.

    Args:
        cost: in the unit of the budget.
        loss: what the strategy takes for the loss; only differences within a curve mean something.
        assignment: the bits.
    """

    cost: float
    loss: float
    assignment: Assignment


class Uniform(NamedTuple):
    """The network with the same bits everywhere."""

    bits: int
    cost: float
    assignment: Assignment


@dataclass(frozen=True)
class Allocation:
    """Bits of every site within a budget; prints as a table.

    Args:
        assignment: the bits, for ``multiquantize(model, bits=...)`` or ``net.set_active_bits``.
        cost: what it costs, in the unit of the budget.
        budget: the limit.
        unit: of both.
        strategy: that found it.
        uniform: the uniform network that costs nearest to the budget without being above it; None
            where the fewest bits everywhere do.
        layers: each one's part in the cost, in the order in which they run.
        curve: the best choices found from the fewest bits to the most, by rising cost; empty if the
            strategy gives none.
        dsp: DSPs that it takes; 0 for a budget that counts none.
        convention: what counts as bit operations, which the unit in the table names where it is not
            quantized layers alone.
        accuracy: what was measured, where an accuracy was kept.
    """

    assignment: Assignment
    cost: float
    budget: float
    unit: str
    strategy: str
    uniform: Uniform | None
    layers: tuple[LayerShare, ...]
    curve: tuple[CurvePoint, ...]
    dsp: float = 0
    convention: str = "quantized"
    accuracy: Accuracy | None = None

    def __str__(self) -> str:
        lines = [self.headline(), ""]
        columns = (("layer", "weight", "activation", self._named_unit(), "share"),)
        rows = [
            (*map(_cell, row[:3]), self._cell(row.cost), f"{row.share:.1%}") for row in self.layers
        ]
        return "\n".join([*lines, text_table([*columns, *rows])])

    def headline(self) -> str:
        """Cost, budget and the uniform network, in a sentence."""
        unit = self._named_unit()
        text = f"{self.strategy}: {self._cell(self.cost)} of {self._cell(self.budget)} {unit}"
        text += f" and {self.dsp:g} DSPs" if self.dsp else ""
        if self.accuracy is not None:
            found, reference, floor = self.accuracy
            text += f"; accuracy {found:.4g} (before {reference:.4g}, at least {floor:.4g})"
        if self.uniform is None:
            return f"{text}; no uniform bits keep to the budget"
        return f"{text}; uniform {self.uniform.bits} bits: {self._cell(self.uniform.cost)} {unit}"

    def _named_unit(self) -> str:
        name = self._read_in()[1]
        return name if self.convention == "quantized" else f"{name} ({self.convention})"

    def _cell(self, cost: float) -> str:
        return f"{cost / self._read_in()[0]:.4g}"

    def _read_in(self) -> tuple[float, str]:
        """What to divide costs by, and the unit that they are in then."""
        if self.unit == "bytes":
            return unit_of_bytes([self.cost, self.budget])
        return UNITS.get(self.unit, (1.0, self.unit))

    def plot(self, path: str | Path | None = None) -> Any:
        """Bits of each layer as bars, and the curve with budget and uniform network.

        Args:
            path: of an image to write; default: none is written.

        Returns:
            The figure of matplotlib.

        Raises:
            MissingPackageError: matplotlib is not installed.
        """
        made = optional_package("matplotlib.figure", "plot", "recipes").Figure
        figure = made(figsize=(10, 4), layout="constrained")
        both = bool(self.curve)
        bars = figure.add_subplot(1, 1 + both, 1)
        sites = list(self.assignment)
        for offset, kind in ((-0.2, "weight"), (0.2, "activation")):
            heights = [getattr(self.assignment[site], kind) for site in sites]
            bars.bar([x + offset for x in range(len(sites))], heights, 0.4, label=kind)
        bars.set_xticks(range(len(sites)), sites, rotation=90, fontsize=7)
        bars.set_ylabel("bits")
        bars.legend()
        if both:
            self._draw_curve(figure.add_subplot(1, 2, 2))
        if path is not None:
            figure.savefig(path, dpi=150)
        return figure

    def _draw_curve(self, axes: Any) -> None:
        scale, unit = self._read_in()[0], self._named_unit()
        costs = [point.cost / scale for point in self.curve]
        axes.plot(costs, [point.loss for point in self.curve], ".-", label=self.strategy)
        axes.axvline(self.budget / scale, linestyle="--", color="grey", label="budget")
        if self.uniform is not None:
            bits = self.uniform.bits
            axes.axvline(self.uniform.cost / scale, linestyle=":", label=f"uniform {bits} bits")
        axes.set_yscale("symlog", linthresh=max(self.curve[-1].loss, 1e-12))
        axes.set_xlabel(unit)
        axes.set_ylabel(f"loss by {self.strategy}")
        axes.legend()


def _cell(value: object) -> str:
    return "-" if value is None else str(value)
