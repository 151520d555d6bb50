"""A tracer for convolutional networks: layers are leaves, shapes may decide, data may not."""

import inspect
import operator
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import fx, nn

from brevitas_multiquant.core.output_structure import OutputStructure
from brevitas_multiquant.quant.layers import WEIGHTED
from brevitas_multiquant.rewrite.graph.cause import cause_of
from brevitas_multiquant.rewrite.graph.decide import DecidedProxy, Decider
from brevitas_multiquant.rewrite.graph.kinds import contains_layer, is_constant_norm, is_norm

OUT_OF_MEMORY = (MemoryError, torch.OutOfMemoryError)
"""Says nothing about a forward; it is raised as it is."""


class Tracer(fx.Tracer):
    """Layers and norms are leaves, whatever their subclass.

    So is what timm marks as one, and what asks for its mode (a user's own kind of dropout), unless
    it holds layers, which would stay float unseen. The image is the only input: other arguments
    of the forward have their defaults. Control flow on shapes is decided, see `decide`; on data it
    makes a module `opaque`.
    """

    def __init__(self, input_shape: tuple[int, ...], kept: Mapping[str, str] | None = None) -> None:
        layers = sys.modules.get("timm.layers")
        functions = layers.get_notrace_functions() if layers else []
        super().__init__(
            autowrap_functions=tuple(f for f in functions if callable(f)),
            param_shapes_constant=True,
        )
        modules = layers.get_notrace_modules() if layers else []
        leaves = tuple(m for m in modules if isinstance(m, type))
        self._leaves = (*WEIGHTED, *leaves)
        self._opaque = {leaf for leaf in leaves if not issubclass(leaf, WEIGHTED)}
        self._leaf_names = ("DropPath", "DropBlock2d", "StochasticDepth")
        self._input_shape = input_shape
        self._parameter_proxies: dict[str, fx.Proxy] = {}
        self.decider: Decider
        self.structure: OutputStructure
        self.opaque: dict[str, str] = {}
        self._kept = kept or {}
        self._installed: set[int] | None = None

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        """The image alone: Python fills in the defaults of every other argument."""
        self.decider = Decider(self.root, self._input_shape)
        name, *_ = image_arguments(self.root)
        image = self.create_proxy("placeholder", name, (), {})
        if "forward" in vars(self.root):  # set on this model alone
            return self._flat(self.root.forward), [image]
        return self._flat(root_fn), [self.root, image]

    def _flat(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """A forward that gives its tensors side by side: a graph keeps no types of containers."""

        def run(*arguments: Any) -> Any:
            output = forward(*arguments)
            self.structure = OutputStructure.of(output, lambda leaf: isinstance(leaf, fx.Proxy))
            tensors = self.structure.tensors(output)
            return tensors[0] if len(tensors) == 1 else tensors

        return run

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """A proxy of which Python may ask what shapes give."""
        return DecidedProxy(node, self)

    def to_bool(self, obj: fx.Proxy) -> bool:
        """The truth of a condition, where shapes alone decide it."""
        return self.decider.decide(obj.node)

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        """The items of a sequence, as nodes; their number is that of the trace."""
        return (operator.getitem(obj, index) for index in range(self.decider.fix(obj.node, len)))  # type: ignore[call-overload]

    def create_proxy(
        self, kind: str, target: Any, args: Any, kwargs: Any, *more: Any, **options: Any
    ) -> fx.Proxy:
        """A node; a squeeze of every dimension of size one leaves that of the batch."""
        if _is_squeeze_of_all(kind, target, args, kwargs):
            return self._squeeze(args[0])
        return super().create_proxy(kind, target, args, kwargs, *more, **options)

    def _squeeze(self, proxy: fx.Proxy) -> fx.Proxy:
        """By the dimensions that have one entry at every batch size, the last first."""
        shapes = [value.shape for value in self.decider.values(proxy.node)]
        ones = [dim for dim, sizes in enumerate(zip(*shapes, strict=True)) if set(sizes) == {1}]
        for dim in reversed(ones):
            proxy = super().create_proxy("call_method", "squeeze", (proxy, dim), {})
        return proxy

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        """A node, what is in the module, or its value while a condition is evaluated.

        The innermost module whose forward meets an error becomes one opaque node.
        """
        if self.decider.running or self._is_passing(m):
            return forward(*args, **kwargs)
        before, stack = next(iter(reversed(self.graph.nodes))), dict(self.module_stack)
        try:
            called = super().call_module(m, forward, args, kwargs)
            if isinstance(called, fx.Proxy) and self._gives_several(m, called):
                self._forget_after(before)
                return forward(*args, **kwargs)
            return called
        except OUT_OF_MEMORY:
            raise
        except Exception as error:  # whatever a model's code raises when it meets a proxy
            self._forget_after(before)
            self.module_stack.clear()
            self.module_stack.update(stack)
            name = self.path_of_module(m)
            self.opaque[name] = cause_of(error)
            return self.create_proxy("call_module", name, args, kwargs)

    def _is_passing(self, module: nn.Module) -> bool:
        """Whether a module was made or put together in the forward, of nothing but the model's own.

        As ``nn.ReLU()(x)``, or a slice of a sequence of layers.
        """
        if self._installed is None:
            self._installed = {
                id(one)
                for part in self.root.modules()
                for one in (part, *part._parameters.values(), *part._buffers.values())
            }
        if id(module) in self._installed:
            return False
        held = (*module.parameters(), *module.buffers())
        return all(id(one) in self._installed for one in held)

    def _gives_several(self, module: nn.Module, called: fx.Proxy) -> bool:
        """Whether a module that is a leaf for asking for its mode gives more than a tensor.

        What is in a container has to be seen: it may be what the model returns.
        """
        name = self.path_of_module(module)
        if called.node.target != name or name in self._kept or not _asks_for_its_mode(module):
            return False
        is_layer = isinstance(module, self._leaves) or is_norm(module) or is_constant_norm(module)
        known = type(module).__name__ in self._leaf_names or super().is_leaf_module(module, name)
        if is_layer or known:
            return False
        first, *_ = self.decider.values(called.node)
        return isinstance(first, (tuple, list, dict))

    def _forget_after(self, last: fx.Node) -> None:
        for node in reversed(self.graph.nodes):
            if node is last:
                break
            self.graph.erase_node(node)
        kept = set(self.graph.nodes)
        for name, proxy in list(self._parameter_proxies.items()):
            if proxy.node not in kept:
                del self._parameter_proxies[name]

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: Any) -> Any:
        """An attribute of a module, not as a node while a condition is evaluated."""
        if self.decider.running:
            return attr_val
        self._parameter_proxies = parameter_proxy_cache
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        """Whether a module becomes one node."""
        if name in self._kept:
            self.opaque[name] = self._kept[name]
            return True
        if type(module) in self._opaque and contains_layer(module):
            return False
        if isinstance(module, self._leaves) or type(module).__name__ in self._leaf_names:
            return True
        if is_norm(module) or is_constant_norm(module):
            return True
        if _asks_for_its_mode(module) and not contains_layer(module):
            return True
        return super().is_leaf_module(module, name)


def image_arguments(model: nn.Module) -> list[str]:
    """The arguments that a forward cannot do without; the first is the image's.

    Example:
        >>> image_arguments(nn.ReLU())
        ['input']
    """
    forward = inspect.unwrap(vars(model).get("forward", type(model).forward))
    parameters = list(inspect.signature(forward).parameters.values())
    if not inspect.ismethod(forward) and "forward" not in vars(model):
        parameters = parameters[1:]  # self
    varied = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in varied]
    return needed or [p.name for p in parameters[:1]]


def _is_squeeze_of_all(kind: str, target: Any, args: Any, kwargs: Any) -> bool:
    called = kind in ("call_method", "call_function")
    known = target in ("squeeze", "squeeze_", torch.squeeze)
    return called and known and len(args) == 1 and not kwargs


def _asks_for_its_mode(module: nn.Module) -> bool:
    """Whether the forward reads ``self.training``, which a trace would freeze."""
    code = getattr(type(module).forward, "__code__", None)
    return code is not None and "training" in code.co_names
