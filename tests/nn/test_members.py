"""A module that nobody has heard of: it answers three questions, and everything works with it."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import brevitas_multiquant.core.cifar_networks  # noqa: F401  (registers the CIFAR networks)
from brevitas_multiquant import (
    ModelSource,
    MultiQuantNet,
    calibrate,
    cost,
    extract_subnet,
    load_packed,
    multiquantize,
    save_packed,
)
from brevitas_multiquant.core.packing import Array, pack, packed_size, unpack
from brevitas_multiquant.core.panel import Panel
from brevitas_multiquant.cost.inventory import inventory_of
from brevitas_multiquant.export import export_qonnx
from brevitas_multiquant.quant.entries import Entry, float_entries
from brevitas_multiquant.quant.geometry import as_output_channels
from brevitas_multiquant.quant.layers import register_layer
from brevitas_multiquant.quant.member import (
    ACTIVATION,
    INPUT,
    WEIGHT,
    Member,
    Site,
    answers_of,
    frozen_copy,
    has_no_sites,
    stays_as_it_is,
    stores_floats,
)
from brevitas_multiquant.quant.plain import plain_layer
from tests.tiny import IMAGE, TinyNet

PACKAGE = "brevitas_multiquant."
ANSWERS = {"stored": stores_floats, "frozen": stays_as_it_is, "sites": has_no_sites}


@pytest.mark.parametrize("forgotten", ANSWERS)
def test_one_that_forgets_an_answer_cannot_be_made(forgotten: str) -> None:
    given = {name: answer for name, answer in ANSWERS.items() if name != forgotten}
    incomplete = type("Incomplete", (Member,), given)
    with pytest.raises(TypeError, match=f"abstract.* Incomplete .*{forgotten}"):
        incomplete()
    complete = type("Complete", (incomplete,), {forgotten: ANSWERS[forgotten]})
    assert isinstance(complete(), Member)


class Wide(nn.Conv2d):
    """A layer whose author wants weights of four bits."""


class FourBitConv2d(Member, nn.Conv2d):
    """Weights -7 to 7 times a step that is stored, no range."""

    active: Panel
    step: Tensor

    def integers(self) -> Tensor:
        return (self.weight / self.step).round().clamp(-7, 7)

    def scale_at(self, bits: int) -> float:
        return self.step.item() / (2**bits - 1)

    def forward(self, x: Tensor) -> Tensor:
        if not self.active.quantized:
            return super().forward(x)
        y = self._conv_forward(x, self.integers(), None).mul(self.scale_at(self.active.bits))
        return y.add(as_output_channels(self, self.bias))

    def stored(self, name: str) -> Iterator[Entry]:
        count = self.weight.numel()

        def read() -> Array:
            return pack((self.integers() + 7).to(torch.uint8).numpy(), 4)

        def write(packed: Array, trainable: bool) -> None:
            codes = torch.from_numpy(unpack(packed, 4, count)).float()
            # the step stands behind the codes in a file: weights are integers until it is known
            self.weight.copy_((codes - 7).view_as(self.weight) * 0.25)

        yield Entry("codes", name, packed_size(count, 4), read, write)
        yield from float_entries(self, name, skip=("weight",))

    def frozen(self, bits: int, name: str) -> nn.Module:
        return plain_layer(self, self.integers(), self.scale_at(bits), 4, 7)

    def sites(self) -> Mapping[str, Site]:
        return {WEIGHT: Site(4, self.weight.numel()), INPUT: Site()}


@register_layer(Wide)
def _wide(conv: nn.Conv2d, active: Panel, _: Any) -> Any:
    layer = FourBitConv2d(6, 6, 3, padding=1)
    layer.load_state_dict(conv.state_dict())
    layer.active = active
    layer.register_buffer("step", torch.tensor(0.25))
    return layer


class WideNet(TinyNet):
    def __init__(self) -> None:
        super().__init__()
        self.conv2 = Wide(6, 6, 3, padding=1)


@pytest.fixture
def wide(make_net: Callable[..., MultiQuantNet], images: Tensor) -> MultiQuantNet:
    torch.manual_seed(3)
    net = make_net(WideNet(), source=ModelSource("own", "WideNet"))
    calibrate(net, [images])
    return net.eval()


def outputs(net: MultiQuantNet, images: Tensor) -> list[Tensor]:
    found = []
    for bits in net.bits:
        with torch.no_grad(), net.at_bits(bits):
            found.append(net(images))
    return found


def test_a_new_module_is_extracted(wide: MultiQuantNet, images: Tensor) -> None:
    for bits, expected in zip(wide.bits, outputs(wide, images), strict=True):
        subnet = extract_subnet(wide, bits)
        assert torch.equal(subnet(images), expected)
        assert not any(isinstance(module, (FourBitConv2d, Wide)) for module in subnet.modules())


def test_a_new_module_is_packed(wide: MultiQuantNet, images: Tensor, tmp_path: Path) -> None:
    loaded = load_packed(save_packed(wide, tmp_path / "net.safetensors"), WideNet())
    for branch in loaded.branches:
        assert isinstance(branch.conv2, FourBitConv2d)
    for ours, theirs in zip(outputs(loaded, images), outputs(wide, images), strict=True):
        assert torch.equal(ours, theirs)


def test_a_new_module_is_exported(wide: MultiQuantNet, tmp_path: Path) -> None:
    """The export compares the file with the network to the bit."""
    pytest.importorskip("qonnx")
    assert set(export_qonnx(wide, tmp_path)) == {2, 4}


def test_a_new_module_is_costed(wide: MultiQuantNet, make_net: Callable[..., Any]) -> None:
    """Two bits a weight more than a layer of this package, a step, and no range."""
    ours, theirs = cost(wide), cost(make_net())
    weights, macs = 6 * 6 * 9, 16 * 6 * 54
    for bits, branches in ((2, 1), (4, 2)):
        assert ours[bits].macs == theirs[bits].macs
        assert ours[bits].bitops - theirs[bits].bitops == branches * macs * (4 - 2) * bits
        more = branches * (weights * (4 - 2) // 8 + 4 - 2 * 4)
        assert ours[bits].bytes - theirs[bits].bytes == more
    assert ours.file_bytes == ours.total_bytes
    layer = next(one for one in inventory_of(wide, IMAGE).at(4) if one.name == "conv2")
    assert (layer.macs, layer.weights, layer.bits_at(4)) == (macs, weights, (4, 4))


NETS: Iterable[Any] = [
    pytest.param(lambda: multiquantize(TinyNet(), [2, 3, 4], input_shape=IMAGE), id="paper"),
    pytest.param(
        lambda: multiquantize(TinyNet(), [2, 3, 4], profile="finn", input_shape=IMAGE), id="finn"
    ),
    pytest.param(
        lambda: multiquantize(timm.create_model("test_nfnet"), [3, 4], input_shape=(1, 3, 32, 32)),
        id="standardised",
    ),
]


@pytest.mark.parametrize("make", NETS)
def test_every_module_of_this_package_answers_itself(make: Callable[[], MultiQuantNet]) -> None:
    net = make()
    of_brevitas = "brevitas_multiquant.quant.proxies"  # Brevitas's, but for one method each
    places = ((type(module).__module__, module) for module in net.modules())
    ours = [m for place, m in places if place.startswith(PACKAGE) and place != of_brevitas]
    assert len(ours) > 10
    assert all(m is net or (isinstance(m, Member) and answers_of(m) is m) for m in ours)


def test_sites_say_which_bits_run(make_net: Callable[..., MultiQuantNet]) -> None:
    net = make_net(profile="finn", bits=(2, 3))
    found = {
        f"{name}.{key}": [site.at(bits) for bits in net.bits]
        for part in ("stem", "merge", "head")
        for name, module in getattr(net, part).named_modules(prefix=part)
        for key, site in answers_of(module).sites().items()
    }
    eights = [name for name, bits in found.items() if bits == [8, 8]]
    assert {"stem.stem.weight", "stem.stem.input", "head.fc.weight", "head.fc.input"} <= set(eights)
    assert found["merge.sum.activation"] == [4, 5]  # two more than the activations
    assert sum(bits == [2, 3] for bits in found.values()) == 1  # the codes that branches read
    layer = answers_of(net.branches[0].conv1).sites()
    assert (layer[WEIGHT], layer[INPUT].at(3)) == (Site(2, 216, ("conv1", "weight")), 3)
    assert ACTIVATION not in layer


def test_modules_of_others_are_copied(make_net: Callable[..., MultiQuantNet]) -> None:
    """Whatever is not ours stores its floats, stays as it is, and has no sites."""

    class Shift(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.by = nn.Parameter(torch.tensor([1.0, 2.0]))
            self.register_buffer("steps", torch.tensor(3))

    shift = Shift()
    answers = answers_of(shift)
    assert [(entry.kind, entry.name, entry.size) for entry in answers.stored("x")] == [
        ("floats", "x.by", 2)
    ]
    assert answers.frozen(2, "x") is None and not answers.sites()
    copied = frozen_copy(shift, 2)
    assert type(copied) is Shift and copied is not shift and torch.equal(copied.by, shift.by)
