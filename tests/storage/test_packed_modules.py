"""What somebody did to a network after it was built: saved as it is, or refused before writing."""

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import brevitas_multiquant.core.cifar_networks  # noqa: F401  (registers the CIFAR networks)
from brevitas_multiquant import (
    InPlaceDistillation,
    ModelSource,
    MultiQuantNet,
    calibrate,
    extract_subnet,
    load_packed,
    multiquantize,
    save_packed,
)
from brevitas_multiquant.errors import PackedFileError
from brevitas_multiquant.export import export_qonnx
from brevitas_multiquant.nn.stored import layout_of
from brevitas_multiquant.nn.switchable import ScaleShiftNorm
from brevitas_multiquant.storage.packed_net import _layout_of_header
from tests.tiny import IMAGE, TinyNet

OWN = ModelSource("own", "TinyNet")
convert_sync_batchnorm = nn.SyncBatchNorm.convert_sync_batchnorm


def trained(net: MultiQuantNet, images: Tensor) -> MultiQuantNet:
    """Calibrated, with statistics of its own in every norm."""
    calibrate(net, [images])
    net.train()
    for bits in net.bits:
        with net.at_bits(bits):
            net(images)
    return net


def outputs(net: MultiQuantNet, images: Tensor) -> list[Tensor]:
    found = []
    for bits in net.bits:
        with torch.no_grad(), net.at_bits(bits):
            found.append(net(images))
    return found


