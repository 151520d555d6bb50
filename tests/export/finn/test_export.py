"""Projects: what is in them, that they give torch's integers, and that failures leave none."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.core.onnx_exec import execute_onnx

from brevitas_multiquant import calibrate, extract_subnet, multiquantize
from brevitas_multiquant.core.grids import WEIGHT_FORMATS
from brevitas_multiquant.errors import (
    BitWidthError,
    CalibrationError,
    ExportError,
    FinnMappingError,
)
from brevitas_multiquant.export import export_finn
from brevitas_multiquant.export.exporter import readable_ir_version
from brevitas_multiquant.export.finn import environment
from brevitas_multiquant.export.finn import export as export_module
from tests.export.finn.nets import build, images_for
from tests.tiny import IMAGE, TinyNet

FILES = {
    "README.md",
    "model.onnx",
    "dataflow_build_config.json",
    "specialize_layers_config.json",
    "folding_config.json",
    "input.npy",
    "expected_output.npy",
    "host.json",
    "host.py",
    "multiquant_steps.py",
    "estimate.py",
}
WITH_HALF = (2, 3, 8)
LAYERS = {"Transpose", "Conv", "MultiThreshold", "Add", "MaxPool", "ReduceSum"}


def imported(path, monkeypatch):
    """A file of a project as a module of its own, as it is imported there."""
    monkeypatch.syspath_prepend(str(path.parent))
    monkeypatch.delitem(sys.modules, "host", raising=False)
    spec = importlib.util.spec_from_file_location(f"project_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finn") / "out"
    images = images_for("residual", 3)
    return export_finn(build("residual"), folder, [2, 4], images=images, estimate=False)


def test_files_of_a_project(exported):
    assert sorted(exported) == [2, 4]
    for bits, project in exported.items():
        assert project.name == f"{bits}b"
        assert {path.name for path in project.iterdir()} == FILES
        text = (project / "README.md").read_text()
        assert text.startswith(f"# {bits} bits on ZCU104")
        assert "There are none yet" in text


def test_the_model_gives_the_saved_integers_and_they_the_logits_of_torch(exported, monkeypatch):
    images = images_for("residual", 3)
    for bits, project in exported.items():
        host = imported(project / "host.py", monkeypatch).Host.load(project / "host.json")
        codes = host.codes(images.numpy())
        assert codes.dtype == np.int8
        assert np.array_equal(codes, np.load(project / "input.npy"))
        model = ModelWrapper(str(project / "model.onnx"))
        with readable_ir_version():
            outputs = [
                execute_onnx(model, {"image_codes": code[None].astype(np.float32)})
                for code in codes
            ]
        integers = np.concatenate([output["class_integers"] for output in outputs])
        assert np.array_equal(integers, np.load(project / "expected_output.npy"))
        with torch.no_grad():
            expected = extract_subnet(build("residual"), bits)(images)
        assert np.array_equal(host.logits(integers), expected.numpy())


def test_the_model_holds_integers_in_known_layers(exported):
    for bits, project in exported.items():
        model = ModelWrapper(str(project / "model.onnx"))
        assert {node.op_type for node in model.graph.node} <= LAYERS
        for node in model.graph.node:
            for name in (*node.input, *node.output):
                values = model.get_initializer(name)
                if values is not None:
                    assert np.array_equal(values, np.round(values)), name
                    assert model.get_tensor_datatype(name).allowed(values.min()), name
                    assert model.get_tensor_datatype(name).allowed(values.max()), name
                assert model.get_tensor_datatype(name).is_integer(), name
        weights = [model.get_initializer(n.input[1]) for n in model.get_nodes_by_op_type("Conv")]
        assert len(weights) == 2 + 5 * bits // 2


def test_the_configuration_names_the_projects_own_step(exported, monkeypatch):
    project = exported[2]
    config = json.loads((project / "dataflow_build_config.json").read_text())
    own = [step for step in config["steps"] if "." in step]
    assert own == [
        "multiquant_steps.step_multiquant_channels_last",
        "multiquant_steps.step_multiquant_weight_types",
    ]
    steps = imported(project / "multiquant_steps.py", monkeypatch)
    assert all(callable(getattr(steps, name.partition(".")[2])) for name in own)
    assert (config["board"], config["target_fps"]) == ("ZCU104", 1000)


@pytest.mark.parametrize(
    ("name", "candidates", "bits"),
    [("bottleneck", (2, 4, 6, 8), 4), ("resnet", (2, 4, 6, 8), 4), ("bottleneck", (2, 3, 4), 3)],
)
def test_the_projects_own_step_leaves_no_transposition_and_changes_nothing(
    name, candidates, bits, tmp_path, monkeypatch
):
    """Without FINN: a project's step is of qonnx, except the pooling, which only FINN executes."""
    net = build(name, bits=candidates)
    (project,) = export_finn(net, tmp_path, [bits], estimate=False).values()
    steps = imported(project / "multiquant_steps.py", monkeypatch)
    monkeypatch.delitem(steps._CHANNELS_LAST, "ReduceSum")
    model = ModelWrapper(str(project / "model.onnx"))
    for node in model.get_nodes_by_op_type("ReduceSum"):
        model.set_initializer(node.input[1], np.array([1, 2]))
    model = steps.step_multiquant_channels_last(model, SimpleNamespace(target_fps=None))
    kinds = {node.op_type for node in model.graph.node}
    assert kinds <= {"Im2Col", "MatMul", "MultiThreshold", "Add", "MaxPoolNHWC", "ReduceSum"}
    codes = np.load(project / "input.npy").astype(np.float32)
    with readable_ir_version():
        outputs = [execute_onnx(model, {"image_codes": code[None]}) for code in codes]
    integers = np.concatenate([output["class_integers"] for output in outputs])
    assert np.array_equal(integers, np.load(project / "expected_output.npy"))


