"""Fast copies of modules, beside ``copy.deepcopy``, which they have to equal."""

import copy
import weakref
from collections import OrderedDict
from types import FunctionType, MethodType

import pytest
import torch
from brevitas.nn import QuantConv2d
from torch import nn
from torch.nn.utils import parametrizations, parametrize, spectral_norm

from brevitas_multiquant.core.copying import copied


class Everything(nn.Module):
    """What modules hold beside layers: shared ones, cycles, containers, classes, features."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.same = self.layer
        self.register_buffer("count", torch.tensor(3))
        self.register_buffer("passing", torch.ones(2), persistent=False)
        self.owners = [self]
        self.layer.owner = (self, {"layer": self.layer})
        self.kept = OrderedDict(feature=self.count, kind=nn.ReLU, names={"a", "b"})
        self.layer.register_forward_hook(print)
        self.layer.weight.requires_grad_(False)


class Sharing(nn.Module):
    """A module that says itself how it is copied."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def __deepcopy__(self, memo):
        return self


class Renewed(nn.Module):
    """A module that is not what its attributes are."""

    def __setstate__(self, state):
        super().__setstate__(state)
        self.renewed = True


def described(value, seen):
    """Types, values and identities of all that a module holds."""
    if id(value) in seen:
        return f"object {seen[id(value)]}"
    seen[id(value)] = len(seen)
    if isinstance(value, torch.Tensor):
        return type(value), value.tolist(), value.requires_grad, described(vars(value), seen)
    if isinstance(value, dict):
        return type(value), [(k, described(v, seen)) for k, v in value.items()]
    if isinstance(value, (list, tuple)):
        return type(value), [described(item, seen) for item in value]
    if isinstance(value, MethodType):
        return value.__func__, described(value.__self__, seen)
    if isinstance(value, weakref.ref):
        return weakref.ref, described(value(), seen)
    if hasattr(value, "__dict__") and not isinstance(value, (type, FunctionType)):
        return type(value), described(vars(value), seen)
    return value


def test_equals_deepcopy():
    model = nn.Sequential(Everything(), Sharing(), Renewed(), nn.BatchNorm2d(2).eval())
    twin, expected = copied(model, {}), copy.deepcopy(model)
    assert described(twin, {}) == described(expected, {}) != described(model, {})
    assert twin[1] is model[1] and twin[0].owners[0] is twin[0] is not model[0]
    assert twin[0].layer.weight.data_ptr() != model[0].layer.weight.data_ptr()


def test_what_stands_in_the_memo_is_taken():
    model = Everything()
    weight = model.layer.weight
    twin = copied((model, [model]), {id(weight): weight})
    assert twin[0].layer.weight is weight and twin[1][0] is twin[0]


def test_a_traced_model_and_what_was_compiled():
    model = torch.fx.symbolic_trace(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    twin = copied(model, {})
    assert twin.code == model.code and twin.graph is not model.graph
    assert twin.get_submodule("0").weight is not model.get_submodule("0").weight
    layer = nn.Linear(2, 2)
    layer.compile(backend="eager")
    assert copied(layer, {})._compiled_call_impl is None


def test_a_network_and_its_copy_are_apart(net, images):
    twin = copy.deepcopy(net)
    assert described(twin.eval().state_dict(), {}) == described(net.eval().state_dict(), {})
    with torch.no_grad(), twin.at_bits(2):
        assert net.active_bits == 4
        low = twin(images)
        for parameter in twin.parameters():
            parameter.zero_()
    with torch.no_grad(), net.at_bits(2):
        assert torch.equal(net(images), low)


class Counted(QuantConv2d):
    """A layer of Brevitas that leaves out an attribute when it is copied."""

    def __init__(self) -> None:
        super().__init__(2, 2, 1)
        self.calls = 3

    def __getstate__(self):
        return {**super().__getstate__(), "calls": 0}


class Halved(nn.Module):
    """A parametrization."""

    def forward(self, weight):
        return weight / 2


class Slotted(nn.Linear):
    """A module with an attribute that is not in its dictionary."""

    __slots__ = ("place",)

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.place = [1]


class Hooked(nn.Linear):
    """A module that hooks a method of its own."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.seen = 0
        self.register_forward_hook(self.count)

    def count(self, *_):
        self.seen += 1


def halved():
    layer = nn.Linear(2, 2)
    parametrize.register_parametrization(layer, "weight", Halved())
    return layer


OUT_OF_THE_ORDINARY = {
    "own state": Counted,
    "a parametrization": halved,
    "a norm of its weight": lambda: parametrizations.weight_norm(nn.Linear(2, 2)),
    "a hook that computes its weight": lambda: spectral_norm(nn.Linear(2, 2)),
    "weak references": lambda: nn.LSTM(2, 2),
    "slots": Slotted,
    "a hook of its own": Hooked,
    "old-fashioned attention": lambda: nn.MultiheadAttention(4, 2),
}


@pytest.mark.parametrize("make", OUT_OF_THE_ORDINARY.values(), ids=OUT_OF_THE_ORDINARY)
def test_modules_that_do_more_than_hold_attributes_equal_deepcopy(make):
    model = nn.Sequential(make(), nn.ReLU())
    twin, expected = copied(model, {}), copy.deepcopy(model)
    assert described(twin, {}) == described(expected, {})
    mine, theirs = (set(map(id, m.parameters())) for m in (twin, model))
    assert mine.isdisjoint(theirs) and len(mine) == len(theirs)


def test_what_a_copy_runs_is_its_own():
    hooked, recurrent = copied((Hooked(), nn.LSTM(2, 2)), {})
    hooked(torch.ones(1, 2))
    assert hooked.seen == 1
    assert [ref() for ref in recurrent._flat_weight_refs] == list(recurrent.parameters())
    assert copied(Counted(), {}).calls == 0


def test_one_module_that_says_itself_how_it_is_copied():
    layer = nn.Linear(2, 2)
    layer.__dict__["__deepcopy__"] = MethodType(lambda self, memo: self, layer)
    assert copied(layer, {}) is copy.deepcopy(layer) is layer
