"""What cannot be traced: modules kept as they are, and models cut by the order of execution.

Control flow that depends on the data leaves no graph. A module of a traced model that has it stays
one node (`Trace.opaque`); the layers in it are replaced in place, each with a quantizer of its own.
Where the model's own forward has it, `graph_by_execution` takes the first convolution and the
classifier out, and makes one such module of the rest.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from brevitas_multiquant.quant.layers import WEIGHTED
from brevitas_multiquant.rewrite.graph.kinds import LAYERS, is_norm

PRODUCTS = frozenset(
    {
        torch.matmul,
        torch.bmm,
        torch.mm,
        torch.einsum,
        torch.baddbmm,
        torch.addmm,
        Tensor.matmul,
        Tensor.__matmul__,
        Tensor.bmm,
        Tensor.mm,
        F.scaled_dot_product_attention,
        F.multi_head_attention_forward,
    }
)
FUNCTIONAL_LAYERS = frozenset(
    {
        F.conv1d,
        F.conv2d,
        F.conv3d,
        F.conv_transpose1d,
        F.conv_transpose2d,
        F.conv_transpose3d,
        F.linear,
        F.bilinear,
    }
)


class Watch(TorchFunctionMode):
    """Notes what an opaque module does that the rewrite would have to see: ``findings``.

    Args:
        module: the module that runs; the weights of its own layers are no finding.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        layers = (m for m in module.modules() if isinstance(m, LAYERS))
        self._weights = {id(parameter) for layer in layers for parameter in layer.parameters()}
        self.findings: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function of torch, and note it if it is one of those."""
        kwargs = kwargs or {}
        called = getattr(func, "__name__", str(func))
        if func in PRODUCTS:
            self.findings.append(f"multiplies matrices ({called})")
        elif func in FUNCTIONAL_LAYERS:
            weight = args[1] if len(args) > 1 else kwargs.get("weight")
            if isinstance(weight, nn.Parameter) and id(weight) not in self._weights:
                self.findings.append(f"calls {called} on a parameter that no layer holds")
        return func(*args, **kwargs)

    def grouped(self) -> list[str]:
        """The findings, each once, with how often it was made."""
        return [f"{finding}, {times} times" for finding, times in Counter(self.findings).items()]


@dataclass(eq=False)
class _Call:
    """One call of a layer or norm: names, what it read and what it gave."""

    name: str
    module: nn.Module
    read: Any
    gave: Any


class _Record(TorchFunctionMode):
    """Calls of layers and norms in order, and whether anything else looks at the image."""

    def __init__(self, image: Tensor) -> None:
        super().__init__()
        self.image = image
        self.calls: list[_Call] = []
        self.looked_at = False
        self._depth = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function of torch, and note if it reads the image outside a watched module."""
        kwargs = kwargs or {}
        reads = any(value is self.image for value in (*args, *kwargs.values()))
        self.looked_at |= reads and self._depth == 0
        return func(*args, **kwargs)

    def watch(self, name: str, module: nn.Module) -> list[RemovableHandle]:
        """Record the calls of one module."""

        def enter(_module: nn.Module, _inputs: Any) -> None:
            self._depth += 1

        def leave(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            self._depth -= 1
            self.calls.append(_Call(name, module, inputs[0] if inputs else None, output))

        return [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]


class CannotCutError(Exception):
    """Why a model cannot be cut by the order of execution; becomes part of a `TraceError`."""


def graph_by_execution(model: nn.Module, image: Tensor) -> tuple[fx.GraphModule, str]:
    """Stem, everything else as one module, classifier: a graph of a model that cannot be traced.

    Args:
        model: in evaluation mode; its first convolution, the norm after it and its classifier are
            replaced by identities.
        image: what to run it on, (1, C, H, W).

    Returns:
        The graph, and the name of the module that holds everything else.

    Raises:
        CannotCutError: the first convolution is not the only reader of the image, or the last
            layer's output is not the model's.
    """
    record = _Record(image)
    watched = {n: m for n, m in model.named_modules() if isinstance(m, WEIGHTED) or is_norm(m)}
    hooks = [hook for name, module in watched.items() for hook in record.watch(name, module)]
    try:
        with torch.no_grad(), record:
            output = model(image)
    finally:
        for hook in hooks:
            hook.remove()
    stem, classifier = _cut(record, output)
    root = nn.Module()
    for call in (*stem, classifier):
        _put(root, call.name, call.module)
        _put(model, call.name, nn.Identity())
    rest = "body"
    while hasattr(root, rest):
        rest += "_"
    root.add_module(rest, model)
    graph = fx.Graph()
    value = graph.placeholder("x")
    for name in (*(call.name for call in stem), rest, classifier.name):
        value = graph.call_module(name, (value,))
    graph.output(value)
    return fx.GraphModule(root, graph, type(model).__name__), rest


def _cut(record: _Record, output: Any) -> tuple[list[_Call], _Call]:
    """The calls that make the stem, and the classifier's."""
    layers = [call for call in record.calls if isinstance(call.module, WEIGHTED)]
    if len(layers) < 2:
        raise CannotCutError("it runs fewer than two layers")
    first, last = layers[0], layers[-1]
    readers = [call for call in record.calls if call.read is record.image]
    if readers != [first] or record.looked_at:
        raise CannotCutError("something else than its first convolution reads the image")
    if last.gave is not output:
        raise CannotCutError("it does not return its last layer's output as it is")
    following = record.calls[record.calls.index(first) + 1]
    owns_norm = following.read is first.gave and not isinstance(following.module, WEIGHTED)
    stem = [first, following] if owns_norm else [first]
    names = [call.name for call in record.calls]
    again = [call.name for call in (*stem, last) if names.count(call.name) > 1]
    if again:
        raise CannotCutError(f"{again[0]} runs more than once")
    return stem, last


def _put(root: nn.Module, name: str, module: nn.Module) -> None:
    *path, leaf = name.split(".")
    for part in path:
        if not hasattr(root, part):
            root.add_module(part, nn.Module())
        root = getattr(root, part)
    setattr(root, leaf, module)
