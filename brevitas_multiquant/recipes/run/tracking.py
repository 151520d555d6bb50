"""Experiment trackers, through Accelerate."""

from importlib.util import find_spec

from accelerate import Accelerator

from brevitas_multiquant.errors import MissingPackageError


def require_tracker(name: str | None) -> None:
    """Check that a tracker is installed, as Accelerate would pass over a missing one in silence.

    Raises:
        MissingPackageError: it is not.
    """
    if name is not None and find_spec(name) is None:
        raise MissingPackageError(
            f"--log-with {name}: expected the package {name}, which is not installed: "
            f"pip install {name}"
        )


def start_trackers(accelerator: Accelerator, project: str, options: dict[str, object]) -> None:
    """Open the tracker with the options that a tracker can show."""
    shown = {
        name: value if isinstance(value, bool | int | float | str) else str(value)
        for name, value in options.items()
    }
    accelerator.init_trackers(project, config=shown)
