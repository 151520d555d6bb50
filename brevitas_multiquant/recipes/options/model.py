"""Which network to make of which float model."""

from dataclasses import dataclass
from typing import Any

from brevitas_multiquant.methods.options import argument_of
from brevitas_multiquant.recipes.options.option import SWITCH, option
from brevitas_multiquant.recipes.options.types import assignment, fraction, key_value, selection


@dataclass(frozen=True)
class NetworkOptions:
    """The network of run-time bit-widths that a float model becomes: a `MultiQuantConfig`."""

    bits: list[int] = option(**argument_of("bits"))
    selection: Any = option(**argument_of("selection") | {"type": selection, "choices": None})
    profile: str = option(**argument_of("profile"))
    weights: str = option(**argument_of("weights"))
    merge: str = option(**argument_of("merge"))
    half_width: str = option(**argument_of("half_width"))
    method: str = option(**argument_of("method"))
    grid: str | None = option(**argument_of("grid"))
    weight_range: str | None = option(**argument_of("weight_range"))
    activation_range: str | None = option(**argument_of("activation_range"))
    shortcuts: str | None = option(**argument_of("shortcuts"))
    norms: str | None = option(**argument_of("norms"))


@dataclass(frozen=True)
class ModelOptions(NetworkOptions):
    """Which float network to start from, and how."""

    model: str = option("cifar_resnet8", help="a timm name, or torchvision:NAME")
    model_kwargs: list[tuple[str, Any]] = option(
        [], key_value, "further arguments of its builder", nargs="*", metavar="NAME=VALUE"
    )
    pretrained: bool = option(False, action=SWITCH, help="start from published float weights")
    drop_path: float | None = option(
        type=fraction, metavar="P", help="how often residual paths are left out in training"
    )
    initial_checkpoint: str | None = option(
        metavar="FILE", help="start from the float weights in a file"
    )
    assignment: Any = option(
        type=assignment,
        metavar="FILE",
        help="JSON or YAML: bits of each layer in place of --bits, of --method individual",
    )
    stem: str | None = option(
        metavar="NAME",
        help="module up to which all is float, or none (default: the first layer and its norm)",
    )
    head: str | None = option(
        metavar="NAME", help="module from which on all is float, or none (default: the last)"
    )
    branch_init: str | None = option(
        choices=["copy", "shuffle"], help="default: copy trained weights only"
    )
    float: bool = option(False, help="train the float network by the same recipe")

    @property
    def trained(self) -> bool:
        """Whether it starts from trained weights."""
        return self.pretrained or self.initial_checkpoint is not None