def equal(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


@pytest.fixture
def own(make_net: Callable[..., MultiQuantNet], images: Tensor) -> MultiQuantNet:
    return trained(make_net(bits=(2, 3, 4), source=OWN), images).eval()


@pytest.mark.parametrize("profile", ["paper", "finn"])
@pytest.mark.parametrize("wrapped", [False, True], ids=["network", "task"])
def test_synchronised_norms_are_the_same_network(
    profile: str,
    wrapped: bool,
    make_net: Callable[..., MultiQuantNet],
    images: Tensor,
    tmp_path: Path,
) -> None:
    net = trained(make_net(bits=(2, 3, 4), source=OWN, profile=profile), images).eval()
    before = outputs(net, images)
    plain = save_packed(net, tmp_path / "plain.safetensors").read_bytes()
    norms = sum(isinstance(module, ScaleShiftNorm) for module in net.modules())
    if wrapped:
        convert_sync_batchnorm(InPlaceDistillation(net))
    else:
        net = convert_sync_batchnorm(net)
    converted = [m for m in net.modules() if isinstance(m, nn.SyncBatchNorm)]
    assert len(converted) == norms > 0
    assert all(isinstance(norm, ScaleShiftNorm) for norm in converted)
    assert equal(outputs(net, images), before)
    path = save_packed(net, tmp_path / "converted.safetensors")
    assert path.read_bytes() == plain
    assert equal(outputs(load_packed(path, TinyNet()), images), before)
    for bits, expected in zip(net.bits, before, strict=True):
        assert torch.equal(extract_subnet(net, bits)(images), expected)


def test_synchronised_norms_of_one_branch(own: MultiQuantNet, images: Tensor) -> None:
    """Nobody hands that over; a subnet and a file take the norms for what they are."""
    before = [extract_subnet(own, bits)(images) for bits in own.bits]
    convert_sync_batchnorm(own.branches[0])
    assert equal([extract_subnet(own, bits)(images) for bits in own.bits], before)
    assert not any(isinstance(m, ScaleShiftNorm) for m in own.branches[0].modules())
    own.eval()  # a mode that is set brings them back, wherever they were put
    assert equal(outputs(own, images), before)


def test_synchronised_norms_are_exported(
    own: MultiQuantNet, images: Tensor, tmp_path: Path
) -> None:
    """The export compares the file with the network to the bit."""
    pytest.importorskip("qonnx")
    export_qonnx(convert_sync_batchnorm(own), tmp_path, bits=[2])
    assert list(tmp_path.glob("*.onnx"))


def test_synchronised_norms_still_train(own: MultiQuantNet, images: Tensor) -> None:
    net = convert_sync_batchnorm(own).train()
    norm = next(m for m in net.stem.modules() if isinstance(m, nn.SyncBatchNorm))
    before = norm.running_mean.clone()
    net(images)
    assert not torch.equal(norm.running_mean, before)


class LowRank(nn.Module):
    """A wrapper as adapters use it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.down = nn.Conv2d(layer.in_channels, 2, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class Slopes(nn.Sequential):
    """Options that no array tells: a slope, an eps."""

    def __init__(self, slope: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__(
            nn.Conv2d(3, 6, 3),
            nn.Conv2d(6, 6, 1),
            nn.GroupNorm(2, 6, eps),
            nn.LeakyReLU(slope, inplace=True),
            nn.Conv2d(6, 6, 1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(6, 5),
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"negative_slope": 0.2}, r"expected LeakyReLU\(negative_slope=0\.1.*slope=0\.2"),
        ({"eps": 0.1}, r"expected GroupNorm\(2, 6, eps=1e-05.*eps=0\.1"),
        ({"inplace": False}, None),  # the same numbers
    ],
)
def test_options_changed_afterwards(
    change: dict[str, float],
    message: str | None,
    make_net: Callable[..., MultiQuantNet],
    images: Tensor,
    tmp_path: Path,
) -> None:
    net = trained(make_net(Slopes(), source=ModelSource("own", "Slopes")), images).eval()
    for module in net.modules():
        for name, value in change.items():
            if hasattr(module, name) and not isinstance(module, nn.modules.batchnorm._BatchNorm):
                setattr(module, name, value)
    if message is None:
        loaded = load_packed(save_packed(net, tmp_path / "net.safetensors"), Slopes())
        assert equal(outputs(loaded, images), outputs(net, images))
    else:
        with pytest.raises(PackedFileError, match=message):
            save_packed(net, tmp_path / "net.safetensors")


def _wrap(net: MultiQuantNet) -> None:
    net.branches[0].conv2 = LowRank(net.branches[0].conv2)


def _prune(net: MultiQuantNet) -> None:
    prune.l1_unstructured(net.branches[0].conv1, "weight", amount=0.5)


def _parametrise(net: MultiQuantNet) -> None:
    nn.utils.parametrize.register_parametrization(net.head.fc, "weight", nn.Tanh())


CHANGES: dict[str, tuple[Callable[[MultiQuantNet], object], str]] = {
    "another norm": (
        lambda net: net.branches[0].bn1.__setitem__("2", nn.GroupNorm(2, 6)),
        r"branches\.0\.bn1\.2: expected a batch norm \(norms 12\), got GroupNorm",
    ),
    "a norm without statistics": (
        lambda net: setattr(net.stem, "stem_bn", nn.BatchNorm2d(4, track_running_stats=False)),
        r"stem\.stem_bn: expected a batch norm \(norms 8\), got BatchNorm2d\(.*\) \(floats",
    ),
    "a norm taken out": (
        lambda net: setattr(net.stem, "stem_bn", nn.Identity()),
        r"stem\.stem_bn: expected a batch norm \(norms 8\), got nothing",
    ),
    "an adapter": (_wrap, r"branches\.0\.conv2: expected CodeConv2d\(.*\), got nothing"),
    "pruned weights": (_prune, r"branches\.0\.conv1: .*weight_mask.*prune\.remove"),
    "a parametrisation": (_parametrise, r"head\.fc: expected Linear"),
    "another classifier": (
        lambda net: setattr(net.head, "fc", nn.Linear(6, 9)),
        r"head\.fc: expected Linear\(.*\) \(floats weight 30, floats bias 5\), got Linear\(.*\) "
        r"\(floats weight 54, floats bias 9\)",
    ),
    "a layer of floats": (
        lambda net: setattr(net.branches[1], "shortcut", nn.Conv2d(4, 6, 1, stride=2)),
        r"branches\.1\.shortcut: expected CodeConv2d",
    ),
    "another activation": (  # no array tells
        lambda net: setattr(net.stem, "act", nn.GELU()),
        r"stem\.act: expected ReLU\(\), got GELU\(approximate='none'\)",
    ),
    "another stride": (
        lambda net: setattr(net.branches[1].conv2, "stride", (2, 2)),
        r"branches\.1\.conv2: expected CodeConv2d\(.*stride=\(1, 1\).*got .*stride=\(2, 2\)",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_a_reader_would_not_have_is_refused(
    change: str, own: MultiQuantNet, tmp_path: Path
) -> None:
    path = save_packed(own, tmp_path / "net.safetensors")
    before = path.read_bytes()
    alter, message = CHANGES[change]
    alter(own)
    for save in (lambda: save_packed(own, path), lambda: own.save_pretrained(tmp_path)):
        with pytest.raises(PackedFileError, match=message):
            save()
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_change_taken_back_is_saved(own: MultiQuantNet, tmp_path: Path) -> None:
    _prune(own)
    prune.remove(own.branches[0].conv1, "weight")
    loaded = load_packed(save_packed(own, tmp_path / "net.safetensors"), TinyNet())
    ours, theirs = (net.branches[0].conv1.quant_weight() for net in (loaded, own))
    assert torch.equal(ours, theirs)


class WithDropout(TinyNet):
    """Has what does nothing in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(super().forward(x))


def test_what_does_nothing_in_evaluation_may_change(
    make_net: Callable[..., MultiQuantNet], images: Tensor, tmp_path: Path
) -> None:
    net = trained(make_net(WithDropout(), source=OWN), images).eval()
    net.head.drop = nn.Identity()
    loaded = load_packed(save_packed(net, tmp_path / "net.safetensors"), WithDropout())
    assert equal(outputs(loaded, images), outputs(net, images))


def test_a_source_that_builds_another_model(images: Tensor, tmp_path: Path) -> None:
    """A source that a user gives is not believed either."""
    model = timm.create_model("cifar_resnet8", num_classes=7)
    source = ModelSource("timm", "cifar_resnet8", {"num_classes": 5})
    net = trained(multiquantize(model, [2], input_shape=IMAGE, source=source), images)
    with pytest.raises(
        PackedFileError, match=r"head\.fc: expected Linear\(.*\) \(floats weight 320"
    ):
        save_packed(net, tmp_path / "net.safetensors")
    assert not list(tmp_path.iterdir())


def test_comparing_draws_no_random_number_and_is_done_once(images: Tensor, tmp_path: Path) -> None:
    """A training that saves goes on as one that does not, and pays once."""
    model = timm.create_model("cifar_resnet8", num_classes=6)
    net = trained(multiquantize(model, [2, 3], input_shape=IMAGE), images)
    _layout_of_header.cache_clear()
    state = torch.random.get_rng_state()
    for _ in range(3):
        save_packed(net, tmp_path / "net.safetensors")
    assert torch.equal(torch.random.get_rng_state(), state)
    assert _layout_of_header.cache_info().misses == 1


@pytest.mark.parametrize(
    ("name", "bits", "profile"),
    [
        ("cifar_resnet8", [2, 3], "paper"),
        ("cifar_resnet8", [2, 3], "finn"),
        ("test_nfnet", [2, 4], "paper"),
        ("test_convnext", [2, 4], "paper"),
    ],
)
def test_the_layout_is_that_of_the_reader(
    name: str, bits: list[int], profile: str, tmp_path: Path
) -> None:
    """What the rewrite notes down is what a reader builds, and what a loaded network has."""
    shape = (1, 3, 32, 32)
    net = multiquantize(timm.create_model(name), bits, profile=profile, input_shape=shape)
    calibrate(net, [torch.randn(2, 3, 32, 32)])
    loaded = load_packed(save_packed(net, tmp_path / "net.safetensors"))
    assert net.layout == layout_of(net) == layout_of(loaded) == loaded.layout
