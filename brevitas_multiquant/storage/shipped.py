"""Trained networks that come with the package, by name: ``zoo:NAME``."""

import os
from pathlib import Path

from brevitas_multiquant.errors import PackedFileError, did_you_mean

PREFIX = "zoo:"
FOLDER = Path(__file__).parent / "zoo"


def shipped_networks() -> dict[str, Path]:
    """Name -> packed file of each trained network that comes with the package.

    ``load_packed("zoo:NAME")``, ``MultiQuantNet.from_pretrained("zoo:NAME")`` and the command line
    read them: ``brevitas-multiquant predict zoo:NAME IMAGE``.

    Example:
        >>> all(path.suffix == ".safetensors" for path in shipped_networks().values())
        True
    """
    return {path.stem: path for path in sorted(FOLDER.glob("*.safetensors"))}


def names_shipped(path: str | os.PathLike[str]) -> bool:
    """Whether a word asks for a network that comes with the package.

    Example:
        >>> names_shipped("zoo:cifar10_resnet8"), names_shipped("net.safetensors")
        (True, False)
    """
    return str(path).startswith(PREFIX)


def packed_path(path: str | os.PathLike[str]) -> Path:
    """The file that ``zoo:NAME`` stands for; any other path as it is.

    Raises:
        PackedFileError: no network of that name; names those that there are.

    Example:
        >>> packed_path("net.safetensors").name
        'net.safetensors'
    """
    if not names_shipped(path):
        return Path(path)
    name, known = str(path).removeprefix(PREFIX), shipped_networks()
    if name not in known:
        listed = ", ".join(f"{PREFIX}{one}" for one in known) or "none"
        raise PackedFileError(
            f"{path}: expected a network that comes with the package, of which there are: {listed}"
            f"{did_you_mean(name, known)}"
        )
    return known[name]
