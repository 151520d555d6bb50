"""Which class the images of each class are taken for: ``confusion.csv`` of a run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from brevitas_multiquant.recipes.results.report import read_rows, write_rows

CONFUSION_FILE = "confusion.csv"
COLUMNS = ("bits", "label", "predicted", "images")


class Mistake(NamedTuple):
    """Two classes that are taken for one another.

    Args:
        label: what the images are.
        predicted: what they are taken for.
        images: how many.
        share: of the images of the label, from 0 to 1.
    """

    label: int
    predicted: int
    images: int
    share: float


def write_confusion(folder: Path, confusion: Mapping[int, Tensor]) -> None:
    """Write ``confusion.csv``: a row for each pair of classes that has images; nothing for none.

    Args:
        folder: of the run.
        confusion: bit-width -> (C, C) numbers of images, row: the label, column: the prediction.
    """
    rows = [
        dict(zip(COLUMNS, (bits, label, predicted, int(counts[label, predicted])), strict=True))
        for bits, counts in confusion.items()
        for label, predicted in counts.nonzero().tolist()
    ]
    if rows:
        write_rows(folder / CONFUSION_FILE, COLUMNS, rows)


def read_confusion(folder: Path, num_classes: int = 0) -> dict[int, Tensor]:
    """What `write_confusion` wrote; empty where there is no such file.

    Args:
        folder: of the run.
        num_classes: C; default: as many as are named.
    """
    path = folder / CONFUSION_FILE
    if not path.is_file():
        return {}
    rows = [tuple(int(row[name]) for name in COLUMNS) for row in read_rows(path)]
    size = max(num_classes, *(1 + max(label, predicted) for _, label, predicted, _ in rows))
    found: dict[int, Tensor] = {}
    for bits, label, predicted, images in rows:
        counts = found.setdefault(bits, torch.zeros(size, size, dtype=torch.int64))
        counts[label, predicted] = images
    return found


def mistakes(counts: Tensor, most: int) -> Sequence[Mistake]:
    """The pairs of classes that most images are in, those of the diagonal left out.

    Example:
        >>> mistakes(torch.tensor([[8, 2, 0], [1, 9, 0], [0, 0, 5]]), 1)
        [Mistake(label=0, predicted=1, images=2, share=0.2)]
    """
    wrong = counts.clone().fill_diagonal_(0)
    order = wrong.flatten().argsort(descending=True, stable=True)[:most]
    pairs = [divmod(place, len(counts)) for place in order.tolist()]
    return [
        Mistake(label, predicted, images, images / int(counts[label].sum()))
        for label, predicted in pairs
        if (images := int(counts[label, predicted]))
    ]
