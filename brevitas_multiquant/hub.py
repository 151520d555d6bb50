"""Networks on the Hugging Face Hub: a packed file, its configuration and a generated model card.

The packed file is the one truth: ``config.json`` is for people and for the Hub's search, and is
never read back. ``huggingface_hub`` is imported where it is used.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from brevitas_multiquant.checkpoint import load_packed, save_packed
from brevitas_multiquant.cost import Cost, cost
from brevitas_multiquant.errors import HubError, MultiQuantError
from brevitas_multiquant.export.folder import staged
from brevitas_multiquant.nn.given import given_network
from brevitas_multiquant.nn.network import MultiQuantNet
from brevitas_multiquant.selection import is_whole
from brevitas_multiquant.version import __version__

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
CARD = "README.md"
PLOT = "accuracy.png"
LIBRARY = "brevitas_multiquant"
PAPER = "https://arxiv.org/abs/2305.08117"


@dataclass(frozen=True)
class _Details:
    """What only the person who trained the network knows."""

    accuracy: Mapping[int, float] | None
    dataset: str | None
    license: str

    def check(self, net: MultiQuantNet) -> None:
        if self.accuracy is None:
            return
        if set(self.accuracy) != set(net.bits) or not all(map(is_whole, self.accuracy)):
            raise HubError(
                f"accuracy: expected one number for each of the bit-widths {list(net.bits)}, got "
                f"{dict(self.accuracy)!r}"
            )


def save_pretrained(net: MultiQuantNet, folder: str | os.PathLike[str], **details: Any) -> None:
    """See `MultiQuantNet.save_pretrained`."""
    net = given_network(net, "save_pretrained")
    known = _Details(**details)
    known.check(net)
    with staged(folder) as staging:
        _write(net, staging, known)
        if (Path(folder) / CARD).exists():  # its author may have written more into it
            (staging / CARD).unlink()


def push_to_hub(net: MultiQuantNet, repo_id: str, **options: Any) -> str:
    """See `MultiQuantNet.push_to_hub`."""
    net = given_network(net, "push_to_hub")
    known = _Details(*(options.pop(key) for key in ("accuracy", "dataset", "license")))
    known.check(net)
    hub = _huggingface_hub()

    class Repository(hub.ModelHubMixin):  # type: ignore[misc, name-defined]
        """The library's own way to create a repository and commit a folder to it."""

        def save_pretrained(self, save_directory: Path, **_: Any) -> None:
            Path(save_directory).mkdir(parents=True, exist_ok=True)
            _write(net, Path(save_directory), known)

    try:
        return str(Repository().push_to_hub(repo_id, **options))
    except MultiQuantError:
        raise
    except (OSError, ValueError) as error:  # the Hub's own errors are of these kinds
        raise HubError(f"push_to_hub: {repo_id} was not uploaded: {error}") from error


def from_pretrained(
    name: str | os.PathLike[str],
    *,
    model: nn.Module | None = None,
    trainable: bool = False,
    revision: str | None = None,
    **download: Any,
) -> MultiQuantNet:
    """See `MultiQuantNet.from_pretrained`."""
    if os.path.isdir(name):
        path = Path(name) / WEIGHTS
        if not path.is_file():
            raise HubError(f"from_pretrained: expected {WEIGHTS} in the folder {name}, found none")
        return load_packed(path, model, trainable=trainable)
    path = Path(_downloaded(str(name), revision, download))
    return load_packed(path, model, trainable=trainable)


def _downloaded(repo_id: str, revision: str | None, download: dict[str, Any]) -> str:
    hub = _huggingface_hub()
    try:
        return str(hub.hf_hub_download(repo_id, WEIGHTS, revision=revision, **download))
    except (OSError, ValueError) as error:  # the Hub's own errors are of these kinds
        raise HubError(
            f"from_pretrained: expected a folder, or a repository of the Hub that holds {WEIGHTS}, "
            f"got {repo_id!r}: {error}"
        ) from error


def _huggingface_hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise HubError(
            f"the Hub needs the package huggingface_hub, which cannot be imported ({error}); "
            'pip install "brevitas-multiquant[hub]"'
        ) from error
    return huggingface_hub


