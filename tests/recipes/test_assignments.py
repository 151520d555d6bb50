"""``recipes/train.py --assignment``: a network whose layers have bits of their own."""

import json

import pytest

from brevitas_multiquant import Assignment, load_packed
from brevitas_multiquant.recipes import search, train
from tests.recipes.runs import NAME, rows_of, tiny

SITES = (
    *("layer1.0.conv1", "layer1.0.conv2", "layer2.0.downsample.0"),
    *("layer2.0.conv2", "layer3.0.downsample.0", "layer3.0.conv2"),
)
MIXED = Assignment(4, {site: (2 + at % 3, 3 + at % 2) for at, site in enumerate(SITES)})


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mixed.json"
    MIXED.save(path)
    return str(path)


def test_a_mixed_network_trains_and_goes_on_without_the_file(tmp_path, file):
    """The run's options hold the bits themselves."""
    argv = tiny(tmp_path, "--method", "individual", "--assignment", file, "--epochs", "1")
    assert train.main(argv) == 0
    assert load_packed(tmp_path / NAME / "last.safetensors").assignment == MIXED
    (tmp_path / "mixed.json").unlink()
    assert train.main(["--resume", str(tmp_path / NAME), "--epochs", "2"]) == 0
    assert [row["epoch"] for row in rows_of(tmp_path)] == ["1", "2"]
    assert load_packed(tmp_path / NAME / "last.safetensors").config.assignment == MIXED


INDIVIDUAL = ("--method", "individual")


@pytest.mark.parametrize(
    ("recipe", "more", "message"),
    [
        (train, (), "--assignment: expected one of the methods ['individual']"),
        (train, (*INDIVIDUAL, "--float"), "--assignment: expected a multi-branch network"),
        (search, (), "--assignment: expected bits to search for, got those of every layer"),
    ],
)
def test_refused(tmp_path, file, capsys, recipe, more, message):
    assert recipe.main(tiny(tmp_path, "--assignment", file, *more)) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "expected a file that can be read"),
        ({"bits": 4}, "expected the keys ['bits', 'sites', 'version']"),
    ],
)
def test_a_file_of_something_else(tmp_path, capsys, content, message):
    path = tmp_path / "other.json"
    if content is not None:
        path.write_text(json.dumps(content))
    with pytest.raises(SystemExit):
        train.main(tiny(tmp_path, *INDIVIDUAL, "--assignment", str(path)))
    assert message in capsys.readouterr().err


def test_bits_of_another_network(tmp_path, capsys):
    path = tmp_path / "other.json"
    Assignment(4, {"layer9": (2, 2)}).save(path)
    assert train.main(tiny(tmp_path, *INDIVIDUAL, "--assignment", str(path))) == 2
    assert "layer9" in capsys.readouterr().err
