"""The merge: branch outputs as integers of one shared scale."""

from brevitas_multiquant.nn.merge import OnlyOutput
from brevitas_multiquant.profiles.finn.modules import QuantizedMerge
from brevitas_multiquant.profiles.finn.signs import merge_is_signed
from brevitas_multiquant.profiles.profile import Parts


def quantize_merge(parts: Parts) -> None:
    """Branch outputs pass one shared quantizer and are added as integers.

    Of one body there is nothing to add: the head reads its output, and quantizes what it averages.
    """
    if not parts.merges:
        parts.merge = OnlyOutput()
        return
    parts.merge = QuantizedMerge(
        parts.config.merge, parts.branch_counts, merge_is_signed(parts), parts.active
    )
