"""What a step frees is there for the next one."""

import platform
import subprocess
import sys

import pytest

from brevitas_multiquant.recipes.run.memory import keep_freed_memory

FAULTS = """
import ctypes, resource
from brevitas_multiquant.recipes.run.memory import keep_freed_memory
if {keep}:
    assert keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
def step():
    blocks = [libc.malloc(2 ** 22) for _ in range(8)]
    for block in blocks:
        libc.memset(block, 0, 2 ** 22)
    for block in blocks:
        libc.free(block)
for _ in range(4):  # the heap grows until its pieces fit one another
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(8):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(keep):
    """Page faults of eight steps that fill and free 32 MiB each, in a fresh process."""
    done = subprocess.run(
        [sys.executable, "-c", FAULTS.format(keep=keep)], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_freed_memory_is_used_again_without_page_faults():
    """A block of 4 MiB is 1024 pages: kept, none of the 64 that eight steps fill is on new ones."""
    assert faults(keep=True) < 1024 <= faults(keep=False)


def test_it_says_whether_it_was_done(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not keep_freed_memory()
