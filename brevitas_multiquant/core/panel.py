"""What every switchable module of one network looks at: which bit-widths run."""

import asyncio
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from brevitas_multiquant.core.precision import Assignment, Precision, Setting
from brevitas_multiquant.core.selection import BRANCH_BITS, is_whole
from brevitas_multiquant.errors import BitWidthError, ConcurrentUseError

_ADVICE = (
    "call net.view(bits) once for each thread or bit-width, and run that: views share all "
    "parameters and have a bit-width of their own"
)


@dataclass(eq=False)
class Dial:
    """At which bit-width one site's activations are quantized: a look at the panel.

    Args:
        site: its name.
        panel: where its bit-width stands, if it has one of its own, and the network's.
    """

    site: str
    panel: "Panel"

    @property
    def assigned(self) -> tuple[str, str]:
        """Where an assignment has the bits of its activations (`quant.member.Site`)."""
        return self.site, "activation"

    @property
    def bits(self) -> int:
        """The bit-width at which the site runs."""
        return self.panel.own.get(self.site, self.panel.bits)


@dataclass(eq=False)
class Panel:
    """Shared by all modules of a network, so that switching is one assignment.

    It has a dial for each site, and is one itself, of the network's bit-width.

    One thread at a time may switch: another one is refused while a block of `at` or `floating`
    is open, and a forward notices when it was switched midway (`unswitched`). Compiled graphs look
    at the bit-width before they run, and are switched between, not in them.

    Args:
        bits: the network's bit-width: it chooses branches, norms and ranges.
        quantized: False while the network runs float, as the self-check and the cost need it.
        own: site -> bit-width, of the sites that have another one than the network; replaced as a
            whole, never changed.
        dials: site -> its dial.
    """

    bits: int
    quantized: bool = True
    own: dict[str, int] = field(default_factory=dict)
    dials: dict[str, Dial] = field(default_factory=dict)

    assigned: ClassVar[None] = None
    """As of a `Dial`: its bit-width is no site's."""

    def __post_init__(self) -> None:
        self._owner: Any = None  # of the open blocks
        self._depth = 0
        self._switcher: Any = None  # who switched last
        self._switches = 0
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        """What a copy starts from: no block is open there."""
        return {name: getattr(self, name) for name in ("bits", "quantized", "own", "dials")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def dial(self, site: str) -> Dial:
        """The dial of a site, the same for every branch."""
        return self.dials.setdefault(site, Dial(site, self))

    @property
    def setting(self) -> Setting:
        """What `switch` would have to be given to come back here."""
        return self.assignment if self.own else self.bits

    @property
    def assignment(self) -> Assignment:
        """At which bits every site runs."""
        sites = {site: Precision(BRANCH_BITS, dial.bits) for site, dial in self.dials.items()}
        return Assignment(self.bits, sites)

    def checked(self, caller: str, given: Any, candidates: Sequence[int]) -> Setting:
        """A bit-width or an assignment, if the network can run at it.

        Args:
            caller: what starts the error.
            given: by a user.
            candidates: the network's bit-widths.

        Raises:
            BitWidthError: not a candidate, or an assignment that does not fit.
        """
        if isinstance(given, Assignment):
            given.require_fits(caller, candidates, tuple(self.dials))
            return given
        if not is_whole(given) or given not in candidates:
            raise BitWidthError(
                f"{caller}: expected one of the bit-widths {list(candidates)} this network was "
                f"built for, got {given!r}"
            )
        return int(given)

    def twin(self, setting: Setting) -> dict[int, Any]:
        """Another panel with dials of its own, for a view.

        Returns:
            Identity of this panel, and of each dial -> what takes its place.
        """
        bits, own = _split(setting)
        other = Panel(bits, self.quantized, own)
        dials = {id(dial): other.dial(site) for site, dial in self.dials.items()}
        return {id(self): other, **dials}

    def switch(self, setting: Setting) -> None:
        """Choose the bit-widths from here on.

        Raises:
            ConcurrentUseError: another thread or task has a block open.
        """
        self._refuse_others()
        self._set(*_split(setting), self.quantized)

    @contextmanager
    def at(self, setting: Setting) -> Iterator[None]:
        """Other bit-widths inside the block.

        Raises:
            ConcurrentUseError: another thread or task has a block open.
        """
        with self._block(*_split(setting), self.quantized):
            yield

    @contextmanager
    def floating(self) -> Iterator[None]:
        """Quantizers off inside the block.

        Raises:
            ConcurrentUseError: another thread or task has a block open.
        """
        with self._block(self.bits, self.own, False):
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
        before, bits, own = self._switches, self.bits, self.own
        try:
            yield
        except Exception as error:  # a branch without that bit-width, or anything that followed
            self._refuse_switched(before, bits, own, error)
            raise
        self._refuse_switched(before, bits, own, None)

    def _refuse_switched(
        self, before: int, bits: int, own: dict[str, int], cause: Exception | None
    ) -> None:
        same = self.bits == bits and self.own == own
        if self._switches == before or (self._switcher == _who() and same):
            return
        raise ConcurrentUseError(
            f"forward: expected to run at {bits} bits from stem to head, got a network that "
            f"another thread switched meanwhile (it is at {self.bits} bits now); {_ADVICE}"
        ) from cause

    def _set(self, bits: int, own: dict[str, int], quantized: bool) -> None:
        self.bits, self.own, self.quantized = bits, own, quantized
        if not torch.compiler.is_compiling():  # a graph would be made anew for every count
            self._switches += 1
            self._switcher = _who()

    @contextmanager
    def _block(self, bits: int, own: dict[str, int], quantized: bool) -> Iterator[None]:
        self._enter()
        before = self.bits, self.own, self.quantized
        self._set(bits, own, quantized)
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


def _split(setting: Setting) -> tuple[int, dict[str, int]]:
    """The network's bit-width, and those of the sites that have another one."""
    if isinstance(setting, Assignment):
        return setting.bits, dict(setting.own)
    return setting, {}


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


ActiveBits = Panel
"""The panel's name before release 0.2; it goes with the next one."""
