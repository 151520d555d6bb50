"""Two processes train as one process with twice the batch does."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from brevitas_multiquant.recipes import train
from brevitas_multiquant.recipes.errors import LaunchError, OptionError
from brevitas_multiquant.recipes.evaluate import top1
from brevitas_multiquant.recipes.options.train import parse_train
from brevitas_multiquant.recipes.results.checkpoints import checkpoints_in
from brevitas_multiquant.recipes.run import processes
from brevitas_multiquant.recipes.run.create import create_run
from brevitas_multiquant.recipes.run.run import save_checkpoint
from tests.recipes import one_of_two_ranks
from tests.recipes.one_of_two_ranks import gradients
from tests.recipes.ranks import run_ranks
from tests.recipes.runs import NAME, tiny

# In float64 sums in another order differ by about 1e-15, and no code comes that near to a rounding
# threshold; over half of the images they differ by 1e-2 to 10. Relative to the gradient's norm.
TOLERANCE = 1e-10


def run_two_ranks(output: Path, *argv: str) -> dict[str, dict[str, Tensor]]:
    """What each of two processes wrote, by file name."""
    run_ranks(2, one_of_two_ranks.main, output, argv)
    return {path.name: load_file(path) for path in output.glob("*_[01]")}


def test_two_processes_train_as_one_with_twice_the_batch(tmp_path):
    """Gradients with norms in evaluation mode, as those of half a batch normalise otherwise.

    After an epoch in training mode both processes hold the same parameters, ranges and running
    statistics; they count each validation image once, and only the main one has written.
    """
    run = create_run(parse_train(tiny(tmp_path, "--batch-size", "16", "--grad-accum-steps", "2")))
    train.start(run)
    save_checkpoint(run)
    correct = top1(run.net, run.val, run.bits, run.accelerator)
    two = run_two_ranks(tmp_path, "--resume", str(tmp_path / NAME), "--batch-size", "8")

    for name, expected in gradients(run).items():
        difference = two["gradients_0"][name] - expected
        assert difference.norm() <= TOLERANCE * expected.norm(), name
    for kind in ("gradients", "state"):
        first, second = two[f"{kind}_0"], two[f"{kind}_1"]
        assert first.keys() == second.keys()
        assert [name for name in first if not torch.equal(first[name], second[name])] == []
    for rank in (0, 1):
        assert two[f"top1_{rank}"]["top1"].tolist() == pytest.approx(list(correct.values()))
        assert two[f"top1_{rank}"]["images"] == len(run.val.images)
    assert len(checkpoints_in(tmp_path / NAME)) == 2


@pytest.mark.parametrize(
    ("command", "asked"),
    [
        (["python", "/bin/accelerate", "launch", "--cpu", "--num_processes", "2", "a.py"], 2),
        (["python", "-m", "accelerate.commands.launch", "--num_processes=3", "a.py"], 3),
        (["accelerate-launch", "--num-processes", "4", "a.py", "--num_processes", "5"], 4),
        (["accelerate", "launch", "--config_file", "none.yaml", "a.py"], 1),
        (["bash", "-c", "python a.py --num_processes 2"], 1),
    ],
)
def test_reads_how_many_processes_were_asked_for(command, asked):
    assert processes.asked_in_command(command) == asked


def test_a_config_file_tells_how_many_processes_were_asked_for(tmp_path):
    config = tmp_path / "accelerate.yaml"
    config.write_text("distributed_type: 'NO'\nnum_processes: 2\nuse_cpu: true\n")
    command = ["accelerate", "launch", "--config_file", str(config), "a.py"]
    assert processes.asked_in_command(command) == 2


@pytest.mark.parametrize(("chosen", "accepted"), [("bf16", True), ("fp16", False)])
def test_the_launcher_s_precision_is_taken_or_refused(tmp_path, monkeypatch, chosen, accepted):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", chosen)
    if accepted:
        assert create_run(parse_train(tiny(tmp_path))).accelerator.mixed_precision == "bf16"
    else:
        with pytest.raises(OptionError, match="fp16"):
            create_run(parse_train(tiny(tmp_path)))


def test_one_process_where_two_were_asked_for_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "processes_asked_for", lambda: 2)
    with pytest.raises(LaunchError, match="asked for 2 processes and started one"):
        create_run(parse_train(tiny(tmp_path)))
