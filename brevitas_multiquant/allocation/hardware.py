"""LUTs and DSPs of a network whose bits are still to be chosen."""

from collections.abc import Iterable, Mapping

from brevitas_multiquant.allocation.budget import Budget
from brevitas_multiquant.allocation.counted import Choices, Counted
from brevitas_multiquant.allocation.sites import ACTIVATION, WEIGHT, Sites
from brevitas_multiquant.core.precision import Assignment
from brevitas_multiquant.cost import luts
from brevitas_multiquant.export.finn.check import branch_names
from brevitas_multiquant.export.finn.dataflow import Dataflow, Weights
from brevitas_multiquant.export.finn.hardware import hardware_layers
from brevitas_multiquant.export.finn.integer_graph import Convolution, IntegerGraph
from brevitas_multiquant.export.finn.lower import lower
from brevitas_multiquant.nn.network import MultiQuantNet
from brevitas_multiquant.nn.subnet import extract_subnet
from brevitas_multiquant.quant.layers import CodeLayer


def lut_terms(sites: Sites, budget: Budget, choices: Choices) -> Counted:
    """(LUTs, DSPs) of each layer, by FINN's rules.

    The network is lowered once with the most bits everywhere, and once more for each bit-width of
    the weights, so that sums are as wide as the weights make them.

    Raises:
        FinnMappingError: a network that is not of the profile ``"finn"``, or does not map.
    """
    assert budget.target_fps is not None
    board = luts.board_named(budget.board)
    target = luts.target_cycles(budget.target_fps, budget.clock_ns)
    uniform = {bits: _uniform(sites, bits) for bits in _weight_bits(sites, budget, choices)}
    taken = {bits: _total(graph, target, board.dsp) for bits, (_, graph) in uniform.items()}

    priced = {bits: float(one.priced(dsp=budget.dsp_price)) for bits, one in taken.items()}
    own = sites.bits
    if sites.is_float:
        limit = budget.limit(lambda bits: priced[max(priced) if bits is None else bits])
        fitting = [
            bits
            for bits, one in taken.items()
            if priced[bits] <= limit and one.dsp <= budget.most_dsps
        ]
        own = sites.asked or max(fitting, default=min(taken))
    most = {kind: max(of) for kind, of in choices.items()}
    pair = (sites.weight_bits or most[WEIGHT], most[ACTIVATION])
    _, graph = _lowered(sites, Assignment(own, dict.fromkeys(sites.names, pair)))
    flow = Dataflow(
        graph,
        {(site, kind): bits for site in sites.names for kind, bits in most.items()},
        _sites_of(sites, graph),
        _weights(sites, graph, uniform),
        {bits: found for bits, (_, found) in uniform.items()},
        target,
        board.dsp,
    )

    def of(assignment: Assignment) -> tuple[float, float]:
        taken = _total(_lowered(sites, assignment)[1], target, board.dsp)
        return float(taken.priced(dsp=budget.dsp_price)), taken.dsp

    return Counted(flow.terms(budget.dsp_price), own if sites.is_float else None, priced, of)


Lowered = tuple[MultiQuantNet, IntegerGraph]
"""A network at some bits, and what it is in integers."""


def _lowered(sites: Sites, assignment: Assignment) -> Lowered:
    assert sites.at is not None
    net = sites.at(assignment)
    subnet = extract_subnet(net, assignment)
    return net, lower(subnet, branch_names(net, assignment.bits), sites.shape)


def _weight_bits(sites: Sites, budget: Budget, choices: Choices) -> Iterable[int]:
    """Bits that weights may have, those that a ratio is of included."""
    if sites.weight_bits is not None:
        return ()
    asked = () if budget.uniform is None else (budget.uniform,)
    return sorted({*choices[WEIGHT], *asked})


def _uniform(sites: Sites, bits: int) -> Lowered:
    own = bits if sites.is_float else sites.bits
    return _lowered(sites, Assignment(own, dict.fromkeys(sites.names, (bits, bits))))


def _total(graph: IntegerGraph, target: int, dsp: luts.products.DspBlock) -> luts.Resources:
    return luts.total(luts.fold(hardware_layers(graph), target, dsp), dsp)


def _name(where: str) -> str:
    """A convolution's name in its branch, such as ``layer1.0.conv1``; of others their own."""
    return where.split(".", 2)[2] if where.startswith("branches.") else where


def _sites_of(sites: Sites, graph: IntegerGraph) -> dict[str, str]:
    convolutions = [layer for layer in graph.layers if isinstance(layer, Convolution)]
    return {
        one.where: sites.of_layer[_name(one.where)]
        for one in convolutions
        if one.where.startswith("branches.") and _name(one.where) in sites.of_layer
    }


def _weights(
    sites: Sites, graph: IntegerGraph, uniform: Mapping[int, Lowered]
) -> dict[str, Weights]:
    """Integers of every convolution at every bit-width, and what they stand for."""
    if not uniform:
        return {}
    integers = {
        bits: {one.where: one.weight for one in found.layers if isinstance(one, Convolution)}
        for bits, (_, found) in uniform.items()
    }
    units = {bits: _units(net) for bits, (net, _) in uniform.items()}
    return {
        where: Weights(
            {bits: of[where] for bits, of in integers.items()},
            {bits: of[_name(where)] for bits, of in units.items()},
        )
        for where in _sites_of(sites, graph)
    }


def _units(net: MultiQuantNet) -> dict[str, float]:
    """Layer -> the real number that the integer 1 of its weights stands for."""
    (branch,) = net.branches_at(net.active_bits)
    return {
        name: 1 / layer.weight_format.divisor
        for name, layer in branch.named_modules()
        if isinstance(layer, CodeLayer)
    }
