"""Plain ONNX in QCDQ style (quantize, clip, dequantize), for onnxruntime."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from brevitas.nn import QuantIdentity
from brevitas.nn.quant_layer import QuantWeightBiasInputOutputLayer as QuantWBIOL
from torch import Tensor, nn

from brevitas_multiquant.core.power_of_two import integer_range
from brevitas_multiquant.core.precision import described
from brevitas_multiquant.errors import ExportError
from brevitas_multiquant.export.exporter import copy_of_modules, quiet, run_exporter
from brevitas_multiquant.export.part_ends import MERGE, STEM, ends_of
from brevitas_multiquant.export.qonnx.execute import session_of
from brevitas_multiquant.export.request import require_packages
from brevitas_multiquant.export.verify import (
    Graph,
    check_classes,
    quantizer_order,
    verify,
)
from brevitas_multiquant.nn.subnet import Subnet
from brevitas_multiquant.quant.geometry import geometry
from brevitas_multiquant.quant.plain import IntActConst, UintActConst
from brevitas_multiquant.quant.prepared import prepared

LARGEST_BITS = 8
"""ONNX's QuantizeLinear emits 8-bit integers."""

LOGIT_TOLERANCE = 1e-3
"""Of an image's largest logit: onnxruntime may fuse what it runs, and sums floats in its order."""


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

    return run_exporter(
        export_onnx_qcdq, _with_wide_weights(_with_known_quantizers(subnet)), images
    )


def attempt(operation: nn.Module, x: Tensor) -> Any:
    """Export and run one operation."""
    with quiet():
        from brevitas.export import export_onnx_qcdq

    session = session_of(run_exporter(export_onnx_qcdq, operation, x))
    return session.run(None, {value.name: x.numpy() for value in session.get_inputs()})[0]


def _with_known_quantizers(subnet: Subnet) -> Any:
    """A copy whose quantizers ONNX has: of two bits or more, that round to the nearest.

    ONNX's QuantizeLinear rounds to the nearest integer, ties to even: what a floor gives is an
    integer, where that is right always. Brevitas writes no clip to a single bit: there values
    above 1 are 1 before they are rounded, and 2 and 3 never arise.
    """
    known: dict[nn.Module, nn.Module] = {}
    for module in subnet.modules():
        if not isinstance(module, QuantIdentity):
            continue
        if module.act_quant.rounding_mode == "FLOOR":
            known[module] = nn.Sequential(_Floor(), _rounding(module))
        elif int(module.act_quant.bit_width()) == 1:
            known[module] = nn.Sequential(_AtMostOne(), _rounding(module, bits=2))
    return copy_of_modules(subnet, known)


def _with_wide_weights(subnet: Any) -> Any:
    """A copy in which integers of more than 8 bits are plain weights: whole numbers in fp32.

    The odd integers of 8-bit weights have 9 bits, which ONNX's quantized types at this operator set
    do not hold; products and sums of them are those of integers all the same.
    """
    wide = {
        module: _without_quantizer(module)
        for module in subnet.modules()
        if isinstance(module, QuantWBIOL) and int(module.weight_quant.bit_width()) > LARGEST_BITS
    }
    return copy_of_modules(subnet, wide)


def _without_quantizer(layer: Any) -> nn.Module:
    """The same layer, whose weights are not quantized again."""
    plain = type(layer)(**geometry(layer), bias=False, weight_quant=None)
    plain.is_same_padded_strided = getattr(layer, "is_same_padded_strided", False)
    plain.weight = layer.weight
    return plain.eval()  # type: ignore[no-any-return]


