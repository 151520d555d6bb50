"""Eight processes take a step as one process with eight times the batch does: one exchange.

    python -m pytest integration_tests/test_many_processes.py

Nothing in a step asks how many there are but the division of a sum, so that eight stand for any
number.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file

from brevitas_multiquant.recipes.options.train import parse_train
from brevitas_multiquant.recipes.results.checkpoints import write_tensors
from brevitas_multiquant.recipes.run.create import create_run
from brevitas_multiquant.recipes.run.processes import exchanged
from tests.recipes.one_of_two_ranks import gradients
from tests.recipes.ranks import run_ranks
from tests.recipes.runs import tiny

PROCESSES = 8
BATCH = 32
# In float64 sums in another order differ by about 1e-15. Relative to the gradient's norm.
TOLERANCE = 1e-10
SENDING = [
    *("all_gather", "all_gather_into_tensor", "all_gather_object", "all_reduce", "all_to_all"),
    *("barrier", "broadcast", "broadcast_object_list", "gather", "reduce", "reduce_scatter"),
    *("scatter", "send", "recv", "isend", "irecv"),
]
"""What `torch.distributed` sends by."""


def arguments(output: Path, processes: int) -> list[str]:
    """Of a run whose processes have one batch together."""
    bits = ["--bits", "2", "3", "4"]
    return tiny(output, *bits, "--batch-size", str(BATCH // processes))


def one_step(output: Path) -> None:
    """What one process has after a step: gradients, and the numbers of each tensor it sent."""
    run = create_run(parse_train(arguments(output / "run", PROCESSES)))
    sent = []

    def watched(name):
        plain = getattr(torch.distributed, name)

        def send(tensor, *args, **kwargs):
            sent.append((name, tensor.numel()))
            return plain(tensor, *args, **kwargs)

        return send

    for name in SENDING:
        setattr(torch.distributed, name, watched(name))
    found = gradients(run)
    ((name, numbers),) = sent
    assert name == "all_reduce"
    own = sum(tensor.numel() for tensor in exchanged(run.net))
    assert own < numbers < own + 100  # the rest are losses
    write_tensors(output / f"rank_{run.accelerator.process_index}", found)
    run.accelerator.end_training()


def test_eight_processes_step_as_one_and_send_one_tensor(tmp_path):
    run_ranks(PROCESSES, one_step, tmp_path)
    alone = gradients(create_run(parse_train(arguments(tmp_path / "alone", 1))))
    ranks = [load_file(tmp_path / f"rank_{rank}") for rank in range(PROCESSES)]
    for name, expected in alone.items():
        difference = ranks[0][name] - expected
        assert difference.norm() <= TOLERANCE * expected.norm(), name
        assert all(torch.equal(rank[name], ranks[0][name]) for rank in ranks[1:]), name
    assert any(gradient.norm() > 0 for gradient in alone.values())
