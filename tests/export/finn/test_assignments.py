"""Assignments on hardware: projects of their own, and tables for one accelerator."""

import json
import random
import shutil

import numpy as np
import pytest
import torch
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.core.onnx_exec import execute_onnx

from brevitas_multiquant import Assignment, extract_subnet, multiquantize
from brevitas_multiquant.errors import FinnMappingError
from brevitas_multiquant.export import check_finn, export_finn
from brevitas_multiquant.export.exporter import readable_ir_version
from brevitas_multiquant.export.finn.check import branch_names
from brevitas_multiquant.export.finn.integer_graph import Thresholds
from brevitas_multiquant.export.finn.lower import lower
from brevitas_multiquant.export.finn.switchable import table_set, with_gates
from tests.export.finn.nets import NAMES, build, images_for
from tests.export.finn.test_export import imported
from tests.export.finn.test_switchable import switched
from tests.one_body import network
from tests.tiny import IMAGE, TinyNet

BITS = (2, 3, 8)


def drawn(net, seed):
    """Every site at random bits of its own."""
    draw = random.Random(seed)
    sites = {site: (2, draw.choice(net.bits)) for site in net.sites}
    return Assignment(draw.choice(net.bits), sites)


def graph_of(net, setting):
    subnet = extract_subnet(net, setting)
    return lower(subnet, branch_names(net, subnet.bits), net.input_shape)


@pytest.mark.parametrize(
    ("name", "bits"), [*((name, (2, 3, 4)) for name in NAMES), ("residual", BITS)]
)
def test_tables_alone_turn_the_template_into_any_assignment(name, bits):
    net, images = build(name, bits=bits, negative=False), images_for(name)
    settings = [max(bits), *(drawn(net, seed) for seed in range(3))]
    graphs = with_gates({one: graph_of(net, one) for one in settings}, net.selection)
    template = graphs[max(bits)]
    for one in settings[1:]:
        with torch.no_grad():
            expected = extract_subnet(net, one)(images)
        graph = graphs[one]
        assert torch.equal(graph.logits(images), expected)
        tables = table_set(template, graph)
        assert torch.equal(switched(template, tables, graph.host).logits(images), expected)


@pytest.fixture(scope="module")
def net():
    return build("residual", bits=BITS, negative=False)


@pytest.fixture(scope="module")
def mixed(net):
    return [drawn(net, seed) for seed in range(2)]


@pytest.fixture(scope="module")
def project(net, mixed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("assigned")
    files = export_finn(
        *(net, folder, [2]),
        images=images_for("residual", 3),
        estimate=False,
        switchable=True,
        assignments=mixed,
    )
    tables = folder / "switchable" / "tables"
    assert files == {2: tables / "2b.npz", **{one: tables / f"{one.name}.npz" for one in mixed}}
    return folder / "switchable"


@pytest.mark.parametrize("index", [0, 1])
def test_a_set_of_tables_makes_the_template_that_assignment(
    project, net, mixed, index, monkeypatch
):
    one, images = mixed[index], images_for("residual", 3)
    model = ModelWrapper(str(project / "model.onnx"))
    for name, table in np.load(project / "tables" / f"{one.name}.npz").items():
        model.set_initializer(name, table)
    host = imported(project / "host.py", monkeypatch).Host.load(project / f"host_{one.name}.json")
    codes = host.codes(images.numpy()).astype(np.float32)
    with readable_ir_version():
        outputs = [execute_onnx(model, {"image_codes": code[None]}) for code in codes]
    integers = np.concatenate([output["class_integers"] for output in outputs])
    assert np.array_equal(integers, np.load(project / f"expected_output_{one.name}.npy"))
    with torch.no_grad(), net.at_bits(one):
        assert np.array_equal(host.logits(integers), net(images).numpy())


def test_the_project_says_which_assignments_it_has_tables_for(project, mixed):
    text = " ".join((project / "README.md").read_text().split())
    names = ", ".join(one.name for one in mixed)
    assert f"For each of 2 bits and the assignments {names} there is a set of tables" in text
    for one in mixed:
        assert Assignment.load(project / "tables" / f"{one.name}.json") == one


def test_the_driver_side_writes_the_set_of_an_assignment(project, mixed, tmp_path, monkeypatch):
    name = mixed[0].name
    for folder in ("2b", name):
        words = tmp_path / "runtime_weights" / folder
        words.mkdir(parents=True)
        (words / "0_layer.dat").write_text(f"{len(folder):08x}\n")
        shutil.copy(project / f"host_{folder}.json", tmp_path)
    widths = imported(project / "switch.py", monkeypatch).BitWidths(tmp_path)
    assert (widths.bits, widths.assignments) == ([2], [name])
    written = []
    host = widths.switch(name, lambda _, words: written.append(words.tolist()))
    assert written == [[len(name)]]
    constants = json.loads((project / f"host_{name}.json").read_text())
    assert host.output_scale == np.float32(constants["output_scale"])
    with pytest.raises(ValueError, match=rf"expected one of \[2, '{name}'\], got 3b-none"):
        widths.words("3b-none")


def test_an_assignment_has_a_project_of_its_own(net, mixed, tmp_path):
    (project,) = export_finn(net, tmp_path, [], estimate=False, assignments=mixed[:1]).values()
    assert project == tmp_path / mixed[0].name
    assert Assignment.load(project / "assignment.json") == mixed[0]
    text = (project / "README.md").read_text()
    assert text.startswith(f"# Assignment {mixed[0].name} on ZCU104")
    assert "| `assignment.json` | which site has how many bits |\n| `model.onnx` |" in text
    model = ModelWrapper(str(project / "model.onnx"))
    types = [
        model.get_tensor_datatype(node.output[0])
        for node in model.get_nodes_by_op_type("MultiThreshold")
    ]
    branch_codes = {kind.bitwidth() for kind in types if not kind.signed()}
    assert {precision.activation for precision in mixed[0].values()} <= branch_codes


def test_quantizers_of_sums_follow_the_networks_bit_width(net):
    """The stated rule: an assignment moves sites, an addition's operands have the network's."""
    low, own = Assignment.uniform(net, 8), Assignment(8, dict.fromkeys(net.sites, (2, 2)))

    def sums(setting):
        return [
            (layer.where, layer.output.lowest, layer.output.highest)
            for layer in graph_of(net, setting).layers
            if isinstance(layer, Thresholds) and any(k in layer.where for k in (".sums.", "merge"))
        ]

    assert sums(low) == sums(own) and len(sums(low)) > 4


def test_the_preflight_names_the_assignments_too():
    net = multiquantize(TinyNet(), [2, 4], input_shape=IMAGE)
    one = Assignment(4, {net.sites[0]: (2, 2)})
    found = check_finn(net, assignments=[one])
    assert found[0].bits == (2, 4, one)
    assert [one in violation.bits for violation in found] == [4 in v.bits for v in found]
    good = build("residual", bits=BITS)
    assert check_finn(good, assignments=[drawn(good, 3)]) == []


@pytest.mark.parametrize("row", ["adabits centered", "bit mixer"])
def test_weights_that_follow_the_bit_width_are_no_matter_of_tables(row, tmp_path):
    net = network(row, "finn")
    with pytest.raises(FinnMappingError, match="its weights follow the bit-width and are"):
        export_finn(net, tmp_path / "new", switchable=True, estimate=False)
    assert not (tmp_path / "new").exists()
