"""Act 1, trace: the model's forward as a graph of its own layers.

Modules with control flow on data stay one node each, see `opaque`; the graph is cleaned up, see
`normalise`; the shape of every tensor is noted.
"""

from collections.abc import Collection, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.passes.shape_prop import _extract_tensor_metadata

from brevitas_multiquant.core.copying import deep_copy
from brevitas_multiquant.core.image_shapes import EXPECTED
from brevitas_multiquant.core.output_structure import ONE_TENSOR, OutputStructure
from brevitas_multiquant.errors import TraceError, UnsupportedModelError
from brevitas_multiquant.nn.traced_size import images_of_size
from brevitas_multiquant.quant.layers import WEIGHTED
from brevitas_multiquant.rewrite.graph.cause import cause_of, first_line
from brevitas_multiquant.rewrite.graph.decide import empty_image, quiet_fakes
from brevitas_multiquant.rewrite.graph.kinds import LAYERS, NORMS
from brevitas_multiquant.rewrite.graph.normalise import normalise
from brevitas_multiquant.rewrite.graph.opaque import CannotCutError, Watch, graph_by_execution
from brevitas_multiquant.rewrite.graph.pieces import taken_apart
from brevitas_multiquant.rewrite.graph.tracer import OUT_OF_MEMORY, Tracer, image_arguments


@dataclass
class Trace:
    """A traced model: a copy that shares its parameters, its graph, the shape of every tensor.

    Args:
        model: the copy with its graph.
        input_shape: (1, C, H, W).
        opaque: modules that stay one node since they cannot be traced -> why.
        layers: every convolution and linear layer of the model, whether it runs or not -> type.
        fixed: places in its author's code that took numbers from the size of the image.
        structure: how the tensors of the graph's output make up what the forward returns.
    """

    model: fx.GraphModule
    input_shape: tuple[int, ...]
    opaque: dict[str, str] = field(default_factory=dict)
    layers: dict[str, str] = field(default_factory=dict)
    fixed: list[str] = field(default_factory=list)
    structure: OutputStructure = ONE_TENSOR

    @property
    def image(self) -> fx.Node:
        """What the forward reads."""
        return next(node for node in self.graph.nodes if node.op == "placeholder")

    @property
    def outputs(self) -> tuple[fx.Node, ...]:
        """What the forward gives, in the order of `structure`."""
        given: Any = self.graph.output_node().args[0]
        return tuple(given) if isinstance(given, (tuple, list)) else (given,)

    @property
    def graph(self) -> fx.Graph:
        """The graph of the model's forward."""
        return self.model.graph

    def module(self, node: fx.Node) -> nn.Module | None:
        """The module that a node calls, if it calls one."""
        return self.model.get_submodule(str(node.target)) if node.op == "call_module" else None


def is_tensor(node: fx.Node) -> bool:
    """Whether the node's value is one tensor."""
    return "tensor_meta" in node.meta and hasattr(node.meta["tensor_meta"], "shape")


def gives_tensors(node: fx.Node) -> bool:
    """Whether the node's value is a sequence that holds tensors."""
    meta = node.meta.get("tensor_meta")
    if not isinstance(meta, (list, tuple)) or hasattr(meta, "shape"):
        return False
    return any(hasattr(item, "shape") for item in meta)


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """Shape of the tensor that a node gives."""
    return tuple(node.meta["tensor_meta"].shape)


def copy_sharing_parameters(module: Any) -> Any:
    """A deep copy of modules in which the parameters are the original's, everything else is not."""
    parts = module if isinstance(module, tuple) else (module,)
    shared = {id(p): p for m in parts if isinstance(m, nn.Module) for p in m.parameters()}
    return deep_copy(module, shared)


def trace(
    model: nn.Module, input_shape: tuple[int, ...], kept: Mapping[str, str] | None = None
) -> Trace:
    """Trace a copy of ``model`` in evaluation mode; the model itself is not touched.

    Args:
        model: any module whose forward takes one image batch; other arguments have defaults.
        input_shape: (1, C, H, W).
        kept: modules to leave as they are, one node each, though they could be traced -> why.

    Raises:
        TraceError: the forward does not run on images of that shape, needs more than images, or
            has control flow that depends on data outside of what `opaque` can set apart.
        UnsupportedModelError: the same, and it multiplies matrices of activations.
    """
    _check_arguments(model)
    try:
        return _trace_graph(model, input_shape, kept)
    except OUT_OF_MEMORY:
        raise
    except Exception as error:  # whatever a model's code raises when it meets a proxy
        why = cause_of(error)
    findings = _run(model, input_shape)
    if findings:
        reasons = [f"it {finding}; expected a convolutional network" for finding in findings]
        untraced = f"its forward cannot be traced: {why}"
        raise UnsupportedModelError(type(model).__name__, [*reasons, untraced])
    return _trace_execution(model, input_shape, why)


