"""Initialising ranges from data, bit-width by bit-width."""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.ao.quantization import observer as observers

from brevitas_multiquant.core.clip_quantize import activation_levels
from brevitas_multiquant.core.config import check_choice
from brevitas_multiquant.core.image_shapes import RANKS
from brevitas_multiquant.errors import CalibrationError, ConfigError, MultiQuantError
from brevitas_multiquant.nn.given import given_network
from brevitas_multiquant.nn.modes import is_frozen
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
from brevitas_multiquant.quant.zero_weights import move_zeros_apart, warn_of_zeros
from brevitas_multiquant.rewrite.graph.kinds import is_norm


class TorchObserver:
    """A ``torch.ao.quantization`` observer as a range: what the quantizer it proposes spans.

    Args:
        name: of the observer's class.
        levels: largest minus smallest integer of the quantizer.
        symmetric: the quantizer has no zero-point: its range is as wide on both sides of 0.
    """

    def __init__(self, name: str, levels: int, symmetric: bool) -> None:
        scheme = torch.per_tensor_symmetric if symmetric else torch.per_tensor_affine
        self.observer = getattr(observers, name)(
            dtype=torch.quint8 if levels <= 255 else torch.qint32,
            qscheme=scheme,
            quant_min=0,
            quant_max=levels,
        )
        self.levels = levels
        self.symmetric = symmetric

    def observe(self, x: Tensor) -> None:
        """Pass one batch to the observer."""
        self.observer.to(x.device)(x)

    def bounds(self) -> tuple[Tensor, Tensor]:
        """(l, u) of the quantizer that the observer proposes."""
        scale, zero_point = self.observer.calculate_qparams()
        scale, zero_point = scale.reshape(()), zero_point.reshape(())
        if self.symmetric:
            zero_point = torch.full_like(scale, self.levels / 2)
        return -zero_point * scale, (self.levels - zero_point) * scale


MakeObserver = Callable[[LearnedRange, int, bool], Observer]
"""Range, levels of its quantizer, whether that one is symmetric -> what sees the batches."""

OBSERVERS: dict[str, MakeObserver] = {
    "paper": lambda learned, *_: MeanObserver(learned.rule),
    "minmax": lambda _, *quantizer: TorchObserver("MinMaxObserver", *quantizer),
    "moving_average": lambda _, *quantizer: TorchObserver(
        "MovingAverageMinMaxObserver", *quantizer
    ),
    "histogram": lambda _, *quantizer: TorchObserver("HistogramObserver", *quantizer),
}


def calibrate(
    net: MultiQuantNet, loader: Iterable[Any], *, batches: int = 1, observer: str = "paper"
) -> None:
    """Initialise every range of the network: weights from themselves, activations from data.

    For each bit-width the batches pass through the quantized network in order; a quantizer sees
    what the quantizers before it let through. Norms use and update batch statistics meanwhile, but
    for frozen ones (in evaluation mode in a network that trains); dropout is off. Modes and the
    active bit-width are restored.

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
        CalibrationError: no batch, a batch without images, or of one where a norm needs two, or
            values that are not finite; the network is left as it was.
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
    norms = [module for module in net.modules() if is_norm(module) and not is_frozen(net, module)]
    with torch.no_grad(), unchanged_on_failure(net), only_training(net, norms):
        moved = [f"branches.{name}" for name in move_zeros_apart(net.branches)]
        for layer in net.modules():
            if isinstance(layer, CodeLayer) and not isinstance(layer, LayerSlice):
                weight_range(layer).set_from(layer.effective_weight())
        for bits in net.bits:
            with net.at_bits(bits):
                ranges = list(activation_ranges(net, bits))
                with _observers(net, ranges, OBSERVERS[observer]):
                    for batch in images:
                        run_images(net, batch.to(device), "calibrate")
        _check_finite(net)
    warn_of_zeros(net, moved, stacklevel=2)


def activation_ranges(net: nn.Module, bits: int) -> Iterator[ActivationRange]:
    """The activation ranges that are in use at a bit-width, of a network that runs at it."""
    of_others = {
        part
        for module in net.modules()
        if isinstance(module, Switchable)
        for key, member in module.items()
        if key != module.name_at(bits)
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
    if not isinstance(images, Tensor) or images.dim() not in RANKS or not len(images):
        raise CalibrationError(
            f"{caller}: expected batches of images (N, C, H, W), or videos (N, C, T, H, W), or "
            "tuples that start with one, got "
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
    if net.input_shape is not None and images.dim() != len(net.input_shape):
        raise CalibrationError(  # a layer would take frames for the images of a batch
            f"{caller}: expected images such as {net.input_shape}, got {tuple(images.shape)}"
        )
    try:
        net(images)
    except MultiQuantError:
        raise
    except (RuntimeError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        wanted = next(net.parameters()).dtype
        got = f"got {images.dtype} {tuple(images.shape)}: {error}"
        if _SINGLE_VALUE in str(error):
            raise CalibrationError(
                f"{caller}: expected batches of two images or more, as a norm of the network sees "
                f"a single value a channel, {got}; for a loader's last batch, drop_last=True"
            ) from error
        raise CalibrationError(
            f"{caller}: expected {wanted} images that the network takes, such as "
            f"{net.input_shape}, {got}"
        ) from error


_SINGLE_VALUE = "more than 1 value per channel"
"""What torch says of a batch norm in training mode over one image of one pixel."""

_OUT_OF_MEMORY = re.compile("out of memory|can't allocate memory|not enough memory", re.IGNORECASE)
"""What allocators say that raise a plain ``RuntimeError``: the host's, and some devices'."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on any device.

    Example:
        >>> is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory"))
        True
        >>> is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
        False
    """
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error)) is not None


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
def only_training(net: nn.Module, modules: Iterable[nn.Module]) -> Iterator[None]:
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
def _observers(net: nn.Module, ranges: list[ActivationRange], make: MakeObserver) -> Iterator[None]:
    quantizer_of = _quantizers(net)
    for learned in ranges:
        quantizer = quantizer_of[learned]
        levels = activation_levels(quantizer.bits)  # its own: 8 bits of an image, whatever runs
        learned.observer = make(learned, levels, getattr(quantizer, "signed", False))
    try:
        yield
    finally:
        for learned in ranges:
            learned.observer = None


def _quantizers(net: nn.Module) -> dict[LearnedRange, Any]:
    """Range -> the quantizer that it belongs to."""
    modules = [m for m in net.modules() if isinstance(getattr(m, "range_impl", None), LearnedRange)]
    return {module.range_impl: module for module in modules}  # type: ignore[misc]


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
