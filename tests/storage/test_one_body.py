"""Files of networks whose weights follow the bit-width, or have bits of their own in each layer."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch import Tensor

from brevitas_multiquant import (
    InPlaceDistillation,
    ModelSource,
    MultiQuantNet,
    calibrate,
    cost,
    extract_subnet,
    load_packed,
    multiquantize,
    save_packed,
)
from brevitas_multiquant.errors import PackedFileError
from brevitas_multiquant.quant.layers import CodeLayer, weight_range
from tests.one_body import FLOATS, NESTED, ROWS, build, network, sample
from tests.packed import rewrite, take_apart
from tests.tiny import IMAGE, TinyNet


def layers_of(net: MultiQuantNet) -> dict[str, CodeLayer]:
    return {name: m for name, m in net.named_modules() if isinstance(m, CodeLayer)}


def everything(net: MultiQuantNet, images: Tensor) -> list[Tensor]:
    """Logits, logits of the subnet, and the codes of every layer, at every bit-width."""
    found = []
    with torch.no_grad():
        for bits in net.bits:
            net.set_active_bits(bits)
            found += [net(images), extract_subnet(net, bits)(images)]
            found += [layer.quant_weight() for layer in layers_of(net).values()]
    return found


def reference_unpack(data: bytes, bits: int, count: int) -> np.ndarray:
    """The layout that the page on the format describes, a value at a time."""
    stream = int.from_bytes(data, "little")
    return np.array([stream >> index * bits & 2**bits - 1 for index in range(count)])


@pytest.mark.parametrize("profile", ["paper", "finn"])
@pytest.mark.parametrize("row", ROWS)
def test_loaded_network_equals_the_saved_one(row: str, profile: str, tmp_path: Path) -> None:
    net = network(row, profile)
    path = save_packed(net, tmp_path / "net.safetensors")
    loaded = load_packed(path, TinyNet())
    assert loaded.config == net.config and loaded.bits == net.bits
    theirs = everything(net, sample())
    for ours, expected in zip(everything(loaded, sample()), theirs, strict=True):
        assert torch.equal(ours, expected)
    assert len({values.numpy().tobytes() for values in theirs[::5]}) == len(net.bits)
    assert save_packed(loaded, tmp_path / "again").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("profile", ["paper", "finn"])
@pytest.mark.parametrize("row", ROWS)
def test_bytes_are_those_of_the_file(row: str, profile: str, tmp_path: Path) -> None:
    net = network(row, profile)
    _, arrays = take_apart(save_packed(net, tmp_path / "net.safetensors"))
    assert cost(net).file_bytes == sum(array.nbytes for array in arrays.values())


def test_a_cost_says_how_weights_are_kept() -> None:
    assert cost(multiquantize(TinyNet(), [2, 4], input_shape=IMAGE)).weights is None
    for row in FLOATS:
        last = str(cost(network(row))).splitlines()[-1]
        assert (
            last
            == "weights in the file: odd, kept as floats, from which every bit-width is rounded"
        )


@pytest.mark.parametrize("row", ROWS)
def test_the_file_tells_how_to_read_it(row: str, tmp_path: Path) -> None:
    """Integers out of the header and the bytes alone, without this package."""
    net = network(row)
    header, arrays = take_apart(save_packed(net, tmp_path / "net.safetensors"))
    assert header["version"] == 2
    layers = layers_of(net)
    assert list(header["weights"]) == list(layers)
    net.set_active_bits(max(net.bits))
    kept = arrays["branches.0." + ("floats" if row in FLOATS else "codes")].tobytes()
    for name, layer in layers.items():
        said = header["weights"][name]
        assert said["count"] == layer.weight.numel()
        if row in FLOATS:
            assert said["bits"] == 32
            weights = np.frombuffer(kept[: 4 * said["count"]], np.float32)
            placed, _, _ = weight_range(layer).placed(layer.effective_weight())
            assert np.array_equal(weights, placed.detach().flatten().numpy())
            kept = kept[4 * (said["count"] + (0 if layer.bias is None else len(layer.bias))) :]
            continue
        size = -(-said["count"] * said["bits"] // 8)
        places = reference_unpack(kept[:size], said["bits"], said["count"])
        kept = kept[size:]
        top = 2 ** said["bits"]
        middle = {"modified": top // 2, "symmetric8": top // 2 - 1, "int8": 128, "int3": 4}
        name = said["grid"]
        integers = places - middle[name] if name in middle else 2 * places - (top - 1)
        assert np.array_equal(integers, layer.quant_weight().detach().flatten().numpy())
    assert not kept


def test_smaller_bit_widths_are_rounded_from_the_largest(tmp_path: Path) -> None:
    """Double Rounding: the integers of the file over a power of two, half to even."""
    net = network("double_rounding")
    header, _ = take_apart(save_packed(net, tmp_path / "net.safetensors"))
    assert {(said["grid"], said["bits"]) for said in header["weights"].values()} == {
        ("symmetric8", 8)
    }
    net.set_active_bits(8)
    kept = {name: layer.quant_weight().double() for name, layer in layers_of(net).items()}
    for bits in net.bits:
        net.set_active_bits(bits)
        for name, layer in layers_of(net).items():
            expected = (kept[name] / 2 ** (8 - bits)).round().clamp(max=2 ** (bits - 1) - 1)
            assert torch.equal(layer.quant_weight().double(), expected)


@pytest.mark.parametrize("row", NESTED)
def test_smaller_bit_widths_are_the_first_bits(row: str, tmp_path: Path) -> None:
    net = network(row)
    most = max(net.bits)
    places = {}
    for bits in net.bits:
        net.set_active_bits(bits)
        for name, layer in layers_of(net).items():
            grid = layer.weight_format
            places[name, bits] = ((layer.quant_weight() - grid.offset) / grid.step).long()
    for name, bits in places:
        assert torch.equal(places[name, bits], places[name, most] >> (most - bits))
    header, _ = take_apart(save_packed(net, tmp_path / "net.safetensors"))
    assert {said["bits"] for said in header["weights"].values()} == {most}


def test_each_layer_of_an_assignment_has_its_own_bits(tmp_path: Path) -> None:
    header, _ = take_apart(
        save_packed(network("individual, assignment"), tmp_path / "net.safetensors")
    )
    assert {name.rpartition(".")[2]: said["bits"] for name, said in header["weights"].items()} == {
        "conv1": 8,
        "conv2": 3,
        "shortcut": 8,
    }


def test_two_bits_need_no_second_version(tmp_path: Path) -> None:
    """Weights that version 1 knows are written as it."""
    net = multiquantize(TinyNet(), [2], method="individual", source=ModelSource("own", "net"))
    calibrate(net, [sample()])
    header, _ = take_apart(save_packed(net, tmp_path / "net.safetensors"))
    assert header["version"] == 1 and "weights" not in header
    assert torch.equal(
        load_packed(tmp_path / "net.safetensors", TinyNet())(sample()), net.eval()(sample())
    )


@pytest.mark.parametrize(
    ("grid", "megabytes"),
    [("centered", 13.40), ("modified", 13.40), ("original", 4 * 11.157504 + 2.2417)],
)
def test_resnet18_takes_what_the_method_promises(
    grid: str, megabytes: float, tmp_path: Path
) -> None:
    """8 bits a body weight, fp32 stem and classifier, norms of 4 bit-widths: 13.40 MB."""
    net = multiquantize(
        timm.create_model("resnet18"), [2, 4, 6, 8], method="adabits", grid=grid, check=False
    )
    for module in net.modules():
        if hasattr(module, "observed"):
            module.observed.fill_(1)
    size = save_packed(net, tmp_path / "net.safetensors").stat().st_size
    assert size == pytest.approx(megabytes * 1e6, rel=1e-3)  # the header takes 7 kB
    costs = cost(net, (1, 3, 32, 32))
    assert costs.file_bytes == pytest.approx(size, rel=1e-3)
    body, edges = 11_157_504, 4 * (9408 + 513_000)
    for bits, one in costs.items():
        # norms of 4,800 channels; ranges of 20 layers and 16 sites at most
        assert one.bytes == pytest.approx(body * bits / 8 + edges + 8 * 4800, abs=8 * 40)


def layer_damage(**changes: object) -> Callable[[dict, dict], object]:
    return lambda arrays, header: header["weights"]["branches.0.conv2"].update(changes)


DAMAGE: dict[str, tuple[Callable[[dict, dict], object], str]] = {
    "bits": (layer_damage(bits=4), r"weights of branches\.0\.conv2 .*'bits': 8.*got .*'bits': 4"),
    "grid": (layer_damage(grid="odd"), r"'grid': 'centered'.*got .*'grid': 'odd'"),
    "count": (layer_damage(count=1), r"'count': 324.*got .*'count': 1"),
    "a layer gone": (
        lambda a, h: h["weights"].pop("branches.0.conv1"),
        r"weights of branches\.0\.conv1 to be kept as .*, got None",
    ),
    "a layer added": (lambda a, h: h["weights"].update(x={}), r"weights of x .* as None.*got {}"),
    "no mapping": (lambda a, h: h.update(weights=[8]), r"weights of branches\.0\.conv1 .*got None"),
    "none": (lambda a, h: h.pop("weights"), "expected a header with the keys"),
    "another version": (lambda a, h: h.update(version=1), "expected a header with the keys"),
    "a later version": (lambda a, h: h.update(version=4), "expected version 1, 2 or 3 .*got 4"),
    "a version that is no number": (lambda a, h: h.update(version="2"), "1, 2 or 3 .*got '2'"),
    "other bit-widths": (
        lambda a, h: h["config"].update(bits=[2, 3, 5, 7], selection={b: [0] for b in "2357"}),
        r"weights of branches\.0\.conv1 .*'bits': 7.*got .*'bits': 8",
    ),
    "another grid of all": (
        lambda a, h: h["config"].update(grid="original"),
        r"weights of branches\.0\.conv1 .*'bits': 32.*got .*'bits': 8",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_headers_are_refused(kind: str, tmp_path: Path) -> None:
    path = save_packed(network("adabits centered"), tmp_path / "net.safetensors")
    change, message = DAMAGE[kind]
    rewrite(path, change)
    with pytest.raises(PackedFileError, match=message):
        load_packed(path, TinyNet())


def test_codes_that_the_grid_does_not_have(tmp_path: Path) -> None:
    """127 and -127 are its ends: 8 bits have one place more."""
    path = save_packed(network("double_rounding"), tmp_path / "net.safetensors")
    rewrite(
        path,
        lambda arrays, header: arrays["branches.0.codes"].__setitem__(0, 255),
        signed=("arrays", "header"),
    )
    with pytest.raises(PackedFileError, match=r"conv1: expected .* from 0 to 254 .* got 255"):
        load_packed(path, TinyNet())


def test_ranges_that_lose_codes_of_any_bit_width(tmp_path: Path) -> None:
    path = save_packed(network("adabits centered"), tmp_path / "net.safetensors")

    def too_wide(arrays: dict, _header: dict) -> None:
        arrays["branches.0.ranges"][0::2], arrays["branches.0.ranges"][1::2] = -3e38, 3e38

    rewrite(path, too_wide, signed=("arrays", "header"))
    with pytest.raises(PackedFileError, match="loses its codes"):
        load_packed(path, TinyNet())


@pytest.mark.parametrize("row", ROWS)
def test_training_starts_from_the_codes(row: str, tmp_path: Path) -> None:
    net = network(row)
    path = save_packed(net, tmp_path / "net.safetensors")
    loaded = load_packed(path, TinyNet(), trainable=True)
    theirs = everything(net, sample())
    for ours, expected in zip(everything(loaded, sample()), theirs, strict=True):
        assert torch.equal(ours, expected)
    task = InPlaceDistillation(loaded).train()
    task.step(sample(), torch.arange(4))
    for name, layer in layers_of(loaded).items():
        assert layer.weight.grad is not None and layer.weight.grad.any(), name


@pytest.mark.parametrize("options", [{"bits": [6], "method": "individual"}, ROWS[NESTED[0]]])
def test_standardised_weights_are_in_the_codes(options: dict, tmp_path: Path) -> None:
    images = torch.randn(2, 3, 32, 32)
    net = multiquantize(timm.create_model("test_nfnet"), input_shape=(1, 3, 32, 32), **options)
    calibrate(net, [images])
    path = save_packed(net.eval(), tmp_path / "net.safetensors")
    loaded = load_packed(path)
    theirs = everything(net, images)
    for ours, expected in zip(everything(loaded, images), theirs, strict=True):
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("row", ["individual, assignment", "adabits centered", "adabits original"])
def test_a_folder_of_the_hub(row: str, tmp_path: Path) -> None:
    net = build(row)
    net.save_pretrained(tmp_path / "net")
    loaded = MultiQuantNet.from_pretrained(tmp_path / "net", model=TinyNet())
    theirs = everything(net, sample())
    for ours, expected in zip(everything(loaded, sample()), theirs, strict=True):
        assert torch.equal(ours, expected)
    card = (tmp_path / "net" / "README.md").read_text()
    assert f"method `{net.config.method}`" in card
    own = {"individual": [], "adabits": ["arxiv:1912.09666"]}[net.config.method]
    tags = ["quantization", "brevitas", net.config.method, *own, "arxiv:2305.08117"]
    assert "tags:\n" + "".join(f"- {tag}\n" for tag in tags) + "---" in card
    assert {
        "individual, assignment": "Weights are odd, of at most 8 bits, 5.13 on average.",
        "adabits centered": "Weights are centered (-255, -253, ..., 255), 8 bits each, which hold "
        "those of every smaller bit-width.",
        "adabits original": "Weights are odd, kept as floats, from which every bit-width is "
        "rounded.",
    }[row] in card
