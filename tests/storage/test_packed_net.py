"""Packed files: equality to the bit, size, and refusal of everything that is not one."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors import safe_open
from torch import Tensor, nn

import brevitas_multiquant.core.cifar_networks  # noqa: F401  (registers the CIFAR networks)
from brevitas_multiquant import (
    ModelSource,
    MultiQuantError,
    MultiQuantNet,
    calibrate,
    cost,
    load_packed,
    multiquantize,
    save_packed,
)
from brevitas_multiquant.errors import CalibrationError, PackedFileError, SourceError
from brevitas_multiquant.quant.layers import CodeLayer
from brevitas_multiquant.storage.packed_file import FORMAT, VERSION
from tests.packed import rewrite, take_apart
from tests.tiny import TinyNet

OWN = ModelSource("own", "TinyNet")


def trained(net: MultiQuantNet, images: Tensor) -> MultiQuantNet:
    """Calibrated, with batch norm statistics and parameters unlike those of a new network."""
    calibrate(net, [images])
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    net.train()
    for bits in net.bits:
        with net.at_bits(bits):
            net(images)
    return net.eval()


def outputs(net: MultiQuantNet, images: Tensor) -> list[Tensor]:
    found = []
    for bits in net.bits:
        with torch.no_grad(), net.eval().at_bits(bits):
            found.append(net(images))
    return found


@pytest.mark.parametrize(
    ("library", "name", "kwargs"),
    [
        ("timm", "test_resnet", {"num_classes": 7}),
        ("timm", "test_nfnet", {}),  # weights are standardised: the file holds what the layer uses
        ("timm", "test_convnext", {}),  # LayerNorm and layer scale
        ("timm", "cifar_vgg11_bn", {"num_classes": 5}),
        ("torchvision", "mobilenet_v3_small", {"num_classes": 3}),  # squeeze-excite, hardswish
    ],
)
def test_loaded_network_equals_the_saved_one(
    library: str, name: str, kwargs: dict[str, int], tmp_path: Path
) -> None:
    images = torch.randn(2, 3, 32, 32)
    model = ModelSource(library, name, kwargs).build()
    net = multiquantize(model, [2, 4], input_shape=(1, 3, 32, 32), branch_init="shuffle")
    trained(net, images)
    loaded = load_packed(save_packed(net, tmp_path / "net.safetensors"))
    assert loaded.config == net.config
    assert loaded.source == net.source == ModelSource(library, name, kwargs)
    assert loaded.input_shape == net.input_shape
    assert not loaded.training
    for ours, theirs in zip(outputs(loaded, images), outputs(net, images), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", ["test_resnet", "cifar_resnet8"])
def test_half_branches(name: str, tmp_path: Path) -> None:
    """Odd bit-widths: what a half branch shares with its branch is stored once."""
    images = torch.randn(2, 3, 32, 32)
    source = ModelSource("timm", name, {"num_classes": 4})
    net = multiquantize(source.build(), [2, 3, 4], input_shape=(1, 3, 32, 32), source=source)
    trained(net, images)
    path = save_packed(net, tmp_path / "net.safetensors")
    loaded = load_packed(path)
    assert loaded.config == net.config
    for ours, theirs in zip(outputs(loaded, images), outputs(net, images), strict=True):
        assert torch.equal(ours, theirs)
    parts = {key.rpartition(".")[0] for key in take_apart(path)[1]}
    assert any(part.startswith("halves.") for part in parts)
    assert not any(key.startswith("halves.") and key.endswith("codes") for key in parts)


def test_packing_again_gives_the_same_file(net: MultiQuantNet, tmp_path: Path) -> None:
    net.source = OWN
    first = save_packed(net, tmp_path / "first.safetensors")
    second = save_packed(load_packed(first, TinyNet()), tmp_path / "second.safetensors")
    assert first.read_bytes() == second.read_bytes()


def test_network_of_ones_own(
    make_net: Callable[..., MultiQuantNet], images: Tensor, tmp_path: Path
) -> None:
    net = trained(make_net(source=OWN, merge="sum", selection="serial"), images)
    path = save_packed(net, tmp_path / "own.safetensors")
    loaded = load_packed(path, TinyNet())
    for ours, theirs in zip(outputs(loaded, images), outputs(net, images), strict=True):
        assert torch.equal(ours, theirs)
    with pytest.raises(SourceError, match=r"load_packed\(path, model=\.\.\.\)"):
        load_packed(path)


@pytest.mark.parametrize(
    ("name", "kwargs", "megabytes"),
    [
        ("resnet18", {}, 13.629),
        ("cifar_resnet20", {"num_classes": 100}, 0.361),
    ],
)
def test_size_follows_the_papers_storage_rule(
    name: str, kwargs: dict[str, int], megabytes: float, tmp_path: Path
) -> None:
    """2%: the header, and ranges shared by layers that read one tensor (the paper counts each)."""
    net = multiquantize(timm.create_model(name, **kwargs), [2, 4, 6, 8], check=False)
    for module in net.modules():
        if hasattr(module, "observed"):
            module.observed.fill_(1)
    size = save_packed(net, tmp_path / "net.safetensors").stat().st_size
    assert size == pytest.approx(megabytes * 1e6, rel=0.02)
    assert cost(net).total_bytes == pytest.approx(size, rel=0.02)


def test_weights_take_two_bits_each(net: MultiQuantNet, tmp_path: Path) -> None:
    net.source = OWN
    with safe_open(save_packed(net, tmp_path / "net.safetensors"), "np") as file:
        codes = file.get_tensor("branches.0.codes")
    sizes = [m.weight.numel() for m in net.branches[0].modules() if isinstance(m, CodeLayer)]
    assert codes.dtype == np.uint8
    assert codes.size == sum(-(-size // 4) for size in sizes)


def test_needs_a_source(net: MultiQuantNet, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"unknown source.*ModelSource"):
        save_packed(net, tmp_path / "net.safetensors")
    assert not list(tmp_path.iterdir())


def test_needs_ranges(make_net: Callable[..., MultiQuantNet], tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"input_quants.*call calibrate"):
        save_packed(make_net(source=OWN), tmp_path / "net.safetensors")
    assert not list(tmp_path.iterdir())


def test_needs_single_precision(net: MultiQuantNet, tmp_path: Path) -> None:
    net.source = OWN
    with pytest.raises(PackedFileError, match=r"float32.*float64.*net\.float\(\)"):
        save_packed(net.double(), tmp_path / "net.safetensors")


def test_unwritable_folder(net: MultiQuantNet, tmp_path: Path) -> None:
    net.source = OWN
    with pytest.raises(PackedFileError, match="cannot write"):
        save_packed(net, tmp_path / "nowhere" / "net.safetensors")


def test_failed_write_keeps_the_old_file(
    net: MultiQuantNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net.source = OWN
    path = save_packed(net, tmp_path / "net.safetensors")
    before = path.read_bytes()

    def full_disk(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(PackedFileError, match="No space left"):
        save_packed(net, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(PackedFileError, match=r"expected a packed file at .*none"):
        load_packed(tmp_path / "net.safetensors")


DAMAGE: dict[str, tuple[Callable[[dict, dict], object], str]] = {
    "bit flip": (lambda a, h: a["stem.floats"].__iadd__(1), "stem.floats is damaged"),
    "array gone": (lambda a, h: a.pop("branches.1.codes"), "expected the arrays"),
    "array added": (lambda a, h: a.update(x=np.zeros(1, np.float32)), "expected the arrays"),
    "other format": (lambda a, h: h.update(format="x"), f"header of the format '{FORMAT}'"),
    "other version": (lambda a, h: h.update(version=99), f"expected version {VERSION}"),
    "header key gone": (lambda a, h: h.pop("config"), "expected a header with the keys"),
    "other bit-widths": (lambda a, h: h["config"].update(bits=[2]), "one entry for each"),
    "config version": (lambda a, h: h["config"].update(version=9), "expected version 1"),
    "no kwargs": (lambda a, h: h["source"].update(kwargs=None), "a mapping of arguments"),
    "shape": (lambda a, h: h.update(input_shape=[3]), "input_shape to be four numbers"),
    "dtype": (
        lambda a, h: a.update({"stem.norms": a["stem.norms"].astype(np.float64)}),
        "flat array of float32",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_file_is_refused(kind: str, net: MultiQuantNet, tmp_path: Path) -> None:
    net.source = OWN
    path = save_packed(net, tmp_path / "net.safetensors")
    change, message = DAMAGE[kind]
    rewrite(path, change)
    with pytest.raises(MultiQuantError, match=message):
        load_packed(path, TinyNet())


def test_changed_header_is_refused(net: MultiQuantNet, tmp_path: Path) -> None:
    """A selection that fits as well: nothing but the header's own checksum can tell."""
    net.source = OWN
    path = save_packed(net, tmp_path / "net.safetensors")
    rewrite(path, lambda a, h: h["config"].update(merge="sum"), signed=())
    with pytest.raises(PackedFileError, match="header is damaged"):
        load_packed(path, TinyNet())


