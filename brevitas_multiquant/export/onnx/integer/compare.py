"""A file of integers against the network in torch."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from brevitas_multiquant.errors import ExportError
from brevitas_multiquant.export.onnx.integer.values import Integers
from brevitas_multiquant.export.onnx.integer.walk import Rewritten
from brevitas_multiquant.export.onnx.qcdq import check_logits
from brevitas_multiquant.export.qonnx.execute import session_of
from brevitas_multiquant.export.verify import Comparison, Graph, verify
from brevitas_multiquant.nn.subnet import Subnet

NEAR = 0.02
"""Codes from a threshold within which a kernel may round otherwise: a bias is a whole number of the
steps of its layer's sums, which are at most a few hundredths of a code."""


@dataclass(frozen=True)
class Agreement:
    """From images to classes, a file and the network.

    Args:
        images: how many were compared.
        same_class: how many get the class that torch gives.
        largest_logit_difference: of all logits.
        largest_logit: the largest magnitude of one, by torch.
        codes: integers behind quantizers.
        other_codes: those that torch has otherwise, where torch goes on with the file's.
    """

    images: int
    same_class: int
    largest_logit_difference: float
    largest_logit: float
    codes: int
    other_codes: int


def compare(
    file: Rewritten,
    codes: dict[str, Integers],
    ends: tuple[tuple[str, ...], tuple[str, ...]],
    written: Subnet,
    subnet: Subnet,
    batches: Callable[[], Iterator[Tensor]],
) -> Agreement:
    """Check what each kernel does to the integers that it gets, then count what comes out.

    Args:
        file: of `to_integer`.
        codes: module path of a quantizer -> its integers in the file.
        ends: what stem and merge give, where these are float tensors of the file.
        written: the network whose integers are in the file.
        subnet: the network, whose weights may have a bit more.
        batches: of images, of the size of the file.

    Raises:
        ExportError: a kernel gives another integer than torch, further than `NEAR` from a
            threshold, or other logits for the same integers; names the tensor.
    """
    if len(subnet.structure.names) > 1:
        raise ExportError(
            "export_onnx: expected a network of one output for integer=True, got "
            f"{', '.join(subnet.structure.names)}; leave integer= out"
        )
    session, tapped = session_of(file.model), _Tapped(file.model, codes, ends)
    found: list[Comparison] = []
    logits: list[tuple[Tensor, Tensor]] = []
    for batch in batches():
        tensors = tapped.run(batch.numpy())
        run = partial(_given, tensors)
        graph = Graph(run, ends[0], tapped.names, (tapped.logits,), ends[1])
        found.append(verify(graph, written, batch, allow_ties=True, near=NEAR))
        (actual,) = session.run(None, {session.get_inputs()[0].name: batch.numpy()})
        check_logits("export", torch.from_numpy(actual), torch.from_numpy(tensors[tapped.logits]))
        with torch.no_grad():
            (expected,) = subnet.structure.tensors(subnet(batch))
        logits.append((torch.from_numpy(actual), expected))
    actual, expected = (torch.cat(side) for side in zip(*logits, strict=True))
    return Agreement(
        images=len(actual),
        same_class=int((actual.argmax(-1) == expected.argmax(-1)).sum()),
        largest_logit_difference=float((actual - expected).abs().max()),
        largest_logit=float(expected.abs().max()),
        codes=sum(one.codes for one in found),
        other_codes=sum(one.flipped_codes for one in found),
    )


def _given(tensors: dict[str, np.ndarray], _images: np.ndarray) -> dict[str, np.ndarray]:
    return tensors


class _Tapped:
    """A copy of a model that gives its integers too."""

    def __init__(
        self, model: Any, codes: dict[str, Integers], ends: tuple[tuple[str, ...], tuple[str, ...]]
    ) -> None:
        twin = type(model)()
        twin.CopyFrom(model)
        self.logits = twin.graph.output[0].name
        self.names = {path: f"codes of {path}" for path in codes}
        self._codes = codes
        bytes_ = [integers.name for integers in codes.values()]
        self._wanted = list(dict.fromkeys([self.logits, *bytes_, *ends[0], *ends[1]]))
        for name in self._wanted[1:]:
            twin.graph.output.add().name = name
        self._session = session_of(twin)

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Every tensor that is compared, by name."""
        feed = {self._session.get_inputs()[0].name: images}
        given = dict(zip(self._wanted, self._session.run(self._wanted, feed), strict=True))
        for path, integers in self._codes.items():
            values = given[integers.name].astype(np.float32) - integers.zero_point
            given[self.names[path]] = values
        return given
