"""Doors to `brevitas_multiquant.recipes`, for ``accelerate launch recipes/train.py`` in a clone."""

import brevitas_multiquant  # noqa: F401 - its modules' old names, `recipes.step` and the like, work on
