"""Codes of a trained layer, one at a time, against the layer's float output: no gradients.

Combinatorial optimisation for low bit-width networks (arXiv:2206.02006) searches integers directly,
greedily and one coordinate at a time; established from descriptions by others, which are of binary
perceptrons trained so. Here it is a step after training: with the codes C of a layer, the real
numbers W that they were rounded from, both in units of codes, and all inputs X that it reads,

    E = |(C - W) X|^2 = sum over output channels of (c - w) G (c - w)^T,    G = X X^T,

and changing one code by d changes the error of its channel by ``2 d ((c - w) G)_k + d^2 G_kk``. In
each step every output channel takes the one change that lowers its error most, out of all integers
of the grid, until none does. So the error of no channel ever grows. Rounding to the nearest, where
it starts, minimises it only if inputs are not correlated.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from brevitas_multiquant.core.clip_quantize import activation_levels
from brevitas_multiquant.core.devices import widest_float
from brevitas_multiquant.core.grids import Grid
from brevitas_multiquant.errors import ConfigError
from brevitas_multiquant.nn.given import given_network
from brevitas_multiquant.nn.network import MultiQuantNet, device_of
from brevitas_multiquant.quant.layers import CodeLayer, weight_range
from brevitas_multiquant.quant.tensor_quant import Fixed
from brevitas_multiquant.training.calibrate import first_images

CALLER = "descend_codes"
NEGLIGIBLE = 1e-12
"""Share of a channel's first error: gains below it are rounding."""


class Descent(NamedTuple):
    """What became of a layer.

    Args:
        before: E over |W X|^2, of the codes that it had.
        after: of those that it has.
        changed: share of its codes that are others now.
    """

    before: float
    after: float
    changed: float


@torch.no_grad()
def descend_codes(
    net: MultiQuantNet, loader: Iterable[Any], *, batches: int = 1
) -> dict[str, Descent]:
    """Improve the codes of every layer whose integers are the same whatever runs.

    Layer by layer as they run, on what it reads at all bit-widths, with the codes that layers in
    front of it have by then. Latent weights are put where they round to their codes. The statistics
    of norms are those of before: `brevitas_multiquant.reestimate_norms` next.

    Args:
        net: a trained network of the method ``"multiquant"`` or ``"individual"``; changed in place.
        loader: batches of images (N, C, H, W), or tuples that start with one.
        batches: how many to look at.

    Returns:
        ``branches.0.layer1.conv1`` -> what became of it.

    Raises:
        NetworkError: a wrapped network, or none.
        PackedFileError: a network of a packed file, which has no latent weights.
        ConfigError: weights that follow the run-time bit-width, that are made of others or that are
            being searched for, or no batch asked for.
        CalibrationError: no images.

    Example:
        >>> import timm
        >>> from brevitas_multiquant import calibrate, multiquantize
        >>> model = timm.create_model("test_resnet", num_classes=10)
        >>> net = multiquantize(model, [2, 4], input_shape=(1, 3, 32, 32))
        >>> images = [torch.rand(4, 3, 32, 32)]
        >>> calibrate(net, images)
        >>> found = descend_codes(net, images)
        >>> len(found), all(layer.after <= layer.before for layer in found.values())
        (28, True)
    """
    net = given_network(net, CALLER)
    net.require_trainable(CALLER)
    layers = {
        f"branches.{index}.{name}": module
        for index, branch in enumerate(net.branches)
        for name, module in branch.named_modules()
        if isinstance(module, CodeLayer)
    }
    for name, layer in layers.items():
        _require_codes_of_its_own(name, layer)
    images = [one.to(device_of(net)) for one in first_images(loader, batches, CALLER)]
    view = net.view().eval()
    found = {}
    for name, layer in layers.items():
        grams = _gram(view, view.get_submodule(name), images)
        if grams is not None:
            found[name] = _descend(layer, grams)
    return found


def _require_codes_of_its_own(name: str, layer: CodeLayer) -> None:
    quantizer = layer.weight_quant.tensor_quant
    if layer.weight_function is not None or not hasattr(weight_range(layer), "lower"):
        raise ConfigError(
            f"{CALLER}, {name}: expected a layer that rounds its own weights within a learned "
            "range, got one that makes them of others"
        )
    if type(quantizer.grid_impl) is not Fixed or quantizer.are_values:
        raise ConfigError(
            f"{CALLER}, {name}: expected weights that are the same integers whatever runs, as of "
            "the methods 'multiquant' and 'individual', got others"
        )


def _gram(net: MultiQuantNet, layer: Any, images: Sequence[Tensor]) -> Tensor | None:
    """(groups, K, K): X X^T of all that the layer reads, as values; None: it never runs."""
    grams: list[Tensor] = []

    def add(_: Any, inputs: tuple[Tensor, ...]) -> None:
        levels = activation_levels(layer.input_dial.bits)
        patches = _patches(layer, inputs[0] / levels)
        grams.append(patches @ patches.transpose(1, 2))

    hook = layer.register_forward_pre_hook(add)
    try:
        for bits in net.bits:
            with net.at_bits(bits):
                for batch in images:
                    net(batch)
    finally:
        hook.remove()
    return torch.stack(grams).sum(0) if grams else None


