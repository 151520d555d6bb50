"""Files of every released version of the format load forever, equal to the bit."""

import json
import shutil
from pathlib import Path

import pytest

from brevitas_multiquant import ModelSource, load_packed, save_packed
from brevitas_multiquant.storage.packed_file import HEADER_KEYS
from tests.data.make_golden import BITS, CLASSES, TASK, logits
from tests.packed import rewrite, take_apart

DATA = Path(__file__).parent / "data"
VERSIONS = tuple(HEADER_KEYS)


@pytest.mark.parametrize("version", VERSIONS)
def test_golden_file(version: int, tmp_path: Path) -> None:
    path = DATA / f"packed_v{version}.safetensors"
    net = load_packed(path)
    assert net.bits == BITS
    assert net.source == ModelSource("timm", "cifar_resnet8", {"num_classes": CLASSES})
    assert net.input_shape == (1, 3, 4, 4)
    assert net.image_task == (TASK if version == 3 else None)
    expected = json.loads((DATA / f"packed_v{version}.json").read_text())
    assert logits(net) == expected
    assert len({tuple(row) for rows in expected.values() for row in rows}) > BITS[-1]
    again = take_apart(save_packed(net, tmp_path / "again.safetensors"))[1]
    arrays = take_apart(path)[1]
    assert again.keys() == arrays.keys()
    assert all((again[key] == arrays[key]).all() for key in arrays)


def test_header_without_checksum(tmp_path: Path) -> None:
    """Files of before the first release have none; what else they hold is checked as ever."""
    path = shutil.copy(DATA / "packed_v1.safetensors", tmp_path / "old.safetensors")
    rewrite(path, lambda arrays, header: header.pop("header_sha256"), signed=())
    assert logits(load_packed(path)) == json.loads((DATA / "packed_v1.json").read_text())
