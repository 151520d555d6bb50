"""Train one network for every bit-width: ``brevitas-multiquant train -c CONFIG``.

Several processes: ``accelerate launch --num_processes N -m brevitas_multiquant.recipes.train``.

A run is a function of its options: whatever is random is seeded from its place in the run, so that
a run that was killed, wherever it was, ends after ``--resume`` where an uninterrupted one does.
"""

import sys
from collections.abc import Mapping, Sequence

from brevitas_multiquant.recipes.errors import exit_code
from brevitas_multiquant.recipes.options.train import TrainOptions, parse_train
from brevitas_multiquant.recipes.results import page, report, run_folder
from brevitas_multiquant.recipes.run.create import create_run
from brevitas_multiquant.recipes.run.dry_run import dry_run
from brevitas_multiquant.recipes.run.header import train_header
from brevitas_multiquant.recipes.run.loop import fit
from brevitas_multiquant.recipes.run.memory import keep_freed_memory
from brevitas_multiquant.recipes.run.run import Run
from brevitas_multiquant.recipes.run.tracking import start_trackers


def begins(run: Run) -> bool:
    """Print what is to run, and start it; False for a dry run, which is over then."""
    if run.accelerator.device.type == "cpu":
        keep_freed_memory()
    if run.accelerator.is_main_process:
        print(train_header(run), flush=True)
    if run.options.output.dry_run:
        dry_run(run)
        return False
    start(run)
    return True


def start(run: Run) -> None:
    """Write what a new run leaves at once; a resumed one keeps the rows of the epochs it has."""
    if run.accelerator.is_main_process:
        if run.options.output.resume is None:
            run.folder.mkdir(parents=True, exist_ok=True)
            run_folder.clear(run.folder)
            report.save_args(run.options, run.folder, run.image_task.preprocessing)
        run_folder.remove_unfinished(run.folder)
        report.write_summary(run.folder, run.progress.history)
    run.accelerator.wait_for_everyone()
    if run.options.output.log_with:
        start_trackers(run.accelerator, run.folder.name, run.options.flat())


def finish(run: Run, accuracy: Mapping[int, float]) -> None:
    """Write the page of the run and print the table."""
    running = run.trainee.what_runs(run.options.data.img_size)
    written = page.write_page(run.folder, running)
    print(report.result_table(accuracy, {bits: at.cost for bits, at in running.items()}))
    print(f"results in {run.folder}, on a page in {written.name}")


def train(options: TrainOptions) -> dict[int, float]:
    """Train as the options say; top-1 in percent per bit-width of the last epoch."""
    run = create_run(options)
    if not begins(run):
        return {}
    accuracy = fit(run)
    if run.accelerator.is_main_process:
        finish(run, accuracy)
    run.accelerator.end_training()
    return accuracy


def main(argv: Sequence[str] | None = None) -> int:
    """Run the recipe.

    Returns:
        0; 2 for wrong usage; 1 for any other named error; 130 after SIGINT and 143 after SIGTERM,
        where a checkpoint is written first.
    """
    return exit_code(lambda: train(parse_train(argv)))


if __name__ == "__main__":
    sys.exit(main())
