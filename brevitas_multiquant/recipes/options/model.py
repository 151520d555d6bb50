"""Which network to train."""

from dataclasses import dataclass
from typing import Any

from brevitas_multiquant.core.grids import WEIGHT_FORMATS
from brevitas_multiquant.recipes.options.option import SWITCH, option
from brevitas_multiquant.recipes.options.types import key_value, selection


@dataclass(frozen=True)
class ModelOptions:
    """Which float network to start from, and the multi-branch network to make of it."""

    model: str = option("cifar_resnet8", help="a timm name, or tv:NAME of torchvision")
    model_kwargs: list[tuple[str, Any]] = option([], key_value, nargs="*", metavar="NAME=VALUE")
    pretrained: bool = option(False, action=SWITCH, help="start from published float weights")
    initial_checkpoint: str | None = option(
        metavar="FILE", help="start from the float weights in a file"
    )
    bits: list[int] = option([2, 4, 6, 8], int, nargs="+", metavar="B")
    selection: Any = option("amortized", selection, "amortized, serial or a mapping")
    profile: str = option("paper", choices=["paper", "finn"], help="finn: for FPGAs")
    weights: str = option("odd", choices=list(WEIGHT_FORMATS), help="integers of the branches")
    merge: str = option("mean", choices=["mean", "sum"], help="of the branch outputs")
    head: str | None = option(
        metavar="NAME", help="module from which on all is float (default: the last)"
    )
    branch_init: str | None = option(
        choices=["copy", "shuffle"], help="default: copy trained weights only"
    )
    float: bool = option(False, help="train the float network by the same recipe")

    @property
    def trained(self) -> bool:
        """Whether it starts from trained weights."""
        return self.pretrained or self.initial_checkpoint is not None
