"""Batches of images: kept in memory as uint8, augmented a whole batch at a time, or streamed.

Everything random is a function of (seed, epoch) and is drawn for the whole epoch at once, so that a
resumed run sees the very same batches, and N processes see together what one process with an N
times larger batch would see.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from timm.data import create_loader
from timm.utils import random_seed
from torch import Tensor
from torch.utils.data import Dataset

from recipes.augment import normalise, random_crop, random_flip
from recipes.data_options import DataOptions
from recipes.errors import DatasetError
from recipes.sources import Images, count_classes, load_split


@dataclass(frozen=True)
class Shard:
    """Which part of each batch this process computes, and where."""

    rank: int = 0
    world: int = 1
    device: torch.device | str = "cpu"


def epoch_seed(seed: int, epoch: int, rank: int = 0) -> int:
    """An independent seed in [0, 2**32) for each (seed, epoch, rank)."""
    return int(np.random.SeedSequence([seed, epoch, rank]).generate_state(1)[0])


class TrainBatches:
    """Shuffled, augmented batches of images in memory; an incomplete last batch is dropped.

    Iterating gives (images float32 (B, 3, H, W), labels int64 (B,)) of this process's shard.

    Raises:
        DatasetError: fewer images than one batch over all processes.
    """

    def __init__(self, images: Images, options: DataOptions, shard: Shard) -> None:
        self.images = images.to(shard.device)
        self.num_classes = images.num_classes
        self.options, self.shard = options, shard
        self.epoch = 0
        if len(self) == 0:
            raise DatasetError(
                f"expected at least {options.batch_size * shard.world} training images, one batch "
                f"on each of {shard.world} processes, got {len(images.labels)}: lower --batch-size"
            )

    def __len__(self) -> int:
        return len(self.images.labels) // (self.options.batch_size * self.shard.world)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order and augmentation the next iteration has."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(epoch_seed(self.options.seed, self.epoch))
        count, padding = len(self.images.labels), self.options.padding
        order = torch.randperm(count, generator=generator)
        offsets = torch.randint(0, 2 * padding + 1, (count, 2), generator=generator)
        flipped = torch.rand(count, generator=generator) < self.options.flip_probability
        drawn = [values.to(self.shard.device) for values in (order, offsets, flipped)]
        size = self.options.batch_size
        for step in range(len(self)):
            start = (step * self.shard.world + self.shard.rank) * size
            yield self._batch(*(values[start : start + size] for values in drawn))

    def _batch(self, chosen: Tensor, offsets: Tensor, flipped: Tensor) -> tuple[Tensor, Tensor]:
        images = self.images.pixels.index_select(0, chosen)
        images = random_flip(random_crop(images, self.options.padding, offsets), flipped)
        labels = self.images.labels.index_select(0, chosen)
        return normalise(images, *self.options.normalisation), labels


class EvalBatches:
    """All images in memory in their own order, each in the shard of exactly one process."""

    def __init__(self, images: Images, options: DataOptions, shard: Shard) -> None:
        self.images = images.to(shard.device)
        self.num_classes = images.num_classes
        self.options, self.shard = options, shard

    def __len__(self) -> int:
        mine = len(range(self.shard.rank, len(self.images.labels), self.shard.world))
        return -(-mine // self.options.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        mine = slice(self.shard.rank, None, self.shard.world)
        size = self.options.batch_size
        pixels = self.images.pixels[mine].split(size)
        labels = self.images.labels[mine].split(size)
        for images, target in zip(pixels, labels, strict=True):
            yield normalise(images, *self.options.normalisation), target


class StreamedBatches:
    """Images too many for memory, read and augmented by timm's own loader."""

    def __init__(self, dataset: Dataset, options: DataOptions, shard: Shard, train: bool) -> None:
        mean, std = options.normalisation
        self.seed, self.rank = options.seed, shard.rank
        self.num_classes = count_classes(dataset)
        self.loader = create_loader(
            dataset,
            input_size=(3, options.img_size, options.img_size),
            batch_size=options.batch_size,
            is_training=train,
            hflip=options.flip_probability,
            color_jitter=0.0,
            mean=mean,
            std=std,
            num_workers=options.workers,
            distributed=shard.world > 1,
            device=torch.device(shard.device),
            persistent_workers=False,
        )

    def __len__(self) -> int:
        return len(self.loader)

    def set_epoch(self, epoch: int) -> None:
        """Seed the order and the augmentation of the next iteration."""
        random_seed(epoch_seed(self.seed, epoch, self.rank))
        if hasattr(self.loader.sampler, "set_epoch"):
            self.loader.sampler.set_epoch(epoch)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self.loader)


def train_batches(options: DataOptions, shard: Shard) -> TrainBatches | StreamedBatches:
    """The training batches that the options describe.

    Raises:
        UnknownDatasetError, MissingFileError, DatasetError: nothing to read, or it does not fit.
    """
    data = load_split(options, train=True)
    if isinstance(data, Images):
        return TrainBatches(data, options, shard)
    return StreamedBatches(data, options, shard, train=True)


def eval_batches(options: DataOptions, shard: Shard) -> EvalBatches | StreamedBatches:
    """The validation batches that the options describe; raises as `train_batches` does."""
    data = load_split(options, train=False)
    if isinstance(data, Images):
        return EvalBatches(data, options, shard)
    return StreamedBatches(data, options, shard, train=False)
