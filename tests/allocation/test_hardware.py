"""LUTs of bits that are still to be chosen, against the hardware of the network that has them."""

import csv
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks import lut_model
from brevitas_multiquant import Assignment, calibrate, extract_subnet, multiquantize
from brevitas_multiquant.allocation import Budget, allocate, hardware
from brevitas_multiquant.allocation.costs import COSTS
from brevitas_multiquant.allocation.hardware import lut_terms
from brevitas_multiquant.allocation.sites import KINDS, Sites, sites_of
from brevitas_multiquant.cost import luts
from brevitas_multiquant.cost.terms import total_of
from brevitas_multiquant.errors import BudgetError, FinnMappingError
from brevitas_multiquant.export.finn.check import branch_names
from brevitas_multiquant.export.finn.dataflow import ends
from brevitas_multiquant.export.finn.hardware import hardware_layers
from brevitas_multiquant.export.finn.lower import lower
from brevitas_multiquant.export.sample import smooth_images

SHAPE = (1, 3, 8, 8)
FPS = 20_000
CANDIDATES = (2, 3, 4, 6)


class Block(nn.Module):
    """An addition with a shortcut, a max pool, a depthwise and a grouped convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm0 = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.left, self.norm1 = nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.right, self.norm2 = nn.Conv2d(6, 8, 1), nn.BatchNorm2d(8)
        self.pool = nn.MaxPool2d(2)
        self.deep, self.norm3 = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8)
        self.last, self.norm4 = nn.Conv2d(8, 8, 1, groups=2), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm0(self.stem(x)).relu()
        x = (self.norm1(self.left(x)) + self.norm2(self.right(x))).relu()
        x = self.norm3(self.deep(self.pool(x))).relu()
        return self.fc(self.norm4(self.last(x)).relu().mean((2, 3)))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """Norms of both signs: some channels are turned over."""
    torch.manual_seed(0)
    made = Block().eval()
    for norm in made.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.weight, 1.0, 0.6)
            nn.init.normal_(norm.bias, 0.0, 0.3)
    return made


def at(model: nn.Module, assignment: Assignment) -> Any:
    net = multiquantize(model, assignment, profile="finn", input_shape=SHAPE, check=False)
    calibrate(net, [smooth_images((8, *SHAPE[1:]))])
    return net.eval()


@pytest.fixture(scope="module")
def sites(model: nn.Module) -> Sites:
    net = multiquantize(model, [2], profile="finn", input_shape=SHAPE, check=False)
    return sites_of(net, SHAPE, 2, None, is_float=True, at=lambda one: at(model, one), asked=4)


def resources_of(net: Any, setting: Any, fps: float = FPS) -> luts.Resources:
    """Of the network itself, lowered and folded: what FINN reports (tests/cost/luts)."""
    bits = setting if isinstance(setting, int) else setting.bits
    graph = lower(extract_subnet(net, setting), branch_names(net, bits), SHAPE)
    return luts.total(luts.fold(hardware_layers(graph), luts.target_cycles(fps)))


def bits_of(assignment: Assignment) -> dict[tuple[str, str], int]:
    return {(s, kind): getattr(pair, kind) for s, pair in assignment.items() for kind in KINDS}


def test_any_assignment_is_within_two_percent(model: nn.Module, sites: Sites) -> None:
    """DSPs are exact; ranges are calibrated at other bits, and a table may need one bit more."""
    counted = lut_terms(sites, Budget(luts=1e5, target_fps=FPS), dict.fromkeys(KINDS, CANDIDATES))
    draw = random.Random(0)
    for _ in range(6):
        pairs = {site: (draw.choice(CANDIDATES), draw.choice(CANDIDATES)) for site in sites.names}
        assignment = Assignment(4, pairs)
        expected = resources_of(at(model, assignment), assignment)
        found, dsp = total_of(counted.terms, bits_of(assignment))
        assert dsp == expected.dsp
        assert found == pytest.approx(expected.luts, rel=0.02)


def test_uniform_networks_are_known_exactly(model: nn.Module, sites: Sites) -> None:
    counted = lut_terms(sites, Budget(luts=1e5, target_fps=FPS), dict.fromkeys(KINDS, (2, 4)))
    for bits in (2, 4):
        net = at(model, Assignment(bits, dict.fromkeys(sites.names, (bits, bits))))
        assert counted.uniform[bits] == resources_of(net, bits).luts
    assert counted.bits == 4


@pytest.mark.parametrize(("dsp", "price"), [(None, 0.0), (8, 0.0), (None, 55.0)])
def test_a_budget_of_luts_is_kept(model: nn.Module, dsp: int | None, price: float) -> None:
    images, labels = smooth_images((8, *SHAPE[1:])), torch.arange(8) % 5
    budget = Budget(ratio=1.3, uniform=4, of="luts", target_fps=FPS, dsp=dsp, dsp_price=price)
    found = allocate(
        *(model, budget),
        strategy="fisher",
        data=[(images, labels)],
        candidates=CANDIDATES,
        input_shape=SHAPE,
    )
    assert found.cost <= found.budget and found.dsp <= (1728 if dsp is None else dsp)
    net = multiquantize(model, found.assignment, profile="finn", input_shape=SHAPE, check=False)
    calibrate(net, [images])
    taken = resources_of(net.eval(), found.assignment)
    assert taken.dsp == found.dsp
    assert taken.luts + price * taken.dsp == pytest.approx(found.cost, rel=0.02)
    assert taken.luts + price * taken.dsp <= found.budget  # as it was built, not only as counted
    assert sum(row.share for row in found.layers) == pytest.approx(1)
    assert {row.layer for row in found.layers} >= {"stem", "left", "deep", "last", "fc"}


def test_uniform_luts_have_pins_in_them(model: nn.Module) -> None:
    """Also of bits that are no candidates."""
    options: dict[str, Any] = {"strategy": "uniform", "candidates": (2, 4), "input_shape": SHAPE}
    budget = Budget(uniform=3, of="luts", target_fps=FPS)
    found = allocate(model, budget, pins={"last": (4, 2)}, **options)
    pairs = dict.fromkeys(found.assignment, (3, 3)) | {"last": (4, 2)}
    expected = Assignment(3, pairs)
    assert found.budget == resources_of(at(model, expected), expected).luts


def test_branches_of_a_network(model: nn.Module) -> None:
    """Weights are what they are; activations are chosen, and cost what the network says."""
    net = multiquantize(model, [2, 4], profile="finn", input_shape=SHAPE, check=False)
    images = smooth_images((8, *SHAPE[1:]))
    calibrate(net, [images])
    net.eval()
    budget = Budget(ratio=0.95, of="luts", target_fps=FPS)
    found = allocate(net, budget, data=iter([images]))
    taken = resources_of(net, found.assignment)
    assert found.cost <= found.budget and taken.luts == pytest.approx(found.cost, rel=0.02)
    assert found.budget == pytest.approx(0.95 * resources_of(net, 4).luts, rel=0.02)


def test_what_is_built_is_within_the_budget_too(model: nn.Module, monkeypatch: Any) -> None:
    """Terms that say 10% too little: the strategy is asked again for less."""
    honest = hardware.lut_terms

    def too_little(*given: Any) -> Any:
        counted = honest(*given)
        terms = [
            replace(one, of=lambda *bits, of=one.of: (0.9 * of(*bits)[0], of(*bits)[1]))
            for one in counted.terms
        ]
        return replace(counted, terms=terms)

    monkeypatch.setitem(COSTS, "luts", too_little)
    options: Any = {"strategy": "uniform", "candidates": (2, 3), "input_shape": SHAPE}
    three = Assignment(2, dict.fromkeys(("left", "deep", "last"), (3, 3)))
    limit = resources_of(at(model, three), three).luts - 1
    found = allocate(model, Budget(luts=limit, target_fps=FPS), **options)
    assert found.assignment == Assignment(2, dict.fromkeys(three, (2, 2)))
    assert resources_of(at(model, found.assignment), found.assignment).luts <= limit


def test_batches_that_can_be_read_once(model: nn.Module) -> None:
    """They are looked at again and again: a network is built for every bit-width."""
    options: Any = {"strategy": "uniform", "candidates": (2, 4), "input_shape": SHAPE}
    batches, budget = [smooth_images((8, *SHAPE[1:]))], Budget(uniform=4, of="luts", target_fps=FPS)
    listed = allocate(model, budget, data=batches, **options)
    assert allocate(model, budget, data=iter(batches), samples=8, **options) == listed


ROWS = Path(__file__).parents[2] / "benchmarks" / "results" / "lut_model.csv"


@pytest.mark.parametrize("name", ["vgg", "mobilenet"])
def test_what_finn_itself_reported(name: str) -> None:
    """Rows of benchmarks/lut_model.py: assignments that the terms were not written on."""
    with ROWS.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["run"] == name]
    terms, _, names = lut_model.counted(name)
    assert len(rows) >= 3
    for row in rows:
        assignment = lut_model.drawn(name, int(row["draw"]), names)
        assert assignment.name == row["assignment"]
        found, dsp = total_of(terms, bits_of(assignment))
        assert dsp == float(row["FINN DSP"])
        # 2% is what is asked of the terms; weights are of torch's generator
        assert found == pytest.approx(float(row["FINN LUT"]), rel=0.02)


def test_all_rows_are_within_two_percent() -> None:
    with ROWS.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) >= 20 and len({row["run"] for row in rows}) >= 5
    for row in rows:
        luts_of = float(row["terms LUT"]), float(row["FINN LUT"])
        assert luts_of[0] == pytest.approx(luts_of[1], rel=0.02)
        assert row["terms DSP"] == row["FINN DSP"]


def test_ends_of_a_table_with_other_levels() -> None:
    """The same function of real numbers, rounded to fewer levels and at another scale."""
    fine = torch.tensor([[(level + 0.5) * 4 for level in range(15)]])  # 4 integers a level of 15
    assert torch.equal(ends(fine, 4, 1.0), torch.tensor([[2, 58]]))
    # 3 levels of 5 fine ones each: half of a level is 2.5 of them, 10 integers
    assert torch.equal(ends(fine, 2, 1.0), torch.tensor([[10, 50]]))
    assert torch.equal(ends(fine, 2, 0.5), torch.tensor([[5, 25]]))


def test_refusals(model: nn.Module) -> None:
    budget = Budget(luts=100, target_fps=FPS)
    options: Any = {"strategy": "uniform", "candidates": (2, 4), "input_shape": SHAPE}
    with pytest.raises(BudgetError, match="some uniform bits keep to, at least"):
        allocate(model, budget, **options)
    with pytest.raises(FinnMappingError, match="profile 'finn'"):
        allocate(model, Budget(luts=1e5, target_fps=FPS), profile="paper", **options)
