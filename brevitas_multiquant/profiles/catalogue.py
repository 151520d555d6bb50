"""The profiles there are. Their names stand in `brevitas_multiquant.core.config.PROFILES`, too."""

from brevitas_multiquant.profiles.finn.profile import FINN
from brevitas_multiquant.profiles.profile import Profile

PAPER = Profile("paper", "a float")
"""Stem, residual path and classifier stay float: nothing to do."""

PROFILES = {profile.name: profile for profile in (PAPER, FINN)}
