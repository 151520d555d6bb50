"""Tables that scripts write into pages, so that these say what was measured."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS_PAGE = ROOT / "benchmarks" / "RESULTS.md"
FINN_PAGE = ROOT / "docs" / "finn.md"
FINN_TABLES = ROOT / "docs" / "finn_tables.md"


def write_between(page: Path, name: str, text: str) -> None:
    """Replace what stands between ``<!-- name -->`` and ``<!-- /name -->``, each on its own line.

    Raises:
        ValueError: the page has not one place of that name.
    """
    start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->\n"
    whole = page.read_text()
    if whole.count(start) != 1 or whole.count(end) != 1:
        raise ValueError(f"{page}: expected one place between {start.strip()} and {end.strip()}")
    before, rest = whole.split(start)
    _, after = rest.split(end)
    page.write_text(f"{before}{start}{text}\n{end}{after}")
