"""What quantization adds to a training step and to evaluation: interleaved pairs, CPU time, memory.

    python -m benchmarks.training_step cifar_resnet20 --batch-size 128 --img-size 32
    python -m benchmarks.training_step --table

For each way to run (as it is, channels_last, compiled):

* ``one branch``: a step at the smallest bit-width over a step of the float network run that way;
* ``full step``: all bit-widths, one backward each, over as many float steps as it has branch
  passes; the float network runs *as it is*;
* ``evaluation``: a forward at the largest bit-width over one of the same branches in float, both
  run that way.

Memory: the allocator's peak during the full step, with and without ``--recompute``, over that of a
float step of the largest bit-width's subnet. Results are kept as JSON; ``--table`` draws the plot
and prints the table of what is there.
"""

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from torch import nn

import brevitas_multiquant.core.cifar_networks  # noqa: F401  registers the CIFAR networks
from benchmarks.measure import conditions, median_seconds, paired_ratio, peak_bytes
from brevitas_multiquant import InPlaceDistillation, calibrate, multiquantize
from brevitas_multiquant.recipes.network.training_forwards import running_by, training_forwards
from brevitas_multiquant.recipes.run.memory import keep_freed_memory

RESULTS = Path(__file__).parent / "results" / "training_step"
MODES = ("plain", "channels_last", "compiled", "compiled, channels_last")


class Setup:
    """A float network and its multi-branch network, on the same images."""

    def __init__(self, options: argparse.Namespace) -> None:
        torch.manual_seed(options.seed)
        shape = (options.batch_size, 3, options.img_size, options.img_size)
        self.model = timm.create_model(options.model, num_classes=10).train()
        self.net = multiquantize(
            self.model, options.bits, input_shape=shape, branch_init="shuffle", check=False
        )
        self.images, self.labels = torch.randn(shape), torch.randint(0, 10, shape[:1])
        calibrate(self.net, [self.images])
        self.task = InPlaceDistillation(self.net).train()

    def float_step(self) -> None:
        """The float network: forward and backward."""
        self._backward(self.model)

    def subnet_float_step(self) -> None:
        """The branches of the largest bit-width without quantizers."""
        with self.net.at_bits(max(self.net.bits)), self.net.floating():
            self._backward(self.net)

    def one_branch_step(self) -> None:
        """The smallest bit-width."""
        with self.net.at_bits(min(self.net.bits)):
            self._backward(self.net)

    def full_step(self) -> None:
        """All bit-widths."""
        self.task.step(self.images, self.labels)

    def evaluate(self) -> None:
        """The largest bit-width."""
        with torch.no_grad(), self.net.at_bits(max(self.net.bits)):
            self.net(self.images)

    def evaluate_float(self) -> None:
        """The largest bit-width without quantizers."""
        with self.net.floating():
            self.evaluate()

    def forget_gradients(self) -> None:
        """As at the start of a step."""
        for module in (self.model, self.net):
            module.zero_grad(set_to_none=True)

    def _backward(self, network: nn.Module) -> None:
        F.cross_entropy(network(self.images), self.labels).backward()

    @contextmanager
    def run(self, mode: str) -> Iterator[None]:
        """Inside the block both networks run in a mode."""
        layout = torch.channels_last if "channels_last" in mode else torch.contiguous_format
        for module in (self.model, self.net):
            module.to(memory_format=layout)
        self.images = self.images.contiguous(memory_format=layout)
        if "compiled" not in mode:
            yield
            return
        torch._dynamo.reset()
        self.model.forward = torch.compile(self.model.forward, dynamic=False)
        try:
            with running_by(training_forwards(self.net, compiled=True, recompute=False)):
                yield
        finally:
            del self.model.forward


