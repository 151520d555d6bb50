"""Which releases of torch and Brevitas are accepted, warned of, refused."""

import tomllib
import warnings
from pathlib import Path

import pytest

from brevitas_multiquant.core.supported_versions import SUPPORTED, Supported, check_version

ROOT = Path(__file__).resolve().parents[2]
TORCH, BREVITAS = SUPPORTED


@pytest.mark.parametrize(
    ("supported", "installed"),
    [
        (TORCH, "2.12.0"),
        (TORCH, "2.12.1+cpu"),
        (TORCH, "2.15.0+cu130"),
        (TORCH, "2.15.0rc1"),
        (BREVITAS, "0.13.0"),
        (BREVITAS, "0.13.4"),
        (BREVITAS, "0.13.10.post1"),
    ],
)
def test_tested_releases_are_accepted_in_silence(supported: Supported, installed: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_version(supported, installed)


@pytest.mark.parametrize(("supported", "installed"), [(TORCH, "2.9.1"), (BREVITAS, "0.12.1")])
def test_older_ones_are_refused(supported: Supported, installed: str) -> None:
    name, lowest, untested = supported
    wanted = rf"needs {name}>={lowest},<{untested}, got {installed}; pip install '{name}>="
    with pytest.raises(ImportError, match=wanted):
        check_version(supported, installed)


@pytest.mark.parametrize(("supported", "installed"), [(TORCH, "2.16.0"), (BREVITAS, "0.14.0")])
def test_newer_ones_are_warned_of(supported: Supported, installed: str) -> None:
    with pytest.warns(UserWarning, match=f"is tested with .* got {installed}"):
        check_version(supported, installed)


def test_the_project_file_asks_for_the_same() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for package, lowest, _ in SUPPORTED:
        (asked,) = [line for line in project["dependencies"] if line.startswith(package)]
        assert asked.startswith(f"{package}>={lowest}")


def test_the_readme_says_so() -> None:
    readme = (ROOT / "README.md").read_text()
    for package, lowest, untested in SUPPORTED:
        assert f"`{package}>={lowest},<{untested}`" in readme