def _check_arguments(model: nn.Module) -> None:
    needed = image_arguments(model)
    if len(needed) != 1:
        got = ", ".join(needed) or "none"
        raise TraceError(
            f"{type(model).__name__}.forward: expected one argument without a default (a batch of "
            f"images), got {got}; give the others defaults, or wrap the model in a module whose "
            "forward takes images alone"
        )


def _trace_graph(
    model: nn.Module, input_shape: tuple[int, ...], kept: Mapping[str, str] | None
) -> Trace:
    twin = copy_sharing_parameters(model)
    modes = {name: module.training for name, module in twin.named_modules()}
    twin.eval()
    tracer = Tracer(input_shape, kept)
    graph = tracer.trace(twin)
    _renew(twin, tracer.opaque, model)
    graph_module = fx.GraphModule(twin, graph, type(model).__name__)
    traced = Trace(graph_module, input_shape, tracer.opaque, structure=tracer.structure)
    kinds = {name: type(module) for name, module in model.named_modules()}
    traced.layers = {n: kind.__name__ for n, kind in kinds.items() if issubclass(kind, LAYERS)}
    traced.fixed = list(dict.fromkeys(tracer.decider.fixed))
    if traced.fixed:
        _guard_size(traced)
    return _finish(traced, modes)


def _guard_size(traced: Trace) -> None:
    """Images of another size than that of the trace are refused when the network runs."""
    image = traced.image
    with traced.graph.inserting_after(image):
        guarded = traced.graph.call_function(images_of_size, (image,))
    image.replace_all_uses_with(guarded)
    guarded.args = (image, tuple(traced.input_shape[2:]))


def _renew(twin: nn.Module, names: Collection[str], model: nn.Module) -> None:
    """Copies of modules as they were before the trace ran parts of their code."""
    fresh = copy_sharing_parameters(model).eval() if names else model
    for name in names:
        parent, _, leaf = name.rpartition(".")
        setattr(twin.get_submodule(parent), leaf, fresh.get_submodule(name))


def _trace_execution(model: nn.Module, input_shape: tuple[int, ...], why: str) -> Trace:
    twin = copy_sharing_parameters(model).eval()
    try:
        graph_module, rest = graph_by_execution(twin, _random_image(twin, input_shape))
    except CannotCutError as error:
        raise TraceError(
            f"{type(model).__name__}.forward cannot be traced: {why}; expected a forward without "
            f"control flow that depends on the data, or one that can be cut by the order of "
            f"execution, but {error}"
        ) from error
    modes = {f"{rest}.{name}": module.training for name, module in model.named_modules() if name}
    modes |= {name: module.training for name, module in model.named_modules()}
    return _finish(Trace(graph_module, input_shape, {rest: why}), modes)


def _finish(traced: Trace, modes: Mapping[str, bool]) -> Trace:
    normalise(traced.model, traced.opaque)
    called = {str(node.target) for node in traced.graph.nodes if node.op == "call_module"}
    traced.opaque = {name: why for name, why in traced.opaque.items() if name in called}
    _propagate_shapes(traced)
    _take_pieces_apart(traced)
    for name, module in traced.model.named_modules():
        module.training = modes.get(name, modes[""])
    return traced


def _take_pieces_apart(traced: Trace) -> None:
    tensors, traced.structure = taken_apart(traced.outputs, traced.structure)
    if tensors != traced.outputs:
        traced.graph.output_node().args = (tensors,)
        traced.model.recompile()


def _run(model: nn.Module, input_shape: tuple[int, ...]) -> list[str]:
    """Products of activations in a run of the model itself.

    Raises:
        TraceError: it does not run on images of that shape.
    """
    twin = copy_sharing_parameters(model).eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), Watch(twin) as watch:
            twin(_random_image(twin, input_shape))
    except Exception as error:
        raise TraceError(
            f"{type(model).__name__} does not run on images of shape {input_shape}: "
            f"{first_line(error)}; pass input_shape={EXPECTED} as the model "
            "expects it"
        ) from error
    return watch.grouped()


