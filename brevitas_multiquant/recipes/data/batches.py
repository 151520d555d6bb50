"""The batches that the data options describe: from memory, from files, or from a stream.

Where the data set can be read in any order, an epoch's batches are a function of (seed, epoch) and
can be had from any step on.
"""

from collections.abc import Sized

from torch.utils.data import Dataset, IterableDataset

from brevitas_multiquant.recipes.data.cached_batches import CachedEvalBatches, CachedTrainBatches
from brevitas_multiquant.recipes.data.file_batches import FileEvalBatches, FileTrainBatches
from brevitas_multiquant.recipes.data.images import Images
from brevitas_multiquant.recipes.data.reading import check_same_classes
from brevitas_multiquant.recipes.data.shard import Shard
from brevitas_multiquant.recipes.data.sources import load_split
from brevitas_multiquant.recipes.data.streams import StreamedBatches
from brevitas_multiquant.recipes.errors import DatasetError
from brevitas_multiquant.recipes.options.data import DataOptions

Train = CachedTrainBatches | FileTrainBatches | StreamedBatches
Eval = CachedEvalBatches | FileEvalBatches | StreamedBatches


def train_batches(options: DataOptions, shard: Shard) -> Train:
    """The training batches that the options describe.

    Raises:
        UnknownDatasetError, MissingFileError, DatasetError: nothing to read, or it does not fit.
    """
    data = load_split(options, train=True)
    batches = _train_batches(data, options, shard)
    if len(batches) == 0:
        count = len(data) if isinstance(data, Sized) else "none"
        raise DatasetError(
            f"expected at least {options.batch_size * shard.world} training images, one batch on "
            f"each of {shard.world} processes, got {count}: lower --batch-size"
        )
    return batches


def _train_batches(data: Images | Dataset, options: DataOptions, shard: Shard) -> Train:
    if isinstance(data, Images):
        return CachedTrainBatches(data, options, shard)
    if isinstance(data, IterableDataset):
        return StreamedBatches(data, options, shard, train=True)
    return FileTrainBatches(data, options, shard)


def eval_batches(options: DataOptions, shard: Shard, train: Train | None = None) -> Eval:
    """The validation batches that the options describe.

    Args:
        options: the data options.
        shard: this process's part.
        train: the training batches, whose classes the validation images must have.

    Raises:
        UnknownDatasetError, MissingFileError, DatasetError: nothing to read, or it does not fit.
    """
    data = load_split(options, train=False)
    batches = _eval_batches(data, options, shard)
    if train is not None:
        check_same_classes(train.classes, batches.classes)
    if isinstance(batches, CachedEvalBatches) and not len(batches.images):
        raise DatasetError("expected at least one validation image, got none")
    return batches


def _eval_batches(data: Images | Dataset, options: DataOptions, shard: Shard) -> Eval:
    if isinstance(data, Images):
        return CachedEvalBatches(data, options, shard)
    if isinstance(data, IterableDataset):
        return StreamedBatches(data, options, shard, train=False)
    return FileEvalBatches(data, options, shard)
