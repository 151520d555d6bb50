"""What becomes of networks of the zoos in the finn profile: a table of docs/finn_tables.md.

    python -m benchmarks.finn_zoo            # what is missing, each at most `SECONDS`
    python -m benchmarks.finn_zoo --table    # what is there, run nothing

As `finn_edge.py`: norm scales of both signs, random weights, the network of integers compared with
torch, and exported. One bit-width, 2 bits, since these networks are large. Each row is appended to
``benchmarks/results/finn_zoo.csv`` when it is done, and not run again.
"""

import argparse
import csv
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import timm
import torchvision
from torch import nn

from benchmarks.edge_networks import EdgeNetwork
from benchmarks.finn_edge import (
    brought_over,
    exported,
    largest_difference,
    luts_of,
    markdown,
    size_of,
)
from benchmarks.pages import FINN_TABLES, ROOT, write_between

RESULTS = ROOT / "benchmarks" / "results" / "finn_zoo.csv"
COLUMNS = ("network", "input", "outcome", "difference", "export", "LUT at 2")
SECONDS = 120
"""For one network; one that takes longer has a row that says so."""
LONGEST = 300
"""Characters of an outcome on the page."""
TIMM = (
    *("resnet10t", "resnet14t", "resnet18d", "mobilenetv1_100", "mobilenetv2_035"),
    *("mobilenetv2_050", "mobilenetv3_small_050", "mnasnet_small", "efficientnet_lite0"),
    *("tf_efficientnet_lite0", "efficientnet_b0", "regnetx_002", "regnety_002", "repvgg_a0"),
    *("ghostnet_050", "fbnetc_100", "semnasnet_050", "lcnet_035", "densenet121", "dla34"),
    *("hardcorenas_a", "resnetv2_18", "skresnet18", "seresnet18", "vgg11_bn", "tinynet_e"),
    *("convnext_atto", "mixnet_s", "rexnet_100", "cspresnet50", "spnasnet_100"),
    *("mobilenet_edgetpu_100", "starnet_s1", "efficientvit_b0", "edgenext_xx_small"),
    *("res2net50_14w_8s", "nf_resnet26", "xception41", "inception_v3", "selecsls42b"),
    "hrnet_w18_small",
)
TORCHVISION: dict[str, dict[str, Any]] = {
    "mobilenet_v2": {"width_mult": 0.25},
    "mobilenet_v3_small": {},
    "vgg11": {},
    "vgg11_bn": {},
    "alexnet": {},
    "squeezenet1_1": {},
    "shufflenet_v2_x0_5": {},
    "mnasnet0_5": {},
    "googlenet": {"aux_logits": False, "init_weights": False},
    "resnet18": {},
    "regnet_x_400mf": {},
    "densenet121": {},
    "efficientnet_b0": {},
}

SMALL = ("torchvision mobilenet_v2", "torchvision vgg11")
"""Networks that get 32x32 images; all others get 64x64."""


def zoo() -> Iterator[EdgeNetwork]:
    """All of them, for ten classes."""
    makers: dict[str, Callable[[], nn.Module]] = {
        f"timm {name}": partial(timm.create_model, name, num_classes=10) for name in TIMM
    }
    for name, options in TORCHVISION.items():
        make = getattr(torchvision.models, name)
        makers[f"torchvision {name}"] = partial(make, num_classes=10, **options)
    for name, maker in makers.items():
        size = 32 if name in SMALL else 64
        yield EdgeNetwork(name, maker, (1, 3, size, size))


class TooLongError(BaseException):
    """A network took more than `SECONDS`; no error of an export, which those are caught as."""


@contextmanager
def limited() -> Iterator[None]:
    """Ends what is inside after `SECONDS`."""

    def end(signum: int, frame: FrameType | None) -> None:
        raise TooLongError

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def measured(row: EdgeNetwork) -> dict[str, str]:
    """One line of the table; an error that is not ours is one of the outcomes."""
    difference = export = cost = "-"
    try:
        with limited():
            net, graphs, reason = brought_over(row, [2])
            outcome = f"refused: {reason}"
            if net is not None:
                outcome, difference = "maps", f"{largest_difference(net, graphs):g}"
                cost = luts_of(graphs[2], 100)
                export = exported(net)
    except TooLongError:
        outcome = f"not finished in {SECONDS} s"
    except Exception as error:  # what the table is there to show
        outcome = f"error: {type(error).__name__}: {' '.join(str(error).split())}"
    size = size_of(row.input_shape[1:])
    return dict(zip(COLUMNS, (row.name, size, outcome, difference, export, cost), strict=True))


def load(path: Path = RESULTS) -> list[dict[str, str]]:
    """Rows that are there."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def keep(row: dict[str, str], path: Path = RESULTS) -> None:
    """Append a row."""
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(row), lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerow(row)


def shown(row: dict[str, str]) -> dict[str, str]:
    """A row as the page has it: a long reason is cut, and none ends a cell."""
    cells = {name: value.replace("|", "/") for name, value in row.items()}
    if len(cells["outcome"]) > LONGEST:
        cells["outcome"] = f"{cells['outcome'][:LONGEST]} ..."
    return cells


def main() -> None:
    """Run what is missing, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", action="store_true", help="what is there, run nothing")
    if not parser.parse_args().table:
        done = {row["network"] for row in load()}
        for row in zoo():
            if row.name not in done:
                keep(measured(row))
                print(" | ".join(load()[-1].values()), flush=True)
    write_between(FINN_TABLES, "finn_zoo", markdown([shown(row) for row in load()]))


if __name__ == "__main__":
    main()
