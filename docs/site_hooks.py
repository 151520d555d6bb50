"""Pages of the site that live elsewhere in the repository, and links that lead out of it."""

import posixpath
import re
import sys
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from brevitas_multiquant.cli.commands import parsers
from brevitas_multiquant.storage.shipped import shipped_networks
from brevitas_multiquant.version import __version__

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "docs"))

from site_networks import networks_page  # noqa: E402
from site_notebook import notebook_page  # noqa: E402
from site_options import options_page  # noqa: E402

GENERATED = {"results.md": "benchmarks/RESULTS.md", "changelog.md": "CHANGELOG.md"}
OPTIONS = "reference/options.md"
NETWORKS = "networks.md"
NOTEBOOK = "tour.ipynb"
RESULTS = "benchmarks/results"
FIGURES = (".png", ".svg")
MORE = "More"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Name the version, and list pages that the navigation does not name, to be found too."""
    config.copyright = f"brevitas_multiquant {__version__}, BSD-3-Clause"
    assert config.nav is not None
    named = set(re.findall(r"[\w/]+\.md", str(config.nav)))
    unnamed = sorted(page.name for page in Path(config.docs_dir).glob("*.md"))
    more = [name for name in unnamed if name not in named]
    if more:
        config.nav.append({MORE: more})  # type: ignore[arg-type]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add pages that are written or executed here, and figures of the results."""
    for target, source in GENERATED.items():
        files.append(File.generated(config, target, content=(ROOT / source).read_text()))
    files.append(File.generated(config, OPTIONS, content=options_page(parsers())))
    files.append(File.generated(config, NETWORKS, content=networks_page(shipped_networks())))
    tour, figures = notebook_page(ROOT / "docs" / NOTEBOOK)
    files.append(File.generated(config, "tour.md", content=tour))
    for name, drawn in figures.items():
        files.append(File.generated(config, name, content=drawn))
    for figure in (ROOT / RESULTS).rglob("*"):
        if figure.name.endswith(FIGURES):
            name = figure.relative_to(ROOT / "benchmarks").as_posix()
            files.append(File.generated(config, name, abs_src_path=str(figure)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Links as they are in the site; text instead of those to what is in the repository alone."""
    uri = page.file.src_uri
    source = PurePosixPath(GENERATED.get(uri, f"docs/{uri}"))

    def in_site(link: re.Match[str]) -> str:
        text, target, anchor = link.groups()
        place = posixpath.normpath(source.parent / target)
        if target in GENERATED:
            site = target
        elif place in GENERATED.values():
            site = next(page for page, original in GENERATED.items() if original == place)
        elif place.startswith("docs/"):
            site = place.removeprefix("docs/")
        elif place.startswith(f"{RESULTS}/") and place.endswith(FIGURES):
            site = posixpath.relpath(place, "benchmarks")
        else:
            return text.strip("![]")
        return f"{text}({posixpath.relpath(site, posixpath.dirname(uri) or '.')}{anchor or ''})"

    return re.sub(r"(!?\[[^\]]*\])\((?!https?:|#)([^)#\s]+)(#[^)]*)?\)", in_site, markdown)
