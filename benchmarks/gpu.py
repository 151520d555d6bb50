"""Steps on a GPU: float, multi-branch as it is, compiled, as a CUDA graph, and grouped.

    python -m benchmarks.gpu --setup cifar_resnet20
    python -m benchmarks.gpu --setup resnet18 --amp

Times are of the full step (every bit-width, one backward each) over as many float steps as it has
branch passes; milliseconds too, since a lent GPU is not shared. Before anything is timed: the
grouped branches give what the branches give, and a step is run under
``torch.cuda.set_sync_debug_mode("error")``, which raises where the host waits for the device.
``--device cpu`` tries the script without a GPU.

The full schedule is the recipe's: ``accelerate launch recipes/train.py -c
recipes/configs/cifar10_resnet20.yaml --data-dir FOLDER``.
"""

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

import timm
import torch
import torch.nn.functional as F
from torch import Tensor

import brevitas_multiquant.core.cifar_networks  # noqa: F401  registers the CIFAR networks
from benchmarks.grouped import grouped_forward
from benchmarks.measure import conditions
from brevitas_multiquant import InPlaceDistillation, MultiQuantNet, calibrate, multiquantize
from brevitas_multiquant.recipes.network.training_forwards import running_by, training_forwards

RESULTS = Path(__file__).parent / "results" / "gpu"
SETUPS = {"cifar_resnet20": (128, 32, 10), "resnet18": (64, 224, 1000)}
"""Model -> batch size, image size, classes: one bound by launches, one by arithmetic."""


class Steps:
    """The steps that are timed, on the same random images."""

    def __init__(self, options: argparse.Namespace) -> None:
        torch.manual_seed(options.seed)
        batch, size, classes = SETUPS[options.setup]
        batch, self.device = options.batch_size or batch, torch.device(options.device)
        shape = (batch, 3, size, size)
        self.model = timm.create_model(options.setup, num_classes=classes).train()
        self.net = multiquantize(
            self.model, options.bits, input_shape=shape, branch_init="shuffle", check=False
        )
        images, self.labels = torch.randn(shape), torch.randint(0, classes, (batch,))
        for module in (self.model, self.net):
            module.to(self.device, memory_format=torch.channels_last)
        self.labels = self.labels.to(self.device)
        self.images = images.to(self.device, memory_format=torch.channels_last)
        calibrate(self.net, [self.images])
        self.task = InPlaceDistillation(self.net.train())
        self.passes = sum(len(branches) for branches in self.net.selection.values())
        self.amp = options.amp

    def float_passes(self) -> None:
        """As many float steps as the full step has branch passes."""
        for _ in range(self.passes):
            with self._autocast():
                loss = F.cross_entropy(self.model(self.images), self.labels)
            loss.backward()

    def full(self) -> None:
        """Every bit-width, one after the other."""
        with self._autocast():
            self.task.step(self.images, self.labels, _backward)

    def grouped(self) -> None:
        """The same with the branches of a bit-width as groups of one network."""
        with patch.object(MultiQuantNet, "forward", grouped_forward):
            self.full()

    def compiled(self) -> Callable[[], None]:
        """The full step, compiled."""
        forwards = training_forwards(self.net, compiled=True, recompute=False)

        def step() -> None:
            with running_by(forwards):
                self.full()

        return step

    def compiled_grouped(self) -> Callable[[], None]:
        """The grouped step, compiled."""
        forward = torch.compile(grouped_forward, dynamic=False)

        def step() -> None:
            with patch.object(MultiQuantNet, "forward", forward):
                self.full()

        return step

    def forget_gradients(self) -> None:
        """As at the start of a step."""
        for module in (self.model, self.net):
            module.zero_grad(set_to_none=True)

    def _autocast(self) -> torch.autocast | nullcontext[None]:
        return torch.autocast(self.device.type, torch.bfloat16) if self.amp else nullcontext()


def _backward(loss: Tensor) -> None:
    with torch.autocast(loss.device.type, enabled=False):
        loss.backward()


def as_cuda_graph(step: Callable[[], None], steps: Steps) -> Callable[[], None]:
    """The step recorded once and replayed: no launches from the host."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            steps.forget_gradients()
            step()
    torch.cuda.current_stream().wait_stream(stream)
    steps.forget_gradients()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def check_grouped(steps: Steps) -> None:
    """Grouped branches give what the branches give, in float64, where no code is near a tie."""
    net = copy.deepcopy(steps.net).double()
    images = steps.images[:8].double()
    for bits in net.bits:
        with torch.no_grad(), net.at_bits(bits):
            torch.testing.assert_close(grouped_forward(net, images), net(images))


def check_without_waiting(step: Callable[[], None]) -> None:
    """Raise where the host waits for the device within a step."""
    step()  # the first one looks once at whether each range was set
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def milliseconds(step: Callable[[], None], device: torch.device) -> float:
    """One step, from the host's call until the device is done."""
    synchronise = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    synchronise()
    started = time.perf_counter()
    step()
    synchronise()
    return 1e3 * (time.perf_counter() - started)


def measure(steps: Steps, step: Callable[[], None], repeats: int, replayed: bool) -> dict:
    """Milliseconds, their ratio to the float passes before each, and the peak of memory in MB."""

    def forget_gradients() -> None:
        if not replayed:  # a recorded step writes gradients where it did at first
            steps.forget_gradients()

    for _ in range(3):
        forget_gradients()
        step()
    times, ratios = [], []
    for _ in range(repeats):
        float_ms = milliseconds(steps.float_passes, steps.device)
        forget_gradients()
        times.append(milliseconds(step, steps.device))
        ratios.append(times[-1] / float_ms)
    found = {
        "ms": round(statistics.median(times), 2),
        "over float passes": round(statistics.median(ratios), 3),
    }
    if steps.device.type == "cuda":
        forget_gradients()
        torch.cuda.reset_peak_memory_stats()
        step()
        found["peak MB"] = round(torch.cuda.max_memory_allocated() / 1e6, 1)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--setup", choices=SETUPS, default="cifar_resnet20")
    parser.add_argument("--bits", type=int, nargs="+", default=[2, 4, 6, 8])
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--amp", action="store_true", help="bfloat16 by autocast")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-compile", action="store_true")
    options = parser.parse_args()
    torch._dynamo.config.recompile_limit = 64  # each bit-width is a graph of its own
    steps = Steps(options)
    cuda = steps.device.type == "cuda"
    check_grouped(steps)
    ways: dict[str, Callable[[], Callable[[], None]]] = {
        "float passes": lambda: steps.float_passes,
        "full step": lambda: steps.full,
        "grouped": lambda: steps.grouped,
    }
    if not options.no_compile:
        ways |= {"compiled": steps.compiled, "grouped, compiled": steps.compiled_grouped}
    if cuda:
        check_without_waiting(steps.full)
        print("no wait of the host within a step", flush=True)
        ways["CUDA graph"] = lambda: as_cuda_graph(steps.full, steps)
    found = {}
    for name, way in ways.items():
        found[name] = measure(steps, way(), options.repeats, replayed=name == "CUDA graph")
        print(name, found[name], flush=True)
    if cuda:
        record(options, found)


def record(options: argparse.Namespace, found: dict) -> None:
    """Keep what was measured, with what it depends on."""
    name = options.setup + ("_bf16" if options.amp else "")
    about = conditions(options.seed) | {"device": torch.cuda.get_device_name()}
    RESULTS.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"name": name, "steps": found, "conditions": about}, indent=1)
    (RESULTS / f"{name}.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
