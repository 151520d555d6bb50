"""An exported graph against the network in torch: codes, logits and the class.

Two questions are asked of a QONNX file, because a float stem has no unique value: executors add
its terms in different orders.

* Stem: is the output close to torch's, within `STEM_TOLERANCE` of its largest value?
* Body and head: given *exactly* the stem output that the file computed, has torch the same codes
  after every quantizer, and the same logits within `LOGIT_TOLERANCE` of the largest?
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from brevitas.nn import QuantIdentity
from brevitas.nn.quant_layer import QuantWeightBiasInputOutputLayer as QuantWBIOL
from torch import Tensor, nn

from brevitas_multiquant.core.precision import activation_bits, described
from brevitas_multiquant.errors import ExportError
from brevitas_multiquant.nn.subnet import Subnet

STEM_TOLERANCE = 1e-5
"""A sum of n fp32 terms is uncertain by about sqrt(n) 6e-8; stems have n up to some hundreds."""

LOGIT_TOLERANCE = 1e-5
"""Pooling and classifier are sums of up to some thousands of fp32 terms, rounded the same way."""

TIE_TOLERANCE = 1e-3
"""Codes from a rounding threshold within which float rounding may decide; a code is 1."""

TIE_BITS = 8
"""Up to here it is `TIE_TOLERANCE`."""


def tie_tolerance(bits: int) -> float:
    """`TIE_TOLERANCE`, as wide a part of the range for the finer codes above `TIE_BITS`.

    Example:
        >>> tie_tolerance(4) == tie_tolerance(8) == TIE_TOLERANCE, tie_tolerance(10) > TIE_TOLERANCE
        (True, True)
    """
    return TIE_TOLERANCE * 2 ** max(0, bits - TIE_BITS)


@dataclass(frozen=True)
class Graph:
    """An exported file's execution, and where the network's tensors are in it.

    Args:
        run: images -> every tensor by name.
        stem: name of the stem's output; None where the stem is empty.
        codes: quantizer's module path -> name of its codes.
        logits: name of the output.
        merge: name of what the branches' outputs became; None where one branch runs.
    """

    run: Callable[[np.ndarray], dict[str, np.ndarray]]
    stem: str | None
    codes: dict[str, str]
    logits: str
    merge: str | None = None


@dataclass(frozen=True)
class Comparison:
    """What was compared on one batch of images, and how much of it differs.

    Args:
        quantizers: activation quantizers compared.
        codes: codes compared.
        flipped_codes: codes that differ given the same stem output; all are rounding ties.
        stem_difference: largest difference of the stem's output.
        logit_difference: largest difference of the logits given the same stem output.
        end_to_end_flipped_codes: codes that differ from the image on.
        end_to_end_logit_difference: largest difference of the logits from the image on.
        end_to_end_other_classes: images that get another class from the image on.
    """

    quantizers: int
    codes: int
    flipped_codes: int
    stem_difference: float
    logit_difference: float
    end_to_end_flipped_codes: int
    end_to_end_logit_difference: float
    end_to_end_other_classes: int


def verify(
    graph: Graph,
    subnet: Subnet,
    images: Tensor,
    allow_ties: bool = False,
    near: float | None = None,
) -> Comparison:
    """Compare a file with its network on ``images``.

    Args:
        graph: the file.
        subnet: the network of the bit-width.
        images: (N, C, H, W).
        allow_ties: accept codes that differ by one where the value lies near a rounding threshold;
            where a layer's sums may pass what fp32 holds (``subnet.inexact``) they are always
            accepted.
        near: how near, in codes; default: `tie_tolerance`.

    Raises:
        ExportError: the stem, a code, the logits or the class differ; names the tensor.
    """
    tensors = graph.run(images.numpy())
    free_logits, free_codes = _run(subnet, images)
    where = f"export at {described(subnet.setting)}"
    stem_difference = 0.0
    stem = None
    if graph.stem is not None:
        stem = _tensor(tensors[graph.stem])
        stem_difference = _check_stem(where, stem, subnet, images)
    expected = {name: _tensor(tensors[tensor]) for name, tensor in graph.codes.items()}
    if near is None:
        near = tie_tolerance(max(activation_bits(subnet.setting)))
    forced = _Forced(expected, near)
    with _outputs_of(subnet.merge) as merged:
        logits, _ = _run(subnet, images, stem, forced)
    _check_codes(where, graph, forced, allow_ties or bool(subnet.inexact))
    if graph.merge is not None:
        _check_merge(where, _tensor(tensors[graph.merge]), merged[0])
    actual = _tensor(tensors[graph.logits])
    difference = _check_logits(where, actual, logits)
    return Comparison(
        quantizers=len(expected),
        codes=sum(codes.numel() for codes in expected.values()),
        flipped_codes=sum(forced.flips.values()),
        stem_difference=stem_difference,
        logit_difference=difference,
        end_to_end_flipped_codes=sum(
            int((codes != free_codes[name]).sum()) for name, codes in expected.items()
        ),
        end_to_end_logit_difference=_largest(actual - free_logits),
        end_to_end_other_classes=_other_classes(actual, free_logits),
    )


@contextmanager
def weights_quantized_once(subnet: Subnet) -> Iterator[None]:
    """Inside the block every layer keeps its quantized weights: they are constants."""
    layers: list[Any] = [module for module in subnet.modules() if isinstance(module, QuantWBIOL)]
    for layer in layers:
        layer.quant_weight = partial(_constant, layer.quant_weight())
    try:
        yield
    finally:
        for layer in layers:
            del layer.quant_weight


def _constant(value: Any, _quant_input: Any = None) -> Any:
    return value


def quantizer_order(subnet: Subnet, images: Tensor) -> list[str]:
    """Module paths of the activation quantizers, in the order in which they run.

    Args:
        subnet: the network of one bit-width.
        images: (N, C, H, W).
    """
    return list(_run(subnet, images)[1])


def last_node(graph: Any, part: str) -> Any:
    """The node of an ONNX graph whose output is that of a part of the network.

    Args:
        graph: as torch's exporter wrote it: nodes are called after their modules.
        part: ``"stem"`` or ``"merge"``.

    Returns:
        None where the part has no node of its own.
    """
    inside = [node for node in graph.node if node.name.startswith(f"/{part}/")]
    ours = {node.name for node in inside}
    read = {name for node in graph.node if node.name not in ours for name in node.input}
    return next((node for node in reversed(inside) if node.output[0] in read), None)


class _Forced:
    """Counts the codes in which torch differs from a file, then goes on with the file's.

    So that each difference is counted where it arises and none is the consequence of another.
    """

    def __init__(self, expected: dict[str, Tensor], tolerance: float) -> None:
        self.expected = expected
        self.tolerance = tolerance
        self.flips: dict[str, int] = {}
        self.ties: dict[str, int] = {}

    def __call__(self, name: str, values: Tensor, codes: Tensor, threshold: float) -> Tensor:
        expected = self.expected[name]
        differs = codes != expected
        self.flips[name] = int(differs.sum())
        if self.flips[name]:
            between = torch.minimum(codes, expected) + threshold
            near = (values - between).abs() <= self.tolerance
            self.ties[name] = int((differs & near & ((codes - expected).abs() == 1)).sum())
        return expected


def _run(
    subnet: Subnet, images: Tensor, stem: Tensor | None = None, forced: _Forced | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits and codes by quantizer, with the stem's output and the codes replaced if given."""
    codes: dict[str, Tensor] = {}
    with ExitStack() as hooks, torch.no_grad():
        for name, module in subnet.named_modules():
            if isinstance(module, QuantIdentity):
                hooks.enter_context(_hook(module, _record(name, codes, forced)))
        if stem is not None:
            hooks.enter_context(_hook(subnet.stem, lambda *_: stem))
        return subnet(images), codes


