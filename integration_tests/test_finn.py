"""FINN's own flow on exported projects: `make test-finn` builds its environment and runs this.

What is asserted is exact: values, partitions, kinds of layers. Estimates are FINN's to change.
"""

import importlib.util
import json

import numpy as np
import pytest
import timm
import torch

import brevitas_multiquant.core.cifar_networks  # noqa: F401  (registers the CIFAR networks)
from brevitas_multiquant import Assignment, extract_subnet
from brevitas_multiquant.cost import luts
from brevitas_multiquant.export import check_finn, export_finn
from brevitas_multiquant.export.finn.check import branch_names
from brevitas_multiquant.export.finn.hardware import hardware_layers
from brevitas_multiquant.export.finn.integer_graph import Thresholds
from brevitas_multiquant.export.finn.lower import lower
from brevitas_multiquant.export.finn.project.estimate import _words
from brevitas_multiquant.export.finn.target import make_target
from integration_tests.finn_networks import (
    Gated,
    Pixels,
    PutTogether,
    digits,
    narrow_cnn,
    narrow_mobilenet,
    narrow_resnet,
    network,
    wide_cnn,
)

needs_finn = pytest.mark.skipif(
    importlib.util.find_spec("finn") is None, reason="needs finn-plus: make test-finn"
)
pytestmark = needs_finn
HARDWARE_LAYERS = {
    "ConvolutionInputGenerator",
    "DuplicateStreams",
    "ElementwiseAdd",
    "ElementwiseMul",
    "ElementwiseSub",
    "FMPadding",
    "GlobalAccPool",
    "MVAU",
    "Pool",
    "StreamingConcat",
    "StreamingMaxPool",
    "Thresholding",
    "UpsampleNearestNeighbour",
    "VVAU",
}


@pytest.mark.parametrize("make", [narrow_resnet, narrow_mobilenet])
def test_every_step_is_exact_and_the_whole_network_is_one_partition(make, tmp_path):
    torch.manual_seed(0)
    net = network(make(), [2, 4, 8], negative=True)
    assert check_finn(net) == []
    for project in export_finn(net, tmp_path, images=digits(3), estimate=True).values():
        result = json.loads((project / "estimate.json").read_text())
        assert [step["difference"] for step in result["steps"]] == [0] * len(result["steps"])
        assert result["steps"][-1]["step"] == "step_generate_estimate_reports"
        assert result["partitions"] == 1
        assert result["outside_the_partition"] == {}
        assert result["float_layers"] == result["not_hardware"] == []
        kinds = {kind.rpartition("_")[0] for kind in result["steps"][-1]["nodes"]}
        assert kinds <= HARDWARE_LAYERS
        assert {"MVAU", "Thresholding"} <= kinds
        assert (project / "report" / "estimate_layer_resources.json").exists()
        assert set(json.loads((project / "folding_config.json").read_text())) > {"Defaults"}
        assert "check of every step" in (project / "README.md").read_text()
        assert not (project / "finn_build").exists()


@pytest.mark.parametrize(
    ("make", "kinds"),
    [
        (PutTogether, {"StreamingConcat", "ElementwiseAdd", "FMPadding"}),
        (Gated, {"ElementwiseMul", "ElementwiseSub", "UpsampleNearestNeighbour", "VVAU"}),
        (Pixels, {"StreamingConcat", "UpsampleNearestNeighbour", "MVAU"}),
    ],
)
def test_everyday_operations_are_hardware(make, kinds, tmp_path):
    """Each step exact, one partition, and FINN's totals by the rules without it."""
    torch.manual_seed(0)
    net = network(make(), [2], negative=True)
    assert check_finn(net) == []
    (project,) = export_finn(net, tmp_path, images=digits(3), estimate=True).values()
    result = json.loads((project / "estimate.json").read_text())
    assert [step["difference"] for step in result["steps"]] == [0] * len(result["steps"])
    assert (result["partitions"], result["outside_the_partition"]) == (1, {})
    assert result["float_layers"] == result["not_hardware"] == []
    found = {kind.rpartition("_")[0] for kind in result["steps"][-1]["nodes"]}
    assert kinds <= found <= HARDWARE_LAYERS
    graph = lower(extract_subnet(net, 2), branch_names(net, 2), (1, 3, 8, 8))
    dsp = luts.board_named("ZCU104").dsp
    total = luts.total(luts.fold(hardware_layers(graph), luts.target_cycles(1000), dsp), dsp)
    names = {"LUT": "luts", "BRAM_18K": "bram18", "DSP": "dsp", "URAM": "uram"}
    assert {name: getattr(total, ours) for name, ours in names.items()} == result["resources"]


def test_a_half_branch_of_resnet8(tmp_path):
    """Its slice of the stem's codes is one more product of integers, with an identity shortcut."""
    torch.manual_seed(0)
    net = network(timm.create_model("cifar_resnet8", num_classes=10), [2, 3, 4], negative=True)
    assert check_finn(net) == []
    (project,) = export_finn(net, tmp_path, [3], images=digits(3), estimate=True).values()
    result = json.loads((project / "estimate.json").read_text())
    assert [step["difference"] for step in result["steps"]] == [0] * len(result["steps"])
    assert (result["partitions"], result["outside_the_partition"]) == (1, {})
    assert result["float_layers"] == result["not_hardware"] == []
    # 8 layers in each branch at 3 bits, stem and classifier, and the slice, not as BINARY
    assert result["weight_types"] == {"INT2": 1, "INT3": 16, "INT8": 2}


