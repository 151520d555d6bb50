"""Which modules may overwrite what they read: in evaluation that saves a tensor each."""

from typing import Any

from torch import fx, nn

from brevitas_multiquant.nn.switchable import ScaleShiftNorm, SwitchableNorm, SwitchableQuantizer
from brevitas_multiquant.quant.layers import CodeLayer
from brevitas_multiquant.quant.proxies import activation_tensor_quant

_MAKE_NEW_TENSORS = (CodeLayer, SwitchableNorm, ScaleShiftNorm, nn.ReLU, nn.ReLU6)


def let_overwrite(part: nn.Module) -> None:
    """Tell norms and quantizers of a finished graph where they alone read a fresh tensor.

    Args:
        part: a branch; anything that is not a traced graph is left as it is.
    """
    if not isinstance(part, fx.GraphModule):
        return
    modules: dict[str, Any] = dict(part.named_modules())
    for node in part.graph.nodes:
        if node.op == "call_module" and _alone_reads_fresh_tensor(node, modules):
            _set_overwrites(modules[str(node.target)])


def _set_overwrites(module: Any) -> None:
    if not isinstance(module, (SwitchableNorm, SwitchableQuantizer)):
        return
    for member in module.values():
        is_norm = isinstance(module, SwitchableNorm)
        worker: Any = member if is_norm else activation_tensor_quant(member)
        worker.overwrites = True


def _alone_reads_fresh_tensor(node: fx.Node, modules: dict[str, Any]) -> bool:
    sources = node.all_input_nodes
    if len(sources) != 1 or sources[0].op != "call_module" or len(sources[0].users) != 1:
        return False
    calls = sum(other.target == node.target for other in node.graph.nodes)
    return calls == 1 and isinstance(modules.get(str(sources[0].target)), _MAKE_NEW_TENSORS)