@pytest.fixture(scope="module")
def switchable(tmp_path_factory):
    folder = tmp_path_factory.mktemp("switchable")
    images = images_for("residual", 3)
    net = build("residual", bits=WITH_HALF, negative=False)
    files = export_finn(net, folder, WITH_HALF, images=images, estimate=False, switchable=True)
    assert files == {b: folder / "switchable" / "tables" / f"{b}b.npz" for b in WITH_HALF}
    return folder / "switchable"


@pytest.mark.parametrize("bits", WITH_HALF)
def test_a_set_of_tables_makes_the_template_that_bit_width(switchable, bits, monkeypatch):
    images = images_for("residual", 3)
    model = ModelWrapper(str(switchable / "model.onnx"))
    for name, table in np.load(switchable / "tables" / f"{bits}b.npz").items():
        model.set_initializer(name, table)
    host_type = imported(switchable / "host.py", monkeypatch).Host
    host = host_type.load(switchable / f"host_{bits}b.json")
    with readable_ir_version():
        outputs = [
            execute_onnx(model, {"image_codes": code[None].astype(np.float32)})
            for code in host.codes(images.numpy())
        ]
    integers = np.concatenate([output["class_integers"] for output in outputs])
    with torch.no_grad():
        expected = extract_subnet(build("residual", bits=WITH_HALF, negative=False), bits)(images)
    assert np.array_equal(host.logits(integers), expected.numpy())


def test_what_a_switchable_project_says_of_itself(switchable):
    text = " ".join((switchable / "README.md").read_text().split())
    assert "For each of 2, 3, 8 bits there is a set of tables" in text
    config = json.loads((switchable / "dataflow_build_config.json").read_text())
    writable = config["steps"].index("multiquant_steps.step_multiquant_runtime_thresholds")
    assert config["steps"][writable - 1 : writable + 2 : 2] == [
        "step_convert_to_hw",
        "step_minimize_bit_width_initial",
    ]


def test_the_driver_side_writes_a_set(switchable, tmp_path, monkeypatch):
    words = tmp_path / "runtime_weights" / "2b"
    words.mkdir(parents=True)
    for index in (0, 1, 10):
        (words / f"{index}_layer.dat").write_text(f"{index:08x}\nffffffff\n")
    shutil.copy(switchable / "host_2b.json", tmp_path)
    widths = imported(switchable / "switch.py", monkeypatch).BitWidths(tmp_path)
    assert widths.bits == [2]
    written = []
    host = widths.switch(2, lambda layer, words: written.append((layer, words.tolist())))
    assert written == [(0, [0, 2**32 - 1]), (1, [1, 2**32 - 1]), (2, [10, 2**32 - 1])]
    assert host.output_bias.shape == (10,)
    with pytest.raises(ValueError, match=r"expected one of \[2\], got 4"):
        widths.words(4)


def test_a_half_branch_in_a_project(tmp_path):
    (project,) = export_finn(
        build("residual", bits=(2, 3, 4)), tmp_path, [3], estimate=False
    ).values()
    assert "2 branch(es) (0, 1, at half), 3-bit activations" in (project / "README.md").read_text()
    model = ModelWrapper(str(project / "model.onnx"))
    (picks,) = (node for node in model.graph.node if node.doc_string == "branches.1.narrow")
    weights = model.get_initializer(picks.input[1])[:, :, 0, 0]
    assert np.array_equal(weights, np.eye(*weights.shape)) and len(weights) < weights.shape[1]
    assert model.get_tensor_datatype(picks.output[0]) == model.get_tensor_datatype(picks.input[0])


@pytest.mark.parametrize("weights", ["int2", "ternary"])
def test_weights_of_two_bits_in_the_model(weights, tmp_path):
    """`export_finn` compares the model's logits with torch: a difference of 0."""
    form = WEIGHT_FORMATS[weights]
    net = build("residual", bits=(2, 4), weights=weights, negative=False)
    (project,) = export_finn(net, tmp_path, [4], estimate=False).values()
    model = ModelWrapper(str(project / "model.onnx"))
    types = [
        model.get_tensor_datatype(node.input[1]).name for node in model.get_nodes_by_op_type("Conv")
    ]
    assert types == ["INT8", *[form.datatype] * (len(types) - 2), "INT8"]
    text = (project / "README.md").read_text()
    assert f"{form.datatype} in {len(types) - 2} layer(s)" in text
    assert "INT8 in 2 layer(s)" in text
    assert "negated" not in text


