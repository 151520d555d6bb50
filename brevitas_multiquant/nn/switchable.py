"""One module per bit-width or other key, and norms whose evaluation every executor reproduces."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from itertools import product
from typing import Any

import torch
from brevitas.nn import QuantIdentity
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from brevitas_multiquant.core.clip_gradient import guarded_upper
from brevitas_multiquant.core.clip_quantize import activation_levels
from brevitas_multiquant.core.computed_once import computed_once
from brevitas_multiquant.core.copying import copied
from brevitas_multiquant.core.devices import in_fp64
from brevitas_multiquant.core.method import Key
from brevitas_multiquant.core.packing import Array
from brevitas_multiquant.core.panel import Dial, Panel
from brevitas_multiquant.quant.entries import Entry, fp32_numbers
from brevitas_multiquant.quant.geometry import per_channel
from brevitas_multiquant.quant.injectors import UintActPerTensorLearnedRange
from brevitas_multiquant.quant.member import (
    ACTIVATION,
    Member,
    Site,
    Stock,
    answers_for,
    frozen_copy,
    has_no_sites,
    stores_nothing,
)
from brevitas_multiquant.quant.plain import RangeToCodes, ScaleShift, UintActConst
from brevitas_multiquant.quant.prepared import prepared
from brevitas_multiquant.quant.proxies import activation_tensor_quant
from brevitas_multiquant.quant.ranges import ActivationRange


def member_name(values: Iterable[int]) -> str:
    """What a member of a `Switchable` is called, from the values of its key.

    Example:
        >>> member_name([4]), member_name([4, 2]), member_name([])
        ('4', '4_2', 'any')
    """
    return "_".join([str(value) for value in values]) or "any"


class Switchable(Member, nn.ModuleDict):
    """Holds one module for each value of a key ("2", "4", ...) and runs the active one.

    Args:
        members: value of the key -> module; or its `member_name`.
        active: the network's state.
        key: what tells which one runs: by default the network's bit-width.
        dials: part of the key -> the dial that shows it; without one it is an attribute of the
            network's state.
    """

    stored = stores_nothing
    sites = has_no_sites

    def __init__(
        self,
        members: Mapping[Any, nn.Module],
        active: Panel,
        key: Key = ("bits",),
        dials: Mapping[str, Dial | Panel] | None = None,
    ) -> None:
        super().__init__({str(name): member for name, member in members.items()})
        self.active = active
        self.key = key
        self.dials = dict(dials or {})

    def forward(self, x: Tensor) -> Tensor:
        """What the active member makes of ``x``."""
        return self[member_name([self._shown(part) for part in self.key])](x)

    @property
    def is_of_sites(self) -> bool:
        """Whether the bits of sites tell which member runs."""
        return bool(set(self.key) - {"bits"})

    def name_at(self, bits: int) -> str:
        """What the member is called that runs at a bit-width of the network.

        Sites whose dials choose it have the bits that these show.
        """
        return member_name([bits if part == "bits" else self._shown(part) for part in self.key])

    def frozen(self, bits: int, name: str) -> nn.Module:
        """The member of one bit-width."""
        running = self.name_at(bits)
        return frozen_copy(self[running], bits, f"{name}.{running}")

    def running(self, bits: int) -> Iterable[nn.Module]:
        """The member of one bit-width."""
        return (self[self.name_at(bits)],)

    def _shown(self, part: str) -> int:
        dial = self.dials.get(part)
        return getattr(self.active, part) if dial is None else dial.bits  # type: ignore[no-any-return]


def _members(
    make: Callable[[int], nn.Module], bits: Sequence[int], key: Key
) -> dict[str, nn.Module]:
    """A module for every value of a key whose attributes are bit-widths."""
    values = product(bits, repeat=len(key))
    return {member_name(one): make(max(one, default=max(bits))) for one in values}


class SwitchableQuantizer(Switchable):
    """Activation codes of one site; nothing while quantizers are off.

    The range is that of the network's bit-width, where it was trained, or of the site's own; the
    codes have the bits that the site's dial shows.
    """

    dial: Dial | Panel
    ranges: type[Member] = ActivationRange

    @classmethod
    def create(
        cls,
        bits: Sequence[int],
        active: Panel,
        dial: Dial | None = None,
        *,
        key: Key = ("bits",),
        ranges: type[Member] = ActivationRange,
    ) -> "SwitchableQuantizer":
        """Quantizers with a range for each of ``bits``, or for each value of ``key``.

        Args:
            bits: of the network.
            active: the network state.
            dial: the site dial; without one its codes have the bits of the network.
            key: what chooses the range: ``"bits"``, the network's, or ``"own"``, the site's.
            ranges: of `quant.range_kinds.ACTIVATION_RANGES`.
        """
        own = None if dial is None else dial.activation_bits
        make = lambda bits: _activation_quantizer(own or bits, ranges)  # noqa: E731
        dials = {} if dial is None else {"own": dial}
        quantizer = cls(_members(make, bits, key), active, key, dials)
        quantizer.ranges = ranges
        quantizer.dial = active if dial is None else dial
        for member in quantizer.values():
            activation_tensor_quant(member).dial = quantizer.dial
        return quantizer

    def forward(self, x: Tensor) -> Tensor:
        """Codes of ``x`` in [0, 2**b - 1] at the dial's b, same shape."""
        if not self.active.quantized:
            return x
        codes = super().forward(x)
        kept = self.training or torch.compiler.is_compiling() or not codes.is_contiguous()
        return codes if kept else codes.view(-1).view(codes.shape)  # one format for one pixel

    def frozen(self, bits: int, name: str) -> nn.Module:
        """The range's ends as constants, and a stock quantizer of the codes.

        Raises:
            CalibrationError: the range has seen no data.
        """
        learned = activation_tensor_quant(self[self.name_at(bits)]).range_impl
        learned.require_ready(f"{name} at {bits} bits")
        own = self.dial.bits
        levels = activation_levels(own)
        lower = learned.lower
        upper = guarded_upper(lower, learned.upper)
        plain = prepared(
            QuantIdentity, act_quant=UintActConst, bit_width=own, scaling_init=float(levels)
        )
        return nn.Sequential(RangeToCodes(lower, levels / (upper - lower)), plain.to(lower.device))

    def sites(self) -> Mapping[str, Site]:
        """Codes of as many bits as the dial shows."""
        fixed = self.dial.activation_bits
        own = {int(bits): fixed or int(bits) for bits in self}
        return {ACTIVATION: Site(own, assigned=self.dial.assigned)}


