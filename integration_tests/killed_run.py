"""A training run that kills itself at a given moment, for `test_resume`.

A moment is a phase and a count: the 40th module call inside a training step, the 3rd file half
written. Phases are found by wrapping what the recipe calls; the recipe itself knows nothing of it.
"""

import functools
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules.module import register_module_forward_pre_hook

from brevitas_multiquant.recipes import train
from brevitas_multiquant.recipes.network import multi_branch
from brevitas_multiquant.recipes.results import checkpoints
from brevitas_multiquant.recipes.run import loop
from brevitas_multiquant.recipes.run.step import Step

Moment = tuple[str, int]
PHASES = ("calibrate", "step", "evaluate", "half written", "before rename", "after rename")


@dataclass
class Watch:
    """Counts the moments of a run, and kills it at one of them."""

    deadly: Moment | None = None
    counts: Counter[str] = field(default_factory=Counter)
    phase: str | None = None

    def see(self, phase: str) -> bool:
        """Count a moment; true if it is the deadly one."""
        self.counts[phase] += 1
        return (phase, self.counts[phase]) == self.deadly

    def die_if_due(self, phase: str | None) -> None:
        """Count a moment, and end the process if it is the deadly one."""
        if phase is not None and self.see(phase):
            os.kill(os.getpid(), signal.SIGKILL)

    def phased(self, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, inside of which module calls are moments of the phase."""

        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            before, self.phase = self.phase, phase
            try:
                return function(*args, **kwargs)
            finally:
                self.phase = before

        return wrapped

    def save_file(self, tensors: Any, path: Path, metadata: Any) -> None:
        """What the recipe writes checkpoints with; half of the file where that is deadly."""
        _save_file(tensors, path, metadata)
        if self.see("half written"):
            os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    def replace(self, source: Any, target: Any) -> None:
        """``os.replace``, with a moment on either side."""
        self.die_if_due("before rename")
        _replace(source, target)
        self.die_if_due("after rename")


_save_file, _replace = checkpoints.save_file, os.replace


@contextmanager
def watching(watch: Watch) -> Iterator[None]:
    """Inside the block the recipe runs under the watch."""
    wrapped = [
        (multi_branch, "calibrate", watch.phased("calibrate", multi_branch.calibrate)),
        (Step, "__call__", watch.phased("step", Step.__call__)),
        (loop, "evaluation", watch.phased("evaluate", loop.evaluation)),
        (checkpoints, "save_file", watch.save_file),
        (os, "replace", watch.replace),
    ]
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in wrapped]
    hook = register_module_forward_pre_hook(lambda *_: watch.die_if_due(watch.phase))
    for owner, name, function in wrapped:
        setattr(owner, name, function)
    try:
        yield
    finally:
        hook.remove()
        for owner, name, function in before:
            setattr(owner, name, function)


def set_up(log: str) -> None:
    """One thread, output to a file, and a process group of its own, whose rest can be removed."""
    os.setpgid(0, 0)
    with open(log, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)


def train_until(argv: list[str], deadly: Moment | None, log: str) -> None:
    """Train in this process, and die at the moment if it comes; exits with the recipe's status."""
    set_up(log)
    with watching(Watch(deadly)):
        os._exit(train.main(argv))


def count_moments(argv: list[str], counts: Any, log: str) -> None:
    """Train to the end; puts how often each phase had a moment into the queue ``counts``."""
    set_up(log)
    watch = Watch()
    with watching(watch):
        status = train.main(argv)
    counts.put((status, dict(watch.counts)))
