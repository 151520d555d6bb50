"""A packed network to verified QONNX, one file a bit-width."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from brevitas_multiquant import export_qonnx, load_packed
from recipes.data import MissingFileError
from recipes.options import exit_code, positive


def export_parser() -> argparse.ArgumentParser:
    """All options of ``recipes/export.py``."""
    parser = argparse.ArgumentParser(
        prog="export.py", description="Write one verified QONNX file a bit-width."
    )
    parser.add_argument("packed", metavar="PACKED.safetensors")
    parser.add_argument("--output", default="export", metavar="DIR")
    parser.add_argument("--img-size", type=positive, metavar="PIXELS", help="default: as trained")
    return parser


def run(args: argparse.Namespace) -> dict[int, Path]:
    """Export and list the files.

    Raises:
        MissingFileError: there is no packed file.
    """
    if not Path(args.packed).is_file():
        raise MissingFileError(f"expected a packed network at {args.packed}, found none")
    net = load_packed(args.packed)
    shape = (1, 3, args.img_size, args.img_size) if args.img_size else net.input_shape
    files = export_qonnx(net, args.output, input_shape=shape)
    for bits, path in files.items():
        print(f"{bits} bits: {path}, same codes and logits as torch")
    return files


def main(argv: Sequence[str] | None = None) -> int:
    """Run the recipe; 0 for success, 2 for wrong usage, 1 for any other named error."""
    return exit_code(lambda: run(export_parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
