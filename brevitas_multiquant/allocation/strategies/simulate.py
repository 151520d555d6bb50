"""One bit-width of a float network quantized, all others float: what a layer is sensitive to.

Not the quantizers that will be trained, which do not exist yet: uniform ones, each with the range
that has the least squared error on what it sees, as a trained range would be near.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from brevitas_multiquant.allocation.sites import ACTIVATION, WEIGHT, Sites, Width
from brevitas_multiquant.nn.network import MultiQuantNet
from brevitas_multiquant.quant.layers import CodeLayer

SHARES = tuple(share / 20 for share in range(20, 1, -1))
"""Of the largest magnitude: ranges that are tried."""

SAMPLED = 1 << 16
"""Numbers of a tensor that a range is chosen on."""


def quantized(x: Tensor, bits: int, lower: Tensor, upper: Tensor) -> Tensor:
    """Nearest of 2**bits levels from ``lower`` to ``upper``; 0 bits are the number 0.

    Example:
        >>> quantized(torch.tensor([-2.0, 0.1, 0.6]), 1, torch.tensor(0.0), torch.tensor(1.0))
        tensor([0., 0., 1.])
    """
    if bits == 0:
        return torch.zeros_like(x)
    step = (upper - lower) / (2**bits - 1)
    return ((x.clamp(lower, upper) - lower) / step).round() * step + lower


def best_range(x: Tensor, bits: int, symmetric: bool = False) -> tuple[Tensor, Tensor]:
    """The range with the least squared error among shares of that of the data.

    Args:
        x: any shape.
        bits: of the quantizer.
        symmetric: as wide on both sides of 0, as for weights.
    """
    flat = x.detach().flatten()
    flat = flat[:: max(1, flat.numel() // SAMPLED)]
    low, high = flat.min().clamp(max=0), flat.max().clamp(min=0)
    if symmetric:
        high = torch.maximum(-low, high)
        low = -high
    width = (high - low).clamp(min=torch.finfo(x.dtype).tiny)
    tried = [(low * share, low * share + width * share) for share in SHARES]
    errors = [(quantized(flat, bits, *one) - flat).square().sum() for one in tried]
    return tried[int(torch.stack(errors).argmin())]


class Simulation:
    """A converted network that runs float but for one bit-width.

    Args:
        sites: of a network that a float model was converted to.
    """

    def __init__(self, sites: Sites) -> None:
        self.net = sites.net.view(sites.bits).eval()
        self.layers: dict[str, list[CodeLayer]] = {name: [] for name in sites.names}
        for branch in self.net.branches_at(sites.bits):
            for name, site in sites.of_layer.items():
                layer = branch.get_submodule(name)
                assert isinstance(layer, CodeLayer)
                self.layers[site].append(layer)
        self._ranges: dict[tuple[Width, int], tuple[Tensor, Tensor]] = {}

    def reference(self, images: Tensor) -> Tensor:
        """Logits of the float network."""
        with self.net.floating():
            return self.net(images)  # type: ignore[no-any-return]

    def changed(self, widths: Sequence[Width], bits: int, images: Tensor) -> Tensor:
        """Logits with some bit-widths quantized, together."""
        with self.net.floating(), ExitStack() as stack:
            for width in widths:
                stack.enter_context(self.quantizing(width, bits))
            return self.net(images)  # type: ignore[no-any-return]

    @contextmanager
    def at(self, bits: Mapping[Width, int]) -> Iterator[MultiQuantNet]:
        """Inside the block every one of these widths is quantized; the network that runs so."""
        with self.net.floating(), ExitStack() as stack:
            for width, one in bits.items():
                stack.enter_context(self.quantizing(width, one))
            yield self.net

    def read(self, images: Tensor) -> list[tuple[str, Tensor]]:
        """Every site's tensor in the float network."""
        found: dict[str, Tensor] = {}

        def keep(site: str, _: nn.Module, inputs: Sequence[Tensor]) -> None:
            found.setdefault(site, inputs[0].detach())

        hooks = [
            of[0].register_forward_pre_hook(partial(keep, site)) for site, of in self.layers.items()
        ]
        try:
            self.reference(images)
        finally:
            for hook in hooks:
                hook.remove()
        return list(found.items())

    @contextmanager
    def quantizing(self, width: Width, bits: int) -> Iterator[None]:
        """Inside the block the layers of a site read fewer bits, or have weights of them."""
        site, kind = width
        undo = [_KINDS[kind](self, width, layer, bits) for layer in self.layers[site]]
        try:
            yield
        finally:
            for one in undo:
                one()

    def activations(self, width: Width, bits: int, x: Tensor) -> Tensor:
        """What a site's quantizer makes of its tensor, in the range of the first batch."""
        if (width, bits) not in self._ranges:
            self._ranges[width, bits] = best_range(x, bits)
        return quantized(x, bits, *self._ranges[width, bits])


def weights(layer: CodeLayer, bits: int) -> Tensor:
    """A layer's weights in so many bits."""
    weight = layer.effective_weight()
    return quantized(weight, bits, *best_range(weight, bits, symmetric=True))


def _less_weight(run: Simulation, width: Width, layer: Any, bits: int) -> Callable[[], Any]:
    less = weights(layer, bits)
    layer.effective_weight = lambda: less
    return lambda: delattr(layer, "effective_weight")


def _less_input(run: Simulation, width: Width, layer: nn.Module, bits: int) -> Callable[[], Any]:
    def less(_: nn.Module, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return run.activations(width, bits, inputs[0]), *inputs[1:]

    return layer.register_forward_pre_hook(less).remove


_KINDS: Mapping[str, Callable[[Simulation, Width, Any, int], Callable[[], Any]]] = {
    WEIGHT: _less_weight,
    ACTIVATION: _less_input,
}
