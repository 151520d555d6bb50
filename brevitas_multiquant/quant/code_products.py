"""What a layer that multiplies codes by codes does, whichever kind of layer it is."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from brevitas_multiquant.core.clip_quantize import activation_levels
from brevitas_multiquant.core.devices import widest_float
from brevitas_multiquant.core.exact_sums import sums_are_exact
from brevitas_multiquant.core.grids import Grid, WeightFormat
from brevitas_multiquant.core.panel import Dial, Panel
from brevitas_multiquant.core.told import told_by
from brevitas_multiquant.quant.entries import Entry, float_entries
from brevitas_multiquant.quant.exact import contract_exactly, refuse_mixed_types
from brevitas_multiquant.quant.geometry import as_output_channels, products_per_output
from brevitas_multiquant.quant.kept_weights import codes_kept
from brevitas_multiquant.quant.member import INPUT, WEIGHT, Member, Site
from brevitas_multiquant.quant.plain import plain_layer
from brevitas_multiquant.quant.stored_channels import channels_entry
from brevitas_multiquant.quant.stored_codes import weight_entry


class CodeLayer(Member):
    """Mixed into a Brevitas layer: codes in, ``scale * (codes * codes) + bias`` out.

    While training, the scale is folded into the weights, which costs no pass over the output. In
    evaluation the codes are multiplied as they are: integers below 2**24 (`is_exact`) add up in
    fp32 exactly, in any order, so that every executor of the exported graph gets the same bits.
    Autocast does not change that (`quant.exact`).

    Attributes:
        input_dial: of the site that the layer reads: it shows the bits of both factors.
    """

    active: Panel
    input_dial: Dial | Panel
    weight_function: Callable[[nn.Module], Tensor] | None
    weight: Tensor
    bias: Tensor | None
    weight_quant: Any

    def reset_parameters(self) -> None:
        """Leave them empty: they come from the float layer."""

    def effective_weight(self) -> Tensor:
        """The weight that the float layer would use: standardised where its author does so."""
        return self.weight if self.weight_function is None else self.weight_function(self)

    def quant_weight(self, quant_input: Any = None, **_: Any) -> Any:
        """Codes of the effective weight, for the layer and for Brevitas's tools."""
        return self.weight_quant(self.effective_weight())

    @property
    def weight_format(self) -> WeightFormat:
        """Which integers the weight codes are, at the bits at which it runs."""
        return self.weight_quant.tensor_quant.weight_format  # type: ignore[no-any-return]

    @property
    def channel_bits(self) -> Sequence[int] | None:
        """Bits of each output channel, where they have some of their own."""
        return self.weight_quant.tensor_quant.grid_impl.channel_bits  # type: ignore[no-any-return]

    @property
    def weight_grids(self) -> Sequence[Grid]:
        """All grids at which its weights may run."""
        return self.weight_quant.tensor_quant.grid_impl.all_grids  # type: ignore[no-any-return]

    @property
    def output_scale(self) -> float | Tensor:
        """Turns a product of codes into the product of values.

        1 / (divisor (2**b - 1)) for the paper's values; times the factor that the weights' range
        gives theirs. Where output channels have bits of their own, one for each: (C, 1, ...) as in
        the weights.
        """
        divisor: float | Tensor = self.weight_quant.tensor_quant.divisor
        factor: float | Tensor = weight_range(self).factor(self.effective_weight)
        told = told_by(self.input_dial)
        if told is not None:  # in fp64, as Python computes it, if the device has it
            return factor / (divisor * told.levels.to(widest_float(told.levels.device)))
        return factor / (divisor * activation_levels(self.input_dial.bits))

    @property
    def scale_of_outputs(self) -> float | Tensor:
        """`output_scale`, in a shape that broadcasts to that of the output."""
        scale = self.output_scale
        by_channel = isinstance(scale, Tensor) and scale.dim()
        return as_output_channels(self, scale.flatten()) if by_channel else scale  # type: ignore[union-attr]

    @property
    def is_exact(self) -> bool:
        """Whether fp32 holds every sum of products of codes, at the bits that its input has."""
        largest = activation_levels(self.input_dial.bits)
        return sums_are_exact(products_per_output(self), self.weight_format.magnitude, largest)

    def inner_forward_impl(self, x: Tensor, weight_codes: Tensor, bias: Tensor | None) -> Tensor:
        """The layer's own operation on codes, or on floats while quantizers are off."""
        contract = super().inner_forward_impl  # type: ignore[misc]
        if not self.active.quantized:
            return contract(x, self.effective_weight(), bias)
        if self.weight_quant.tensor_quant.are_values:  # while bits are learned
            return contract(x, weight_codes, bias)
        if self.training:
            refuse_mixed_types(x, weight_codes)
            scale = self.output_scale
            weight = weight_codes * scale
            if not self.weight_quant.tensor_quant.are_whole:
                return contract(x, weight, bias)
            compiling = torch.compiler.is_compiling()  # then the grid that runs is not known
            grid = self.weight_grids[-1] if compiling else self.weight_format
            with codes_kept(x, weight, weight_codes, scale, grid.magnitude):
                return contract(x, weight, bias)
        y = contract_exactly(contract, x, weight_codes).mul_(self.scale_of_outputs)
        y = y if bias is None else y.add_(as_output_channels(self, bias))
        return y.to(weight_codes.dtype)

    def stored(self, name: str) -> Iterable[Entry]:
        """Weights; a gain is in them, and the range is the quantizer's."""
        learned = weight_range(self)
        make = weight_entry if self.channel_bits is None else channels_entry
        yield make(self, name, learned)
        yield from learned.of_weights(name, self.effective_weight)
        yield from float_entries(self, name, skip=("weight", "gain"))

    def frozen(self, bits: int, name: str) -> nn.Module:
        """A stock layer of the codes, and their scale behind it."""
        form, codes = self.weight_format, self.quant_weight()
        plain = plain_layer(
            self,
            codes,
            self.scale_of_outputs,
            form.integer_bits,
            form.magnitude,
            narrow_range=form.is_narrow,
        )
        pruned = self.weight_quant.tensor_quant.pruned
        if pruned is not None:
            plain.pruned_channels = pruned
        return plain

    def sites(self) -> Mapping[str, Site]:
        """Its codes, and those that it reads."""
        dial, own = self.input_dial, self.weight_quant.tensor_quant.mean_bits
        weights = Site(dial.weight_bits, self.weight.numel(), assigned=dial.assigned_weights)
        if own is not None:  # of channels with bits of their own
            weights = Site(own, self.weight.numel())
        return {WEIGHT: weights, INPUT: Site(dial.activation_bits, assigned=dial.assigned)}

    def look_at(self, dial: Dial | Panel) -> None:
        """Read a site: its dial shows the bits of the layer's weights and of what it reads."""
        super().look_at(dial)
        self.weight_quant.tensor_quant.grid_impl.look_at(dial)


def weight_range(layer: CodeLayer) -> Any:
    """What places a layer's weights between -1 and 1: a trainable range, in most methods."""
    return layer.weight_quant.tensor_quant.range_impl
