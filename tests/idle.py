"""Which parameters of a network do not run at a bit-width."""

from brevitas_multiquant import MultiQuantNet
from brevitas_multiquant.nn.switchable import Switchable


def idle_parameters(net: MultiQuantNet, bits: int) -> set[int]:
    """Ids of what belongs to other bit-widths."""
    idle = {
        id(parameter)
        for module in net.modules()
        if isinstance(module, Switchable)
        for key, member in module.items()
        if key != str(bits)
        for parameter in member.parameters()
    }
    for index, branch in enumerate(net.branches):
        if index not in net.selection[bits]:
            idle |= {id(parameter) for parameter in branch.parameters()}
    return idle
