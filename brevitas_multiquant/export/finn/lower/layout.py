"""Operations that move numbers about and compute nothing: views, transpositions, slices, splits.

They are run for what they are, on the numbers' places. When a layer reads the result, the places
tell what it is: the tensor itself, its vector, some of its channels, every so many positions.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from brevitas_multiquant.export.finn.lower.builder import Builder
from brevitas_multiquant.export.finn.lower.moves import Sampling
from brevitas_multiquant.export.finn.lower.values import Value
from brevitas_multiquant.nn.traced_size import traced_size

IMAGES = 2
"""Of the places, so that an operation on the batch is seen."""


@dataclass(frozen=True)
class Laid:
    """A tensor whose numbers lie elsewhere than those of a value.

    Args:
        value: where they come from.
        places: (N, ...) of the tensor's shape: which of the value's (N, C, H, W) numbers, counted
            in order, each one is.
    """

    value: Value
    places: Tensor


OPERATIONS: set[Any] = {
    *(operator.getitem, getattr, torch.flatten, torch.squeeze, torch.unsqueeze, torch.reshape),
    *(torch.permute, torch.transpose, torch.chunk, torch.split, torch.narrow, torch.unbind),
    *("flatten", "view", "reshape", "squeeze", "unsqueeze", "permute", "transpose", "contiguous"),
    *("chunk", "split", "narrow", "unbind", "size", "dim", "swapaxes", "movedim", "unflatten"),
    *("tensor_split", "split_with_sizes", "select", traced_size),
}
"""Functions and methods that only lay numbers elsewhere, or ask for sizes."""


LAYOUTS = (nn.Flatten, nn.Unflatten, nn.ChannelShuffle)
"""Modules that do."""


def lay(value: Value | Laid) -> Laid:
    """The places of a value's own numbers."""
    if isinstance(value, Laid):
        return value
    channels, height, width = value.shape
    sizes = {2: (-1,), 3: (channels, height * width), 4: value.shape}[value.rank]
    places = torch.arange(IMAGES * channels * height * width)
    return Laid(value, places.view(IMAGES, *sizes))


def run(call: Callable[..., Any], laid: Laid, *args: Any, **kwargs: Any) -> Any:
    """What an operation makes of a tensor: others of the same value, or sizes."""
    return _wrap(laid.value, call(laid.places, *args, **kwargs))


def _wrap(value: Value, result: Any) -> Any:
    if isinstance(result, Tensor):
        return Laid(value, result)
    if isinstance(result, (tuple, list)) and any(isinstance(item, Tensor) for item in result):
        return tuple(_wrap(value, item) for item in result)
    return result


def settle(builder: Builder, where: str, laid: Value | Laid) -> Value:
    """A laid tensor as a value, if hardware can lay it so."""
    if isinstance(laid, Value):
        return laid
    value, places = laid.value, laid.places
    if not value.known:
        return _hidden(value, places)
    channels, height, width = value.shape
    count = channels * height * width
    image = places[0]
    whole = torch.arange(count)
    if len(places) == IMAGES and torch.equal(places[1], image + count):
        if image.numel() == count and torch.equal(image.flatten(), whole):
            if image.dim() == 1:
                return value.in_rank(2)
            if image.shape == value.shape and (not value.flat or height == width == 1):
                return value.in_rank(4)
            if image.shape == (channels, height * width):
                return value.in_rank(3)
        lines = image.dim() == 2 and height == 1
        if (image.dim() == 3 or lines) and not value.flat:
            found = _picked(value, image.unsqueeze(1) if lines else image)
            if found is not None:
                return found.in_rank(3) if lines else found.in_rank(4)
        if image.dim() == 1 and height == width == 1:
            return value.picked(image.tolist()).in_rank(2)
    advice = (
        "lays numbers where no dataflow layer does: flatten, slices and shuffles of whole "
        "channels, and every so many positions are possible"
    )
    return builder.problem(where, advice, _hidden(value, places))


def _hidden(value: Value, places: Tensor) -> Value:
    shape = (*places.shape[1:], 1, 1, 1)[:3]
    rank = min(max(places.dim(), 2), 4)
    return Value(None, shape, held=rank, rank=rank, known=False)  # type: ignore[arg-type]


def _picked(value: Value, image: Tensor) -> Value | None:
    """Some channels at every so many positions."""
    channels, height, width = value.shape
    where = image[:, 0, 0]
    picks = where.div(height * width, rounding_mode="floor")
    first = (where - picks * height * width)[0]
    row, column = int(first) // width, int(first) % width
    strides = [
        int(image.select(axis, 1).flatten()[0] - image.flatten()[0]) // step
        if image.shape[axis] > 1
        else 1
        for axis, step in ((1, width), (2, 1))
    ]
    if min(strides) < 1:
        return None
    move = Sampling((row, column), (strides[0], strides[1]))
    rows = torch.arange(row, height, strides[0])[: image.shape[1]]
    columns = torch.arange(column, width, strides[1])[: image.shape[2]]
    expected = picks[:, None, None] * height * width + rows[:, None] * width + columns
    kept = move.shape((len(picks), height, width))
    if image.shape != kept or not torch.equal(image, expected):
        return None
    if len(set(picks.tolist())) < len(picks):
        return None
    if kept[1:] != (height, width):
        value = value.moved(move)
    same = picks.tolist() == list(range(channels))
    return value if same else value.picked(picks.tolist())
