"""However a step is computed, it is the same step."""

import pytest
import torch
from accelerate.state import AcceleratorState

from brevitas_multiquant.recipes.network.training_forwards import running_by
from brevitas_multiquant.recipes.options.train import parse_train
from brevitas_multiquant.recipes.run.create import create_run
from tests.recipes.runs import tiny


def state_after_a_step(tmp_path, *options, start=None, double=False, evaluating=False):
    """The run, and its gradients, parameters and running statistics after one step.

    ``start`` is the state to start from, where the options change what calibration sees.
    """
    run = create_run(parse_train(tiny(tmp_path, *options)))
    if start is not None:
        run.net.load_state_dict(start)
    if double:
        run.net.double()
    run.step.task.train(not evaluating)
    batches = run.train.epoch(0)
    group = [next(batches) for _ in range(run.options.execution.grad_accum_steps)]
    if double:
        group = [(images.double(), labels) for images, labels in group]
    run.step(group, 0, 0, 0)
    gradients = {f"{n}.grad": p.grad for n, p in run.net.named_parameters() if p.grad is not None}
    return run, gradients | run.net.state_dict()


def assert_equal(first, second):
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def assert_close(first, second, tolerance):
    assert first.keys() == second.keys()
    for name, value in first.items():
        difference = (value - second[name]).double().norm()
        assert difference <= tolerance * value.double().norm() + 1e-12, name


def test_recomputed_branches_give_the_same_bits(tmp_path):
    """Gradients, and the running statistics, which a second forward must not update again."""
    _, plain = state_after_a_step(tmp_path)
    run, recomputed = state_after_a_step(tmp_path, "--recompute")
    assert set(run.step.forwards) == {(branch, "forward") for branch in run.net.branches}
    assert_equal(plain, recomputed)
    assert not any("forward" in vars(branch) for branch in run.net.branches)


def test_recomputing_keeps_less_for_the_backward(tmp_path):
    """The bytes that autograd saves, of the largest bit-width."""
    saved = {}
    for options in ((), ("--recompute",)):
        total = 0

        def count(tensor):
            nonlocal total
            total += tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            run = create_run(parse_train(tiny(tmp_path, *options)))
            images, labels = next(run.train.epoch(0))
            with running_by(run.step.forwards):
                run.step.task(images, labels)
        saved[options] = total
    assert saved[("--recompute",)] < 0.3 * saved[()]


def test_training_steps_run_the_compiled_network_and_evaluation_does_not(tmp_path, monkeypatch):
    """What the compiler makes of them is in integration_tests/test_compiled_training.py."""
    calls = []

    def compile_nothing(forward, dynamic):
        assert not dynamic
        return lambda x: (calls.append(1), forward(x))[1]

    _, plain = state_after_a_step(tmp_path)
    monkeypatch.setattr(torch, "compile", compile_nothing)
    run, compiled = state_after_a_step(tmp_path, "--compile")
    assert len(calls) == len(run.net.bits)
    assert_equal(plain, compiled)
    assert "forward" not in vars(run.net)
    run.net(next(iter(run.val))[0])
    assert len(calls) == len(run.net.bits)


def test_channels_last_gives_the_same_step(tmp_path):
    """In float64, where another order of summation stays below every rounding threshold."""
    start = create_run(parse_train(tiny(tmp_path))).net.state_dict()
    contiguous, plain = state_after_a_step(tmp_path, "--no-channels-last", start=start, double=True)
    assert contiguous.net.branches[0].get_parameter("layer2.0.conv1.weight").is_contiguous()
    run, strided = state_after_a_step(tmp_path, start=start, double=True)
    weight = run.net.branches[0].get_parameter("layer2.0.conv1.weight")
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert_close(plain, strided, 1e-10)


def test_accumulated_batches_make_the_step_of_a_large_one(tmp_path):
    """In float64, norms in evaluation mode as each batch would normalise itself otherwise."""
    small = ("--batch-size", "16", "--grad-accum-steps", "2")
    start = create_run(parse_train(tiny(tmp_path))).net.state_dict()
    exact = {"start": start, "double": True, "evaluating": True}
    _, accumulated = state_after_a_step(tmp_path, *small, **exact)
    _, whole = state_after_a_step(tmp_path, **exact)
    assert_close(whole, accumulated, 1e-10)


def test_bfloat16_keeps_parameters_and_ranges_in_float32(tmp_path):
    """bfloat16 has 8 bits of mantissa: the loss agrees to a few of its roundings, 2**-8 each."""
    losses, run = [], None
    for options in ((), ("--amp", "bf16")):
        AcceleratorState._reset_state(reset_partial_state=True)
        run = create_run(parse_train(tiny(tmp_path, *options)))
        losses.append(run.step([next(run.train.epoch(0))], 0, 0, 0).loss)
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=8 * 2**-8)
    assert {value.dtype for value in run.net.parameters()} == {torch.float32}
    assert {p.grad.dtype for p in run.net.parameters()} == {torch.float32}
