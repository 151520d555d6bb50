"""`export_finn`: the projects of all bit-widths, or none."""

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from brevitas_multiquant.core.precision import Assignment, Setting, described, name_of
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
from brevitas_multiquant.export.request import (
    requested_settings,
    requested_shape,
    require_packages,
)
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
    assignments: Sequence[Assignment] = (),
) -> dict[Setting, Path]:
    """Write a FINN project for each bit-width, each model executed and compared with torch before.

    A project is a folder ``4b/`` and its like, an assignment's one called after `Assignment.name`:
    ``model.onnx`` of integers, the build configuration, the build step that FINN does not have,
    sample input and output, the processor's side, and a README that tells how to build the
    bitstream. The integers give the logits of the network in torch with a difference of 0. Where
    finn-plus is installed, its flow runs up to the estimates, without Vivado, and the model is
    compared again after every step. A failure leaves the folder
    as it was.

    Args:
        net: of the profile ``"finn"``; not changed.
        folder: made if it does not exist.
        bits: which bit-widths; default: all of ``net.bits``; ``[]`` for assignments alone.
        board: one that FINN knows.
        target_fps: frames a second that FINN folds the layers for.
        clock_ns: clock period, in nanoseconds.
        images: (N, C, H, W), to compare on and to save; default: two smooth random ones.
        estimate: run FINN's flow; default: where finn-plus is installed.
        switchable: write one project ``switchable/`` of the network's largest bit-width, whose
            threshold tables can be written at run time, and for each bit-width and assignment the
            set of tables that turns it into that one.
        assignments: bits for each site.

    Returns:
        Bit-width, or assignment as it was given -> its folder, or the file of its tables.

    Raises:
        NetworkError, PrecisionError: not a `MultiQuantNet`, or one that is not in fp32.
        BitWidthError: not candidates of the network, or an assignment that does not fit it.
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
    chosen, shape = requested_settings(net, bits, assignments), requested_shape(net, None)
    settings = list(dict.fromkeys(chosen.values()))
    check_board(board)
    config = build_config(board, _positive("target_fps", target_fps), clock_ns)
    estimating = wants_estimates(estimate)
    sample = smooth_images((SAMPLES, *shape[1:])) if images is None else _checked(images, shape)
    largest = max(net.bits)  # the template has all branches
    needed = [largest, *settings] if switchable else settings
    subnets = {setting: extract_subnet(net, setting).cpu() for setting in needed}
    graphs = {
        setting: lower(subnet, branch_names(net, subnet.bits), shape)
        for setting, subnet in subnets.items()
    }
    if switchable:
        graphs = with_gates(graphs, net.selection)
    missing = None if estimating else what_is_missing() or "they were not asked for"
    with staged(folder) as staging:
        if switchable:
            project = staging / "switchable"
            config = build_config(board, target_fps, clock_ns, switchable=True)
            template = _Built(subnets[largest], graphs[largest])
            sets = {setting: _Built(subnets[setting], graphs[setting]) for setting in settings}
            _write_switchable(project, template, sets, sample, config)
            text = switchable_readme(largest, settings, config, missing)
            texts = {project: text + weight_section(graphs[largest])}
        else:
            texts = {}
            for setting in settings:
                project, subnet = staging / name_of(setting), subnets[setting]
                write_project(project, subnet, graphs[setting], sample, config)
                text = readme(setting, uses_at(net.selection, subnet.bits), config, missing)
                texts[project] = text + weight_section(graphs[setting])
        for project, text in texts.items():
            if estimating:
                run_estimate(project)
                _keep_results(project)
            (project / "README.md").write_text(text)
    if switchable:
        tables = Path(folder) / "switchable" / "tables"
        return {given: tables / f"{name_of(setting)}.npz" for given, setting in chosen.items()}
    return {given: Path(folder) / name_of(setting) for given, setting in chosen.items()}


class _Built(NamedTuple):
    """A network as torch runs it, and as hardware does."""

    subnet: Subnet
    graph: IntegerGraph


def _write_switchable(
    project: Path,
    template: _Built,
    sets: Mapping[Setting, _Built],
    images: Tensor,
    config: dict[str, Any],
) -> None:
    """The template's project, and for each setting tables, processor's side and sample output.

    Args:
        project: the folder to make.
        template: of the largest bit-width, with all branches.
        sets: what the template is to become.
        images: (N, C, H, W), to compare on and to save.
        config: of `build_config`.

    Raises:
        ExportError: a logit differs.
        FinnMappingError: the weights of a layer differ.
    """
    model = write_project(project, *template, images, config)
    (project / "tables").mkdir()
    codes = np.load(project / "input.npy")
    for setting, (subnet, graph) in sets.items():
        name = name_of(setting)
        tables = table_set(template.graph, graph)
        for output, table in tables.items():
            model.set_initializer(thresholds_of(output), table.numpy())
        with quiet(), readable_ir_version():
            integers = execute_model(model, codes)
        verify_logits(graph.host, subnet, integers, images)
        arrays: dict[str, Any] = {
            thresholds_of(output): table.numpy() for output, table in tables.items()
        }
        np.savez_compressed(project / "tables" / f"{name}.npz", **arrays)
        np.save(project / f"expected_output_{name}.npy", integers)
        write_json(project / f"host_{name}.json", host_constants(graph.host))
        if isinstance(setting, Assignment):
            setting.save(project / "tables" / f"{name}.json")
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
    if isinstance(subnet.setting, Assignment):
        subnet.setting.save(project / "assignment.json")
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
        difference = (actual - expected).abs().max()
        raise ExportError(
            f"export_finn at {described(subnet.setting)}: expected the logits of torch to the bit, "
            f"got a difference of {difference:.3g}; no file was written. Report the model: a layer "
            "of it does not export"
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