@contextmanager
def _hook(module: nn.Module, hook: Callable[..., Any]) -> Iterator[None]:
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _outputs_of(module: nn.Module) -> Iterator[list[Tensor]]:
    """What a module gives inside the block."""
    outputs: list[Tensor] = []
    with _hook(module, lambda _module, _inputs, output: outputs.append(output)):
        yield outputs


def _record(name: str, codes: dict[str, Tensor], forced: _Forced | None) -> Callable[..., Any]:
    def hook(module: Any, inputs: tuple[Tensor], output: Any) -> Tensor | None:
        codes[name] = getattr(output, "value", output)
        threshold = 1.0 if module.act_quant.rounding_mode == "FLOOR" else 0.5
        return None if forced is None else forced(name, inputs[0], codes[name], threshold)

    return hook


def _check_stem(where: str, actual: Tensor, subnet: Subnet, images: Tensor) -> float:
    with torch.no_grad():
        expected = subnet.stem(images)
    difference = _largest(actual - expected)
    if not difference <= STEM_TOLERANCE * _largest(expected):
        raise ExportError(
            f"{where}: expected the stem's output within {STEM_TOLERANCE:g} of torch's, got a "
            f"difference of {difference:.3g}; no file was written. Report the model: its stem does "
            "not export"
        )
    return difference


