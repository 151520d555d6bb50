"""What every switchable module of one network looks at: which bit-widths run."""

import asyncio
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, NamedTuple

import torch

from brevitas_multiquant.core.precision import Assignment, Precision, Setting
from brevitas_multiquant.core.selection import BRANCH_BITS, is_whole
from brevitas_multiquant.core.told import Told
from brevitas_multiquant.errors import BitWidthError, ConcurrentUseError

_ADVICE = (
    "call net.view(bits) once for each thread or bit-width, and run that: views share all "
    "parameters and have a bit-width of their own"
)


@dataclass(eq=False)
class Dial:
    """At which bits one site runs: a look at the panel.

    Args:
        site: its name.
        panel: where its bits stand, if it has some of its own, and the network's.
    """

    site: str
    panel: "Panel"

    def __post_init__(self) -> None:
        self.told: Told | None = None
        """The same as tensors while a compiled graph runs that serves any assignment."""

    @property
    def assigned(self) -> tuple[str, str]:
        """Where an assignment has the bits of its activations (`quant.member.Site`)."""
        return self.site, "activation"

    @property
    def assigned_weights(self) -> tuple[str, str]:
        """Where it has the bits of the weights that read the site."""
        return self.site, "weight"

    @property
    def bits(self) -> int:
        """The bit-width at which the site's activations are quantized."""
        return self.panel.own.get(self.site, self.panel.bits)

    @property
    def weight(self) -> int:
        """The bit-width of the weights that read the site."""
        return self.panel.own_weights.get(self.site, self.panel.weight)

    @property
    def weight_bits(self) -> int | None:
        """Bits of these weights whatever runs; None: they are chosen at run time."""
        fixed = self.panel.fixed_at(self.site)
        return self.panel.weight_bits if fixed is None else fixed.weight

    @property
    def activation_bits(self) -> int | None:
        """Bits of the site's activations whatever runs; None: they are chosen at run time."""
        fixed = self.panel.fixed_at(self.site)
        return None if fixed is None else fixed.activation


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
        own: site -> bit-width of its activations, of the sites that have another one than the
            network; replaced as a whole, never changed.
        dials: site -> its dial.
        own_weights: site -> bit-width of the weights that read it, of the sites where that is not
            `weight`; as ``own``.
        weight_bits: bits of all weights whatever runs: a branch has two; None: they have the
            network's bit-width, or what an assignment says.
        fixed: the assignment at which sites run always, for a network of a single bit-width.
        tied: whether the weights that read a site have as many bits as its activations.
    """

    bits: int
    quantized: bool = True
    own: dict[str, int] = field(default_factory=dict)
    dials: dict[str, Dial] = field(default_factory=dict)
    own_weights: dict[str, int] = field(default_factory=dict)
    weight_bits: int | None = BRANCH_BITS
    fixed: Assignment | None = None
    tied: bool = False

    activation_bits: ClassVar[None] = None
    assigned: ClassVar[None] = None
    assigned_weights: ClassVar[None] = None
    told: ClassVar[None] = None
    """As of a `Dial`: its bit-width is no site's."""

    def __post_init__(self) -> None:
        self.telling = False
        """Whether a compiled graph runs that serves any assignment (`nn.compiled.telling`)."""
        self._owner: Any = None  # of the open blocks
        self._depth = 0
        self._switcher: Any = None  # who switched last
        self._switches = 0
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        """What a copy starts from: no block is open there."""
        return {one.name: getattr(self, one.name) for one in fields(self)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def dial(self, site: str) -> Dial:
        """The dial of a site, the same for every branch."""
        return self.dials.setdefault(site, Dial(site, self))

    @property
    def weight(self) -> int:
        """The bit-width of weights, but for those of sites that have another one."""
        return self.weight_bits or self.bits

    def fixed_at(self, site: str) -> Precision | None:
        """The bits at which a site runs whatever the network does, if that is so."""
        return None if self.fixed is None else self.fixed.get(site)

    def precision_at(self, site: str, bits: int) -> Precision:
        """The bits at which a site runs while the network runs at one bit-width."""
        return self.fixed_at(site) or Precision(self.weight_bits or bits, bits)

    @property
    def setting(self) -> Setting:
        """What `switch` would have to be given to come back here."""
        return self.bits if self._shown() == self._split(self.bits) else self.assignment

    @property
    def assignment(self) -> Assignment:
        """At which bits every site runs."""
        sites = {site: Precision(dial.weight, dial.bits) for site, dial in self.dials.items()}
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
            sites, fixed = tuple(self.dials), self.fixed
            given.require_fits(caller, candidates, sites, self.weight_bits, fixed, self.tied)
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
        other = Panel(self.bits, self.quantized)
        other.weight_bits, other.fixed, other.tied = self.weight_bits, self.fixed, self.tied
        other.bits, other.own, other.own_weights = self._split(setting)
        dials = {id(dial): other.dial(site) for site, dial in self.dials.items()}
        return {id(self): other, **dials}

    def fix(self, assignment: Assignment) -> None:
        """Let sites run at these bits always.

        Raises:
            ConcurrentUseError: another thread or task has a block open.
        """
        self._refuse_others()
        self.fixed = assignment
        self._set(self._split(assignment.bits), self.quantized)

    def switch(self, setting: Setting) -> None:
        """Choose the bit-widths from here on.

        Raises:
            ConcurrentUseError: another thread or task has a block open.
        """
        self._refuse_others()
        self._set(self._split(setting), self.quantized)

    @contextmanager
    def at(self, setting: Setting) -> Iterator[None]:
        """Other bit-widths inside the block.

        Raises:
            ConcurrentUseError: another thread or task has a block open.
        """
        with self._block(self._split(setting), self.quantized):
            yield

    @contextmanager
    def floating(self) -> Iterator[None]:
        """Quantizers off inside the block.

        Raises:
            ConcurrentUseError: another thread or task has a block open.
        """
        with self._block(self._shown(), False):
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
        before, shown = self._switches, self._shown()
        try:
            yield
        except Exception as error:  # a branch without that bit-width, or anything that followed
            self._refuse_switched(before, shown, error)
            raise
        self._refuse_switched(before, shown, None)

    def _refuse_switched(self, before: int, shown: "_Shown", cause: Exception | None) -> None:
        same = self._shown() == shown
        if self._switches == before or (self._switcher == _who() and same):
            return
        raise ConcurrentUseError(
            f"forward: expected to run at {shown.bits} bits from stem to head, got a network that "
            f"another thread switched meanwhile (it is at {self.bits} bits now); {_ADVICE}"
        ) from cause

    def _shown(self) -> "_Shown":
        return _Shown(self.bits, self.own, self.own_weights)

    def _split(self, setting: Setting) -> "_Shown":
        """The network's bit-width, and those of the sites that have another one."""
        bits = setting.bits if isinstance(setting, Assignment) else setting
        given = setting if isinstance(setting, Assignment) else {}
        sites: Mapping[str, Precision] = {**given, **(self.fixed or {})}
        weight = self.weight_bits or bits
        return _Shown(
            bits,
            {site: own.activation for site, own in sites.items() if own.activation != bits},
            {site: own.weight for site, own in sites.items() if own.weight != weight},
        )

    def _set(self, shown: "_Shown", quantized: bool) -> None:
        self.bits, self.own, self.own_weights = shown
        self.quantized = quantized
        if not torch.compiler.is_compiling():  # a graph would be made anew for every count
            self._switches += 1
            self._switcher = _who()

    @contextmanager
    def _block(self, shown: "_Shown", quantized: bool) -> Iterator[None]:
        self._enter()
        before = self._shown(), self.quantized
        self._set(shown, quantized)
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


class _Shown(NamedTuple):
    """What the dials show: the network's bit-width, and the own ones of sites."""

    bits: int
    own: dict[str, int]
    own_weights: dict[str, int]


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
