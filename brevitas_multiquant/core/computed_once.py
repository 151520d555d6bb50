"""Small tensors that a compiled graph computes once, not for every element they are applied to."""

import torch
from torch import Tensor


@torch.library.custom_op("brevitas_multiquant::computed_once", mutates_args=())
def _in_memory(x: Tensor) -> Tensor:
    return x.clone()


@_in_memory.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


_in_memory.register_autograd(lambda ctx, grad: grad)


def computed_once(x: Tensor) -> Tensor:
    """``x`` itself; in a graph compiled for a CPU, ``x`` stored before anybody reads it.

    Inductor moves cheap arithmetic into the loop of its reader: a norm's factor, a root and a
    division in double precision, would be computed for every pixel. An operator that it cannot
    look into keeps the two apart.

    Args:
        x: any shape, small beside what it is applied to.

    Example:
        >>> factor = torch.tensor(2.0)
        >>> computed_once(factor) is factor
        True
    """
    compiling = torch.compiler.is_compiling() and not torch.compiler.is_exporting()
    return _in_memory(x) if compiling and x.device.type == "cpu" else x
