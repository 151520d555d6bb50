"""Where memories go: FINN's own choice beside ``memory="auto"``, by FINN's estimate reports.

    .venv-finn/bin/python benchmarks/finn_memory.py [--table]

ResNet-8 at 8 bits on 32x32 images, and as one accelerator for 2, 4, 6 and 8 bits on 16x16 images,
1000 frames a second on a ZCU104 at 200 MHz; executed and compared with torch after every build
step, the switchable one at every bit-width. Results go to benchmarks/results/finn_memory, and as a
table into docs/finn.md, with what fits on which board. ``--table`` does only that.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from torch import nn  # noqa: E402

from benchmarks.finn_matrix import EVEN, build  # noqa: E402
from benchmarks.pages import FINN_PAGE, write_between  # noqa: E402
from brevitas_multiquant.export import export_finn, fit_table  # noqa: E402
from brevitas_multiquant.export.sample import smooth_images  # noqa: E402
from brevitas_multiquant.training.calibrate import calibrate  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "finn_memory"
RUNS = {  # name -> (label, size of the images, whether one accelerator for all bit-widths)
    "resnet8_8b": ("cifar_resnet8, 32x32, 8 bits", 32, False),
    "resnet8_switchable": ("cifar_resnet8, 16x16, one for 2, 4, 6, 8 bits", 16, True),
}
MEMORIES = ("finn", "auto")


def network(size: int, switchable: bool) -> Any:
    """As in the matrix; weights are fixed in one accelerator, so norms have one sign there."""
    net = build("cifar_resnet8", size, bits=EVEN)
    if switchable:
        for norm in net.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.weight.data.abs_()
        calibrate(net, [smooth_images((8, 3, size, size))])
    return net


def measure(run: str, memory: str) -> dict[str, Any]:
    """Through FINN's flow up to its estimates."""
    _, size, switchable = RUNS[run]
    net = network(size, switchable)
    options = {"memory": memory, "estimate": True, "images": smooth_images((1, 3, size, size))}
    with tempfile.TemporaryDirectory() as folder:
        export_finn(net, folder, None if switchable else [8], switchable=switchable, **options)
        project = Path(folder) / ("switchable" if switchable else "8b")
        found = json.loads((project / "estimate.json").read_text())
    differences = [step["difference"] for step in found["steps"]]
    differences += list(found.get("switched", {}).values())
    return {
        "largest_difference": max(differences),
        "performance": found["performance"],
        "resources": found["resources"],
    }


def table() -> str:
    """Markdown: a line for each run and choice."""
    lines = [
        "| network | memory | LUT | BRAM 18K | DSP | frames/s | largest difference |",
        "|---|---|---|---|---|---|---|",
    ]
    for run, (label, _, _) in RUNS.items():
        for memory in MEMORIES:
            path = RESULTS / f"{run}_{memory}.json"
            if path.exists():
                found = json.loads(path.read_text())
                has = found["resources"]
                lines.append(
                    f"| {label} | `{memory}` | {has['LUT']:.0f} | {has['BRAM_18K']:.0f} | "
                    f"{has['DSP']:.0f} | {found['performance']['estimated_throughput_fps']:.0f} | "
                    f"{found['largest_difference']:g} |"
                )
    return "\n".join(lines)


def fits() -> str:
    """What fits where, as it is printed."""
    net, boards = build("cifar_resnet8", 32, bits=EVEN), ["ZCU104", "Ultra96-V2"]
    return f"```text\n{fit_table(net, boards, ['xc7z020clg400-1'], memory='auto')}\n```"


def main() -> None:
    """Run what is missing, then write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", action="store_true", help="what is there, run nothing")
    RESULTS.mkdir(parents=True, exist_ok=True)
    if not parser.parse_args().table:
        for run in RUNS:
            for memory in MEMORIES:
                path = RESULTS / f"{run}_{memory}.json"
                if not path.exists():
                    path.write_text(json.dumps(measure(run, memory), indent=1) + "\n")
                    print(f"{path.stem}: done", flush=True)
    write_between(FINN_PAGE, "finn_memory", table())
    write_between(FINN_PAGE, "finn_fit", fits())
    print(table())


if __name__ == "__main__":
    main()
