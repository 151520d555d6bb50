"""What a run or an evaluation says before it starts: on what, with what, for how long, where to."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from brevitas_multiquant import MultiQuantNet
from brevitas_multiquant.recipes.data.batches import Eval, Train
from brevitas_multiquant.recipes.data.sources import split_root
from brevitas_multiquant.recipes.options.data import FOLDER, DataOptions, reads
from brevitas_multiquant.recipes.run.run import Run


def train_header(run: Run) -> str:
    """The lines that a run starts with."""
    args, epochs = run.args, run.args.epochs
    options = DataOptions.from_args(args)
    where = [place(options, part) for part in (True, False)]
    done = f", {run.progress.epoch} done" if args.resume is not None else ""
    classes = run.train.num_classes or run.step.num_classes
    return lines(
        ("data", f"{where[0]}: {images_of(run.train)} to train"),
        ("", f"{where[1]}: {images_of(run.val)} to validate"),
        ("images", f"{classes} classes, {args.img_size} x {args.img_size} pixels"),
        ("model", f"{args.model}, {network(run)}"),
        (
            "steps",
            f"{run.steps} an epoch, {run.steps * epochs} in {epochs} epochs{done}; "
            f"{run.images_per_step} images a step",
        ),
        ("output", "none: a dry run" if args.dry_run else str(run.folder)),
    )


def evaluation_header(args: argparse.Namespace, batches: Eval, bits: Sequence[int]) -> str:
    """The lines that an evaluation starts with."""
    options = DataOptions.from_args(args)
    mean, std = (", ".join(f"{v:g}" for v in values) for values in options.normalisation)
    return lines(
        ("data", f"{place(options, train=False)}: {images_of(batches)}"),
        ("images", f"{args.num_classes} classes, {args.img_size} x {args.img_size} pixels"),
        ("", f"less the mean {mean}, over the deviation {std}"),
        ("network", f"{args.packed}, {listed(bits)} bits"),
    )


def place(options: DataOptions, train: bool) -> str:
    """Where the images of a split come from: a folder, or a data set by name."""
    if options.dataset == FOLDER:
        return split_root(options, train)
    split = options.train_split if train else options.val_split
    parts = [options.dataset]
    if reads(options.dataset, "train_split"):
        parts.append(split)
    if options.data_dir is not None:
        parts.append(f"in {Path(options.data_dir)}")
    return " ".join(parts)


def images_of(batches: Train | Eval) -> str:
    """How many images there are, where that is known before they are read."""
    return "images read as a stream" if batches.count is None else f"{batches.count} images"


def network(run: Run) -> str:
    """What the float model has become."""
    if not isinstance(run.net, MultiQuantNet):
        return "float"
    config = run.net.config
    return f"{listed(run.bits)} bits, profile {config.profile}, weights {config.weights}"


def listed(bits: Sequence[int]) -> str:
    """Numbers in a row.

    Example:
        >>> listed((2, 4, 6))
        '2, 4, 6'
    """
    return ", ".join(map(str, bits))


def lines(*rows: tuple[str, str]) -> str:
    """Named rows as text, the names in a column.

    Example:
        >>> print(lines(("data", "digits"), ("", "again")))
        data     digits
                 again
    """
    return "\n".join(f"{name:<9}{text}" for name, text in rows)
