"""The ``finn`` profile: everything quantized that hardware needs, so that training sees it.

A change of the network that the paper's profile builds, not another network:

* stem: the image in 8 bits, 8-bit weights, and the first activation quantizer, which the paper has
  in every branch, once, before the branches part;
* branches: both operands of an addition, and what is averaged over positions, pass a fixed-point
  quantizer; a half branch reads the first channels of the stem's codes and has quantizers of its
  own, as it has its own norms;
* merge: branch outputs pass one shared quantizer and are added as integers; a half branch counts
  as one where the paper's profile takes the mean, and so it does here;
* head: the classifier's input and weights in 8 bits.
"""

from brevitas_multiquant.profiles.finn.branches import quantize_branches
from brevitas_multiquant.profiles.finn.head import divide_sum, quantize_head
from brevitas_multiquant.profiles.finn.merge import quantize_merge
from brevitas_multiquant.profiles.finn.stem import quantize_first_codes, quantize_stem
from brevitas_multiquant.profiles.profile import Profile

FINN = Profile(
    "finn",
    "an 8-bit",
    (
        quantize_stem,
        quantize_first_codes,
        quantize_branches,
        quantize_merge,
        divide_sum,
        quantize_head,
    ),
    takes_perceptrons=True,
    one_tensor=True,
    takes_videos=False,
)
