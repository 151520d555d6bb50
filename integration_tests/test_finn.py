"""FINN's own flow on exported projects: `make test-finn` builds its environment and runs this.

What is asserted is exact: values, partitions, kinds of layers. Estimates are FINN's to change.
"""

import importlib.util
import json
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import brevitas_multiquant.core.cifar_networks  # noqa: F401  (registers the CIFAR networks)
from brevitas_multiquant import Assignment, calibrate, extract_subnet, multiquantize
from brevitas_multiquant.cost import luts
from brevitas_multiquant.cost.luts import Resources
from brevitas_multiquant.errors import BoardError, ExportError
from brevitas_multiquant.export import check_finn, export_finn
from brevitas_multiquant.export.finn.check import branch_names
from brevitas_multiquant.export.finn.fit import require_fit_of_estimate
from brevitas_multiquant.export.finn.hardware import hardware_layers
from brevitas_multiquant.export.finn.integer_graph import Thresholds
from brevitas_multiquant.export.finn.lower import lower
from brevitas_multiquant.export.finn.project.estimate import _words
from brevitas_multiquant.export.finn.target import make_target

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


class Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.down = nn.Conv2d(channels_in, channels, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Half the size for a stride of 2."""
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.down(x))


def narrow_resnet() -> nn.Module:
    """Identity shortcut from the stem, and one with a strided convolution."""
    stem = [nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)]
    return nn.Sequential(*stem, Block(4, 4, 1), Block(4, 8, 2), *head)


def narrow_mobilenet() -> nn.Module:
    """Depthwise convolutions, a max pool, a hidden linear layer in the branches."""
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, 2, 1, groups=8), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 10)),
    )


def narrow_cnn() -> nn.Module:
    """Two convolutions in the branch."""
    convolutions = [nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU()]
    for stride in (1, 2):
        conv = nn.Conv2d(4, 4, 3, stride, 1, bias=False)
        convolutions += [conv, nn.BatchNorm2d(4), nn.ReLU()]
    return nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))


def wide_cnn() -> nn.Module:
    """4,608 products a sum: of 8-bit weights and activations they can pass 2**24."""
    norm = nn.BatchNorm2d(4)
    norm.running_mean[0] = 290.0  # times 255 * 255, the units of a sum, that is where codes start
    return nn.Sequential(
        *(nn.Conv2d(3, 512, 1), nn.BatchNorm2d(512), nn.ReLU()),
        *(nn.Conv2d(512, 4, 3, 2, bias=False), norm, nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)),
    )


class PutTogether(nn.Module):
    """Channels split, shuffled and concatenated; a shortcut of slices and zeros; odd padding."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.side = conv(3, 8), conv(4, 4)
        self.down = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(8, 12, 3, 2), nn.ReLU())
        self.last, self.fc = conv(24, 8), nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images (N, 3, 8, 8) to logits."""
        left, right = self.stem(x).chunk(2, 1)
        x = torch.cat([left, self.side(right)], 1)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        down = self.down(x)
        return self.fc(self.last(torch.cat([down, down + shortcut], 1)).mean((2, 3)))


class Gated(nn.Module):
    """Activations that fall and rise, a gate for each channel, two scales, averages of windows."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.wide = conv(3, 8), conv(8, 8, nn.SiLU)
        self.reduce, self.expand = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.last, self.fc = conv(8, 8, nn.Hardswish), nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images (N, 3, 8, 8) to logits."""
        x = self.wide(self.stem(x))
        gate = self.expand(torch.relu(self.reduce(x.mean((2, 3), keepdim=True))))
        x = x * torch.sigmoid(gate)
        x = x + F.interpolate(F.avg_pool2d(x, 2), scale_factor=2)
        return self.fc(self.last(x).mean((2, 3)))


def conv(inputs: int, outputs: int, act: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Convolution, norm, activation."""
    layer = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), act())


def digits(count: int) -> torch.Tensor:
    """Handwritten digits of all ten classes, 3x8x8."""
    data, labels = load_digits(return_X_y=True)
    assert len(set(labels[:count])) >= 3
    images = torch.tensor(data[:count], dtype=torch.float32).view(-1, 1, 8, 8)
    return (images / 8 - 1).repeat(1, 3, 1, 1)


def network(model: nn.Module, bits: list[int] | Assignment, negative: bool, **options: str):
    """Calibrated, with norms of random scales."""
    net = multiquantize(
        model,
        bits,
        profile="finn",
        branch_init="shuffle",
        input_shape=(1, 3, 8, 8),
        **options,
    )
    with torch.no_grad():
        for norm in net.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.weight.normal_(1.0, 0.6)
                norm.bias.normal_(0.0, 0.3)
                if not negative:
                    norm.weight.abs_()
    calibrate(net, [digits(64)])
    return net.eval()


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


def test_a_folding_file_that_was_edited_is_kept(tmp_path):
    torch.manual_seed(0)
    net = network(narrow_cnn(), [2], negative=True)
    options = {"images": digits(3), "estimate": True, "part": "xc7z020clg400-1"}
    (project,) = export_finn(net, tmp_path / "a", **options).values()
    folding = json.loads((project / "folding_config.json").read_text())
    assert folding["Thresholding_rtl_0"]["PE"] == 1
    before = json.loads((project / "estimate.json").read_text())["resources"]["LUT"]
    folding["Thresholding_rtl_0"]["PE"] = 4
    folding["MVAU_hls_0"] |= {"PE": 2, "SIMD": 9}
    (tmp_path / "mine.json").write_text(json.dumps(folding))
    mine = {**options, "folding": tmp_path / "mine.json"}
    (project,) = export_finn(net, tmp_path / "b", **mine).values()
    assert json.loads((project / "folding_config.json").read_text()) == folding
    after = json.loads((project / "estimate.json").read_text())["resources"]["LUT"]
    assert after > before
    # the check of the board goes by FINN's number and the LUTs that it leaves out
    graph = lower(extract_subnet(net, 2), branch_names(net, 2), net.input_shape)
    target = make_target(None, "xc7z020clg400-1", 1000, 5.0)
    none = replace(target, board=replace(target.board, has=Resources()))
    with pytest.raises(BoardError, match="FINN's estimate: ") as error:
        require_fit_of_estimate(2, graph, project, none)
    plain = luts.corrected_luts(target.layers(graph), target.board.dsp) - before
    assert error.value.needs[2].luts - after > plain
    (tmp_path / "mine.json").write_text(json.dumps({"MVAU_hls_7": {"PE": 2}}))
    with pytest.raises(ExportError, match=r"folding_config.json: expected layers of .*MVAU_hls_7"):
        export_finn(net, tmp_path / "c", **mine)
    assert not (tmp_path / "c").exists()


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
