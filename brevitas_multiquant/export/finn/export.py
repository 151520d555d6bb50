"""`export_finn`: the projects of all bit-widths, or none."""

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from brevitas_multiquant.core.image_task import ImageTask
from brevitas_multiquant.core.precision import Assignment, Setting, described, name_of
from brevitas_multiquant.core.preprocessing import Preprocessing
from brevitas_multiquant.core.selection import uses_at
from brevitas_multiquant.errors import ExportError
from brevitas_multiquant.export.exporter import quiet, readable_ir_version
from brevitas_multiquant.export.finn.check import branch_names
from brevitas_multiquant.export.finn.datatypes import weight_section
from brevitas_multiquant.export.finn.environment import (
    require_verilator,
    run_estimate,
    run_rtl,
    wants_estimates,
    what_is_missing,
)
from brevitas_multiquant.export.finn.fit import require_fit
from brevitas_multiquant.export.finn.folding import NONE, Folding, as_folded, read_foldings
from brevitas_multiquant.export.finn.integer_graph import HostSide, IntegerGraph
from brevitas_multiquant.export.finn.lower import lower
from brevitas_multiquant.export.finn.model import OUTPUT, thresholds_of, to_model
from brevitas_multiquant.export.finn.project_files import (
    PROJECT,
    Beside,
    build_config,
    readme,
    simulating,
    switching,
    write_json,
)
from brevitas_multiquant.export.finn.switchable import table_set, with_gates
from brevitas_multiquant.export.finn.target import make_target
from brevitas_multiquant.export.qonnx.execute import execute
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
    board: str | None = None,
    part: str | None = None,
    target_fps: int = 1000,
    clock_ns: float = 5.0,
    memory: str = "finn",
    folding: Folding | None = None,
    must_fit: bool = True,
    images: Tensor | None = None,
    preprocessing: Preprocessing | None = None,
    estimate: bool | None = None,
    rtl: bool = False,
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
        board: one that FINN knows; default: ``"ZCU104"``.
        part: instead of a board the part number of a chip, such as ``"xc7z010clg400-1"``; the flow
            then ends with an IP for a design of your own.
        target_fps: frames a second that FINN folds the layers for.
        clock_ns: clock period, in nanoseconds.
        memory: where threshold tables, weights and lines of images go: ``"finn"``, or ``"auto"``
            for block RAMs wherever that leaves the fewest LUTs, within four fifths of the board's.
            Frames a second stay.
        folding: a ``folding_config.json`` that was edited in a project, or one for each bit-width;
            default: FINN's choice for the frames a second.
        must_fit: refuse, before anything is written, what needs more than the board has by FINN's
            rules of estimation.
        images: (N, C, H, W), to compare on and to save; default: two smooth random ones.
        preprocessing: mean, std and class names, with which ``python host.py IMAGE`` in a project
            classifies an image file.
        estimate: run FINN's flow; default: where finn-plus is installed.
        rtl: let projects simulate the RTL that FINN writes, by ``python rtl.py``; where FINN's flow
            runs, that is run too: integers are compared, cycles and FIFO depths found.
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
        BoardError: the network needs more than the board has.
        ExportError: a missing package, an unknown board or part, a folding file that is none or
            of another network, a folder that cannot be written, FINN missing or of another version
            though estimates were asked for, or a difference.

    Example:
        >>> import tempfile
        >>> from torchvision.models import resnet18
        >>> from brevitas_multiquant import calibrate, multiquantize
        >>> model = resnet18(num_classes=10)
        >>> net = multiquantize(model, [2], profile="finn", input_shape=(1, 3, 32, 32))
        >>> calibrate(net, [torch.rand(4, 3, 32, 32)])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     (project,) = export_finn(net, folder, board="U250", estimate=False).values()
        ...     (project / "model.onnx").exists()
        True
    """
    require_packages()
    net = float32_network(net, "export_finn")
    chosen, shape = requested_settings(net, bits, assignments), requested_shape(net, None)
    settings = list(dict.fromkeys(chosen.values()))
    target = make_target(board, part, target_fps, clock_ns, memory, switchable)
    largest = max(net.bits)  # an accelerator for all of them has the layers of this one
    built: list[Setting] = [largest] if switchable else settings
    foldings = read_foldings(folding, built)
    estimating = wants_estimates(estimate)
    if rtl and estimating:
        require_verilator()
    sample = smooth_images((SAMPLES, *shape[1:])) if images is None else _checked(images, shape)
    subnets = {one: extract_subnet(net, one).cpu() for one in dict.fromkeys([*built, *settings])}
    graphs = {
        setting: lower(subnet, branch_names(net, subnet.bits), shape)
        for setting, subnet in subnets.items()
    }
    if switchable:
        graphs = with_gates(graphs, net.selection)
    layers = {one: as_folded(graphs[one], target, foldings.get(one, NONE)) for one in built}
    if must_fit:
        require_fit(layers, target)
    beside = {
        one: Beside(
            build_config(target),
            foldings.get(one, NONE),
            target.memory_config(graphs[one]),
            _images_of(preprocessing, net.image_task, shape, graphs[one]),
            rtl,
        )
        for one in built
    }
    missing = None if estimating else what_is_missing() or "they were not asked for"
    with staged(folder) as staging:
        for one in built:
            project = staging / ("switchable" if switchable else name_of(one))
            model = write_project(project, subnets[one], graphs[one], sample, beside[one])
            config, uses = beside[one].config, uses_at(net.selection, subnets[one].bits)
            text = readme(one, uses, config, missing)
            if switchable:
                sets = {setting: _Built(subnets[setting], graphs[setting]) for setting in settings}
                _write_tables(project, model, graphs[one], sets, sample, beside[one])
                text += switching(largest, settings)
            text += simulating(missing) if rtl else ""
            if estimating:
                run_estimate(project)
                _keep_results(project, keep_folding=one in foldings)
                if rtl:
                    run_rtl(project)
            (project / "README.md").write_text(text + weight_section(graphs[one]))
    if switchable:
        tables = Path(folder) / "switchable" / "tables"
        return {given: tables / f"{name_of(setting)}.npz" for given, setting in chosen.items()}
    return {given: Path(folder) / name_of(setting) for given, setting in chosen.items()}


class _Built(NamedTuple):
    """A network as torch runs it, and as hardware does."""

    subnet: Subnet
    graph: IntegerGraph


def _write_tables(
    project: Path,
    model: Any,
    template: IntegerGraph,
    sets: Mapping[Setting, _Built],
    images: Tensor,
    beside: Beside,
) -> None:
    """For each setting tables of the template, processor's side and sample output.

    Args:
        project: of the template.
        model: of the template; its tables are written over.
        template: of the largest bit-width, with all branches.
        sets: what the template is to become.
        images: (N, C, H, W), to compare on.
        beside: of the template's project.

    Raises:
        ExportError: a logit differs.
        FinnMappingError: the weights of a layer differ.
    """
    (project / "tables").mkdir()
    codes = np.load(project / "input.npy")
    for setting, (subnet, graph) in sets.items():
        name = name_of(setting)
        tables = table_set(template, graph)
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
        write_json(project / f"host_{name}.json", beside.host_constants(graph.host))
        if isinstance(setting, Assignment):
            setting.save(project / "tables" / f"{name}.json")
    shutil.copyfile(PROJECT / "switch.py", project / "switch.py")


def write_project(
    project: Path, subnet: Subnet, graph: IntegerGraph, images: Tensor, beside: Beside
) -> Any:
    """Write the project of one model, after comparing its logits with torch's.

    Args:
        project: the folder to make.
        subnet: the network, on the CPU.
        graph: of `brevitas_multiquant.export.finn.lower.lower`.
        images: (N, C, H, W), to compare on and to save.
        beside: all other files.

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
    beside.write(project, graph.host)
    if isinstance(subnet.setting, Assignment):
        subnet.setting.save(project / "assignment.json")
    return model


