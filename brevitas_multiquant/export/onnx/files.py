"""Plain ONNX files of a network, each run with onnxruntime and compared before it is written."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from brevitas_multiquant.core.precision import Assignment, Setting, activation_bits, name_of
from brevitas_multiquant.errors import ExportError
from brevitas_multiquant.export.onnx.integer.export import integer_model
from brevitas_multiquant.export.onnx.integer.processors import Processor, require_processor
from brevitas_multiquant.export.onnx.qcdq import LARGEST_BITS, attempt, to_onnx, verify_onnx
from brevitas_multiquant.export.operations import operations_named
from brevitas_multiquant.export.report import enter, new_report
from brevitas_multiquant.export.request import (
    requested_images,
    requested_settings,
    requested_shape,
    require_graph,
    require_packages,
)
from brevitas_multiquant.export.sample import smooth_images
from brevitas_multiquant.export.verify import weights_quantized_once
from brevitas_multiquant.nn.given import float32_network
from brevitas_multiquant.nn.network import MultiQuantNet
from brevitas_multiquant.nn.subnet import Subnet, extract_subnet
from brevitas_multiquant.storage.staging import staged

SAMPLES = 8
"""Random images that a file is compared on."""


def export_onnx(
    net: MultiQuantNet,
    folder: str | os.PathLike[str],
    input_shape: Sequence[int] | None = None,
    bits: Sequence[int] | None = None,
    *,
    assignments: Sequence[Assignment] = (),
    images: Tensor | None = None,
    integer: bool = False,
    processor: Processor = "any",
) -> dict[Setting, Path]:
    """Write one plain ONNX file per bit-width and assignment, each run and compared before.

    Files are moved into the folder after all were verified; a failure leaves it as it was.

    By default, ``model_4b_qcdq.onnx`` and its like hold the network as it is, in floats between
    quantizers: every code and the logits are those of torch, see `verify_onnx`.

    With ``integer=True``, ``model_4b_qdq.onnx`` and its like hold what onnxruntime runs as
    integers: bytes for activations and weights, a bias of 32 bits, norms in the scales. That is
    fast where everything between the layers is quantized, as in networks of ``profile="finn"``;
    where results are added in float, as in the paper's profile, those layers stay float. Each
    kernel is compared with torch on the integers that it gets: another integer is accepted only
    next to a rounding threshold. ``export.json`` says which kernels onnxruntime runs, which layers
    stay float and why, and how the classes and logits compare.

    Args:
        net: the network; not changed, not even for a moment.
        folder: made if it does not exist.
        input_shape: (N, C, H, W) of the files; default: ``net.input_shape``.
        bits: which bit-widths, at most 8; default: all of ``net.bits``; ``[]`` for assignments
            alone.
        assignments: bits for each site, in files called after `Assignment.name`.
        images: (M, C, H, W), to compare on beside eight smooth random images: those of the
            calibration, for one. With ``integer=True`` in place of them, and of at least 99.5 % of
            them the file has to give the class of torch.
        integer: layers that multiply bytes, for speed; else the codes of torch in floats.
        processor: that a file of integers is for: ``"any"``, or ``"vnni"`` for x86 with VNNI and
            Arm with its dot product, whose kernels hold every sum, so that weights of 8 bits are
            int8, for which there are faster kernels. The file is compared on this machine; one
            that it gets wrong is not written.

    Returns:
        Bit-width, or assignment as it was given -> file.

    Raises:
        NetworkError, PrecisionError: not a `MultiQuantNet`, or one that is not in fp32.
        BitWidthError: not candidates of the network, or an assignment that does not fit it.
        CalibrationError: ranges that have seen no data.
        ExportError: more than 8 bits, a missing package, a wrong shape or processor, a folder that
            cannot be written, an operation without a form in ONNX, a file that does not reproduce
            the network, or, with ``integer=True``, none of whose layers multiplies integers.

    Example:
        >>> import tempfile
        >>> from torchvision.models import resnet18
        >>> from brevitas_multiquant import calibrate, multiquantize
        >>> net = multiquantize(resnet18(num_classes=10), [2], input_shape=(1, 3, 32, 32))
        >>> calibrate(net, [torch.rand(4, 3, 32, 32)])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     [path.name for path in export_onnx(net, folder).values()]
        ['model_2b_qcdq.onnx']
    """
    require_packages()
    require_processor(processor)
    if processor != "any" and not integer:
        raise ExportError(f"export_onnx: processor={processor!r}: expected integer=True with it")
    net = float32_network(net, "export_onnx")
    require_graph(net)
    chosen = requested_settings(net, bits, assignments)
    shape = requested_shape(net, input_shape)
    _check_bits(chosen)
    given = None if images is None else requested_images(images, shape)
    samples = smooth_images((SAMPLES, *shape[1:]))
    sample = samples[:1].expand(shape).contiguous()
    report = new_report(net, shape)
    files = {setting: _file_name(setting, integer) for setting in chosen.values()}
    with staged(folder) as staging:
        for setting, name in files.items():
            subnet = extract_subnet(net, setting).cpu()
            with operations_named(subnet, sample, attempt), torch.no_grad():
                if integer:
                    model, entry = integer_model(subnet, sample, given, samples, processor)
                else:
                    compared = samples if given is None else torch.cat([samples, given])
                    model, entry = _exact_model(subnet, sample, compared), {}
            content = model.SerializeToString()
            (staging / name).write_bytes(content)
            digest = hashlib.sha256(content).hexdigest()
            enter(report, setting, {"file": name, "sha256": digest, **entry})
        if integer:
            (staging / "export.json").write_text(json.dumps(report, indent=2) + "\n")
    return {one: Path(folder) / files[setting] for one, setting in chosen.items()}


def _check_bits(chosen: dict[Setting, Setting]) -> None:
    """Bytes hold no more than 8 bits."""
    asked = sorted(set[int]().union(*map(activation_bits, chosen.values())))
    if asked[-1] > LARGEST_BITS:
        raise ExportError(
            f"export_onnx: expected at most {LARGEST_BITS} bits, which is what ONNX's "
            f"QuantizeLinear can hold, got {asked}; choose fewer with bits=, or use "
            "export_qonnx"
        )


def _exact_model(subnet: Subnet, sample: Tensor, compared: Tensor) -> Any:
    """The QCDQ model, verified."""
    model = to_onnx(subnet, sample)
    with weights_quantized_once(subnet):
        verify_onnx(model, subnet, compared)
    return model


def _file_name(setting: Setting, integer: bool) -> str:
    return f"model_{name_of(setting)}_{'qdq' if integer else 'qcdq'}.onnx"
