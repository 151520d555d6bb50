"""``export.json``: what is said of the files of an export."""

from collections.abc import Sequence
from typing import Any

from brevitas_multiquant.core.precision import Assignment, Setting
from brevitas_multiquant.nn.network import MultiQuantNet

REPORT_VERSION = 1


def new_report(net: MultiQuantNet, input_shape: Sequence[int]) -> dict[str, Any]:
    """A report without files.

    Args:
        net: what is exported; what its images are is in the report.
        input_shape: (N, C, H, W) of the files.
    """
    report: dict[str, Any] = {"version": REPORT_VERSION, "input_shape": input_shape, "bits": {}}
    if net.image_task is not None:
        report["image_task"] = net.image_task.to_dict()
    return report


def enter(report: dict[str, Any], setting: Setting, entry: dict[str, Any]) -> None:
    """Write down what became of a bit-width, or of an assignment."""
    if isinstance(setting, Assignment):
        own = {"assignment": setting.to_dict(), **entry}
        report.setdefault("assignments", {})[setting.name] = own
    else:
        report["bits"][str(setting)] = entry
