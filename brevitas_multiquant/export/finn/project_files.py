"""What a project of one bit-width holds beside the model."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from brevitas_multiquant.core.precision import Assignment, Setting, activation_bits, described
from brevitas_multiquant.core.selection import BranchUse, serial, uses_at
from brevitas_multiquant.export.finn.integer_graph import HostSide

PROJECT = Path(__file__).parent / "project"
CARRIED = ("multiquant_steps.py", "host.py", "estimate.py")

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


def build_config(
    board: str, target_fps: int, clock_ns: float, switchable: bool = False
) -> dict[str, Any]:
    """Contents of ``dataflow_build_config.json``, for FINN's whole flow.

    Thresholds stand apart from the matrix products: only so do these map to RTL, and can the
    tables of ``switchable`` accelerators be written.
    """
    steps = [*ESTIMATE_STEPS, *BITSTREAM_STEPS]
    if switchable:
        steps.insert(
            steps.index("step_convert_to_hw") + 1,
            "multiquant_steps.step_multiquant_runtime_thresholds",
        )
    return {
        "output_dir": "output",
        "steps": steps,
        "board": board,
        "target_fps": target_fps,
        "synth_clk_period_ns": clock_ns,
        "standalone_thresholds": True,
        "specialize_layers_config_file": "specialize_layers_config.json",
        "generate_outputs": [
            "estimate_reports",
            "stitched_ip",
            "bitfile",
            "pynq_driver",
            "deployment_package",
        ],
    }


def host_constants(host: HostSide) -> dict[str, Any]:
    """Contents of ``host.json``."""
    return {
        "input_scale": host.input_scale,
        "input_range": list(host.input_range),
        "output_scale": host.output_scale,
        "output_bias": host.output_bias.tolist(),
        "finish": list(host.finish),
    }


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
    running = ", ".join(map(str, uses)).replace("/2", ", at half")
    title = described(setting)
    heading, what = f"{title[0].upper()}{title[1:]}", f"one bit-width: {len(uses)} branch(es)"
    activations, row = f"{setting}-bit activations", ""
    if isinstance(setting, Assignment):
        activations = f"activations of {_listed(activation_bits(setting))} bits, by site"
        what = f"one assignment: {len(uses)} branch(es)"
        row = "\n| `assignment.json` | which site has how many bits |"
    return f"""# {heading} on {config["board"]}

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
| `estimate.py` | FINN's flow up to its estimates, checked after every step; no Vivado needed |

## Estimates

{estimates}

## The bitstream

Where Vivado and finn-plus are installed:

    PYTHONPATH=. finn build dataflow_build_config.json model.onnx

To fix the parallelism instead of asking for frames a second, add
`"folding_config_file": "folding_config.json"` to the configuration.

## On the processor

Everything between these two calls is on the FPGA, in one dataflow partition of integers:

    host = Host.load("host.json")
    codes = host.codes(images)          # (N, C, H, W) float -> (N, H, W, C) int8
    integers = accelerator(codes)
    logits = host.logits(integers)
"""


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(numbers)))


def switchable_readme(
    largest: int, settings: Sequence[Setting], config: dict[str, Any], missing: str | None
) -> str:
    """Contents of ``README.md`` of an accelerator for several bit-widths and assignments."""
    bits = [setting for setting in settings if not isinstance(setting, Assignment)]
    mixed = [setting for setting in settings if isinstance(setting, Assignment)]
    named, row = [f"{_listed(bits)} bits"] if bits else [], ""
    if mixed:
        named.append(f"the assignments {', '.join(one.name for one in mixed)}")
        row = "\n| `tables/4b-1f3a9c02.json` and its like | bits by site, of an assignment |"
    listed = " and ".join(named)
    base = readme(largest, uses_at(serial([largest]), largest), config, missing)
    return f"""{base}
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

The sets are verified by executing the graph, here and after FINN's last estimate step; not on a
board.
"""


def write_json(path: Path, contents: Any) -> None:
    """Indented JSON with a newline at its end."""
    path.write_text(json.dumps(contents, indent=2) + "\n")
