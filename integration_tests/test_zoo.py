"""The walk over the zoo: one line per model, resumable, no model ends it."""

from dataclasses import replace
from pathlib import Path

import pytest

from integration_tests import zoo as walking
from integration_tests.models import all_names, build, family, small_shape, zoo
from integration_tests.walking import Line, read_lines
from integration_tests.zoo import Options, guarded, walk
from integration_tests.zoo_tables import write_table

QUICK = Options((2,), size=64)


def test_what_is_walked() -> None:
    names = all_names()
    assert len(names) == len(set(names)) == 1451
    assert len(zoo().cnns) == 712 and len(zoo().representatives) == 60
    assert names[:60] == list(zoo().representatives)
    assert set(names[:712]) == set(zoo().cnns)
    assert family("tv:resnet18") == "torchvision resnet"
    assert family("timm:resnet18") == "timm resnet"


def test_a_walk_goes_on_where_it_stopped(tmp_path: Path) -> None:
    path = tmp_path / "zoo.csv"
    (line,) = walk(["timm:test_resnet"], path, QUICK)
    assert (line.result, line.self_check, line.cnn) == ("converted", "equal", True)
    assert (line.layers, line.quantized, line.adds) == (16, 14, 4)
    assert line.seconds > 0 and line.as_expected()
    before, refused = walk(["timm:test_resnet", "timm:test_vit"], path, QUICK)
    assert before == line
    assert refused.result == "refused" and "attention" in refused.reason and not refused.cnn
    assert refused.as_expected()
    assert path.read_text().count("timm:test_resnet") == 1


def test_no_model_ends_the_walk(monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object) -> Line:
        raise SystemExit(3)

    def fail(*_: object) -> Line:
        raise KeyError("what")

    name = "timm:test_resnet"
    monkeypatch.setattr(walking, "examine", crash)
    assert guarded(name, QUICK).result == "crash"
    monkeypatch.setattr(walking, "examine", fail)
    failed = guarded(name, QUICK)
    assert failed.result == "KeyError" and not failed.as_expected()
    monkeypatch.undo()
    assert guarded(name, replace(QUICK, timeout=0.0)).result == "timeout"


def test_a_model_without_its_classifier_gets_one() -> None:
    model = build("timm:resnet50_clip_gap")
    assert model.num_classes == 1000
    assert small_shape(model, 64) == (1, 3, 64, 64)


def test_the_table(tmp_path: Path) -> None:
    path, document = tmp_path / "zoo.csv", tmp_path / "zoo.md"
    walk(["timm:test_resnet", "timm:test_vit"], path, QUICK)
    markers = ("walk", "families", "refusals", "exports")
    document.write_text("".join(f"<!-- {m} -->\n\n<!-- end of {m} -->\n" for m in markers))
    write_table(read_lines(path), document)
    written = document.read_text()
    assert "| timm resnet | 1 | 1 | 14 of 16 |" in written
    assert "| attention | 1 |" in written
    write_table(read_lines(path), document)
    assert document.read_text() == written
