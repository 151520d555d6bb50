"""Seeds for everything random, each a function of the run's seed and of a place in the run."""

import random

import numpy as np
import torch


def derived_seed(seed: int, *place: int) -> int:
    """An independent seed in [0, 2**32) for each place, such as (epoch, step, rank).

    Example:
        >>> derived_seed(42, 0) == derived_seed(42, 1)
        False
    """
    return int(np.random.SeedSequence([seed, *place]).generate_state(1)[0])


def seed_image(seed: int) -> None:
    """Seed what transforms of an image draw from, all of it on the CPU.

    As ``timm.utils.random_seed``, but for accelerators: where there is none, ``torch.manual_seed``
    keeps a traceback for later, which takes longer than a small image.

    Example:
        >>> seed_image(3)
        >>> first = random.random(), np.random.rand(), torch.rand(1)
        >>> seed_image(3)
        >>> first == (random.random(), np.random.rand(), torch.rand(1))
        True
    """
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
