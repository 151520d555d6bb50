"""Top-1 accuracy of a packed network, a bit-width at a time, beside what each bit-width costs."""

import argparse
import sys
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from brevitas_multiquant import MultiQuantNet, cost, load_packed
from brevitas_multiquant.recipes.data.batches import eval_batches
from brevitas_multiquant.recipes.data.shard import Shard
from brevitas_multiquant.recipes.errors import MissingFileError, OptionError, exit_code
from brevitas_multiquant.recipes.options.data import DataOptions, check_source
from brevitas_multiquant.recipes.options.parsers import add_config_option, add_data_options, parse
from brevitas_multiquant.recipes.run.header import evaluation_header
from brevitas_multiquant.recipes.run.modes import evaluating
from brevitas_multiquant.recipes.run.networks import IMAGE_CHANNELS, choose_num_classes
from brevitas_multiquant.recipes.run.report import result_table


@torch.no_grad()
def top1(
    net: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    bits: Sequence[int],
    accelerator: Accelerator,
) -> dict[int, float]:
    """Percent of the images whose largest logit is the label, over all processes.

    Args:
        net: a multi-branch network, or a float one, whose single "bit-width" is only a name.
        batches: (images (B, 3, H, W), labels (B,)) of this process's shard.
        bits: bit-widths to evaluate.
        accelerator: sums the counts and chooses the arithmetic.
    """
    counts = torch.zeros(len(bits) + 1, dtype=torch.int64, device=accelerator.device)
    with evaluating(net):
        for images, labels in batches:
            counts[-1] += len(labels)
            for index, bit in enumerate(bits):
                at_bits = net.at_bits(bit) if isinstance(net, MultiQuantNet) else nullcontext()
                with at_bits, accelerator.autocast():
                    predicted = net(images).argmax(1)
                counts[index] += (predicted == labels).sum()
    *correct, seen = accelerator.reduce(counts, "sum").tolist()
    return {bit: 100 * hits / seen for bit, hits in zip(bits, correct, strict=True)}


def evaluate_parser() -> argparse.ArgumentParser:
    """All options of ``recipes/evaluate.py``."""
    parser = argparse.ArgumentParser(
        prog="evaluate.py",
        description="Top-1 a bit-width. The data options default to those of the training run, "
        "read from args.yaml beside the packed file; without it name the data.",
        allow_abbrev=False,
    )
    parser.add_argument("packed", metavar="PACKED.safetensors")
    parser.add_argument("--bits", type=int, nargs="+", metavar="B", help="default: all")
    add_config_option(parser)
    add_data_options(parser)
    parser.set_defaults(img_size=None)  # that of the network
    return parser


def parse_evaluate(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the options, over those saved beside the packed file where there are any.

    Images are normalised as they were in training, whatever they are now.

    Raises:
        MissingFileError: there is no packed file.
        OptionError: as `brevitas_multiquant.recipes.options.parsers.parse` does.
    """
    parser = evaluate_parser()
    packed = Path(parser.parse_args(argv).packed)
    if not packed.is_file():
        raise MissingFileError(f"expected a packed network at {packed}, found none")
    saved = packed.parent / "args.yaml"
    args = parse(parser, argv, below=saved if saved.is_file() else None)
    if saved.is_file():
        trained = parse(parser, [str(packed)], below=saved)
        trained.dataset = trained.dataset or ""
        mean, std = DataOptions.from_args(trained).normalisation
        args.mean, args.std = args.mean or list(mean), args.std or list(std)
    own = parser.parse_args(argv)
    if (own.dataset, own.data_dir) != (None, None) and own.num_classes is None:
        args.num_classes = None  # of the data of the training run
    return args


def run(args: argparse.Namespace) -> dict[int, float]:
    """Evaluate and print the table.

    Raises:
        OptionError: no data is named, or it does not go with other options; bit-widths, an image
            size or classes that the network does not have.
    """
    accelerator = Accelerator(cpu=args.device == "cpu")
    net = load_packed(args.packed).to(accelerator.device)
    check_named(args)
    args.img_size = args.img_size or square_size(net)
    bits = tuple(args.bits or net.bits)
    if unknown := sorted(set(bits) - set(net.bits)):
        raise OptionError(f"--bits: expected some of {list(net.bits)}, got {unknown}")
    shard = Shard(accelerator.process_index, accelerator.num_processes, accelerator.device)
    batches = eval_batches(DataOptions.from_args(args), shard)
    args.num_classes = choose_num_classes(args, batches.num_classes)
    check_fits(net, args)
    if accelerator.is_main_process:
        print(evaluation_header(args, batches, bits), flush=True)
    accuracy = top1(net, batches, bits, accelerator)
    if accelerator.is_main_process:
        print(result_table(accuracy, cost(net, (1, 3, args.img_size, args.img_size))))
    return accuracy


def check_named(args: argparse.Namespace) -> None:
    """Check that somebody said which images to score on: a network is for one data set.

    Raises:
        OptionError: nobody did, or it does not go with other options.
    """
    if args.dataset is None:
        raise OptionError(
            f"--dataset: expected the data to score {args.packed} on, got none, here or in "
            f"{Path(args.packed).parent / 'args.yaml'}: give --data-dir DIR, or --dataset NAME as "
            "digits or cifar10"
        )
    check_source(args)


def square_size(net: MultiQuantNet) -> int:
    """Height and width of the images that a network was made for.

    Raises:
        OptionError: it does not tell, or they differ.
    """
    *_, height, width = net.input_shape or (0, 1)
    if height != width:
        raise OptionError(
            f"--img-size: expected a network for square images, got one for {net.input_shape}: "
            "give the size"
        )
    return height


@torch.no_grad()
def check_fits(net: MultiQuantNet, args: argparse.Namespace) -> None:
    """Check that a network reads such images and tells as many classes as they have.

    Raises:
        OptionError: it does not.
    """
    channels = (net.input_shape or (1, IMAGE_CHANNELS))[1]
    if channels != IMAGE_CHANNELS:
        raise OptionError(
            f"{args.packed}: expected a network for images of {IMAGE_CHANNELS} channels, which the "
            f"recipes read, got one for {channels}"
        )
    image = torch.zeros(1, IMAGE_CHANNELS, args.img_size, args.img_size)
    with evaluating(net):
        outputs = net(image.to(next(net.parameters()).device)).shape[1]
    if outputs != args.num_classes:
        raise OptionError(
            f"--dataset {args.dataset or args.data_dir}: expected the {outputs} classes that "
            f"{args.packed} tells, got {args.num_classes}: name the data that it was trained for, "
            f"or add --num-classes {outputs} where its first labels mean the same"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the recipe; 0 for success, 2 for wrong usage, 1 for any other named error."""
    return exit_code(lambda: run(parse_evaluate(argv)))


if __name__ == "__main__":
    sys.exit(main())
