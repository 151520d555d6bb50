"""``cost(net, model="finn")``: each layer's LUTs, which add up to what FINN reports."""

from typing import Any

import pytest
import timm
import torch

import brevitas_multiquant.core.cifar_networks  # noqa: F401  (registers the CIFAR networks)
from brevitas_multiquant import Assignment, calibrate, cost, extract_subnet, multiquantize
from brevitas_multiquant.cost import luts
from brevitas_multiquant.errors import (
    BitWidthError,
    ConfigError,
    ExportError,
    FinnMappingError,
    NetworkError,
)
from brevitas_multiquant.export.finn.check import branch_names
from brevitas_multiquant.export.finn.hardware import hardware_layers
from brevitas_multiquant.export.finn.lower import lower
from brevitas_multiquant.export.sample import smooth_images

SHAPE = (1, 3, 16, 16)


def network(profile: str) -> Any:
    torch.manual_seed(0)
    model = timm.create_model("cifar_resnet8", num_classes=10)
    net = multiquantize(model, [2, 4], profile=profile, input_shape=SHAPE, check=False)
    calibrate(net, [smooth_images((4, *SHAPE[1:]))])
    return net.eval()


@pytest.fixture(scope="module")
def net() -> Any:
    return network("finn")


@pytest.mark.parametrize("board", ["ZCU104", "VCK190"])
def test_layers_add_up_to_the_rules_of_the_whole_network(net: Any, board: str) -> None:
    mixed = Assignment(4, {"layer1.0.conv2": (2, 2)})
    found = cost(net, model="finn", target_fps=2000, board=board, assignments=[mixed])
    assert list(found) == [2, 4, mixed]
    dsp = luts.board_named(board).dsp
    for setting, one in found.items():
        bits = setting if isinstance(setting, int) else setting.bits
        graph = lower(extract_subnet(net, setting), branch_names(net, bits), SHAPE)
        folded = luts.fold(hardware_layers(graph), luts.target_cycles(2000), dsp)
        assert one.total == luts.total(folded, dsp)
        assert one.corrected_luts == luts.corrected_luts(folded, dsp) > one.total.luts
        assert set(one.layers) == {layer.where for layer in graph.layers} | (
            {"image"} & {*one.layers}
        )
    assert found[4].total.luts > found[mixed].total.luts > found[2].total.luts
    smaller = found[mixed].layers["branches.0.layer1.0.conv2"]
    assert smaller.luts < found[4].layers["branches.0.layer1.0.conv2"].luts


def test_memories_for_few_luts(net: Any) -> None:
    """What the export takes with ``memory="auto"``."""
    plain, auto = (
        cost(net, model="finn", target_fps=1000, memory=memory)[4].total
        for memory in ("finn", "auto")
    )
    assert auto.luts < 0.7 * plain.luts and auto.bram18 > plain.bram18


def test_tables(net: Any) -> None:
    found = cost(net, model="finn", target_fps=1000)
    lines = str(found).splitlines()
    assert lines[0].split() == ["bits", "LUT", "corrected", "BRAM18", "DSP", "URAM"]
    both = [str(found[2].total.luts), str(found[2].corrected_luts)]
    assert lines[1].split()[:3] == ["2b", *both]
    layers = str(found[2]).splitlines()
    assert layers[-2].split()[:3] == ["total", *both]
    assert layers[-1] == "ZCU104, 1000 frames a second"


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({}, ExportError, "target_fps: expected frames a second"),
        ({"target_fps": 1000, "board": "ZCU14"}, ExportError, "did you mean ZCU104"),
        ({"target_fps": 0}, ExportError, "target_fps"),
        (
            {"target_fps": 9, "assignments": [Assignment(4, {"x": (2, 2)})]},
            BitWidthError,
            "expected sites of the network, got 'x'",
        ),
        ({"model": "vivado"}, ConfigError, "model: expected one of"),
        ({"model": "counted", "target_fps": 9}, ConfigError, "expected no options of hardware"),
    ],
)
def test_refusals(net: Any, options: dict[str, Any], kind: Any, words: str) -> None:
    with pytest.raises(kind, match=words):
        cost(net, **{"model": "finn", **options})


def test_networks_that_do_not_map() -> None:
    with pytest.raises(FinnMappingError, match="profile 'finn'"):
        cost(network("paper"), model="finn", target_fps=1000)
    with pytest.raises(NetworkError, match="cost: expected a MultiQuantNet"):
        cost(torch.nn.Linear(1, 1), model="finn", target_fps=1000)  # type: ignore[call-overload]
