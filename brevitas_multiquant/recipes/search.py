"""Learn the bits of every layer within a budget: ``brevitas-multiquant search -c CONFIG``.

FracBits (Yang and Jin, AAAI 2021): for most of the epochs bits are real numbers that learn beside
the weights, then they are made whole within the budget and the rest is plain training of the
network that they give, without a break. With ``--strategy bayesian_bits`` gates choose between 2, 4
and 8 bits, and prune channels. With ``fliqs`` or ``amed`` every step draws
whole bits instead, and learns from how the network did at them. A run is a function of its options,
as those of ``train`` are, and goes on with ``--resume``.
"""

import json
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from tqdm import tqdm

from brevitas_multiquant.allocation.bit_search import BitSearch
from brevitas_multiquant.allocation.budget import Budget
from brevitas_multiquant.allocation.gate_search import GateSearch
from brevitas_multiquant.allocation.policies import POLICIES
from brevitas_multiquant.allocation.regularisers import L1, Controller, Regulariser
from brevitas_multiquant.allocation.sampled_search import SampledSearch
from brevitas_multiquant.allocation.search_task import Search
from brevitas_multiquant.core.assignment_files import write_values
from brevitas_multiquant.errors import UniformBitsWarning
from brevitas_multiquant.nn.network import MultiQuantNet
from brevitas_multiquant.recipes.errors import CheckpointError, OptionError, exit_code
from brevitas_multiquant.recipes.network.build import create_network
from brevitas_multiquant.recipes.network.multi_branch import IMAGE_CHANNELS, MultiBranch
from brevitas_multiquant.recipes.network.searched import Searched
from brevitas_multiquant.recipes.options.search import SearchRunOptions, parse_search
from brevitas_multiquant.recipes.options.searching import (
    BAYESIAN_BITS,
    BY_GRADIENT,
    FRACBITS,
    SearchOptions,
)
from brevitas_multiquant.recipes.results import bits as results
from brevitas_multiquant.recipes.results import page
from brevitas_multiquant.recipes.results.checkpoints import Checkpoint
from brevitas_multiquant.recipes.run.create import Prepare, create_run
from brevitas_multiquant.recipes.run.loop import fit, measure_again
from brevitas_multiquant.recipes.run.run import Run
from brevitas_multiquant.recipes.run.step import Batch, Step, StepResult
from brevitas_multiquant.recipes.train import begins

REGULARISERS: dict[str, Callable[[SearchOptions], Regulariser]] = {
    "controller": lambda options: Controller(options.bit_rate or 0.1, options.horizon),
    "l1": lambda options: L1(options.kappa),
}
"""``--regulariser`` -> makes it from the options."""


class SearchStep(Step):
    """An update of the weights, then one of the bits.

    Attributes:
        total: updates of the whole search.
    """

    total = 1

    def __call__(
        self, batches: Sequence[Batch], epoch: int, step: int, updates: int, stop: bool = False
    ) -> StepResult:
        """As of `Step`."""
        result = super().__call__(batches, epoch, step, updates, stop)
        assert isinstance(self.trainee, Searched)
        self.trainee.search.update_bits(min(updates / self.total, 1.0))
        return result


def make_searched(
    options: Any, num_classes: int, saved: Checkpoint | None, prepare: Prepare
) -> Searched:
    """The network with its search: open, or settled where the checkpoint has settled bits.

    What LUTs a layer takes depends on its weights and ranges: for such a budget it is prepared
    first, as the run is when it starts, whatever it has learned since.

    Raises:
        CheckpointError: the run that is to go on searches otherwise.
    """
    most = max(options.model.bits)
    model = replace(options.model, bits=[most])
    made = create_network(model, num_classes, options.data.img_size, options.data.seed)
    assert isinstance(made, MultiBranch)
    ((_, budget),) = options.search.budgets().items()
    if budget.unit == "luts":
        prepare(made)
    search = _search(made.module, budget, options)
    asked = {**vars(options.search), "candidates": sorted(options.model.bits)}
    asked = json.loads(json.dumps(asked))
    if saved is not None:
        _check_same_search(asked, saved.values.get("search"))
        if saved.values["settled"] is not None:
            search.restore(saved.values["settled"])
    return Searched(made.module, search, asked)


def _search(net: MultiQuantNet, budget: Budget, options: SearchRunOptions) -> Search:
    own, size = options.search, options.data.img_size
    pins = {name: tuple(pin) if isinstance(pin, list) else pin for name, pin in own.pins}
    made: Search = MAKERS[own.strategy](
        net,
        budget,
        candidates=sorted(options.model.bits),
        pins=pins,
        input_shape=(1, IMAGE_CHANNELS, size, size),
        **_options_of_strategy(options),
    )
    return made


MAKERS: dict[str, Callable[..., Search]] = {
    FRACBITS: BitSearch,
    BAYESIAN_BITS: GateSearch,
    **{name: partial(SampledSearch, policy=name) for name in POLICIES},
}
"""``--strategy`` -> makes the search."""


