"""Wherever bit-widths and branches come in: whole numbers of any kind, and nothing else."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from brevitas_multiquant import (
    InPlaceDistillation,
    ModelSource,
    MultiQuantConfig,
    MultiQuantNet,
    calibrate,
    cost,
    extract_subnet,
    load_packed,
    reestimate_norms,
    save_packed,
)
from brevitas_multiquant.core.selection import resolve_selection, uses_at
from brevitas_multiquant.errors import BitWidthError, ConfigError, HubError, SelectionError
from brevitas_multiquant.export.request import requested_bits
from tests.tiny import IMAGE, TinyNet

WRONG = [4.0, np.float64(4), True, np.True_, "4", None, torch.tensor(4), np.array(4), [4], 3]


def at_bits(net: MultiQuantNet, bits: object) -> object:
    with net.at_bits(bits) as inside:  # type: ignore[arg-type]
        return inside.active_bits


def activated(net: MultiQuantNet, bits: object) -> object:
    net.set_active_bits(bits)  # type: ignore[arg-type]
    return net.active_bits


ONE: dict[str, Callable[[MultiQuantNet, object], object]] = {
    "set_active_bits": activated,
    "at_bits": at_bits,
    "extract_subnet": lambda net, bits: extract_subnet(net, bits).bits,  # type: ignore[arg-type]
}


@pytest.mark.parametrize("function", ONE)
def test_one_bit_width(function: str, net: MultiQuantNet) -> None:
    for kind in (int, np.int64, np.uint8):
        found = ONE[function](net, kind(4))
        assert found == 4
        assert type(found) is int
    for wrong in WRONG:
        with pytest.raises(BitWidthError, match=r"expected one of .*\[2, 4\].*got"):
            ONE[function](net, wrong)


@pytest.fixture
def several(net: MultiQuantNet, images: Tensor) -> dict[str, Callable[[object], tuple[int, ...]]]:
    target = torch.arange(len(images))
    task = InPlaceDistillation(net)

    def reestimated(bits: object) -> tuple[int, ...]:
        reestimate_norms(net, [images], bits=bits)  # type: ignore[arg-type]
        return (2, 4)

    return {
        "export": lambda bits: requested_bits(net, bits),  # type: ignore[arg-type]
        "distillation": lambda bits: tuple(sorted(task(images, target, bits)["outputs"])),
        "distillation step": lambda bits: tuple(sorted(task.step(images, target, bits=bits)["ce"])),
        "reestimate_norms": reestimated,
    }


@pytest.mark.parametrize(
    "function", ["export", "distillation", "distillation step", "reestimate_norms"]
)
def test_several_bit_widths(
    function: str, several: dict[str, Callable[[object], tuple[int, ...]]]
) -> None:
    call = several[function]
    for bits in ([4, 2], (2, 4), np.array([2, 4]), [np.int8(2), 4], {2, 4}, range(2, 5, 2)):
        found = call(bits)
        assert found == (2, 4)
        assert all(type(bit) is int for bit in found)
    for wrong in ([2, 4.0], [True], np.array([2.0]), [], "24", 4, [3], [2, None], [[2]]):
        with pytest.raises(BitWidthError, match=r"expected bits out of \[2, 4\], got"):
            call(wrong)


def test_a_configuration_of_numpy_numbers() -> None:
    """It equals that of plain ones and goes through JSON."""
    plain = MultiQuantConfig.create([2, 3, 4], {2: [0], 3: [1, 0], 4: [0, 1]})
    chosen = {np.int64(2): np.array([0]), np.int32(3): (np.int8(1), 0), 4: np.array([1, 0])}
    config = MultiQuantConfig.create(np.array([4, 3, 2]), chosen)  # type: ignore[arg-type]
    assert config == plain
    assert MultiQuantConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == plain
    assert config.selection == {2: (0,), 3: (1, 0), 4: (0, 1)}
    numbers = [
        *config.selection,
        *(branch for some in config.selection.values() for branch in some),
    ]
    assert all(type(number) is int for number in numbers)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({2: [0.0], 4: [0, 1]}, r"selection\[2\]: expected whole numbers, got \(0\.0,\)"),
        ({2: [0], 4: [False, True]}, r"selection\[4\]: expected whole numbers"),
        ({2: "0", 4: [0, 1]}, r"selection\[2\]: expected whole numbers"),
        ({2: [[0]], 4: [0, 1]}, r"selection\[2\]: expected whole numbers"),
        ({2.0: [0], 4: [0, 1]}, r"one entry for each of the bit-widths \[2, 4\]"),
        ({"2": [0], "4": [0, 1]}, r"one entry for each of the bit-widths \[2, 4\]"),
    ],
)
def test_branches_that_are_no_whole_numbers(chosen: object, message: str) -> None:
    with pytest.raises(SelectionError, match=message):
        resolve_selection(chosen, [2, 4])  # type: ignore[arg-type]


def test_the_last_branch_listed_runs_at_half() -> None:
    """The order means something there, and nowhere else."""
    chosen = resolve_selection({3: [1, 0], 4: [1, 0], 5: [2, 0, 1]}, [3, 4, 5])
    assert chosen == {3: (1, 0), 4: (0, 1), 5: (0, 2, 1)}
    uses = [" ".join(map(str, uses_at(chosen, bits))) for bits in (3, 4, 5)]
    assert uses == ["1 0/2", "0 1", "0 2 1/2"]
    assert resolve_selection(chosen, [3, 4, 5]) == chosen


@pytest.mark.parametrize("profile", ["paper", "finn"])
def test_a_network_whose_first_branch_runs_at_half(
    profile: str, make_net: Callable[..., MultiQuantNet], images: Tensor, tmp_path: Path
) -> None:
    source = ModelSource("own", "TinyNet")
    selection = {2: [0], 3: [1, 0], 4: [0, 1]}
    net = make_net(bits=(2, 3, 4), selection=selection, source=source, profile=profile)
    assert list(net.halves) == ["0"]
    assert [id(branch) for branch in net.branches_at(3)] == [
        id(net.branches[1]),
        id(net.halves["0"]),
    ]
    assert "1,0/2" in str(cost(net))
    calibrate(net, [images])
    InPlaceDistillation(net.train()).step(images, torch.arange(len(images)))
    loaded = load_packed(save_packed(net.eval(), tmp_path / "net.safetensors"), TinyNet())
    assert loaded.config == net.config
    for bits in net.bits:
        with torch.no_grad(), net.at_bits(bits), loaded.at_bits(bits):
            logits = net(images)
            assert torch.equal(loaded(images), logits)
            assert torch.equal(extract_subnet(net, bits)(images), logits)


def test_a_configuration_of_other_keys() -> None:
    data = MultiQuantConfig.create([2, 4]).to_dict()
    for key in ("2.0", "two", None):
        changed = {**data, "selection": {key: [0], "4": [0, 1]}}
        with pytest.raises((ConfigError, SelectionError), match="selection"):
            MultiQuantConfig.from_dict(changed)
    with pytest.raises(SelectionError, match="one entry for each"):
        MultiQuantConfig.from_dict({**data, "selection": {2.5: [0], 4: [0, 1]}})


def test_accuracies_of_numpy_numbers(net: MultiQuantNet, tmp_path: Path) -> None:
    net.source = ModelSource("own", "TinyNet")
    net.save_pretrained(tmp_path, accuracy={np.int64(2): np.float32(50), 4: torch.tensor(60.0)})
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["top1"] == {"2": 50.0, "4": 60.0}
    with pytest.raises(HubError, match="one number for each"):
        net.save_pretrained(tmp_path, accuracy={2.0: 1.0, 4: 1.0})  # type: ignore[dict-item]


def test_the_first_branch_may_be_the_half_one(make_net) -> None:
    """The self-check runs it where it runs whole; as the half one it is a slice of itself."""
    net = make_net(bits=[2, 3, 4], selection={2: [1], 3: [1, 0], 4: [0, 1]})
    images = torch.randn(4, *IMAGE[1:])
    calibrate(net, [images])
    with torch.no_grad(), net.eval().at_bits(3):
        assert torch.equal(extract_subnet(net, 3)(images), net(images))
