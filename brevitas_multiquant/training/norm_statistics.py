"""Running statistics of norms anew, as plain means over batches."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from brevitas_multiquant.core.copying import copied
from brevitas_multiquant.core.precision import Assignment
from brevitas_multiquant.core.selection import chosen_bits
from brevitas_multiquant.errors import PackedFileError
from brevitas_multiquant.nn.given import given_network
from brevitas_multiquant.nn.modes import is_frozen
from brevitas_multiquant.nn.network import MultiQuantNet, device_of
from brevitas_multiquant.nn.switchable import Switchable, SwitchableNorm
from brevitas_multiquant.training.calibrate import (
    first_images,
    only_training,
    run_images,
    unchanged_on_failure,
)

CALLER = "reestimate_norms"


def reestimate_norms(
    net: MultiQuantNet,
    loader: Iterable[Any],
    *,
    batches: int = 10,
    bits: Sequence[int] | None = None,
) -> None:
    """Replace the running statistics of norms that each bit-width has for itself.

    Training leaves a moving average over networks of the last steps; where a bit-width does not
    run in every step (`InPlaceDistillation`, ``bits``) those lie far back. Here the statistics
    are means over batches that the present network sees. Nothing else changes: not the norms that
    bit-widths share, those of the stem, which run as in evaluation, nor frozen ones; dropout is
    off; modes and the active bit-width are restored.

    Args:
        net: a network whose ranges are set.
        loader: batches of images (N, C, H, W), or tuples that start with one.
        batches: how many to use.
        bits: bit-widths; default all.

    Raises:
        NetworkError: not a `MultiQuantNet`.
        ConfigError: fewer than one batch asked for.
        BitWidthError: not candidates of the network.
        PackedFileError: the network came out of a packed file, which has no statistics.
        CalibrationError: no batch, one without images, or of one where a norm needs two; the
            network is left as it was.

    Example:
        >>> from torchvision.models import resnet18
        >>> from brevitas_multiquant import calibrate, multiquantize
        >>> net = multiquantize(resnet18(num_classes=10), [2, 4], input_shape=(1, 3, 32, 32))
        >>> calibrate(net, [torch.rand(8, 3, 32, 32)])
        >>> reestimate_norms(net, [torch.rand(8, 3, 32, 32)], batches=1)
    """
    net = given_network(net, CALLER)
    _require_statistics(net, CALLER)
    chosen = net.bits if bits is None else chosen_bits(bits, net.bits, CALLER)
    images = first_images(loader, batches, CALLER)
    with torch.no_grad(), unchanged_on_failure(net):
        for bit in chosen:
            with net.at_bits(bit):
                _estimate(net, images, CALLER)


def assigned_norms(
    net: MultiQuantNet, assignment: Assignment, loader: Iterable[Any], *, batches: int = 10
) -> MultiQuantNet:
    """A view of the network at an assignment, with norms of its own, whose statistics are its own.

    Norms that sites or bit-widths choose serve many assignments, and have statistics of none of
    them. Here they are means over batches that the network sees under this one, so that it may be
    measured, exported and packed as it will run. Weights, ranges and everything else stay those of
    the network: what it learns later the view has too, but not its norms. The network is not
    changed.

    Args:
        net: a network whose ranges are set.
        assignment: bits for each site.
        loader: batches of images (N, C, H, W), or tuples that start with one.
        batches: how many to use.

    Returns:
        The view, as of `MultiQuantNet.view`.

    Raises:
        NetworkError, ConfigError, BitWidthError, PackedFileError, CalibrationError: as of
            `reestimate_norms`; an assignment that does not fit the network.

    Example:
        >>> from torchvision.models import resnet18
        >>> from brevitas_multiquant import Assignment, calibrate, multiquantize
        >>> net = multiquantize(resnet18(num_classes=10), [2, 4], input_shape=(1, 3, 32, 32))
        >>> images = [torch.rand(8, 3, 32, 32)]
        >>> calibrate(net, images)
        >>> mixed = Assignment(4, {"layer1.0.conv2": (2, 2)})
        >>> view = assigned_norms(net, mixed, images, batches=1)
        >>> view.setting.own, view.stem.conv1.weight is net.stem.conv1.weight
        (mappingproxy({'layer1.0.conv2': 2}), True)
    """
    caller = "assigned_norms"
    net = given_network(net, caller)
    _require_statistics(net, caller)
    view = net.view(net._checked(caller, assignment))
    images = first_images(loader, batches, caller)
    kept: dict[int, Any] = {id(view._active): view._active}
    for module in list(view.modules()):
        if isinstance(module, SwitchableNorm):
            for name, norm in module.items():
                module[name] = copied(norm, kept)
    with torch.no_grad():
        _estimate(view, images, caller)
    return view


def _require_statistics(net: MultiQuantNet, caller: str) -> None:
    net.require_trainable(caller)
    if not net.batch_statistics:
        raise PackedFileError(
            f"{caller}: expected batch norms with statistics, got those of a packed file, which "
            "are a factor and a summand per channel and train as that; there is nothing to estimate"
        )


def _estimate(net: MultiQuantNet, images: Sequence[Tensor], caller: str) -> None:
    """Statistics anew of the norms that run now."""
    device = device_of(net)
    norms = [norm for norm in _running_norms(net) if not is_frozen(net, norm)]
    with only_training(net, norms), _accumulating(norms):
        for batch in images:
            run_images(net, batch.to(device), caller)


def norms_of(net: MultiQuantNet, bits: int) -> Iterator[nn.Module]:
    """Norms with running statistics that a bit-width has for itself."""
    with net.at_bits(bits):
        found = _running_norms(net)
    yield from found


def _running_norms(net: MultiQuantNet) -> list[nn.Module]:
    """Norms with running statistics that the network has for what it runs at now."""
    bits = net.active_bits
    switched = [module for module in net.modules() if isinstance(module, Switchable)]
    members = [one[one.name_at(bits)] for one in switched if one.name_at(bits) in one]
    return [norm for one in members for norm in one.modules() if _keeps_statistics(norm)]


def _keeps_statistics(module: nn.Module) -> bool:
    """Whether a module has running statistics that follow its batches by ``momentum``.

    In torch's sense: the share of the new batch. Norms of other libraries may mean the other one.
    """
    follows = isinstance(module, _NormBase) or type(module).__module__.startswith("timm.")
    return follows and isinstance(getattr(module, "running_var", None), Tensor)


@contextmanager
def _accumulating(norms: Sequence[Any]) -> Iterator[None]:
    """Inside the block these norms average what they see, forgetting what was before."""
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        if isinstance(norm, _NormBase):
            norm.reset_running_stats()
        else:
            norm.running_var.fill_(1.0)
    hooks = [norm.register_forward_pre_hook(_every_call_counts_alike()) for norm in norms]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def _every_call_counts_alike() -> Callable[[Any, Any], None]:
    """For the k-th call of a norm, momentum 1 / k.

    ``momentum=None`` says that to batch norms alone; an instance norm takes it for 0.
    """
    calls = count(1)

    def set_momentum(norm: Any, _: Any) -> None:
        norm.momentum = 1.0 / next(calls)

    return set_momentum
