"""Which operations of a network cannot be exported: each is tried on its own."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from brevitas.nn import QuantIdentity
from brevitas.nn.quant_layer import QuantWeightBiasInputOutputLayer as QuantWBIOL
from torch import Tensor, fx, nn

from brevitas_multiquant.core.output_structure import Value, tensors_of
from brevitas_multiquant.core.precision import described
from brevitas_multiquant.errors import ExportError, MultiQuantError
from brevitas_multiquant.export.exporter import OPSET_VERSION
from brevitas_multiquant.nn.subnet import Subnet
from brevitas_multiquant.rewrite.graph.cause import first_line
from brevitas_multiquant.rewrite.graph.decide import call_node

Attempt = Callable[[nn.Module, Tensor], Any]
"""Exports a module that reads one tensor, runs the file on that tensor, gives the array."""


@contextmanager
def operations_named(subnet: Subnet, images: Tensor, attempt: Attempt) -> Iterator[None]:
    """An error of an exporter or executor inside becomes one that names the operations at fault.

    Any other error stays as it is: only where an operation fails on its own, too, is it blamed.

    Args:
        subnet: the network that is exported inside.
        images: (N, C, H, W).
        attempt: what is done inside, of one operation.

    Raises:
        ExportError: operations without a form in ONNX; lists them all.
    """
    try:
        yield
    except MultiQuantError:
        raise
    except Exception as error:
        found = _failures(subnet, images, attempt)
        if not found:
            raise
        lines = "".join(f"\n  - {where}: {reason}" for where, reason in found.items())
        raise ExportError(
            f"export at {described(subnet.setting)}: expected operations that ONNX has a form "
            f"for (operator set {OPSET_VERSION}, which FINN and qonnx read), got {len(found)} "
            f"without one:{lines}"
            "\nNo file was written. Write them in the model as operations that have one, such as "
            "convolutions, pooling with a fixed kernel, reshapes and arithmetic"
        ) from error


def _failures(subnet: Subnet, images: Tensor, attempt: Attempt) -> dict[str, str]:
    """Where -> why, of every operation that fails on its own."""
    failures: dict[str, str] = {}

    def run(prefix: str, part: Any, source: Value) -> Value:
        walk = _Walk(prefix, part)
        result: Value = walk.run(*tensors_of(source))
        for where, operation, tensor in walk.operations:
            expected = tuple(operation(tensor).shape)
            try:
                shape = attempt(operation, tensor).shape
            except Exception as error:  # whatever exporters and executors raise
                failures[where] = _reason(error)
                continue
            if shape != expected:
                failures[where] = f"its form gives a tensor of {shape} where torch gives {expected}"
        return result

    with torch.no_grad():
        features = run("stem", subnet.stem, images)
        outputs = [run(f"branches.{i}", part, features) for i, part in enumerate(subnet.branches)]
        run("head", subnet.head, subnet.merge(outputs))
    return failures


def _reason(error: Exception) -> str:
    """The first line of an error, without what torch asks its users to do."""
    line = first_line(error)
    for end in (" Please feel free", "  [Caused by"):
        line = line.partition(end)[0]
    return line


class _Walk(fx.Interpreter):
    """Runs a part and keeps its operations on tensors, each with what it read.

    Brevitas's layers are left out: its exporters have forms of them.
    """

    def __init__(self, prefix: str, part: Any) -> None:
        super().__init__(part)
        self.extra_traceback = False
        self._prefix = prefix
        self.operations: list[tuple[str, nn.Module, Tensor]] = []

    def run_node(self, n: fx.Node) -> Any:
        """Run one node."""
        result = super().run_node(n)
        if n.op.startswith("call") and isinstance(result, Tensor):
            arguments = self.fetch_args_kwargs_from_env(n)
            operation = _Operation(self.module, n, arguments)
            if operation.source is not None and not operation.is_quantized:
                self.operations.append((self._name(n), operation, operation.source))
        return result

    def _name(self, node: fx.Node) -> str:
        if node.op == "call_module":
            kind = type(self.fetch_attr(str(node.target))).__name__
            return f"{self._prefix}.{node.target} ({kind})"
        name = getattr(node.target, "__name__", str(node.target))
        return f"{name} in {self._prefix} (node {node.name})"


class _Operation(nn.Module):
    """One node as a module of the first tensor that it reads; the others are constants."""

    def __init__(self, part: Any, node: fx.Node, arguments: tuple[Any, Any]) -> None:
        super().__init__()
        self.called = part.get_submodule(str(node.target)) if node.op == "call_module" else None
        self._part, self._node, self._arguments = (part,), node, arguments
        tensors: list[Tensor] = []
        fx.node.map_aggregate(
            arguments, lambda value: tensors.append(value) if isinstance(value, Tensor) else value
        )
        self.source = tensors[0] if tensors else None

    @property
    def is_quantized(self) -> bool:
        """Whether it is, or holds, a layer of Brevitas's."""
        return any(isinstance(module, (QuantIdentity, QuantWBIOL)) for module in self.modules())

    def forward(self, x: Tensor) -> Tensor:
        """What the node gives for another first tensor."""
        args, kwargs = fx.node.map_aggregate(
            self._arguments, lambda value: x if value is self.source else value
        )
        if self.called is not None:
            return self.called(*args, **kwargs)  # type: ignore[no-any-return]
        return call_node(self._part[0], self._node, args, kwargs)  # type: ignore[no-any-return]
