"""`objective_of`: what a network's method trains it for."""

import inspect
from collections.abc import Callable
from typing import Any

from brevitas_multiquant.errors import ConfigError
from brevitas_multiquant.methods.catalogue import METHODS, OBJECTIVES, method_named
from brevitas_multiquant.nn.given import bare_network
from brevitas_multiquant.nn.network import MultiQuantNet
from brevitas_multiquant.training.task import TrainingTask

_WRAP_THE_TASK = (
    "wrap the task instead, as DistributedDataParallel(objective_of(net)), and compile with "
    "net.compile()"
)


def objective_of(net: MultiQuantNet, **options: Any) -> TrainingTask:
    """The training task of the network's method, as published.

    Args:
        net: a network, which `brevitas_multiquant.multiquantize` made.
        **options: of the task. All take ``criterion``; `options_of_objective` lists the others,
            such as ``distill`` and ``loss`` of MultiQuant or ``teacher`` of Any-Precision.

    Raises:
        NetworkError: a wrapped network, or none.
        ConfigError: an option that this method has not, named with the methods that have it; as
            of the task.

    Example:
        >>> from torchvision.models import resnet18
        >>> from brevitas_multiquant import multiquantize
        >>> net = multiquantize(resnet18(num_classes=10), [2, 4], input_shape=(1, 3, 32, 32))
        >>> objective_of(net, loss="halved").objective.share
        0.5
    """
    net = bare_network(net, "objective_of", _WRAP_THE_TASK)
    method = net.config.method
    known = options_of_objective(method)
    for name, value in options.items():
        if name not in known:
            have = [other for other in METHODS if name in options_of_objective(other)]
            hint = f": it is an option of the methods {have}" if have else ""
            raise ConfigError(
                f"{name}: expected options that the training of {method!r} has, which are "
                f"{list(known)}, got {value!r}{hint}"
            )
    return _task(method)(net, **options)


def options_of_objective(method: str) -> tuple[str, ...]:
    """What `objective_of` takes for networks of a method.

    Raises:
        ConfigError: there is no such method.

    Example:
        >>> options_of_objective("multiquant")
        ('loss', 'distill', 'criterion', 'distill_criterion')
    """
    _, *names = inspect.signature(_task(method)).parameters
    return tuple(names)


def _task(method: str) -> Callable[..., TrainingTask]:
    return OBJECTIVES[method_named(method).objective]
