"""What each method takes on an FPGA, by the rules of estimation: a table of docs/methods.md.

    python -m benchmarks.methods_finn            # estimate all, half a minute
    python -m benchmarks.methods_finn --table    # what is there, estimate nothing

ResNet-8 of the profile ``finn`` with drawn weights, calibrated with noise, `FPS` frames a second
on a `BOARD`, ``memory="auto"``; LUTs with those that FINN's estimate leaves out. Trained weights
change accumulators and with them the LUTs by a few per cent. ``benchmarks/methods.py`` shows the
numbers at 16x16 beside its accuracies. Kept in ``benchmarks/results/methods/finn.json``.
"""

import argparse
import json
from collections.abc import Mapping
from typing import Any

import timm
import torch

import brevitas_multiquant.core.cifar_networks  # noqa: F401  registers the CIFAR networks
from benchmarks.pages import ROOT, write_between
from brevitas_multiquant import calibrate, multiquantize
from brevitas_multiquant.export.finn.fit import fit_table

RESULTS = ROOT / "benchmarks" / "results" / "methods" / "finn.json"
FPS, BOARD = 1000, "ZCU104"
WIDE, NARROW = (2, 4, 6, 8), (2, 3, 4)
ROWS: dict[str, dict[str, Any]] = {
    "multiquant": {},
    "adabits, centered": {"grid": "centered"},
    "adabits, modified": {"grid": "modified"},
    "double_rounding": {},
    "vertical_layering": {},
    "any_precision, quantized shortcuts": {"shortcuts": "quantized"},
    "bit_mixer": {},
    "individual": {},
}
"""Method, and what is chosen for it -> options of `multiquantize`."""


def needs_of(row: str, bits: tuple[int, ...], size: int) -> dict[str, Any]:
    """Bit-width -> LUTs, block RAMs of 18 Kb and DSPs."""
    torch.manual_seed(0)
    model = timm.create_model("cifar_resnet8", num_classes=10)
    shape, method = (1, 3, size, size), row.partition(",")[0]
    net = multiquantize(
        model, bits, method=method, profile="finn", input_shape=shape, check=False, **ROWS[row]
    )
    calibrate(net, [torch.randn(8, *shape[1:])])
    table = fit_table(net, [BOARD], target_fps=FPS, memory="auto").to_dict()
    return {key: on_boards[BOARD] for key, on_boards in table.items()}


def estimated(size: int) -> dict[str, Any]:
    """Every method at one image size: row -> bit-width -> needs."""
    found: dict[str, Any] = {}
    for row in ROWS:
        lists = [(bits,) for bits in WIDE] if row == "individual" else [WIDE]
        found[row] = {}
        for bits in lists:
            found[row] |= needs_of(row, bits, size)
        print(f"{size}x{size} {row}", flush=True)
    for row in ("multiquant", "double_rounding", "bit_mixer"):
        found[f"{row} {NARROW}"] = needs_of(row, NARROW, size)
    return found


def cell(needs: Mapping[str, Any]) -> str:
    """LUTs in thousands, DSPs and block RAMs, as the head of the table says."""
    return f"{needs['luts'] / 1000:.1f}k / {needs['dsp']} / {needs['bram18']}"


def luts_and_dsps(row: str, bits: tuple[int, ...], size: int) -> str:
    """Of each bit-width of a row of `estimated`: thousands of LUTs, DSPs in parentheses."""
    needs = known(size).get(row, {})
    chosen = [needs[str(bit)] for bit in bits if str(bit) in needs]
    return " / ".join(f"{one['luts'] / 1000:.1f} ({one['dsp']})" for one in chosen)


def known(size: int) -> dict[str, Any]:
    """What was estimated at an image size; empty where nothing was."""
    if not RESULTS.is_file():
        return {}
    found: dict[str, Any] = json.loads(RESULTS.read_text())[str(size)]
    return found


def table(size: int) -> str:
    """Markdown: a line for each method."""
    lines = ["| method | " + " | ".join(f"{bits} bits" for bits in WIDE) + " |"]
    lines += ["|---|" + "---|" * len(WIDE)]
    for row in ROWS:
        cells = " | ".join(cell(known(size)[row][str(bits)]) for bits in WIDE)
        name, _, options = row.partition(", ")
        lines.append(f"| `{name}`{f', {options}' if options else ''} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    """Estimate, keep, and write the table into the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", action="store_true", help="of what is there; estimates nothing")
    if not parser.parse_args().table:
        RESULTS.write_text(
            json.dumps({size: estimated(size) for size in (16, 32)}, indent=1) + "\n"
        )
    write_between(ROOT / "docs" / "methods.md", "methods_finn", table(32))
    print(table(32))


if __name__ == "__main__":
    main()
