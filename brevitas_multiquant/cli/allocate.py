"""The bits of every layer within a budget, for a model with random weights or given ones."""

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor, nn

from brevitas_multiquant.allocation.allocate import allocate
from brevitas_multiquant.allocation.allocation import Allocation
from brevitas_multiquant.allocation.budget import UNITS, Budget
from brevitas_multiquant.allocation.cost_table import COST, CostTable
from brevitas_multiquant.allocation.problem import Pin
from brevitas_multiquant.allocation.strategies.catalogue import STRATEGIES
from brevitas_multiquant.cli.network import FloatModelOptions
from brevitas_multiquant.cost.models import CONVENTIONS
from brevitas_multiquant.errors import BitWidthError, CalibrationError, SourceError
from brevitas_multiquant.export.sample import smooth_images
from brevitas_multiquant.recipes.errors import exit_code
from brevitas_multiquant.recipes.options.option import (
    Parser,
    add_group,
    add_options,
    option,
    taken,
)
from brevitas_multiquant.recipes.options.types import key_value, number

NOISE = 32
"""Images of noise that are looked at where none are given."""


@dataclass(frozen=True)
class BudgetOptions:
    """The most that the network may cost, or the accuracy that it keeps."""

    bitops: float | None = option(type=number, metavar="N", help="bit operations an image")
    bytes: float | None = option(type=number, metavar="N", help="of storage")
    luts: float | None = option(
        type=number, metavar="N", help="look-up tables of an FPGA; with --target-fps"
    )
    custom: float | None = option(type=number, metavar="N", help="in the unit of --cost-table")
    ratio: float | None = option(
        type=number, metavar="SHARE", help="of the cost of --uniform bits everywhere"
    )
    uniform: int | None = option(type=int, metavar="B", help="bits that the ratio is of")
    of: str | None = option(choices=UNITS, help="unit of a ratio (default: bitops)")
    convention: str | None = option(
        choices=list(CONVENTIONS), help="what counts as BitOPs (default: quantized)"
    )
    target_fps: float | None = option(type=number, metavar="F", help="frames a second")
    board: str | None = option(metavar="NAME", help="that FINN knows (default: ZCU104)")
    clock_ns: float | None = option(type=number, metavar="NS", help="clock period (default: 5)")
    dsp: int | None = option(type=int, metavar="N", help="most DSPs (default: the board's)")
    dsp_price: float | None = option(
        type=number, metavar="LUTS", help="LUTs that a DSP counts as (default: 0)"
    )
    cost_table: str | None = option(metavar="FILE", help="CSV of measured costs of layers")
    cost_column: str = option(COST, metavar="NAME", help="of the table, such as latency_us")
    interpolate: bool = option(False, help="costs between measured bit-widths")
    accuracy_drop: float | None = option(
        type=number,
        metavar="SHARE",
        help="of the images of --data, which need labels, before any training; the cheapest that "
        "loses no more",
    )

    @property
    def budget(self) -> Budget | None:
        """What was asked for; None where that is an accuracy alone.

        Raises:
            BudgetError, ConfigError, HardwareError: as `Budget`.
        """
        names = [one.name for one in fields(Budget) if one.name != "cost"]
        given: dict[str, Any] = {name: getattr(self, name) for name in names}
        if self.cost_table is not None:
            given["cost"] = CostTable.from_csv(
                self.cost_table, cost=self.cost_column, interpolate=self.interpolate
            )
        given = {name: value for name, value in given.items() if value is not None}
        return None if self.accuracy_drop is not None and not given else Budget(**given)


@dataclass(frozen=True)
class AllocateOptions(FloatModelOptions):
    """The model, what decides its bits, and what is written."""

    strategy: str = option(
        "sqnr",
        choices=[name for name, row in STRATEGIES.items() if not row.run_time],
        help="what decides",
    )
    candidates: list[int] | None = option(
        type=int, nargs="+", metavar="B", help="bit-widths to choose from (default: 2 to 8)"
    )
    pin: list[str] = option(
        [],
        action="extend",
        nargs="+",
        metavar="NAME=BITS",
        help="bits of a layer or glob that are no choice; NAME=WEIGHTS,ACTIVATIONS for two",
    )
    exact: bool = option(False, help="solve the knapsack exactly")
    profile: str | None = option(choices=("paper", "finn"), help="default: finn for LUTs")
    initial_checkpoint: str | None = option(
        metavar="FILE", help="state dict of the float model (default: random weights)"
    )
    data: str | None = option(metavar="FILE", help=".npz with images, and labels for fisher")
    output: str | None = option(metavar="FILE", help="JSON or YAML of the assignment")
    plot: str | None = option(metavar="FILE", help="image of bits and curve")
    option: list[tuple[str, Any]] = option(
        [],
        key_value,
        "of the strategy alone, such as metric=kl of sensitivity",
        action="extend",
        nargs="+",
        metavar="NAME=VALUE",
    )


