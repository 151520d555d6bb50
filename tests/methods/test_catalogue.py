"""Rows of methods: what they name exists, and another row needs no other code."""

import dataclasses
from functools import partial

import pytest
import torch

from brevitas_multiquant import (
    InPlaceDistillation,
    ModelSource,
    MultiQuantConfig,
    MultiQuantNet,
    calibrate,
    cost,
    extract_subnet,
    load_packed,
    multiquantize,
    save_packed,
)
from brevitas_multiquant.core.method import Single
from brevitas_multiquant.core.panel import Panel
from brevitas_multiquant.errors import ConfigError
from brevitas_multiquant.methods.catalogue import METHODS, OBJECTIVES, WEIGHTS, fittings
from brevitas_multiquant.nn import SwitchableNorm, SwitchableQuantizer
from brevitas_multiquant.quant.layers import CodeLayer
from tests.tiny import IMAGE, TinyNet

SINGLE = dataclasses.replace(METHODS["multiquant"], name="single", topology=Single())


@pytest.fixture
def single_row(monkeypatch):
    monkeypatch.setitem(METHODS, "single", SINGLE)


def test_rows_name_what_there_is():
    for name, row in METHODS.items():
        assert row.name == name
        assert row.weights in WEIGHTS
        assert row.objective in OBJECTIVES
        assert row.paper
    assert OBJECTIVES[METHODS["multiquant"].objective] is InPlaceDistillation


def test_fittings_are_of_the_row(monkeypatch):
    made = fittings(MultiQuantConfig.create([2, 4, 6]), (2, 6), Panel(6))
    assert list(made.quantizer("site")) == ["2", "6"]
    assert list(made.norm(torch.nn.BatchNorm2d(3))) == ["2", "6"]
    assert isinstance(made.layer(torch.nn.Conv2d(3, 4, 1), "site"), CodeLayer)
    row = dataclasses.replace(METHODS["multiquant"], norms=(), activations=())
    monkeypatch.setitem(METHODS, "multiquant", row)
    made = fittings(MultiQuantConfig.create([2, 4]), (2, 4), Panel(4))
    assert list(made.quantizer("site")) == list(made.norm(torch.nn.BatchNorm2d(3))) == ["any"]


def test_method_by_name(make_net, net):
    named = make_net(method="multiquant")
    assert named.config == net.config
    assert list(named.state_dict()) == list(net.state_dict())
    with pytest.raises(ConfigError, match=r"did you mean 'multiquant'\?"):
        make_net(method="multiquants")


def test_a_network_of_one_body(single_row, images, tmp_path):
    """A row of another topology trains, costs, is stored and extracted as any network."""
    source = ModelSource("own", "TinyNet")
    build = partial(multiquantize, bits=[2, 3, 8], input_shape=IMAGE, source=source)
    net = build(TinyNet(), method="single")
    assert isinstance(net, MultiQuantNet)
    assert (len(net.branches), len(net.halves)) == (1, 0)
    assert net.selection == {2: (0,), 3: (0,), 8: (0,)}
    for kind in (SwitchableNorm, SwitchableQuantizer):
        members = [m for m in net.branches.modules() if isinstance(m, kind)]
        assert members
        assert all(list(member) == ["2", "3", "8"] for member in members)
    calibrate(net, [images])
    task = InPlaceDistillation(net.train())
    assert task.step(images, torch.arange(len(images)))["loss"].isfinite()
    costs = cost(net.eval())
    assert costs[2].macs == costs[3].macs == costs[8].macs > 0
    loaded = load_packed(save_packed(net, tmp_path / "net.safetensors"), TinyNet())
    assert loaded.config == net.config
    for bits in net.bits:
        with torch.no_grad(), net.at_bits(bits), loaded.at_bits(bits):
            logits = net(images)
            assert torch.equal(loaded(images), logits)
            assert torch.equal(extract_subnet(net, bits)(images), logits)


def test_one_object_instead_of_keywords(make_net):
    options = {"selection": "serial", "merge": "sum", "half_width": "channels", "weights": "int2"}
    config = MultiQuantConfig.create([4, 2, 3], **options)
    model = TinyNet()
    whole = multiquantize(model, config=config, input_shape=IMAGE)
    single = multiquantize(model, [2, 3, 4], input_shape=IMAGE, **options)
    assert whole.config is config
    assert whole.config == single.config
    theirs = single.state_dict()
    assert list(whole.state_dict()) == list(theirs)
    assert all(torch.equal(value, theirs[name]) for name, value in whole.state_dict().items())
    both = multiquantize(model, [2, 3, 4], config=config, merge="sum", input_shape=IMAGE)
    assert both.config is config
    with pytest.raises(ConfigError, match="profile: expected it as an option or in config, got"):
        multiquantize(model, config=config, profile="finn")
    with pytest.raises(ConfigError, match="bits: expected it as an option or in config, got"):
        multiquantize(model, [2, 4], config=config)