def _options_of_strategy(options: SearchRunOptions) -> dict[str, Any]:
    own = options.search
    if own.strategy not in BY_GRADIENT:
        return {"options": dict(own.policy_options)}
    channels = None
    if own.kernel_wise:
        channels = own.channel_bits or [0, *sorted(options.model.bits)]
    return {
        "channels": channels,
        "start": own.start_bits,
        "regulariser": REGULARISERS[own.regulariser](own),
        "rate": own.bit_rate,
    }


def _check_same_search(asked: Mapping[str, Any], saved: Mapping[str, Any] | None) -> None:
    before = {**json.loads(json.dumps(vars(SearchOptions()))), **(saved or {})}
    differ = [
        f"--{name.replace('_', '-')} {value} instead of {before.get(name)}"
        for name, value in asked.items()
        if before.get(name) != value
    ]
    if differ:
        raise CheckpointError(
            f"--resume: expected the search of that run, got another: {'; '.join(differ)}: leave "
            "that out, or start a new run with --experiment NAME"
        )


def settle_when_due(run: Run) -> None:
    """At the start of the first epoch after the search: whole bits from here on."""
    trainee, options = run.trainee, run.options
    assert isinstance(trainee, Searched) and isinstance(options, SearchRunOptions)
    write_tables(run)
    if not trainee.search.is_open or run.progress.epoch < options.search_epochs:
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UniformBitsWarning)
        settled = trainee.search.settle()
    if run.ema is not None:
        trainee.search.settle_copy(run.ema.module)
    run.progress.best = -1.0  # what was measured before is of another network
    how = options.execution
    run.step.forwards = trainee.training_forwards(how.compile, how.recompute)
    if run.accelerator.is_main_process:
        for warning in caught:
            tqdm.write(f"warning: {warning.message}", file=sys.stderr)
        after = run.progress.epoch >= options.optimisation.epochs
        since = "after the last epoch" if after else f"from epoch {run.progress.epoch + 1} on"
        tqdm.write(f"bits are whole {since}")
        tqdm.write(f"cost over budget {settled.ratio:.3f} before; {settled.allocation.headline()}")


def write_tables(run: Run) -> None:
    """``bits.csv``, and once bits are whole the assignment."""
    assert isinstance(run.trainee, Searched)
    if not run.accelerator.is_main_process:
        return
    results.write_bits(run.folder, run.progress.history)
    settled = run.trainee.search.settled
    if settled is not None:
        assignment = settled.allocation.assignment
        write_values(run.folder / results.ASSIGNMENT_FILE, assignment.to_dict())
        found = {"headline": settled.allocation.headline(), **settled.to_dict()}
        write_values(run.folder / results.SEARCH_FILE, found)


def finish(run: Run) -> None:
    """Write the page of the run and print the table."""
    trainee = run.trainee
    assert isinstance(trainee, Searched)
    write_tables(run)
    written = page.write_page(run.folder, trainee.what_runs(run.options.data.img_size))
    if trainee.search.settled is not None:
        print(trainee.search.settled.allocation)
    print(f"results in {run.folder}, on a page in {written.name}")


def search(options: SearchRunOptions) -> dict[str, Any] | None:
    """One search, of one budget.

    Returns:
        A row of ``pareto.csv``; None for a dry run.
    """
    run = create_run(options, make_searched, SearchStep)
    assert isinstance(run.step, SearchStep) and isinstance(run.trainee, Searched)
    run.step.total = options.search_epochs * run.steps
    if not begins(run):
        return None
    accuracy = fit(run, settle_when_due)
    if run.trainee.search.is_open:  # no epoch was left for fine-tuning
        settle_when_due(run)
        accuracy = measure_again(run)
    if run.accelerator.is_main_process:
        finish(run)
    run.accelerator.end_training()
    settled = run.trainee.search.settled
    assert settled is not None
    return results.pareto_row(options.folder.name, settled.allocation, *accuracy.values())


def search_each(options: SearchRunOptions) -> list[dict[str, Any]]:
    """A search for each budget; of several ones each in a folder of its own, and a plot of all."""
    budgets = options.search.budget
    if len(budgets) == 1:
        row = search(options)
        return [] if row is None else [row]
    if options.output.resume is not None:
        raise OptionError("--resume: expected the folder of one search, got one of several budgets")
    rows = []
    for (name, _), budget in zip(options.search.budgets().items(), budgets, strict=True):
        output = replace(options.output, output=str(options.folder), experiment=name)
        one = replace(options.search, budget=[budget])
        row = search(replace(options, output=output, search=one))
        rows += [] if row is None else [row]
    if rows and os.environ.get("RANK", "0") == "0":
        results.write_pareto(options.folder, rows)
        page.write_pareto_page(options.folder)
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Run the recipe.

    Returns:
        As ``train``.
    """
    return exit_code(lambda: search_each(parse_search(argv)))


if __name__ == "__main__":
    sys.exit(main())
