"""Packed files damaged in every way that a disk, a bug or an enemy may think of, by a seed.

`mutated` gives the bytes of the n-th file. None of them may crash or hang the reader, take memory
for what it only claims, run code, or reach the network; each is refused by a named error, or gives
the network that was saved.
"""

import json
import random
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from tests.packed import KEY, put_together, sign_arrays, sign_header, take_apart

HOSTILE_NAMES = (
    "../../etc/passwd",
    "/etc/passwd",
    "hf-hub:timm/resnet18.a1_in1k",
    "hf_hub:timm/resnet18.a1_in1k",
    "local-dir:/tmp",
    "fasterrcnn_resnet50_fpn",
    "deeplabv3_resnet50",
    "resnet18",
    "",
    "x" * 100_000,
    "\x00\x1b[2J",
    7,
    None,
    [],
)
HOSTILE_KWARGS = (
    {"pretrained": True},
    {"pretrained_cfg": {"hf_hub_id": "timm/resnet18.a1_in1k"}},
    {"pretrained_cfg_overlay": {"file": "/etc/passwd"}},
    {"checkpoint_path": "/etc/passwd"},
    {"weights": "DEFAULT"},
    {"weights_backbone": "DEFAULT"},
    {"cache_dir": "/etc"},
    {"device": "cuda"},
    {"num_classes": 10**12},
    {"num_classes": 10**6},
    {"num_classes": 9},
    {"num_classes": -1},
    {"num_classes": 0},
    {"num_classes": "10"},
    {"in_chans": 10**9},
    {"in_chans": 4},
    {"blocks": 10**9},
    {"blocks": 3},
    {"drop_rate": 2.0},
    {"no_such_argument": 1},
    {"num_classes": [[[[[[1]]]]]]},
    [],
    None,
    "num_classes",
)
HOSTILE_SHAPES = (
    [1, 3, 10**9, 10**9],
    [1, 3, 2**62, 2**62],
    [1, 3, 10**40, 1],
    [10**9, 3, 32, 32],
    [1, 0, 32, 32],
    [1, -3, 32, 32],
    [1, 3, 1, 1],
    [1, 4, 32, 32],
    [1, 3, 32.5, 32],
    [True, 3, 32, 32],
    [1, 3, 32],
    "32",
    {"h": 32},
)
HOSTILE_VALUES = (None, True, -1, 0, 1e308, 10**40, "", "2", [], {}, [[]], {"2": [0]}, "\x00")


