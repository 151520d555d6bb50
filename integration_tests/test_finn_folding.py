"""Folding files: names and parallelism as FINN has them, and what becomes of an edited one."""

import importlib.util
import json

import pytest
import timm
import torch

import brevitas_multiquant.core.cifar_networks  # noqa: F401
from brevitas_multiquant import extract_subnet
from brevitas_multiquant.cost import luts
from brevitas_multiquant.errors import ExportError
from brevitas_multiquant.export import export_finn
from brevitas_multiquant.export.finn.check import branch_names
from brevitas_multiquant.export.finn.folding import ATTRIBUTES, as_folded
from brevitas_multiquant.export.finn.layer_names import layer_names
from brevitas_multiquant.export.finn.lower import lower
from brevitas_multiquant.export.finn.target import make_target
from integration_tests.finn_networks import (
    Gated,
    Pixels,
    PutTogether,
    digits,
    narrow_mobilenet,
    narrow_resnet,
    network,
)

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("finn") is None, reason="needs finn-plus: make test-finn"
)
CHOSEN = ("PE", "SIMD", "parallel_window")
"""What FINN decides for the frames a second."""


def resnet8():
    return timm.create_model("cifar_resnet8", num_classes=10)


def parallelism(graph, target):
    """What a folding file of FINN would say of each layer, by the rules without FINN."""
    layers = as_folded(graph, target)
    names = layer_names(graph, layers, target.board.dsp)
    return {
        name: {
            finns: int(getattr(node, ours))
            for finns, ours in ATTRIBUTES[type(node)].items()
            if finns in CHOSEN
        }
        for name, node in zip(names, layers, strict=True)
    }


@pytest.mark.parametrize(
    ("make", "bits", "board"),
    [
        (Gated, [2], "ZCU104"),
        (PutTogether, [2], "ZCU104"),
        (Pixels, [2, 4], "ZCU104"),
        (narrow_resnet, [2, 8], "ZCU104"),
        (narrow_mobilenet, [2, 8], "Pynq-Z1"),
        (resnet8, [2, 3], "ZCU104"),
    ],
)
def test_names_and_parallelism_are_those_of_finn(make, bits, board, tmp_path):
    """Where branches run side by side, FINN counts across them."""
    torch.manual_seed(0)
    net = network(make(), bits, negative=True)
    options = {"target_fps": 20000, "board": board, "images": digits(3), "must_fit": False}
    for one, project in export_finn(net, tmp_path, estimate=True, **options).items():
        graph = lower(extract_subnet(net, one), branch_names(net, one), net.input_shape)
        found = json.loads((project / "folding_config.json").read_text())
        del found["Defaults"]
        theirs = {
            name: {key: value for key, value in values.items() if key in CHOSEN}
            for name, values in found.items()
        }
        assert parallelism(graph, make_target(board, None, 20000, 5.0)) == theirs


def test_a_folding_file_that_was_edited_is_kept(tmp_path):
    """And what it needs is known without FINN: resources are those of its report."""
    torch.manual_seed(0)
    net = network(narrow_resnet(), [2, 4], negative=True)
    options = {"images": digits(3), "estimate": True, "part": "xc7z020clg400-1"}
    (project,) = export_finn(net, tmp_path / "a", [4], **options).values()
    folding = json.loads((project / "folding_config.json").read_text())
    before = json.loads((project / "estimate.json").read_text())["resources"]
    folding["Thresholding_rtl_3"]["PE"] = 2
    folding["MVAU_hls_1"] |= {"PE": 2, "SIMD": 6}
    folding["ConvolutionInputGenerator_rtl_2"]["SIMD"] = 2
    (tmp_path / "mine.json").write_text(json.dumps(folding))
    mine = {**options, "folding": tmp_path / "mine.json"}
    (project,) = export_finn(net, tmp_path / "b", [4], **mine).values()
    assert json.loads((project / "folding_config.json").read_text()) == folding
    after = json.loads((project / "estimate.json").read_text())["resources"]
    graph = lower(extract_subnet(net, 4), branch_names(net, 4), net.input_shape)
    target = make_target(None, "xc7z020clg400-1", 1000, 5.0)
    need = luts.total(as_folded(graph, target, folding), target.board.dsp)
    assert (need.luts, need.bram18, need.dsp) == (after["LUT"], after["BRAM_18K"], after["DSP"])
    assert after["LUT"] > before["LUT"]


def test_a_folding_file_of_another_network_is_refused(tmp_path):
    net = network(narrow_resnet(), [2], negative=True)
    (tmp_path / "mine.json").write_text(json.dumps({"MVAU_hls_99": {"PE": 2}}))
    with pytest.raises(ExportError, match=r"folding: expected layers of .*MVAU_hls_99"):
        export_finn(net, tmp_path / "c", folding=tmp_path / "mine.json")
    assert not (tmp_path / "c").exists()
