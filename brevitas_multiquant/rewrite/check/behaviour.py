"""What a forward does beside giving an output: random draws, and changes of a module's own state.

A trace keeps neither. Where the model's modules do so and the network's do not, training behaviour
(an author's own stochastic depth, noise, a counter of steps) is lost, although one run of both may
give the same output.
"""

import dis
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from types import CodeType, FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_PLAIN = (type(None), bool, int, float, complex, str, bytes)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the generators of torch, Python and numpy; afterwards they are as they were.

    Example:
        >>> with seeded(1, torch.device("cpu")):
        ...     first = torch.rand(1), random.random(), np.random.rand()
        >>> with seeded(1, torch.device("cpu")):
        ...     first == (torch.rand(1), random.random(), np.random.rand())
        True
    """
    devices = [device] if device.type == "cuda" else []
    pythons, numpys = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed)
            yield
    finally:
        random.setstate(pythons)
        np.random.set_state(numpys)


def random_state(device: torch.device) -> tuple[Any, ...]:
    """Where the generators of torch, Python and numpy stand: it changes with every draw."""
    on_device = torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.tensor(0)
    states = (torch.get_rng_state(), on_device)
    numpys: Any = np.random.get_state(legacy=False)
    return (*(s.numpy().tobytes() for s in states), random.getstate(), str(_plain(numpys)))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value.tobytes() if isinstance(value, np.ndarray) else value


def modules_that_draw(model: nn.Module, run: Callable[[], Any], device: torch.device) -> set[str]:
    """Names of the modules whose own code draws random numbers in a run of the model."""
    drawing: set[str] = set()
    running: list[str] = []
    last: list[Any] = [None]

    def settle() -> None:
        now = random_state(device)
        if running and now != last[0]:
            drawing.add(running[-1])
        last[0] = now

    def enter(name: str, _module: nn.Module, _inputs: Any) -> None:
        settle()
        running.append(name)

    def leave(_module: nn.Module, _inputs: Any, _output: Any) -> None:
        settle()
        running.pop()

    with ExitStack() as hooks:
        for name, module in model.named_modules():
            hooks.callback(module.register_forward_pre_hook(partial(enter, name)).remove)
            hooks.callback(module.register_forward_hook(leave).remove)
        run()
    return drawing


State = dict[str, dict[str, Any]]
"""Name of a module -> its own attributes and buffers -> what tells their values apart."""


def state_of(model: nn.Module) -> State:
    """What every module keeps of its own, beside parameters and children."""
    return {
        name: {
            key: _mark(value)
            for key, value in (*vars(module).items(), *module._buffers.items())
            if key not in _OF_EVERY_MODULE
        }
        for name, module in model.named_modules()
    }


def changed(before: State, after: State) -> dict[str, list[str]]:
    """Modules -> names of what changed in them.

    A tensor that was set anew is none: a feature kept for others to look at. If a later forward
    reads it, the output tells.
    """
    found = {}
    for name, attributes in after.items():
        earlier = before.get(name, {})
        keys = [k for k, mark in attributes.items() if _differs(earlier.get(k), mark)]
        if keys:
            found[name] = keys
    return found


def _differs(before: Any, after: Any) -> bool:
    if isinstance(after, _TensorMark):
        return isinstance(before, _TensorMark) and before[0] == after[0] and before != after
    return bool(before != after)


class _TensorMark(tuple[int, int]):
    """Identity and version of a tensor."""


def _mark(value: Any, depth: int = 3) -> Any:
    """Something that differs if the value was changed, in place or not."""
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, Tensor):
        return _TensorMark((id(value), value._version))
    if isinstance(value, np.ndarray):
        return value.tobytes()
    if isinstance(value, torch.Generator):
        return value.get_state().numpy().tobytes()
    if isinstance(value, random.Random):
        return value.getstate()
    if isinstance(value, np.random.Generator):
        return str(_plain(value.bit_generator.state))
    if isinstance(value, (nn.Module, type, FunctionType)) or not depth:
        return id(value)
    if isinstance(value, Mapping):
        return [(key, _mark(item, depth - 1)) for key, item in value.items()]
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_mark(item, depth - 1) for item in value]
    if hasattr(value, "__dict__"):
        return [(key, _mark(item, depth - 1)) for key, item in vars(value).items()]
    return repr(value) if type(value).__module__ in ("collections", "itertools") else id(value)


def reads_its_mode(module: nn.Module) -> bool:
    """Whether an author's code in a module reads ``self.training``; torch's own does not count."""
    return any("training" in code.co_names for code in _own_code(module))


def decides_by_mode(module: nn.Module) -> bool:
    """Whether that code branches on it, where others pass it on (``F.dropout``)."""
    return any(_jumps_by_mode(code) for code in _own_code(module))


_UNSEEDED = {
    *("default_rng", "SystemRandom", "urandom", "secrets", "token_bytes", "uuid4"),
    *("time", "time_ns", "perf_counter", "monotonic"),
}


def draws_unseeded(module: nn.Module) -> bool:
    """Whether an author's code reads its mode and names a source of chance that no seed reaches."""
    return reads_its_mode(module) and any(
        not _UNSEEDED.isdisjoint(code.co_names) for code in _own_code(module)
    )


def _own_code(module: nn.Module) -> Iterator[CodeType]:
    for kind in type(module).__mro__:
        for name, method in vars(kind).items():
            author = not kind.__module__.startswith("torch.") and isinstance(method, FunctionType)
            if author and name not in ("__init__", "train", "eval"):
                yield method.__code__


_BETWEEN = {"CACHE", "COPY", "DUP_TOP", "EXTENDED_ARG", "NOP", "TO_BOOL", "UNARY_NOT"}


def _jumps_by_mode(code: CodeType) -> bool:
    """Whether a jump follows where ``training`` is read."""
    reading = False
    for instruction in dis.get_instructions(code):
        if reading and instruction.opname not in _BETWEEN:
            if "JUMP" in instruction.opname:
                return True
            reading = False
        reading |= instruction.opname.startswith("LOAD_ATTR") and instruction.argval == "training"
    return False
