"""Weights that are all 0 in a format that has no 0: they start at its innermost integers, in turn.

A quantizer sees one number at a time, so equal weights get equal codes: zeros, halfway between -1
and 1, would all become 1, and a layer that should add nothing would add the sum of what it reads.
So the weights themselves are moved apart, by next to nothing, up and down in turn, and sums stay
near 0. Nothing else has to know of it: codes, files and exports follow from the weights, and a
weight crosses 0 as soon as its gradient says so.
"""

import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from brevitas_multiquant.core.grids import Grid
from brevitas_multiquant.quant.layers import CodeLayer, weight_range
from brevitas_multiquant.quant.slices import LayerSlice

NEGLIGIBLE = 1e-6
"""Weights of which none is larger count as 0. Too small to have a range of their own, they get one
as wide as a layer that starts at random (`weight_bounds`); fp32 tells them from 0 in it."""


@torch.no_grad()
def move_zeros_apart(module: nn.Module) -> list[str]:
    """Give weights that are all 0 signs in turn, in layers whose format has no 0.

    The weight at a place of even number becomes `NEGLIGIBLE`, at one of odd number minus that.

    Returns:
        Names of the layers that were changed; each has a new weight range.

    Example:
        >>> from brevitas_multiquant.quant.layers import code_layer
        >>> from brevitas_multiquant.core.panel import Panel
        >>> zeros = nn.Linear(2, 2)
        >>> _ = nn.init.zeros_(zeros.weight)
        >>> layer = code_layer(zeros, Panel(4))
        >>> move_zeros_apart(nn.Sequential(layer)), layer.quant_weight().tolist()
        (['0'], [[1.0, -1.0], [1.0, -1.0]])
    """
    moved = []
    for name, layer in module.named_modules():
        if not isinstance(layer, CodeLayer) or isinstance(layer, LayerSlice):
            continue
        if layer.weight.is_meta or 0 in layer.weight_format.integers:
            continue
        if layer.effective_weight().abs().max() <= NEGLIGIBLE and _move_apart(layer):
            weight_range(layer).set_from(layer.effective_weight())
            moved.append(name)
    return moved


def _move_apart(layer: CodeLayer) -> bool:
    """Whether anything changed."""
    gain = getattr(layer, "gain", None)
    tensors = [layer.weight] if gain is None else [layer.weight, gain]
    before = [tensor.clone() for tensor in tensors]
    if layer.weight_function is None or bool(layer.weight.min() == layer.weight.max()):
        odd_places = torch.arange(layer.weight.numel(), device=layer.weight.device) % 2
        layer.weight.copy_((NEGLIGIBLE * (1 - 2 * odd_places)).view_as(layer.weight))
    if gain is not None and not gain.any():  # standardised weights below a gain of 0 have signs
        gain.fill_(1.0)
        gain.fill_(NEGLIGIBLE / layer.effective_weight().std(correction=0).clamp(min=NEGLIGIBLE))
    return not all(map(torch.equal, before, tensors))


def warn_of_zeros(net: nn.Module, names: Iterable[str], stacklevel: int) -> None:
    """Say which layers could not start at 0; nothing where there are none.

    Args:
        net: a network.
        names: of layers in it, each in a branch.
        stacklevel: as of ``warnings.warn``, for the caller.
    """
    layers: dict[Grid, list[str]] = {}
    for name in names:
        layer: Any = net.get_submodule(name)
        layers.setdefault(layer.weight_grids[-1], []).append(name.split(".", 2)[2])
    for grid, found in layers.items():
        low, high = (f"{end}/{grid.divisor}" for end in (-1, 1))
        warnings.warn(
            f"{', '.join(dict.fromkeys(found))}: the weights are all 0, which the format {grid} "
            f"cannot hold; they start at {high} and {low} in turn, so that sums stay near 0. "
            "weights='int2' or 'ternary' of branches, and grid='modified' of AdaBits, have a 0 to "
            "start at",
            stacklevel=stacklevel + 1,
        )