def _patches(layer: Any, x: Tensor) -> Tensor:
    """(groups, K, N): what each of a filter's K weights is multiplied with, in fp64 if there is.

    The layer's own operation with filters that read one number each.
    """
    width = layer.weight[0].numel()
    groups = getattr(layer, "groups", 1)
    one_each = torch.eye(width, dtype=x.dtype, device=x.device).repeat(groups, 1)
    filters = one_each.view(groups * width, *layer.weight.shape[1:])
    given = super(CodeLayer, layer).inner_forward_impl(x, filters, None)
    channels = given.movedim(-1 if layer.weight.dim() == 2 else 1, 0)
    return channels.reshape(groups, width, -1).to(widest_float(x.device))


def _descend(layer: Any, gram: Tensor) -> Descent:
    """The layer's best codes, as far as single changes lead."""
    groups, width, _ = gram.shape
    grid = layer.weight_format
    start = layer.quant_weight().to(gram).view(groups, -1, width)
    target = unrounded(layer).to(gram).view(groups, -1, width)
    power = errors(target, gram).sum()
    before, codes = errors(start - target, gram), start.clone()
    for group in range(groups):
        codes[group] = descended(codes[group], target[group], gram[group], grid)
    after = errors(codes - target, gram)
    kept = (after <= before)[..., None]  # sums in another order may differ by a rounding
    codes = torch.where(kept, codes, start)
    _put(layer, codes.view_as(layer.weight))
    changed = (codes != start).float().mean().item()
    total = power.clamp(min=torch.finfo(power.dtype).tiny)
    return Descent(
        (before.sum() / total).item(),
        (torch.minimum(after, before).sum() / total).item(),
        changed,
    )


def unrounded(layer: CodeLayer) -> Tensor:
    """The real numbers that a layer's codes are rounded from, in units of codes, not clipped."""
    values, lower, upper = weight_range(layer).placed(layer.effective_weight())
    grid = layer.weight_format
    low, high = grid.span
    place = (values - lower) / (upper - lower)
    return (low + place * (high - low)) * grid.divisor


def errors(difference: Tensor, gram: Tensor) -> Tensor:
    """``d G d^T`` of each row: (groups, channels, K) and (groups, K, K) -> (groups, channels)."""
    return ((difference @ gram) * difference).sum(-1)


def descended(codes: Tensor, target: Tensor, gram: Tensor, grid: Grid) -> Tensor:
    """Codes of less error, by the best single change of each row until there is none.

    Args:
        codes: (rows, K), integers of the grid.
        target: (rows, K), real numbers.
        gram: (K, K), symmetric and positive semi-definite.
        grid: what codes may be.

    Example:
        >>> from brevitas_multiquant.core.grids import ODD
        >>> gram = torch.tensor([[2.0, 1.9], [1.9, 2.0]])
        >>> descended(torch.tensor([[1.0, 1.0]]), torch.tensor([[0.1, 0.1]]), gram, ODD)
        tensor([[-1.,  1.]])
    """
    codes, power = codes.clone(), gram.diagonal()
    slope = (codes - target) @ gram
    least = NEGLIGIBLE * ((codes - target) * slope).sum(1)
    rows = torch.arange(len(codes), device=codes.device)
    for change, gain in _changes(codes, slope, power, grid):
        best = gain.argmax(1)
        takes = gain[rows, best] > least
        if not takes.any():
            break
        step = torch.where(takes, change[rows, best], torch.zeros_like(least))
        codes[rows, best] += step
        slope += step[:, None] * gram[best]
    return codes


def _changes(
    codes: Tensor, slope: Tensor, power: Tensor, grid: Grid
) -> Iterator[tuple[Tensor, Tensor]]:
    """For each code the change that lowers the error most, and by how much; anew each time."""
    usable = power > 0
    divided_by = torch.where(usable, power, torch.ones_like(power))
    while True:
        wanted = (codes - slope / divided_by - grid.offset) / grid.step
        nearest = wanted.round().clamp(0, grid.levels) * grid.step + grid.offset
        change = torch.where(usable, nearest - codes, torch.zeros_like(codes))
        yield change, -(2 * change * slope + change.square() * power)


def _put(layer: Any, codes: Tensor) -> None:
    """Latent weights in the middle of what is rounded to the codes."""
    grid, learned = layer.weight_format, weight_range(layer)
    lower, upper = learned(layer.weight)
    place = (codes - grid.offset) / (grid.step * grid.levels)
    weight = (lower + (upper - lower) * place).to(layer.weight.dtype)
    moved = layer.quant_weight().to(codes) != codes  # what stays keeps its latent weight
    layer.weight.copy_(torch.where(moved, weight, layer.weight))
