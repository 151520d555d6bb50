"""SIGINT and SIGTERM ask a run to save and stop; a second SIGINT stops it at once."""

import signal
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import TypeVar

from brevitas_multiquant.recipes.errors import Interrupted

Item = TypeVar("Item")
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Remembers the first signal inside a ``with`` block instead of dying of it.

    Example:
        >>> with StopRequest() as stop:
        ...     signal.raise_signal(signal.SIGTERM)
        ...     stop.received == signal.SIGTERM
        True
    """

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        self._before = {number: signal.signal(number, self._remember) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _remember(self, number: int, _: FrameType | None) -> None:
        self.received = number
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def obey(self, elsewhere: bool = False) -> None:
        """Raise if a signal came, here or, as ``elsewhere`` tells, in another process.

        Raises:
            Interrupted: with the signal's number, SIGTERM's where another process got it.
        """
        if self.received or elsewhere:
            raise Interrupted(self.received or signal.SIGTERM)

    def watch(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items, until a signal comes.

        Raises:
            Interrupted: with the signal's number.
        """
        for item in items:
            self.obey()
            yield item
