"""Whether FINN is here, which one, and running its estimates in a process of their own."""

import importlib.metadata
import subprocess
import sys
from pathlib import Path

from brevitas_multiquant.errors import ExportError

PACKAGE, SUPPORTED = "finn-plus", "1.6"

HINT = (
    "make finn-env, or pip install -r requirements-finn.txt in an environment of its own (it pins "
    "older releases of torch and Brevitas), and export there"
)


def finn_version() -> str | None:
    """The installed version of finn-plus; None without it."""
    try:
        return importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return None


def what_is_missing() -> str | None:
    """Why estimates cannot be made here; None if they can."""
    version = finn_version()
    if version is None:
        return f"{PACKAGE} is not installed: {HINT}"
    if version.split(".")[:2] != SUPPORTED.split("."):
        return f"{PACKAGE} is {version}, expected {SUPPORTED}.*: {HINT}"
    return None


def wants_estimates(asked: bool | None) -> bool:
    """Whether to make estimates: if asked, else if FINN is there.

    Raises:
        ExportError: asked for, and FINN is missing or of another version.
    """
    missing = what_is_missing()
    if asked and missing:
        raise ExportError(f"export_finn: estimates were asked for, but {missing}")
    return missing is None if asked is None else asked


def run_estimate(project: Path) -> None:
    """Run ``estimate.py`` of an exported project.

    Raises:
        ExportError: it failed; with the last lines that it printed.
    """
    run = subprocess.run(
        [sys.executable, "estimate.py"], cwd=project, capture_output=True, text=True, check=False
    )
    if run.returncode:
        last = "\n".join((run.stdout + run.stderr).strip().splitlines()[-15:])
        raise ExportError(
            f"export_finn: FINN's flow failed on {project.name}, no file was written; it printed "
            f"last:\n{last}"
        )