def allocate_parser() -> argparse.ArgumentParser:
    """All options of ``allocate``."""
    parser = Parser("allocate", description=__doc__)
    add_options(parser, AllocateOptions)
    add_group(parser, "budget: one of the first five, or --accuracy-drop", BudgetOptions)
    return parser


def run(options: AllocateOptions, most: BudgetOptions) -> Allocation:
    """Print the bits of every layer, beside the uniform network, and write what is asked for.

    Raises:
        MultiQuantError: an unknown model, options that cannot be, or a budget that cannot be kept
            to.
    """
    model = options.build()
    shape = options.shape_for(model)
    if options.initial_checkpoint is not None:
        _load(model, options.initial_checkpoint)
    images, labels = _data(options.data, shape)
    found = allocate(
        *(model.eval(), most.budget),
        strategy=options.strategy,
        accuracy_drop=most.accuracy_drop,
        options=dict(options.option),
        data=[images if labels is None else (images, labels)],
        candidates=options.candidates,
        pins=_pins(options.pin),
        exact=options.exact,
        profile=options.profile,
        input_shape=shape,
    )
    print(found)
    for given, what in (
        (options.initial_checkpoint, "random weights"),
        (options.data, "images of noise"),
    ):
        if given is None:
            print(f"note: {what}; what a trained network is sensitive to is not in these bits")
    if options.output is not None:
        found.assignment.save(options.output)
    if options.plot is not None:
        found.plot(options.plot)
    return found


def _pins(texts: Iterable[str]) -> dict[str, Pin]:
    pins: dict[str, Pin] = {}
    for name, pin in map(_pin, texts):
        if pins.setdefault(name, pin) != pin:
            raise BitWidthError(f"--pin {name}: expected one pin, got {pins[name]} and {pin}")
    return pins


def _pin(text: str) -> tuple[str, Pin]:
    name, _, bits = text.rpartition("=")
    try:
        numbers = [int(one) for one in bits.split(",")]
    except ValueError:
        numbers = []
    if not name or len(numbers) not in (1, 2):
        raise BitWidthError(f"--pin: expected NAME=BITS or NAME=WEIGHTS,ACTIVATIONS, got {text!r}")
    return name, numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1])


def _load(model: nn.Module, path: str) -> None:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict(state)
    except (OSError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        raise SourceError(
            f"--initial-checkpoint: expected a state dict of the model, got {path}: {error}"
        ) from error


def _data(path: str | None, shape: tuple[int, ...]) -> tuple[Tensor, Tensor | None]:
    if path is None:
        return smooth_images((NOISE, *shape[1:])), None
    try:
        with np.load(Path(path)) as file:
            arrays: Mapping[str, Any] = dict(file)
    except (OSError, ValueError, TypeError, AttributeError, EOFError, BadZipFile) as error:
        why = error.strerror if isinstance(error, OSError) else "something else, or damaged"
        raise CalibrationError(
            "--data: expected an .npz file of numpy.savez(FILE, images=..., labels=...), got "
            f"{path}: {why}"
        ) from error
    if "images" not in arrays:
        raise CalibrationError(f"--data: expected an array 'images', got {sorted(arrays)}")
    images = torch.from_numpy(arrays["images"]).float()
    labels = arrays.get("labels")
    return images, None if labels is None else torch.from_numpy(labels).long()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0 for success, 2 for wrong usage, 1 for any other named error."""
    parsed = allocate_parser().parse_args(argv)
    return exit_code(lambda: run(taken(AllocateOptions, parsed), taken(BudgetOptions, parsed)))


if __name__ == "__main__":
    sys.exit(main())
