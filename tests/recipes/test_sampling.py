"""Steps of sampled bit-widths: which run, and what is trained."""

from collections import Counter

import pytest
import torch

from brevitas_multiquant.recipes.data.seeds import derived_seed
from brevitas_multiquant.recipes.options.train import parse_train
from brevitas_multiquant.recipes.run.create import create_run
from brevitas_multiquant.recipes.run.sampling import sampled_bits
from tests.recipes.runs import tiny

OPTIONS = ("--bits", "2", "4", "6", "--bits-per-step", "2.5")


def test_sampled_bit_widths_are_the_largest_the_smallest_and_others_evenly():
    seen = Counter(sampled_bits([2, 4, 6, 8], 2.4, seed) for seed in range(500))
    assert set(seen) == {(2, 8), (2, 4, 8), (2, 6, 8)}
    # 300, 100 and 100 are expected, with standard deviations of 11, 9 and 9
    assert 255 < seen[2, 8] < 345
    assert all(64 < seen[2, between, 8] < 136 for between in (4, 6))
    assert {len(sampled_bits([2, 4, 6, 8], 3, seed)) for seed in range(20)} == {3}
    assert {sampled_bits([2, 4, 6], 3, seed) for seed in range(20)} == {(2, 4, 6)}


@pytest.mark.parametrize("step", [0, 1, 2, 3])
def test_a_step_of_sampled_bit_widths_trains_them_and_no_other(tmp_path, step):
    """Of the norms and ranges that each has for itself."""
    run = create_run(parse_train(tiny(tmp_path, *OPTIONS)))
    before = {name: value.clone() for name, value in run.net.state_dict().items()}
    run.step.task.train()
    run.step([next(run.train.epoch(0))], 0, step, 0)
    after = run.net.state_dict()
    trained = {name for name in before if not torch.equal(before[name], after[name])}
    chosen = sampled_bits((2, 4, 6), 2.5, derived_seed(42, 0, step))
    for bits in (2, 4, 6):
        assert any(f".{bits}." in name for name in trained) == (bits in chosen)


def test_the_steps_above_run_both_ways():
    chosen = {sampled_bits((2, 4, 6), 2.5, derived_seed(42, 0, step)) for step in range(4)}
    assert chosen == {(2, 6), (2, 4, 6)}
