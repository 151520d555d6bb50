"""The bit-widths of a problem as tensors that learn, in the quantizers of a network."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from brevitas_multiquant.allocation.problem import Problem
from brevitas_multiquant.allocation.rounding import round_to_budget
from brevitas_multiquant.allocation.sites import ACTIVATION, WEIGHT, Width
from brevitas_multiquant.allocation.tabulated import tabulated
from brevitas_multiquant.core.panel import Dial
from brevitas_multiquant.core.selection import MAX_BITS, is_whole
from brevitas_multiquant.cost.terms import Term, as_resources
from brevitas_multiquant.errors import BitWidthError, BudgetError, ConfigError
from brevitas_multiquant.nn.network import MultiQuantNet, device_of
from brevitas_multiquant.nn.switchable import SwitchableQuantizer
from brevitas_multiquant.quant.gated_bits import GatedBits
from brevitas_multiquant.quant.geometry import is_transposed
from brevitas_multiquant.quant.layers import CodeLayer
from brevitas_multiquant.quant.learned_bits import Lane, LearnedBits, RealBits, learn, unlearn
from brevitas_multiquant.quant.proxies import activation_tensor_quant

Channels = Mapping[str, tuple[int, ...]]
"""Layer -> bits of each of its output channels."""

Kind = type[RealBits] | type[GatedBits]
"""Made of candidates, where it starts, its shape, and whether it is a parameter."""

TINY = 1e-30
"""What a bit is worth at least, so that it has a place in an order."""


def between_whole_bits(problem: Problem) -> Problem:
    """A problem whose costs are known at real-valued bits: in some units from tables."""
    if problem.unit in LINEAR:
        return problem
    terms = (tabulated(term, problem.candidates) for term in problem.terms)
    return replace(problem, terms=tuple(terms))


LINEAR = ("bitops", "bytes")
"""Units in which a layer costs the mean of what its channels would, alone."""


class LearnedWidths:
    """Learned bits of every width of a problem, and of channels where those have their own.

    What costs nothing, as activations in a budget of bytes, has the most bits and learns none.

    Args:
        problem: what can be chosen.
        start: real-valued bits that all of them start with, within their candidates.
        channels: candidates of each output channel, where those are learned kernel by kernel: all
            weights that are not pinned.
        by_gradient: whether they are parameters; else something else moves them.
        kind: what a bit-width is that can be chosen.

    Raises:
        BudgetError: channels, and a unit in which they have no cost of their own.
        BitWidthError: channels that are no bits, or all pruned.

    Attributes:
        shared: width -> its bits; of widths that share a choice, the first.
        of_layer: layer -> bits of its output channels.
        channels: layer -> how many there are.
    """

    def __init__(
        self,
        problem: Problem,
        start: float,
        channels: Sequence[int] | None = None,
        by_gradient: bool = True,
        kind: Kind = RealBits,
    ) -> None:
        if channels is not None and problem.unit not in LINEAR:
            raise BudgetError(
                f"budget: expected one of {list(LINEAR)} for bits of single channels, got "
                f"{problem.unit}: there a layer has one type of weights, learn bits by layer"
            )
        self.problem = problem
        self.channel_candidates = None if channels is None else _checked(channels)
        self._start, self._by_gradient, self._kind = start, by_gradient, kind
        device = device_of(problem.sites.net)
        self.shared = {
            width: self._bits(of if _is_counted(problem, width) else of[-1:]).to(device)
            for width, of in problem.candidates.items()
            if channels is None or width[1] == ACTIVATION or len(of) == 1
        }
        self.of_layer: dict[str, LearnedBits] = {}
        self.channels: dict[str, int] = {}

    def _bits(self, candidates: Sequence[int], shape: tuple[int, ...] = ()) -> LearnedBits:
        start = min(max(self._start, candidates[0]), candidates[-1])
        if len(candidates) == 1:
            return RealBits(candidates, start, shape, is_learned=False)
        return self._kind(candidates, start, shape, self._by_gradient)

    def attach(self, net: MultiQuantNet) -> None:
        """Let the quantizers of the network run at these bits."""
        names = {module: name for b in net.branches for name, module in b.named_modules()}
        for module in list(net.modules()):
            if isinstance(module, SwitchableQuantizer) and isinstance(module.dial, Dial):
                bits = self.shared[self.problem.same[module.dial.site, ACTIVATION]]
                for member in module.values():
                    learn(activation_tensor_quant(member), bits)
            elif isinstance(module, CodeLayer) and isinstance(module.input_dial, Dial):
                learn(module.weight_quant.tensor_quant, self._of_weights(names[module], module))

    def _of_weights(self, name: str, layer: CodeLayer) -> LearnedBits:
        assert isinstance(layer.input_dial, Dial)
        first = self.problem.same[layer.input_dial.site, WEIGHT]
        if first in self.shared:
            return self.shared[first]
        assert self.channel_candidates is not None
        if is_transposed(layer):
            raise ConfigError(
                f"channels: expected layers whose weights are (outputs, inputs, ...), got {name}, "
                "a transposed convolution: learn bits of layers instead"
            )
        shape = (layer.weight.shape[0], *(1,) * (layer.weight.dim() - 1))
        bits = self._bits(self.channel_candidates, shape).to(layer.weight.device)
        self.of_layer[name], self.channels[name] = bits, shape[0]
        return bits

    def each(self) -> Iterator[LearnedBits]:
        """All of them, in a fixed order."""
        yield from self.shared.values()
        yield from self.of_layer.values()

    def learned(self) -> list[tuple[Tensor, int]]:
        """As of `LearnedBits.learned`, of all of them."""
        return [one for bits in self.each() for one in bits.learned()]

    def parameters(self) -> list[Tensor]:
        """What is learned."""
        return [value for value, _ in self.learned()]

    @property
    def count(self) -> int:
        """How many bit-widths are not known beforehand."""
        return sum(bits.value.numel() for bits in self.each() if len(bits.candidates) > 1)

    def cost(self) -> tuple[Tensor, ...]:
        """What the network costs at its bits now, of each resource, differentiable."""
        return self._cost_at({key: bits.value for key, bits in self._by_key().items()})

    def _by_key(self) -> dict[Any, LearnedBits]:
        """Width, or layer of channels -> its bits."""
        return {**self.shared, **self.of_layer}

    def _cost_at(self, values: Mapping[Any, Tensor]) -> tuple[Tensor, ...]:
        parts = [as_resources(self._cost_of(term, values)) for term in self.problem.terms]
        return tuple(torch.as_tensor(sum(part)) for part in zip(*parts, strict=True))

    def _cost_of(self, term: Term, values: Mapping[Any, Tensor]) -> Any:
        if term.layer not in self.of_layer or not term.widths:
            return term(values)
        return term({**values, term.widths[0]: values[term.layer].mean()})

    def numbers(self) -> dict[str, float]:
        """``layer1.conv1 weight`` -> its bits now; of channels the mean."""
        shared = {f"{site} {kind}": bits for (site, kind), bits in self.shared.items()}
        own = {f"{layer} {WEIGHT}": bits for layer, bits in self.of_layer.items()}
        both = {**shared, **own}
        means = [bits.value.detach().mean() for bits in both.values()]
        return dict(zip(both, torch.stack(means).tolist(), strict=True)) if means else {}

    def rounded(self) -> tuple[dict[Width, int], Channels]:
        """Whole bits of every width, and of channels, that keep to the limits.

        A site's weights have the most bits of any channel. One channel of each layer keeps a bit.

        Where the search has settled, a bit is worth what it costs, wherever it is: the gradients of
        the loss and of the cost balance. So steps are taken in the order of the fractions that
        were learned, and what is left of the budget goes to the nearest ones.
        """
        lanes = {layer: own.lanes() for layer, own in self.of_layer.items()}
        worth = self._worth(lanes)
        bits: dict[Any, float] = {w: b.value.item() for w, b in self.shared.items()}
        candidates: dict[Any, Sequence[int]] = dict(self.problem.candidates)
        for layer, of in lanes.items():
            for index, lane in enumerate(of):
                bits[layer, index], candidates[layer, index] = lane.bits, lane.candidates
        terms = [one for term in self.problem.terms for one in self._by_lane(term, lanes)]

        def gain(width: Any, low: int, high: int) -> float:
            share = (bits[width] - low) / (high - low)
            return (share if share > 0 else 2.0 ** (share - 1)) * worth[width]

        found = round_to_budget(bits, candidates, terms, self.problem.limits, gain)
        channels = {}
        for layer, of in lanes.items():
            own_bits = [0] * self.channels[layer]
            for index, lane in enumerate(of):
                for channel in lane.channels:
                    own_bits[channel] = found[layer, index]
            channels[layer] = tuple(own_bits)
        chosen = {width: found[width] for width in self.shared}
        for layer, each in channels.items():
            width = self.problem.same[self.problem.sites.of_layer[layer], WEIGHT]
            chosen[width] = max(*each, chosen.get(width, 0))
        return {width: chosen[width] for width in self.problem.candidates}, channels

    @torch.no_grad()
    def set(self, chosen: Mapping[Width, int], channels: Channels) -> None:
        """Have whole bits."""
        for width, bits in self.shared.items():
            bits.set(chosen[width])
        for layer, own in self.of_layer.items():
            own.set(channels[layer])

    def counted(self, channels: Channels) -> tuple[Term, ...]:
        """The terms of the cost, where layers with bits by channel have the mean of those."""
        return tuple(
            replace(term, widths=term.widths[1:], of=partial(term.of, _mean(channels[term.layer])))
            if term.layer in channels and term.widths
            else term
            for term in self.problem.terms
        )

    def _worth(self, lanes: Mapping[str, Sequence[Lane]]) -> dict[Any, float]:
        """Width, or channels -> what a bit of it costs, at the bits as they are."""
        by_key = self._by_key()
        learned = [key for key, bits in by_key.items() if bits.learned()]
        values = {key: bits.value.detach() for key, bits in by_key.items()}
        leaves = [values[key].requires_grad_() for key in learned]
        with torch.enable_grad():
            gradients = torch.autograd.grad(self._cost_at(values)[0], leaves) if leaves else ()
        of = dict(zip(learned, gradients, strict=True))
        worth: dict[Any, float] = {
            width: of[width].item() if width in of else 1.0 for width in self.shared
        }
        for layer, those in lanes.items():
            each = of[layer].expand_as(self.of_layer[layer].value).flatten().tolist()
            for index, lane in enumerate(those):
                worth[layer, index] = each[lane.channels[0] % len(each)]
        return {width: max(one, TINY) for width, one in worth.items()}

    def _by_lane(self, term: Term, lanes: Mapping[str, Sequence[Lane]]) -> list[Term]:
        if term.layer not in lanes or not term.widths:
            return [term]
        count = self.channels[term.layer]
        return [
            Term(
                ((term.layer, index), *term.widths[1:]),
                partial(_share, term.of, len(lane.channels), count),
                term.layer,
            )
            for index, lane in enumerate(lanes[term.layer])
        ]

    def detach(self, net: MultiQuantNet) -> None:
        """Let the quantizers give codes again."""
        for module in list(net.modules()):
            if hasattr(module, "learned_bits"):
                unlearn(module)


def _checked(channels: Sequence[int]) -> tuple[int, ...]:
    listed = list(channels) if isinstance(channels, Sequence) else []
    whole = all(is_whole(one) and 0 <= one <= MAX_BITS for one in listed)
    if not whole or not any(listed):
        raise BitWidthError(
            f"channels: expected whole bits from 0 to {MAX_BITS}, and some above 0, got "
            f"{channels!r}"
        )
    return tuple(sorted({int(one) for one in listed}))


def _mean(bits: Sequence[int]) -> float:
    return sum(bits) / len(bits)


def _is_counted(problem: Problem, width: Width) -> bool:
    """Whether the cost depends on a bit-width."""
    most, of = problem.uniform(), problem.candidates[width]
    return problem.cost(most) != problem.cost({**most, width: of[0]})


def _share(of: Any, some: int, count: int, weight: Any, *read: Any) -> Any:
    """What some of its channels cost of a layer."""
    return of(weight, *read) * some / count
