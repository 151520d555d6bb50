"""Each method in the recipe: its training task, some of the bit-widths, resuming, two processes."""

import re
import signal

import pytest
import torch
from safetensors.torch import load_file

from brevitas_multiquant import load_packed
from brevitas_multiquant.core.config import OPTIONS
from brevitas_multiquant.core.method import METHODS
from brevitas_multiquant.methods.catalogue import OBJECTIVES
from brevitas_multiquant.recipes import train
from brevitas_multiquant.recipes.data.seeds import derived_seed
from brevitas_multiquant.recipes.errors import OptionError
from brevitas_multiquant.recipes.network.optimizers import create_optimizers
from brevitas_multiquant.recipes.options.search import parse_search
from brevitas_multiquant.recipes.options.train import parse_train
from brevitas_multiquant.recipes.results.checkpoints import checkpoints_in, read_checkpoint
from brevitas_multiquant.recipes.run import step
from brevitas_multiquant.recipes.run.create import create_run
from brevitas_multiquant.recipes.run.sampling import sampled_bits
from brevitas_multiquant.training.quant_noise import NoisyWeights
from tests.recipes import methods_on_two_ranks
from tests.recipes.methods_on_two_ranks import after_a_step, arguments
from tests.recipes.ranks import run_ranks
from tests.recipes.runs import NAME, tensors_of

SEVERAL = [name for name, row in METHODS.items() if row.most_candidates is None]
ONE_BODY = [name for name in SEVERAL if name != "multiquant"]

# In float64 sums over half of the batch each differ from those over all of it by about 1e-16; a
# step of SGD at 0.01 or of Adam at 1e-4 leaves less of that.
TOLERANCE = {"rtol": 1e-10, "atol": 1e-12}


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """The folder with what each of two processes wrote for every method."""
    output, start = (tmp_path_factory.mktemp(name) for name in ("two", "start"))
    run_ranks(2, methods_on_two_ranks.main, output, start)
    return output


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_train_as_one_with_twice_the_batch(method, tmp_path, two_ranks):
    """And both hold the same network after one more step in training mode."""
    more = ("--batch-size", "8", "--grad-accum-steps", "2")
    expected = after_a_step(create_run(parse_train(arguments(method, tmp_path, *more))))
    first, second = (load_file(two_ranks / f"{method}_{rank}") for rank in (0, 1))
    for name, value in expected.items():
        torch.testing.assert_close(first[name], value, **TOLERANCE, msg=lambda m, n=name: n + m)
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


