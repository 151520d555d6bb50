"""Modules of the hardware profile: what the paper leaves in float, on fixed-point grids.

Frozen at one bit-width they are stock Brevitas modules and constants.
"""

from collections.abc import Iterable, Mapping, Sequence

import torch
from brevitas.inject.enum import FloatToIntImplType
from brevitas.nn import QuantIdentity
from torch import Tensor, nn

from brevitas_multiquant.core.clip_gradient import guarded_upper
from brevitas_multiquant.core.panel import Panel
from brevitas_multiquant.core.power_of_two import EDGE_BITS, integer_range
from brevitas_multiquant.nn.merge import merge_outputs
from brevitas_multiquant.nn.switchable import Switchable, SwitchableQuantizer
from brevitas_multiquant.profiles.finn.quantizers import (
    fixed_point_of,
    fixed_point_quantizer,
)
from brevitas_multiquant.quant.member import (
    ACTIVATION,
    Member,
    Site,
    has_no_sites,
    stores_nothing,
)
from brevitas_multiquant.quant.plain import (
    IntActConst,
    OutputScale,
    RangeToCodes,
    UintActConst,
)
from brevitas_multiquant.quant.prepared import prepared
from brevitas_multiquant.quant.proxies import activation_tensor_quant


def operand_bits(bits: int) -> int:
    """Bits of an addition's operands at a bit-width: two more than the activations, at most 8.

    One is for the sign, which activations do not have; one because the paper adds in float.

    Example:
        >>> [operand_bits(bits) for bits in (2, 3, 4, 6, 8)]
        [4, 5, 6, 8, 8]
    """
    return min(EDGE_BITS, bits + 2)


class FixedPointQuantizer(Member):
    """One fixed-point quantizer for all bit-widths: that of the image."""

    stored = stores_nothing

    def __init__(self, bits: int, signed: bool, active: Panel) -> None:
        super().__init__()
        self.quantizer = fixed_point_quantizer(bits, signed)
        self.active = active

    def forward(self, x: Tensor) -> Tensor:
        """Fixed-point values of ``x``, same shape."""
        return self.quantizer(x) if self.active.quantized else x

    def frozen(self, bits: int, name: str) -> nn.Module:
        """The same for every bit-width."""
        return plain_fixed_point(self.quantizer, f"{name} at {bits} bits")

    def sites(self) -> Mapping[str, Site]:
        """Integers of as many bits always."""
        return {ACTIVATION: Site(fixed_point_of(self.quantizer).bits)}


class SwitchableFixedPoint(Switchable):
    """A fixed-point quantizer for each bit-width; nothing while quantizers are off."""

    def __init__(self, bits: dict[int, int], signed: bool, active: Panel) -> None:
        """Takes bit-width of the network -> bits of the integers."""
        members = {bit: fixed_point_quantizer(own, signed) for bit, own in bits.items()}
        super().__init__(members, active)

    def forward(self, x: Tensor) -> Tensor:
        """Fixed-point values of ``x``, same shape."""
        return super().forward(x) if self.active.quantized else x

    def frozen(self, bits: int, name: str) -> nn.Module:
        """The quantizer of one bit-width."""
        return plain_fixed_point(self[str(bits)], f"{name} at {bits} bits")

    def sites(self) -> Mapping[str, Site]:
        """Integers of the bits that each bit-width of the network asks for."""
        own = {int(bits): fixed_point_of(member).bits for bits, member in self.items()}
        return {ACTIVATION: Site(own)}


class QuantizedSum(SwitchableFixedPoint):
    """A sum whose operands pass one shared quantizer: hardware adds integers of one scale."""

    def forward(self, *operands: Tensor) -> Tensor:  # type: ignore[override]
        """The sum of two or more tensors of one shape."""
        if not self.active.quantized:
            return merge_outputs(operands, "sum")
        if len(operands) == 1:
            return super().forward(operands[0])
        # one tensor, so that the range sees all operands when it takes them from the first batch
        return super().forward(torch.stack(operands)).sum(0)

    def frozen(self, bits: int, name: str, operands: int = 2) -> "PlainSum":
        """The sum of one bit-width."""
        quantizer, where = self[str(bits)], f"{name} at {bits} bits"
        return PlainSum(plain_fixed_point(quantizer, where) for _ in range(operands))


class PlainSum(nn.Module):
    """`QuantizedSum` of one bit-width: a stock quantizer for each operand, then binary additions.

    Args:
        quantizers: equal ones, one per operand.
    """

    def __init__(self, quantizers: Iterable[nn.Module]) -> None:
        super().__init__()
        self.quantizers = nn.ModuleList(quantizers)

    def forward(self, *operands: Tensor) -> Tensor:
        """The sum of the operands."""
        pairs = zip(self.quantizers, operands, strict=True)
        return merge_outputs([quantizer(operand) for quantizer, operand in pairs], "sum")


class QuantizedMerge(Member):
    """Branch outputs through one shared quantizer, added; divided only behind the pooling.

    A third of an integer is not on the grid, so that the mean waits for the next quantizer (see
    `BranchMean`): until there everything is an integer sum.

    Args:
        merge: ``"sum"`` or ``"mean"``.
        branches: bit-width -> number of branches.
        signed: whether branch outputs can be negative.
        active: the network's state.
    """

    stored = stores_nothing
    sites = has_no_sites

    def __init__(self, merge: str, branches: dict[int, int], signed: bool, active: Panel) -> None:
        super().__init__()
        self.merge = merge
        self.branches = branches
        self.sum = QuantizedSum({bit: operand_bits(bit) for bit in branches}, signed, active)
        self.active = active

    def forward(self, outputs: Sequence[Tensor]) -> Tensor:
        """One tensor of the branch outputs; while quantizers are off, what the paper merges."""
        if not self.active.quantized:
            return merge_outputs(outputs, self.merge)
        return self.sum(*outputs)

    def frozen(self, bits: int, name: str) -> nn.Module:
        """The merge of one bit-width."""
        return PlainMerge(self.sum.frozen(bits, name, self.branches[bits]))


