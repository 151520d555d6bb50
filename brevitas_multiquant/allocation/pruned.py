"""Output channels of no bits while the network trains on: their norm gives 0 for them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from brevitas_multiquant.nn.network import MultiQuantNet
from brevitas_multiquant.nn.switchable import SwitchableNorm


class PrunedChannels:
    """Keeps what stands behind pruned channels at 0, so that an export can leave them out.

    The convolution gives 0 for such a channel, and a batch norm behind it its own summand, which
    goes on learning: a constant that readers may as well have in theirs. So summand and running
    mean are 0 from here on; biases of the layer itself too.

    Args:
        net: its bits are whole.
        channels: layer -> bits of each of its output channels.
    """

    def __init__(self, net: MultiQuantNet, channels: Mapping[str, Sequence[int]]) -> None:
        self._held: list[tuple[Tensor, Tensor]] = []
        for layer, bits in channels.items():
            if 0 in bits:
                self._held += [(t, _is_pruned(bits, t)) for t in _summands(net, layer)]

    @torch.no_grad()
    def hold(self) -> None:
        """After each update of the parameters."""
        for tensor, pruned in self._held:
            tensor.masked_fill_(pruned, 0)


def _is_pruned(bits: Sequence[int], like: Tensor) -> Tensor:
    return torch.tensor([not one for one in bits], device=like.device)


def _summands(net: MultiQuantNet, layer: str) -> Iterator[Tensor]:
    for branch in net.branches:
        bias = branch.get_submodule(layer).bias
        if isinstance(bias, Tensor):
            yield bias
        for norm in _norms_behind(branch, layer):
            for name in ("bias", "running_mean"):
                value = getattr(norm, name, None)
                if isinstance(value, Tensor):
                    yield value


def _norms_behind(branch: Any, layer: str) -> list[Any]:
    """Those of a norm that alone reads a layer."""
    if not isinstance(branch, fx.GraphModule):
        return []
    calls = [node for node in branch.graph.nodes if node.target == layer]
    readers = [reader for call in calls for reader in call.users]
    if len(readers) != 1 or readers[0].op != "call_module":
        return []
    norm = branch.get_submodule(str(readers[0].target))
    return list(norm.values()) if isinstance(norm, SwitchableNorm) else []
