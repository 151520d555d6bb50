"""Values that a forward asks for while it is traced: those that shapes alone give.

The graph so far runs on fake images: tensors with shapes and no values. Two batch sizes are tried,
neither of them one, since a network must give the same whatever the batch size. A number that
Python takes from an image's size is that of the trace from then on, which `Decider.fixed` notes.
"""

import logging
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.proxy import Attribute, TraceError

from brevitas_multiquant.rewrite.graph.cause import first_line, place_of_call

_BATCHES = (2, 3)


class Decider:
    """Runs a graph under construction on fake images.

    Args:
        root: the model that is traced, in evaluation mode.
        input_shape: (1, C, H, W).

    ``fixed`` holds the places in the author's code that took a number from the image's size.
    """

    def __init__(self, root: nn.Module, input_shape: tuple[int, ...]) -> None:
        self._root = root
        _, channels, *positions = input_shape
        self._images = [(batch, *input_shape[1:]) for batch in _BATCHES]
        self._images.append((_BATCHES[0], channels, *(2 * size for size in positions)))
        self._fakes = [FakeTensorMode(allow_non_fake_inputs=True) for _ in self._images]
        self._values: list[dict[fx.Node, Any]] = [{} for _ in self._images]
        self.running = False
        self.fixed: list[str] = []

    def decide(self, node: fx.Node) -> bool:
        """The truth of a node's value, decided for images of the input shape.

        Raises:
            TraceError: it depends on the values of the image, or on the batch size.
        """
        first, second = self.values(node)
        return _same(node, bool(_no_tensor(node, first)), bool(_no_tensor(node, second)))

    def fix(self, node: fx.Node, of: Callable[[Any], Any]) -> Any:
        """A number of a node's value, which is a constant of the trace from now on.

        Raises:
            TraceError: it depends on the values of the image, or on the batch size.
        """
        first = _same(node, *map(of, self.values(node)))
        if not self._is_of_any_size(node, of, first):
            self.fixed.append(place_of_call() or node.name)
        return first

    def _is_of_any_size(self, node: fx.Node, of: Callable[[Any], Any], value: Any) -> bool:
        with self._run():
            try:
                return bool(of(self._value(len(_BATCHES), node)) == value)
            except Exception:  # whatever operations raise on images that the model does not take
                return False

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


def _no_tensor(node: fx.Node, value: Any) -> Any:
    if isinstance(value, Tensor):
        raise TraceError(
            "symbolically traced variables cannot be used as inputs to control flow: "
            f"{node.name} depends on the values of the image"
        )
    return value


def _same(node: fx.Node, first: Any, second: Any) -> Any:
    if first != second:
        raise TraceError(
            f"{node.name} depends on the batch size ({first} for {_BATCHES[0]} images, {second} "
            f"for {_BATCHES[1]}), which may change: write x.shape[0] for len(x), and operations on "
            "the whole batch for a loop over its images"
        )
    return first


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
        return self._fixed(operator.index)

    def __int__(self) -> int:
        return self._fixed(int)

    def __float__(self) -> float:
        return self._fixed(float)

    def __round__(self, digits: int | None = None) -> Any:
        return self._fixed(lambda value: round(value, digits))

    def __divmod__(self, other: Any) -> tuple[Any, Any]:
        return self // other, self % other

    def __format__(self, spec: str) -> str:
        return self._fixed(lambda value: format(value, spec)) if spec else str(self)

    def __len__(self) -> int:
        return self._fixed(len)

    def _fixed(self, of: Callable[[Any], Any]) -> Any:
        decider: Decider = self.tracer.decider  # type: ignore[attr-defined]
        return decider.fix(
            self.node, lambda value: of(value if of is len else _no_tensor(self.node, value))
        )


class DecidedAttribute(DecidedProxy, Attribute):
    """An attribute of one, such as ``x.shape``."""


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
