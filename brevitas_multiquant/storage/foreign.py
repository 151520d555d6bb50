"""What a file is that was taken for a packed one, and what to do about it."""

from collections.abc import Iterable
from pathlib import Path

from brevitas_multiquant.errors import PackedFileError

PACKED = "a packed network, as best.safetensors of a run or what save_packed writes"
OF_RUNS = ("best.safetensors", "last.safetensors", "model.safetensors")
"""Names that packed files have in the folders of runs and of the Hub."""

SIGNATURES = {
    b"\x89PNG": "an image",
    b"\xff\xd8\xff": "an image",
    b"PK\x03\x04": "a file of torch, or a zip",
    b"\x80": "a pickle, as old files of torch are",
}
"""How files of a kind begin."""

SUFFIXES = {".onnx": "an ONNX graph", ".yaml": "YAML", ".yml": "YAML", ".json": "JSON"}


def require_packed_file(path: Path) -> None:
    """Check that there is a file.

    Raises:
        PackedFileError: there is none; names the packed files of a folder.
    """
    if path.is_file():
        return
    if not path.is_dir():
        raise PackedFileError(f"expected a packed file at {path}, found none")
    inside = [str(path / name) for name in OF_RUNS if (path / name).is_file()]
    advice = f"take {' or '.join(inside)}" if inside else "it holds none"
    raise PackedFileError(f"expected a packed file at {path}, found a folder: {advice}")


def kind_of(path: Path) -> str | None:
    """What a file is, where it is no safetensors file at all.

    Example:
        >>> kind_of(Path("net.onnx"))
        'an ONNX graph'
    """
    if path.suffix.lower() in SUFFIXES:
        return SUFFIXES[path.suffix.lower()]
    with open(path, "rb") as file:
        start = file.read(8)
    if not start:
        return "an empty file"
    if path.suffix == ".safetensors":  # a damaged one, which begins with any number
        return None
    return next((kind for first, kind in SIGNATURES.items() if start.startswith(first)), None)


def without_header(path: Path, names: Iterable[str]) -> PackedFileError:
    """What is raised for a safetensors file that is not packed.

    Args:
        path: of the file.
        names: of its tensors.
    """
    if any(name.startswith("net.") for name in names):
        what = (
            f"a checkpoint of a run, as it seems: take best.safetensors or last.safetensors beside "
            f"it, or go on with --resume {path.parent}"
        )
    else:
        what = (
            "other tensors, as of a float network: brevitas-multiquant train "
            f"--initial-checkpoint {path} starts from those"
        )
    return PackedFileError(f"{path}: no header of brevitas_multiquant in it; it holds {what}")
