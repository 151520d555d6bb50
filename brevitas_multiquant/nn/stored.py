"""What a network has in a packed file, in order: what its modules answer (`Member.stored`).

The one list of rows: saving reads them, loading writes them, and what is about to be written is
compared with what a reader would build (`layout_of`).
"""

from collections.abc import Iterator

from torch import fx, nn

from brevitas_multiquant.nn.network import MultiQuantNet
from brevitas_multiquant.quant.entries import Coding, Entry
from brevitas_multiquant.quant.member import answers_of


def parts_of(net: MultiQuantNet) -> Iterator[tuple[str, nn.Module]]:
    """The parts of a network that have arrays of their own, by name."""
    yield "stem", net.stem
    for index, branch in enumerate(net.branches):
        yield f"branches.{index}", branch
    for key, half in net.halves.items():
        yield f"halves.{key}", half
    yield "merge", net.merge
    yield "head", net.head


def entries_of(part: str, root: nn.Module) -> list[Entry]:
    """Every module's share of the four arrays, in a fixed order, ranges first."""
    entries = [
        entry
        for path, module in root.named_modules()
        for entry in answers_of(module).stored(f"{part}.{path}")
        if entry.owner is None
    ]
    return sorted(entries, key=lambda entry: entry.kind != "ranges")  # the rest follows from them


def codings_of(net: MultiQuantNet) -> dict[str, Coding]:
    """Layer -> how its weights are kept in a file, in the order in which they are there."""
    entries = (entry for part in parts_of(net) for entry in entries_of(*part))
    return {
        entry.name.removesuffix(".weight"): entry.coding
        for entry in entries
        if entry.coding is not None
    }


def weights_in_words(net: MultiQuantNet) -> str:
    """Which integers a network's weights are, and how they are kept.

    Example:
        >>> from torchvision.models import resnet18
        >>> from brevitas_multiquant import multiquantize
        >>> net = multiquantize(resnet18(num_classes=10), [2, 4], input_shape=(1, 3, 32, 32))
        >>> weights_in_words(net)
        'odd (-3, -1, 1, 3)'
    """
    codings = list(codings_of(net).values())
    kinds = {(coding.grid, coding.bits) for coding in codings}
    if not kinds:
        return "floats"
    (first, *_) = codings
    if len(kinds) > 1 or not isinstance(first.bits, int):
        average = sum(c.count * c.mean_bits for c in codings) / sum(c.count for c in codings)
        names, most = sorted({c.grid.name for c in codings}), max(c.most_bits for c in codings)
        return f"{', '.join(names)}, of at most {most} bits, {average:.2f} on average"
    if first.is_format:
        return str(first.grid)
    if first.is_float:
        return f"{first.grid.name}, kept as floats, from which every bit-width is rounded"
    more = ", which hold those of every smaller bit-width" if len(net.bits) > 1 else ""
    return f"{first.grid}, {first.bits} bits each{more}"


def layout_of(net: MultiQuantNet) -> dict[str, str]:
    """Module -> what it is and what it has in a file; nothing is read or computed.

    Two networks of one layout read each other's files. What modules print of themselves belongs to
    it: strides, slopes, the eps of a layer norm. Containers, and what does nothing in evaluation
    (dropout), are left out.
    """
    layout = {}
    for part, root in parts_of(net):
        for path, module in root.named_modules():
            name = f"{part}.{path}".rstrip(".")
            if text := _described(name, module):
                layout[name] = text
    return layout


def _described(name: str, module: nn.Module) -> str | None:
    entries = list(answers_of(module).stored(name))
    own = [entry for entry in entries if entry.owner is None]
    stored = ", ".join(
        " ".join([entry.kind, *entry.name[len(name) :].split("."), str(entry.size)])
        for entry in own
    ).replace("  ", " ")
    if any(entry.kind == "norms" for entry in own):  # of whatever type
        return f"a batch norm ({stored})"
    if not entries and (_is_container(module) or _is_inert(module)):
        return None
    options = module.extra_repr().replace("inplace=True", "")
    return f"{type(module).__name__}({options})" + (f" ({stored})" if stored else "")


def _is_container(module: nn.Module) -> bool:
    """Whether it is told by what is in it; Brevitas's own parts are told by their layers."""
    of_brevitas = type(module).__module__.startswith("brevitas.")
    return of_brevitas or isinstance(module, fx.GraphModule) or bool(module._modules)


def _is_inert(module: nn.Module) -> bool:
    """Whether it does nothing in evaluation: dropout by any name, and what stands in for it."""
    return isinstance(module, nn.Identity) or "drop" in type(module).__name__.lower()
