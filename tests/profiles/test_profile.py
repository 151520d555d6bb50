"""Profiles: a registry whose names the configuration knows, and passes that run in their order."""

import pytest
from torch import nn

from brevitas_multiquant.core.config import OPTIONS
from brevitas_multiquant.methods import convert
from brevitas_multiquant.nn.merge import Merge
from brevitas_multiquant.profiles.catalogue import PAPER, PROFILES
from brevitas_multiquant.profiles.profile import Parts, Profile

NAMES = next(one.metadata["choices"] for one in OPTIONS if one.name == "profile")


def test_the_configuration_knows_the_names_of_all_profiles():
    assert tuple(PROFILES) == NAMES
    assert all(profile.name == name for name, profile in PROFILES.items())


def test_the_paper_has_no_passes():
    assert PAPER.passes == ()


@pytest.mark.parametrize("profile", NAMES)
def test_the_conversion_applies_the_profile_of_its_configuration(make_net, monkeypatch, profile):
    applied = []
    spies = {name: Profile(name, "a", (lambda _, n=name: applied.append(n),)) for name in PROFILES}
    monkeypatch.setattr(convert, "PROFILES", spies)
    make_net(profile=profile)
    assert set(applied) == {profile}


def test_passes_see_the_parts_in_their_order_and_what_they_leave_is_the_network(
    make_net, monkeypatch
):
    class Mine(Merge):
        """Another merge."""

    order = []

    def first(parts: Parts) -> None:
        order.append("first")
        assert sorted(parts.branch_counts.items()) == [(2, 1), (3, 2)]
        runs = [(branch in parts.branches, bits) for branch, bits in parts.branches_and_bits()]
        assert runs == [(True, (2, 3)), (True, (3,))]
        parts.merge = Mine("sum")

    def second(parts: Parts) -> None:
        order.append("second")
        parts.plan.set_treatment(["fc"], "mine")

    monkeypatch.setitem(convert.PROFILES, "paper", Profile("paper", "a", (first, second)))
    net = make_net(bits=(2, 3), check=False)
    assert order == ["first", "second"]
    assert isinstance(net.merge, Mine)
    assert [row.name for row in net.plan.layers if row.treatment == "mine"] == ["fc"]


def test_the_plan_of_the_finn_profile_tells_what_stays_float(make_net):
    class Unusual(nn.Module):
        """A stem that hardware has no 8-bit layer for, and a head that does not run."""

        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 3, padding=1)
            self.up = nn.ConvTranspose2d(4, 4, 2)
            self.conv = nn.Conv2d(4, 4, 3)
            self.fc = nn.Linear(4, 5)
            self.auxiliary = nn.Linear(4, 5)

        def forward(self, x):
            x = self.conv(self.up(self.stem(x)).relu()).relu()
            return self.fc(x.mean((2, 3)))

    net = make_net(Unusual(), profile="finn", stem="up")
    told = {row.name: row.treatment for row in net.plan.layers}
    assert told == {
        "stem": "8 bits, shared",
        "up": "float, shared",
        "conv": "2-bit weights",
        "fc": "8 bits, shared",
        "auxiliary": "left out",
    }
