"""Each unit of a budget as terms: what layers cost, by the bits of the sites that they read."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import product
from typing import Any

from brevitas_multiquant.allocation.budget import Budget, CostOf
from brevitas_multiquant.allocation.cost_table import require_rows
from brevitas_multiquant.allocation.counted import Choices, Counted
from brevitas_multiquant.allocation.hardware import lut_terms
from brevitas_multiquant.allocation.sites import ACTIVATION, WEIGHT, Sites, Width
from brevitas_multiquant.cost.inventory import Layer
from brevitas_multiquant.cost.models import bitops, counted_layers, weight_bytes
from brevitas_multiquant.cost.table import cost
from brevitas_multiquant.cost.terms import Term

OfLayer = Callable[[Any, Any], Any]
"""Bits of a layer's weights, and of what they are multiplied with -> its cost."""


def layer_term(sites: Sites, layer: Layer, of: OfLayer) -> Term:
    """What a layer costs, of the bits that can be chosen.

    Args:
        sites: of the network.
        layer: one of its layers.
        of: its cost.
    """
    site = sites.site_of(layer)
    if site is None:
        return Term((), partial(of, *layer.bits_at(sites.bits)), layer.name)
    widths: tuple[Width, ...] = ((site, WEIGHT), (site, ACTIVATION))
    if sites.weight_bits is None:
        return Term(widths, of, layer.name)
    return Term(widths[1:], partial(of, sites.weight_bits), layer.name)


def bitops_terms(sites: Sites, budget: Budget, choices: Choices) -> Counted:
    """MACs x weight bits x activation bits of each layer that counts."""

    def pinned(layer: Layer, fixed: tuple[int | None, int | None], weight: Any, read: Any) -> Any:
        both = zip(fixed, (weight, read), strict=True)
        return bitops(layer.macs, *(own if pin is None else pin for pin, own in both))

    return Counted(
        [
            layer_term(sites, layer, partial(pinned, layer, fixed))
            for layer, fixed in counted_layers(sites.layers, budget.convention)
        ]
    )


def bytes_terms(sites: Sites, budget: Budget, choices: Choices) -> Counted:
    """Weights in their bits, and what else a network of one bit-width stores."""
    chosen = [layer for layer in sites.layers if sites.site_of(layer) is not None]
    here = sum(weight_bytes(layer.weights, layer.bits_at(sites.bits)[0]) for layer in chosen)
    rest = cost(sites.net, sites.shape)[sites.bits].bytes - here
    terms = [Term((), lambda: rest, "what is no weight of a branch")]
    for layer in chosen:
        terms.append(layer_term(sites, layer, partial(_stored, layer.weights)))
    return Counted(terms)


def _stored(weights: int, weight: Any, read: Any) -> Any:
    return weight_bytes(weights, weight)


def custom_terms(sites: Sites, budget: Budget, choices: Choices) -> Counted:
    """What somebody measured, of every layer of the branches.

    Raises:
        BudgetError: when what can be chosen is checked, a table that lacks rows, which are named.
    """
    assert budget.cost is not None
    chosen = [layer for layer in sites.layers if sites.site_of(layer) is not None]
    terms = [layer_term(sites, one, partial(_measured, budget.cost, one.name)) for one in chosen]
    return Counted(terms, check=partial(_check_measured, budget.cost, sites.weight_bits))


def _measured(cost_of: CostOf, layer: str, weight: int, read: int) -> float:
    if not isinstance(cost_of, Mapping):
        return float(cost_of(layer, weight, read))
    require_rows(cost_of, [(layer, weight, read)])
    return float(cost_of[layer, weight, read])


def _check_measured(
    cost_of: CostOf,
    weight_bits: int | None,
    terms: Iterable[Term],
    candidates: Mapping[Any, Sequence[int]],
) -> None:
    """All rows at once, before anything is searched."""
    if isinstance(cost_of, Mapping):
        fixed = () if weight_bits is None else (weight_bits,)
        pairs = (
            (term.layer, *fixed, *bits)
            for term in terms
            for bits in product(*(candidates[width] for width in term.widths))
        )
        require_rows(cost_of, ((layer, weight, read) for layer, weight, read in pairs))


COSTS: dict[str, Callable[[Sites, Budget, Choices], Counted]] = {
    "bitops": bitops_terms,
    "bytes": bytes_terms,
    "luts": lut_terms,
    "custom": custom_terms,
}
"""Unit of a budget -> its terms."""
