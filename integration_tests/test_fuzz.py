"""A thousand damaged packed files, and what a refused one may cost."""

import faulthandler
import gc
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from brevitas_multiquant import (
    ModelSource,
    MultiQuantError,
    load_packed,
    multiquantize,
    save_packed,
)
from tests.packed import rewrite
from tests.test_fuzz import DamagedFiles

FILES = 1000
LONGEST_READ_S = 120
"""Far more than any read takes, also on a busy machine: only a hang gets there."""

CLEAR_PEAK = Path("/proc/self/clear_refs")


@pytest.fixture(autouse=True)
def _no_hang() -> Iterator[None]:
    yield
    faulthandler.cancel_dump_traceback_later()


def test_a_thousand_damaged_files(tmp_path: Path) -> None:
    damaged = DamagedFiles(tmp_path)
    answers: Counter[str] = Counter()
    for seed in range(FILES):
        faulthandler.dump_traceback_later(LONGEST_READ_S, exit=True)
        answers[damaged.check(seed)] += 1
    print(dict(answers))
    assert answers.total() == FILES
    assert answers["PackedFileError"] > FILES / 2
    assert answers["SourceError"] > 0


def peak_growth(read: Path, changes: object) -> int:
    """Bytes by which a refused read raises the peak of the resident memory."""
    rewrite(read, changes, signed=("header",))  # type: ignore[arg-type]
    gc.collect()
    before = _status("VmRSS")
    CLEAR_PEAK.write_text("5")
    with pytest.raises(MultiQuantError):
        load_packed(read)
    return _status("VmHWM") - before


def _status(key: str) -> int:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(key))
    return int(line.split()[1]) * 1024


@pytest.mark.skipif(not CLEAR_PEAK.exists(), reason="peak memory is read from Linux's /proc")
@pytest.mark.parametrize(
    "kwargs",
    [
        {"num_classes": 9},  # nearly the right network: known only once its arrays are compared
        {"num_classes": 10**12},
        {"in_chans": 10**6},
        {"num_classes": 10, "in_chans": 2_000_000},
    ],
)
def test_a_refused_file_takes_no_more_than_twice_its_size(
    kwargs: dict[str, int], tmp_path: Path
) -> None:
    """The network itself would take sixteen times the file: 2 bits become 32."""
    source = ModelSource("timm", "cifar_vgg11_bn")
    net = multiquantize(source.build(), [2, 4, 6, 8], input_shape=(1, 3, 32, 32), check=False)
    for module in net.modules():
        if hasattr(module, "observed"):
            module.observed.fill_(1)
    path = save_packed(net, tmp_path / "net.safetensors")
    del net
    load_packed(path)  # what is imported and cached on first use is no cost of the damage
    size = path.stat().st_size
    torch.manual_seed(0)
    growth = peak_growth(path, lambda arrays, header: header["source"].update(kwargs=kwargs))
    assert growth <= 2 * size, f"{growth} bytes for a file of {size}"
