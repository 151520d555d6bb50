"""The walk over networks for maps, boxes, regions, videos and features, and the tables of it."""

from pathlib import Path

import pytest

from integration_tests.dense_models import dense_models
from integration_tests.dense_zoo import DenseLine, examine, walk, write_tables
from integration_tests.walking import in_own_process, read_lines
from integration_tests.zoo import Options
from tests.rewrite.test_dense_zoo import QUICK, REFUSED

MODELS = dense_models()


@pytest.mark.parametrize("name", [name for name in MODELS if name not in QUICK | REFUSED])
def test_is_treated_as_expected(name: str) -> None:
    model = MODELS[name]
    line = DenseLine(name, model.kind, model.converts)
    found = in_own_process(line, lambda: examine(model, [2]), timeout=600)
    assert found.as_expected(), f"{found.result} {found.reason} {found.packed}"


def test_what_is_walked() -> None:
    kinds = {model.kind for model in MODELS.values()}
    assert kinds == {
        *("segmentation", "detection", "heads of regions", "video", "optical flow"),
        *("features", "pooled features"),
    }
    assert sum(model.kind == "features" for model in MODELS.values()) > 40
    assert sum(name.startswith("tv:") for name in MODELS) == 39


def test_the_tables(tmp_path: Path) -> None:
    path, document = tmp_path / "dense.csv", tmp_path / "zoo.md"
    names = ["timm:test_resnet features", "tv:raft_small"]
    lines = walk(names, path, Options((2,), size=64))
    assert lines == walk(names, path, Options((2,), size=64)) == read_lines(path, DenseLine)
    markers = ("dense", "dense refusals", "dense exports")
    document.write_text("".join(f"<!-- {m} -->\n\n<!-- end of {m} -->\n" for m in markers))
    write_tables(lines, document)
    written = document.read_text()
    assert "| features | 1 of 1 | 1 of 1 | 14 of 15 |" in written
    assert "| optical flow | 0 of 1 | 0 of 0 | - | - |" in written
    assert "| `tv:raft_small` | RAFT.forward: expected one argument" in written
