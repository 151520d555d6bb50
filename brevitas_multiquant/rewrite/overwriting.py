"""Which modules may overwrite what they read: in evaluation that saves a tensor each."""

from typing import Any

from torch import fx, nn

from brevitas_multiquant.nn.switchable import ScaleShiftNorm, SwitchableNorm, SwitchableQuantizer
from brevitas_multiquant.quant.layers import CodeLayer
from brevitas_multiquant.quant.proxies import activation_tensor_quant
from brevitas_multiquant.rewrite.graph.normalise import alone_reads_output

_MAKE_NEW_TENSORS = (CodeLayer, SwitchableNorm, ScaleShiftNorm, nn.ReLU, nn.ReLU6)


def let_overwrite(part: nn.Module) -> None:
    """Tell norms and quantizers of a finished graph where they alone read a fresh tensor.

    Args:
        part: a branch; anything that is not a traced graph is left as it is.
    """
    if not isinstance(part, fx.GraphModule):
        return
    for node in part.graph.nodes:
        if node.op == "call_module" and alone_reads_output(part, node, _MAKE_NEW_TENSORS):
            _set_overwrites(part.get_submodule(str(node.target)))


def _set_overwrites(module: Any) -> None:
    if not isinstance(module, (SwitchableNorm, SwitchableQuantizer)):
        return
    for member in module.values():
        is_norm = isinstance(module, SwitchableNorm)
        worker: Any = member if is_norm else activation_tensor_quant(member)
        worker.overwrites = True
