"""Images too many for memory, read from files by worker processes, each augmented by its own seed.

An image's augmentation is a function of (seed, epoch, index), never of which worker read it or of
what was read before: an epoch can be resumed at any step without reading what came before it.
"""

from collections.abc import Iterator
from typing import Any

import torch
from timm.data import DEFAULT_CROP_PCT, create_transform
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from brevitas_multiquant.recipes.data.per_image import train_transform
from brevitas_multiquant.recipes.data.reading import (
    class_names,
    count_classes,
    count_images,
    read_image,
)
from brevitas_multiquant.recipes.data.seeds import derived_seed, seed_image
from brevitas_multiquant.recipes.data.shard import Shard
from brevitas_multiquant.recipes.errors import DatasetError
from brevitas_multiquant.recipes.options.data import DataOptions

Place = tuple[int, int]
"""(epoch, index of the image)."""


class Samples(Dataset):
    """Images of a map-style data set, transformed; the key is a `Place`."""

    def __init__(self, dataset: Dataset, transform: Any, seed: int) -> None:
        self.dataset, self.transform, self.seed = dataset, transform, seed

    def __getitem__(self, place: Place) -> tuple[Tensor, int]:
        image, label = read_image(self.dataset, place[1])
        seed_image(derived_seed(self.seed, *place))
        return self.transform(image), label


class FileTrainBatches:
    """Shuffled, randomly cropped and mirrored batches; an incomplete last batch is dropped."""

    def __init__(self, dataset: Dataset, options: DataOptions, shard: Shard) -> None:
        self.samples = Samples(dataset, train_transform(options), options.seed)
        self.classes, self.num_classes = class_names(dataset), count_classes(dataset)
        self.count, self.options, self.shard = count_images(dataset), options, shard

    def __len__(self) -> int:
        return self.count // (self.options.batch_size * self.shard.world)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of an epoch, from batch ``start`` on."""
        generator = torch.Generator().manual_seed(derived_seed(self.options.seed, epoch))
        order = torch.randperm(self.count, generator=generator).tolist()
        size = self.options.batch_size
        firsts = [
            (step * self.shard.world + self.shard.rank) * size for step in range(start, len(self))
        ]
        places = [[(epoch, i) for i in order[first : first + size]] for first in firsts]
        return _load(self.samples, places, self.options, self.shard)


class FileEvalBatches:
    """All images in their own order, each in the shard of exactly one process."""

    def __init__(self, dataset: Dataset, options: DataOptions, shard: Shard) -> None:
        mean, std = options.normalisation
        self.crop, self.interpolation = DEFAULT_CROP_PCT, "bilinear"  # as timm's transform has them
        transform = create_transform(
            options.img_size,
            interpolation=self.interpolation,
            mean=mean,
            std=std,
            crop_pct=self.crop,
        )
        self.samples = Samples(dataset, transform, options.seed)
        self.classes, self.num_classes = class_names(dataset), count_classes(dataset)
        self.count = count_images(dataset)
        mine = range(shard.rank, self.count, shard.world)
        size = options.batch_size
        self.places = [
            [(0, index) for index in mine[first : first + size]]
            for first in range(0, len(mine), size)
        ]
        self.options, self.shard = options, shard

    def __len__(self) -> int:
        return len(self.places)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return _load(self.samples, self.places, self.options, self.shard)


def _load(
    samples: Samples, places: list[list[Place]], options: DataOptions, shard: Shard
) -> Iterator[tuple[Tensor, Tensor]]:
    on_accelerator = torch.device(shard.device).type != "cpu"
    loader = DataLoader(
        samples,
        batch_sampler=places,
        num_workers=options.workers,
        pin_memory=on_accelerator,
    )
    try:
        for images, labels in loader:
            yield (
                images.to(shard.device, non_blocking=on_accelerator),
                labels.to(shard.device, non_blocking=on_accelerator),
            )
    except DatasetError as error:
        # A worker's error arrives with the worker's traceback before the message.
        raise DatasetError(str(error).rpartition("DatasetError: ")[2]) from None
