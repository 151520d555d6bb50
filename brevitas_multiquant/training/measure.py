"""A metric of a network, a bit-width or an assignment at a time."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from brevitas_multiquant.core.panel import Setting
from brevitas_multiquant.errors import ConfigError
from brevitas_multiquant.nn.given import bare_network
from brevitas_multiquant.nn.network import MultiQuantNet, device_of
from brevitas_multiquant.training.calibrate import only_training


class Metric(Protocol):
    """What `measure` asks of a metric, as torchmetrics' have it."""

    def update(self, prediction: Any, target: Any) -> Any:
        """Take one batch into account."""

    def compute(self) -> Any:
        """The value of all batches since the last reset."""

    def reset(self) -> Any:
        """Forget all batches."""


def _whole(output: Any) -> Any:
    return output


@contextmanager
def _entries_named(net: MultiQuantNet, prediction: Callable[[Any], Any]) -> Iterator[None]:
    """An error of a metric that was given an output of several entries says so."""
    try:
        yield
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        if prediction is not _whole or net.structure.is_one_tensor:
            raise
        raise ConfigError(
            "prediction: expected a function that gives the metric what it takes of an output "
            f"with the entries {list(net.structure.names)}, got none: {error}"
        ) from error


@torch.no_grad()
def measure(
    net: MultiQuantNet,
    batches: Iterable[tuple[Tensor, Any]],
    metric: Metric,
    *,
    settings: Sequence[Setting] | None = None,
    prediction: Callable[[Any], Any] = _whole,
) -> dict[Setting, Any]:
    """The value of a metric at each bit-width, in evaluation.

    Args:
        net: a trained network; its modes and its bit-width are as before afterwards.
        batches: images (N, C, H, W) with targets, as the metric takes them. Gone through once for
            each setting.
        metric: of torchmetrics, on the device of the outputs, or any `Metric`.
        settings: bit-widths and assignments; default all bit-widths.
        prediction: the network's output -> what the metric takes, such as the boxes of a detector.

    Returns:
        Setting -> the metric's value.

    Raises:
        ConfigError: batches that can be read once only, for several settings; an output of several
            entries that the metric does not take, and no ``prediction``.
        BitWidthError: a setting that the network has not.

    Example:
        >>> import torch
        >>> from torchmetrics.classification import MulticlassAccuracy
        >>> from torchvision.models import resnet18
        >>> from brevitas_multiquant import calibrate, multiquantize
        >>> net = multiquantize(resnet18(num_classes=10), [2, 4], input_shape=(1, 3, 32, 32))
        >>> batches = [(torch.rand(4, 3, 32, 32), torch.arange(4))]
        >>> calibrate(net, batches)
        >>> sorted(measure(net, batches, MulticlassAccuracy(10)))
        [2, 4]
    """
    net = bare_network(net, "measure", "pass the network inside")
    chosen: Sequence[Setting] = net.bits if settings is None else settings
    if len(chosen) > 1 and iter(batches) is batches:
        raise ConfigError(
            f"batches: expected what can be gone through {len(chosen)} times, once for each "
            "setting, got an iterator: pass a list or a data loader"
        )
    found = {}
    with only_training(net, ()):
        for setting in chosen:
            metric.reset()
            with net.at_bits(setting):
                for images, target in batches:
                    output = net(images.to(device_of(net)))
                    with _entries_named(net, prediction):
                        metric.update(prediction(output), target)
            found[setting] = metric.compute()
    metric.reset()
    return found
