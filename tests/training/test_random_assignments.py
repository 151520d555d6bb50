"""When sites take random bits, and that what is drawn is a function of the place in training."""

import pytest
import torch

from brevitas_multiquant import Assignment, calibrate, multiquantize
from brevitas_multiquant.errors import ConfigError
from brevitas_multiquant.training.random_assignments import RandomAssignments
from tests.tiny import IMAGE, TinyNet


@pytest.fixture
def mixer(images):
    net = multiquantize(TinyNet(), [2, 3, 4], method="bit_mixer", input_shape=IMAGE)
    calibrate(net, [images])
    return net.train()


def test_the_probability_grows_over_the_last_stage(mixer):
    task = RandomAssignments(mixer, uniform=0.4)
    found = []
    for epoch in range(10):
        task.at(epoch, 10, 0)
        found.append(task.probability)
    assert found == [0, 0, 0, 0, *(pytest.approx(n / 6) for n in range(1, 7))]


@pytest.mark.parametrize(("uniform", "expected"), [(0, [0.5, 1.0]), (1, [0, 0])])
def test_stages_may_be_empty(mixer, uniform, expected):
    task = RandomAssignments(mixer, uniform=uniform)
    for epoch, probability in enumerate(expected):
        task.at(epoch, 2, 0)
        assert task.probability == probability


def test_every_candidate_is_drawn_alike_and_the_largest_runs_whole(mixer):
    task = RandomAssignments(mixer, uniform=0)
    counts = dict.fromkeys(mixer.bits, 0)
    for step in range(300):
        task.at(9, 10, step)
        assert task.setting_of(4) == 4
        setting = task.setting_of(2)
        assert setting.bits == 2 and set(setting) == set(mixer.sites)
        for weight, activation in setting.values():
            assert weight == activation
            counts[activation] += 1
    # 600 draws of a third each: a standard deviation of 11.5
    assert all(abs(count - 200) < 50 for count in counts.values())


def test_what_is_drawn_depends_on_the_place_alone(mixer):
    def settings(seed):
        task, found = RandomAssignments(mixer, uniform=0), []
        for epoch, step in [(0, 0), (0, 1), (1, 0), (1, 1)] * 2:
            task.at(epoch, 2, step, seed)
            found += [task.setting_of(bits) for bits in (2, 3)]
        return found

    first = settings(0)
    assert first[:8] == first[8:] == settings(0)[:8]
    assert first != settings(1) and len(set(first)) > 4


def test_a_resumed_run_is_the_same_to_the_bit(mixer, images):
    def train(net, start, stop):
        task = RandomAssignments(net, uniform=0)
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        for step in range(start, stop):
            task.at(step // 2, 4, step % 2)
            optimizer.zero_grad()
            task.step(images, torch.arange(len(images)))
            optimizer.step()
        return {name: value.clone() for name, value in net.state_dict().items()}

    before = {name: value.clone() for name, value in mixer.state_dict().items()}
    whole = train(mixer, 0, 8)
    mixer.load_state_dict(before)
    half = train(mixer, 0, 3)
    other = multiquantize(TinyNet(), [2, 3, 4], method="bit_mixer", input_shape=IMAGE).train()
    other.load_state_dict(half)
    resumed = train(other, 3, 8)
    assert all(torch.equal(value, whole[name]) for name, value in resumed.items())


def test_branches_learn_so_too(make_net, images):
    net = make_net()
    calibrate(net, [images])
    task = RandomAssignments(net.train(), uniform=0)
    task.at(0, 1, 0)
    setting = task.setting_of(2)
    assert isinstance(setting, Assignment) and {w for w, _ in setting.values()} == {2}
    assert task.step(images, torch.arange(len(images)))["loss"].isfinite()


def test_a_step_that_does_not_know_where_it_is_is_refused(mixer, images):
    task = RandomAssignments(mixer)
    with pytest.raises(ConfigError, match=r"got a step before any at\(epoch, epochs, step\)"):
        task.step(images, torch.arange(len(images)))
    with torch.no_grad():  # the losses of whole bit-widths
        assert task(images, torch.arange(len(images)))["loss"].isfinite()
    with pytest.raises(ConfigError, match="uniform: expected a share of the epochs, 0 to 1, got 2"):
        RandomAssignments(mixer, uniform=2)
