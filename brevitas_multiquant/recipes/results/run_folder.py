"""The folder of one run: who may write to it, and the networks in it."""

from pathlib import Path

from brevitas_multiquant.recipes.errors import ExperimentExistsError
from brevitas_multiquant.recipes.results.bits import ASSIGNMENT_FILE, BITS_FILE, SEARCH_FILE
from brevitas_multiquant.recipes.results.checkpoints import PARTIAL, checkpoints_in
from brevitas_multiquant.recipes.results.confusion import CONFUSION_FILE
from brevitas_multiquant.recipes.results.report import ARGS_FILE, SUMMARY_FILE

BEST_FILE = "best.safetensors"
LAST_FILE = "last.safetensors"
PAGE_FILE = "report.html"
RESULT_FILES = (
    *(ARGS_FILE, SUMMARY_FILE, CONFUSION_FILE, PAGE_FILE, BEST_FILE, LAST_FILE),
    *(BITS_FILE, ASSIGNMENT_FILE, SEARCH_FILE),
)


def require_new(folder: Path, overwrite: bool) -> None:
    """Check that a new run may write to ``folder``.

    Raises:
        ExperimentExistsError: it holds something already, and ``overwrite`` is false.
    """
    if not overwrite and folder.is_dir() and any(folder.iterdir()):
        raise ExperimentExistsError(
            f"expected a new or empty folder for this run, got {folder}: add --resume {folder} to "
            "continue the run in it, --experiment NAME for another folder, or --overwrite to "
            "replace its results"
        )


def clear(folder: Path) -> None:
    """Remove what a former run left, so that no file of it is taken for one of the new run."""
    for path in [*(folder / name for name in RESULT_FILES), *checkpoints_in(folder)]:
        path.unlink(missing_ok=True)


def remove_unfinished(folder: Path) -> None:
    """Remove the files that a run was writing aside when it was killed."""
    for pattern in (f"*{PARTIAL}", f".{BEST_FILE}.*", f".{LAST_FILE}.*"):
        for path in folder.glob(pattern):
            path.unlink()
