"""What a folder of the Hub holds beside the packed file: for people and for the Hub's search."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brevitas_multiquant.core.image_task import ImageTask
from brevitas_multiquant.core.method import method_named
from brevitas_multiquant.core.selection import is_whole
from brevitas_multiquant.core.units import unit_of_bytes
from brevitas_multiquant.cost.table import Cost, cost
from brevitas_multiquant.errors import HubError
from brevitas_multiquant.nn.network import MultiQuantNet
from brevitas_multiquant.nn.stored import weights_in_words
from brevitas_multiquant.profiles.catalogue import PROFILES
from brevitas_multiquant.storage.packed_net import save_packed
from brevitas_multiquant.version import __version__

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
CARD = "README.md"
PLOT = "accuracy.png"
LIBRARY = "brevitas_multiquant"
PAPER = "https://arxiv.org/abs/2305.08117"


@dataclass(frozen=True)
class Details:
    """What only the person who trained the network knows."""

    accuracy: Mapping[int, float] | None
    dataset: str | None
    license: str

    @classmethod
    def of(
        cls,
        net: MultiQuantNet,
        accuracy: Mapping[int, float] | None,
        dataset: str | None,
        license: str,
    ) -> "Details":
        """What was given; what was not is as the network's ``image_task`` has it.

        Raises:
            HubError: accuracies of other bit-widths than the network has.
        """
        task = net.image_task
        if task is not None:
            dataset = task.dataset if dataset is None else dataset
            accuracy = dict(task.accuracy) or None if accuracy is None else accuracy
        details = cls(accuracy, dataset, license)
        details.check(net)
        return details

    def check(self, net: MultiQuantNet) -> None:
        """Refuse accuracies of other bit-widths than the network has.

        Raises:
            HubError: naming them.
        """
        if self.accuracy is None:
            return
        if set(self.accuracy) != set(net.bits) or not all(map(is_whole, self.accuracy)):
            raise HubError(
                f"accuracy: expected one number for each of the bit-widths {list(net.bits)}, got "
                f"{dict(self.accuracy)!r}"
            )


def write_folder(net: MultiQuantNet, folder: Path, details: Details) -> None:
    """Packed file, configuration and model card, with a plot where matplotlib is installed."""
    save_packed(net, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(_config(net, details), indent=2) + "\n")
    costs = cost(net)
    plotted = _plot(costs, details.accuracy, folder / PLOT)
    (folder / CARD).write_text(_card(net, costs, details, plotted))


def _config(net: MultiQuantNet, details: Details) -> dict[str, Any]:
    task = net.image_task
    return {
        "library_name": LIBRARY,
        "library_version": __version__,
        "architecture": None if net.source is None else net.source.to_dict(),
        "multiquant": net.config.to_dict(),
        "input_shape": None if net.input_shape is None else list(net.input_shape),
        "top1": None if details.accuracy is None else {str(b): v for b, v in _rows(details)},
        **({} if task is None else {"image_task": task.to_dict()}),
    }


def _rows(details: Details) -> list[tuple[int, float]]:
    return sorted((int(bits), float(top1)) for bits, top1 in (details.accuracy or {}).items())


def _plot(costs: Cost, accuracy: Mapping[int, float] | None, path: Path) -> bool:
    """Accuracy over bit operations; whether it was drawn."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    if accuracy is None:
        return False
    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.plot([costs[b].bitops / 1e9 for b in costs], [accuracy[b] for b in costs], "o-")
    for bits in costs:
        place = (costs[bits].bitops / 1e9, accuracy[bits])
        axes.annotate(f"{bits} bits", place, textcoords="offset points", xytext=(6, -12))
    axes.set(xlabel="bit operations per image (GBitOPs)", ylabel="top-1 accuracy (%)")
    axes.margins(x=0.15, y=0.25)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    return True


def _card(net: MultiQuantNet, costs: Cost, details: Details, plotted: bool) -> str:
    name = "the network" if net.source is None else net.source.name
    measured = "" if details.dataset is None else f" on {details.dataset}"
    one, unit = unit_of_bytes((costs.file_bytes, costs.float_bytes))
    plot = f"\n![Top-1 accuracy over bit operations]({PLOT})\n" if plotted else ""
    return f"""---
{_metadata(net, details)}---

# {name} at {", ".join(map(str, net.bits))} bits

{_introduction(net)}

| bits | top-1{measured} | branches | MMACs | GBitOPs | {unit} |
|---|---|---|---|---|---|
{_table(costs, details, one)}
All bit-widths together take {costs.total_bytes / one:.3f} {unit}, in `{WEIGHTS}`
{costs.file_bytes / one:.3f} {unit}; the float model {costs.float_bytes / one:.3f} {unit}
(1 {unit} = {one:,.0f} bytes). Counts are for one image of
{"x".join(map(str, (net.input_shape or ())[1:]))}.
{plot}{_images(net.image_task)}
## How to load it

```python
from brevitas_multiquant import MultiQuantNet

net = MultiQuantNet.from_pretrained("FOLDER OR REPOSITORY"){_own_model(net)}
net.set_active_bits({net.bits[0]})
```

Nothing is unpickled: `{WEIGHTS}` holds packed codes and floats with checksums. For FPGAs and
onnxruntime see `brevitas_multiquant.export`.

## Licence and citation

Weights: {details.license}. {_citation(net)}
"""


