"""What a step frees is there for the next one."""

import platform
import subprocess
import sys

import pytest

from recipes.memory import keep_freed_memory

FAULTS = """
import resource, torch
from recipes.memory import keep_freed_memory
if {keep}:
    assert keep_freed_memory()
def step():
    tensors = [torch.zeros(2 ** 20) for _ in range(8)]  # 4 MiB each
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(8):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(keep):
    """Page faults of eight steps that allocate and free 32 MiB, in a fresh process."""
    done = subprocess.run(
        [sys.executable, "-c", FAULTS.format(keep=keep)], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_freed_memory_is_used_again_without_page_faults():
    """A step's 32 MiB are 8192 pages of 4 KiB: kept, eight steps touch fewer new ones than one."""
    assert faults(keep=True) < 8192


def test_it_says_whether_it_was_done(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not keep_freed_memory()
