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
from torch import Tensor

from brevitas_multiquant.core.precision import activation_bits, described
from brevitas_multiquant.errors import ExportError
from brevitas_multiquant.export.part_values import hooked, in_order_of, made_by, put_in
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
        stem: names of what the stem makes; none where the stem is empty.
        codes: quantizer's module path -> name of its codes.
        outputs: names of the outputs: the logits of a classifier.
        merge: names of what the branches' outputs became; none where one branch runs.
    """

    run: Callable[[np.ndarray], dict[str, np.ndarray]]
    stem: tuple[str, ...]
    codes: dict[str, str]
    outputs: tuple[str, ...]
    merge: tuple[str, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """What was compared on one batch of images, and how much of it differs.

    Args:
        quantizers: activation quantizers compared.
        codes: codes compared.
        flipped_codes: codes that differ given the same stem output; all are rounding ties.
        stem_difference: largest difference of the stem's output.
        logit_difference: largest difference of the outputs given the same stem output.
        end_to_end_flipped_codes: codes that differ from the image on.
        end_to_end_logit_difference: largest difference of the outputs from the image on.
        end_to_end_other_classes: images that get another class from the image on, of a classifier.
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
    free, free_codes = _run(subnet, images)
    where = f"export at {described(subnet.setting)}"
    stem = _stem_of(graph, tensors, subnet, images)
    stem_difference = _check_stem(where, stem, subnet, images) if stem else 0.0
    expected = {name: _tensor(tensors[tensor]) for name, tensor in graph.codes.items()}
    if near is None:
        near = tie_tolerance(max(activation_bits(subnet.setting)))
    forced = _Forced(expected, near)
    with made_by(subnet.merge) as merged:
        outputs, _ = _run(subnet, images, stem, forced)
    _check_codes(where, graph, forced, allow_ties or bool(subnet.inexact))
    own = [_tensor(tensors[name]) for name in graph.merge]
    _check_merge(where, in_order_of(merged, own), merged if own else [])
    actual = [_tensor(tensors[name]) for name in graph.outputs]
    names = ["logits"] if subnet.structure.is_one_tensor else subnet.structure.names
    differences = [_check_output(where, *each) for each in zip(names, actual, outputs, strict=True)]
    return Comparison(
        quantizers=len(expected),
        codes=sum(codes.numel() for codes in expected.values()),
        flipped_codes=sum(forced.flips.values()),
        stem_difference=stem_difference,
        logit_difference=max(differences),
        end_to_end_flipped_codes=sum(
            int((codes != free_codes[name]).sum()) for name, codes in expected.items()
        ),
        end_to_end_logit_difference=max(
            _largest(ours - theirs) for ours, theirs in zip(actual, free, strict=True)
        ),
        end_to_end_other_classes=sum(map(_other_classes, actual, free)),
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
    subnet: Subnet,
    images: Tensor,
    stem: tuple[Tensor, ...] = (),
    forced: _Forced | None = None,
) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Outputs and codes by quantizer, with what the stem makes and the codes replaced if given."""
    codes: dict[str, Tensor] = {}
    with ExitStack() as hooks, torch.no_grad():
        for name, module in subnet.named_modules():
            if isinstance(module, QuantIdentity):
                hooks.enter_context(hooked(module, _record(name, codes, forced)))
        if stem:
            hooks.enter_context(hooked(subnet.stem, partial(put_in, stem)))
        return subnet.structure.tensors(subnet(images)), codes


def _record(name: str, codes: dict[str, Tensor], forced: _Forced | None) -> Callable[..., Any]:
    def hook(module: Any, inputs: tuple[Tensor], output: Any) -> Tensor | None:
        codes[name] = getattr(output, "value", output)
        threshold = 1.0 if module.act_quant.rounding_mode == "FLOOR" else 0.5
        return None if forced is None else forced(name, inputs[0], codes[name], threshold)

    return hook


def _stem_of(
    graph: Graph, tensors: dict[str, np.ndarray], subnet: Subnet, images: Tensor
) -> tuple[Tensor, ...]:
    """What a file's stem makes, in the order in which the network's does."""
    if not graph.stem:
        return ()
    with torch.no_grad(), made_by(subnet.stem) as expected:
        subnet.stem(images)
    return tuple(in_order_of(expected, [_tensor(tensors[name]) for name in graph.stem]))


def _check_stem(where: str, actual: tuple[Tensor, ...], subnet: Subnet, images: Tensor) -> float:
    with torch.no_grad(), made_by(subnet.stem) as expected:
        subnet.stem(images)
    largest = 0.0
    for ours, theirs in zip(actual, expected, strict=True):
        difference = _largest(ours - theirs)
        if not difference <= STEM_TOLERANCE * _largest(theirs):
            raise ExportError(
                f"{where}: expected the stem's output within {STEM_TOLERANCE:g} of torch's, got a "
                f"difference of {difference:.3g}; no file was written. Report the model: its stem "
                "does not export"
            )
        largest = max(largest, difference)
    return largest


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


def _check_merge(where: str, actual: list[Tensor], expected: list[Tensor]) -> None:
    for ours, theirs in zip(actual, expected, strict=True):
        difference = _largest(ours - theirs)
        if not difference <= LOGIT_TOLERANCE * _largest(theirs):
            raise ExportError(
                f"{where}: expected the merge of the branches within {LOGIT_TOLERANCE:g} of "
                f"torch's, got a difference of {difference:.3g} of {_largest(theirs):.3g} with "
                "identical codes; no file was written. The merge, or an operation between it and "
                "the last quantizer of a branch, does not export: report the model"
            )


def _check_output(where: str, name: str, actual: Tensor, expected: Tensor) -> float:
    difference = _largest(actual - expected)
    if not difference <= LOGIT_TOLERANCE * _largest(expected):
        raise ExportError(
            f"{where}: expected {name} within {LOGIT_TOLERANCE:g} of torch's, got a difference of "
            f"{difference:.3g} of {_largest(expected):.3g} with identical codes; no file was "
            "written. An operation of the head does not export: report the model"
        )
    check_classes(where, actual, expected)
    return difference


def check_classes(where: str, actual: Tensor, logits: Tensor) -> None:
    """Check that each image gets the same class, where an output is that of a classifier.

    Args:
        where: start of the error.
        actual: an output of the file; logits are (N, classes).
        logits: the same of torch.

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
    return int((actual.argmax(-1) != logits.argmax(-1)).sum()) if actual.dim() == 2 else 0


def _largest(values: Tensor) -> float:
    return float(values.abs().max()) if values.numel() else 0.0


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))