def _check_codes(where: str, graph: Graph, forced: _Forced, allow_ties: bool) -> None:
    accepted = forced.ties if allow_ties else {}
    for name, flips in forced.flips.items():
        if flips > accepted.get(name, 0):
            total = forced.expected[name].numel()
            ties = forced.ties[name]
            raise ExportError(
                f"{where}: expected identical codes after {name} (tensor {graph.codes[name]}), got "
                f"{flips} of {total} that differ, {ties} of them next to a rounding threshold; no "
                f"file was written. {_advice(flips == ties)}"
            )


def _advice(only_ties: bool) -> str:
    if only_ties:
        return (
            "Float sums or functions in front of this quantizer (layer norm, pooling, sigmoid) "
            "round differently in each executor: pass allow_ties=True to accept such codes, or use "
            "batch norm and ReLU there"
        )
    return "An operation in front of this quantizer does not export: report the model"


def _check_merge(where: str, actual: Tensor, expected: Tensor) -> None:
    difference = _largest(actual - expected)
    if not difference <= LOGIT_TOLERANCE * _largest(expected):
        raise ExportError(
            f"{where}: expected the merge of the branches within {LOGIT_TOLERANCE:g} of torch's, "
            f"got a difference of {difference:.3g} of {_largest(expected):.3g} with identical "
            "codes; no file was written. The merge, or an operation between it and the last "
            "quantizer of a branch, does not export: report the model"
        )


def _check_logits(where: str, actual: Tensor, logits: Tensor) -> float:
    difference = _largest(actual - logits)
    if not difference <= LOGIT_TOLERANCE * _largest(logits):
        raise ExportError(
            f"{where}: expected logits within {LOGIT_TOLERANCE:g} of torch's, got a difference of "
            f"{difference:.3g} of {_largest(logits):.3g} with identical codes; no file was "
            "written. An operation of the head does not export: report the model"
        )
    check_classes(where, actual, logits)
    return difference


def check_classes(where: str, actual: Tensor, logits: Tensor) -> None:
    """Check that each image gets the same class.

    Args:
        where: start of the error.
        actual: logits (N, classes) of the file.
        logits: logits (N, classes) of torch.

    Raises:
        ExportError: an image gets another class.
    """
    wrong = _other_classes(actual, logits)
    if wrong:
        raise ExportError(
            f"{where}: expected the class that torch gives, got another one for {wrong} of "
            f"{len(logits)} images (largest difference of logits {_largest(actual - logits):.3g}); "
            "no file was written. Train the network first if its logits are nearly equal"
        )


def _other_classes(actual: Tensor, logits: Tensor) -> int:
    return int((actual.argmax(-1) != logits.argmax(-1)).sum())


def _largest(values: Tensor) -> float:
    return float(values.abs().max()) if values.numel() else 0.0


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))
