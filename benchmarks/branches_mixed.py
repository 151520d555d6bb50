"""Activations of branches at the LUTs of a plain W8A8 network: which bits, and what they lose.

    python -m benchmarks.branches_mixed FILE --data-dir FOLDER
    python -m benchmarks.branches_mixed

FILE is a trained multi-branch network of the profile ``finn``; FOLDER holds train.tar and val.tar.
The budget is what one body of 8-bit weights and activations takes, by FINN's rules at `FPS` frames
a second on a `BOARD`. For every number of branches ``sqnr`` chooses the bits of the activations
from `IMAGES` training images, nothing is trained again, and all settings are evaluated on the
validation images, which choose nothing. Kept in ``benchmarks/results/mixed/branches.json``; without
FILE the table is written from there into RESULTS.md.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from benchmarks.mixed import BOARD, FPS, KEPT
from benchmarks.pages import RESULTS_PAGE, write_between
from brevitas_multiquant import (
    Allocation,
    Assignment,
    Budget,
    MultiQuantNet,
    allocate,
    calibrate,
    cost,
    load_packed,
    multiquantize,
)
from brevitas_multiquant.errors import BudgetError
from brevitas_multiquant.recipes.data.batches import Train
from brevitas_multiquant.recipes.network.accuracy import top1
from brevitas_multiquant.recipes.network.build import create_float_model
from brevitas_multiquant.recipes.options.train import parse_train
from brevitas_multiquant.recipes.run.create import create_batches

RESULTS = KEPT / "branches.json"
IMAGES = 256
HARDWARE: dict[str, Any] = {"target_fps": FPS, "board": BOARD}


def w8a8(net: MultiQuantNet, train: Train) -> dict[str, int]:
    """What one body of 8-bit weights and activations takes, of the same float network."""
    assert net.source is not None and net.input_shape is not None
    torch.manual_seed(0)
    model = create_float_model(net.source, False, None)
    one = multiquantize(
        model, [8], method="individual", profile="finn", input_shape=net.input_shape
    )
    calibrate(one, [images for images, _ in [next(iter(train.epoch(0)))]])
    return needs(one.eval(), 8)


def needs(net: MultiQuantNet, setting: int | Assignment) -> dict[str, int]:
    """LUTs, DSPs and block RAMs of a network at a bit-width or an assignment."""
    chosen = (setting,) if isinstance(setting, Assignment) else ()
    costs = cost(net, model="finn", assignments=chosen, **HARDWARE)
    total = costs[setting].total
    return {"luts": total.luts, "dsp": total.dsp, "bram18": total.bram18}


def within(net: MultiQuantNet, train: Train, luts: int, bits: int) -> Allocation | None:
    """The bits of activations that fit, of a network at one bit-width; None: none does."""
    budget = Budget(luts=luts, **HARDWARE)
    try:
        return allocate(net, budget, data=train.epoch(0), bits=bits)
    except BudgetError as error:
        print(f"{bits} bits: {error}")
        return None


def measure(packed: Path, data_dir: Path) -> dict[str, Any]:
    """Everything that the table shows."""
    accelerator = Accelerator(cpu=True)
    net = load_packed(packed).eval()
    size = str((net.input_shape or (0,))[-1])
    argv = ["-c", "common_cifar10_resnet8", "--data-dir", str(data_dir), "--img-size", size]
    train, val = create_batches(parse_train(argv).data, 1, accelerator)
    plain = w8a8(net, train)
    found = {bits: within(net, train, plain["luts"], bits) for bits in net.bits}
    mixed = {bits: one.assignment for bits, one in found.items() if one is not None}
    accuracy = top1(net, val, [*net.bits, *mixed.values()], accelerator)
    return {
        "w8a8": plain,
        "uniform": {
            bits: {"top1": round(accuracy[bits], 2), **needs(net, bits)} for bits in net.bits
        },
        "mixed": {
            bits: {
                "top1": round(accuracy[one], 2),
                **needs(net, one),
                "activations": {site: pair.activation for site, pair in one.items()},
            }
            for bits, one in mixed.items()
        },
    }


def table(found: dict[str, Any]) -> str:
    """Markdown: the budget, each bit-width, and what was chosen within the budget."""
    lines = ["| network | bits of activations | top-1 | LUTs | DSPs | BRAM18 |"]
    lines += ["|---|---|---|---|---|---|"]
    plain = found["w8a8"]
    lines.append(f"| one body, W8A8 (the budget) | 8 | | {_hardware(plain)} |")
    for kind in ("uniform", "mixed"):
        for bits, row in found[kind].items():
            chosen = ", ".join(map(str, row.get("activations", {"": bits}).values()))
            name = f"{int(bits) // 2} branches, {kind}".replace("1 branches", "1 branch")
            lines.append(f"| {name} | {chosen} | {row['top1']:.2f} | {_hardware(row)} |")
    return "\n".join(lines)


def _hardware(row: dict[str, Any]) -> str:
    return f"{row['luts']:,} | {row['dsp']} | {row['bram18']}"


def main() -> None:
    """Measure where a file is given; write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("packed", type=Path, nargs="?", help="a trained network to measure")
    parser.add_argument("--data-dir", type=Path)
    options = parser.parse_args()
    if options.packed is not None:
        if options.data_dir is None:
            parser.error("--data-dir: expected the folder of train.tar and val.tar, got none")
        found = measure(options.packed, options.data_dir)
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    shown = table(json.loads(RESULTS.read_text()))
    print(shown)
    write_between(RESULTS_PAGE, "branches_mixed", shown)


if __name__ == "__main__":
    main()
