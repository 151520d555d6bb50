"""Running statistics of norms, estimated anew before each evaluation."""

from itertools import islice

from brevitas_multiquant.recipes.run import processes
from brevitas_multiquant.recipes.run.run import Run

SAMPLED = 10
"""Batches where ``--bits-per-step`` leaves bit-widths out and ``--norm-batches`` is not given."""


def refresh_norms(run: Run) -> None:
    """Estimate the statistics of the network that is evaluated, from the epoch's first batches.

    ``--norm-batches N`` of them; 0 leaves the moving averages of training as they are. Every
    process estimates from its own images, and all keep the mean.
    """
    batches = run.options.objective.norm_batches
    if batches is None:
        batches = SAMPLED if run.options.objective.bits_per_step is not None else 0
    if not batches:
        return
    images = islice(run.train.epoch(run.progress.epoch), batches)
    with run.accelerator.autocast():
        norms = run.result.reestimate_norms(images, batches)
    statistics = [value for norm in norms for value in processes.running_statistics(norm)]
    if statistics:
        processes.average(statistics, [])