def test_a_layer_whose_weights_hardware_needs_wider_is_named(tmp_path):
    net = build("residual", bits=(2, 4), weights="int2")
    (project,) = export_finn(net, tmp_path, [2], estimate=False).values()
    text = (project / "README.md").read_text()
    assert re.search(
        r"`branches\.0\.layer1\.conv1`: INT3 instead of INT2: .* in the channels \[\d", text
    )


def test_exporting_again_replaces_the_projects(tmp_path):
    for fps in (100, 200):
        (project,) = export_finn(
            build("bottleneck"), tmp_path, [2], target_fps=fps, estimate=False
        ).values()
    assert json.loads((project / "dataflow_build_config.json").read_text())["target_fps"] == 200
    assert [path.name for path in tmp_path.iterdir()] == ["2b"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"bits": [3]}, BitWidthError, r"expected bits out of \[2, 4, 6, 8\]"),
        ({"board": "ZCU105"}, ExportError, r"board: expected one of .*'ZCU104'"),
        ({"target_fps": 0}, ExportError, r"target_fps: expected a positive whole number, got 0"),
        ({"images": torch.zeros(1, 3, 4, 4)}, ExportError, r"images: expected \(N, 3, 12, 12\)"),
    ],
)
def test_bad_options_leave_nothing(options, error, message, tmp_path):
    with pytest.raises(error, match=message):
        export_finn(build("bottleneck"), tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()


def test_a_network_that_does_not_map_leaves_nothing(tmp_path):
    net = multiquantize(TinyNet(), [2], input_shape=IMAGE).eval()
    with pytest.raises(CalibrationError, match="has seen none"):
        export_finn(net, tmp_path / "new")
    calibrate(net, [torch.randn(2, *IMAGE[1:])])
    with pytest.raises(FinnMappingError, match=r"stem\.stem: Conv2d with float weights"):
        export_finn(net, tmp_path / "new", estimate=False)
    assert not (tmp_path / "new").exists()


def test_a_difference_leaves_nothing(tmp_path, monkeypatch):
    honest = export_module.execute_model
    monkeypatch.setattr(export_module, "execute_model", lambda *args: honest(*args) + 1)
    with pytest.raises(ExportError, match="expected the logits of torch to the bit"):
        export_finn(build("bottleneck"), tmp_path / "new", [2], estimate=False)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("version", "message"),
    [(None, "finn-plus is not installed"), ("1.5.2", r"finn-plus is 1\.5\.2, expected 1\.6\.\*")],
)
def test_estimates_without_the_right_finn(version, message, tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "finn_version", lambda: version)
    with pytest.raises(ExportError, match=message):
        export_finn(build("bottleneck"), tmp_path / "new", [2], estimate=True)
    assert not (tmp_path / "new").exists()
    (project,) = export_finn(build("bottleneck"), tmp_path / "new", [2]).values()
    assert "make finn-env" in (project / "README.md").read_text()


def test_a_flow_that_fails_says_what_it_printed(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "finn_version", lambda: "1.6.1")
    monkeypatch.setattr(environment.sys, "executable", "/bin/false")
    with pytest.raises(ExportError, match="FINN's flow failed on 2b, no file was written"):
        export_finn(build("bottleneck"), tmp_path / "new", [2])
    assert not (tmp_path / "new").exists()


def in_project(project, script, *arguments):
    return subprocess.run(
        [sys.executable, script, *arguments],
        cwd=project,
        capture_output=True,
        text=True,
        check=False,
    )


def test_what_scripts_of_a_project_lack_is_told_in_a_line(tmp_path):
    """At once, not behind an hour of building."""
    options = {"estimate": False, "rtl": True}
    export_finn(build("residual", negative=False), tmp_path / "a", switchable=True, **options)
    done = in_project(tmp_path / "a" / "switchable", "rtl.py")
    assert (done.returncode, done.stderr) == (
        1,
        "error: rtl.py: expected words of the ports in runtime_weights/, found none: run "
        "estimate.py\n",
    )
    (project,) = export_finn(build("residual"), tmp_path / "b", [2], **options).values()
    (tmp_path / "empty").mkdir()
    done = in_project(project, "rtl.py", "--images", str(tmp_path / "empty"))
    assert "error: rtl.py: expected image files in" in done.stderr
    done = in_project(project, "rtl.py", "--images", str(tmp_path / "none"))
    assert done.returncode == 1 and done.stderr.startswith("error: ")
    if importlib.util.find_spec("finn") is None:
        for script in ("rtl.py", "estimate.py"):
            done = in_project(project, script)
            assert done.stderr == (
                f"error: No module named 'finn'; {script} needs finn-plus and what it brings\n"
            )
