"""QONNX: one verified file per bit-width, for FINN and the qonnx tools."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from brevitas_multiquant.core.precision import Assignment, Setting, described, name_of
from brevitas_multiquant.errors import ExportError
from brevitas_multiquant.export.exporter import quiet, readable_ir_version, run_exporter
from brevitas_multiquant.export.operations import operations_named
from brevitas_multiquant.export.part_ends import MERGE, STEM, label_ends, take_ends
from brevitas_multiquant.export.qonnx.cleanup import clean_up, unsigned_bits
from brevitas_multiquant.export.qonnx.execute import execute
from brevitas_multiquant.export.report import enter, new_report
from brevitas_multiquant.export.request import (
    requested_settings,
    requested_shape,
    require_graph,
    require_packages,
)
from brevitas_multiquant.export.sample import impulse_images, smooth_images, stem_extent
from brevitas_multiquant.export.verify import (
    Comparison,
    Graph,
    quantizer_order,
    verify,
    weights_quantized_once,
)
from brevitas_multiquant.nn.given import float32_network
from brevitas_multiquant.nn.network import MultiQuantNet
from brevitas_multiquant.nn.subnet import Subnet, extract_subnet
from brevitas_multiquant.storage.staging import staged


def to_qonnx(subnet: Subnet, images: Tensor) -> Any:
    """The QONNX model of one bit-width, cleaned up: shapes inferred, nodes and tensors named.

    The nodes that emit codes carry their module path as ``doc_string``, which Netron shows.

    Args:
        subnet: of `brevitas_multiquant.extract_subnet`, on the CPU; not changed.
        images: (N, C, H, W); the model has this shape.

    Returns:
        An ``onnx.ModelProto``.

    Raises:
        ExportError: a package is missing.
    """
    require_packages()
    return _tidy(_exported(subnet, images), subnet, images)


def _exported(module: nn.Module, images: Tensor) -> Any:
    with quiet():
        from brevitas.export import export_qonnx as brevitas_export_qonnx

    proto = run_exporter(brevitas_export_qonnx, module, images)
    unsigned_bits(proto.graph)
    return proto


def _attempt(operation: nn.Module, x: Tensor) -> Any:
    """Export, clean up and run one operation."""
    proto = _exported(operation, x)
    with readable_ir_version(), quiet():
        model = clean_up(proto)
        output = model.graph.output[0].name
        return execute(model, x.numpy(), [output])[output]


def _tidy(proto: Any, subnet: Subnet, images: Tensor) -> Any:
    """Nodes labelled with their module paths, shapes inferred, everything named."""
    _label(proto.graph, quantizer_order(subnet, images))
    with readable_ir_version(), quiet():
        return clean_up(proto)


def verify_qonnx(
    model: Any, subnet: Subnet, images: Tensor, allow_ties: bool = False
) -> Comparison:
    """Execute a QONNX model with qonnx and compare it with its network.

    Args:
        model: of `to_qonnx`.
        subnet: the network it was made from.
        images: (N, C, H, W), the model's shape.
        allow_ties: accept codes that float rounding decides; see `export_qonnx`.

    Raises:
        ExportError: they differ; names the tensor.
    """
    labelled = {node.doc_string: node.output[0] for node in model.graph.node if node.doc_string}
    stem, merge = (take_ends(labelled, part) for part in (STEM, MERGE))
    outputs = tuple(value.name for value in model.graph.output)
    wanted = {*labelled.values(), *outputs, *stem, *merge}

    def run(array: np.ndarray) -> dict[str, np.ndarray]:
        with readable_ir_version(), quiet():
            return execute(model, array, wanted)

    graph = Graph(run, stem, labelled, outputs, merge)
    return verify(graph, subnet, images, allow_ties)


def export_qonnx(
    net: MultiQuantNet,
    folder: str | os.PathLike[str],
    input_shape: Sequence[int] | None = None,
    bits: Sequence[int] | None = None,
    *,
    assignments: Sequence[Assignment] = (),
    allow_ties: bool = False,
) -> dict[Setting, Path]:
    """Write one QONNX file per bit-width and assignment, each run and compared with torch before.

    Beside ``model_4b.onnx`` and its like: ``input.npy``, ``expected_output_4b.npy`` (what torch
    makes of it; ``.npz`` of several outputs, by the names that they have in the graph) and the
    report ``export.json``. Files are moved into the folder after all were verified; a failure
    leaves the folder as it was.

    Each file is compared on two batches, with the codes of every quantizer of the body identical
    given the stem output that the file computed, logits within 1e-5 and the same class. The float
    stem itself is summed in another order by each executor, which is why ``input.npy`` holds
    isolated impulses: there a stem of one convolution is exact, and so is the whole network.

    Args:
        net: the network; not changed, not even for a moment.
        folder: made if it does not exist.
        input_shape: (N, C, H, W) of the files; default: ``net.input_shape``.
        bits: which bit-widths; default: all of ``net.bits``; ``[]`` for assignments alone.
        assignments: bits for each site, in files called after `Assignment.name`; the report holds
            them as they are, every site named.
        allow_ties: accept codes that differ by one where the value lies within 1e-3 of a rounding
            threshold: for networks with float sums or functions inside the body (layer norm,
            squeeze-and-excitation, sigmoid), which executors round differently. They are counted
            in the report.

    Returns:
        Bit-width, or assignment as it was given -> file.

    Raises:
        NetworkError, PrecisionError: not a `MultiQuantNet`, or one that is not in fp32.
        BitWidthError: not candidates of the network, or an assignment that does not fit it.
        CalibrationError: ranges that have seen no data.
        ExportError: a missing package, a wrong shape, a folder that cannot be written, an operation
            without a form in ONNX, or a file that does not reproduce the network.

    Example:
        >>> import tempfile
        >>> from torchvision.models import resnet18
        >>> from brevitas_multiquant import calibrate, multiquantize
        >>> net = multiquantize(resnet18(num_classes=10), [2], input_shape=(1, 3, 32, 32))
        >>> calibrate(net, [torch.rand(4, 3, 32, 32)])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     [path.name for path in export_qonnx(net, folder).values()]
        ['model_2b.onnx']
    """
    require_packages()
    net = float32_network(net, "export_qonnx")
    require_graph(net)
    chosen = requested_settings(net, bits, assignments)
    shape = requested_shape(net, input_shape)
    sample, natural = impulse_images(shape, stem_extent(net.stem)), smooth_images(shape)
    report = new_report(net, shape)
    with staged(folder) as staging:
        np.save(staging / "input.npy", sample.numpy())
        for setting in dict.fromkeys(chosen.values()):
            subnet = extract_subnet(net, setting).cpu()
            with operations_named(subnet, sample, _attempt):
                exported = _exported(subnet, sample)
                with torch.no_grad(), weights_quantized_once(subnet):
                    model = _tidy(exported, subnet, sample)
                    del exported
                    comparisons = {
                        "sample": verify_qonnx(model, subnet, sample, allow_ties),
                        "smooth": verify_qonnx(model, subnet, natural, allow_ties),
                    }
            with torch.no_grad():
                _check_sample(comparisons["sample"], setting)
                outputs = subnet.structure.tensors(subnet(sample))
                entry = _write(model, subnet, outputs, staging, comparisons)
            enter(report, setting, entry)
        (staging / "export.json").write_text(json.dumps(report, indent=2) + "\n")
    return {given: Path(folder) / _file_name(setting) for given, setting in chosen.items()}


def _check_sample(comparison: Comparison, setting: Setting) -> None:
    """The saved sample has the class of torch also where the stem is not exact."""
    if comparison.end_to_end_other_classes:
        raise ExportError(
            f"export at {described(setting)}: expected the class that torch gives to the sample "
            f"images, got another one for {comparison.end_to_end_other_classes} (codes that "
            f"differ: {comparison.end_to_end_flipped_codes}); no file was written. Train the "
            "network first if its logits are nearly equal"
        )


def _write(
    model: Any,
    subnet: Subnet,
    outputs: Sequence[Tensor],
    staging: Path,
    comparisons: dict[str, Comparison],
) -> dict[str, Any]:
    """Write the files of one setting; what the report says of it."""
    expected = staging / f"expected_output_{name_of(subnet.setting)}"
    arrays = [output.numpy() for output in outputs]
    if len(arrays) == 1:
        np.save(expected.with_suffix(".npy"), arrays[0])
    else:
        named: Any = dict(zip(subnet.structure.names, arrays, strict=True))
        np.savez(expected.with_suffix(".npz"), **named)
    path = staging / _file_name(subnet.setting)
    path.write_bytes(model.SerializeToString())
    return {
        "file": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "compared": {name: asdict(comparison) for name, comparison in comparisons.items()},
    }


def _file_name(setting: Setting) -> str:
    return f"model_{name_of(setting)}.onnx"


def _label(graph: Any, paths: list[str]) -> None:
    """Note on each activation quantizer, and on the last node of stem and merge, what it is.

    The exporter keeps the order of execution; clean-up changes order and names, not notes. A stem
    that ends in a quantizer is labelled as that: its codes are compared like all others.
    """
    weights = {tensor.name for tensor in graph.initializer}
    quantizers = [
        node for node in graph.node if node.op_type == "Quant" and node.input[0] not in weights
    ]
    for node, path in zip(quantizers, paths, strict=True):
        node.doc_string = path
    label_ends(graph)