@pytest.mark.parametrize("method", METHODS)
def test_a_run_asked_to_stop_resumes_bit_for_bit(method, tmp_path, monkeypatch):
    sampled = ("--bits-per-step", "2.5") if method in SEVERAL else ()
    more = ("--epochs", "2", "--model-kwargs", "drop_rate=0.1", *sampled)
    assert train.main(arguments(method, tmp_path / "whole", *more)) == 0
    plain = step.Step.__call__

    def interrupted(*args, **kwargs):
        signal.raise_signal(signal.SIGTERM)
        return plain(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(step.Step, "__call__", interrupted)
        assert train.main(arguments(method, tmp_path / "stopped", *more)) == 128 + signal.SIGTERM
    (saved,) = checkpoints_in(tmp_path / "stopped" / NAME)
    assert read_checkpoint(saved).values["progress"]["step"] == 1
    assert train.main(["--resume", str(tmp_path / "stopped" / NAME)]) == 0
    whole, resumed = tensors_of(tmp_path / "whole"), tensors_of(tmp_path / "stopped")
    assert whole.keys() == resumed.keys()
    assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []
    assert load_packed(tmp_path / "whole" / NAME / "last.safetensors").config.method == method


@pytest.mark.parametrize("method", METHODS)
def test_a_run_trains_by_its_methods_task(method, tmp_path):
    """Every parameter, in a step of all bit-widths."""
    run = create_run(parse_train(arguments(method, tmp_path)))
    assert type(run.step.task) is OBJECTIVES[METHODS[method].objective]
    before = {name: value.clone() for name, value in run.net.named_parameters()}
    run.step.task.train()
    result = run.step([next(run.train.epoch(0))], 0, 0, 0)
    assert 0 < result.loss < 100
    still = [name for name, p in run.net.named_parameters() if torch.equal(p, before[name])]
    assert [name for name in still if not of_a_mixed_pair(name)] == []


def of_a_mixed_pair(name):
    """Whether a norm runs where two layers have different bits, as in Bit-Mixer's last stage."""
    pair = re.search(r"\.(\d+)_(\d+)\.", name)
    return pair is not None and pair[1] != pair[2]


def test_in_bit_mixers_last_stage_layers_have_bits_of_their_own(tmp_path):
    run = create_run(parse_train(arguments("bit_mixer", tmp_path, "--uniform-share", "0")))
    before = {name: value.clone() for name, value in run.net.named_parameters()}
    run.step.task.train()
    for number in range(3):
        run.step([next(run.train.epoch(0))], 199, number, number)
    moved = [name for name, p in run.net.named_parameters() if not torch.equal(p, before[name])]
    assert any(of_a_mixed_pair(name) for name in moved)


@pytest.mark.parametrize("method", ONE_BODY)
@pytest.mark.parametrize("step", [0, 1, 2])
def test_of_one_body_the_chosen_bit_widths_run_and_no_other(method, step, tmp_path):
    run = create_run(parse_train(arguments(method, tmp_path, "--bits-per-step", "2.5")))
    seen = []
    run.net.register_forward_pre_hook(lambda net, _: seen.append(net.active_bits))
    run.step.task.train()
    run.step([next(run.train.epoch(0))], 0, step, 0)
    chosen = sampled_bits((2, 3, 4), 2.5, derived_seed(42, 0, step))
    assert seen == sorted(chosen, reverse=True)


def test_the_recipe_has_every_option_of_a_network():
    asked = {field.name for field in OPTIONS}
    assert asked <= set(vars(parse_train([]).model))


def test_options_of_another_methods_task_are_refused():
    with pytest.raises(OptionError, match=r"--uniform-share: .*\['bit_mixer'\], got --method mul"):
        parse_train(["--uniform-share", "0.5"])
    with pytest.raises(OptionError, match=r"--teacher: .* got --method multiquant"):
        parse_train(["--teacher", "top"])
    with pytest.raises(OptionError, match=r"--distill-loss: .*\['multiquant'\], got --method adab"):
        parse_train(["--method", "adabits", "--distill-loss", "halved"])
    with pytest.raises(OptionError, match=r"--no-distill: .*'multiquant'.*, got --method adabits"):
        parse_train(["--method", "adabits", "--no-distill"])


def test_optimizers_of_published_recipes(tmp_path):
    """AdaBits decays no norm and looks ahead; others take Adam."""
    run = create_run(parse_train(arguments("adabits", tmp_path)))
    options = parse_train(["--nesterov", "--no-decay-vectors", "--weight-decay", "0.5"])
    model, ranges = create_optimizers(options.optimisation, run.trainee)
    matrices, vectors = model.param_groups
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.5, 0)
    assert matrices["nesterov"] and vectors["nesterov"] and ranges.defaults["weight_decay"] == 0
    assert {p.dim() for p in vectors["params"]} == {1} and vectors["params"]
    assert min(p.dim() for p in matrices["params"]) == 2
    count = len(matrices["params"]) + len(vectors["params"])
    assert count == len(list(run.trainee.model_parameters()))
    adam, _ = create_optimizers(parse_train(["--opt", "adam"]).optimisation, run.trainee)
    assert type(adam) is torch.optim.Adam
    assert adam.param_groups[0]["weight_decay"] == 1e-4


def test_quant_noise_of_a_run(tmp_path):
    """Layers round a random share in each step; what says nothing is refused."""
    run = create_run(parse_train(arguments("adabits", tmp_path, "--quant-noise", "0.25")))
    quantizers = [m for m in run.net.modules() if isinstance(m, NoisyWeights)]
    assert quantizers and {one.share for one in quantizers} == {0.25}
    with pytest.raises(OptionError, match=r"--quant-noise: expected a share of at most 1, got 2"):
        parse_train(["--quant-noise", "2"])
    with pytest.raises(OptionError, match=r"--quant-noise: expected a multi-branch network, got"):
        parse_train(["--quant-noise", "0.5", "--float"])
    with pytest.raises(OptionError, match=r"--quant-noise: expected none in a search for bits"):
        parse_search(["--quant-noise", "0.5"])
