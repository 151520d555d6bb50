"""Stochastic depth, where a float model has it: ``--drop-path``."""

from dataclasses import dataclass

from torch import nn

from brevitas_multiquant.core.float_model import ModelSource
from brevitas_multiquant.recipes.errors import OptionError


@dataclass(frozen=True)
class DropPath:
    """How the models of a library drop residual paths.

    Args:
        argument: of their builders.
        layer: class name of the module that does it.
    """

    argument: str
    layer: str


OF_LIBRARY = {
    "timm": DropPath("drop_path_rate", "DropPath"),
    "torchvision": DropPath("stochastic_depth_prob", "StochasticDepth"),
}


def asked_in(source: ModelSource) -> bool:
    """Whether the arguments of a float model ask for dropped paths."""
    return bool(source.kwargs.get(OF_LIBRARY[source.library].argument))


def require_drop_path(model: nn.Module, source: ModelSource) -> None:
    """Check that a model drops paths; some builders take any argument and pass it over.

    Raises:
        OptionError: it drops none.
    """
    layer = OF_LIBRARY[source.library].layer
    if asked_in(source) and not any(type(one).__name__ == layer for one in model.modules()):
        raise no_drop_path(source)


def no_drop_path(source: ModelSource) -> OptionError:
    """What a model is refused with that cannot drop paths."""
    argument = OF_LIBRARY[source.library].argument
    return OptionError(
        f"--drop-path {source.kwargs[argument]}: expected a model with residual paths that it can "
        f"drop, got {source.name} of {source.library}, which takes no {argument}: leave it out"
    )
