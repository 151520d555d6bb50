"""A tracer for convolutional networks: layers are leaves, shapes may decide, data may not."""

import operator
import sys
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from brevitas_multiquant.quant.layers import WEIGHTED
from brevitas_multiquant.rewrite.kinds import contains_layer, is_frozen_norm, is_norm


class Tracer(fx.Tracer):
    """Layers and norms are leaves, whatever their subclass.

    So is what timm marks as one, and what asks for its mode (a user's own kind of dropout), unless
    it holds layers, which would stay float unseen. Control flow on shapes is decided by running
    the graph so far on fake tensors of the input's shape; on data it makes a module `opaque`.
    """

    def __init__(self, input_shape: tuple[int, ...]) -> None:
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
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        self._values: dict[fx.Node, Any] = {}
        self._evaluating = False
        self._parameter_proxies: dict[str, fx.Proxy] = {}
        self.opaque: dict[str, str] = {}

    def to_bool(self, obj: fx.Proxy) -> bool:
        """The truth of a condition, where shapes alone decide it."""
        self._evaluating = True
        try:
            value = self._value(obj.node)
        finally:
            self._evaluating = False
        return value if isinstance(value, bool) else super().to_bool(obj)

    def _value(self, node: fx.Node) -> Any:
        if node not in self._values:
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), self._value)
            with self._fake, torch.no_grad():
                self._values[node] = self._execute(node, args, kwargs)
        return self._values[node]

    def _execute(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        if node.op == "placeholder":
            return empty_image(self.root, self._input_shape)
        return call_node(self.root, node, args, kwargs)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        """A node, what is in the module, or its value while a condition is evaluated.

        The innermost module whose forward meets an error becomes one opaque node.
        """
        if self._evaluating:
            return forward(*args, **kwargs)
        before, stack = next(iter(reversed(self.graph.nodes))), dict(self.module_stack)
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception as error:
            self._forget_after(before)
            self.module_stack.clear()
            self.module_stack.update(stack)
            name = self.path_of_module(m)
            self.opaque[name] = first_line(error)
            return self.create_proxy("call_module", name, args, kwargs)

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
        if self._evaluating:
            return attr_val
        self._parameter_proxies = parameter_proxy_cache
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        """Whether a module becomes one node."""
        if type(module) in self._opaque and contains_layer(module):
            return False
        if isinstance(module, self._leaves) or type(module).__name__ in self._leaf_names:
            return True
        if is_norm(module) or is_frozen_norm(module):
            return True
        if _asks_for_its_mode(module) and not contains_layer(module):
            return True
        return super().is_leaf_module(module, name)


def _asks_for_its_mode(module: nn.Module) -> bool:
    """Whether the forward reads ``self.training``, which a trace would freeze."""
    code = getattr(type(module).forward, "__code__", None)
    return code is not None and "training" in code.co_names


def call_node(root: nn.Module, node: fx.Node, args: Any, kwargs: Any) -> Any:
    """What a node gives for these arguments; its modules and attributes are those of ``root``."""
    if node.op == "get_attr":
        return operator.attrgetter(str(node.target))(root)
    if node.op == "call_module":
        return root.get_submodule(str(node.target))(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    assert callable(node.target)
    return node.target(*args, **kwargs)


def first_line(error: BaseException) -> str:
    """Type and first line of an error's message."""
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def empty_image(model: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """A tensor of the type and on the device of a model's parameters."""
    parameter = next(model.parameters(), torch.empty(()))
    return torch.empty(shape, dtype=parameter.dtype, device=parameter.device)