@cache
def _activation_injector(ranges: type[Member]) -> Any:
    if ranges is ActivationRange:
        return UintActPerTensorLearnedRange
    return UintActPerTensorLearnedRange.let(range_impl=ranges)


def _activation_quantizer(bits: int, ranges: type[Member]) -> QuantIdentity:
    quantizer = prepared(QuantIdentity, act_quant=_activation_injector(ranges), bit_width=bits)
    quantizer.act_quant.skip_create_quant_tensor = True
    return quantizer  # type: ignore[no-any-return]


class SwitchableNorm(Switchable):
    """A norm of any kind, copied for each bit-width (switchable batch norm, paper section 4.1).

    Or for each pair of the bits of the layer in front and of the one behind, which Bit-Mixer
    (arXiv 2103.17267) calls transitional: every pair of bit-widths gives its own statistics.
    """

    @classmethod
    def create(
        cls,
        norm: nn.Module,
        bits: Sequence[int],
        active: Panel,
        *,
        key: Key = ("bits",),
        dials: Mapping[str, Dial | Panel] | None = None,
    ) -> "SwitchableNorm":
        """Copies of ``norm`` for each of ``bits``, or value of ``key``; it is not changed."""
        members = _members(lambda _: exact_norm(copied(norm, {}), active), bits, key)
        return cls(members, active, key, dials)


