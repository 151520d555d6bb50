"""What segmentation leaves: a table of the epochs, and a picture of predictions per bit-width."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.colors import ListedColormap
from torch import Tensor

from brevitas_multiquant.recipes.results.plots import COLOURS, INK

SUMMARY, PICTURE = "summary.csv", "predictions.png"


def write_summary(folder: Path, rows: Sequence[Mapping[str, float]]) -> None:
    """A line an epoch, from 1: training loss, and mean IoU at each bit-width in percent."""
    with (folder / SUMMARY).open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({name: round(value, 4) for name, value in row.items()} for row in rows)


def draw_predictions(
    folder: Path,
    images: Tensor,
    masks: Tensor,
    found: Mapping[int, Tensor],
    scores: Mapping[int, float],
    classes: Sequence[str],
) -> None:
    """A row an image: the image, its classes, and what each bit-width tells.

    Args:
        folder: to write to.
        images: (N, 3, H, W), of mean 0 and variance 1.
        masks: classes (N, H, W).
        found: bit-width -> classes (N, H, W).
        scores: bit-width -> mean IoU in percent.
        classes: names in the order of the numbers.
    """
    colours = ListedColormap(["#FFFFFF", *COLOURS[: len(classes) - 1]])
    columns = ["image", "classes", *(f"{bits} bits, mIoU {scores[bits]:.1f} %" for bits in found)]
    size = (2.1 * len(columns), 2.1 * len(images) + 0.5)
    figure, panels = plt.subplots(
        len(images), len(columns), figsize=size, squeeze=False, layout="constrained"
    )
    for row, image in enumerate(images):
        shown = [masks[row], *(one[row] for one in found.values())]
        panels[row][0].imshow(np.clip(image.permute(1, 2, 0).numpy() / 5 + 0.5, 0, 1))
        for panel, mask in zip(panels[row][1:], shown, strict=True):
            panel.imshow(
                mask.numpy(), cmap=colours, vmin=0, vmax=len(classes) - 1, interpolation="nearest"
            )
        for panel in panels[row]:
            panel.set(xticks=[], yticks=[])
    for panel, title in zip(panels[0], columns, strict=True):
        panel.set_title(title, fontsize=9, color=INK)
    marks = [
        plt.Line2D([], [], marker="s", linestyle="", color=colours(i), markeredgecolor=INK)
        for i in range(len(classes))
    ]
    figure.legend(marks, classes, loc="outside lower center", ncols=len(classes), frameon=False)
    figure.savefig(folder / PICTURE, dpi=110, facecolor="white")
    plt.close(figure)
