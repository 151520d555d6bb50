"""Files of assignments are what torch computes under them, or there are none."""

import json
import random

import numpy as np
import onnx
import pytest
import torch

from brevitas_multiquant import Assignment, MultiQuantNet, extract_subnet
from brevitas_multiquant.errors import BitWidthError, ExportError
from brevitas_multiquant.export import export_onnx, export_qonnx
from brevitas_multiquant.export.qonnx import files as files_module
from tests.export.nets import build

BITS = (2, 3, 8)


def drawn(net: MultiQuantNet, seed: int) -> Assignment:
    """Every site at random bits of its own."""
    draw = random.Random(seed)
    sites = {site: (2, draw.choice(net.bits)) for site in net.sites}
    return Assignment(draw.choice(net.bits), sites)


@pytest.fixture(scope="module")
def net():
    return build("plain", bits=BITS)


@pytest.fixture(scope="module")
def mixed(net):
    return [drawn(net, seed) for seed in range(2)]


def test_qonnx_of_random_assignments_is_verified(net, mixed, tmp_path):
    assert not any(one.is_uniform for one in mixed)
    files = export_qonnx(net, tmp_path, bits=[], assignments=mixed)
    assert files == {one: tmp_path / f"model_{one.name}.onnx" for one in mixed}
    report = json.loads((tmp_path / "export.json").read_text())
    assert report["bits"] == {} and list(report["assignments"]) == [one.name for one in mixed]
    sample = torch.from_numpy(np.load(tmp_path / "input.npy"))
    for one in mixed:
        entry = report["assignments"][one.name]
        assert Assignment.from_dict(entry["assignment"]) == one
        for compared in entry["compared"].values():
            assert compared["flipped_codes"] == 0 and compared["codes"] > 0
        with torch.no_grad(), net.at_bits(one):
            expected = net(sample).numpy()
        assert np.array_equal(np.load(tmp_path / f"expected_output_{one.name}.npy"), expected)


def test_the_quantizers_in_the_file_have_the_bits_of_the_assignment(net, mixed, tmp_path):
    (path,) = export_qonnx(net, tmp_path, bits=[], assignments=mixed[:1]).values()
    graph = onnx.load(path).graph
    held = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    found = {
        int(held[node.input[3]])
        for node in graph.node
        if node.op_type == "Quant" and node.input[0] not in held
    }
    assert found == {precision.activation for precision in mixed[0].values()}


def test_plain_onnx_of_an_assignment_is_verified(net, mixed, tmp_path):
    files = export_onnx(net, tmp_path, bits=[2], assignments=mixed[:1])
    assert files == {
        2: tmp_path / "model_2b_qcdq.onnx",
        mixed[0]: tmp_path / f"model_{mixed[0].name}_qcdq.onnx",
    }
    assert all(path.stat().st_size for path in files.values())


def test_sites_that_are_left_out_are_completed_and_one_network_is_one_file(net, tmp_path):
    first = net.sites[0]
    short, whole = Assignment(8, {first: (2, 2)}), Assignment.uniform(net, 8)
    same = whole.with_activations({first: 2})
    files = export_qonnx(net, tmp_path, bits=[2], assignments=[short, same, Assignment(2, {})])
    assert files[short] == files[same] == tmp_path / f"model_{same.name}.onnx"
    assert files[Assignment(2, {})] == files[2] == tmp_path / "model_2b.onnx"
    report = json.loads((tmp_path / "export.json").read_text())
    assert list(report["bits"]) == ["2"]
    assert report["assignments"][same.name]["assignment"] == same.to_dict()


def test_what_does_not_fit_is_refused_and_leaves_nothing(net, tmp_path):
    folder = tmp_path / "out"
    with pytest.raises(BitWidthError, match=r"export: expected sites of the network, got 'none'"):
        export_qonnx(net, folder, assignments=[Assignment(2, {"none": (2, 2)})])
    with pytest.raises(BitWidthError, match=r"expected assignments as a list of Assignment, got"):
        export_onnx(net, folder, assignments=Assignment(2, {}))
    with pytest.raises(BitWidthError, match=r"expected bits out of \[2, 3, 8\], got \[\]"):
        export_qonnx(net, folder, bits=[])
    wide = build("plain", bits=(2, 10))
    site = wide.sites[0]
    with pytest.raises(ExportError, match=r"expected at most 8 bits.*got \[2, 10\]"):
        export_onnx(wide, folder, bits=[2], assignments=[Assignment(2, {site: (2, 10)})])
    assert not folder.exists()


def test_a_file_of_another_assignment_is_an_error(net, mixed, tmp_path, monkeypatch):
    """The other assignment's subnet against this one's file."""

    def swapped(subnet_of):
        def to_verify(model, subnet, images, allow_ties):
            other = next(one for one in mixed if one != subnet.setting)
            return subnet_of(model, extract_subnet(net, other), images, allow_ties)

        return to_verify

    monkeypatch.setattr(files_module, "verify_qonnx", swapped(files_module.verify_qonnx))
    with pytest.raises(ExportError, match=rf"export at assignment {mixed[1].name}"):
        export_qonnx(net, tmp_path / "out", bits=[], assignments=mixed[:1])
    assert not (tmp_path / "out").exists()
