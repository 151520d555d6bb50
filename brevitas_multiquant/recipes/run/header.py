"""What a run or an evaluation says before it starts: on what, with what, for how long, where to."""

from collections.abc import Sequence
from pathlib import Path

from brevitas_multiquant.recipes.data.batches import Eval, Train
from brevitas_multiquant.recipes.data.sources import split_root
from brevitas_multiquant.recipes.options.data import FOLDER, DataOptions, reads
from brevitas_multiquant.recipes.run.run import Run


def train_header(run: Run) -> str:
    """The lines that a run starts with."""
    options, size = run.options, run.options.data.img_size
    epochs = options.optimisation.epochs
    where = [place(options.data, part) for part in (True, False)]
    done = f", {run.progress.epoch} done" if options.output.resume is not None else ""
    classes = run.train.num_classes or run.step.num_classes
    return lines(
        ("data", f"{where[0]}: {images_of(run.train)} to train"),
        ("", f"{where[1]}: {images_of(run.val)} to validate"),
        ("images", f"{classes} classes, {size} x {size} pixels"),
        ("model", f"{options.model.model}, {run.trainee.description}"),
        (
            "steps",
            f"{run.steps} per epoch, {run.steps * epochs} in {epochs} epochs{done}; "
            f"{run.images_per_step} images per step",
        ),
        ("output", "none: a dry run" if options.output.dry_run else str(run.folder)),
    )


def evaluation_header(packed: str, options: DataOptions, batches: Eval, bits: Sequence[int]) -> str:
    """The lines that an evaluation starts with."""
    size = options.img_size
    mean, std = (", ".join(f"{v:g}" for v in values) for values in options.normalisation)
    return lines(
        ("data", f"{place(options, train=False)}: {images_of(batches)}"),
        ("images", f"{options.num_classes} classes, {size} x {size} pixels"),
        ("", f"less the mean {mean}, over the deviation {std}"),
        ("network", f"{packed}, {listed(bits)} bits"),
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
