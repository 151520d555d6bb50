"""How a float model can be built again by name: what a packed file needs to know."""

import importlib
import inspect
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from brevitas_multiquant.errors import SourceError, did_you_mean

LIBRARIES = ("timm", "torchvision", "own")


@dataclass(frozen=True)
class ModelSource:
    """Library, name and arguments of a float model, and where it was cut.

    Args:
        library: ``"timm"``, ``"torchvision"``, or ``"own"`` for a model of the user's, who
            then passes it to `brevitas_multiquant.load_packed`.
        name: what the library's ``create_model`` or ``get_model`` takes.
        kwargs: further arguments, plain values only.
        stem: ``stem`` option of `brevitas_multiquant.multiquantize`.
        head: its ``head`` option.
        keep: its ``keep`` option, with what the self-check added to it.

    Example:
        >>> source = ModelSource("torchvision", "resnet18", {"num_classes": 10})
        >>> source.build().fc.out_features
        10
    """

    library: str
    name: str
    kwargs: dict[str, Any] = field(default_factory=dict)
    stem: str | None = None
    head: str | None = None
    keep: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values = asdict(self)
        keep = values.pop("keep")
        return {**values, "keep": list(keep)} if keep else values

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "ModelSource":
        """The inverse of `to_dict`.

        Raises:
            SourceError: keys missing or unknown.
        """
        expected = {"library", "name", "kwargs", "stem", "head"}
        if not isinstance(data, Mapping) or {*data} - {"keep"} != expected:
            raise SourceError(f"model source: expected the keys {sorted(expected)}, got {data!r}")
        keep = data.get("keep", [])
        if not isinstance(keep, list) or not all(isinstance(name, str) for name in keep):
            raise SourceError(f"model source: expected names of modules to keep, got {keep!r}")
        return cls(**{**data, "keep": tuple(keep)})

    def check(self, largest_number: int | None = None) -> None:
        """Refuse what no file may ask for: arguments that load something, or are not plain.

        Args:
            largest_number: that a whole number among the arguments may be.

        Raises:
            SourceError: naming the argument.
        """
        if self.library not in LIBRARIES:
            raise SourceError(
                f"model source: expected a library of {list(LIBRARIES)}, got {self.library!r}"
            )
        if not isinstance(self.name, str) or not isinstance(self.kwargs, dict):
            raise SourceError(
                "model source: expected a name and a mapping of arguments that load no weights, "
                f"got {self.kwargs!r} for {self.name!r}"
            )
        loading = sorted(key for key in self.kwargs if _LOADS.fullmatch(str(key)))
        if loading:
            raise SourceError(
                f"model source: expected arguments that load no weights, got {loading[0]!r} "
                f"in {self.kwargs!r}"
            )
        for key, value in self.kwargs.items():
            _check_plain(key, value, largest_number)

    def build(self) -> nn.Module:
        """The float model with random weights; nothing is downloaded.

        Raises:
            SourceError: an unknown library or name, a library that is not installed, or arguments
                that it does not take.
        """
        self.check()
        try:
            return _BUILDERS[self.library](self.name, self.kwargs)
        except SourceError:
            raise
        except ImportError as error:
            raise SourceError(
                f"{self.library} is needed to build {self.name}: pip install {self.library}"
            ) from error
        except Exception as error:
            raise SourceError(
                f"{self.library} cannot build {self.name!r} with {self.kwargs}: {error}"
            ) from error


_LOADS = re.compile(r"pretrained\w*|weights\w*|checkpoint_path|cache_dir|device|dtype")
"""Arguments that load weights, from disk or network, or put them elsewhere."""


PREFIXES = {"": "timm", "timm": "timm", "torchvision": "torchvision", "tv": "torchvision"}
"""What stands before the name of a model -> the library that has it."""


def source_named(text: str, kwargs: Mapping[str, Any] | None = None) -> ModelSource:
    """The model that a user names, as ``resnet18``, ``timm:resnet18`` or ``torchvision:resnet18``.

    Args:
        text: the name; ``tv:`` and a slash in place of the colon are older spellings.
        kwargs: arguments of its builder.

    Raises:
        SourceError: no such library.

    Example:
        >>> source_named("torchvision:resnet18").library, source_named("hf-hub:a/b").name
        ('torchvision', 'hf-hub:a/b')
    """
    library, separator, name = text.rpartition(":")
    if library == "hf-hub":
        return ModelSource("timm", text, dict(kwargs or {}))
    if not separator and text.partition("/")[0] in PREFIXES:
        library, _, name = text.partition("/")
    if library not in PREFIXES:
        raise SourceError(
            f"model: expected a timm model name or torchvision:NAME, got {text!r}"
            f"{did_you_mean(library, PREFIXES)}"
        )
    return ModelSource(PREFIXES[library], name, dict(kwargs or {}))


def _check_plain(key: str, value: Any, largest: int | None, depth: int = 3) -> None:
    """Numbers, names, and lists of lists of them."""
    if isinstance(value, (list, tuple)) and depth:
        for item in value:
            _check_plain(key, item, largest, depth - 1)
    elif value is not None and not isinstance(value, (bool, int, float, str)):
        raise SourceError(
            f"model source: expected numbers, names or short lists of them, got {key}="
            f"{type(value).__name__}; a model with other arguments is one of your own: "
            'ModelSource("own", NAME)'
        )
    elif isinstance(value, int) and largest is not None and abs(value) > largest:
        raise SourceError(
            f"model source: expected a model of about the size of its file, got {key}={value}"
        )


def _build_timm(name: str, kwargs: dict[str, Any]) -> nn.Module:
    import timm

    for own in ("cifar_networks", "segmentation_networks"):
        importlib.import_module(f"brevitas_multiquant.core.{own}")
    if not timm.is_model(name):  # timm would look for "hf-hub:..." in the network
        raise SourceError(
            f"timm cannot build {name!r}: it has no model of that name"
            f"{did_you_mean(name, timm.list_models())}"
        )
    return timm.create_model(name, pretrained=False, **kwargs)


def _build_own(name: str, kwargs: dict[str, Any]) -> nn.Module:
    raise SourceError(f"{name} is a model of your own: pass it as load_packed(path, model=...)")


def _build_torchvision(name: str, kwargs: dict[str, Any]) -> nn.Module:
    from torchvision import models

    kinds = (models, models.segmentation, models.video)
    known = [one for kind in kinds for one in models.list_models(module=kind)]
    if name.lower() not in known:
        raise SourceError(
            f"torchvision cannot build {name!r}: no model of it for classes, segmentation or video"
            f"{did_you_mean(name, known)}"
        )
    taken = inspect.signature(models.get_model_builder(name)).parameters
    loads = {option: None for option in ("weights", "weights_backbone") if option in taken}
    return models.get_model(name, **loads, **kwargs)


_BUILDERS = {"timm": _build_timm, "torchvision": _build_torchvision, "own": _build_own}
