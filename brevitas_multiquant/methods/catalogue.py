"""What the names in the rows of `core.method.METHODS` stand for."""

from collections.abc import Callable, Sequence

from torch import nn

from brevitas_multiquant.core.config import MultiQuantConfig
from brevitas_multiquant.core.grids import FAMILIES, Grid
from brevitas_multiquant.core.method import METHODS, NORMS, Method, method_named
from brevitas_multiquant.core.panel import Dial, Panel
from brevitas_multiquant.nn.switchable import SwitchableNorm, SwitchableQuantizer
from brevitas_multiquant.quant.injectors import WeightAtRunTimeLearnedRange
from brevitas_multiquant.quant.layers import Weights, code_layer
from brevitas_multiquant.quant.range_kinds import ACTIVATION_RANGES, WEIGHT_RANGES
from brevitas_multiquant.rewrite.build import Fittings
from brevitas_multiquant.rewrite.neighbours import NOWHERE, Between
from brevitas_multiquant.training.objective import (
    InPlaceDistillation,
    LabelsAlone,
    RecursiveDistillation,
    StepwiseDistillation,
)
from brevitas_multiquant.training.random_assignments import RandomAssignments
from brevitas_multiquant.training.task import TrainingTask

__all__ = ["METHODS", "OBJECTIVES", "WEIGHTS", "Method", "fittings", "method_named", "panel_of"]

GRIDS = {
    **{
        name: name for name in ("symmetric", "integer", "centered", "modified", "double", "cascade")
    },
    "original": "odd",
}
"""What users and papers call a grid -> its family in `core.grids.FAMILIES`."""


def own_grid(config: MultiQuantConfig, bits: int) -> Grid:
    """Which integers weights of one bit-width are.

    Example:
        >>> config = MultiQuantConfig((8,), method="individual", grid="symmetric")
        >>> print(own_grid(config, 3))
        symmetric3 (-3, -2, -1, 0, 1, 2, 3)
    """
    return FAMILIES[GRIDS[str(config.grid)]](bits)


def _at_run_time(config: MultiQuantConfig, dial: Dial) -> Weights:
    return WeightAtRunTimeLearnedRange.let(
        family=GRIDS[str(config.grid)],
        candidate_bits=config.bits,
        range_impl=WEIGHT_RANGES[config.weight_range or "learned"],
    )


WEIGHTS: dict[str, Callable[[MultiQuantConfig, Dial], Weights]] = {
    "fixed": lambda config, dial: config.weight_format,  # the same codes at every bit-width
    "own": lambda config, dial: own_grid(config, dial.weight),  # of the one that the site has
    "run-time": _at_run_time,  # of the bit-width that runs
}
"""Family of weight codes -> which integers the weights of a site's layers become."""

OBJECTIVES: dict[str, Callable[..., TrainingTask]] = {
    "in-place distillation": InPlaceDistillation,
    "labels": LabelsAlone,
    "recursive distillation": RecursiveDistillation,
    "stepwise distillation": StepwiseDistillation,
    "random assignments": RandomAssignments,
}
"""What a training step minimises -> makes the training task of a network."""


def panel_of(config: MultiQuantConfig) -> Panel:
    """The state that all modules of a network look at, at its largest bit-width."""
    bits, row = max(config.bits), method_named(config.method)
    panel = Panel(bits, weight_bits=row.weight_bits, fixed=config.assignment, tied=row.tied)
    panel.switch(bits)
    return panel


def fittings(config: MultiQuantConfig, bits: Sequence[int], active: Panel) -> Fittings:
    """What a configuration's method puts into a body.

    Args:
        config: names the method.
        bits: the bit-widths at which the body runs.
        active: the network's state.
    """
    row = method_named(config.method)
    ranges = ACTIVATION_RANGES[config.activation_range or "learned"]

    def layer(module: nn.Module, site: str) -> nn.Module:
        dial = active.dial(site)
        made = code_layer(module, active, WEIGHTS[row.weights](config, dial))
        made.look_at(dial)
        return made

    def norm(module: nn.Module, between: Between = NOWHERE) -> nn.Module:
        key, around = NORMS[config.norms] if config.norms else row.norms, between._asdict()
        sites = {part: around[part] for part in key if part in around}
        dials = {p: active if site is None else active.dial(site) for p, site in sites.items()}
        return SwitchableNorm.create(module, bits, active, key=key, dials=dials)

    return Fittings(
        layer=layer,
        quantizer=lambda site: SwitchableQuantizer.create(
            bits, active, active.dial(site), key=row.activations, ranges=ranges
        ),
        norm=norm,
    )
