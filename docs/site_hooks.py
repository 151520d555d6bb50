"""Pages of the site that live elsewhere in the repository, and links that lead out of it."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
GENERATED = {"results.md": "benchmarks/RESULTS.md", "changelog.md": "CHANGELOG.md"}
MORE = "More"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """List pages that the navigation does not name, so that none is built and never found."""
    assert config.nav is not None
    named = set(re.findall(r"[\w/]+\.md", str(config.nav)))
    unnamed = sorted(page.name for page in Path(config.docs_dir).glob("*.md"))
    more = [name for name in unnamed if name not in named]
    if more:
        config.nav.append({MORE: more})  # type: ignore[arg-type]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of `GENERATED` and the figures that the results show."""
    for target, source in GENERATED.items():
        files.append(File.generated(config, target, content=(ROOT / source).read_text()))
    results = ROOT / "benchmarks" / "results"
    for figure in (*results.rglob("*.png"), *results.rglob("*.svg")):
        name = figure.relative_to(results.parent).as_posix()
        files.append(File.generated(config, name, abs_src_path=str(figure)))
    return files


def on_page_markdown(markdown: str, page: object, **_: object) -> str:
    """Text instead of links to what is in the repository and not in the site."""
    outside = r"\[([^\]]+)\]\((?:\.\./|results/)(?![^)]*\.(?:png|svg)\))[^)]*\)"
    return re.sub(outside, r"\1", markdown)
