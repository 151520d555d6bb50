"""Augmentation moves each image of a batch by its own random numbers."""

from dataclasses import replace

import pytest
import torch
from timm.data import auto_augment, create_transform
from timm.utils import random_seed
from torchvision.transforms.v2.functional import to_pil_image

from brevitas_multiquant.recipes.data import augment
from brevitas_multiquant.recipes.data.batches import train_batches
from brevitas_multiquant.recipes.data.per_image import policies_of, posterize, train_transform
from brevitas_multiquant.recipes.data.seeds import derived_seed
from brevitas_multiquant.recipes.data.shard import Shard
from brevitas_multiquant.recipes.options.train import parse_train


def test_crop_moves_each_image_by_its_own_offset():
    images = torch.randint(1, 256, (25, 3, 6, 5), dtype=torch.uint8)
    offsets = torch.cartesian_prod(torch.arange(5), torch.arange(5))
    cropped = augment.random_crop(images, 2, offsets)
    for image, (top, left), got in zip(images, offsets.tolist(), cropped, strict=True):
        padded = torch.zeros(3, 10, 9, dtype=torch.uint8)
        padded[:, 2:8, 2:7] = image
        assert torch.equal(got, padded[:, top : top + 6, left : left + 5])


def test_flip_mirrors_the_chosen_images_only():
    images = torch.arange(2 * 3 * 2 * 4, dtype=torch.uint8).reshape(2, 3, 2, 4)
    flipped = augment.random_flip(images, torch.tensor([False, True]))
    assert torch.equal(flipped[0], images[0])
    assert torch.equal(flipped[1], images[1][..., [3, 2, 1, 0]])


OPTIONS = {
    "aa": ["--aa", "rand-m9-mstd0.5-inc1"],
    "erasing": ["--reprob", "1", "--remode", "const"],
    "both": ["--aa", "original", "--reprob", "0.5", "--recount", "2"],
}


def data_options(*given):
    whole = ["--subset", "12", "--batch-size", "4", "--img-size", "16", "--crop-padding", "0"]
    return parse_train([*whole, "--dataset", "synthetic", "--num-classes", "10", *given]).data


@pytest.mark.parametrize("given", OPTIONS.values(), ids=OPTIONS)
def test_images_in_memory_are_finished_by_timm_each_by_its_own_seed(given):
    options = data_options(*given, "--hflip", "0")
    batches = train_batches(options, Shard())
    pixels, seed = batches.images.pixels, options.seed
    order = torch.randperm(12, generator=torch.Generator().manual_seed(derived_seed(seed, 3)))
    mean, std = options.normalisation
    with policies_of(options):
        _, policy, to_tensor = create_transform(
            *(16, True),
            auto_augment=options.aa,
            color_jitter=0.0,
            re_prob=options.reprob,
            re_mode=options.remode,
            re_count=options.recount,
            mean=mean,
            std=std,
            separate=True,
        )
    finished = []
    for index in order.tolist():
        random_seed(derived_seed(seed, 3, index))
        finished.append(to_tensor(policy(to_pil_image(pixels[index]))))
    assert torch.equal(torch.cat([images for images, _ in batches.epoch(3)]), torch.stack(finished))
    resumed = torch.cat([images for images, _ in batches.epoch(3, start=1)])
    assert torch.equal(resumed, torch.stack(finished[4:]))


def test_what_is_erased_is_black_and_the_rest_as_without():
    plain, erased = (
        torch.cat([images for images, _ in train_batches(options, Shard()).epoch(0)])
        for options in (data_options(), data_options(*OPTIONS["erasing"]))
    )
    gone = (erased == 0).all(1, keepdim=True)
    assert gone.flatten(1).any(1).all()
    kept = ~gone.expand_as(plain)
    # timm divides by 255 and normalises in another order: a rounding apart
    torch.testing.assert_close(erased[kept], plain[kept], rtol=0, atol=1e-6)


def test_processes_see_together_what_one_would():
    options = data_options(*OPTIONS["both"])
    one = next(train_batches(replace(options, batch_size=8), Shard()).epoch(1))
    two = [next(train_batches(options, Shard(rank, 2)).epoch(1)) for rank in (0, 1)]
    for whole, first, second in zip(one, *two, strict=True):
        assert torch.equal(whole, torch.cat([first, second]))


def test_images_from_files_take_the_policy_too():
    options = data_options(*OPTIONS["both"])
    assert "AutoAugment" in str(train_transform(options))
    assert "RandomErasing" in str(train_transform(options))
    plain = str(train_transform(data_options()))
    assert "Augment" not in plain and "RandomErasing" not in plain


@pytest.mark.parametrize("policy", ["rand-m9-mstd0.5-inc1", "rand-m10", "augmix-m5", "v0", "3a"])
def test_every_operation_of_a_policy_runs(policy):
    """Policies posterize to 0 bits: black, where Pillow would refuse."""
    images = train_batches(data_options("--aa", policy, "--subset", "96"), Shard())
    assert all(batch.isfinite().all() for batch, _ in images.epoch(0))
    image = to_pil_image(torch.full((3, 2, 2), 200, dtype=torch.uint8))
    kept = [posterize(image, bits).getpixel((0, 0))[0] for bits in (0, 1, 3, 8)]
    assert kept == [0, 128, 192, 200]
    assert auto_augment.NAME_TO_OP["Posterize"] is auto_augment.posterize
