"""What a resumed run can change, and that it says in two lines what it cannot."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from brevitas_multiquant.recipes import train
from brevitas_multiquant.recipes.errors import CheckpointError, Interrupted, OptionError
from brevitas_multiquant.recipes.network.optimizers import go_on
from brevitas_multiquant.recipes.options.train import parse_train
from brevitas_multiquant.recipes.results import report
from brevitas_multiquant.recipes.results.state import differences_between
from brevitas_multiquant.recipes.run.create import create_run
from tests.recipes.runs import NAME, tiny


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run of one epoch."""
    output = tmp_path_factory.mktemp("stopped")
    assert train.main(tiny(output, "--epochs", "1", "--sched", "multistep")) == 0
    return output / NAME


def resume(folder, *more):
    return create_run(parse_train(["--resume", str(folder), *more]))


@pytest.mark.parametrize(
    ("more", "difference"),
    [
        (["--bits", "2", "4", "6"], "--bits 2 4 6 instead of 2 4"),
        (["--bits", "4"], "--bits 4 instead of 2 4"),
        (["--model", "cifar_resnet20"], "--model 'cifar_resnet20' instead of 'cifar_resnet8'"),
        (["--weights", "int2"], "--weights 'int2' instead of 'odd'"),
        (["--merge", "sum"], "--merge 'sum' instead of 'mean'"),
        (["--profile", "finn"], "--profile 'finn' instead of 'paper'"),
        (["--selection", "serial"], "--selection 'serial' instead of 'amortized'"),
        (["--float"], "--float True instead of False"),
        (["--model-kwargs", "drop_rate=0.1"], "--model-kwargs ('drop_rate', 0.1) instead of []"),
        (["--initial-checkpoint", "w.pth"], "--initial-checkpoint 'w.pth' instead of None"),
        (["--branch-init", "copy"], "--branch-init 'copy' instead of None"),
        (["--model-ema"], "--model-ema, of which the checkpoint has none"),
    ],
)
def test_another_network_is_refused_in_two_lines(stopped, more, difference):
    with pytest.raises(CheckpointError, match="got another network") as refused:
        resume(stopped, *more)
    first, second = str(refused.value).splitlines()
    assert first == (f"--resume {stopped}: expected the network of that run, got another network:")
    assert second == f"{difference}: leave that out, or start a new run with --experiment NAME"


def test_every_difference_is_named(stopped):
    with pytest.raises(CheckpointError, match=r"--bits 2 instead of 2 4; --merge 'sum'"):
        resume(stopped, "--bits", "2", "--merge", "sum")


def test_the_same_options_again_are_no_difference(stopped):
    assert resume(stopped, "--bits", "4", "2", "--model", "cifar_resnet8").progress.epoch == 1


def test_other_classes_are_told_in_a_few_words(stopped):
    """The data may change, and with them the classifier: no option of the network tells."""
    with pytest.raises(CheckpointError, match="data set describe") as refused:
        resume(stopped, "--num-classes", "20")
    assert "head.fc.weight has the shape (10, 64) instead of (20, 64) and 1 more" in str(
        refused.value
    )
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize(
    ("more", "name"), [(["-c", "some.yaml"], "--config"), (["--overwrite"], "--overwrite")]
)
def test_options_that_would_be_passed_over_are_refused(stopped, tmp_path, more, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "some.yaml").write_text("lr: 0.5\n")
    with pytest.raises(OptionError, match=f"^{name}: expected none beside --resume"):
        parse_train(["--resume", str(stopped), *more])


def test_the_folder_of_the_run_can_be_named_from_inside(stopped, monkeypatch):
    monkeypatch.chdir(stopped)
    assert create_run(parse_train(["--resume", "."])).folder == stopped


def test_settings_given_anew_count_at_once(stopped):
    """Those of optimizers and schedules; what optimizers remember goes on."""
    before = resume(stopped)
    run = resume(stopped, *("--lr", "0.004", "--weight-decay", "0.5", "--momentum", "0.3"))
    (group,) = run.optimizers[0].param_groups
    assert (group["lr"], group["weight_decay"], group["momentum"]) == (0.004, 0.5, 0.3)
    ours, theirs = (r.optimizers[0].state_dict()["state"] for r in (run, before))
    assert ours.keys() == theirs.keys() and len(ours) > 0
    for key, remembered in ours.items():
        assert torch.equal(remembered["momentum_buffer"], theirs[key]["momentum_buffer"])


@pytest.mark.parametrize(
    "schedule",
    [
        ["--sched", "cosine"],
        ["--sched", "cosine", "--sched-on-updates", "--warmup-epochs", "1"],
        ["--sched", "multistep", "--decay-milestones", "2"],
        ["--sched", "cosine", "--warmup-epochs", "2"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("steps", [0, 1, 2, 3, 5])
def test_the_rate_is_that_of_the_run_that_goes_on(tmp_path, schedule, steps):
    """To the bit, after any number of updates, two per epoch."""
    argv = tiny(tmp_path, "--epochs", "4", *schedule)
    whole = create_run(parse_train(argv))
    for count in range(1, steps + 1):
        for scheduler in whole.schedulers:
            scheduler.step_update(count)
            if count % 2 == 0:
                scheduler.step(count // 2)
    resumed = create_run(parse_train(argv))
    for scheduler in resumed.schedulers:
        go_on(scheduler, epoch=steps // 2, updates=steps)
    rates = [[o.param_groups[0]["lr"] for o in run.optimizers] for run in (whole, resumed)]
    assert rates[0] == rates[1]


def test_differences_are_counted_and_the_first_is_named():
    expected = {name: torch.zeros(1) for name in "abc"}
    assert differences_between(expected, dict(expected)) == ""
    assert differences_between(expected, {"c": torch.zeros(1), "d": torch.zeros(1)}) == (
        "a is missing and 1 more; d is not in the model"
    )


@pytest.mark.parametrize(
    ("count", "device", "start"),
    [
        (1, "cpu", "brevitas-multiquant train"),
        (4, "cuda", "accelerate launch --num_processes 4 -m brevitas_multiquant.recipes.train"),
        (
            *(2, "cpu"),
            "ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 -m "
            "brevitas_multiquant.recipes.train",
        ),
    ],
)
def test_a_stopped_run_names_the_whole_command_that_goes_on(stopped, count, device, start):
    run = resume(stopped)
    run.folder = Path("my runs/one")
    run.accelerator = SimpleNamespace(num_processes=count, device=torch.device(device))
    assert run.resume_command == f"{start} --resume 'my runs/one'"
    message = str(Interrupted(2, run.resume_command))
    assert message.endswith(f"go on with: {start} --resume 'my runs/one'")


def test_rows_of_a_run_of_an_older_release_are_counted_anew(tmp_path):
    rows = [{"epoch": epoch, "train_loss": 0.5, "lr": 0.1} for epoch in (0, 1, 3)]
    report.write_summary(tmp_path, rows)
    assert report.read_summary(tmp_path)["epoch"] == [1, 2, 3]
