"""Plain ONNX in QCDQ style (quantize, clip, dequantize), for onnxruntime."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from brevitas_multiquant.errors import ExportError
from brevitas_multiquant.export.exporter import quiet, run_exporter
from brevitas_multiquant.export.folder import staged
from brevitas_multiquant.export.request import (
    requested_bits,
    requested_shape,
    require_graph,
    require_packages,
)
from brevitas_multiquant.export.sample import smooth_images
from brevitas_multiquant.export.verify import check_classes
from brevitas_multiquant.nn.given import float32_network
from brevitas_multiquant.nn.network import MultiQuantNet
from brevitas_multiquant.subnet import Subnet, extract_subnet

LARGEST_BITS = 8
"""ONNX's QuantizeLinear emits 8-bit integers."""


def to_onnx(subnet: Subnet, images: Tensor) -> Any:
    """The QCDQ model of one bit-width.

    Args:
        subnet: of `brevitas_multiquant.extract_subnet`, on the CPU; not changed.
        images: (N, C, H, W); the model has this shape.

    Returns:
        An ``onnx.ModelProto``.

    Raises:
        ExportError: a package is missing.
    """
    require_packages()
    with quiet():
        from brevitas.export import export_onnx_qcdq

    return run_exporter(export_onnx_qcdq, subnet, images)


def verify_onnx(model: Any, subnet: Subnet, images: Tensor) -> None:
    """Run a QCDQ model with onnxruntime and compare the class of each image with torch's.

    onnxruntime may fuse and reorder what it runs, so codes and logits are not compared.

    Args:
        model: of `to_onnx`.
        subnet: the network it was made from.
        images: (N, C, H, W), the model's shape.

    Raises:
        ExportError: an image gets another class.
    """
    from onnxruntime import InferenceSession

    session = InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (actual,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    with torch.no_grad():
        logits = subnet(images)
    check_classes(f"export at {subnet.bits} bits", torch.from_numpy(np.array(actual)), logits)


def export_onnx(
    net: MultiQuantNet,
    folder: str | os.PathLike[str],
    input_shape: Sequence[int] | None = None,
    bits: Sequence[int] | None = None,
) -> dict[int, Path]:
    """Write one plain ONNX file a bit-width, each run with onnxruntime before.

    Files ``model_4b_qcdq.onnx`` and their like are moved into the folder after all were verified;
    a failure leaves the folder as it was.

    Args:
        net: the network; not changed, not even for a moment.
        folder: made if it does not exist.
        input_shape: (N, C, H, W) of the files; default: ``net.input_shape``.
        bits: which bit-widths, at most 8; default: all of ``net.bits``.

    Returns:
        Bit-width -> file.

    Raises:
        NetworkError, PrecisionError: not a `MultiQuantNet`, or one that is not in fp32.
        BitWidthError: not candidates of the network.
        CalibrationError: ranges that have seen no data.
        ExportError: more than 8 bits, a missing package, a wrong shape, a folder that cannot be
            written, or a file that gives an image another class.

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
    net = float32_network(net, "export_onnx")
    require_graph(net)
    chosen, shape = requested_bits(net, bits), requested_shape(net, input_shape)
    if chosen[-1] > LARGEST_BITS:
        raise ExportError(
            f"export_onnx: expected at most {LARGEST_BITS} bits, which is what ONNX's "
            f"QuantizeLinear can hold, got {list(chosen)}; choose fewer with bits=, or use "
            "export_qonnx"
        )
    images = smooth_images(shape)
    with staged(folder) as staging:
        for bit in chosen:
            subnet = extract_subnet(net, bit).cpu()
            model = to_onnx(subnet, images)
            verify_onnx(model, subnet, images)
            (staging / _file_name(bit)).write_bytes(model.SerializeToString())
    return {bit: Path(folder) / _file_name(bit) for bit in chosen}


def _file_name(bits: int) -> str:
    return f"model_{bits}b_qcdq.onnx"
