"""Values that a forward asks for while it is traced: those that shapes alone give.

The graph so far runs on fake images: tensors with shapes and no values. Two batch sizes are tried,
neither of them one, since a network must give the same whatever the batch size.
"""

import logging
import operator
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.proxy import Attribute, TraceError

from brevitas_multiquant.rewrite.cause import first_line

_BATCHES = (2, 3)


class Decider:
    """Runs a graph under construction on fake images.

    Args:
        root: the model that is traced, in evaluation mode.
        input_shape: (1, C, H, W).
    """

    def __init__(self, root: nn.Module, input_shape: tuple[int, ...]) -> None:
        self._root = root
        self._images = [(batch, *input_shape[1:]) for batch in _BATCHES]
        self._fakes = [FakeTensorMode(allow_non_fake_inputs=True) for _ in _BATCHES]
        self._values: list[dict[fx.Node, Any]] = [{} for _ in _BATCHES]
        self.running = False

    def decide(self, node: fx.Node) -> Any:
        """The value of a node, the same at every batch size.

        Raises:
            TraceError: it depends on the values of the image, or on the batch size.
        """
        first, second = self.values(node)
        if isinstance(first, Tensor):
            raise TraceError(
                "symbolically traced variables cannot be used as inputs to control flow: "
                f"{node.name} depends on the values of the image"
            )
        if first != second:
            raise TraceError(
                f"{node.name} depends on the batch size ({first} for {_BATCHES[0]} images, "
                f"{second} for {_BATCHES[1]}), which may change"
            )
        return first

    def values(self, node: fx.Node) -> list[Any]:
        """The values of a node at the batch sizes.

        Raises:
            TraceError: the graph so far does not run on tensors without values.
        """
        with self._run():
            try:
                return [self._value(index, node) for index in range(len(_BATCHES))]
            except Exception as error:  # whatever operations raise
                raise TraceError(
                    "symbolically traced variables cannot be used as inputs to control flow: "
                    f"shapes alone do not give {node.name} ({first_line(error)})"
                ) from error

    @contextmanager
    def _run(self) -> Iterator[None]:
        self.running = True
        try:
            yield
        finally:
            self.running = False

    def _value(self, index: int, wanted: fx.Node) -> Any:
        """In the order of the graph: a recursion would be as deep as the network."""
        values, fake = self._values[index], self._fakes[index]
        with fake, torch.no_grad(), quiet_fakes():
            for node in _not_known(wanted, values):
                if node.op == "placeholder":
                    values[node] = empty_image(self._root, self._images[index])
                else:
                    args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
                    values[node] = call_node(self._root, node, args, kwargs)
        return values[wanted]


@contextmanager
def quiet_fakes() -> Iterator[None]:
    """Operations that do not run on fake tensors raise; the framework would log it as well."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


def _not_known(wanted: fx.Node, values: dict[fx.Node, Any]) -> list[fx.Node]:
    """What is to be computed for a node, itself last."""
    needed, waiting = set(), [wanted]
    while waiting:
        node = waiting.pop()
        if node not in needed and node not in values:
            needed.add(node)
            waiting += node.all_input_nodes
    return [node for node in wanted.graph.nodes if node in needed] if needed else []


class DecidedProxy(fx.Proxy):
    """A proxy of which Python may ask a number or a length, where shapes give it."""

    def __getattr__(self, k: str) -> "DecidedAttribute":
        return DecidedAttribute(self, k)

    def __index__(self) -> int:
        return operator.index(self._decided())

    def __int__(self) -> int:
        return int(self._decided())

    def __float__(self) -> float:
        return float(self._decided())

    def __round__(self, digits: int | None = None) -> Any:
        return round(self._decided(), digits)

    def __divmod__(self, other: Any) -> tuple[Any, Any]:
        return self // other, self % other

    def __format__(self, spec: str) -> str:
        return format(self._decided(), spec) if spec else str(self)

    def __len__(self) -> int:
        return length(self)

    def _decided(self) -> Any:
        return _decider_of(self).decide(self.node)


class DecidedAttribute(DecidedProxy, Attribute):
    """An attribute of one, such as ``x.shape``."""


def _decider_of(proxy: fx.Proxy) -> Decider:
    return proxy.tracer.decider  # type: ignore[attr-defined]


def length(proxy: fx.Proxy) -> int:
    """The length of a sequence, or of a tensor's first dimension.

    Raises:
        TraceError: it depends on the batch size, or on the values of the image.
    """
    lengths = [len(value) for value in _decider_of(proxy).values(proxy.node)]
    if len(set(lengths)) > 1:
        raise TraceError(
            f"the length of {proxy.node.name} is the batch size, which may change: write "
            "x.shape[0] for len(x), and operations on the whole batch for a loop over its images"
        )
    return lengths[0]


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


def empty_image(model: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """A tensor of the type and on the device of a model's parameters."""
    parameter = next(model.parameters(), torch.empty(()))
    return torch.empty(shape, dtype=parameter.dtype, device=parameter.device)
