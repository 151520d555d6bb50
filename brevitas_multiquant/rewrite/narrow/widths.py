"""The half branch: how narrow the channel sets of a body become (paper, section 3.4).

An odd bit-width needs half of a branch's 2-bit capacity. The half branch keeps the first channels
of each set, in the same proportion everywhere: either the widest whose multiply-accumulates stay
within half of the whole branch's, or literally half of the channels.
"""

import math
from dataclasses import dataclass
from fractions import Fraction

from torch import fx, nn

from brevitas_multiquant.errors import UnsupportedModelError
from brevitas_multiquant.quant.geometry import macs_of
from brevitas_multiquant.quant.layers import WEIGHTED
from brevitas_multiquant.rewrite.graph.channels import (
    ChannelSets,
    channel_dim,
    channel_sets,
    is_dense,
    module_of,
)
from brevitas_multiquant.rewrite.graph.trace import shape_of
from brevitas_multiquant.rewrite.narrow.scaling import CannotScaleError, Scaling, find_scaling

HALF = Fraction(1, 2)
WHOLE = Fraction(1)


@dataclass(frozen=True)
class HalfPlan:
    """How wide each tensor of a body is in the half branch.

    Args:
        sets: the body's channel sets.
        scaling: what follows the channels.
        kept: channel set -> the share of its channels that is kept.
    """

    sets: ChannelSets
    scaling: Scaling
    kept: dict[int, Fraction]

    def share(self, node: fx.Node, dim: int) -> Fraction:
        """The share of a dimension that the node's tensor keeps."""
        carries = dim in self.scaling.dims.get(node.name, ())
        return self.share_of_set(node) if carries else WHOLE

    def layer_shares(self, layer: nn.Module, node: fx.Node) -> tuple[Fraction, Fraction]:
        """The shares of its channels that a layer reads and gives."""
        dim = channel_dim(layer, node)
        return self.share(node.all_input_nodes[0], dim), self.share(node, dim)

    def share_of_set(self, node: fx.Node) -> Fraction:
        """The share that the node's channel set keeps, whether its own tensor shrinks or not."""
        return self.kept.get(self.sets.of.get(node.name, self.sets.fixed), WHOLE)


def plan_half(body: fx.GraphModule, model: str, width: str = "macs") -> HalfPlan:
    """Decide the widths of the half branch.

    Args:
        body: the traced body, with shapes in the nodes' ``meta``; not changed.
        model: its class name, for errors.
        width: ``"macs"``: the widest of at most half the multiply-accumulates; ``"channels"``:
            half of the channels, rounded down to what groups need.

    Raises:
        UnsupportedModelError: a constant that does not follow the channels, or no width is narrow
            enough.
    """
    sets = channel_sets(body)
    try:
        scaling = find_scaling(body, sets)
    except CannotScaleError as error:
        raise UnsupportedModelError(
            model, [f"odd bit-widths need a half branch: {error}; use even bit-widths"]
        ) from error
    units = {index: math.gcd(*sizes) for index, sizes in scaling.sizes.items()}
    units.pop(sets.fixed, None)
    if width == "channels":
        return _at(sets, scaling, units, HALF)
    return _widest(body, model, sets, scaling, units)


def _widest(
    body: fx.GraphModule,
    model: str,
    sets: ChannelSets,
    scaling: Scaling,
    units: dict[int, int],
) -> HalfPlan:
    """The widest half branch of at most half the multiply-accumulates."""
    shares = sorted({Fraction(k, n) for n in units.values() for k in range(1, n + 1)})
    low, high = 0, len(shares)
    while low < high:  # the first share that costs too much; cost grows with the share
        middle = (low + high) // 2
        plan = _at(sets, scaling, units, shares[middle])
        low, high = (middle + 1, high) if macs_share(body, plan) <= HALF else (low, middle)
    if low == 0:
        narrowest = _at(sets, scaling, units, Fraction(0))
        raise UnsupportedModelError(
            model,
            [
                "odd bit-widths need a half branch: expected widths that cost at most half of the "
                f"multiply-accumulates, got {float(macs_share(body, narrowest)):.2f} at the "
                "narrowest, since layers that add to what the classifier reads keep their width; "
                "use even bit-widths"
            ],
        )
    return _at(sets, scaling, units, shares[low - 1])


def _at(sets: ChannelSets, scaling: Scaling, units: dict[int, int], share: Fraction) -> HalfPlan:
    """Each set keeps the most whole units that are no more than ``share`` of it, at least one."""
    kept = {index: Fraction(max(1, int(share * n)), n) for index, n in units.items()}
    return HalfPlan(sets, scaling, kept)


def macs_share(body: fx.GraphModule, plan: HalfPlan) -> Fraction:
    """Multiply-accumulates of the half branch, as a share of the whole branch's."""
    whole, half = 0, Fraction(0)
    for node in body.graph.nodes:
        layer = module_of(body, node)
        if isinstance(layer, WEIGHTED):
            sizes = (shape_of(one) for one in (node.all_input_nodes[0], node))
            macs = macs_of(layer, *map(math.prod, sizes))
            reads, gives = plan.layer_shares(layer, node)
            whole += macs
            half += macs * gives * (reads if is_dense(layer) else WHOLE)
    return half / whole