def _random_image(model: nn.Module, shape: tuple[int, ...]) -> Tensor:
    image = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return image.to(empty_image(model, (0,)))


class _Run(fx.Interpreter):
    """Runs a graph, and changes nothing that its modules keep."""

    def __init__(self, traced: Trace) -> None:
        # modules that stay one node run as their author wrote them: counters and all
        module = copy_sharing_parameters(traced.model) if traced.opaque else traced.model
        super().__init__(module, graph=traced.graph)
        self.extra_traceback = False

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A norm of a fake tensor gives it back: it has a shape and no values.

        The framework would take the norm apart into a dozen operations.
        """
        module = self.fetch_attr(target)
        own = type(module).__module__.startswith("torch.nn.")
        fake = bool(args) and isinstance(args[0], FakeTensor)
        if own and fake and isinstance(module, NORMS):
            return args[0]
        if own and fake and isinstance(module, nn.Upsample):
            given = (module.size, module.scale_factor)
            return F.interpolate(
                args[0], *given, recompute_scale_factor=module.recompute_scale_factor
            )
        return super().call_module(target, args, kwargs)

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A resize of a fake tensor takes its nearest values, for the shape is the same.

        The framework would take an interpolation apart into some dozens of operations.
        """
        if target is F.interpolate and args and isinstance(args[0], FakeTensor):
            given = dict(zip(_INTERPOLATE, args, strict=False)) | kwargs
            kept = {name: given[name] for name in _DECIDES_SHAPE if name in given}
            return F.interpolate(args[0], **kept)
        return super().call_function(target, args, kwargs)


_DECIDES_SHAPE = ("size", "scale_factor", "recompute_scale_factor")
_INTERPOLATE = ("input", "size", "scale_factor", "mode", "align_corners", "recompute_scale_factor")
"""Arguments of a resize, in order."""


class _Shapes(_Run):
    """Notes shapes, and what opaque modules do that a trace cannot see."""

    def run_node(self, n: fx.Node) -> Any:
        """Run one node, and note the shape of what it gives."""
        with Watch(self.module) if self._is_closed(n) else nullcontext() as watch:
            result = super().run_node(n)
        if watch is not None:
            n.meta["findings"] = watch.grouped()
        n.meta["tensor_meta"] = fx.node.map_aggregate(
            result, lambda v: _extract_tensor_metadata(v) if isinstance(v, Tensor) else v
        )
        return result

    def _is_closed(self, node: fx.Node) -> bool:
        """Whether there is code in a node that the trace did not look into."""
        if node.op == "call_module":
            return not isinstance(self.fetch_attr(str(node.target)), (*WEIGHTED, *NORMS))
        if node.op != "call_function" or not isinstance(node.target, FunctionType):
            return False
        return not node.target.__module__.startswith("torch.")


def _propagate_shapes(traced: Trace) -> None:
    _interpret(traced, _Shapes(traced), traced.input_shape)


def _interpret(traced: Trace, interpreter: fx.Interpreter, shape: tuple[int, ...]) -> None:
    """On fake tensors, unless control flow needs real ones."""
    with torch.no_grad(), quiet_fakes():
        if traced.opaque:
            with torch.random.fork_rng(devices=[]):
                interpreter.run(_random_image(traced.model, shape))
        else:
            with FakeTensorMode(allow_non_fake_inputs=True) as fake:
                interpreter.run(fake.from_tensor(empty_image(traced.model, shape)))


class _Values(_Run):
    """Collects shapes of tensors, and values that are no tensors."""

    def __init__(self, traced: Trace) -> None:
        super().__init__(traced)
        self.values: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run one node, and keep what it gives."""
        result = super().run_node(n)
        self.values[n] = tuple(result.shape) if isinstance(result, Tensor) else result
        return result


def values_at(traced: Trace, shape: tuple[int, ...]) -> dict[fx.Node, Any]:
    """What every node gives on images of a shape: its tensor's shape, or its value.

    Args:
        traced: a traced model.
        shape: (N, C, H, W).
    """
    interpreter = _Values(traced)
    _interpret(traced, interpreter, shape)
    return interpreter.values