@pytest.mark.parametrize(
    ("make", "switchable", "memory"),
    [
        (narrow_resnet, False, "auto"),
        (narrow_resnet, True, "finn"),
        (narrow_mobilenet, False, "auto"),
    ],
)
def test_memories_are_what_finn_reports(make, switchable, memory, tmp_path):
    """Resources by the rules are those of FINN's report, and every step stays exact."""
    torch.manual_seed(0)
    net = network(make(), [2, 8], negative=not switchable)
    options = {"images": digits(3), "estimate": True, "memory": memory, "target_fps": 20000}
    export_finn(net, tmp_path, [8], switchable=switchable, **options)
    project = tmp_path / ("switchable" if switchable else "8b")
    result = json.loads((project / "estimate.json").read_text())
    assert [step["difference"] for step in result["steps"]] == [0] * len(result["steps"])
    graph = lower(extract_subnet(net, 8), branch_names(net, 8), net.input_shape)
    need = make_target(None, None, 20000, 5.0, memory, switchable).resources(graph)
    found = result["resources"]
    assert [found[name] for name in ("LUT", "BRAM_18K", "DSP", "URAM")] == [
        *(need.luts, need.bram18, need.dsp, need.uram)
    ]
    plain = make_target(None, None, 20000, 5.0, writable=switchable).resources(graph)
    assert (need.luts < plain.luts and need.bram18 > plain.bram18) == (memory == "auto")


@pytest.mark.parametrize(("channels", "pe"), [(6, 1), (6, 2), (6, 3), (10, 5)])
@pytest.mark.parametrize("steps", [1, 3, 6, 15])
def test_words_of_a_port_are_those_that_finn_writes(channels, pe, steps, tmp_path, monkeypatch):
    monkeypatch.setenv("FINN_BUILD_DIR", str(tmp_path))
    monkeypatch.setenv("FINN_SETTINGS", str(tmp_path / "settings.yaml"))
    from onnx import helper
    from qonnx.custom_op.registry import getCustomOp

    node = helper.make_node(
        "Thresholding_rtl",
        ["codes", "table"],
        ["out"],
        domain="finn.custom_op.fpgadataflow.rtl",
        **{"NumChannels": channels, "PE": pe, "numSteps": steps, "numInputVectors": [1]},
        **{"inputDataType": "INT11", "weightDataType": "INT12", "ActVal": 0},
        outputDataType=f"UINT{steps.bit_length()}",
    )
    layer = getCustomOp(node)
    table = np.random.default_rng(0).integers(-1024, 1025, (channels, steps)).astype(np.float32)
    layer.make_weight_file(table, "decoupled_runtime", str(tmp_path / "words.dat"))
    expected = [int(line, 16) for line in (tmp_path / "words.dat").read_text().split()]
    assert _words(layer, table) == expected


@pytest.mark.parametrize("weights", ["int2", "ternary"])
def test_weights_of_two_bits_are_two_bits_in_hardware(weights, tmp_path):
    """FINN narrows types to the values that occur, so ternary ends as INT2 of the same size."""
    torch.manual_seed(0)
    net = network(narrow_cnn(), [2], negative=False, weights=weights)
    (project,) = export_finn(net, tmp_path, images=digits(3), estimate=True).values()
    result = json.loads((project / "estimate.json").read_text())
    assert [step["difference"] for step in result["steps"]] == [0] * len(result["steps"])
    assert (result["partitions"], result["float_layers"]) == (1, [])
    assert result["weight_types"] == {"INT2": 2, "INT8": 2}


def test_one_accelerator_becomes_every_bit_width_and_any_assignment(tmp_path):
    """By tables alone, executed as the finished hardware graph, on images of ten classes."""
    torch.manual_seed(0)
    net = network(narrow_resnet(), [2, 3, 4], negative=False)
    mixed = Assignment(3, dict(zip(net.sites, [(2, 2), (2, 4), (2, 3)] * 2, strict=False)))
    assert {precision.activation for precision in mixed.values()} == {2, 3, 4}
    options = {"images": digits(64), "estimate": True, "switchable": True}
    export_finn(net, tmp_path, **options, assignments=[mixed])
    project = tmp_path / "switchable"
    result = json.loads((project / "estimate.json").read_text())
    sets = ["2b", "3b", "4b", mixed.name]
    assert result["switched"] == dict.fromkeys(sorted(sets), 0)
    outputs = [np.load(project / f"expected_output_{name}.npy") for name in sets]
    assert len(outputs[0]) == 64 and len({output.tobytes() for output in outputs}) == 4
    names = {
        tuple(sorted(path.name for path in (project / "runtime_weights" / name).iterdir()))
        for name in sets
    }
    thresholds = result["steps"][-1]["nodes"]["Thresholding_rtl"]
    assert len(names) == 1 and len(*names) == thresholds


