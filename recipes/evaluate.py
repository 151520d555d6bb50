"""Top-1 accuracy of a packed network, a bit-width at a time, beside what each bit-width costs."""

import argparse
import sys
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from brevitas_multiquant import MultiQuantNet, cost, load_packed
from recipes.data import eval_batches
from recipes.data_options import DataOptions
from recipes.errors import MissingFileError, OptionError, exit_code
from recipes.health import evaluating
from recipes.options import add_config_option, add_data_options, parse
from recipes.report import result_table
from recipes.shard import Shard


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
        "read from args.yaml beside the packed file.",
        allow_abbrev=False,
    )
    parser.add_argument("packed", metavar="PACKED.safetensors")
    parser.add_argument("--bits", type=int, nargs="+", metavar="B", help="default: all")
    add_config_option(parser)
    add_data_options(parser)
    return parser


def parse_evaluate(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the options, over those saved beside the packed file where there are any.

    Raises:
        MissingFileError: there is no packed file.
        OptionError: as `recipes.options.parse` does.
    """
    parser = evaluate_parser()
    packed = Path(parser.parse_args(argv).packed)
    if not packed.is_file():
        raise MissingFileError(f"expected a packed network at {packed}, found none")
    saved = packed.parent / "args.yaml"
    return parse(parser, argv, below=saved if saved.is_file() else None)


def run(args: argparse.Namespace) -> dict[int, float]:
    """Evaluate and print the table."""
    accelerator = Accelerator()
    net = load_packed(args.packed).to(accelerator.device)
    bits = tuple(args.bits or net.bits)
    if unknown := sorted(set(bits) - set(net.bits)):
        raise OptionError(f"--bits: expected some of {list(net.bits)}, got {unknown}")
    shard = Shard(accelerator.process_index, accelerator.num_processes, accelerator.device)
    accuracy = top1(net, eval_batches(DataOptions.from_args(args), shard), bits, accelerator)
    if accelerator.is_main_process:
        print(result_table(accuracy, cost(net, (1, 3, args.img_size, args.img_size))))
    return accuracy


def main(argv: Sequence[str] | None = None) -> int:
    """Run the recipe; 0 for success, 2 for wrong usage, 1 for any other named error."""
    return exit_code(lambda: run(parse_evaluate(argv)))


if __name__ == "__main__":
    sys.exit(main())
