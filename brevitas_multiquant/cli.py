"""``python -m brevitas_multiquant``: what a model would become, cost and lack, before training."""

import argparse
import sys
from collections.abc import Sequence

from torch import nn

from brevitas_multiquant.cost import cost
from brevitas_multiquant.errors import MultiQuantError, SourceError
from brevitas_multiquant.export import check_finn
from brevitas_multiquant.nn import MultiQuantNet
from brevitas_multiquant.rewrite import multiquantize
from brevitas_multiquant.source import ModelSource
from brevitas_multiquant.weight_format import WEIGHT_FORMATS


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        Exit code: 0, or 1 where the model cannot be converted, or not be mapped to hardware.
        Wrong usage exits with 2.
    """
    options = _parser().parse_args(arguments)
    try:
        return int(bool(options.run(options)))
    except MultiQuantError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m brevitas_multiquant", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("inspect", help="print what a model would cost, untrained")
    _add_model_options(command)
    command.add_argument("--plan", action="store_true", help="print each layer too")
    command.set_defaults(run=inspect, profile="paper")
    command = commands.add_parser("check", help="print what keeps a model from an FPGA, untrained")
    _add_model_options(command)
    command.set_defaults(run=check, profile="finn")
    return parser


def _add_model_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", help="timm model name, or torchvision:NAME")
    command.add_argument("--bits", type=int, nargs="+", default=[2, 4, 6, 8])
    command.add_argument("--selection", default="amortized", choices=["amortized", "serial"])
    command.add_argument("--weights", default="odd", choices=list(WEIGHT_FORMATS))
    command.add_argument("--num-classes", type=int)
    command.add_argument("--img-size", type=int, help="height and width of the images")
    command.add_argument("--in-chans", type=int, default=3, help="channels of the images")


def inspect(options: argparse.Namespace) -> None:
    """Build the network with random weights and print its cost.

    Raises:
        MultiQuantError: an unknown model, or one that cannot be converted.
    """
    net = _network(options)
    if options.plan:
        print(net.plan, end="\n\n")
    shape = "x".join(map(str, net.input_shape or ()))
    print(f"{options.model} at {shape}, weights {net.config.weight_format}")
    print(cost(net))


def check(options: argparse.Namespace) -> int:
    """Build the network for FPGAs with random weights, print what does not map, and count it.

    Raises:
        MultiQuantError: an unknown model, or one that cannot be converted.
    """
    net = _network(options)
    violations = check_finn(net)
    for violation in violations:
        print(violation)
    form = net.config.weight_format
    if not form.is_symmetric:
        print(
            f"note: a layer takes {form.negated_datatype} weights instead of {form.datatype} where "
            "the norm behind it has negative scales, as training may make them; each project's "
            "README.md names such layers"
        )
    shape = "x".join(map(str, net.input_shape or ()))
    verdict = f"{len(violations)} violation(s)" if violations else "maps to one dataflow partition"
    print(f"{options.model} at {shape}, {', '.join(map(str, net.bits))} bits: {verdict}")
    return len(violations)


def _network(options: argparse.Namespace) -> MultiQuantNet:
    return multiquantize(
        _build(options),
        options.bits,
        profile=options.profile,
        selection=options.selection,
        weights=options.weights,
        input_shape=_shape(options),
        check=False,
    )


def _build(options: argparse.Namespace) -> nn.Module:
    library, _, name = options.model.rpartition(":")
    kwargs = {} if options.num_classes is None else {"num_classes": options.num_classes}
    if library in ("", "timm"):
        channels = {} if options.in_chans == 3 else {"in_chans": options.in_chans}
        return ModelSource("timm", name, kwargs | channels).build()
    if library in ("torchvision", "tv"):
        return ModelSource("torchvision", name, kwargs).build()
    raise SourceError(
        f"model: expected a timm model name or torchvision:NAME, got {options.model!r}"
    )


def _shape(options: argparse.Namespace) -> tuple[int, ...] | None:
    if options.img_size is None:
        return None
    return (1, options.in_chans, options.img_size, options.img_size)