def execute_model(model: Any, codes: np.ndarray) -> np.ndarray:
    """The integers (N, 1, 1, classes) that a model gives for codes (N, H, W, C), by qonnx."""
    outputs = [execute(model.model, image[None], [OUTPUT])[OUTPUT] for image in codes]
    return np.concatenate(outputs)


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
        (expected,) = tree_leaves(subnet(images))  # a network may return it in a dict
    # hardware has channels last
    actual = host.logits(torch.from_numpy(np.moveaxis(integers, -1, 1)))
    if not torch.equal(actual, expected):
        difference = (actual - expected).abs().max()
        raise ExportError(
            f"export_finn at {described(subnet.setting)}: expected the logits of torch to the bit, "
            f"got a difference of {difference:.3g}; no file was written. Report the model: a layer "
            "of it does not export"
        )


def _keep_results(project: Path, keep_folding: bool) -> None:
    """FINN's reports and choice of parallelism stay, its working files go."""
    shutil.rmtree(project / "finn_build")
    shutil.rmtree(project / "__pycache__", ignore_errors=True)
    if not keep_folding:
        shutil.copyfile(
            project / "report" / "auto_folding_config.json", project / "folding_config.json"
        )


def _images_of(
    preprocessing: Preprocessing | None,
    task: ImageTask | None,
    shape: Sequence[int],
    graph: IntegerGraph,
) -> dict[str, Any]:
    """What ``host.json`` says of images; where nothing was given, what the network knows."""
    classes = len(graph.host.output_bias)
    if preprocessing is not None:
        return preprocessing.constants(shape, classes)
    if task is None:
        return {}
    trained = task.to_dict()
    del trained["preprocessing"]
    return {**task.preprocessing.constants(shape, classes), **trained}


def _checked(images: Tensor, shape: Sequence[int]) -> Tensor:
    if images.dim() != 4 or images.shape[1:] != torch.Size(shape[1:]) or not len(images):
        raise ExportError(
            f"images: expected (N, {', '.join(map(str, shape[1:]))}), got {tuple(images.shape)}"
        )
    return images.detach().float().cpu()