def _write(net: MultiQuantNet, folder: Path, details: _Details) -> None:
    save_packed(net, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(_config(net, details), indent=2) + "\n")
    costs = cost(net)
    plotted = _plot(costs, details.accuracy, folder / PLOT)
    (folder / CARD).write_text(_card(net, costs, details, plotted))


def _config(net: MultiQuantNet, details: _Details) -> dict[str, Any]:
    return {
        "library_name": LIBRARY,
        "library_version": __version__,
        "architecture": None if net.source is None else net.source.to_dict(),
        "multiquant": net.config.to_dict(),
        "input_shape": None if net.input_shape is None else list(net.input_shape),
        "top1": None if details.accuracy is None else {str(b): v for b, v in _rows(details)},
    }


def _rows(details: _Details) -> list[tuple[int, float]]:
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
    axes.set(xlabel="bit operations an image (GBitOPs)", ylabel="top-1 accuracy (%)")
    axes.margins(x=0.15, y=0.25)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    return True


_EDGES = {"paper": "a float", "finn": "an 8-bit"}
"""Profile -> what stem and classifier are."""


def _card(net: MultiQuantNet, costs: Cost, details: _Details, plotted: bool) -> str:
    name = "the network" if net.source is None else net.source.name
    measured = "" if details.dataset is None else f" on {details.dataset}"
    plot = f"\n![Top-1 accuracy over bit operations]({PLOT})\n" if plotted else ""
    return f"""---
{_metadata(details)}---

# {name} at {", ".join(map(str, net.bits))} bits

One network that runs at every bit-width, made with
[`{LIBRARY}`](https://pypi.org/project/brevitas-multiquant) after
[MultiQuant]({PAPER}): branches with 2-bit weights share {_EDGES[net.config.profile]} stem and
classifier, and the bit-width of the activations is chosen at run time.
Weights are {net.config.weight_format},
stored in two bits each.

| bits | top-1{measured} | branches | MMACs | GBitOPs | MB |
|---|---|---|---|---|---|
{_table(costs, details)}
All bit-widths together take {costs.total_bytes / 1e6:.3f} MB, in `{WEIGHTS}`
{costs.file_bytes / 1e6:.3f} MB; the float model {costs.float_bytes / 1e6:.3f} MB
(1 MB = 1e6 bytes). Counts are for one image of
{"x".join(map(str, (net.input_shape or ())[1:]))}.
{plot}
## How to load it

```python
from brevitas_multiquant import MultiQuantNet

net = MultiQuantNet.from_pretrained("FOLDER OR REPOSITORY"){_own_model(net)}
net.set_active_bits({net.bits[0]})
```

Nothing is unpickled: `{WEIGHTS}` holds packed codes and floats with checksums. For FPGAs and
onnxruntime see `brevitas_multiquant.export`.

## Licence and citation

Weights: {details.license}. Method: Zhong et al., *MultiQuant: Training Once for Multi-bit
Quantization of Neural Networks*, [arXiv 2305.08117]({PAPER}).
"""


def _metadata(details: _Details) -> str:
    lines = [
        f"library_name: {LIBRARY}",
        f"license: {json.dumps(details.license)}",
        "pipeline_tag: image-classification",
        "tags:",
        *(f"- {tag}" for tag in ("quantization", "brevitas", "multiquant", "arxiv:2305.08117")),
    ]
    if details.dataset is not None:
        lines += ["datasets:", f"- {json.dumps(details.dataset)}"]
    return "\n".join(lines) + "\n"


def _table(costs: Cost, details: _Details) -> str:
    rows = []
    for bits, one in costs.items():
        accuracy = "not measured" if details.accuracy is None else f"{details.accuracy[bits]:.2f} %"
        rows.append(
            f"| {bits} | {accuracy} | {len(one.branches)} | {one.macs / 1e6:.1f} "
            f"| {one.bitops / 1e9:.3f} | {one.bytes / 1e6:.3f} |\n"
        )
    return "".join(rows)


def _own_model(net: MultiQuantNet) -> str:
    own = net.source is not None and net.source.library == "own"
    return "  # model=YOUR_FLOAT_MODEL" if own else ""
