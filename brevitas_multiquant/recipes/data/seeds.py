"""Seeds for everything random, each a function of the run's seed and of a place in the run."""

import numpy as np


def derived_seed(seed: int, *place: int) -> int:
    """An independent seed in [0, 2**32) for each place, such as (epoch, step, rank).

    Example:
        >>> derived_seed(42, 0) == derived_seed(42, 1)
        False
    """
    return int(np.random.SeedSequence([seed, *place]).generate_state(1)[0])