def scale_and_shift(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """What a batch norm does in evaluation, as a factor and a summand per channel.

    The one definition of a batch norm's evaluation: forward, subnet, packing and export use it.
    """
    assert norm.running_mean is not None and norm.running_var is not None
    scale = _inverse_root(norm.running_var, norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = -norm.running_mean * scale
    shift = shift if norm.bias is None else shift + norm.bias
    return computed_once(scale), computed_once(shift)


def _inverse_root(variance: Tensor, eps: float) -> Tensor:
    """``1 / sqrt(variance + eps)`` rounded once: the same bits on every device.

    Computed on the CPU where a device has no fp64.
    """
    return torch.rsqrt(in_fp64(variance) + eps).to(variance)


def _stored_norm(norm: Any, name: str) -> Iterable[Entry]:
    """A batch norm in a file: the factor and the summand per channel that it is in evaluation."""

    def read() -> Array:
        return fp32_numbers(name, torch.cat(scale_and_shift(norm)))

    def write(values: Array, trainable: bool) -> None:
        scale, shift = torch.from_numpy(values.copy()).chunk(2)
        norm.affine = True
        norm.weight, norm.bias = nn.Parameter(scale), nn.Parameter(shift)
        norm.running_mean.zero_()
        if not trainable:
            norm.eps = 0.0
        # Their sum is 1 within 2**-25, so that the root's inverse is 1 in fp32, to the bit.
        norm.running_var.fill_(1.0 - norm.eps)
        norm.fixed_statistics = trainable

    yield Entry("norms", name, 2 * norm.num_features, read, write)


class ScaleShiftNorm(Member):
    """Mixed into a batch norm: evaluates as ``x * scale + shift``, two roundings, no more.

    The framework's own kernel may fuse the two into one rounding, or subtract the mean first;
    either would move activations over a quantizer's threshold in another executor.

    Attributes:
        overwrites: nobody else reads the input; the result may take its place in memory.
        fixed_statistics: it trains as it evaluates, as a factor and a summand per channel.
    """

    active: Panel
    overwrites = False
    fixed_statistics = False
    stored = _stored_norm
    sites = has_no_sites

    def frozen(self, bits: int, name: str) -> ScaleShift:
        """Factor and summand as constants."""
        return ScaleShift(*scale_and_shift(self))  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """The batch norm of ``x`` (N, C, ...)."""
        evaluates = self.active.quantized and not self.training
        if not evaluates and not self.fixed_statistics:
            return super().forward(x)  # type: ignore[misc]
        scale, shift = scale_and_shift(self)  # type: ignore[arg-type]
        factor, summand = per_channel(scale, x), per_channel(shift, x)
        if self.overwrites and not torch.is_grad_enabled():
            return x.mul_(factor).add_(summand)
        return x.mul(factor).add_(summand)


class ScaleShiftBatchNorm1d(ScaleShiftNorm, nn.BatchNorm1d):
    """`ScaleShiftNorm` over ``nn.BatchNorm1d``."""


class ScaleShiftBatchNorm2d(ScaleShiftNorm, nn.BatchNorm2d):
    """`ScaleShiftNorm` over ``nn.BatchNorm2d``."""


class ScaleShiftBatchNorm3d(ScaleShiftNorm, nn.BatchNorm3d):
    """`ScaleShiftNorm` over ``nn.BatchNorm3d``."""


class ScaleShiftSyncBatchNorm(ScaleShiftNorm, nn.SyncBatchNorm):
    """`ScaleShiftNorm` over ``nn.SyncBatchNorm``."""


_EXACT: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: ScaleShiftBatchNorm1d,
    nn.BatchNorm2d: ScaleShiftBatchNorm2d,
    nn.BatchNorm3d: ScaleShiftBatchNorm3d,
    nn.SyncBatchNorm: ScaleShiftSyncBatchNorm,
}


def exact_norm(norm: nn.Module, active: Panel) -> nn.Module:
    """The norm itself, with the evaluation of `ScaleShiftNorm` if it is a plain batch norm.

    One without running statistics stays as it is: its evaluation depends on the batch.
    """
    exact = _EXACT.get(type(norm))
    if exact is not None and norm.running_mean is not None:
        norm.__class__ = exact
        norm.active = active  # type: ignore[assignment]
    return norm


def is_scale_and_shift(module: nn.Module) -> bool:
    """Whether a module is a batch norm that evaluates as `scale_and_shift`, or is to do so.

    The latter is one that somebody put in place of a `ScaleShiftNorm`, as
    ``nn.SyncBatchNorm.convert_sync_batchnorm`` does.
    """
    if isinstance(module, ScaleShiftNorm):
        return True
    return type(module) in _EXACT and module.running_mean is not None


@answers_for(is_scale_and_shift)
class _StockNorm(Stock):
    """A plain batch norm that somebody put in place of a `ScaleShiftNorm`."""

    def stored(self, name: str) -> Iterable[Entry]:
        return _stored_norm(self.module, name)

    def frozen(self, bits: int, name: str) -> ScaleShift:
        return ScaleShift(*scale_and_shift(self.module))  # type: ignore[arg-type]
