"""Words for another folding: `switch.py` says so before it writes one."""

import json

import numpy as np
import pytest

from brevitas_multiquant.export.finn.project_files import PROJECT
from tests.export.finn.test_export import imported

PORTS = [
    {"layer": "Thresholding_rtl_0", "PE": 1, "words": 4},
    {"layer": "Thresholding_rtl_1", "PE": 2, "words": 2},
]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Two ports, their words, and what a project carries of them."""
    words = tmp_path / "runtime_weights" / "4b"
    words.mkdir(parents=True)
    (words.parent / "ports.json").write_text(json.dumps(PORTS))
    for index, port in enumerate(PORTS):
        lines = [f"{word:08x}\n" for word in range(port["words"])]
        (words / f"{index}_{port['layer']}.dat").write_text("".join(lines))
    folding = {"Defaults": {}, **{port["layer"]: {"PE": port["PE"]} for port in PORTS}}
    (tmp_path / "folding_config.json").write_text(json.dumps(folding))
    for name in ("switch.py", "host.py"):
        (tmp_path / name).write_text((PROJECT / name).read_text())
    monkeypatch.chdir(tmp_path)
    return imported(tmp_path / "switch.py", monkeypatch).BitWidths


def test_words_that_fit(project, tmp_path):
    assert [words.tolist() for words in project(tmp_path).words(4)] == [[0, 1, 2, 3], [0, 1]]


def test_a_folding_file_that_was_edited_since(project, tmp_path):
    (tmp_path / "folding_config.json").write_text(json.dumps({"Thresholding_rtl_1": {"PE": 4}}))
    written = []
    with pytest.raises(ValueError, match=r"port 1, Thresholding_rtl_1: made for PE 2, .* has PE 4"):
        project(tmp_path).switch(4, lambda *words: written.append(words))
    assert not written


def test_the_folding_of_another_bitstream(project, tmp_path):
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"Thresholding_rtl_0": {"PE": 2, "mem": 1}}))
    with pytest.raises(ValueError, match=r"port 0, .* made for PE 1, the accelerator has PE 2"):
        project(tmp_path, other).words(4)


def test_words_of_another_number(project, tmp_path):
    file = tmp_path / "runtime_weights" / "4b" / "0_Thresholding_rtl_0.dat"
    file.write_text("00000000\n" * 8)
    with pytest.raises(ValueError, match="port 0, Thresholding_rtl_0: expected 4, got 8; run est"):
        project(tmp_path).words(4)
    file.unlink()
    with pytest.raises(ValueError, match="words: expected 2 ports, got 1"):
        project(tmp_path).words(4)


def test_projects_that_do_not_say(project, tmp_path):
    (tmp_path / "runtime_weights" / "ports.json").unlink()
    (tmp_path / "folding_config.json").unlink()
    assert np.array_equal(project(tmp_path).words(4)[1], [0, 1])
