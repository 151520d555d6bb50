"""A metric of a network, a bit-width or an assignment at a time."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from brevitas_multiquant.core.panel import Setting
from brevitas_multiquant.errors import ConfigError
from brevitas_multiquant.nn.given import networks_in
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


def _on(device: torch.device, images: Any) -> Any:
    """A batch, or each image of a list, on a device."""
    if isinstance(images, Tensor):
        return images.to(device)
    return [image.to(device) for image in images]


def _pairs(batches: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
    """Images and targets of at least one batch."""
    batch = None
    for batch in batches:
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise ConfigError(
                "batches: expected pairs of images and targets, got "
                f"{type(batch).__name__}: pass [(images, targets), ...] or a data loader of them"
            )
        yield batch[0], batch[1]
    if batch is None:
        raise ConfigError("batches: expected at least one pair of images and targets, got none")


@contextmanager
def _entries_named(net: nn.Module, prediction: Callable[[Any], Any]) -> Iterator[None]:
    """An error of a metric that was given an output of several entries says so."""
    try:
        yield
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        if not isinstance(net, MultiQuantNet) or net.structure.is_one_tensor:
            raise
        if prediction is not _whole:
            raise
        raise ConfigError(
            "prediction: expected a function that gives the metric what it takes of an output "
            f"with the entries {list(net.structure.names)}, got none: {error}"
        ) from error


@torch.no_grad()
def measure(
    net: nn.Module,
    batches: Iterable[tuple[Any, Any]],
    metric: Metric,
    *,
    settings: Sequence[Setting] | None = None,
    prediction: Callable[[Any], Any] = _whole,
) -> dict[Setting, Any]:
    """The value of a metric at each bit-width, in evaluation.

    Args:
        net: a trained network, or a model that holds some, such as a detector; modes and
            bit-widths are as before afterwards.
        batches: images (N, C, H, W), or a list of images where the model takes one, with targets
            as the metric takes them. Gone through once for each setting.
        metric: of torchmetrics, on the device of the outputs, or any `Metric`.
        settings: bit-widths and assignments; default all bit-widths that every network has.
        prediction: the network's output -> what the metric takes, such as the boxes of a detector.

    Returns:
        Setting -> the metric's value.

    Raises:
        ConfigError: batches that can be read once only, for several settings, that are no pairs, or
            none; what is no metric; an output of several entries that the metric does not take, and
            no ``prediction``.
        NetworkError: a model without a network, or a wrapper around one.
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
    nets = networks_in(net, "measure", "pass the network inside")
    common = [bits for bits in nets[0].bits if all(bits in one.bits for one in nets)]
    chosen: Sequence[Setting] = common if settings is None else settings
    if len(chosen) > 1 and iter(batches) is batches:
        raise ConfigError(
            f"batches: expected what can be gone through {len(chosen)} times, once for each "
            "setting, got an iterator: pass a list or a data loader"
        )
    if isinstance(metric, type) or not hasattr(metric, "update"):
        raise ConfigError(
            "metric: expected an object with update, compute and reset, as torchmetrics makes "
            f"them, got {metric!r}"
        )
    found = {}
    with only_training(net, ()):
        for setting in chosen:
            metric.reset()
            with ExitStack() as stack:
                for one in nets:
                    stack.enter_context(one.at_bits(setting))
                for images, target in _pairs(batches):
                    output = net(_on(device_of(nets[0]), images))
                    with _entries_named(net, prediction):
                        metric.update(prediction(output), target)
            found[setting] = metric.compute()
    metric.reset()
    return found
