"""Bytes of `cost` are those of a packed file, and 8-bit layers count as what they are."""

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import brevitas_multiquant.core.cifar_networks  # noqa: F401  (registers the CIFAR networks)
from brevitas_multiquant import (
    ModelSource,
    MultiQuantNet,
    calibrate,
    cost,
    multiquantize,
    save_packed,
)
from brevitas_multiquant.errors import UntracedWarning
from tests.cost.test_cost import BODY, HEAD, STEM
from tests.packed import take_apart
from tests.tiny import IMAGE, TinyNet

STEM_WEIGHTS, HEAD_WEIGHTS = 4 * 27, 5 * 6


def bytes_in_file(net: MultiQuantNet, folder: Path) -> int:
    _, arrays = take_apart(save_packed(net, folder / "net.safetensors"))
    return sum(array.nbytes for array in arrays.values())


def test_the_finn_profile_by_hand(make_net: Callable[..., MultiQuantNet]) -> None:
    costs, paper = cost(make_net(profile="finn")), cost(make_net())
    for bits, branches in ((2, 1), (4, 2)):
        one = costs[bits]
        assert (one.macs, one.edge_macs, one.float_macs) == (branches * BODY, STEM + HEAD, 0)
        assert one.bitops == branches * BODY * 2 * bits + (STEM + HEAD) * 8 * 8
        assert (paper[bits].edge_macs, paper[bits].float_macs) == (0, STEM + HEAD)
    # a byte per weight; fp32 scale of each layer, bias of the head, factor and summand of the norm
    shared = (STEM_WEIGHTS + HEAD_WEIGHTS) + 4 * (2 + 5 + 2 * 4)
    # ranges that bit-widths share (image), and those that each has (first, merge, head)
    ranges, own_ranges = 8 * 1, 8 * 3
    # 2 bits per weight, fp32 bias of conv2, three weight ranges
    branch = (216 + 324 + 24) * 2 // 8 + 4 * 6 + 8 * 3
    # two norms of 6 channels; ranges of conv2's input and of the addition's and average's operands
    branch_bits = 8 * 6 * 2 + 8 * 2
    assert costs[2].bytes == shared + ranges + own_ranges + branch + branch_bits
    assert costs[4].bytes == shared + ranges + own_ranges + 2 * (branch + branch_bits)
    total = shared + ranges + 2 * own_ranges + 2 * branch + 3 * branch_bits
    assert costs.total_bytes == total
    saved = 3 * (STEM_WEIGHTS + HEAD_WEIGHTS) - 4 * 2
    assert costs.file_bytes == total + saved
    assert (
        costs.float_bytes
        == paper.float_bytes
        == 4 * sum(parameter.numel() for parameter in TinyNet().parameters())
    )


def test_the_table_of_the_finn_profile(make_net: Callable[..., MultiQuantNet]) -> None:
    costs = cost(make_net(profile="finn"))
    head, *_, file, hardware = str(costs).splitlines()
    columns = ["bits", "branches", "MMACs", "8-bit MMACs", "float MMACs", "GBitOPs", "kB"]
    assert head.split() == " ".join(columns).split()
    assert file.startswith(f"all bit-widths in one file: {costs.file_bytes / 1e3:.3f} kB; float")
    assert hardware.startswith(f"all bit-widths in hardware: {costs.total_bytes / 1e3:.3f} kB; ")


class BlurPool(nn.Module):
    """A fixed filter, in the state dict or computed anew."""

    def __init__(self, persistent: bool) -> None:
        super().__init__()
        taps = torch.tensor([1.0, 2.0, 1.0]) / 4
        self.register_buffer("filter", torch.outer(taps, taps), persistent)

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        filters = self.filter.expand(channels, 1, 3, 3)
        return F.conv2d(x, filters, stride=2, padding=1, groups=channels)


class BlurNet(nn.Module):
    """Blur pooling and an instance norm with statistics: buffers that a file has, or has not."""

    def __init__(self, persistent: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.conv = nn.Conv2d(4, 6, 3, padding=1)
        self.norm = nn.InstanceNorm2d(6, track_running_stats=True)
        self.blur = BlurPool(persistent)
        self.last = nn.Conv2d(6, 6, 1)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blur(torch.relu(self.norm(self.conv(torch.relu(self.stem(x))))))
        return self.fc(torch.relu(self.last(x)).mean((2, 3)))


def blurred(persistent: bool) -> MultiQuantNet:
    with pytest.warns(UntracedWarning, match="BlurNet: blur cannot be traced"):
        return multiquantize(BlurNet(persistent), [2, 4], input_shape=IMAGE, source=OWN)


OWN = ModelSource("own", "net")
NETS: dict[str, Callable[[], MultiQuantNet]] = {
    "paper": lambda: multiquantize(TinyNet(), [2, 3, 4], input_shape=IMAGE, source=OWN),
    "finn": lambda: multiquantize(
        TinyNet(), [2, 3, 4], profile="finn", input_shape=IMAGE, source=OWN
    ),
    "standardised weights": lambda: multiquantize(
        timm.create_model("test_nfnet"), [2, 4], input_shape=(1, 3, 32, 32)
    ),
    "layer norm": lambda: multiquantize(
        timm.create_model("test_convnext"), [2, 4], input_shape=(1, 3, 32, 32)
    ),
    "finn resnet": lambda: multiquantize(
        timm.create_model("cifar_resnet8"), [2, 3, 6], profile="finn", input_shape=(1, 3, 32, 32)
    ),
    "filter in the state dict": lambda: blurred(True),
    "filter computed anew": lambda: blurred(False),
}


@pytest.mark.parametrize("name", NETS)
def test_bytes_are_those_of_the_file(name: str, tmp_path: Path) -> None:
    """To the byte; the header comes on top."""
    net = NETS[name]()
    assert net.input_shape is not None
    calibrate(net, [torch.randn(4, *net.input_shape[1:])])
    costs = cost(net)
    assert costs.file_bytes == bytes_in_file(net, tmp_path)
    assert (costs.file_bytes == costs.total_bytes) == (net.config.profile == "paper")
    assert all(one.bytes <= costs.total_bytes for one in costs.values())


def test_fixed_filters_are_bytes_and_no_macs(tmp_path: Path) -> None:
    """One in each branch, as every part of a branch is."""
    nets = [NETS[name]() for name in ("filter in the state dict", "filter computed anew")]
    kept, computed = map(cost, nets)
    assert kept.total_bytes - computed.total_bytes == 2 * 4 * 9
    assert {b: c.macs for b, c in kept.items()} == {b: c.macs for b, c in computed.items()}
