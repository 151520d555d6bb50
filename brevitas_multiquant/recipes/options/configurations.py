"""Configurations that come with the package, by name."""

from difflib import get_close_matches
from pathlib import Path

import brevitas_multiquant.recipes
from brevitas_multiquant.recipes.errors import MissingFileError

FOLDER = Path(brevitas_multiquant.recipes.__path__[0]) / "configs"


def shipped() -> dict[str, Path]:
    """Name -> file.

    Example:
        >>> shipped()["digits_resnet8"].name
        'digits_resnet8.yaml'
    """
    return {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}


def find_configuration(config: str) -> Path:
    """The file that ``-c`` names: a path, or where there is no such file a shipped one by name.

    Raises:
        MissingFileError: neither; names the shipped ones that come near.
    """
    path, known = Path(config), shipped()
    if path.is_file():
        return path
    name = path.name.removesuffix(".yaml")
    if config in (name, f"{name}.yaml") and name in known:
        return known[name]
    near = get_close_matches(name, known, cutoff=0.75)
    hint = f"did you mean {' or '.join(near)}, which come with the package?"
    raise MissingFileError(
        f"expected a YAML file of options at {path}, found none; "
        + (hint if near else f"those that come with the package: {', '.join(known)}")
    )