def test_values_that_are_not_finite(net: MultiQuantNet, tmp_path: Path) -> None:
    net.source = OWN
    path = save_packed(net, tmp_path / "net.safetensors")
    rewrite(path, lambda a, h: a["stem.norms"].fill(np.nan), signed=("arrays", "header"))
    with pytest.raises(PackedFileError, match=r"finite numbers in stem\.norms"):
        load_packed(path, TinyNet())
    with torch.no_grad():
        net.head.fc.weight[0, 0] = torch.inf
    before = path.read_bytes()
    with pytest.raises(PackedFileError, match=r"finite parameters.*head\.fc\.weight"):
        save_packed(net, path)
    assert path.read_bytes() == before


def test_ranges_that_lose_codes(net: MultiQuantNet, tmp_path: Path) -> None:
    net.source = OWN
    path = save_packed(net, tmp_path / "net.safetensors")

    def too_wide(arrays: dict, _header: dict) -> None:
        arrays["branches.0.ranges"][0::2], arrays["branches.0.ranges"][1::2] = -3e38, 3e38

    rewrite(path, too_wide, signed=("arrays", "header"))
    with pytest.raises(PackedFileError, match="loses its codes"):
        load_packed(path, TinyNet())


def test_model_given_for_loading_is_left_alone(net: MultiQuantNet, tmp_path: Path) -> None:
    net.source = OWN
    path = save_packed(net, tmp_path / "net.safetensors")
    model = TinyNet()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    loaded = load_packed(path, model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {t.device.type for t in (*loaded.parameters(), *loaded.buffers())} == {"cpu"}


def test_truncated_and_foreign_files_are_refused(net: MultiQuantNet, tmp_path: Path) -> None:
    net.source = OWN
    path = save_packed(net, tmp_path / "net.safetensors")
    whole = path.read_bytes()
    for data in (whole[:-1], whole[: len(whole) // 2], b"", b"not a file of this kind at all"):
        path.write_bytes(data)
        with pytest.raises(PackedFileError, match=r"not a whole safetensors file|an empty file"):
            load_packed(path, TinyNet())


def test_file_of_another_model_is_refused(net: MultiQuantNet, tmp_path: Path) -> None:
    net.source = OWN
    path = save_packed(net, tmp_path / "net.safetensors")
    wider = TinyNet()
    wider.fc = nn.Linear(6, 9)
    with pytest.raises(PackedFileError, match=r"head\.floats: 63 expected, 35 got"):
        load_packed(path, wider)


def test_every_refusal_is_a_value_error() -> None:
    assert issubclass(PackedFileError, MultiQuantError)
    assert issubclass(MultiQuantError, ValueError)
