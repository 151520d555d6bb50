"""Initialising ranges from data, bit-width by bit-width."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from brevitas_multiquant.config import check_choice
from brevitas_multiquant.errors import CalibrationError, ConfigError
from brevitas_multiquant.functional import activation_levels
from brevitas_multiquant.nn.given import given_network
from brevitas_multiquant.nn.network import MultiQuantNet, device_of
from brevitas_multiquant.nn.switchable import Switchable
from brevitas_multiquant.quant.layers import CodeLayer, weight_range
from brevitas_multiquant.quant.ranges import (
    ActivationRange,
    LearnedRange,
    MeanObserver,
    Observer,
)
from brevitas_multiquant.quant.slices import LayerSlice
from brevitas_multiquant.rewrite.kinds import is_norm


class TorchObserver:
    """A ``torch.ao.quantization`` observer as a range: what its scale and zero-point span."""

    def __init__(self, observer: Any, levels: int) -> None:
        self.observer = observer
        self.levels = levels

    def observe(self, x: Tensor) -> None:
        """Pass one batch to the observer."""
        self.observer.to(x.device)(x)

    def bounds(self) -> tuple[Tensor, Tensor]:
        """(l, u) of the affine quantizer that the observer proposes."""
        scale, zero_point = self.observer.calculate_qparams()
        scale, zero_point = scale.reshape(()), zero_point.reshape(())
        return -zero_point * scale, (self.levels - zero_point) * scale


def _torch_observer(name: str, levels: int) -> TorchObserver:
    from torch.ao.quantization import observer

    observer_type = getattr(observer, name)
    dtype = torch.quint8 if levels <= 255 else torch.qint32
    qscheme = torch.per_tensor_affine
    return TorchObserver(
        observer_type(dtype=dtype, qscheme=qscheme, quant_min=0, quant_max=levels), levels
    )


OBSERVERS: dict[str, Callable[[LearnedRange, int], Observer]] = {
    "paper": lambda learned, levels: MeanObserver(learned.rule),
    "minmax": lambda learned, levels: _torch_observer("MinMaxObserver", levels),
    "moving_average": lambda learned, levels: _torch_observer(
        "MovingAverageMinMaxObserver", levels
    ),
    "histogram": lambda learned, levels: _torch_observer("HistogramObserver", levels),
}


def calibrate(
    net: MultiQuantNet, loader: Iterable[Any], *, batches: int = 1, observer: str = "paper"
) -> None:
    """Initialise every range of the network: weights from themselves, activations from data.

    For each bit-width the batches pass through the quantized network in order; a quantizer sees
    what the quantizers before it let through. Norms use and update batch statistics meanwhile;
    dropout is off. Modes and the active bit-width are restored.

    Args:
        net: the network; ranges it already has are replaced.
        loader: batches of images (N, C, H, W), or tuples that start with one. It is iterated once.
        batches: how many to use.
        observer: ``"paper"``: 3 std of the (half-)normal distribution, mean over the batches;
            ``"minmax"``, ``"moving_average"``, ``"histogram"``: the observers of
            ``torch.ao.quantization``.

    Raises:
        NetworkError: not a `MultiQuantNet`.
        ConfigError: an unknown observer, or fewer than one batch asked for.
        CalibrationError: no batch, a batch without images, or values that are not finite; the
            network is left as it was.
        PackedFileError: the network came out of a packed file, for evaluation.

    Example:
        >>> from torchvision.models import resnet18
        >>> from brevitas_multiquant import multiquantize
        >>> net = multiquantize(resnet18(num_classes=10), [2, 4], input_shape=(1, 3, 32, 32))
        >>> calibrate(net, [torch.rand(8, 3, 32, 32)])
    """
    net = given_network(net, "calibrate")
    check_choice("observer", observer, tuple(OBSERVERS))
    net.require_trainable("calibrate")
    images = first_images(loader, batches, "calibrate")
    device = device_of(net)
    norms = [module for module in net.modules() if is_norm(module)]
    with torch.no_grad(), unchanged_on_failure(net), only_training(net, norms):
        for layer in net.modules():
            if isinstance(layer, CodeLayer) and not isinstance(layer, LayerSlice):
                weight_range(layer).set_from(layer.effective_weight())
        for bits in net.bits:
            ranges = list(activation_ranges(net, bits))
            with net.at_bits(bits), _observers(ranges, OBSERVERS[observer], bits):
                for batch in images:
                    run_images(net, batch.to(device), "calibrate")
        _check_finite(net)


def activation_ranges(net: nn.Module, bits: int) -> Iterator[ActivationRange]:
    """The activation ranges that are in use at a bit-width."""
    of_others = {
        part
        for module in net.modules()
        if isinstance(module, Switchable)
        for key, member in module.items()
        if key != str(bits)
        for part in member.modules()
    }
    for module in net.modules():
        if isinstance(module, ActivationRange) and module not in of_others:
            yield module


def first_images(loader: Iterable[Any], batches: int, caller: str) -> list[Tensor]:
    """The images (N, C, H, W) of the first batches, for a function whose name starts the errors.

    Raises:
        ConfigError: fewer than one batch asked for.
        CalibrationError: no batch, or one without images.
    """
    if batches < 1:
        raise ConfigError(f"batches: expected at least 1, got {batches}")
    if not isinstance(loader, Iterable):
        raise CalibrationError(
            f"{caller}: expected batches of images, such as a DataLoader, got {loader!r}"
        )
    images = [_images(batch, caller) for batch in islice(loader, batches)]
    if not images:
        raise CalibrationError(f"{caller}: expected at least one batch of images, got none")
    return images


def _images(batch: Any, caller: str) -> Tensor:
    images = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    if not isinstance(images, Tensor) or images.dim() != 4 or not len(images):
        raise CalibrationError(
            f"{caller}: expected batches of images (N, C, H, W) or tuples that start with one, got "
            f"{type(images).__name__} {tuple(getattr(images, 'shape', ()))}"
        )
    if not images.is_floating_point():
        raise CalibrationError(
            f"{caller}: expected floating point images, normalised as for training, got "
            f"{images.dtype}"
        )
    return images


def run_images(net: MultiQuantNet, images: Tensor, caller: str) -> None:
    """Run the network, for a function whose name starts the errors.

    Raises:
        CalibrationError: it does not take such images.
    """
    try:
        net(images)
    except RuntimeError as error:
        wanted = next(net.parameters()).dtype
        raise CalibrationError(
            f"{caller}: expected {wanted} images that the network takes, such as "
            f"{net.input_shape}, got {images.dtype} {tuple(images.shape)}: {error}"
        ) from error


@contextmanager
def unchanged_on_failure(net: MultiQuantNet) -> Iterator[None]:
    """Whatever fails inside the block leaves the tensors of the network as they were."""
    before = {name: value.clone() for name, value in net.state_dict().items()}
    try:
        yield
    except BaseException:
        net.load_state_dict(before)
        raise


@contextmanager
def only_training(net: MultiQuantNet, modules: Iterable[nn.Module]) -> Iterator[None]:
    """Inside the block these modules are in training mode and the rest evaluates."""
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    for module in modules:
        module.train()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def _observers(
    ranges: list[ActivationRange], make: Callable[[LearnedRange, int], Observer], bits: int
) -> Iterator[None]:
    for learned in ranges:
        learned.observer = make(learned, activation_levels(bits))
    try:
        yield
    finally:
        for learned in ranges:
            learned.observer = None


def _check_finite(net: MultiQuantNet) -> None:
    for name, module in net.named_modules():
        if not isinstance(module, LearnedRange):
            continue
        if not torch.isfinite(module.upper - module.lower):
            raise CalibrationError(
                f"calibrate: {name} got a range that is not finite "
                f"({module.lower.item()}, {module.upper.item()}); check the images and the "
                "model for values that are infinite or not a number"
            )
