"""Augmentation moves each image of a batch by its own random numbers."""

import torch

from brevitas_multiquant.recipes.data import augment


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
