"""What a network of its own bits may cost, in one of several units."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from math import inf, isfinite
from typing import Any

from brevitas_multiquant.core.config import check_choice
from brevitas_multiquant.core.selection import MAX_BITS, is_whole
from brevitas_multiquant.cost.luts import BOARDS, board_named
from brevitas_multiquant.cost.models import CONVENTIONS
from brevitas_multiquant.errors import BudgetError

UNITS = ("bitops", "bytes", "luts", "custom")
"""What a budget can be of."""

NAMES = {"bitops": "BitOPs", "luts": "LUTs"}

OPTIONS_OF = {
    "convention": "bitops",
    **dict.fromkeys(("target_fps", "board", "clock_ns", "dsp", "dsp_price"), "luts"),
}
"""Option -> the unit that it says something of."""

LUTS_PER_DSP = 55.0
"""HGQ's price of a DSP (arXiv:2405.00645): EBOPs are about LUT + 55 DSP."""

CostOf = Callable[[str, int, int], float] | Mapping[tuple[str, int, int], float]
"""(layer, bits of its weights, bits of what it reads) -> its cost, as a function or a table."""


@dataclass(frozen=True)
class Budget:
    """The most that a network may cost: one of the limits, and how costs are counted.

    Args:
        bitops: bit operations an image.
        bytes: of storage.
        luts: look-up tables of an FPGA, by FINN's rules; needs ``target_fps``.
        custom: in the unit of ``cost``.
        ratio: share of what the network costs with ``uniform`` bits everywhere but where bits are
            pinned; without ``uniform``, with the most bits that are candidates.
        uniform: bits of weights and activations that ``ratio`` is of; alone, the ratio is 1.
        of: unit of a ratio.
        convention: what counts as bit operations: one of
            `brevitas_multiquant.cost.models.CONVENTIONS`.
        target_fps: frames a second, which decide how parallel hardware is.
        board: FINN's name of it, which decides what DSPs there are.
        clock_ns: clock period, in nanoseconds.
        dsp: most DSPs; default: those of the board.
        dsp_price: LUTs that a DSP counts as, on top of the cap. At 0 a search flees to where
            multipliers are DSPs, from 4 bits on; HGQ counts 55.
        cost: of each layer, measured by somebody: a function, or a `CostTable`.

    Raises:
        BudgetError: no limit or several, one that is no positive number, or options of another
            unit.
        ConfigError: an unknown convention.
        HardwareError: an unknown board.

    Example:
        >>> Budget(bitops=2e9).unit, Budget(uniform=3).unit, Budget(uniform=3).ratio
        ('bitops', 'bitops', 1.0)
    """

    bitops: float | None = None
    bytes: float | None = None
    luts: float | None = None
    custom: float | None = None
    ratio: float | None = None
    uniform: int | None = None
    of: str = "bitops"
    convention: str = "quantized"
    target_fps: float | None = None
    board: str = "ZCU104"
    clock_ns: float = 5.0
    dsp: int | None = None
    dsp_price: float = 0.0
    cost: CostOf | None = None

    def __post_init__(self) -> None:
        if self.uniform is not None and self.ratio is None:
            object.__setattr__(self, "ratio", 1.0)
        limits = {name: getattr(self, name) for name in (*UNITS, "ratio")}
        given = {name: limit for name, limit in limits.items() if limit is not None}
        if len(given) != 1:
            raise BudgetError(
                f"budget: expected one of {list(limits)}, got {list(given) or 'none of them'}"
            )
        for name, limit in given.items():
            if not _is_positive(limit):
                raise BudgetError(f"{name}: expected a positive number, got {limit!r}")
        self._check_options()

    def _check_options(self) -> None:
        check_choice("of", self.of, UNITS)
        check_choice("convention", self.convention, tuple(CONVENTIONS))
        board_named(self.board)
        bits = self.uniform
        if bits is not None and not (is_whole(bits) and 1 <= bits <= MAX_BITS):
            raise BudgetError(f"uniform: expected whole bits from 1 to {MAX_BITS}, got {bits!r}")
        self._check_units()
        if self.unit == "luts":
            self._check_hardware()

    def _check_units(self) -> None:
        """Refuse options that would say nothing."""
        if self.ratio is None and self.of != "bitops":
            raise BudgetError(f"of: expected it with a ratio, got {self.of!r} with {self.unit}")
        if (self.unit == "custom") != (self.cost is not None):
            raise BudgetError(
                f"cost: expected a function or table with a budget of the unit 'custom', got "
                f"{self.cost!r} with {self.unit!r}"
            )
        defaults = {field.name: field.default for field in fields(self)}
        for name, unit in OPTIONS_OF.items():
            if self.unit != unit and getattr(self, name) != defaults[name]:
                raise BudgetError(
                    f"{name}: expected it with a budget of {NAMES[unit]}, got "
                    f"{getattr(self, name)!r} with {self.unit}"
                )

    def _check_hardware(self) -> None:
        if self.target_fps is None:
            raise BudgetError(
                "target_fps: expected frames a second for a budget of LUTs, got none: how many "
                "LUTs a layer takes depends on how parallel it has to be"
            )
        for name in ("target_fps", "clock_ns"):
            if not _is_positive(getattr(self, name)):
                raise BudgetError(
                    f"{name}: expected a positive number, got {getattr(self, name)!r}"
                )
        if self.dsp is not None and self.dsp < 0:
            raise BudgetError(f"dsp: expected 0 or more, got {self.dsp}")
        if self.dsp_price < 0:
            raise BudgetError(f"dsp_price: expected 0 or more LUTs, got {self.dsp_price}")

    @property
    def unit(self) -> str:
        """What it is of."""
        return next((name for name in UNITS if getattr(self, name) is not None), self.of)

    def limit(self, cost_of_uniform: Callable[[int | None], float]) -> float:
        """The most, in its unit.

        Args:
            cost_of_uniform: bits -> what the network costs with them everywhere; None: with the
                most that are candidates.
        """
        if self.ratio is not None:
            return self.ratio * cost_of_uniform(self.uniform)
        return float(getattr(self, self.unit))

    @property
    def most_dsps(self) -> float:
        """The cap on DSPs; infinite for a budget that has none."""
        if self.unit != "luts":
            return inf
        return BOARDS[self.board].has.dsp if self.dsp is None else self.dsp


def _is_positive(limit: Any) -> bool:
    number = isinstance(limit, (int, float)) and not isinstance(limit, bool)
    return number and isfinite(limit) and limit > 0