class QuantizedProduct(Member):
    """A product whose operands pass a quantizer each, as the gates of squeeze-and-excitation.

    Args:
        operands: bit-width -> bits of the integers, of each operand.
        signed: whether they can be negative, of each operand.
        active: the network's state.
    """

    stored = stores_nothing
    sites = has_no_sites

    def __init__(
        self, operands: Sequence[dict[int, int]], signed: Sequence[bool], active: Panel
    ) -> None:
        super().__init__()
        pairs = zip(operands, signed, strict=True)
        self.quantizers = nn.ModuleList(SwitchableFixedPoint(*pair, active) for pair in pairs)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """The product of two tensors that broadcast to each other's shape."""
        first, second = self.quantizers
        return first(left).mul(second(right))

    def frozen(self, bits: int, name: str) -> nn.Module:
        """The product of one bit-width."""
        named = enumerate(self.quantizers)
        return PlainProduct(
            quantizer.frozen(bits, f"{name}.quantizers.{index}")  # type: ignore[operator]
            for index, quantizer in named
        )


class PlainProduct(nn.Module):
    """`QuantizedProduct` of one bit-width.

    Args:
        quantizers: one per operand.
    """

    def __init__(self, quantizers: Iterable[nn.Module]) -> None:
        super().__init__()
        self.quantizers = nn.ModuleList(quantizers)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """The product of the operands."""
        first, second = self.quantizers
        product: Tensor = first(left).mul(second(right))
        return product


class PlainMerge(nn.Module):
    """`QuantizedMerge` of one bit-width."""

    def __init__(self, total: PlainSum) -> None:
        super().__init__()
        self.sum = total

    def forward(self, outputs: Sequence[Tensor]) -> Tensor:
        """The sum of the quantized branch outputs."""
        return self.sum(*outputs)


class BranchMean(Member):
    """Divides the sum of branches by how many run: the mean that `QuantizedMerge` left out.

    Args:
        branches: bit-width -> number of branches.
        active: the network's state.
    """

    stored = stores_nothing
    sites = has_no_sites

    def __init__(self, branches: dict[int, int], active: Panel) -> None:
        super().__init__()
        self.branches = branches
        self.active = active

    def forward(self, x: Tensor) -> Tensor:
        """The mean, same shape."""
        return x.div(self.branches[self.active.bits]) if self.active.quantized else x

    def frozen(self, bits: int, name: str) -> nn.Module:
        """The division of one bit-width."""
        return Divide(self.branches[bits])


class Divide(nn.Module):
    """``x / divisor``."""

    def __init__(self, divisor: float) -> None:
        super().__init__()
        self.divisor = divisor

    def forward(self, x: Tensor) -> Tensor:
        """The quotient, same shape."""
        return x.div(self.divisor)


class CodesToValues(Member):
    """What the codes of a shared quantizer stand for: ``l + code * (u - l) / (2**b - 1)``.

    For those who read the stem's output other than through a 2-bit layer, such as shortcuts.
    """

    stored = stores_nothing
    sites = has_no_sites

    def __init__(self, quantizer: SwitchableQuantizer) -> None:
        super().__init__()
        self._quantizer = (quantizer,)  # the stem's: not a child, its parameters are not ours
        self.active = quantizer.active

    def forward(self, codes: Tensor) -> Tensor:
        """Values of the codes, same shape."""
        if not self.active.quantized:
            return codes
        step, lower = self._step_and_lower(self.active.bits)
        return codes.mul(step).add(lower)

    def _step_and_lower(self, bits: int) -> tuple[Tensor, Tensor]:
        (quantizer,) = self._quantizer
        codes = activation_tensor_quant(quantizer[quantizer.name_at(bits)])
        learned = codes.range_impl
        width = guarded_upper(learned.lower, learned.upper) - learned.lower
        return width / codes.levels, learned.lower

    def frozen(self, bits: int, name: str) -> nn.Module:
        """Factor and summand of one bit-width."""
        step, lower = self._step_and_lower(bits)
        return OutputScale(step.detach().clone(), lower.detach().clone())


def plain_fixed_point(quantizer: QuantIdentity, where: str) -> nn.Module:
    """A fixed-point quantizer as stock modules: half a step up, floor to integers, one scale.

    Raises:
        CalibrationError: its range has seen no data.
    """
    fixed = fixed_point_of(quantizer)
    fixed.range_impl.require_ready(where)
    scale = fixed.scale.detach().clone()
    _, highest = integer_range(fixed.bits, fixed.signed)
    integers = prepared(
        QuantIdentity,
        act_quant=IntActConst if fixed.signed else UintActConst,
        bit_width=fixed.bits,
        scaling_init=float(highest + fixed.signed),
        float_to_int_impl_type=FloatToIntImplType.FLOOR.value,  # a string: it has a hash
    )
    return nn.Sequential(
        RangeToCodes(-scale / 2, 1 / scale), integers.to(scale.device), OutputScale(scale, None)
    )
