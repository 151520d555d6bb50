"""What every switchable module of one network looks at: which bit-width runs."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from brevitas_multiquant.errors import ConcurrentUseError

_ADVICE = (
    "call net.view(bits) once for each thread or bit-width, and run that: views share all "
    "parameters and have a bit-width of their own"
)


@dataclass(eq=False)
class ActiveBits:
    """Shared by all modules of a network, so that switching is one assignment.

    One thread at a time may switch: another one is refused while a block of `at` or `floating`
    is open, and a forward notices when it was switched midway (`unswitched`). Compiled graphs look
    at the bit-width before they run, and are switched between, not in them.

    Args:
        bits: the active bit-width.
        quantized: False while the network runs float, as the self-check and the cost need it.
    """

    bits: int
    quantized: bool = True

    def __post_init__(self) -> None:
        self._owner: Any = None  # of the open blocks
        self._depth = 0
        self._switcher: Any = None  # who switched last
        self._switches = 0
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        """What a copy starts from: no block is open there."""
        return {"bits": self.bits, "quantized": self.quantized}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def switch(self, bits: int) -> None:
        """Choose the bit-width from here on.

        Raises:
            ConcurrentUseError: another thread or task has a block open.
        """
        self._refuse_others()
        self._set(bits, self.quantized)

    @contextmanager
    def at(self, bits: int) -> Iterator[None]:
        """Another bit-width inside the block.

        Raises:
            ConcurrentUseError: another thread or task has a block open.
        """
        with self._block(bits, self.quantized):
            yield

    @contextmanager
    def floating(self) -> Iterator[None]:
        """Quantizers off inside the block.

        Raises:
            ConcurrentUseError: another thread or task has a block open.
        """
        with self._block(self.bits, False):
            yield

    @contextmanager
    def part_at(self, bits: int) -> Iterator[None]:
        """Another bit-width for a part of one forward, which is not asked whether it may."""
        before, self.bits = self.bits, bits
        try:
            yield
        finally:
            self.bits = before

    @contextmanager
    def unswitched(self) -> Iterator[None]:
        """Around a forward: nobody switches inside the block.

        Raises:
            ConcurrentUseError: somebody did; what was computed mixes bit-widths.
        """
        before, bits = self._switches, self.bits
        try:
            yield
        except Exception as error:  # a branch without that bit-width, or anything that followed
            self._refuse_switched(before, bits, error)
            raise
        self._refuse_switched(before, bits, None)

    def _refuse_switched(self, before: int, bits: int, cause: Exception | None) -> None:
        if self._switches == before or (self._switcher == _who() and self.bits == bits):
            return
        raise ConcurrentUseError(
            f"forward: expected to run at {bits} bits from stem to head, got a network that "
            f"another thread switched meanwhile (it is at {self.bits} bits now); {_ADVICE}"
        ) from cause

    def _set(self, bits: int, quantized: bool) -> None:
        self.bits, self.quantized = bits, quantized
        if not torch.compiler.is_compiling():  # a graph would be made anew for every count
            self._switches += 1
            self._switcher = _who()

    @contextmanager
    def _block(self, bits: int, quantized: bool) -> Iterator[None]:
        self._enter()
        before = self.bits, self.quantized
        self._set(bits, quantized)
        try:
            yield
        finally:
            self._set(*before)
            self._leave()

    def _enter(self) -> None:
        if torch.compiler.is_compiling():
            return
        with self._lock:
            self._refuse_others()
            self._owner = self._owner or _who()
            self._depth += 1

    def _leave(self) -> None:
        if torch.compiler.is_compiling():
            return
        with self._lock:
            self._depth -= 1
            if not self._depth:
                self._owner = None

    def _refuse_others(self) -> None:
        if torch.compiler.is_compiling() or self._owner in (None, _who()) or _in_backward():
            return
        raise ConcurrentUseError(
            f"active bit-width: expected one thread or task at a time, got a switch while another "
            f"one runs this network at {self.bits} bits (at_bits, floating); {_ADVICE}"
        )


def _who() -> tuple[int, int | None]:
    """This thread, and the task that it runs, if any."""
    try:
        task = asyncio.current_task()
    except RuntimeError:  # no event loop here
        task = None
    return threading.get_ident(), None if task is None else id(task)


def _in_backward() -> bool:
    """Whether autograd runs this: in threads of its own, while the one that called it waits."""
    return bool(torch._C._current_graph_task_id() != -1)
