"""What is to be chosen, what each choice costs, and the limits: the same for every strategy."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from brevitas_multiquant.allocation.budget import Budget
from brevitas_multiquant.allocation.costs import COSTS
from brevitas_multiquant.allocation.rounding import ROUNDING
from brevitas_multiquant.allocation.sites import ACTIVATION, KINDS, WEIGHT, Sites, Width
from brevitas_multiquant.core.precision import Assignment, site_meant
from brevitas_multiquant.core.selection import MAX_BITS, is_whole
from brevitas_multiquant.cost.terms import Term, total_of
from brevitas_multiquant.errors import BitWidthError, BudgetError

Bits = Mapping[Width, int]
Pin = int | tuple[int | None, int | None]
"""Bits of weights and activations, or of each, None where they are free."""

Candidates = Sequence[int] | Mapping[str, Sequence[int]]
"""Bits of everything, or of ``"weight"`` and ``"activation"``."""


@dataclass(frozen=True)
class Problem:
    """Bit-widths to choose within limits.

    Args:
        sites: of the network.
        unit: of the budget.
        candidates: width -> what it may be, ascending; of widths that share a choice, the first.
        same: width -> the first of those that it shares its choice with.
        terms: the cost, of the first ones.
        limits: most of each resource.
        bits: the network's, where the cost depends on them.
        of: an assignment -> the cost of the network that has it, where terms are not exact.
        convention: what counts as bit operations.
    """

    sites: Sites
    unit: str
    candidates: Mapping[Width, tuple[int, ...]]
    same: Mapping[Width, Width]
    terms: tuple[Term, ...]
    limits: tuple[float, ...] = ()
    bits: int | None = None
    of: Callable[[Assignment], tuple[float, ...]] | None = None
    convention: str = "quantized"

    def members(self, first: Width) -> tuple[Width, ...]:
        """The widths that share a choice."""
        return tuple(width for width, leader in self.same.items() if leader == first)

    def cost(self, chosen: Bits) -> tuple[float, ...]:
        """What a choice costs, of each resource."""
        return total_of(self.terms, chosen)

    def fits(self, chosen: Bits) -> bool:
        """Whether a choice keeps to the limits."""
        pairs = zip(self.cost(chosen), self.limits, strict=True)
        return all(cost <= limit * (1 + ROUNDING) for cost, limit in pairs)

    def uniform(self, bits: int | None = None) -> dict[Width, int]:
        """The same bits everywhere, where they can be chosen: else the nearest below, or above.

        Args:
            bits: default: the most.
        """
        most = max(max(of) for of in self.candidates.values())
        return {
            width: max((one for one in of if one <= (bits or most)), default=min(of))
            for width, of in self.candidates.items()
        }

    def best_uniform(self) -> tuple[int, dict[Width, int]] | None:
        """The most bits that all can have within the limits; None if there are none."""
        fitting = ((bits, one) for bits, one in self.uniforms().items() if self.fits(one))
        return max(fitting, key=lambda pair: pair[0], default=None)

    def uniforms(self) -> dict[int, dict[Width, int]]:
        """Bits -> the choice of these everywhere."""
        free = [of for of in self.candidates.values() if len(of) > 1]
        every = sorted({bits for of in free or self.candidates.values() for bits in of})
        return {bits: self.uniform(bits) for bits in every}

    def require_uniform(self, strategy: str) -> tuple[int, dict[Width, int]]:
        """`best_uniform`, for a strategy that cannot do without.

        Raises:
            BudgetError: there is none; says what the cheapest costs.
        """
        best = self.best_uniform()
        if best is None:
            costs = {bits: self.cost(one) for bits, one in self.uniforms().items()}
            bits, least = min(costs.items(), key=lambda pair: pair[1])
            raise BudgetError(
                f"strategy {strategy!r}: expected a budget that some uniform bits keep to, at "
                f"least {', '.join(f'{one:g}' for one in least)} for {bits} bits, got "
                f"{', '.join(f'{one:g}' for one in self.limits)}: raise it, allow fewer bits as "
                "candidates, or take 'sqnr', which mixes"
            )
        return best

    def network_bits(self, asked: int | None = None) -> int:
        """The bit-width of the network that an assignment is for.

        Args:
            asked: by a user; default: of a network its own, of a float model the uniform bits
                within the limits, or the fewest.
        """
        if not self.sites.is_float:
            return self.sites.bits
        best = self.best_uniform()
        fewest = min(min(of) for of in self.candidates.values())
        return asked or self.bits or (best[0] if best else fewest)

    def assignment(self, chosen: Bits, bits: int) -> Assignment:
        """A choice as an assignment.

        Args:
            chosen: bits of each first width.
            bits: the network's.
        """
        full = {width: chosen[first] for width, first in self.same.items()}
        fixed = self.sites.weight_bits
        return Assignment(
            bits,
            {
                site: (fixed or full[site, WEIGHT], full[site, ACTIVATION])
                for site in self.sites.names
            },
        )

    def require_possible(self) -> None:
        """Check that the limits can be kept to, at least without mixing.

        Raises:
            BudgetError: every uniform choice is above them; says what is possible.
        """
        ends = [self.cost({w: end(of) for w, of in self.candidates.items()}) for end in (min, max)]
        if len(self.limits) == 1 and ends[0][0] > self.limits[0] * (1 + ROUNDING):
            raise BudgetError(
                f"budget: expected {ends[0][0]:g} to {ends[1][0]:g} {self.unit}, what the fewest "
                f"and the most bits that can be chosen cost, got {self.limits[0]:g}: raise it, or "
                "allow fewer bits as candidates"
            )


def problem_of(
    sites: Sites,
    budget: Budget,
    candidates: Candidates,
    pins: Mapping[str, Pin],
    groups: Sequence[Sequence[str]],
) -> Problem:
    """The problem that a user poses.

    Raises:
        BitWidthError: candidates, pins or groups that cannot be.
        BudgetError: no budget, or limits that cannot be kept to.
    """
    if not isinstance(budget, Budget):
        raise BudgetError(f"budget: expected a Budget, such as Budget(uniform=4), got {budget!r}")
    per_kind = checked_candidates(candidates, sites)
    free = {width: per_kind[width[1]] for width in sites.widths()}
    pinned = _pinned(sites, free, pins)
    free |= pinned
    same = _leaders(sites, free, groups)
    shared = {first: of for first, of in free.items() if same[first] == first}
    counted = COSTS[budget.unit](sites, budget, per_kind)
    terms = tuple(
        replace(
            term,
            widths=tuple(same[width] for width in term.widths),  # type: ignore[index]
        )
        for term in counted.terms
    )
    if counted.check is not None:
        counted.check(terms, shared)
    problem = Problem(sites, budget.unit, shared, same, terms, bits=counted.bits, of=counted.of)

    def of_uniform(bits: int | None) -> float:
        if bits is not None and bits in counted.uniform and not pinned:
            return counted.uniform[bits]
        chosen = problem.uniform() if bits is None else dict.fromkeys(shared, bits)
        chosen |= {same[width]: one for width, (one,) in pinned.items()}
        if bits is None or counted.of is None:
            return float(problem.cost(chosen)[0])
        own = bits if sites.is_float else sites.bits
        return counted.of(problem.assignment(chosen, own))[0]

    limit = budget.limit(of_uniform)
    resources = len(problem.cost(problem.uniform()))
    limits = (limit, budget.most_dsps)[:resources]
    problem = replace(problem, limits=limits, convention=budget.convention)
    problem.require_possible()
    return problem


def checked_candidates(candidates: Candidates, sites: Sites) -> dict[str, tuple[int, ...]]:
    """Candidates of each kind, ascending.

    Raises:
        BitWidthError: none, or something else than whole bits from 1 to 16.
    """
    if not isinstance(candidates, Mapping):
        candidates = dict.fromkeys(KINDS, candidates)
    if set(candidates) != set(KINDS):
        raise BitWidthError(
            f"candidates: expected bits, or bits of each of {list(KINDS)}, got {candidates!r}"
        )
    checked = {}
    for kind, of in candidates.items():
        bits = list(of) if isinstance(of, Sequence) and not isinstance(of, str) else [of]
        whole = all(is_whole(one) and 1 <= one <= MAX_BITS for one in bits)
        if not bits or not whole:
            raise BitWidthError(
                f"candidates: expected at least one whole number of bits from 1 to {MAX_BITS} for "
                f"the {kind}s, got {of!r}"
            )
        checked[kind] = tuple(sorted({int(one) for one in bits}))
    kinds = KINDS if sites.weight_bits is None else (ACTIVATION,)
    outside = [one for kind in kinds for one in checked[kind] if one not in sites.net.bits]
    if outside and not (sites.is_float or sites.takes_any_bits):
        raise BitWidthError(
            f"candidates: expected bit-widths of the network, {list(sites.net.bits)}, got {outside}"
        )
    return checked


def _pinned(
    sites: Sites, free: Mapping[Width, tuple[int, ...]], pins: Mapping[str, Pin]
) -> dict[Width, tuple[int, ...]]:
    """Width -> its only bits; what a name says counts before what a glob does.

    Raises:
        BitWidthError: pins that cannot be, or that differ.
    """
    names = {pattern: pin for pattern, pin in pins.items() if not _is_glob(pattern)}
    globs = {pattern: pin for pattern, pin in pins.items() if pattern not in names}
    return _pins_alike(sites, free, globs) | _pins_alike(sites, free, names)


def _is_glob(pattern: object) -> bool:
    return any(one in str(pattern) for one in "*?[")


def _pins_alike(
    sites: Sites, free: Mapping[Width, tuple[int, ...]], pins: Mapping[str, Pin]
) -> dict[Width, tuple[int, ...]]:
    pinned: dict[Width, tuple[int, ...]] = {}
    for pattern, pin in pins.items():
        pair = (pin, pin) if is_whole(pin) else pin
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise BitWidthError(f"pins, {pattern}: expected bits or a pair of bits, got {pin!r}")
        for site in matching(sites, pattern, "pins"):
            for kind, bits in zip(KINDS, pair, strict=True):
                width = (site, kind)
                if width not in free and is_whole(pin):
                    continue  # weights of branches are what they are
                if bits is None:
                    continue
                (before,) = pinned.get(width, (bits,))
                if before != bits:
                    raise BitWidthError(
                        f"pins, {pattern}: expected the {before} bits that another pin gives the "
                        f"{kind}s of {site!r}, got {bits}: all layers that read a tensor share it"
                    )
                pinned[width] = (_allowed(sites, free, width, bits, pattern),)
    return pinned


def _allowed(
    sites: Sites, free: Mapping[Width, tuple[int, ...]], width: Width, bits: Any, pattern: str
) -> int:
    allowed = free.get(width, (sites.weight_bits,))
    if bits not in allowed:
        raise BitWidthError(
            f"pins, {pattern}: expected one of the {width[1]} bits {list(allowed)} that are "
            f"candidates, got {bits!r}"
        )
    return int(bits)


def matching(sites: Sites, pattern: str, what: str) -> list[str]:
    """The sites of a name or glob: their own, or that of a layer that reads them.

    Raises:
        BitWidthError: there is none; names the nearest.
    """
    names = {**sites.of_layer, **{site: site for site in sites.names}}
    found = {site: None for name, site in names.items() if fnmatchcase(name, str(pattern))}
    if not found:
        meant = site_meant(pattern, names, sites.names)
        raise BitWidthError(f"{what}: expected sites or layers, got {pattern!r}; {meant}")
    return list(found)


def _leaders(
    sites: Sites, free: Mapping[Width, tuple[int, ...]], groups: Sequence[Sequence[str]]
) -> dict[Width, Width]:
    """Width -> the first of those that it shares its choice with."""
    leader = {width: width for width in free}
    if sites.tied:
        for site in sites.names:
            leader[site, ACTIVATION] = (site, WEIGHT)
            if free[site, ACTIVATION] != free[site, WEIGHT]:
                raise BitWidthError(
                    f"pins and candidates, {site}: expected the same bits for weights and "
                    "activations, as the network's method ties them, got others"
                )
    for group in groups:
        listed = [group] if isinstance(group, str) else group
        members = [site for pattern in listed for site in matching(sites, pattern, "groups")]
        for kind in KINDS:
            widths = [(site, kind) for site in members if (site, kind) in free]
            firsts = {leader[width]: None for width in widths}
            pinned = {free[width] for width in widths if len(free[width]) == 1}
            if len(pinned) > 1:
                raise BitWidthError(f"groups, {list(group)}: expected one pin of them, got several")
            if pinned and any(free[first] not in pinned for first in firsts):
                raise BitWidthError(
                    f"groups, {list(group)}: expected all of them pinned, got a pin of some: pin "
                    f"{widths[0][0]!r} and the others to the same bits"
                )
            first = next(iter(firsts), None)
            leader |= {w: first for w, old in leader.items() if old in firsts and first}
    return leader
