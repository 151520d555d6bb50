"""What draws bits for a search that samples assignments, and learns from how they did.

A policy has a table with a row for each bit-width and a column for each of its candidates; the
softmax of a row is how much each is preferred. All of its state is in its buffers.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from brevitas_multiquant.errors import ConfigError


class Policy(nn.Module, ABC):
    """Preferences for the candidates of some bit-widths.

    Args:
        candidates: of each bit-width, ascending.
        temperature: T; the preferences are ``softmax(table / T)`` of each row.

    Attributes:
        carrier: 0, for ever. A term ``loss * carrier`` gives it the loss as its gradient, which
            processes and accumulated batches average as all gradients.
        chosen: which candidate each bit-width has now.
        done: share of the search that is over.
    """

    learns_apart = True
    """Its parameters are for no optimizer of the network's."""

    table: Tensor
    chosen: Tensor
    done: Tensor
    missing: Tensor

    def __init__(self, candidates: Sequence[Sequence[int]], temperature: float = 1.0) -> None:
        super().__init__()
        require_numbers(temperature=temperature)
        self.candidates = tuple(tuple(of) for of in candidates)
        self.temperature = temperature
        most = max(map(len, self.candidates), default=1)
        last = torch.tensor([len(of) - 1 for of in self.candidates], dtype=torch.long)
        columns = torch.arange(most).expand(len(self.candidates), most)
        self.carrier = nn.Parameter(torch.zeros(()))
        self.register_buffer("table", torch.zeros(len(self.candidates), most))
        self.register_buffer("chosen", last.clone())
        self.register_buffer("done", torch.zeros(()))
        self.register_buffer("missing", columns > last[:, None], persistent=False)

    def preferences(self, table: Tensor | None = None) -> Tensor:
        """(bit-widths, candidates): rows that add up to 1, 0 where there is no candidate."""
        values = self.table if table is None else table
        return (values / self.temperature).masked_fill(self.missing, -math.inf).softmax(1)

    def bits(self) -> list[int]:
        """What is drawn now."""
        pairs = zip(self.candidates, self.chosen.tolist(), strict=True)
        return [of[index] for of, index in pairs]

    def favourites(self) -> list[int]:
        """The candidate that each bit-width prefers."""
        best = self.preferences().argmax(1).tolist()
        return [of[index] for of, index in zip(self.candidates, best, strict=True)]

    @abstractmethod
    def draw(self, generator: torch.Generator) -> None:
        """Choose for the next step.

        Args:
            generator: of random numbers, on the CPU.
        """

    @abstractmethod
    def learn(self, loss: Tensor, over_budget: float, over_most: float) -> None:
        """Take into account how the choice did.

        Args:
            loss: of the network at it, a scalar.
            over_budget: its cost over the budget.
            over_most: its cost over that of the most bits.
        """


class Reinforce(Policy):
    """FLIQS (Dotzel et al., AutoML 2024, arXiv:2308.03290): a categorical for each bit-width.

    A step draws an assignment from the preferences p; from all candidates alike at first. With

        R = -loss - beta |C/T - 1|,    A = R - B,    B = 0.99 B + 0.01 R,

    it minimises ``-A mean(log p of what was drawn) + c mean(entropy of p)`` by Adam on the table,
    where c rises linearly from 0 to ``entropy``, so that it converges (Williams' REINFORCE).

    As the published code has it, whose quality is minus the loss; the paper's is the accuracy. A
    share of the search takes the place of its first 500 steps.

    Args:
        candidates: of each bit-width.
        beta: what a cost that is off the budget by all of it is worth, in units of the loss.
        rate: of Adam.
        entropy: c at the end.
        uniform_share: of the search, in which all candidates are drawn alike.

    Raises:
        ConfigError: numbers that cannot be.
    """

    momentum: Tensor
    square: Tensor
    baseline: Tensor
    has_baseline: Tensor
    steps: Tensor

    def __init__(
        self,
        candidates: Sequence[Sequence[int]],
        *,
        beta: float = 1.0,
        rate: float = 0.05,
        entropy: float = 0.1,
        uniform_share: float = 0.2,
    ) -> None:
        super().__init__(candidates)
        require_numbers(rate=rate)
        require_numbers(or_zero=True, beta=beta, entropy=entropy, uniform_share=uniform_share)
        self.beta, self.rate, self.entropy = beta, rate, entropy
        self.uniform_share = uniform_share
        for name in ("momentum", "square"):
            self.register_buffer(name, torch.zeros_like(self.table))
        self.register_buffer("baseline", torch.zeros(()))
        self.register_buffer("has_baseline", torch.tensor(False))
        self.register_buffer("steps", torch.zeros(()))

    @property
    def is_uniform(self) -> bool:
        """Whether all candidates are drawn alike still."""
        return self.done.item() < self.uniform_share

    @torch.no_grad()
    def draw(self, generator: torch.Generator) -> None:
        """As of `Policy`: independently for each bit-width."""
        table = torch.zeros_like(self.table) if self.is_uniform else None
        preferences = self.preferences(table).cpu()
        if len(preferences):
            drawn = torch.multinomial(preferences, 1, generator=generator)
            self.chosen.copy_(drawn[:, 0])

    def learn(self, loss: Tensor, over_budget: float, over_most: float) -> None:
        """As of `Policy`: a step of Adam."""
        reward = -loss - self.beta * abs(over_budget - 1)
        kept = torch.where(self.has_baseline, self.baseline, reward)
        self.baseline.copy_(0.99 * kept + 0.01 * reward)
        self.has_baseline.fill_(True)
        if not self.is_uniform and len(self.candidates):
            self._step(reward - self.baseline)

    def _step(self, advantage: Tensor) -> None:
        share = (self.done - self.uniform_share) / max(1 - self.uniform_share, 1e-9)
        with torch.enable_grad():
            table = self.table.clone().requires_grad_()
            objective = policy_loss(
                self.preferences(table), self.chosen, advantage, self.entropy * share
            )
            (gradient,) = torch.autograd.grad(objective, table)
        self.steps += 1
        self.momentum.lerp_(gradient, 0.1)
        self.square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        corrected = self.square / (1 - 0.999**self.steps)
        self.table -= (
            self.rate * (self.momentum / (1 - 0.9**self.steps)) / (corrected.sqrt() + 1e-8)
        )