ONE_BODY = {  # network, bits, options, weight types at each bit-width
    "individual W8A8": (narrow_resnet, [8], {}, {8: {"INT8": 2, "INT9": 5}}),
    "individual W8A8 in INT8": (narrow_cnn, [8], {"grid": "symmetric"}, {8: {"INT8": 4}}),
    "assignment": (
        narrow_cnn,
        Assignment(4, {"3": (8, 4), "6": (3, 5)}),
        {},
        {4: {"INT3": 1, "INT8": 2, "INT9": 1}},  # narrowed to the weights that occur
    ),
    "centered": (
        narrow_mobilenet,
        [2, 8],
        {"method": "adabits", "grid": "centered"},
        {2: {"INT3": 3, "INT8": 2}, 8: {"INT8": 2, "INT9": 3}},
    ),
    "modified": (
        narrow_cnn,
        [2, 8],
        {"method": "adabits", "grid": "modified"},
        {2: {"INT2": 2, "INT8": 2}, 8: {"INT8": 4}},
    ),
    "double rounding": (
        narrow_cnn,
        [2, 8],
        {"method": "double_rounding"},
        {2: {"INT2": 2, "INT8": 2}, 8: {"INT8": 4}},
    ),
    "vertical layering": (
        narrow_cnn,
        [2, 8],
        {"method": "vertical_layering"},
        {2: {"INT2": 2, "INT8": 2}, 8: {"INT8": 4}},
    ),
    "sums past 2**24": (wide_cnn, [8], {}, {8: {"INT8": 2, "INT9": 1}}),
}


@pytest.mark.parametrize("row", ONE_BODY)
def test_networks_of_one_body(row, tmp_path):
    """Weights of 2 to 9 bits: exact after every step, one partition, and the rules' resources."""
    torch.manual_seed(0)
    make, bits, options, types = ONE_BODY[row]
    net = network(make(), bits, negative=False, **{"method": "individual", **options})
    dsp = luts.board_named("ZCU104").dsp
    for bit, project in export_finn(net, tmp_path, images=digits(3), estimate=True).items():
        result = json.loads((project / "estimate.json").read_text())
        assert [step["difference"] for step in result["steps"]] == [0] * len(result["steps"])
        assert (result["partitions"], result["outside_the_partition"]) == (1, {})
        assert result["float_layers"] == result["not_hardware"] == []
        assert result["weight_types"] == types[bit]
        graph = lower(extract_subnet(net, bit), branch_names(net, bit), (1, 3, 8, 8))
        found = luts.total(luts.fold(hardware_layers(graph), luts.target_cycles(1000), dsp), dsp)
        assert (found.luts, found.dsp) == (result["resources"]["LUT"], result["resources"]["DSP"])
    largest = max(float(table.table.abs().max()) for table in tables_of(graph))
    assert (largest > 2**24) == (row == "sums past 2**24")


def test_an_assignment_of_bit_mixer(tmp_path):
    """Each layer's weights and activations at bits of its own, and the norms between them."""
    torch.manual_seed(0)
    net = network(narrow_cnn(), [2, 3, 4], negative=False, method="bit_mixer")
    mixed = Assignment(4, dict(zip(net.sites, [(2, 2), (4, 4)], strict=True)))
    options = {"images": digits(3), "estimate": True, "assignments": [mixed]}
    (project,) = export_finn(net, tmp_path, [], **options).values()
    result = json.loads((project / "estimate.json").read_text())
    assert [step["difference"] for step in result["steps"]] == [0] * len(result["steps"])
    assert (result["partitions"], result["float_layers"]) == (1, [])
    assert result["weight_types"] == {"INT3": 1, "INT5": 1, "INT8": 2}


def tables_of(graph):
    """The layers of thresholds of an integer network."""
    return [layer for layer in graph.layers if isinstance(layer, Thresholds)]


@pytest.mark.parametrize(("board", "fps"), [("ZCU104", 1000), ("Pynq-Z1", 20000)])
def test_the_rules_without_finn_give_its_totals(board, fps, tmp_path):
    """From the integer network alone, for a board and a frame rate, some of which are missed."""
    torch.manual_seed(0)
    net = network(narrow_mobilenet(), [2, 4], negative=True)
    options = {"board": board, "target_fps": fps, "images": digits(3), "estimate": True}
    for bits, project in export_finn(net, tmp_path, **options).items():
        graph = lower(extract_subnet(net, bits), branch_names(net, bits), (1, 3, 8, 8))
        dsp = luts.board_named(board).dsp
        layers = luts.fold(hardware_layers(graph), luts.target_cycles(fps), dsp)
        found = luts.total(layers, dsp)
        finn = json.loads((project / "estimate.json").read_text())["resources"]
        names = {"LUT": "luts", "BRAM_18K": "bram18", "DSP": "dsp", "URAM": "uram"}
        assert {name: getattr(found, ours) for name, ours in names.items()} == finn
