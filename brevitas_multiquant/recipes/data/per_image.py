"""What timm's transforms do to one training image at a time: ``--aa``, ``--reprob``."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image
from timm.data import auto_augment, create_transform
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from brevitas_multiquant.recipes.data.seeds import seed_image
from brevitas_multiquant.recipes.errors import OptionError
from brevitas_multiquant.recipes.options.data import DataOptions

ToTensor = Callable[[Image.Image], Tensor]
"""An image -> float32 (3, H, W), normalised."""


def policy_of(options: DataOptions) -> dict[str, Any]:
    """The options of an image that was cut and mirrored, under the names of timm's factories."""
    return {
        "auto_augment": options.aa,
        "re_prob": options.reprob,
        "re_mode": options.remode,
        "re_count": options.recount,
    }


def train_transform(options: DataOptions, separate: bool = False) -> Any:
    """All of timm's transforms of a training image, from a file to a normalised tensor.

    Args:
        options: the data options.
        separate: as three: cut and mirrored; ``--aa``; normalised and ``--reprob``.

    Raises:
        OptionError: a policy that timm cannot make.
    """
    mean, std = options.normalisation
    with policies_of(options):
        return create_transform(
            options.img_size,
            is_training=True,
            hflip=options.flip_probability,
            color_jitter=0.0,
            mean=mean,
            std=std,
            separate=separate,
            **policy_of(options),
        )


@contextmanager
def policies_of(options: DataOptions) -> Iterator[None]:
    """Inside, timm's factories make policies whose every operation Pillow runs.

    Raises:
        OptionError: a policy that timm cannot make.
    """
    operations = auto_augment.NAME_TO_OP
    own = {name: posterize for name, op in operations.items() if op is auto_augment.posterize}
    before = dict(operations)
    operations.update(own)
    try:
        yield
    except (AssertionError, ValueError) as error:
        raise OptionError(f"--aa {options.aa}: timm cannot make this policy: {error}") from error
    finally:
        operations.update(before)


def posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """The operation of timm that keeps the first bits of a pixel.

    Its policies ask for 0 bits too, which Pillow 13 refuses; the image is black, as it was before.
    """
    return auto_augment.posterize(image, bits) if bits > 0 else Image.new(image.mode, image.size)


def finish_of(options: DataOptions) -> ToTensor | None:
    """What is left to do with an image that was cut and mirrored; None: to normalise alone."""
    if options.aa is None and not options.reprob:
        return None
    _, policy, to_tensor = train_transform(options, separate=True)
    return lambda image: to_tensor(policy(image))


def each(finish: ToTensor, images: Tensor, seeds: Sequence[int]) -> Tensor:
    """Finish every image of a batch, each by its own seed.

    Args:
        finish: of one image.
        images: uint8 (N, 3, H, W).
        seeds: N of them.

    Returns:
        float32 (N, 3, H, W), where the images are.
    """
    finished = []
    for image, seed in zip(images.cpu(), seeds, strict=True):
        seed_image(seed)
        finished.append(finish(transforms.to_pil_image(image)))
    return torch.stack(finished).to(images.device)