def _flip_bits(data: bytes, rng: random.Random) -> bytes:
    """A few bits anywhere, or in the header, where they do more harm."""
    changed = bytearray(data)
    end = rng.choice([len(data), 8 + struct.unpack("<Q", data[:8])[0]])
    for _ in range(rng.choice([1, 1, 1, 2, 8])):
        changed[rng.randrange(end)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def _extend(data: bytes, rng: random.Random) -> bytes:
    return data + rng.randbytes(rng.randrange(1, 4096))


def _splice(data: bytes, rng: random.Random) -> bytes:
    """A piece of the file over another piece of it."""
    size = rng.randrange(1, 2000)
    source, target = rng.randrange(len(data) - size), rng.randrange(len(data) - size)
    return data[:target] + data[source : source + size] + data[target + size :]


def _other_kinds(data: bytes, rng: random.Random) -> bytes:
    pickled = b"\x80\x04c__builtin__\neval\n(S'1/0'\ntR."
    return rng.choice([b"", b"\x00" * 8, b"{}", b"PK\x03\x04", pickled, rng.randbytes(len(data))])


def _claim_sizes(data: bytes, rng: random.Random) -> bytes:
    """The container's own header: lengths, shapes and places that are not there."""
    length = struct.unpack("<Q", data[:8])[0]
    if rng.random() < 0.3:
        return struct.pack("<Q", rng.choice([0, 1, length - 1, 2**40, 2**63])) + data[8:]
    tensors = json.loads(data[8 : 8 + length])
    name = rng.choice([key for key in tensors if key != "__metadata__"])
    entry = tensors[name]
    start, end = entry["data_offsets"]
    entry.update(
        rng.choice(
            [
                {"shape": [2**40]},
                {"shape": [2**62, 2**62]},
                {"shape": [-1]},
                {"data_offsets": [start, end + 10**12]},
                {"data_offsets": [0, end - start]},
                {"data_offsets": [end, start]},
                {"dtype": rng.choice(["F64", "BF16", "I64", "F8_E4M3", "BOOL", "X"])},
                {"data_offsets": [0, 10**12], "shape": [10**12], "dtype": "U8"},
            ]
        )
    )
    return _container(tensors, data[8 + length :])


def _name_twice(data: bytes, rng: random.Random) -> bytes:
    """One name for two tensors, as JSON allows."""
    length = struct.unpack("<Q", data[:8])[0]
    tensors = json.loads(data[8 : 8 + length])
    first, second = rng.sample([key for key in tensors if key != "__metadata__"], 2)
    text = json.dumps(tensors).replace(f'"{first}": {{', f'"{second}": {{', 1)
    return struct.pack("<Q", len(text)) + text.encode() + data[8 + length :]


def _container(tensors: dict[str, Any], body: bytes) -> bytes:
    text = json.dumps(tensors).encode()
    return struct.pack("<Q", len(text)) + text + body


def _deep_json(data: bytes, rng: random.Random) -> bytes:
    length = struct.unpack("<Q", data[:8])[0]
    tensors = json.loads(data[8 : 8 + length])
    depth = rng.choice([50, 2000, 100_000])
    whole = rng.choice(
        ["[" * depth, "[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth]
    )
    tensors["__metadata__"][KEY] = whole
    return _container(tensors, data[8 + length :])


def _swap_arrays(header: dict, arrays: dict, rng: random.Random) -> None:
    first, second = rng.sample(sorted(arrays), 2)
    arrays[first], arrays[second] = arrays[second], arrays[first]


def _copy_array(header: dict, arrays: dict, rng: random.Random) -> None:
    name = rng.choice(sorted(arrays))
    tricks = ["../../x.codes", "/x.floats", "branches.9.codes", "stem", "", "branches.0.codes "]
    arrays[rng.choice([*tricks, *arrays])] = arrays[name].copy()


def _drop_array(header: dict, arrays: dict, rng: random.Random) -> None:
    del arrays[rng.choice(sorted(arrays))]


def _resize_array(header: dict, arrays: dict, rng: random.Random) -> None:
    name = rng.choice(sorted(arrays))
    arrays[name] = np.resize(arrays[name], rng.choice([0, 1, arrays[name].size + 1]))


def _retype_array(header: dict, arrays: dict, rng: random.Random) -> None:
    name = rng.choice(sorted(arrays))
    kind = rng.choice([np.float64, np.float16, np.int8, np.uint8, np.int64, np.bool_])
    with np.errstate(all="ignore"):
        arrays[name] = arrays[name].astype(kind)


def _poison_array(header: dict, arrays: dict, rng: random.Random) -> None:
    """Values that are not numbers, or beyond all of them; only what is not can be refused."""
    name = rng.choice([key for key in sorted(arrays) if not key.endswith(".codes")])
    arrays[name][rng.randrange(arrays[name].size)] = rng.choice([np.nan, np.inf, -np.inf])


def _hostile_source(header: dict, arrays: dict, rng: random.Random) -> None:
    key, values = rng.choice([("name", HOSTILE_NAMES), ("kwargs", HOSTILE_KWARGS)])
    header["source"][key] = rng.choice(values)
    header["source"]["library"] = rng.choice(["timm", "timm", "torchvision"])


def _hostile_shape(header: dict, arrays: dict, rng: random.Random) -> None:
    header["input_shape"] = rng.choice(HOSTILE_SHAPES)


def _hostile_value(header: dict, arrays: dict, rng: random.Random) -> None:
    """Anything in the place of any value of the header."""
    place: Any = header
    while True:
        key = rng.choice(sorted(place))
        if not isinstance(place[key], dict) or not place[key] or rng.random() < 0.2:
            break
        place = place[key]
    place[key] = rng.choice(HOSTILE_VALUES)


def _version(header: dict, arrays: dict, rng: random.Random) -> None:
    rng.choice([header, header["config"]])["version"] = rng.choice([0, 2, -1, 1.5, "1", None, [1]])


BYTES = (_flip_bits, _cut, _extend, _splice, _other_kinds, _claim_sizes, _name_twice, _deep_json)
PARTS = (
    _swap_arrays,
    _copy_array,
    _drop_array,
    _resize_array,
    _retype_array,
    _poison_array,
    _hostile_source,
    _hostile_source,
    _hostile_shape,
    _hostile_value,
    _version,
)


def mutated(path: Path, other: Path, target: Path, seed: int) -> bool:
    """Write the file of a seed to ``target``.

    Args:
        path: a packed file.
        other: a packed file of another network.
        target: where the damaged one goes.
        seed: which one.

    Returns:
        Whether all checksums fit, as those of an enemy do: then a header that describes another
        network makes it a file of that network, and not a damaged one.
    """
    rng = random.Random(seed)
    kind: Callable[..., Any] = rng.choice([*BYTES, *PARTS, "other"])  # type: ignore[list-item]
    if kind in BYTES:
        target.write_bytes(kind(path.read_bytes(), rng))
        return False
    header, arrays = take_apart(path)
    signed = rng.random() < 0.7
    if kind == "other":
        arrays = take_apart(other)[1]
    else:
        kind(header, arrays, rng)
    if signed:
        sign_arrays(header, arrays) if kind is not _hostile_value else None
        sign_header(header)
    put_together(target, header, arrays)
    return signed


FORBIDDEN_EVENTS = ("pickle.find_class", "socket.", "subprocess.", "os.system", "os.exec", "exec*")
_watched: list[list[str]] = []


def _watch(event: str, arguments: tuple) -> None:
    if _watched and event.startswith(FORBIDDEN_EVENTS):
        _watched[-1].append(f"{event} {arguments}")


@contextmanager
def watching() -> Iterator[list[str]]:
    """What happens inside that reading a file must never do: unpickling, network, processes."""
    if _watch not in _hooks:
        sys.addaudithook(_watch)  # there is no way to take it out again: it looks away instead
        _hooks.append(_watch)
    _watched.append([])
    try:
        yield _watched[-1]
    finally:
        _watched.pop()


_hooks: list[Callable[..., None]] = []
