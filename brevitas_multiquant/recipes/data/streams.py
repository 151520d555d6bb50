"""Data sets that can only be read from start to end, by timm's own loader.

Weaker than the others, because the reader decides the order: a resumed run
reads its epoch from the start, and images may be counted twice where several processes evaluate.
"""

from collections.abc import Iterator
from itertools import islice

import torch
from timm.data import DEFAULT_CROP_PCT, create_loader
from timm.utils import random_seed
from torch import Tensor
from torch.utils.data import IterableDataset

from brevitas_multiquant.recipes.data.per_image import policies_of, policy_of
from brevitas_multiquant.recipes.data.reading import class_names, count_classes
from brevitas_multiquant.recipes.data.seeds import derived_seed
from brevitas_multiquant.recipes.data.shard import Shard
from brevitas_multiquant.recipes.options.data import DataOptions


class StreamedBatches:
    """Batches of a streamed data set, for training or for validation."""

    def __init__(
        self, dataset: IterableDataset, options: DataOptions, shard: Shard, train: bool
    ) -> None:
        mean, std = options.normalisation
        self.dataset, self.seed, self.rank = dataset, options.seed, shard.rank
        self.classes, self.num_classes = class_names(dataset), count_classes(dataset)
        self.count: int | None = None
        self.crop, self.interpolation = DEFAULT_CROP_PCT, "bilinear"  # as timm's loader has them
        with policies_of(options):
            self.loader = create_loader(
                dataset,  # type: ignore[arg-type]
                input_size=(3, options.img_size, options.img_size),
                batch_size=options.batch_size,
                is_training=train,
                hflip=options.flip_probability,
                color_jitter=0.0,
                **(policy_of(options) if train else {}),
                interpolation=self.interpolation,
                mean=mean,
                std=std,
                num_workers=options.workers,
                crop_pct=self.crop,
                distributed=shard.world > 1,
                device=torch.device(shard.device),
                persistent_workers=False,
            )

    def __len__(self) -> int:
        return len(self.loader)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of an epoch, from batch ``start`` on; those before are read and dropped."""
        random_seed(derived_seed(self.seed, epoch, self.rank))
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)
        return islice(self.loader, start, None)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self.loader)