class _Floor(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.floor()


class _AtMostOne(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(max=1.0)


def _rounding(quantizer: Any, bits: int | None = None) -> nn.Module:
    """The same quantizer of scale 1, rounding to the nearest integer, or one of other bits."""
    bits, signed = bits or int(quantizer.act_quant.bit_width()), bool(quantizer.act_quant.is_signed)
    return prepared(
        QuantIdentity,
        act_quant=IntActConst if signed else UintActConst,
        bit_width=bits,
        scaling_init=float(integer_range(bits, signed)[1] + signed),
    ).eval()  # type: ignore[no-any-return]


def verify_onnx(model: Any, subnet: Subnet, images: Tensor) -> None:
    """Run a QCDQ model with onnxruntime and compare it with its network.

    A copy that gives its codes is run first, to tell which tensor differs where one does: codes
    identical given the stem's output, but where the value lies next to a rounding threshold. Then
    the model as it is: for every image torch's class, and logits within `LOGIT_TOLERANCE` of the
    largest. Where float rounding in the stem, or of float functions in the body, gives other codes
    from the image on, the model's logits have to be those of the copy instead.

    Args:
        model: of `to_onnx`.
        subnet: the network it was made from.
        images: (N, C, H, W), any number of the model's size.

    Raises:
        ExportError: they differ; names the tensor.
    """
    session, tapped = session_of(model), Tapped(model, quantizer_order(subnet, images[:1]))
    size = session.get_inputs()[0].shape[0]
    for batch in batches_of(images, size):
        outputs = session.run(None, {session.get_inputs()[0].name: batch.numpy()})
        tensors = tapped.run(batch.numpy())
        graph = replace(tapped.graph, run=partial(_given, tensors))
        comparison = verify(graph, subnet, batch, allow_ties=True)
        with torch.no_grad():
            expected = subnet.structure.tensors(subnet(batch))
        if comparison.end_to_end_flipped_codes:
            expected = tuple(torch.from_numpy(tensors[name]) for name in graph.outputs)
        where = f"export at {described(subnet.setting)}"
        for ours, theirs in zip(outputs, expected, strict=True):
            check_logits(where, torch.from_numpy(ours), theirs)


def check_logits(where: str, actual: Tensor, expected: Tensor) -> None:
    """Check the logits of each image, and its class.

    Args:
        where: start of the error.
        actual: logits (N, classes) of the file, or another output (N, ...).
        expected: the same of torch.

    Raises:
        ExportError: an image gets other logits or another class.
    """
    count = len(expected)
    difference = (actual - expected).view(count, -1).abs().amax(1)
    wrong = ~(difference <= LOGIT_TOLERANCE * expected.reshape(count, -1).abs().amax(1))
    if wrong.any():
        raise ExportError(
            f"{where}: expected logits within {LOGIT_TOLERANCE:g} of the largest, got other ones "
            f"for {int(wrong.sum())} of {len(wrong)} images (largest difference "
            f"{float(difference.max()):.3g} of {float(expected.abs().max()):.3g}) with identical "
            "codes; no file was written. onnxruntime runs the file in another way than its nodes "
            "say: report the model, or use export_qonnx"
        )
    check_classes(where, actual, expected)


def _given(tensors: dict[str, np.ndarray], _images: np.ndarray) -> dict[str, np.ndarray]:
    return tensors


def batches_of(images: Tensor, size: int) -> Iterator[Tensor]:
    """Images in batches of the size that a file has, the last one filled up with the first ones."""
    missing = -len(images) % size
    repeated = torch.cat([images] * -(-missing // len(images)))[:missing] if missing else images[:0]
    yield from torch.cat([images, repeated]).split(size)


class Tapped:
    """A copy of a model that gives the stem's output, the codes and the merge too."""

    def __init__(self, model: Any, paths: list[str]) -> None:
        twin = type(model)()
        twin.CopyFrom(model)
        outputs = tuple(value.name for value in twin.graph.output)
        codes = dict(zip(paths, codes_of(twin.graph), strict=True))
        # the stem may end in a quantizer: its codes are compared like all others
        stem, merge = (
            tuple(node.output[0] for node in ends_of(twin.graph, part)) for part in (STEM, MERGE)
        )
        stem, merge = (tuple(n for n in ends if n not in codes.values()) for ends in (stem, merge))
        self._wanted = list(dict.fromkeys([*outputs, *codes.values(), *stem, *merge]))
        self.graph = Graph(self.run, stem, codes, outputs, merge)
        for name in self._wanted[len(outputs) :]:
            twin.graph.output.add().name = name
        self._session = session_of(twin)

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Every tensor that is compared, by name."""
        feed = {self._session.get_inputs()[0].name: images}
        return dict(zip(self._wanted, self._session.run(self._wanted, feed), strict=True))


def codes_of(graph: Any) -> list[str]:
    """Outputs of the activation quantizers, in the order of execution."""
    constants = {tensor.name for tensor in graph.initializer}
    constants |= {node.output[0] for node in graph.node if node.op_type == "Constant"}
    integers: set[str] = set()
    codes = []
    for node in graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] not in constants:
            integers.add(node.output[0])
        elif node.input and node.input[0] in integers:
            if node.op_type == "DequantizeLinear":
                codes.append(node.output[0])
            else:  # the clip of fewer than 8 bits
                integers.add(node.output[0])
    return codes
