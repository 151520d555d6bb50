"""Float weights from a file of anyone's making: ``--initial-checkpoint``."""

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from brevitas_multiquant.recipes.errors import MissingFileError, OptionError, say
from brevitas_multiquant.recipes.results.state import differences_between

NESTED = ("state_dict_ema", "model_ema", "state_dict", "model")
"""Where training checkpoints keep weights; timm takes a moving average before the last step's."""

PREFIXES = ("module.", "_orig_mod.")
"""What DDP and torch.compile put before every name, and nobody else; others are named, not cut."""

OPTION = "--initial-checkpoint"


def require_file(checkpoint: str) -> None:
    """Check that there is a file, before a model is made for it.

    Raises:
        MissingFileError: there is none.
    """
    if not Path(checkpoint).is_file():
        raise MissingFileError(f"{OPTION}: expected a file, found none at {checkpoint}")


def load_initial(model: nn.Module, checkpoint: str) -> None:
    """Load all weights of a float model; says what it had to look past to find them.

    Raises:
        OptionError: the file holds no weights, or those of another model.
    """
    if checkpoint.lower().endswith((".npz", ".npy")):
        return _load_arrays(model, checkpoint)
    where, weights = _find_weights(_read(checkpoint), checkpoint)
    expected = model.state_dict()
    weights, prefix = strip_prefixes(weights, expected)
    # Norms of old files have no count of batches; torch fills in 0.
    needed = {
        name: value
        for name, value in expected.items()
        if name in weights or not name.endswith("num_batches_tracked")
    }
    if wrong := differences_between(needed, weights):
        raise OptionError(
            f"{OPTION} {checkpoint}: expected the weights of {type(model).__name__}, got others: "
            f"{wrong}. {_advice(needed, weights)}"
        )
    model.load_state_dict(weights)
    found = [f"its {where!r}"] if where else []
    found += [f"names without {prefix!r}"] if prefix else []
    if found:
        say("note", f"{OPTION} {checkpoint}: read {', '.join(found)}")


def strip_prefixes(
    weights: Mapping[str, Any], expected: Mapping[str, Any]
) -> tuple[dict[str, Any], str]:
    """Names without what a wrapper put before them, where it stands before every one.

    Example:
        >>> strip_prefixes({"module._orig_mod.w": 1}, {"w": 1})
        ({'w': 1}, 'module._orig_mod.')
        >>> strip_prefixes({"module.w": 1, "b": 2}, {"w": 1, "b": 2})[1]
        ''
    """
    stripped, taken = dict(weights), ""
    while stripped and not expected.keys() & stripped.keys():
        common = [p for p in PREFIXES if all(name.startswith(p) for name in stripped)]
        if not common:
            return dict(weights), ""
        stripped = {name.removeprefix(common[0]): value for name, value in stripped.items()}
        taken += common[0]
    return stripped, taken


def _read(checkpoint: str) -> Any:
    try:
        if checkpoint.endswith(".safetensors"):
            return load_file(checkpoint)
        # Tensors alone, and the options that timm saves: a file from elsewhere must not run code.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(checkpoint, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a reader makes of bytes that are something else
        raise OptionError(
            f"{OPTION} {checkpoint}: expected weights in a file of torch or safetensors, "
            f"{_what_it_is(error)}"
        ) from error


def _load_arrays(model: nn.Module, checkpoint: str) -> None:
    """Weights of JAX as numpy arrays, by the method of the models of timm that know them."""
    try:
        timm.models.load_checkpoint(model, checkpoint)
    except Exception as error:  # each model reads them in its own way
        raise OptionError(
            f"{OPTION} {checkpoint}: expected arrays that {type(model).__name__} of timm can read: "
            f"{error}"
        ) from error


def _what_it_is(error: Exception) -> str:
    """Why a file could not be read, from what torch says of it, and what to do."""
    pickled = re.search(r"Unsupported global: GLOBAL ([\w.]+)", str(error))
    if pickled:
        return (
            f"got a pickled {pickled[1]}, which would run code of the file: where you trust it, "
            "write its weights alone: torch.save(model.state_dict(), FILE)"
        )
    if "TorchScript" in str(error):
        return (
            "got a scripted model: write its weights alone: "
            "torch.save(torch.jit.load(FILE).state_dict(), OTHER)"
        )
    return f"got something else, or a damaged file ({type(error).__name__}): check the path"


def _find_weights(content: Any, checkpoint: str) -> tuple[str, Mapping[str, Tensor]]:
    """The mapping of names to tensors in what a file holds, and under which key it was."""
    if _are_weights(content):
        return "", content
    keys = list(content) if isinstance(content, Mapping) else []
    found = [key for key in NESTED if key in keys and _are_weights(content[key])]
    of_last_step = [key for key in found if not key.endswith("_ema")]
    if not found or len(of_last_step) > 1:
        got = f"the keys {keys[:8]}" if keys else f"a {type(content).__name__}"
        raise OptionError(
            f"{OPTION} {checkpoint}: expected a mapping of names to tensors, or one below one of "
            f"{list(NESTED)}, got {f'several: {found}' if found else got}: write the weights "
            "alone: torch.save(model.state_dict(), FILE)"
        )
    return found[0], content[found[0]]


def _are_weights(content: Any) -> bool:
    return (
        isinstance(content, Mapping)
        and len(content) > 0
        and all(isinstance(value, Tensor) for value in content.values())
    )


def _advice(expected: Mapping[str, Tensor], got: Mapping[str, Tensor]) -> str:
    """What to do about weights that do not fit."""
    prefix = _foreign_prefix(expected, got)
    if prefix:
        return (
            f"All of them are there behind {prefix!r}, as a module has them that holds the model: "
            f"write them without it: {{k.removeprefix({prefix!r}): v for k, v in weights.items()}}"
        )
    rows = {
        (len(got[name]), len(value))
        for name, value in expected.items()
        if name in got and got[name].shape != value.shape and got[name].dim() and value.dim()
    }
    if expected.keys() == got.keys() and len(rows) == 1:
        ((theirs, ours),) = rows
        more = f" with --num-classes {theirs}" if theirs > ours else ""
        return (
            f"It tells {theirs} classes and the data have {ours}: start from weights for {ours}, "
            f"or train{more} on data with {theirs}"
        )
    return "Check --model and --model-kwargs, or start from the weights of this model"


def _foreign_prefix(expected: Mapping[str, Tensor], got: Mapping[str, Tensor]) -> str:
    """A first part of names behind which a file has every weight of the model."""
    prefixes = {f"{name.partition('.')[0]}." for name in got}
    return next((p for p in sorted(prefixes) if all(f"{p}{name}" in got for name in expected)), "")
