"""The page of trained networks that come with the package, written from their files."""

from collections.abc import Mapping
from pathlib import Path

from brevitas_multiquant import MultiQuantNet, cost, load_packed
from brevitas_multiquant.errors import MultiQuantError
from brevitas_multiquant.storage.shipped import PREFIX

TITLE = "# Trained networks"
TEXT = """\
They come with the package: `load_packed("zoo:NAME")`, `MultiQuantNet.from_pretrained("zoo:NAME")`
and the command line read them.

```console
$ brevitas-multiquant predict zoo:{name} IMAGE...
$ brevitas-multiquant export zoo:{name} --format onnx
```

Each file says how images are prepared, its classes, and its accuracy. This page is written from
the files when the site is built; kB are those of a bit-width alone, and LUTs FINN's estimate for
{fps} frames a second on a {board}, for networks of the profile `finn`."""
HEAD = "| bits | top-1 % | GBitOPs | kB | FINN LUTs |\n|---:|---:|---:|---:|---:|"
BOARD, FPS = "ZCU104", 1000
NOT_THERE = "-"


def networks_page(networks: Mapping[str, Path]) -> str:
    """Markdown: a section for each network, with a row for each bit-width.

    Args:
        networks: name -> packed file.
    """
    if not networks:
        return f"{TITLE}\n\nNone come with this version."
    text = TEXT.format(name=next(iter(networks)), fps=FPS, board=BOARD)
    sections = [_section(name, path) for name, path in networks.items()]
    return "\n\n".join([TITLE, text, *sections])


def _section(name: str, path: Path) -> str:
    net, size = load_packed(path), path.stat().st_size
    parts = [f"## {PREFIX}{name}", _told(net, size), "\n".join([HEAD, *_rows(net)])]
    if net.config.assignment is not None:
        parts.append(f"```text\n{net.config.assignment}\n```")
    return "\n\n".join(parts)


def _told(net: MultiQuantNet, size: int) -> str:
    """What the file says of itself, in a sentence or two."""
    model = "a network" if net.source is None else f"`{net.source.name}`"
    shape = " x ".join(map(str, (net.input_shape or ())[1:]))
    text = f"{model} of images of {shape}, method {net.config.method}, profile {net.config.profile}"
    text += f"; a file of {size / 1e3:.0f} kB."
    task = net.image_task
    return text if task is None else f"{text} Data set {task.dataset}: {task.protocol}."


def _rows(net: MultiQuantNet) -> list[str]:
    counted, luts = cost(net), _luts(net)
    known = {} if net.image_task is None else net.image_task.accuracy
    rows = []
    for bits, at in counted.items():
        top1 = f"{known[bits]:.2f}" if bits in known else NOT_THERE
        name = str(bits) if net.config.assignment is None else "mixed"
        cells = (name, top1, f"{at.bitops / 1e9:.3f}", f"{at.bytes / 1e3:.0f}")
        rows.append(f"| {' | '.join(cells)} | {luts.get(bits, NOT_THERE)} |")
    return rows


def _luts(net: MultiQuantNet) -> dict[int, str]:
    """Bit-width -> look-up tables of the whole accelerator; none of a network that does not map."""
    if net.config.profile != "finn":
        return {}
    try:
        found = cost(net, model="finn", target_fps=FPS, board=BOARD)
    except MultiQuantError:
        return {}
    return {bits: f"{found[bits].total.luts:,}" for bits in net.bits}
