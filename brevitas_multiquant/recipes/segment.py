"""Train one segmentation network for every bit-width, on shapes that are drawn.

``brevitas-multiquant segment`` takes minutes on a CPU and needs no data. It is the short form of a
training of one's own: the library's calls around an Accelerate loop.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torchmetrics.classification import MulticlassJaccardIndex
from tqdm import tqdm

from brevitas_multiquant import MultiQuantNet, calibrate, cost, multiquantize, save_packed
from brevitas_multiquant.core.float_model import ModelSource
from brevitas_multiquant.methods.objectives import objective_of
from brevitas_multiquant.recipes.data.shapes import CLASSES, Shapes
from brevitas_multiquant.recipes.errors import ExperimentExistsError, OptionError, exit_code
from brevitas_multiquant.recipes.options.segment import SegmentOptions, parse_segment
from brevitas_multiquant.recipes.results.report import result_table
from brevitas_multiquant.recipes.results.segmentation import draw_predictions, write_summary
from brevitas_multiquant.training.measure import measure

PACKED = "net.safetensors"
VALIDATION_IMAGES, SHOWN = 500, 4


def run(options: SegmentOptions) -> dict[int, float]:
    """Train, measure, and write the network, a table and a picture.

    Returns:
        Bit-width -> mean IoU in percent over validation images, after the last epoch.

    Raises:
        OptionError: a network that does not tell a class for each pixel.
        ExperimentExistsError: a folder that holds something.
        SourceError: timm has no model of this name.
        MultiQuantError: as `multiquantize`.
    """
    folder = new_folder(options)
    torch.manual_seed(options.seed)
    shapes = Shapes(options.images, options.img_size, options.batch_size, options.seed)
    validation = list(Shapes(VALIDATION_IMAGES, options.img_size, 100, options.seed + 1))
    net = create_network(options)
    calibrate(net, [images for images, _ in validation[:1]])
    rows = fit(net, shapes, validation, options)
    write_summary(folder, rows)
    save_packed(net, folder / PACKED)
    scores = {bits: rows[-1][f"miou_{bits}b"] for bits in net.bits}
    images, masks = (part[:SHOWN] for part in validation[0])
    draw_predictions(folder, images, masks, predictions(net, images), scores, CLASSES)
    print(result_table(scores, cost(net), "mIoU %"))
    print(f"results in {folder}")
    return scores


def new_folder(options: SegmentOptions) -> Path:
    """The folder to write to."""
    folder = Path(options.output)
    if folder.exists() and any(folder.iterdir()) and not options.overwrite:
        raise ExperimentExistsError(
            f"--output: expected an empty folder, got {folder}, which holds something: name "
            "another one, or add --overwrite"
        )
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def create_network(options: SegmentOptions) -> MultiQuantNet:
    """The network of every bit-width.

    Raises:
        OptionError: its output is no class for each pixel.
    """
    shape = (1, 3, options.img_size, options.img_size)
    source = ModelSource("timm", options.model, {"num_classes": len(CLASSES)})
    model = source.build()
    net = multiquantize(model, options.bits, input_shape=shape)
    output = net(torch.zeros(shape))
    expected = (1, len(CLASSES), *shape[2:])
    if not isinstance(output, Tensor) or output.shape != expected:
        got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise OptionError(
            f"--model {options.model}: expected logits of every pixel, {expected}, got {got}: name "
            "a segmentation network, or an --img-size that its strides divide"
        )
    return net


def fit(
    net: MultiQuantNet,
    shapes: Shapes,
    validation: Sequence[tuple[Tensor, Tensor]],
    options: SegmentOptions,
) -> list[dict[str, float]]:
    """Train all bit-widths; a row for each epoch."""
    accelerator = Accelerator(cpu=True)
    steps = options.epochs * len(shapes)
    task = objective_of(net, criterion=nn.CrossEntropyLoss())
    sgd = torch.optim.SGD(
        net.model_parameters(), lr=options.lr, momentum=0.9, weight_decay=1e-4, nesterov=True
    )
    ranges = torch.optim.Adam(net.range_parameters(), lr=1e-3)
    rate = torch.optim.lr_scheduler.OneCycleLR(sgd, options.lr, total_steps=steps, pct_start=0.1)
    rows: list[dict[str, float]] = []
    progress = tqdm(total=steps, desc="train", disable=not accelerator.is_main_process)
    for epoch in range(1, options.epochs + 1):
        net.train()
        loss = 0.0
        for images, masks in shapes:
            result = task.step(images, masks, backward=accelerator.backward)
            for optimizer in (sgd, ranges):
                optimizer.step()
                optimizer.zero_grad()
            rate.step()
            loss += float(result["loss"]) / len(shapes)
            progress.update()
        rows.append({"epoch": epoch, "train_loss": loss, **mean_iou(net, validation)})
        progress.set_postfix({name: f"{value:.2f}" for name, value in rows[-1].items()})
    progress.close()
    return rows


def mean_iou(net: MultiQuantNet, validation: Sequence[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """``miou_4b`` and its like, in percent: the mean of the classes' IoU over all pixels."""
    found = measure(net, validation, MulticlassJaccardIndex(len(CLASSES)))
    return {f"miou_{bits}b": 100 * float(value) for bits, value in found.items()}


@torch.no_grad()
def predictions(net: MultiQuantNet, images: Tensor) -> dict[int, Tensor]:
    """Bit-width -> the class of every pixel (N, H, W)."""
    net.eval()
    found = {}
    for bits in net.bits:
        with net.at_bits(bits):
            found[bits] = net(images).argmax(1)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run the recipe; 0 for success, 2 for wrong usage, 1 for any other named error."""
    return exit_code(lambda: run(parse_segment(argv)))


if __name__ == "__main__":
    sys.exit(main())
