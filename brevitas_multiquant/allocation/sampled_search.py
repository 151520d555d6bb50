"""Bit-widths found by sampling an assignment in each step of one training: FLIQS, AMED.

All assignments share the weights and ranges of one network of the method ``"individual"``. It runs
at whole bits, of which a policy (`allocation.policies`) draws other ones from step to step, by how
the network does at them and by what they cost, whatever the unit. `Search.settle` fixes what the
policy prefers, within the budget, and the network trains on with it.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from brevitas_multiquant.allocation.budget import Budget
from brevitas_multiquant.allocation.learned_widths import TINY, Channels, LearnedWidths
from brevitas_multiquant.allocation.policies import POLICIES, Policy
from brevitas_multiquant.allocation.problem import Candidates, Pin, Problem
from brevitas_multiquant.allocation.rounding import round_to_budget
from brevitas_multiquant.allocation.search_task import Search
from brevitas_multiquant.allocation.sites import Width
from brevitas_multiquant.core.named import row_named
from brevitas_multiquant.errors import ConfigError
from brevitas_multiquant.nn.network import MultiQuantNet
from brevitas_multiquant.training.task import BitWidthLoss


class SampledSearch(Search):
    """The training task of a search that samples assignments.

    As `brevitas_multiquant.allocation.BitSearch`, call `update_bits` after each update of the
    parameters; and call `at` before each step: what is drawn is a function of the run's seed, the
    epoch, the step and the policy's state, which is in the state dict. Between two steps the
    network runs at the bits that the policy prefers.

    Args:
        net: of the method ``"individual"``, at the most bits that anything may get. Calibrate it
            before.
        budget: the most it may cost, or a whole problem.
        policy: ``"fliqs"`` or ``"amed"``, a row of `brevitas_multiquant.allocation.POLICIES`.
        options: of the policy, by name.
        candidates: bits that may be chosen.
        pins: name or glob of layers or sites -> bits that are no choice.
        groups: names or globs of sites that get the same bits.
        criterion: (logits, target) -> scalar; default cross entropy.
        input_shape: of images; default: the shape that the network was built with.

    Raises:
        NetworkError, ConfigError, BudgetError, BitWidthError: as of `BitSearch`; an unknown
            policy, or options that it has not.

    Example:
        >>> from torchvision.models import resnet18
        >>> from brevitas_multiquant import Budget, calibrate, multiquantize
        >>> net = multiquantize(
        ...     resnet18(num_classes=10), [8], method="individual", input_shape=(1, 3, 32, 32)
        ... )
        >>> images, labels = torch.rand(4, 3, 32, 32), torch.arange(4)
        >>> calibrate(net, [images])
        >>> search = SampledSearch(net, Budget(uniform=3), policy="fliqs")
        >>> weights = torch.optim.SGD(net.model_parameters(), 0.01)
        >>> for step in range(2):
        ...     weights.zero_grad()
        ...     search.at(epoch=0, epochs=1, step=step)
        ...     search(images, labels)["loss"].backward()
        ...     weights.step()
        ...     search.update_bits(done=step / 2)
        >>> allocation = search.settle().allocation
        >>> allocation.strategy, allocation.cost <= allocation.budget
        ('fliqs', True)
    """

    advice = "search for longer, or with another budget"
    mover = "policy"

    def __init__(
        self,
        net: MultiQuantNet,
        budget: Budget | Problem,
        *,
        policy: str,
        options: Mapping[str, Any] | None = None,
        candidates: Candidates = tuple(range(2, 9)),
        pins: Mapping[str, Pin] | None = None,
        groups: Sequence[Sequence[str]] = (),
        criterion: Callable[[Tensor, Tensor], Tensor] | None = None,
        input_shape: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__(
            net,
            budget,
            candidates=candidates,
            pins=pins,
            groups=groups,
            criterion=criterion,
            input_shape=input_shape,
        )
        made = row_named("policy", policy, POLICIES)
        self.strategy = policy  # type: ignore[misc]
        most = float(max(of[-1] for of in self.problem.candidates.values()))
        self.widths = LearnedWidths(self.problem, most, by_gradient=False)
        self.open_widths = [
            width for width, bits in self.widths.shared.items() if len(bits.candidates) > 1
        ]
        of_each = [self.widths.shared[width].candidates for width in self.open_widths]
        try:
            self._open(made(of_each, **(options or {})))
        except TypeError as error:
            raise ConfigError(f"options of {policy!r}: {error}") from error
        self._most = self.problem.cost(self.problem.uniform())[0]
        self._place: tuple[int, ...] | None = None
        self._drawn: tuple[int, ...] | None = None
        self._show(self.policy.bits())

    @property
    def policy(self) -> Policy:
        """What draws the bits, while they are open."""
        own = self.net.get_submodule(self.mover)
        assert isinstance(own, Policy)
        return own

    def at(self, epoch: int, epochs: int, step: int, seed: int = 0) -> None:
        """Be told where in its training the network is, before every step."""
        self._place = seed, epoch, step

    def losses(
        self, images: Tensor, target: Tensor, chosen: Sequence[int] | None = None
    ) -> Iterator[BitWidthLoss]:
        """The criterion's loss at drawn bits; in training its gradient goes to the policy too.

        Raises:
            ConfigError: a step that it was not told the place of.
        """
        learns = self.is_open and torch.is_grad_enabled()
        if learns:
            self._draw()
        for part in super().losses(images, target, chosen):
            carried = part.loss.detach() * self.policy.carrier if learns else 0.0
            yield part._replace(loss=part.loss + carried)

    @torch.no_grad()
    def update_bits(self, done: float) -> None:
        """Let the policy learn from the step; once bits are whole, keep pruned channels at 0.

        Raises:
            ConfigError: ``done`` outside of 0 to 1 while bits are open.
        """
        self._hold_pruned()
        if not self.is_open:
            return
        self._check_done(done)
        policy = self.policy
        if self._drawn is None or policy.carrier.grad is None:
            return
        policy.done.fill_(done)
        cost, over = self.problem.cost(self._bits()), self.problem.limits
        ratio = max(one / most for one, most in zip(cost, over, strict=True) if isfinite(most))
        policy.learn(policy.carrier.grad, ratio, cost[0] / self._most)
        policy.carrier.grad = None
        self._drawn = None
        self._show(policy.favourites())

    def _draw(self) -> None:
        """Once for each step, whatever it accumulates."""
        if self._place is None:
            raise ConfigError(
                "SampledSearch: expected to know the step, of which the drawn bits are a function, "
                "got one before any at(epoch, epochs, step): call it before every step"
            )
        if self._drawn == self._place:
            return
        seed = random.Random(str(self._place)).getrandbits(63)
        self.policy.draw(torch.Generator().manual_seed(seed))
        self._drawn = self._place
        self._show(self.policy.bits())

    @torch.no_grad()
    def _show(self, bits: Sequence[int]) -> None:
        for width, one in zip(self.open_widths, bits, strict=True):
            self.widths.shared[width].value.fill_(one)

    def _bits(self) -> dict[Width, int]:
        return {width: int(bits.value.item()) for width, bits in self.widths.shared.items()}

    @torch.no_grad()
    def bits(self) -> dict[str, float]:
        """``layer1.conv1 weight`` -> its bits as the policy expects them; once whole, those."""
        found = super().bits()
        if self.is_open:
            policy = self.policy
            means = [
                sum(p * bits for p, bits in zip(row, of, strict=False))
                for row, of in zip(policy.preferences().tolist(), policy.candidates, strict=True)
            ]
            names = (f"{site} {kind}" for site, kind in self.open_widths)
            found |= dict(zip(names, means, strict=True))
        return found

    def rounded(self) -> tuple[dict[Width, int], Channels]:
        """What is preferred; steps to the budget by preference and cost."""
        policy = self.policy
        rows = zip(policy.candidates, policy.preferences().tolist(), strict=True)
        preferred = {
            width: dict(zip(of, row, strict=False))
            for width, (of, row) in zip(self.open_widths, rows, strict=True)
        }
        start: dict[Any, float] = {width: float(bits) for width, bits in self._bits().items()}
        start |= dict(zip(self.open_widths, map(float, policy.favourites()), strict=True))
        candidates = {width: bits.candidates for width, bits in self.widths.shared.items()}
        gain = partial(_gain, preferred)
        arguments = (candidates, self.problem.terms, self.problem.limits, gain)
        found = round_to_budget(start, *arguments)
        return {width: found[width] for width in self.problem.candidates}, {}


def _gain(preferred: Mapping[Width, Mapping[int, float]], width: Any, low: int, high: int) -> float:
    """Of a step up: how much the higher one is preferred to the lower."""
    of = preferred.get(width, {})
    up, down = of.get(high, 1.0), of.get(low, 1.0)
    return max(up / max(up + down, TINY), TINY)