def _images(task: ImageTask | None) -> str:
    """What the network reads, where it knows."""
    if task is None:
        return ""
    one = task.preprocessing
    names = ", ".join(one.class_names[:NAMED_CLASSES])
    more = len(one.class_names) - NAMED_CLASSES
    classes = f"{names}{f' and {more} more' if more > 0 else ''}" if names else "numbers"
    measured = f"| accuracy | {task.protocol} |\n" if task.protocol else ""
    mean, std = (", ".join(f"{v:g}" for v in values) for values in (one.mean, one.std))
    return f"""
## What it reads

| | |
|---|---|
| pixels | from 0 to 1, less the mean {mean}, over the deviation {std} |
| size | resized ({one.interpolation}), and the centre cut out ({one.crop:g} of it) |
| classes | {classes} |
{measured}| trained with | {LIBRARY} {task.version} |

`brevitas-multiquant predict {WEIGHTS} IMAGE` needs nothing else.
"""


NAMED_CLASSES = 10
"""Of the classes a card names as many."""


def _introduction(net: MultiQuantNet) -> str:
    """Method, bodies and weights."""
    row, edges = method_named(net.config.method), PROFILES[net.config.profile].edges
    made = f"made with\n[`{LIBRARY}`](https://pypi.org/project/brevitas-multiquant)"
    if row.topology.merges:
        return f"""One network that runs at every bit-width, {made} after
[MultiQuant]({PAPER}): branches with 2-bit weights share {edges} stem and
classifier, and the bit-width of the activations is chosen at run time.
Weights are {weights_in_words(net)},
stored in two bits each."""
    several = len(net.bits) > 1
    runs = "that runs at every bit-width" if several else "of bit-widths chosen before training"
    chosen = "chosen at run time" if several else "its own"
    return f"""One network {runs}, {made} by the
method `{row.name}`: one body between {edges} stem and classifier, whose bit-width is {chosen}.
Weights are {weights_in_words(net)}."""


def _citation(net: MultiQuantNet) -> str:
    row = method_named(net.config.method)
    seed = f"""*MultiQuant: Training Once for Multi-bit
Quantization of Neural Networks*, [arXiv 2305.08117]({PAPER})."""
    if row.topology.merges:
        return f"Method: Zhong et al., {seed}"
    return f"Method: {row.paper}. Quantizers: Zhong et al., {seed}"


def _tags(net: MultiQuantNet) -> list[str]:
    """What the Hub finds the network by: its method, and the papers of that and of quantizers."""
    row = method_named(net.config.method)
    papers = [*re.findall(r"\((\d{4}\.\d{5})\)", row.paper), PAPER.rsplit("/", 1)[-1]]
    return ["quantization", "brevitas", row.name, *(f"arxiv:{paper}" for paper in papers)]


def _metadata(net: MultiQuantNet, details: Details) -> str:
    lines = [
        f"library_name: {LIBRARY}",
        f"license: {json.dumps(details.license)}",
        "pipeline_tag: image-classification",
        "tags:",
        *(f"- {tag}" for tag in _tags(net)),
    ]
    if details.dataset is not None:
        lines += ["datasets:", f"- {json.dumps(details.dataset)}"]
    return "\n".join(lines) + "\n"


def _table(costs: Cost, details: Details, unit: float) -> str:
    rows = []
    for bits, one in costs.items():
        accuracy = "not measured" if details.accuracy is None else f"{details.accuracy[bits]:.2f} %"
        rows.append(
            f"| {bits} | {accuracy} | {len(one.branches)} | {one.macs / 1e6:.1f} "
            f"| {one.bitops / 1e9:.3f} | {one.bytes / unit:.3f} |\n"
        )
    return "".join(rows)


def _own_model(net: MultiQuantNet) -> str:
    own = net.source is not None and net.source.library == "own"
    return "  # model=YOUR_FLOAT_MODEL" if own else ""
