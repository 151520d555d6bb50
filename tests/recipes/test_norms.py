"""Norms estimated anew before an evaluation: when, from what, and in which network."""

from itertools import islice

import pytest
import torch

from brevitas_multiquant import reestimate_norms
from brevitas_multiquant.recipes.network import multi_branch
from brevitas_multiquant.recipes.options.train import parse_train
from brevitas_multiquant.recipes.run import norms
from brevitas_multiquant.recipes.run.create import create_run
from brevitas_multiquant.recipes.run.norms import refresh_norms
from tests.recipes.runs import tiny

SAMPLED = ("--bits", "2", "4", "6", "--bits-per-step", "2.5")


@pytest.mark.parametrize(
    ("options", "batches"),
    [
        ((), 0),
        (("--norm-batches", "3"), 3),
        (SAMPLED, norms.SAMPLED),
        ((*SAMPLED, "--norm-batches", "0"), 0),
    ],
)
def test_how_many_batches(tmp_path, monkeypatch, options, batches):
    used = []

    def count(net, images, batches):
        used.append(len(list(islice(images, batches))))

    monkeypatch.setattr(multi_branch, "reestimate_norms", count)
    run = create_run(parse_train(tiny(tmp_path, *options)))
    refresh_norms(run)
    assert used == ([min(batches, len(run.train))] if batches else [])


def test_the_images_are_the_first_of_the_epoch(tmp_path):
    run = create_run(parse_train(tiny(tmp_path, "--norm-batches", "1")))
    other = create_run(parse_train(tiny(tmp_path, "--norm-batches", "1"))).net
    refresh_norms(run)
    reestimate_norms(other, run.train.epoch(0), batches=1)
    expected = other.state_dict()
    for name, value in run.net.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_a_moving_average_is_what_is_estimated(tmp_path):
    """It is evaluated and kept; the network that trains is left alone."""
    run = create_run(parse_train(tiny(tmp_path, "--norm-batches", "1", "--model-ema")))
    trained = {name: value.clone() for name, value in run.net.state_dict().items()}
    kept = {name: value.clone() for name, value in run.result.module.state_dict().items()}
    refresh_norms(run)
    assert all(torch.equal(value, trained[name]) for name, value in run.net.state_dict().items())
    assert any(not torch.equal(v, kept[name]) for name, v in run.result.module.state_dict().items())
