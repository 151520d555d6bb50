"""Batches of images kept in memory as uint8, augmented a whole batch at a time.

Everything random in an epoch is drawn at once from (seed, epoch): N processes see together what
one process with an N times larger batch would see. What timm does to one image at a time has a
seed for each image.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from brevitas_multiquant.recipes.data.augment import normalise, random_crop, random_flip
from brevitas_multiquant.recipes.data.images import Images
from brevitas_multiquant.recipes.data.per_image import each, finish_of
from brevitas_multiquant.recipes.data.seeds import derived_seed
from brevitas_multiquant.recipes.data.shard import Shard
from brevitas_multiquant.recipes.options.data import DataOptions


class CachedTrainBatches:
    """Shuffled, augmented batches of images in memory; an incomplete last batch is dropped.

    Its batches are (images float32 (B, 3, H, W), labels int64 (B,)) of this process's shard.
    """

    def __init__(self, images: Images, options: DataOptions, shard: Shard) -> None:
        self.images = images.to(shard.device)
        self.classes, self.num_classes = images.classes, images.num_classes
        self.count: int | None = len(images)
        self.options, self.shard = options, shard
        self.finish = finish_of(options)

    def __len__(self) -> int:
        return len(self.images.labels) // (self.options.batch_size * self.shard.world)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of an epoch, from batch ``start`` on."""
        generator = torch.Generator().manual_seed(derived_seed(self.options.seed, epoch))
        count, padding = len(self.images.labels), self.options.padding
        order = torch.randperm(count, generator=generator)
        offsets = torch.randint(0, 2 * padding + 1, (count, 2), generator=generator)
        flipped = torch.rand(count, generator=generator) < self.options.flip_probability
        drawn = [values.to(self.shard.device) for values in (order, offsets, flipped)]
        size = self.options.batch_size
        for step in range(start, len(self)):
            first = (step * self.shard.world + self.shard.rank) * size
            yield self._batch(epoch, *(values[first : first + size] for values in drawn))

    def _batch(
        self, epoch: int, chosen: Tensor, offsets: Tensor, flipped: Tensor
    ) -> tuple[Tensor, Tensor]:
        images = self.images.pixels.index_select(0, chosen)
        images = random_flip(random_crop(images, self.options.padding, offsets), flipped)
        labels = self.images.labels.index_select(0, chosen)
        if self.finish is None:
            return normalise(images, *self.options.normalisation), labels
        seeds = [derived_seed(self.options.seed, epoch, index) for index in chosen.tolist()]
        return each(self.finish, images, seeds), labels


class CachedEvalBatches:
    """All images in memory in their own order, each in the shard of exactly one process."""

    def __init__(self, images: Images, options: DataOptions, shard: Shard) -> None:
        self.images = images.to(shard.device)
        self.classes, self.num_classes = images.classes, images.num_classes
        self.crop, self.interpolation = 1.0, images.interpolation
        self.count: int | None = len(images)
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
