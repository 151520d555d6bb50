"""A narrow layer that owns nothing: its weights are the first channels of a whole layer's."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from torch import Tensor

from brevitas_multiquant.quant.entries import Entry, float_entry
from brevitas_multiquant.quant.geometry import is_transposed
from brevitas_multiquant.quant.layers import (
    CodeConv1d,
    CodeConv2d,
    CodeConv3d,
    CodeConvTranspose1d,
    CodeConvTranspose2d,
    CodeConvTranspose3d,
    CodeLayer,
    CodeLinear,
    weight_range,
)
from brevitas_multiquant.quant.stored_codes import weight_entry


class LayerSlice(CodeLayer):
    """Mixed into a narrow `CodeLayer`: weights, bias and weight range are the whole layer's.

    The codes are the first channels of the whole layer's codes: nothing is stored twice. The
    whole layer is not a child, so that parameters and state dict have its tensors once.

    Args:
        whole: the layer that owns the parameters.
        kept: how many of its weights' two dimensions of channels.
        outputs: output channels.
    """

    whole: CodeLayer
    kept: tuple[int, int]
    outputs: int

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The first channels of the whole layer's latent weight."""
        return self._first(self.whole.weight)

    @property
    def bias(self) -> Tensor | None:  # type: ignore[override]
        """The first channels of the whole layer's bias."""
        return None if self.whole.bias is None else self.whole.bias[: self.outputs]

    @property
    def weight_quant(self) -> Any:  # type: ignore[override]
        """The whole layer's weight quantizer."""
        return self.whole.weight_quant

    def effective_weight(self) -> Tensor:
        """The first channels of the whole layer's effective weight."""
        return self._first(self.whole.effective_weight())

    def stored(self, name: str) -> Iterable[Entry]:
        """What it reads of the whole layer, which has it in the file."""
        learned = weight_range(self)
        read = [weight_entry(self, name, learned), *learned.stored(name)]
        if self.bias is not None:
            read.append(float_entry(f"{name}.bias", self.bias))
        return [replace(entry, owner=self.whole) for entry in read]

    def _first(self, weight: Tensor) -> Tensor:
        first, second = self.kept
        return weight[:first, :second]


class SliceConv2d(LayerSlice, CodeConv2d):
    """`LayerSlice` of a `CodeConv2d`."""


class SliceConv1d(LayerSlice, CodeConv1d):
    """`LayerSlice` of a `CodeConv1d`."""


class SliceConv3d(LayerSlice, CodeConv3d):
    """`LayerSlice` of a `CodeConv3d`."""


class SliceConvTranspose2d(LayerSlice, CodeConvTranspose2d):
    """`LayerSlice` of a `CodeConvTranspose2d`."""


class SliceConvTranspose3d(LayerSlice, CodeConvTranspose3d):
    """`LayerSlice` of a `CodeConvTranspose3d`."""


class SliceConvTranspose1d(LayerSlice, CodeConvTranspose1d):
    """`LayerSlice` of a `CodeConvTranspose1d`."""


class SliceLinear(LayerSlice, CodeLinear):
    """`LayerSlice` of a `CodeLinear`."""


_SLICES = {
    CodeConv2d: SliceConv2d,
    CodeConv1d: SliceConv1d,
    CodeConv3d: SliceConv3d,
    CodeConvTranspose2d: SliceConvTranspose2d,
    CodeConvTranspose1d: SliceConvTranspose1d,
    CodeConvTranspose3d: SliceConvTranspose3d,
    CodeLinear: SliceLinear,
}


def make_slice(narrow: CodeLayer, whole: CodeLayer) -> LayerSlice:
    """Turn a narrow layer into a slice of a whole one; its own parameters are dropped.

    Args:
        narrow: a layer with fewer channels; changed in place.
        whole: the layer that keeps the parameters.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from brevitas_multiquant.quant.layers import code_layer
        >>> from brevitas_multiquant.core.panel import Panel
        >>> whole, narrow = (code_layer(nn.Linear(n, n), Panel(4)) for n in (4, 2))
        >>> half = make_slice(narrow, whole)
        >>> torch.equal(half.quant_weight(), whole.quant_weight()[:2, :2]), list(half.parameters())
        (True, [])
    """
    kept = (narrow.weight.shape[0], narrow.weight.shape[1])
    outputs = kept[1] * narrow.groups if is_transposed(narrow) else kept[0]  # type: ignore[operator]
    narrow._parameters.clear()
    del narrow._modules["weight_quant"]
    narrow.__class__ = _SLICES[type(narrow)]  # type: ignore[assignment]
    narrow.__dict__.update(whole=whole, kept=kept, outputs=outputs)  # not a child of the slice
    assert isinstance(narrow, LayerSlice)
    return narrow
