"""Layers from an integer network alone, against those that FINN made of it."""

from collections import Counter

import pytest

from benchmarks.finn_rules_networks import RUNS, drawn_network
from brevitas_multiquant.cost import luts
from brevitas_multiquant.export.finn.hardware import hardware_layers
from tests.cost.luts.test_finn import NETWORKS, node_of, read

FILES = {path.stem: path for path in NETWORKS}


# networks with weights and tables from numpy's generator, whose numbers are the same everywhere
@pytest.mark.parametrize("name", ["resnet8_any", "vgg_any", "mobilenet_any", "mobilenet_any_fast"])
def test_hardware_is_that_of_finn(name):
    run, contents = RUNS[name], read(FILES[name])
    graph = drawn_network(run, contents["seed"])
    board = luts.board_named(run.board)
    found = luts.fold(hardware_layers(graph), luts.target_cycles(run.fps), board.dsp)
    assert Counter(found) == Counter(map(node_of, contents["layers"]))
    finn = [sum(column) for column in zip(*(e["finn"] for e in contents["layers"]), strict=True)]
    total = luts.total(found, board.dsp)
    assert [total.luts, total.bram18, total.dsp, total.uram] == finn


@pytest.mark.parametrize("name", ["resnet8_3b_half", "resnet8_4b"])
def test_branches_and_half_branches(name):
    """Weights depend on torch's generator, widths on them; all else is FINN's."""
    run, contents = RUNS[name], read(FILES[name])
    layers = luts.fold(hardware_layers(drawn_network(run, 0)), luts.target_cycles(run.fps))

    def shapes(nodes):
        return Counter(
            (type(one).__name__, vars(luts.unfolded(one)).get("positions")) for one in nodes
        )

    assert shapes(layers) == shapes(map(node_of, contents["layers"]))
