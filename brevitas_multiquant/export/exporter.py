"""Brevitas's exporters, quiet and at settings that the readers of their files understand."""

import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brevitas_multiquant.core.copying import copied
from brevitas_multiquant.core.output_structure import ONE_TENSOR
from brevitas_multiquant.export.forms import own_forms
from brevitas_multiquant.nn.subnet import Subnet

OPSET_VERSION = 13
"""FINN and qonnx read this operator set."""

IR_VERSION = 10
"""onnxruntime reads this file version; onnx 1.23 would write one that it refuses."""


@contextmanager
def readable_ir_version() -> Iterator[None]:
    """New models, those that qonnx makes of single nodes included, get `IR_VERSION` inside.

    qonnx leaves the version to onnx, whose newest release is ahead of onnxruntime.
    """
    import onnx

    before = onnx.IR_VERSION
    onnx.IR_VERSION = IR_VERSION  # type: ignore[assignment]
    try:
        yield
    finally:
        onnx.IR_VERSION = before


@contextmanager
def _unchecked_passes() -> Iterator[None]:
    """Inside, torch does not check its own graph after each of its passes.

    The check takes time quadratic in the number of nodes, a tenth of the export of a ResNet-50;
    the file itself is executed and compared.
    """
    with _replaced(torch._C, "_jit_pass_lint"):
        yield


@contextmanager
def _unprinted_graphs() -> Iterator[None]:
    """Inside, torch does not print its graph, of tens of kilobytes, where an export fails."""
    with _replaced(torch._C, "_jit_onnx_log"):
        yield


@contextmanager
def _unchecked_unpooling() -> Iterator[None]:
    """Inside, torch does not check sizes of unpooling: in a trace they are tensors, no numbers."""
    with _replaced(F, "_check_unpool_output_size"):
        yield


@contextmanager
def _replaced(module: Any, name: str) -> Iterator[None]:
    """Inside, a function of torch's does nothing, if this release has it."""
    before = getattr(module, name, None)
    if before is None:
        yield
        return
    setattr(module, name, _nothing)
    try:
        yield
    finally:
        setattr(module, name, before)


def _nothing(*_: Any) -> None:
    pass


@contextmanager
def quiet() -> Iterator[None]:
    """Warnings, log lines and prints of the exporters are dropped inside; errors are not."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def run_exporter(exporter: Callable[..., Any], module: nn.Module, images: Tensor) -> Any:
    """The ONNX model that a Brevitas exporter makes of a copy of ``module``.

    The default path through ``torch.export`` merges quantizers, which FINN cannot take apart; a
    copy of the modules, because an exporter that fails leaves its model in export mode.

    Args:
        exporter: of ``brevitas.export``.
        module: a subnet, or one operation of it; not changed.
        images: what it reads, on the CPU; the file has this shape.
    """
    import onnx

    twin, names = copy_of_modules(module), ["logits"]
    if isinstance(twin, Subnet) and not twin.structure.is_one_tensor:
        names = list(twin.structure.names)
        twin.structure = ONE_TENSOR  # a graph has outputs side by side
    with ExitStack() as stack:
        for context in (quiet, _unchecked_passes, _unprinted_graphs, _unchecked_unpooling):
            stack.enter_context(context())
        stack.enter_context(own_forms(OPSET_VERSION))
        path = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "model.onnx"
        exporter(
            twin,
            args=images,
            export_path=str(path),
            dynamo=False,
            opset_version=OPSET_VERSION,
            input_names=["input"],
            output_names=names,
        )
        model = onnx.load(path)
    model.ir_version = IR_VERSION
    _drop_static_inputs(model.graph)
    return model


def copy_of_modules(
    module: nn.Module, replacements: Mapping[nn.Module, nn.Module] | None = None
) -> nn.Module:
    """Other modules that hold the same tensors: an exporter reads them and changes none.

    Args:
        module: not changed.
        replacements: module in it -> what stands in its place in the copy.
    """
    kept: dict[int, Any] = {id(t): t for t in (*module.parameters(), *module.buffers())}
    kept |= {id(old): new for old, new in (replacements or {}).items()}
    return copied(module, kept)


def _drop_static_inputs(graph: Any) -> None:
    """Parameters that are listed as inputs, so that the image is the only one."""
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in constants]
    del graph.input[:]
    graph.input.extend(inputs)
