"""Every Python snippet of the README and the docs runs, and links lead somewhere."""

import csv
import html
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import scale
from brevitas_multiquant.allocation import STRATEGIES
from brevitas_multiquant.cli.commands import parsers
from brevitas_multiquant.core.method import METHODS

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
GENERATED = {
    "results.md",
    "changelog.md",
    "options.md",
    "tour.md",
    "networks.md",
}  # of the site, from files elsewhere: docs/site_hooks.py
SNIPPETS = [
    pytest.param(snippet, id=f"{page.name}-{index}")
    for page in PAGES
    for index, snippet in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.S))
]


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_snippet_runs(snippet: str) -> None:
    names: dict[str, object] = {"__name__": "snippet"}
    torch.manual_seed(0)
    exec(compile(snippet, "snippet", "exec"), names)
    assert len(names) > 2


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_local_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())
    local = [link for link in links if not link.startswith("http")]
    missing = [
        link
        for link in local
        if Path(link).name not in GENERATED and not (page.parent / link).exists()
    ]
    assert not missing


def test_the_notebook_keeps_no_outputs() -> None:
    """They are made when the site is built."""
    cells = json.loads((ROOT / "docs" / "tour.ipynb").read_text())["cells"]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)


def test_tables_of_what_training_costs_are_those_that_were_measured() -> None:
    page = scale.DOCS.read_text()
    names = re.findall(r"<!-- table: (.*) -->", page)
    assert names == list(scale.tables()) and scale.with_tables(page) == page


def test_networks_that_map_to_fpgas_are_as_many_as_were_measured() -> None:
    page = " ".join((ROOT / "docs" / "finn.md").read_text().split())
    results = " ".join((ROOT / "benchmarks" / "RESULTS.md").read_text().split())
    told = {
        "finn_edge": r"Of \[(\d+) everyday edge.*?, (\d+) map",
        "finn_zoo": r"\[(\d+) of timm.*? (\d+),",
    }
    in_results = {
        "finn_edge": r"Of (\d+) everyday edge networks (\d+) map",
        "finn_zoo": r"`: (\d+) networks of timm.*?: (\d+) become",
    }
    for name in told:
        with (ROOT / "benchmarks" / "results" / f"{name}.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        counts = str(len(rows)), str(sum(row["outcome"] == "maps" for row in rows))
        assert re.findall(told[name], page) == re.findall(in_results[name], results) == [counts]


def test_files_that_the_architecture_names_exist() -> None:
    named = re.findall(r"`([\w/]+(?:\.py|/))`", (ROOT / "docs" / "architecture.md").read_text())
    places = (ROOT / "brevitas_multiquant", ROOT)
    assert len(named) > 30
    missing = [name for name in named if not any((place / name).exists() for place in places)]
    assert not missing


def test_tests_that_pages_name_exist() -> None:
    """And every method and strategy has its line among the systems."""
    text = "".join(page.read_text() for page in PAGES)
    named = set(re.findall(r"`(tests/[\w/]+\.py)", text))
    assert len(named) > 10
    assert not [name for name in named if not (ROOT / name).exists()]
    systems = (ROOT / "docs" / "methods.md").read_text().split("## Every system")[1]
    rows = [f'`method="{name}"`' for name in METHODS]
    rows += [f'`strategy="{name}"`' for name in STRATEGIES if name != "uniform"]
    assert not [row for row in rows if f"| {row}" not in systems]


def test_extensions_take_less_than_forty_lines() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    examples = re.findall(r"```python\n(.*?)```", page, re.S)
    assert examples and max(example.count("\n") for example in examples) < 40


def test_site_builds_without_warnings(tmp_path: Path) -> None:
    """As `make docs` does; every page of the folder is in it."""
    pytest.importorskip("mkdocstrings")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    result = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=environment, check=False
    )
    assert result.returncode == 0, result.stderr
    built = {page.relative_to(tmp_path).with_suffix(".md") for page in tmp_path.rglob("*.html")}
    written = {page.relative_to(ROOT / "docs") for page in PAGES[1:]}
    assert written <= built
    options = html.unescape((tmp_path / "reference" / "options.html").read_text())
    for parser in parsers().values():
        assert all(name in options for name in parser._option_string_actions if len(name) > 2)
    linked = (tmp_path / "index.html").read_text()
    assert all(f'href="{page.with_suffix(".html").as_posix()}"' in linked for page in written)
    tour = html.unescape((tmp_path / "tour.html").read_text())
    assert float(re.findall(r"8 bits: ([\d.]+) %", tour)[0]) > 95
    assert "BRAM18" in tour and len(list((tmp_path / "tour_files").glob("*.png"))) == 3
    reference = (tmp_path / "reference" / "build.html").read_text()
    for name in ("multiquantize", "MultiQuantNet.set_active_bits"):
        assert f'.{name}"' in reference
    assert '.from_pretrained"' in (tmp_path / "reference" / "store.html").read_text()
