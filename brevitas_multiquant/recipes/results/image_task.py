"""What a run says in its files of the images, the classes and the accuracy of its network."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from brevitas_multiquant.core.image_task import ImageTask
from brevitas_multiquant.core.preprocessing import Preprocessing
from brevitas_multiquant.recipes.data.batches import Eval
from brevitas_multiquant.recipes.options.data import FOLDER, DataOptions
from brevitas_multiquant.recipes.results.report import accuracy_of


def image_task_of(
    options: DataOptions, val: Eval, num_classes: int, history: Sequence[Mapping[str, float]]
) -> ImageTask:
    """Preprocessing, classes and data set, with the accuracy after the last epoch.

    Args:
        options: of the data.
        val: the validation batches.
        num_classes: of the network; names of classes are left out where there are not as many.
        history: a row of results for each epoch done.
    """
    mean, std = options.normalisation
    names = val.classes if len(val.classes) == num_classes else ()
    count = "" if val.count is None else f"{val.count} "
    return ImageTask(
        Preprocessing(mean, std, names, val.crop, val.interpolation),
        dataset=data_set_name(options),
        accuracy=accuracy_of(history[-1]) if history else {},
        protocol=f"top-1, {count}validation images, epoch {len(history)}" if history else "",
    )


def data_set_name(options: DataOptions) -> str:
    """The name of a data set; that of the folder, where it is one."""
    if options.dataset != FOLDER:
        return options.dataset
    return Path(options.data_dir or "").resolve().name
