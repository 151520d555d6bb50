"""The verified file of integers of one bit-width, and what is said of it."""

from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from brevitas_multiquant.core.precision import described
from brevitas_multiquant.errors import ExportError
from brevitas_multiquant.export.onnx.integer.compare import Agreement, compare
from brevitas_multiquant.export.onnx.integer.halved import with_bytes
from brevitas_multiquant.export.onnx.integer.optimized import Kernels, kernels_of
from brevitas_multiquant.export.onnx.integer.processors import Processor
from brevitas_multiquant.export.onnx.integer.walk import Rewritten, to_integer
from brevitas_multiquant.export.onnx.qcdq import batches_of, codes_of, to_onnx
from brevitas_multiquant.export.part_ends import MERGE, STEM, ends_of
from brevitas_multiquant.export.verify import quantizer_order, weights_quantized_once
from brevitas_multiquant.nn.subnet import Subnet

SAME_CLASS = 0.995
"""Part of a user's images that has to get the class of torch."""


def integer_model(
    subnet: Subnet,
    sample: Tensor,
    given: Tensor | None,
    samples: Tensor,
    processor: Processor = "any",
) -> tuple[Any, dict[str, Any]]:
    """The model that onnxruntime runs on integers.

    Args:
        subnet: of `brevitas_multiquant.extract_subnet`, on the CPU; not changed.
        sample: (N, C, H, W); the model has this shape.
        given: images of a user, to compare on.
        samples: images to compare on where there are no others.
        processor: that runs it; the file is compared on this one.

    Returns:
        An ``onnx.ModelProto``, and its entry in the report.

    Raises:
        ExportError: no layer multiplies integers, or the model is not the network.
    """
    written, halved = with_bytes(subnet)
    exact = to_onnx(written, sample)
    file = to_integer(exact, processor)
    kernels = kernels_of(file.model)
    if not kernels.integer_layers:
        raise ExportError(_no_integers(subnet, file))
    paths = quantizer_order(written, sample)
    codes = {p: file.codes[name] for p, name in zip(paths, codes_of(exact.graph), strict=True)}
    images = samples if given is None else given
    with weights_quantized_once(written):
        agreement = compare(
            *(file, codes, _ends(exact, file), written, subnet),
            partial(batches_of, images, len(sample)),
        )
    if given is not None and agreement.same_class < SAME_CLASS * agreement.images:
        raise ExportError(_other_classes(subnet, agreement))
    layers = _layer_names(written, sample, exact.graph)
    entry = _entry(kernels, file, layers, halved, agreement)
    return file.model, {"processor": processor, **entry}


def _entry(
    kernels: Kernels,
    file: Rewritten,
    layers: dict[str, str],
    halved: list[str],
    agreement: Agreement,
) -> dict[str, Any]:
    return {
        "integer_layers": kernels.integer_layers,
        "float_convolutions": kernels.float_convolutions,
        "float_layers": {layers.get(node, node): why for node, why in file.left.items()},
        "kernels": kernels.nodes,
        "halved_weights": halved,
        "compared": asdict(agreement),
    }


def _ends(exact: Any, file: Rewritten) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What stem and merge give, where the file has these tensors as they were."""
    made = {name for node in file.model.graph.node for name in node.output}
    found = (ends_of(exact.graph, part) for part in (STEM, MERGE))
    names = (tuple(node.output[0] for node in nodes) for nodes in found)
    stem, merge = (
        each if all(name in made and name not in file.codes for name in each) else ()
        for each in names
    )
    return stem, merge


def _layer_names(subnet: Subnet, sample: Tensor, graph: Any) -> dict[str, str]:
    """The node of a layer -> its module path: the exporter keeps the order of execution."""
    ran: list[str] = []
    kinds = (nn.Conv1d, nn.Conv2d, nn.Linear)
    hooks = [
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
        for name, module in subnet.named_modules()
        if isinstance(module, kinds)
    ]
    with torch.no_grad():
        subnet(sample)
    for hook in hooks:
        hook.remove()
    nodes = [node.name for node in graph.node if node.op_type in ("Conv", "MatMul", "Gemm")]
    return dict(zip(nodes, ran, strict=True)) if len(nodes) == len(ran) else {}


def _no_integers(subnet: Subnet, file: Rewritten) -> str:
    reasons = sorted(set(file.left.values()))
    return (
        f"export at {described(subnet.setting)}: expected layers with integers on both sides, "
        f"which onnxruntime can run as integers, got none: {'; '.join(reasons) or 'no layer'}. "
        'No file was written. Make the network with profile="finn", in which all that is added or '
        "averaged is quantized, or leave integer=True out"
    )


def _other_classes(subnet: Subnet, agreement: Agreement) -> str:
    other = agreement.images - agreement.same_class
    return (
        f"export at {described(subnet.setting)}: expected torch's class for at least "
        f"{SAME_CLASS:.1%} of the images, got another one for {other} of {agreement.images} "
        f"(largest difference of logits {agreement.largest_logit_difference:.3g} of "
        f"{agreement.largest_logit:.3g}); no file was written. Train the network first if its "
        "logits are nearly equal, or leave integer=True out, which gives the codes of torch"
    )