def measure_mode(setup: Setup, plain: Setup, mode: str, options: argparse.Namespace) -> dict:
    """The ratios of one way to run; ``plain`` runs as it is."""
    passes = sum(len(branches) for branches in setup.net.selection.values())

    def plain_float_steps() -> None:
        for _ in range(passes):
            plain.float_step()

    ratios = {}
    with setup.run(mode):
        setup.net.train()
        ratios["float / plain float"] = paired_ratio(
            setup.float_step, plain.float_step, options.repeats
        )
        ratios["one branch"] = paired_ratio(
            setup.one_branch_step, setup.float_step, options.repeats
        )
        if "full" in options.measure:
            repeats = max(options.repeats // 2, 3)
            ratios["full step"] = paired_ratio(setup.full_step, plain_float_steps, repeats)
        if "evaluation" in options.measure:
            setup.net.eval()
            ratios["evaluation"] = paired_ratio(
                setup.evaluate, setup.evaluate_float, options.repeats
            )
    return {name: round(ratio, 3) for name, ratio in ratios.items()}


def measure_memory(setup: Setup) -> dict[str, float]:
    """Peaks in MB, and over that of the float step of the largest bit-width's subnet."""
    setup.net.train()
    recomputed = training_forwards(setup.net, compiled=False, recompute=True)
    peaks = {}
    for name, step, forwards in (
        ("float subnet", setup.subnet_float_step, {}),
        ("full step", setup.full_step, {}),
        ("full step, recompute", setup.full_step, recomputed),
    ):
        setup.forget_gradients()
        with running_by(forwards):
            peaks[name] = peak_bytes(step)
    least = peaks["float subnet"]
    megabytes = {f"{name} MB": round(peak / 1e6, 1) for name, peak in peaks.items()}
    return megabytes | {name: round(peak / least, 3) for name, peak in peaks.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="cifar_resnet20")
    parser.add_argument("--bits", type=int, nargs="+", default=[2, 4, 6, 8])
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--img-size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES[:2]))
    parser.add_argument(
        "--measure",
        nargs="*",
        choices=("full", "evaluation", "memory"),
        default=["full", "evaluation", "memory"],
        help="beside one branch; a full step is compiled once for each branch and bit-width",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", action="store_true", help="only plot and print what is there")
    options = parser.parse_args()
    if not options.table:
        measure(options)
    report()


def measure(options: argparse.Namespace) -> None:
    """Measure, and add to what was measured before of this network."""
    torch.set_num_threads(1)
    keep_freed_memory()  # as the recipe does
    torch._dynamo.config.recompile_limit = 64  # each bit-width is a graph of its own
    setup, plain = Setup(options), Setup(options)
    name = f"{options.model}_b{options.batch_size}_{options.img_size}px"
    path = RESULTS / f"{name}.json"
    kept = json.loads(path.read_text()) if path.is_file() else {"modes": {}}
    if "memory" in options.measure:
        kept["memory"] = measure_memory(setup)
        print(kept["memory"], flush=True)
    setup.net.train()
    kept["milliseconds an image"] = {
        name: round(1e3 * median_seconds(step, 3) / options.batch_size, 2)
        for name, step in (("float step", setup.float_step), ("full step", setup.full_step))
    }
    for mode in options.modes:
        found = measure_mode(setup, plain, mode, options)
        kept["modes"][mode] = kept["modes"].get(mode, {}) | found
        print(mode, found, flush=True)
    kept |= {"name": name, "bits": options.bits, "repeats": options.repeats}
    kept["conditions"] = conditions(options.seed)
    RESULTS.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(kept, indent=1) + "\n")


COLUMNS = ("float / plain float", "one branch", "full step", "evaluation")


def report() -> None:
    """Print the tables of all results, and draw them."""
    results = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    print("| network | run | " + " | ".join(COLUMNS) + " |")
    print("|---" * (len(COLUMNS) + 2) + "|")
    for result in results:
        for mode, ratios in result["modes"].items():
            cells = [f"{ratios[c]:.2f}" if c in ratios else "-" for c in COLUMNS]
            print(f"| {result['name']} | {mode} | " + " | ".join(cells) + " |")
    print("\n| network | float step, MB | full step, MB | with recompute, MB | ratios |")
    print("|---|---|---|---|---|")
    for result in results:
        memory = result.get("memory")
        if memory:
            names = ("float subnet", "full step", "full step, recompute")
            cells = [f"{memory[f'{name} MB']:.0f}" for name in names]
            ratios = ", ".join(f"{memory[name]:.2f}" for name in names[1:])
            print(f"| {result['name']} | " + " | ".join(cells) + f" | {ratios} |")
    plot(results)


def plot(results: list[dict]) -> None:
    """Ratios as bars, a panel per network."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(
        1, len(results), figsize=(5 * len(results), 3.4), sharey=True, layout="constrained"
    )
    for panel, result in zip([panels] if len(results) == 1 else panels, results, strict=True):
        modes = list(result["modes"])
        for index, column in enumerate(COLUMNS[1:]):
            places = [position + 0.26 * (index - 1) for position in range(len(modes))]
            values = [result["modes"][mode].get(column, 0) for mode in modes]
            bars = panel.bar(places, values, 0.24, label=column)
            panel.bar_label(bars, [f"{v:.2f}" if v else "" for v in values], fontsize=7)
        panel.axhline(1, color="black", linewidth=0.8, linestyle=":")
        panel.set_xticks(range(len(modes)), [mode.replace(", ", "\n") for mode in modes])
        panel.set_title(result["name"], fontsize=10)
    figure.axes[0].set_ylabel("CPU time over float")
    handles = figure.axes[0].get_legend_handles_labels()
    figure.legend(*handles, ncols=3, frameon=False, loc="outside lower center")
    figure.savefig(RESULTS / "ratios.png", dpi=150)


if __name__ == "__main__":
    main()
