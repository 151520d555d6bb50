"""Tables of a walk, as Markdown, and where they stand in a document."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from integration_tests.models import all_names, zoo
from integration_tests.walking import Line


def summary(lines: Sequence[Line]) -> str:
    """What was walked and what came out, in sentences."""
    cnns = [line for line in lines if line.cnn]
    converted = [line for line in cnns if line.result == "converted"]
    others = [line for line in lines if not line.cnn]
    wrong = [line.model for line in lines if not line.as_expected()]
    settings = Counter((line.bits, line.size) for line in converted)
    (bits, size), _ = settings.most_common(1)[0] if settings else (("", 0), 0)
    seconds = sorted(line.seconds for line in converted) or [0.0]
    return (
        f"{len(cnns)} of the {len(zoo().cnns)} convolutional networks: {len(converted)} converted "
        f"with an equal self-check. {len(others)} of the "
        f"{len(all_names()) - len(zoo().cnns)} others: "
        f"{sum(line.result == 'refused' for line in others)} refused by name. Not as expected: "
        f"{', '.join(wrong) or 'none'}. Most at bits {bits} and images of {size} pixels; median "
        f"{seconds[len(seconds) // 2]:.1f} s on one core."
    )


def table(lines: Iterable[Line]) -> str:
    """The walk by family, as Markdown."""
    families: dict[str, list[Line]] = defaultdict(list)
    for line in lines:
        if line.cnn:
            families[line.family].append(line)
    rows = ["| family | models | converted | layers quantized | half branch | seconds, median |"]
    rows.append("|---|---:|---:|---:|---:|---:|")
    for name, members in sorted(families.items()):
        converted = [line for line in members if line.result == "converted"]
        quantized, layers = (
            sum(getattr(line, what) for line in converted) for what in ("quantized", "layers")
        )
        asked = [line.half_branch for line in converted if line.half_branch]
        seconds = sorted(line.seconds for line in converted)
        middle = f"{seconds[len(seconds) // 2]:.1f}" if seconds else "-"
        share = f"{quantized} of {layers}"
        half = f"{asked.count('yes')} of {len(asked)}" if asked else "-"
        rows.append(f"| {name} | {len(members)} | {len(converted)} | {share} | {half} | {middle} |")
    return "\n".join(rows)


def refusals(lines: Iterable[Line]) -> str:
    """Why models were refused, and how many for each reason, as Markdown."""
    kinds = {
        "attention": "multipl",
        "mixes positions": "add",
        "recurrent or attention module": "attention and recurrence",
        "weights that depend on the input": "CondConv2d",
    }
    counts: Counter[str] = Counter()
    for line in lines:
        if line.result == "refused":
            found = [kind for kind, sign in kinds.items() if sign in line.reason]
            counts[found[-1] if found else line.reason] += 1
    rows = ["| refused because of | models |", "|---|---:|"]
    return "\n".join([*rows, *(f"| {kind} | {count} |" for kind, count in counts.most_common())])


def exports(lines: Iterable[Line]) -> str:
    """Whose QONNX file reproduces the network, and what stands in the way of others."""
    verdicts: dict[str, list[str]] = defaultdict(list)
    for line in lines:
        if line.qonnx:
            verdicts[line.qonnx.replace("|", "/")].append(f"`{line.model}`")
    rows = ["| QONNX file | models | which |", "|---|---:|---|"]
    ordered = sorted(verdicts.items(), key=lambda item: -len(item[1]))
    rows += [f"| {what} | {len(names)} | {', '.join(names)} |" for what, names in ordered]
    return "\n".join(rows)


def write_table(lines: list[Line], document: Path, exported: Sequence[Line] = ()) -> None:
    """Replace what stands between the markers of a document.

    Args:
        lines: of a walk.
        document: Markdown with markers; changed in place.
        exported: lines of a walk with exports, where ``lines`` are of one without.
    """
    parts = {
        "walk": summary(lines),
        "families": table(lines),
        "refusals": refusals(lines),
        "exports": exports(exported or lines),
    }
    write_parts(parts, document)


def write_parts(parts: Mapping[str, str], document: Path) -> None:
    """Replace what stands between the markers that have these names."""
    text = document.read_text()
    for marker, content in parts.items():
        start, end = f"<!-- {marker} -->\n", f"\n<!-- end of {marker} -->"
        before, _, rest = text.partition(start)
        _, _, after = rest.partition(end)
        text = f"{before}{start}{content}{end}{after}"
    document.write_text(text)
