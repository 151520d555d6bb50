"""`export_finn`: the projects of all bit-widths, or none."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from brevitas_multiquant.core.selection import uses_at
from brevitas_multiquant.errors import ExportError
from brevitas_multiquant.export.exporter import quiet, readable_ir_version
from brevitas_multiquant.export.finn.check import branch_names
from brevitas_multiquant.export.finn.datatypes import weight_section
from brevitas_multiquant.export.finn.environment import (
    check_board,
    run_estimate,
    wants_estimates,
    what_is_missing,
)
from brevitas_multiquant.export.finn.integer_graph import HostSide, IntegerGraph
from brevitas_multiquant.export.finn.lower import lower
from brevitas_multiquant.export.finn.model import INPUT, OUTPUT, thresholds_of, to_model
from brevitas_multiquant.export.finn.project_files import (
    CARRIED,
    PROJECT,
    build_config,
    host_constants,
    readme,
    switchable_readme,
    write_json,
)
from brevitas_multiquant.export.finn.switchable import table_set, with_gates
from brevitas_multiquant.export.request import requested_bits, requested_shape, require_packages
from brevitas_multiquant.export.sample import smooth_images
from brevitas_multiquant.nn.given import float32_network
from brevitas_multiquant.nn.network import MultiQuantNet
from brevitas_multiquant.nn.subnet import Subnet, extract_subnet
from brevitas_multiquant.storage.staging import staged

SAMPLES = 2


def export_finn(
    net: MultiQuantNet,
    folder: str | os.PathLike[str],
    bits: Sequence[int] | None = None,
    *,
    board: str = "ZCU104",
    target_fps: int = 1000,
    clock_ns: float = 5.0,
    images: Tensor | None = None,
    estimate: bool | None = None,
    switchable: bool = False,
) -> dict[int, Path]:
    """Write a FINN project for each bit-width, each model executed and compared with torch before.

    A project is a folder ``4b/`` and its like: ``model.onnx`` of integers, the build configuration,
    the build step that FINN does not have, sample input and output, the processor's side, and a
    README that tells how to build the bitstream. The integers give the logits of the network in
    torch with a difference of 0. Where finn-plus is installed, its flow runs up to the estimates,
    without Vivado, and the model is compared again after every step. A failure leaves the folder
    as it was.

    Args:
        net: of the profile ``"finn"``; not changed.
        folder: made if it does not exist.
        bits: which bit-widths; default: all of ``net.bits``.
        board: one that FINN knows.
        target_fps: frames a second that FINN folds the layers for.
        clock_ns: clock period, in nanoseconds.
        images: (N, C, H, W), to compare on and to save; default: two smooth random ones.
        estimate: run FINN's flow; default: where finn-plus is installed.
        switchable: write one project ``switchable/`` of the network's largest bit-width, whose
            threshold tables can be written at run time, and for each bit-width the set of tables
            that turns it into that one.

    Returns:
        Bit-width -> its folder, or the file of its tables.

    Raises:
        NetworkError, PrecisionError: not a `MultiQuantNet`, or one that is not in fp32.
        BitWidthError: not candidates of the network.
        CalibrationError: ranges that have seen no data.
        FinnMappingError: the network does not map; lists every reason.
        ExportError: a missing package, an unknown board, a folder that cannot be written, FINN
            missing or of another version though estimates were asked for, or a difference.

    Example:
        >>> import tempfile
        >>> from torchvision.models import resnet18
        >>> from brevitas_multiquant import calibrate, multiquantize
        >>> model = resnet18(num_classes=10)
        >>> net = multiquantize(model, [2], profile="finn", input_shape=(1, 3, 32, 32))
        >>> calibrate(net, [torch.rand(4, 3, 32, 32)])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     (project,) = export_finn(net, folder, estimate=False).values()
        ...     (project / "model.onnx").exists()
        True
    """
    require_packages()
    net = float32_network(net, "export_finn")
    chosen, shape = requested_bits(net, bits), requested_shape(net, None)
    check_board(board)
    config = build_config(board, _positive("target_fps", target_fps), clock_ns)
    estimating = wants_estimates(estimate)
    sample = smooth_images((SAMPLES, *shape[1:])) if images is None else _checked(images, shape)
    largest = (max(net.bits),) if switchable else ()  # the template has all branches
    subnets = {bit: extract_subnet(net, bit).cpu() for bit in {*chosen, *largest}}
    graphs = {bit: lower(subnets[bit], branch_names(net, bit), shape) for bit in sorted(subnets)}
    if switchable:
        graphs = with_gates(graphs, net.selection)
    missing = None if estimating else what_is_missing() or "they were not asked for"
    with staged(folder) as staging:
        if switchable:
            project = staging / "switchable"
            config = build_config(board, target_fps, clock_ns, switchable=True)
            _write_switchable(project, chosen, subnets, graphs, sample, config)
            text = switchable_readme(max(net.bits), chosen, config, missing)
            texts = {project: text + weight_section(graphs[max(net.bits)])}
        else:
            texts = {}
            for bit in chosen:
                project = staging / f"{bit}b"
                write_project(project, subnets[bit], graphs[bit], sample, config)
                text = readme(bit, uses_at(net.selection, bit), config, missing)
                texts[project] = text + weight_section(graphs[bit])
        for project, text in texts.items():
            if estimating:
                run_estimate(project)
                _keep_results(project)
            (project / "README.md").write_text(text)
    if switchable:
        return {bit: Path(folder) / "switchable" / "tables" / f"{bit}b.npz" for bit in chosen}
    return {bit: Path(folder) / f"{bit}b" for bit in chosen}


def _write_switchable(
    project: Path,
    chosen: Sequence[int],
    subnets: dict[int, Subnet],
    graphs: dict[int, IntegerGraph],
    images: Tensor,
    config: dict[str, Any],
) -> None:
    """The template's project, and for each bit-width tables, processor's side and sample output."""
    largest = max(graphs)
    model = write_project(project, subnets[largest], graphs[largest], images, config)
    (project / "tables").mkdir()
    codes = np.load(project / "input.npy")
    for bit in chosen:
        tables = table_set(graphs[largest], graphs[bit])
        for output, table in tables.items():
            model.set_initializer(thresholds_of(output), table.numpy())
        with quiet(), readable_ir_version():
            integers = execute_model(model, codes)
        verify_logits(graphs[bit].host, subnets[bit], integers, images)
        arrays: dict[str, Any] = {
            thresholds_of(output): table.numpy() for output, table in tables.items()
        }
        np.savez_compressed(project / "tables" / f"{bit}b.npz", **arrays)
        np.save(project / f"expected_output_{bit}b.npy", integers)
        write_json(project / f"host_{bit}b.json", host_constants(graphs[bit].host))
    shutil.copyfile(PROJECT / "switch.py", project / "switch.py")


def write_project(
    project: Path, subnet: Subnet, graph: IntegerGraph, images: Tensor, config: dict[str, Any]
) -> Any:
    """Write the project of one model, after comparing its logits with torch's.

    Args:
        project: the folder to make.
        subnet: the network, on the CPU.
        graph: of `brevitas_multiquant.export.finn.lower.lower`.
        images: (N, C, H, W), to compare on and to save.
        config: of `brevitas_multiquant.export.finn.project_files.build_config`.

    Returns:
        The model.

    Raises:
        ExportError: a logit differs.
    """
    project.mkdir()
    codes = graph.host.codes(images).permute(0, 2, 3, 1).contiguous().numpy()
    with quiet(), readable_ir_version():
        model = to_model(graph)
        integers = execute_model(model, codes)
    verify_logits(graph.host, subnet, integers, images)
    model.save(str(project / "model.onnx"))
    np.save(project / "input.npy", codes)
    np.save(project / "expected_output.npy", integers)
    write_json(project / "host.json", host_constants(graph.host))
    write_json(project / "dataflow_build_config.json", config)
    write_json(project / "specialize_layers_config.json", {"Defaults": {}})
    write_json(project / "folding_config.json", {"Defaults": {}})
    for name in CARRIED:
        shutil.copyfile(PROJECT / name, project / name)
    return model


def execute_model(model: Any, codes: np.ndarray) -> np.ndarray:
    """The integers (N, 1, 1, classes) that a model gives for codes (N, H, W, C), by qonnx."""
    from qonnx.core.onnx_exec import execute_onnx

    return np.concatenate([execute_onnx(model, {INPUT: image[None]})[OUTPUT] for image in codes])


def verify_logits(host: HostSide, subnet: Subnet, integers: np.ndarray, images: Tensor) -> None:
    """Compare what a model gave with torch: not a bit may differ.

    Args:
        host: the processor's side.
        subnet: the network.
        integers: of `execute_model` for ``images``.
        images: (N, C, H, W).

    Raises:
        ExportError: a logit differs.
    """
    with torch.no_grad():
        expected = subnet(images)
    actual = host.logits(torch.from_numpy(integers))
    if not torch.equal(actual, expected):
        raise ExportError(
            f"export_finn at {subnet.bits} bits: expected the logits of torch to the bit, got a "
            f"difference of {(actual - expected).abs().max():.3g}; no file was written. Report the "
            "model: a layer of it does not export"
        )


def _keep_results(project: Path) -> None:
    """FINN's reports and choice of parallelism stay, its working files go."""
    shutil.rmtree(project / "finn_build")
    shutil.rmtree(project / "__pycache__", ignore_errors=True)
    shutil.copyfile(
        project / "report" / "auto_folding_config.json", project / "folding_config.json"
    )


def _positive(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ExportError(f"{name}: expected a positive whole number, got {value!r}")
    return value


def _checked(images: Tensor, shape: Sequence[int]) -> Tensor:
    if images.dim() != 4 or images.shape[1:] != torch.Size(shape[1:]) or not len(images):
        raise ExportError(
            f"images: expected (N, {', '.join(map(str, shape[1:]))}), got {tuple(images.shape)}"
        )
    return images.detach().float().cpu()
