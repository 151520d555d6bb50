"""What authors do while they train and a trace would lose: kept as it is, or refused by name."""

import random
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from brevitas_multiquant import (
    ModelSource,
    calibrate,
    extract_subnet,
    load_packed,
    multiquantize,
    save_packed,
)
from brevitas_multiquant.errors import ConfigError, SelfCheckError, UnsupportedModelError
from brevitas_multiquant.export import export_onnx, export_qonnx
from brevitas_multiquant.quant.layers import CodeLayer
from tests.tiny import IMAGE


class Block(nn.Module):
    """A residual layer, around which the others do something while they train."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        return x + torch.relu(self.conv(x))


class SkipsByTorch(Block):
    rate = 0.5

    def forward(self, x):
        if self.training and torch.rand(1).item() < self.rate:
            return x
        return super().forward(x)


class SeldomSkips(SkipsByTorch):
    rate = 0.0001


class SkipsByPython(Block):
    def forward(self, x):
        return x if self.training and random.random() < 0.5 else super().forward(x)


class SkipsByNumpy(Block):
    def forward(self, x):
        return x if self.training and np.random.rand() < 0.5 else super().forward(x)


class Noise(Block):
    def forward(self, x):
        x = super().forward(x)
        return x + torch.randn_like(x) if self.training else x


class OwnGenerator(Block):
    def __init__(self):
        super().__init__()
        self.generator = torch.Generator().manual_seed(5)

    def forward(self, x):
        if self.training and torch.rand(1, generator=self.generator).item() < 0.001:
            return x
        return super().forward(x)


class OwnPythonGenerator(OwnGenerator):
    def __init__(self):
        super().__init__()
        self.generator = random.Random(5)

    def forward(self, x):
        if self.training and self.generator.random() < 0.001:
            return x
        return Block.forward(self, x)


class WarmsUp(Block):
    """A counter of steps as a plain attribute: nothing differs in the first runs."""

    def __init__(self):
        super().__init__()
        self.steps = 0

    def forward(self, x):
        if self.training:
            self.steps += 1
        return x if self.training and self.steps > 100 else super().forward(x)


class CountsInBuffer(Block):
    def __init__(self):
        super().__init__()
        self.register_buffer("steps", torch.tensor(0))

    def forward(self, x):
        self.steps += 1
        return super().forward(x) * torch.where(self.steps > 100, 2.0, 1.0)


class CountsInList(Block):
    def __init__(self):
        super().__init__()
        self.seen = {"sizes": [0]}

    def forward(self, x):
        self.seen["sizes"].append(1)
        return super().forward(x) if len(self.seen["sizes"]) < 100 else x


class DropsFeatures(Block):
    """A function of torch that the trace has no module for."""

    def forward(self, x):
        return F.feature_alpha_dropout(super().forward(x), 0.5, self.training)


class OnlyWhileTraining(Block):
    """Deterministic, and another function in training."""

    def forward(self, x):
        x = super().forward(x)
        return x * 1.5 if self.training else x


class Remembers(Block):
    """Reads what it kept from the last forward."""

    def __init__(self):
        super().__init__()
        self.last = torch.zeros(())

    def forward(self, x):
        y = super().forward(x)
        y = y + 0.1 * self.last if self.training else y
        self.last = y.mean()
        return y


class Keeps(Block):
    """Keeps a feature for others to look at."""

    def forward(self, x):
        self.last = super().forward(x)
        return self.last


class Announces(Block):
    """Decides by its mode, and computes the same."""

    def forward(self, x):
        if self.training:
            assert len(x) > 1
        return super().forward(x)


KEPT = [
    SkipsByTorch,
    SeldomSkips,
    SkipsByPython,
    SkipsByNumpy,
    Noise,
    OwnGenerator,
    OwnPythonGenerator,
    WarmsUp,
    CountsInBuffer,
    CountsInList,
    DropsFeatures,
    OnlyWhileTraining,
    Remembers,
]


class Net(nn.Module):
    def __init__(self, *blocks):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.blocks = nn.Sequential(*blocks)
        self.last = nn.Conv2d(4, 4, 1)
        self.fc = nn.Linear(4, 5)

    def forward(self, x):
        x = self.blocks(torch.relu(self.stem(x)))
        return self.fc(torch.relu(self.last(x)).mean((2, 3)))


def convert(model, bits=(2, 4), **options):
    return multiquantize(model, bits, input_shape=IMAGE, **options)


def outputs(model, images, times):
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    with torch.no_grad():
        return [model(images) for _ in range(times)]


@pytest.mark.parametrize("kind", KEPT)
def test_it_is_kept(images, kind):
    """The network does in training what the model does, again and again."""
    model = Net(Block(), kind()).train()
    net = convert(model)
    assert type(net.branches[0].get_submodule("blocks.1")) is kind
    names = [n for n, m in net.branches[0].named_modules() if isinstance(m, CodeLayer)]
    assert set(names) == {"blocks.0.conv", "blocks.1.conv.layer", "last"}
    assert any(note.startswith("blocks.1 ") and "stays as it is" in note for note in net.plan.notes)
    with net.floating(), net.at_bits(2):
        ours = outputs(net.train(), images, 130)
    theirs = outputs(model.train(), images, 130)
    assert all(map(torch.equal, ours, theirs))


@pytest.mark.parametrize("kind", [SkipsByTorch, WarmsUp, OwnGenerator])
def test_it_trains_and_evaluates(images, kind, tmp_path):
    net = convert(Net(Block(), kind()))
    calibrate(net, [images])
    net.train()(images).sum().backward()
    assert all(b.get_submodule("blocks.0.conv").weight.grad is not None for b in net.branches)
    with torch.no_grad(), net.eval().at_bits(4):
        assert torch.equal(extract_subnet(net, 4)(images), net(images))
    assert export_qonnx(net, tmp_path / "q", bits=[4])
    assert export_onnx(net, tmp_path / "o", bits=[4])


def test_it_is_stored_and_loaded(images, tmp_path):
    """A reader cannot run the check: the file says what is kept."""

    def build():
        return Net(Block(), SkipsByTorch(), WarmsUp())

    net = convert(build(), source=ModelSource("own", "Net"))
    assert net.source.keep == ("blocks.1", "blocks.2")
    calibrate(net, [images])
    path = save_packed(net, tmp_path / "net")
    loaded = load_packed(path, build())
    assert loaded.source == net.source
    with torch.no_grad():
        assert torch.equal(loaded(images), net.eval()(images))
    named = convert(build(), keep=["blocks.1", "blocks.2"], check=False)
    named.load_state_dict(net.state_dict())


@pytest.mark.parametrize("keep", ["blocks.1", ["nowhere"], [""]])
def test_wrong_names_to_keep(keep):
    with pytest.raises(ConfigError, match=r"keep: expected a list of names of modules in Net, got"):
        convert(Net(Block()), keep=keep)


@pytest.mark.parametrize("kind", [Keeps, Announces, Block])
def test_what_a_trace_can_stand_for_is_traced(kind):
    net = convert(Net(Block(), kind()))
    assert type(net.branches[0].get_submodule("blocks.1")) is not kind
    assert net.plan.notes == [] and net.plan.opaque == []
    assert convert(Net(Block(), kind()), (2, 3, 4)).bits == (2, 3, 4)


def test_the_model_and_the_generators_are_left_alone():
    model = Net(WarmsUp(), OwnGenerator(), SkipsByPython(), SkipsByNumpy())
    before = model.blocks[1].generator.get_state()
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    net = convert(model)
    assert model.blocks[0].steps == 0 and torch.equal(model.blocks[1].generator.get_state(), before)
    assert [b.get_submodule("blocks.0").steps for b in net.branches] == [0, 0]
    assert states[:2] == (random.getstate(), np.random.get_state()[1].tolist())
    assert torch.equal(states[2], torch.get_rng_state())


@pytest.mark.parametrize(
    ("kind", "does"),
    [
        (SkipsByTorch, "draws random numbers"),
        (SeldomSkips, "draws random numbers"),
        (WarmsUp, "changes its own steps"),
        (OnlyWhileTraining, "reads self.training"),
    ],
)
def test_in_the_models_own_forward_it_is_refused(kind, does):
    class Whole(kind):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 3, padding=1)
            self.fc = nn.Linear(4, 5)

        def forward(self, x):
            x = super().forward(torch.relu(self.stem(x)))
            return self.fc(x.mean((2, 3)))

    with pytest.raises(SelfCheckError, match=rf"Its forward {does}.*Move what depends on self\.tr"):
        convert(Whole())


class Unseeded(Block):
    def forward(self, x):
        skips = self.training and np.random.default_rng().random() < 0.5
        return x if skips else super().forward(x)


def test_draws_that_no_seed_reaches_are_kept(images):
    """Two runs cannot be compared; it is evaluation that is checked to the bit."""
    model = Net(Block(), Unseeded())
    for _ in range(3):
        net = convert(model)
        assert type(net.branches[0].get_submodule("blocks.1")) is Unseeded
    assert net.plan.notes[0].startswith("blocks.1 depends on chance or time, which no seed sets:")
    with torch.no_grad(), net.floating(), net.at_bits(2):
        assert len({tuple(net.train()(images).flatten().tolist()) for _ in range(50)}) == 2
        assert torch.equal(net.eval()(images), model.eval()(images))


def test_several_kinds_at_once(images):
    model = Net(WarmsUp(), SkipsByTorch(), Unseeded(), CountsInBuffer())
    net = convert(model)
    kinds = [type(m) for m in net.branches[0].get_submodule("blocks").children()]
    assert kinds == [WarmsUp, SkipsByTorch, Unseeded, CountsInBuffer]


def test_a_kept_module_that_cannot_be_set_apart_says_why():
    class Whole(nn.Module):
        def __init__(self, kind):
            super().__init__()
            self.net = kind(Block())

        def forward(self, x):
            return self.net(x)

    class Skips(Net):
        def forward(self, x):
            return super().forward(-x if self.training and torch.rand(1) < 0.5 else x)

    with pytest.raises(UnsupportedModelError, match=r"net draws random numbers .*Move|net draws"):
        convert(Whole(Skips))
    with pytest.raises(UnsupportedModelError, match=r"blocks\.0 draws random .*with it kept the m"):
        convert(Net(SkipsByTorch()), (2, 3, 4))


def test_the_check_costs_little():
    """One run in each mode where no code decides by its mode."""
    model = Net(*(Block() for _ in range(20)))
    start = time.perf_counter()
    convert(model, check=False)
    without = time.perf_counter() - start
    start = time.perf_counter()
    convert(model)
    assert time.perf_counter() - start < 5 * without + 1
