"""Options of ``python -m brevitas_multiquant allocate``: the budget, the data, what is written."""

import argparse
import json
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from brevitas_multiquant.allocation.allocate import allocate
from brevitas_multiquant.allocation.allocation import Allocation
from brevitas_multiquant.allocation.budget import UNITS, Budget
from brevitas_multiquant.allocation.cost_table import COST, CostTable
from brevitas_multiquant.allocation.problem import Pin
from brevitas_multiquant.allocation.strategies.catalogue import STRATEGIES
from brevitas_multiquant.cost.models import CONVENTIONS
from brevitas_multiquant.errors import BitWidthError, CalibrationError, ConfigError, SourceError
from brevitas_multiquant.export.sample import smooth_images

NOISE = 32
"""Images of noise that are looked at where none are given."""


def add_allocate_options(command: argparse.ArgumentParser) -> None:
    """What an allocation is asked for on the command line."""
    group = command.add_argument_group("budget", "one of the first five, or --accuracy-drop")
    for unit, help_ in (
        ("bitops", "bit operations an image"),
        ("bytes", "of storage"),
        ("luts", "look-up tables of an FPGA; with --target-fps"),
        ("custom", "in the unit of --cost-table"),
    ):
        group.add_argument(f"--{unit}", type=float, metavar="N", help=help_)
    group.add_argument("--ratio", type=float, help="share of the cost of --uniform bits everywhere")
    group.add_argument("--uniform", type=int, metavar="B", help="bits that the ratio is of")
    group.add_argument("--of", choices=UNITS, help="unit of a ratio; default: bitops")
    group.add_argument("--convention", choices=list(CONVENTIONS), help="what counts as BitOPs")
    group.add_argument("--target-fps", type=float, metavar="F", help="frames a second")
    group.add_argument("--board", help="name that FINN knows; default: ZCU104")
    group.add_argument("--clock-ns", type=float, metavar="NS", help="clock period")
    group.add_argument("--dsp", type=int, metavar="N", help="most DSPs; default: the board's")
    group.add_argument("--dsp-price", type=float, metavar="LUTS", help="LUTs that a DSP counts as")
    group.add_argument("--cost-table", metavar="FILE", help="CSV of measured costs of layers")
    group.add_argument(
        "--cost-column", default=COST, metavar="NAME", help="of the table, such as latency_us"
    )
    group.add_argument(
        "--interpolate", action="store_true", help="costs between measured bit-widths"
    )
    group.add_argument(
        "--accuracy-drop",
        type=float,
        metavar="SHARE",
        help="of the images of --data, which need labels, before any training; the cheapest that "
        "loses no more",
    )
    of_float_models = [name for name, row in STRATEGIES.items() if not row.run_time]
    command.add_argument("--strategy", choices=of_float_models, default="sqnr")
    command.add_argument(
        "--option",
        action="extend",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="of the strategy alone, such as metric=kl of sensitivity",
    )
    command.add_argument("--candidates", type=int, nargs="+", metavar="B", help="default: 2 to 8")
    command.add_argument(
        "--pin",
        action="extend",
        nargs="+",
        default=[],
        metavar="NAME=BITS",
        help="bits of a layer or glob that are no choice; NAME=WEIGHTS,ACTIVATIONS for two",
    )
    command.add_argument("--exact", action="store_true", help="solve the knapsack exactly")
    command.add_argument("--profile", choices=("paper", "finn"), help="default: finn for LUTs")
    command.add_argument("--weights", metavar="FILE", help="state dict of the float model")
    command.add_argument("--data", metavar="FILE", help=".npz with images, and labels for fisher")
    command.add_argument("--output", metavar="FILE", help="JSON or YAML of the assignment")
    command.add_argument("--plot", metavar="FILE", help="image of bits and curve")


def run_allocation(
    model: nn.Module, shape: tuple[int, ...], options: argparse.Namespace
) -> Allocation:
    """What the options ask for, printed and written.

    Args:
        model: the float model.
        shape: (1, C, H, W) of its images.
        options: of a parser that `add_allocate_options` extended.

    Raises:
        MultiQuantError: options that cannot be, or a budget that cannot be kept to.
    """
    if options.weights is not None:
        _load(model, options.weights)
    images, labels = _data(options.data, shape)
    found = allocate(
        *(model.eval(), _budget(options)),
        strategy=options.strategy,
        accuracy_drop=options.accuracy_drop,
        options=_options(options.option),
        data=[images if labels is None else (images, labels)],
        candidates=options.candidates,
        pins=_pins(options.pin),
        exact=options.exact,
        profile=options.profile,
        input_shape=shape,
    )
    print(found)
    for given, what in ((options.weights, "random weights"), (options.data, "images of noise")):
        if given is None:
            print(f"note: {what}; what a trained network is sensitive to is not in these bits")
    if options.output is not None:
        found.assignment.save(options.output)
    if options.plot is not None:
        found.plot(options.plot)
    return found


def _budget(options: argparse.Namespace) -> Budget | None:
    names = [one.name for one in fields(Budget) if one.name != "cost"]
    given: dict[str, Any] = {name: getattr(options, name) for name in names}
    if options.cost_table is not None:
        given["cost"] = CostTable.from_csv(
            options.cost_table, cost=options.cost_column, interpolate=options.interpolate
        )
    given = {name: value for name, value in given.items() if value is not None}
    return None if options.accuracy_drop is not None and not given else Budget(**given)


def _options(texts: Iterable[str]) -> dict[str, Any]:
    """Values as JSON where they are, such as numbers; else words."""
    options = {}
    for text in texts:
        name, is_given, value = text.partition("=")
        if not name or not is_given:
            raise ConfigError(f"--option: expected NAME=VALUE, got {text!r}")
        try:
            options[name] = json.loads(value)
        except json.JSONDecodeError:
            options[name] = value
    return options


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
            f"--weights: expected a state dict of the model, got {path}: {error}"
        ) from error


def _data(path: str | None, shape: tuple[int, ...]) -> tuple[Tensor, Tensor | None]:
    if path is None:
        _, channels, height, width = shape
        return smooth_images((NOISE, channels, height, width)), None
    try:
        with np.load(Path(path)) as file:
            arrays: Mapping[str, Any] = dict(file)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise CalibrationError(f"--data: expected an .npz file, got {path}: {error}") from error
    if "images" not in arrays:
        raise CalibrationError(f"--data: expected an array 'images', got {sorted(arrays)}")
    images = torch.from_numpy(arrays["images"]).float()
    labels = arrays.get("labels")
    return images, None if labels is None else torch.from_numpy(labels).long()
