"""How the scripts of this folder measure: paired CPU times, and the allocator's peak.

The machines at hand are shared, so that an absolute time says little: A and B run one after the
other in one process, and the median of the pairs' ratios counts.
"""

import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import brevitas
import torch
from timm import __version__ as timm_version
from torch.profiler import ProfilerActivity, profile

Work = Callable[[], object]


def cpu_seconds(work: Work) -> float:
    """CPU time of all threads of this process."""
    started = time.process_time()
    work()
    return time.process_time() - started


def median_seconds(work: Work, repeats: int) -> float:
    """Median CPU time; the first run warms up."""
    return statistics.median([cpu_seconds(work) for _ in range(repeats + 1)][1:])


def paired_ratio(a: Work, b: Work, repeats: int) -> float:
    """Median over pairs of CPU time of ``a`` over that of ``b``; the first pair warms up."""
    pairs = [(cpu_seconds(a), cpu_seconds(b)) for _ in range(repeats + 1)]
    return statistics.median(first / second for first, second in pairs[1:])


def peak_bytes(work: Work) -> int:
    """The most memory that PyTorch's CPU allocator holds during ``work``, beyond what it held.

    Read off the profiler's trace; what libraries allocate for themselves is not in it.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        trace = json.loads(path.read_text())["traceEvents"]
    events = sorted(
        (event for event in trace if event.get("name") == "[memory]"), key=lambda e: e["ts"]
    )
    sizes = [event["args"]["Bytes"] for event in events if event["args"]["Device Type"] == 0]
    held = peak = 0
    for size in sizes:
        held += size
        peak = max(peak, held)
    return peak


def conditions(seed: int) -> dict[str, str | int]:
    """What a measurement depends on, for the record beside it."""
    return {
        "date": date.today().isoformat(),
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "brevitas": brevitas.__version__,
        "timm": timm_version,
        "seed": seed,
    }


def processor() -> str:
    """The processor's name where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
