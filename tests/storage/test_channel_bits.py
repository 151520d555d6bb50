"""Files of layers whose output channels have bit-widths of their own."""

from pathlib import Path

import numpy as np
import pytest
import torch

from brevitas_multiquant import MultiQuantNet, calibrate, cost, load_packed, save_packed
from brevitas_multiquant.errors import PackedFileError
from brevitas_multiquant.methods.settle import settle
from tests.one_body import MIXED, build, sample
from tests.packed import rewrite, take_apart
from tests.storage.test_one_body import everything, layers_of, reference_unpack
from tests.tiny import TinyNet

CHANNELS = {
    "conv1": [8, 2, 0, 5, 8, 3],
    "conv2": [3, 0, 3, 1, 2, 2],
    "shortcut": [1, 8, 4, 4, 0, 8],
}
TAPS = {"conv1": 36, "conv2": 54, "shortcut": 4}


@pytest.fixture
def net() -> MultiQuantNet:
    net = build("individual, assignment")
    settle(net, MIXED, CHANNELS)
    calibrate(net, [sample(16)])
    return net.eval()


def test_each_channel_is_there_in_its_bits(net: MultiQuantNet, tmp_path: Path) -> None:
    header, arrays = take_apart(save_packed(net, tmp_path / "net.safetensors"))
    said = header["weights"]
    assert {name.rpartition(".")[2]: own["bits"] for name, own in said.items()} == CHANNELS
    data = arrays["branches.0.codes"].tobytes()
    for name, layer in layers_of(net).items():
        bits, taps = said[name]["bits"], TAPS[name.rpartition(".")[2]]
        integers = layer.quant_weight().detach().flatten(1).int().numpy()
        assert not integers[[channel for channel, own in enumerate(bits) if not own]].any()
        for own in sorted(set(bits) - {0}):
            rows = [channel for channel, held in enumerate(bits) if held == own]
            size = -(-len(rows) * taps * own // 8)
            places = reference_unpack(data[:size], own, len(rows) * taps)
            assert np.array_equal((2 * places - 2**own + 1).reshape(len(rows), -1), integers[rows])
            data = data[size:]
    assert not data
    assert cost(net).file_bytes == sum(array.nbytes for array in arrays.values())
    assert cost(net)[4].bytes == cost(net).total_bytes


def test_loaded_network_equals_the_saved_one(net: MultiQuantNet, tmp_path: Path) -> None:
    path = save_packed(net, tmp_path / "net.safetensors")
    loaded = load_packed(path, TinyNet())
    for name, layer in layers_of(loaded).items():
        assert list(layer.channel_bits or ()) == CHANNELS[name.rpartition(".")[2]]
    for ours, theirs in zip(everything(loaded, sample()), everything(net, sample()), strict=True):
        assert torch.equal(ours, theirs)
    assert save_packed(loaded, tmp_path / "again").read_bytes() == path.read_bytes()


def change(bits: object):
    return lambda arrays, header: header["weights"]["branches.0.conv1"].update(bits=bits)


DAMAGE = {
    "other bits": (change([8, 2, 0, 5, 8, 2]), "branches.0.codes: 201 expected, 206 got"),
    "too few channels": (change([8, 2]), "bits of 6 output channels, got 2"),
    "too many bits": (change([8, 2, 0, 5, 8, 17]), "expected 0 to 16 bits each"),
    "all pruned": (change([0] * 6), "and one with some"),
    "no numbers": (change(["8"] * 6), "a header that describes a network"),
    "one for all": (change(8), "branches.0.codes: 304 expected, 206 got"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_headers_are_refused(kind: str, net: MultiQuantNet, tmp_path: Path) -> None:
    path = save_packed(net, tmp_path / "net.safetensors")
    alter, message = DAMAGE[kind]
    rewrite(path, alter)
    with pytest.raises(PackedFileError, match=message):
        load_packed(path, TinyNet())


def test_bits_in_another_order_are_told_by_the_checksum(net: MultiQuantNet, tmp_path: Path) -> None:
    path = save_packed(net, tmp_path / "net.safetensors")
    rewrite(path, change([8, 2, 0, 8, 5, 3]), signed=())
    with pytest.raises(PackedFileError, match="header is damaged"):
        load_packed(path, TinyNet())
