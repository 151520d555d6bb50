"""The network that the options ask for."""

from dataclasses import replace

import timm
import torch
import torchvision
from torch import Tensor, nn

from brevitas_multiquant import multiquantize
from brevitas_multiquant.core.config import MultiQuantConfig
from brevitas_multiquant.core.float_model import ModelSource, source_named
from brevitas_multiquant.core.precision import Assignment
from brevitas_multiquant.errors import SourceError
from brevitas_multiquant.methods.options import config_from
from brevitas_multiquant.recipes.errors import MissingFileError, OptionError
from brevitas_multiquant.recipes.network.drop_path import (
    OF_LIBRARY,
    asked_in,
    no_drop_path,
    require_drop_path,
)
from brevitas_multiquant.recipes.network.initial import load_initial, require_file
from brevitas_multiquant.recipes.network.multi_branch import IMAGE_CHANNELS, MultiBranch
from brevitas_multiquant.recipes.network.published import require_published
from brevitas_multiquant.recipes.network.trainee import Trainee
from brevitas_multiquant.recipes.options.model import ModelOptions


def model_source(options: ModelOptions, num_classes: int) -> ModelSource:
    """Library, name and arguments of the float model that the options ask for.

    Raises:
        OptionError: an unknown library, or arguments that other options or the images decide.
    """
    given = dict(options.model_kwargs)
    if "num_classes" in given:
        raise OptionError(
            f"--model-kwargs num_classes={given['num_classes']}: expected it as --num-classes"
        )
    if given.get("in_chans", IMAGE_CHANNELS) != IMAGE_CHANNELS:
        raise OptionError(
            f"--model-kwargs in_chans={given['in_chans']}: expected {IMAGE_CHANNELS}, the channels "
            "of the images that the recipes read, grey ones too"
        )
    try:
        source = source_named(options.model, {**given, "num_classes": num_classes})
    except SourceError as error:
        raise OptionError(f"--model {options.model}: {error}") from error
    if options.drop_path is None:
        return source
    argument = OF_LIBRARY[source.library].argument
    if argument in given:
        raise OptionError(
            f"--drop-path {options.drop_path}: expected it once, got --model-kwargs {argument}="
            f"{given[argument]} too"
        )
    return replace(source, kwargs={**source.kwargs, argument: options.drop_path})


def create_float_model(source: ModelSource, pretrained: bool, checkpoint: str | None) -> nn.Module:
    """The float model, with published weights or those of a file where asked for.

    Raises:
        OptionError: an unknown model, or arguments or weights that it does not take.
        MissingFileError: no such checkpoint, or published weights that cannot be reached.
    """
    if checkpoint is not None:
        require_file(checkpoint)
    try:
        source.check()
        if pretrained:
            require_published(source)
        if not pretrained:
            model = source.build()
        elif source.library == "torchvision":
            model = torchvision.models.get_model(source.name, weights="DEFAULT", **source.kwargs)
        else:
            model = timm.create_model(source.name, pretrained=True, **source.kwargs)
    except MissingFileError:
        raise
    except (KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        if asked_in(source) and OF_LIBRARY[source.library].argument in str(error):
            raise no_drop_path(source) from error
        raise OptionError(
            f"--model {source.name}: {source.library} cannot create it with {source.kwargs}"
            f"{' and published weights' if pretrained else ''}: {error}"
        ) from error
    require_drop_path(model, source)
    if checkpoint is not None:
        load_initial(model, checkpoint)
    return model


def create_network(options: ModelOptions, num_classes: int, img_size: int, seed: int) -> Trainee:
    """The network to train: multi-branch, or with ``--float`` the float model itself.

    Raises:
        OptionError: as of `create_float_model`; a model that is no classifier.
    """
    source = model_source(options, num_classes)
    model = create_float_model(source, options.pretrained, options.initial_checkpoint)
    _require_logits(model, source.name, img_size)
    if options.float:
        return Trainee(model)
    return MultiBranch(
        multiquantize(
            model,
            config=_config(options),
            branch_init=options.branch_init or ("copy" if options.trained else "shuffle"),
            stem=options.stem,
            head=options.head,
            input_shape=(1, IMAGE_CHANNELS, img_size, img_size),
            source=source,
            seed=seed,
        )
    )


def _require_logits(model: nn.Module, name: str, img_size: int) -> None:
    """Refuse maps, features and several outputs before anything is prepared."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            output = model.eval()(torch.zeros(1, IMAGE_CHANNELS, img_size, img_size))
    except Exception:  # the conversion says why
        return
    finally:
        for module, training in modes:
            module.training = training
    if isinstance(output, Tensor) and output.dim() == 2:
        return
    got = f"a tensor {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
    raise OptionError(
        f"--model {name}: expected a classifier, logits (N, classes), got {got} for an image: "
        "'brevitas-multiquant segment' trains networks that tell the class of each pixel, and a "
        "loop of your own others (docs/own_cnn.md)"
    )


def _config(options: ModelOptions) -> MultiQuantConfig:
    if options.assignment is None:
        return config_from(options)
    own = Assignment.from_dict(options.assignment)
    return replace(config_from(replace(options, bits=[own.bits])), assignment=own)


def choose_num_classes(asked: int | None, found: int) -> int:
    """``--num-classes`` where asked, or as many as the training images have.

    Raises:
        OptionError: fewer asked for than the images have, a single one, or none known.
    """
    if (asked or found) == 1:
        raise OptionError(
            "--num-classes: expected two classes or more, got 1: the cross entropy of a single "
            "output is 0 whatever the network does"
        )
    if asked is None and found == 0:
        raise OptionError("--num-classes: this data set does not tell its classes; give the number")
    if asked is not None and asked < found:
        raise OptionError(
            f"--num-classes: expected at least the {found} classes of the training images, "
            f"got {asked}"
        )
    return asked or found
