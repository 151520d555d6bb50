"""What a packed file claims, compared with the network that its configuration describes."""

from collections.abc import Mapping
from typing import Any

from brevitas_multiquant.core.packing import Array
from brevitas_multiquant.errors import PackedFileError
from brevitas_multiquant.nn.network import MultiQuantNet
from brevitas_multiquant.nn.stored import codings_of, entries_of, parts_of
from brevitas_multiquant.quant.entries import Coding, Entry


def expected_arrays(net: MultiQuantNet) -> dict[str, list[Entry]]:
    """Array -> the modules that share it, in order."""
    expected: dict[str, list[Entry]] = {}
    for part, module in parts_of(net):
        for entry in entries_of(part, module):
            if entry.size:
                expected.setdefault(f"{part}.{entry.kind}", []).append(entry)
    return expected


def check_sizes(net: MultiQuantNet, arrays: Mapping[str, Array]) -> None:
    """Compare the sizes of arrays with those that a network has.

    Raises:
        PackedFileError: naming the arrays that differ.
    """
    expected = expected_arrays(net)
    sizes = {key: sum(entry.size for entry in entries) for key, entries in expected.items()}
    got = {key: array.size for key, array in arrays.items()}
    if sizes != got:
        differing = sorted(key for key in sizes | got if sizes.get(key) != got.get(key))
        raise PackedFileError(
            "expected arrays of the network in the header, got others: "
            + ", ".join(
                f"{key}: {sizes.get(key, 0)} expected, {got.get(key, 0)} got"
                + _first_and_last(expected.get(key, []))
                for key in differing
            )
        )


def described(codings: Mapping[str, Coding]) -> dict[str, dict[str, Any]]:
    """How each layer's weights are kept, for a header."""
    return {name: coding.to_dict() for name, coding in codings.items()}


def channels_in(header: Mapping[str, Any]) -> dict[str, list[int]]:
    """Layer of the one body -> bits of each of its output channels, where a header has them."""
    weights = header.get("weights")
    if not isinstance(weights, dict):
        return {}
    bits = {name: said.get("bits") for name, said in weights.items() if isinstance(said, dict)}
    lists = {name: own for name, own in bits.items() if isinstance(own, list)}
    return {name.removeprefix("branches.0."): own for name, own in lists.items()}


def check_weights(net: MultiQuantNet, header: Mapping[str, Any]) -> None:
    """Compare what a header says of each layer's weights with what its configuration asks for.

    Raises:
        PackedFileError: naming the first layer that differs.
    """
    expected, got = described(codings_of(net)), header.get("weights")
    if got is None or got == expected:
        return
    names = list({**expected, **got}) if isinstance(got, dict) else list(expected)
    read = got if isinstance(got, dict) else {}
    name = next(name for name in names if expected.get(name) != read.get(name))
    raise PackedFileError(
        f"header: expected the weights of {name} to be kept as {expected.get(name)}, as the "
        f"configuration has it, got {read.get(name)}"
    )


def _first_and_last(entries: list[Entry]) -> str:
    names = [entry.name for entry in entries]
    if len(names) < 2:
        return f" ({names[0]})" if names else ""
    return f" ({names[0]} to {names[-1]})"
