"""What a model would become and cost, before any training; or what a packed file holds."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from brevitas_multiquant.cli.network import LookedAtOptions, network_of, title_of
from brevitas_multiquant.cost.table import cost
from brevitas_multiquant.nn.stored import weights_in_words
from brevitas_multiquant.recipes.errors import exit_code
from brevitas_multiquant.recipes.options.model import NetworkOptions
from brevitas_multiquant.recipes.options.option import (
    Parser,
    add_group,
    add_options,
    option,
    taken,
)


@dataclass(frozen=True)
class InspectOptions(LookedAtOptions):
    """What is looked at, and how much of it is printed."""

    plan: bool = option(False, help="print each layer too")


def inspect_parser() -> argparse.ArgumentParser:
    """All options of ``inspect``."""
    parser = Parser("inspect", description=__doc__)
    add_options(parser, InspectOptions)
    add_group(parser, "network", NetworkOptions)
    return parser


def inspect(options: InspectOptions, network: NetworkOptions) -> None:
    """Build the network with random weights, or load it, and print its cost.

    Raises:
        MultiQuantError: as `network_of`, or an assignment that does not fit the network.
    """
    net, assignments = network_of(options, network)
    costs = cost(net, assignments=assignments)
    own = [*assignments, *filter(None, [net.config.assignment])]
    if options.json:
        told = None if net.image_task is None else net.image_task.to_dict()
        document = {
            "model": options.model,
            "input_shape": net.input_shape,
            "config": net.config.to_dict(),
            "weights": weights_in_words(net),
            **costs.to_dict(),
            "sites": {one.name: one.to_dict() for one in own},
            "image_task": told,
        }
        print(json.dumps(document, indent=2))
        return
    if options.plan:
        print(net.plan, end="\n\n")
    print(f"{title_of(options, net)}, weights {weights_in_words(net)}")
    print(costs)
    for one in own:
        print(f"\n{one.name}: {one}")
    if net.image_task is not None:
        print(f"trained on {net.image_task.dataset}; {net.image_task.measured()}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0 for success, 2 for wrong usage, 1 for any other named error."""
    parsed = inspect_parser().parse_args(argv)
    return exit_code(lambda: inspect(taken(InspectOptions, parsed), taken(NetworkOptions, parsed)))


if __name__ == "__main__":
    sys.exit(main())