def policy_loss(preferences: Tensor, chosen: Tensor, advantage: Tensor, weight: Tensor) -> Tensor:
    """``-A mean(log p of what was drawn) + c mean(entropy of p)``.

    Args:
        preferences: p, (bit-widths, candidates).
        chosen: which candidate was drawn, (bit-widths,).
        advantage: A, a scalar.
        weight: c, a scalar.

    Example:
        >>> p = torch.tensor([[0.5, 0.5]])
        >>> policy_loss(p, torch.tensor([0]), torch.tensor(1.0), torch.tensor(0.0))
        tensor(0.6931)
    """
    logs = preferences.clamp(min=torch.finfo(preferences.dtype).tiny).log()
    drawn = logs.gather(1, chosen[:, None])
    entropy = -(preferences * logs).sum(1)
    return -advantage * drawn.mean() + weight * entropy.mean()


class Metropolis(Policy):
    """AMED (Kimhi et al., arXiv:2205.15437): a random walk over bit-widths by their scores.

    From the most bits on, every ``period`` steps each bit-width is proposed a candidate b* out of
    p = softmax(score / T), which it takes with the probability min(1, p(b*) / p(b)) and else keeps
    b (Metropolis-Hastings). In between the network trains at them. Then with

        zeta = loss_share L / L_ref + (1 - loss_share) C / C_most

    every score of what it had gains log10(zeta_ref / zeta), where L_ref is the loss of the first
    period, at the most bits, and zeta_ref = 1.

    The published weights are 0.1 of the loss and 100 of the latency over that of 8 bits, without
    L_ref: there the latency decides alone. A budget the paper has none of: it is kept when bits are
    made whole, in the order of the preferences.

    Args:
        candidates: of each bit-width.
        temperature: T.
        period: steps of training for each assignment.
        loss_share: of the loss in zeta.

    Raises:
        ConfigError: numbers that cannot be.
    """

    steps: Tensor
    total: Tensor
    reference: Tensor

    def __init__(
        self,
        candidates: Sequence[Sequence[int]],
        *,
        temperature: float = 1.0,
        period: int = 10,
        loss_share: float = 0.5,
    ) -> None:
        super().__init__(candidates, temperature)
        require_numbers(period=period)
        require_numbers(or_zero=True, loss_share=loss_share)
        if loss_share > 1:
            raise ConfigError(f"loss_share: expected a share from 0 to 1, got {loss_share!r}")
        self.period, self.loss_share = int(period), loss_share
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.register_buffer("total", torch.zeros(()))
        self.register_buffer("reference", torch.zeros(()))

    @torch.no_grad()
    def draw(self, generator: torch.Generator) -> None:
        """As of `Policy`: after each period."""
        if not self.steps or self.steps % self.period or not len(self.candidates):
            return
        preferences = self.preferences().cpu()
        proposed = torch.multinomial(preferences, 1, generator=generator)
        chosen = self.chosen.cpu()[:, None]
        ratio = preferences.gather(1, proposed) / preferences.gather(1, chosen)
        accepted = torch.rand(ratio.shape, generator=generator) < ratio
        self.chosen.copy_(torch.where(accepted, proposed, chosen)[:, 0])

    @torch.no_grad()
    def learn(self, loss: Tensor, over_budget: float, over_most: float) -> None:
        """As of `Policy`: at the end of each period."""
        self.total += loss
        self.steps += 1
        if self.steps % self.period:
            return
        mean = self.total / self.period
        self.total.zero_()
        if self.steps == self.period:  # the first one
            self.reference.copy_(mean)
        lost = mean / self.reference.clamp(min=1e-12)
        zeta = self.loss_share * lost + (1 - self.loss_share) * over_most
        rows = torch.arange(len(self.candidates), device=self.table.device)
        self.table[rows, self.chosen] -= zeta.clamp(min=1e-12).log10()


POLICIES: dict[str, type[Policy]] = {"fliqs": Reinforce, "amed": Metropolis}
"""Name of a strategy -> what draws its assignments."""


def require_numbers(or_zero: bool = False, **numbers: object) -> None:
    """Refuse what is no positive number.

    Args:
        or_zero: whether 0 is one.
        **numbers: name -> value.

    Raises:
        ConfigError: naming it.
    """
    for name, value in numbers.items():
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not (0 <= value < math.inf) or not (value or or_zero):  # type: ignore[operator]
            expected = "a number from 0 on" if or_zero else "a positive number"
            raise ConfigError(f"{name}: expected {expected}, got {value!r}")
