"""What the names in the rows of `core.method.METHODS` stand for."""

from collections.abc import Callable, Sequence

from torch import nn

from brevitas_multiquant.core.config import MultiQuantConfig
from brevitas_multiquant.core.grids import WeightFormat
from brevitas_multiquant.core.method import METHODS, Method, method_named
from brevitas_multiquant.core.panel import Panel
from brevitas_multiquant.nn.switchable import SwitchableNorm, SwitchableQuantizer
from brevitas_multiquant.quant.layers import CodeLayer, code_layer
from brevitas_multiquant.rewrite.build import Fittings
from brevitas_multiquant.training.objective import InPlaceDistillation

__all__ = ["METHODS", "OBJECTIVES", "WEIGHTS", "Method", "fittings", "method_named"]

WEIGHTS: dict[str, Callable[[nn.Module, Panel, WeightFormat], CodeLayer]] = {
    "fixed": code_layer,  # the same codes at every bit-width
}
"""Family of weight codes -> makes the layer of a float one."""

OBJECTIVES: dict[str, type[nn.Module]] = {"in-place distillation": InPlaceDistillation}
"""What a training step minimises -> the training task."""


def fittings(config: MultiQuantConfig, bits: Sequence[int], active: Panel) -> Fittings:
    """What a configuration's method puts into a body.

    Args:
        config: names the method.
        bits: the bit-widths at which the body runs.
        active: the network's state.
    """
    row = method_named(config.method)

    def layer(module: nn.Module, site: str) -> nn.Module:
        made = WEIGHTS[row.weights](module, active, config.weight_format)
        made.input_dial = active.dial(site)
        return made

    return Fittings(
        layer=layer,
        quantizer=lambda site: SwitchableQuantizer.create(
            bits, active, active.dial(site), key=row.activations
        ),
        norm=lambda module: SwitchableNorm.create(module, bits, active, key=row.norms),
    )
