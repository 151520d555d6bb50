"""Tiny networks with one body: what files, subnets and exports are tried on."""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from brevitas_multiquant import Assignment, ModelSource, MultiQuantNet, calibrate, multiquantize
from tests.tiny import IMAGE, TinyNet

OWN = ModelSource("own", "TinyNet")
MIXED = Assignment(4, {"conv1": (8, 4), "conv2": (3, 5)})

ROWS: dict[str, dict[str, Any]] = {
    "individual, 8 bits": {"bits": [8], "method": "individual"},
    "individual, 3 bits": {"bits": [3], "method": "individual"},
    "individual, 1 bit": {"bits": [1], "method": "individual"},
    "individual, assignment": {"bits": MIXED},
    "individual, symmetric": {"bits": [8], "method": "individual", "grid": "symmetric"},
    "individual, integer": {"bits": MIXED, "grid": "integer"},
    "adabits centered": {"bits": [2, 3, 5, 8], "method": "adabits", "grid": "centered"},
    "adabits modified": {"bits": [2, 4, 7], "method": "adabits", "grid": "modified"},
    "adabits original": {"bits": [2, 4, 8], "method": "adabits", "grid": "original"},
    "adabits tanh": {"bits": [2, 4, 6], "method": "adabits", "weight_range": "tanh"},
    "any_precision": {"bits": [1, 4, 8], "method": "any_precision", "shortcuts": "quantized"},
    "double_rounding": {"bits": [2, 3, 5, 8], "method": "double_rounding"},
    "vertical layering": {"bits": [2, 5, 8], "method": "vertical_layering"},
    "bit mixer": {"bits": [2, 3, 4], "method": "bit_mixer"},
    "bit mixer, own norms": {"bits": [2, 5], "method": "bit_mixer", "norms": "own"},
}
"""Name -> options of `multiquantize`."""

FLOATS = ("adabits original", "any_precision")
"""Rows whose bit-widths are rounded anew from float weights."""

NESTED = (
    *("adabits centered", "adabits modified", "adabits tanh"),
    *("bit mixer", "bit mixer, own norms"),
)
"""Rows that keep the integers of the largest bit-width alone, whose first bits are the others."""


def build(row: str, profile: str = "paper", model: nn.Module | None = None) -> MultiQuantNet:
    """A network of a row in evaluation mode, as if it were trained: uneven norms and weights."""
    torch.manual_seed(0)
    net = multiquantize(
        model or TinyNet(), input_shape=IMAGE, source=OWN, profile=profile, check=False, **ROWS[row]
    )
    calibrate(net, [sample(16)])
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.normal_(1.0, 0.4)
                module.bias.normal_(0.0, 0.3)
                module.running_mean.normal_(0.0, 0.2)
                module.running_var.uniform_(0.5, 2.0)
        for parameter in net.model_parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    return net.eval()


@cache
def network(row: str, profile: str = "paper") -> MultiQuantNet:
    """As of `build`, once a session; not to be changed."""
    return build(row, profile)


def sample(count: int = 4) -> Tensor:
    """Images for the tiny networks."""
    return torch.randn(count, *IMAGE[1:], generator=torch.Generator().manual_seed(1))
