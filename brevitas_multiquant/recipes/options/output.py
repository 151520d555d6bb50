"""Where results go, and where to continue from."""

from dataclasses import dataclass
from pathlib import Path

from brevitas_multiquant.recipes.errors import MissingFileError, OptionError
from brevitas_multiquant.recipes.options.option import option
from brevitas_multiquant.recipes.options.types import not_negative, positive

TRACKERS = ("tensorboard", "trackio", "wandb")


@dataclass(frozen=True)
class OutputOptions:
    """Where results go, and where to continue from."""

    output: str = option("output", metavar="DIR", help="folder of the folders of runs")
    experiment: str | None = option(
        metavar="NAME", help="folder below --output (default: the model's name)"
    )
    resume: str | None = option(
        metavar="DIR", help="continue the run in this folder, with its own options"
    )
    overwrite: bool = option(False, help="replace the results in the folder of the run")
    checkpoint_hist: int = option(2, positive, "checkpoints to keep", metavar="N")
    recovery_interval: int = option(0, not_negative, "0: epochs only", metavar="STEPS")
    log_interval: int = option(10, positive, "between lines of the tracker", metavar="STEPS")
    log_with: str | None = option(choices=TRACKERS, help="a tracker, through Accelerate")
    dry_run: bool = option(False, help="print cost, time and memory of a step, and stop")

    def saved_options(self, config: str | None) -> Path | None:
        """The ``args.yaml`` of the run to resume, if one is, beside which none is given.

        Raises:
            MissingFileError: there is none.
            OptionError: options beside ``--resume`` that would be passed over.
        """
        if self.resume is None:
            return None
        saved = Path(self.resume) / "args.yaml"
        if not saved.is_file():
            raise MissingFileError(
                f"--resume: expected a run with its args.yaml in {saved.parent}, found none: a run "
                "that was stopped before that left nothing, start it again"
            )
        given = {"--config": config, "--overwrite": self.overwrite}
        for name in [name for name, value in given.items() if value]:
            raise OptionError(
                f"{name}: expected none beside --resume, which goes on with the options saved in "
                f"{saved}: give those that are to change on the command line"
            )
        return saved
