"""The network that a command looks at: of a float model by its name, or in a packed file."""

from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from brevitas_multiquant.core.config import MultiQuantConfig
from brevitas_multiquant.core.float_model import ModelSource, source_named
from brevitas_multiquant.core.inferred import infer_input_shape
from brevitas_multiquant.core.method import method_named
from brevitas_multiquant.core.precision import Assignment
from brevitas_multiquant.errors import BitWidthError, MissingPackageError, SourceError
from brevitas_multiquant.methods.convert import multiquantize
from brevitas_multiquant.methods.options import config_from
from brevitas_multiquant.nn import MultiQuantNet
from brevitas_multiquant.recipes.errors import OptionError
from brevitas_multiquant.recipes.options.model import NetworkOptions
from brevitas_multiquant.recipes.options.option import argument, option
from brevitas_multiquant.recipes.options.types import positive
from brevitas_multiquant.storage.packed_net import load_packed
from brevitas_multiquant.storage.shipped import names_shipped

FIXED: dict[str, dict[str, int]] = {"torchvision": {"in_chans": 3}}
"""Options that the models of a library do not take, and what they are there."""


@dataclass(frozen=True)
class FloatModelOptions:
    """Which float model, with random weights, and its images."""

    model: str = argument("MODEL", "a timm name, or torchvision:NAME")
    num_classes: int | None = option(type=positive, metavar="N", help="default: the model's own")
    img_size: int | None = option(
        type=positive, metavar="PIXELS", help="height and width (default: the model's own)"
    )
    in_chans: int | None = option(
        type=positive, metavar="N", help="channels of the images (default: the model's own)"
    )

    def build(self) -> nn.Module:
        """The model.

        Raises:
            OptionError: an unknown name, or an option that the model does not take.
            MissingPackageError: its library is not installed.
        """
        try:
            return self.source.build()
        except SourceError as error:
            lacks = isinstance(error.__cause__, ImportError)
            is_folder = "; a folder of that name is no packed file: name the one in it"
            hint = is_folder if Path(self.model).is_dir() else ""
            raise (MissingPackageError if lacks else OptionError)(f"{error}{hint}") from error

    @property
    def source(self) -> ModelSource:
        """How the model is built.

        Raises:
            SourceError: an unknown library, or an option that its models do not take.
        """
        asked = {"num_classes": self.num_classes, "in_chans": self.in_chans}
        given = {name: value for name, value in asked.items() if value is not None}
        source = source_named(self.model, given)
        for name, only in FIXED.get(source.library, {}).items():
            if given.pop(name, only) != only:
                flag = f"--{name.replace('_', '-')} {asked[name]}"
                raise SourceError(
                    f"{flag}: {source.library} builds models with {only} alone: leave it out, or "
                    "take a model of timm"
                )
        return replace(source, kwargs=given)

    def shape_for(self, model: nn.Module) -> tuple[int, ...]:
        """(1, C, H, W) that was asked for; what was not asked for is as the model declares it.

        Of videos (1, C, T, H, W).
        """
        _, channels, *size = infer_input_shape(model)
        if self.in_chans is not None:
            channels = self.in_chans
        if self.img_size is not None:
            *frames, _, _ = size
            size = [*frames, self.img_size, self.img_size]
        return (1, channels, *size)


@dataclass(frozen=True)
class LookedAtOptions(FloatModelOptions):
    """The model or packed file that is looked at, and assignments besides."""

    model: str = argument("MODEL", "a timm name, torchvision:NAME, or a packed file or zoo:NAME")
    assignment: list[str] = option(
        [],
        nargs="+",
        metavar="FILE",
        help="JSON or YAML: bits for each site (Assignment.save); it is looked at too, or is what "
        "the network of --method individual has",
    )
    json: bool = option(False, help="print one JSON document and nothing else")


def network_of(
    options: LookedAtOptions, network: NetworkOptions
) -> tuple[MultiQuantNet, list[Assignment]]:
    """The network, and assignments to look at besides.

    Raises:
        OptionError: options of a network that is made, beside a packed file.
        MultiQuantError: an unknown model, one that cannot be converted, a file that cannot be
            read, or assignments that cannot.
    """
    assignments = [Assignment.load(path) for path in options.assignment]
    if is_packed(options.model):
        _refuse_beside_file(options, network)
        return load_packed(options.model), assignments
    own = None
    if assignments and "assignment" in method_named(network.method).options:
        own, *more = assignments
        if more:
            raise BitWidthError(
                f"--assignment: expected one file with --method {network.method}, whose network "
                f"has it for good, got {len(assignments)}"
            )
        network, assignments = replace(network, bits=[own.bits]), []
    config: MultiQuantConfig = replace(config_from(network), assignment=own)
    model = options.build()
    shape = options.shape_for(model)
    return multiquantize(model, config=config, input_shape=shape, check=False), assignments


def is_packed(model: str) -> bool:
    """Whether a word names a file instead of a model."""
    return names_shipped(model) or Path(model).is_file() or model.endswith(".safetensors")


def _refuse_beside_file(options: LookedAtOptions, network: NetworkOptions) -> None:
    made = FloatModelOptions(options.model)
    given = [name for name, value in vars(made).items() if getattr(options, name) != value]
    given += [
        name
        for name, value in vars(NetworkOptions(profile=network.profile)).items()
        if getattr(network, name) != value
    ]
    if given:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise OptionError(
            f"{flags}: expected a model's name, got {options.model}, which has its own"
        )


def title_of(options: LookedAtOptions, net: MultiQuantNet) -> str:
    """Name and images in one phrase."""
    shape = "x".join(map(str, net.input_shape or ()))
    return f"{options.model} at {shape}"
