"""One version, wherever a release says it."""

import re
from pathlib import Path

import yaml

from brevitas_multiquant import __version__

ROOT = Path(__file__).parent.parent


def test_changelog_starts_with_this_version_or_with_what_comes_after_it() -> None:
    headings = re.findall(
        r"^## \[([^\]]+)\](?: - (\d{4}-\d\d-\d\d))?$", (ROOT / "CHANGELOG.md").read_text(), re.M
    )
    released = [one for one in headings if one[0] != "Unreleased"]
    assert released[0][0] == __version__
    assert all(date for _, date in released)


def test_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == __version__
    heading = f"## [{__version__}] - {citation['date-released']}\n"
    assert heading in (ROOT / "CHANGELOG.md").read_text()
    assert all(one["title"] and one["authors"] for one in citation["references"])
