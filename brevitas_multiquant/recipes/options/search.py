"""All options of a search for bit-widths: those of a training run, and what is looked for."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

from brevitas_multiquant.allocation.gate_search import PUBLISHED
from brevitas_multiquant.methods.settle import INDIVIDUAL
from brevitas_multiquant.recipes.errors import OptionError
from brevitas_multiquant.recipes.options.option import Parser, add_group
from brevitas_multiquant.recipes.options.searching import BAYESIAN_BITS, SearchOptions
from brevitas_multiquant.recipes.options.train import (
    TITLES,
    TrainOptions,
    add_config_option,
    parse_options,
)

CANDIDATES = [2, 3, 4, 5, 6, 7, 8]
CANDIDATES_OF = {BAYESIAN_BITS: list(PUBLISHED)}
"""Of ``--bits``, where nothing else is given; those of strategies that have others."""


def epochs_of_search(search_share: float, epochs: int) -> int:
    """How many of the epochs learn bits; at least one.

    Example:
        >>> epochs_of_search(0.8, 5)
        4
    """
    return max(1, round(search_share * epochs))


@dataclass(frozen=True)
class SearchRunOptions(TrainOptions):
    """The options of a search, by concern.

    Example:
        >>> options = parse_search(["--budget", "uniform=4"])
        >>> options.search.budget, options.model.bits, options.model.method
        ([('uniform', 4)], [2, 3, 4, 5, 6, 7, 8], 'individual')
    """

    program: ClassVar[str] = "search"
    search: SearchOptions

    @classmethod
    def from_parsed(cls, parsed: argparse.Namespace) -> Self:
        """As of `TrainOptions`; candidates that nobody gave are the strategy's."""
        if parsed.bits is None:
            parsed.bits = CANDIDATES_OF.get(parsed.strategy, CANDIDATES)
        return super().from_parsed(parsed)

    @property
    def search_epochs(self) -> int:
        """Epochs in which bits are learned; at least one."""
        return epochs_of_search(self.search.search_share, self.optimisation.epochs)

    def check(self) -> None:
        """Check options against each other.

        Raises:
            OptionError: they do not go together.
        """
        super().check()
        model = self.model
        if model.float or model.method != INDIVIDUAL:
            got = "--float" if model.float else f"--method {model.method}"
            raise OptionError(f"expected a network of one body to search bits for, got {got}")
        if model.assignment is not None:
            raise OptionError(
                "--assignment: expected bits to search for, got those of every layer: "
                "the recipe train takes them"
            )
        if self.objective.quant_noise is not None:
            raise OptionError(
                "--quant-noise: expected none in a search for bits, whose weights are no codes; "
                "train the network that it finds with it"
            )
        self.search.check()


def search_parser() -> argparse.ArgumentParser:
    """All options of ``search``."""
    parser = Parser("search", description="Learn the bits of every layer within a budget.")
    add_config_option(parser)
    add_group(parser, "search", SearchOptions)
    for title, concerns in TITLES.items():
        add_group(parser, title, *concerns)
    parser.set_defaults(bits=None, method=INDIVIDUAL)
    return parser


def parse_search(argv: Sequence[str] | None = None) -> SearchRunOptions:
    """Parse the options of a search; ``--resume DIR`` continues with those saved in DIR.

    Raises:
        OptionError: options that do not go together.
        OptionError, MissingFileError: from the YAML file.
    """
    return parse_options(SearchRunOptions, search_parser(), argv)
