"""What a search for bit-widths may choose, and how it does."""

from dataclasses import dataclass, fields
from typing import Any

from brevitas_multiquant.allocation.budget import UNITS, Budget
from brevitas_multiquant.allocation.policies import POLICIES
from brevitas_multiquant.cost.models import CONVENTIONS
from brevitas_multiquant.errors import BudgetError, ConfigError
from brevitas_multiquant.recipes.errors import OptionError
from brevitas_multiquant.recipes.options.option import option
from brevitas_multiquant.recipes.options.types import (
    fraction,
    key_value,
    not_negative,
    number_from_zero,
    positive_number,
)

LIMITS = (*UNITS[:3], "ratio", "uniform")
FRACBITS, BAYESIAN_BITS = BY_GRADIENT = ("fracbits", "bayesian_bits")
SEARCHES = (*BY_GRADIENT, *POLICIES)
REGULARISERS = ("controller", "l1")
REGULARISER_OF = {"horizon": "controller", "kappa": "l1"}
"""Option -> the regulariser that has it."""

OF_GRADIENTS = (
    *("kernel_wise", "channel_bits", "start_bits", "regulariser", "bit_rate", "horizon", "kappa"),
)
"""Options that only strategies of `BY_GRADIENT` have."""


@dataclass(frozen=True)
class SearchOptions:
    """What a search may choose, and how it does."""

    strategy: str = option(FRACBITS, help="how bits are found", choices=SEARCHES)
    policy_options: list[tuple[str, Any]] = option(
        [], key_value, "of fliqs or amed", nargs="*", metavar="NAME=VALUE"
    )
    budget: list[tuple[str, Any]] = option(
        [("uniform", 3)],
        key_value,
        "one of bitops, bytes, luts, ratio, uniform; of several one search each",
        nargs="+",
        metavar="UNIT=MOST",
    )
    budget_of: str = option("bitops", help="unit of ratio and uniform", choices=UNITS[:3])
    convention: str = option("quantized", help="what counts", choices=list(CONVENTIONS))
    target_fps: float | None = option(type=positive_number, help="of a budget of LUTs")
    board: str = option("ZCU104", help="of a budget of LUTs")
    dsp: int | None = option(type=not_negative, help="most DSPs (default: the board's)")
    dsp_price: float = option(0.0, number_from_zero, "LUTs that a DSP counts as")
    pins: list[tuple[str, Any]] = option(
        [], key_value, "bits, or [weight, activation]", nargs="*", metavar="LAYERS=BITS"
    )
    kernel_wise: bool = option(
        False, help="bits of weights by output channel; of bayesian_bits, whether each is pruned"
    )
    channel_bits: list[int] | None = option(
        type=not_negative,
        nargs="+",
        metavar="B",
        help="with --kernel-wise; 0 prunes (default: 0 and --bits)",
    )
    search_share: float = option(0.8, fraction, "of the epochs, before bits are made whole")
    start_bits: float | None = option(
        type=positive_number, help="default: half a bit above uniform ones of the budget"
    )
    regulariser: str = option(
        "controller", choices=REGULARISERS, help="what draws the cost to the budget"
    )
    bit_rate: float | None = option(
        type=positive_number, help="change of cost over budget in an update (default: 0.1; l1 0.02)"
    )
    horizon: float = option(5.0, positive_number, "of the controller, in updates")
    kappa: float = option(1.0, positive_number, "of l1")

    def budgets(self) -> dict[str, Budget]:
        """``uniform_3`` -> the budget, for each that was asked for.

        Raises:
            OptionError: one that cannot be, one twice, or several that do not compare.
        """
        budgets = {f"{unit}_{most}": self._budget(unit, most) for unit, most in self.budget}
        units = {budget.unit for budget in budgets.values()}
        if len(budgets) < len(self.budget) or len(units) > 1:
            given = " ".join(f"{unit}={most}" for unit, most in self.budget)
            raise OptionError(
                f"--budget: expected different ones of one unit, for one plot, got {given}"
            )
        return budgets

    def check(self) -> None:
        """Check options against each other.

        Raises:
            OptionError: a budget that cannot be, or an option that would say nothing.
        """
        if self.channel_bits is not None and not self.kernel_wise:
            raise OptionError("--channel-bits: expected it with --kernel-wise")
        defaults = {field.name: field.default for field in fields(self)}
        self._check_strategy()
        for name, regulariser in REGULARISER_OF.items():
            given = getattr(self, name)
            if given != defaults[name] and self.regulariser != regulariser:
                raise OptionError(
                    f"--{name} {given}: expected it with --regulariser {regulariser}, got "
                    f"{self.regulariser}"
                )
        self.budgets()

    def _check_strategy(self) -> None:
        """Refuse options of another strategy."""
        by_gradient = self.strategy in BY_GRADIENT
        for name in ("policy_options",) if by_gradient else OF_GRADIENTS:
            if getattr(self, name) != getattr(SearchOptions(), name):
                owner = " or ".join(POLICIES if by_gradient else BY_GRADIENT)
                raise OptionError(
                    f"--{name.replace('_', '-')}: expected it with --strategy {owner}, got "
                    f"{self.strategy}"
                )

    def _budget(self, unit: str, most: Any) -> Budget:
        if unit not in LIMITS:
            raise OptionError(f"--budget: expected one of {list(LIMITS)}, got {unit}={most}")
        given: dict[str, Any] = {unit: most, "convention": self.convention, "board": self.board}
        given["target_fps"] = self.target_fps
        of = self.budget_of if unit in ("ratio", "uniform") else unit
        if unit != of:
            given["of"] = of
        if of == "luts":
            given |= {"dsp": self.dsp, "dsp_price": self.dsp_price}
        try:
            return Budget(**given)
        except (BudgetError, ConfigError) as error:
            raise OptionError(f"--budget {unit}={most}: {error}") from error
