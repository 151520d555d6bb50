"""`multiquantize`: a float CNN in, one network for every bit-width out."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import partial

from torch import fx, nn

from brevitas_multiquant.core.build_options import BuildOptions
from brevitas_multiquant.core.config import NOT_GIVEN, MultiQuantConfig
from brevitas_multiquant.core.float_model import ModelSource
from brevitas_multiquant.core.image_shapes import EXPECTED, is_image_shape
from brevitas_multiquant.core.inferred import infer_input_shape, infer_source
from brevitas_multiquant.core.paused_collector import collector_paused
from brevitas_multiquant.core.precision import Assignment
from brevitas_multiquant.core.selection import BRANCH_BITS, bits_of_uses
from brevitas_multiquant.errors import (
    ConfigError,
    SelfCheckError,
    UnsupportedModelError,
    UntracedWarning,
)
from brevitas_multiquant.methods.catalogue import fittings, panel_of
from brevitas_multiquant.nn.merge import Merge
from brevitas_multiquant.nn.network import MultiQuantNet, device_of
from brevitas_multiquant.nn.stored import layout_of
from brevitas_multiquant.profiles.catalogue import PROFILES
from brevitas_multiquant.profiles.profile import Parts
from brevitas_multiquant.quant.layers import CodeLayer
from brevitas_multiquant.quant.zero_weights import move_zeros_apart, warn_of_zeros
from brevitas_multiquant.rewrite.build import (
    build_branch,
    build_shared,
    cut,
    share_parameters,
    shuffle_weights,
    spread_weight_ranges,
)
from brevitas_multiquant.rewrite.check.compare import MOVE, self_check
from brevitas_multiquant.rewrite.graph.trace import trace
from brevitas_multiquant.rewrite.intake.models import take_in
from brevitas_multiquant.rewrite.intake.modes import carry_over, modes_of, training_flags_kept
from brevitas_multiquant.rewrite.narrow.body import narrow
from brevitas_multiquant.rewrite.narrow.widths import plan_half
from brevitas_multiquant.rewrite.overwriting import let_overwrite
from brevitas_multiquant.rewrite.plan import Plan, make_plan


def multiquantize(
    model: nn.Module,
    bits: Sequence[int] | Assignment = NOT_GIVEN,
    *,
    config: MultiQuantConfig | None = None,
    method: str = NOT_GIVEN,
    profile: str = NOT_GIVEN,
    selection: str | Mapping[int, Sequence[int]] = NOT_GIVEN,
    merge: str = NOT_GIVEN,
    half_width: str = NOT_GIVEN,
    weights: str = NOT_GIVEN,
    grid: str = NOT_GIVEN,
    norms: str = NOT_GIVEN,
    weight_range: str = NOT_GIVEN,
    activation_range: str = NOT_GIVEN,
    shortcuts: str = NOT_GIVEN,
    branch_init: str = "copy",
    stem: str | None = None,
    head: str | None = None,
    keep: Sequence[str] = (),
    input_shape: tuple[int, ...] | None = None,
    source: ModelSource | None = None,
    seed: int = 0,
    check: bool = True,
) -> MultiQuantNet:
    """One network that runs at every bit-width of ``bits``, from a float CNN.

    A shared float stem, ``max(bits) / 2`` branches with fixed 2-bit weights, activations and
    norms at the bit-width chosen at run time, a shared float classifier (paper, section 3), or the
    last layer of each output. At an
    odd bit-width the last branch runs at half: a channel slice of it (section 3.4). The
    rewrite traces the model, plans, builds, and checks to the bit that one branch with
    quantizers off is the original. The model is left untouched; its weights are in every branch.

    Args:
        model: CNN: images (N, C, H, W), or videos (N, C, T, H, W), -> logits (N, classes), or
            tensors of any shape, alone or in tuples, lists, dicts and named tuples, which the
            network returns as well.
        bits: candidate bit-widths from 2 to 16, of ``"any_precision"`` and ``"individual"`` from 1;
            default 2, 4, 6, 8. Or an assignment, of which every site has bits of weights and
            activations of its own, for good.
        config: bits and the options up to ``shortcuts`` as one object, instead of one by one.
        method: how bit-widths are trained and run: ``"multiquant"`` (default), branches of 2-bit
            weights; or one body, of which ``"adabits"`` runs the weights at the bit-width chosen
            at run time, ``"any_precision"``, ``"double_rounding"`` and ``"vertical_layering"``
            too, ``"bit_mixer"`` any layer at any of the bit-widths (`set_active_bits` of an
            assignment), and ``"individual"`` knows one bit-width, or an assignment, alone. Stem
            and classifier stay float in all. The options from ``merge`` on are of some methods
            each; the first one named here is the default of the method that has it.
        profile: ``"paper"`` (default): stem, residual path and classifier stay float. ``"finn"``:
            they are quantized too, as FPGAs need it (docs/finn.md).
        selection: ``"amortized"`` (section 3.4, default), ``"serial"``, or bit-width -> branch
            indices.
        merge: ``"mean"`` of the branch outputs as in the published code (default), or ``"sum"``
            (eq. 6).
        half_width: of the half branch: ``"macs"`` (default), the widest that costs at most half of
            a branch's multiply-accumulates; ``"channels"``, half of the channels.
        weights: which integers the branches' weights are: ``"odd"`` (default), the paper's -3, -1,
            1, 3; ``"int2"``, -2 to 1, and ``"ternary"``, -1 to 1, take two bits in hardware, not
            three.
        grid: which integers the weights of ``"adabits"`` are: ``"centered"`` (default) and
            ``"modified"`` nest, so that those of the largest bit-width are all there is to store;
            ``"original"``, to the nearest odd one. Of ``"individual"``: ``"original"`` (default),
            ``"symmetric"`` and ``"integer"``, two's complement without the most negative integer
            or with it.
        norms: what chooses a norm of ``"bit_mixer"``: ``"transitional"`` (default), the bits of the
            layer in front of it and of the first one behind; ``"own"``, of the layer in front;
            ``"bits"``, the network's bit-width.
        weight_range: what places weights between -1 and 1: ``"learned"``, a trainable range;
            ``"tanh"`` and ``"tanh_times_mean"``, the layer's largest weight (as AdaBits and
            Any-Precision were published); ``"step"``, a trainable step (Double Rounding,
            Vertical Layering).
        activation_range: ``"learned"``; ``"unit"``, 0 to 1 as they are (Any-Precision);
            ``"step"``, a trainable step for each bit-width (Double Rounding, Vertical Layering).
        shortcuts: ``"float"``: 1x1 convolutions of shortcuts keep their weights, as Any-Precision
            was published; ``"quantized"``.
        branch_init: ``"copy"``: each branch starts from the model's weights, with weight ranges
            2% apart, since branches equal in both would stay equal forever. ``"shuffle"``, for
            training from scratch: each but the first from a seeded permutation of the weights.
        stem: module that ends the stem, instead of the first convolution and its norm; ``"none"``:
            there is no stem, the first layer is quantized as those behind it are.
        head: module that starts the float head, instead of the last layer of each output. It and
            whatever follows are the head; an output made elsewhere is the branches' own.
            ``"none"``: there is no head, likewise.
        keep: modules that stay as their author wrote them, with their layers replaced in place.
            The self-check adds those whose behaviour in training a trace would lose: random
            draws, counters, other paths (``net.plan.notes``).
        input_shape: (1, C, H, W), or (1, C, T, H, W); default: what the model declares, else
            (1, 3, 224, 224). Where the forward decides by the image's size, it is decided for this
            one.
        source: how to build the float model again, for files; default: found out where it is of
            timm or torchvision.
        seed: of the permutations.
        check: run the self-check.

    Returns:
        The network, on the model's device, each module in the mode of the one it was made of (a
        norm that was frozen still is), active at ``max(bits)``.

    Raises:
        BitWidthError, SelectionError, ConfigError: an option outside its range, of another
            method, or another one than in ``config``.
        TraceError: the forward cannot be traced, or does not run on ``input_shape``.
        UnsupportedModelError: not a CNN, or one of an unsupported kind; lists every reason.
        SelfCheckError: the branch differs from the original.

    Example:
        >>> import torch
        >>> from torchvision.models import resnet18
        >>> net = multiquantize(resnet18(num_classes=10), [2, 4], input_shape=(1, 3, 64, 64))
        >>> net.set_active_bits(2)
        >>> net(torch.rand(2, 3, 64, 64)).shape
        torch.Size([2, 10])
    """
    config = MultiQuantConfig.agreed(
        config,
        bits=bits,
        method=method,
        profile=profile,
        selection=selection,
        merge=merge,
        half_width=half_width,
        weights=weights,
        grid=grid,
        norms=norms,
        weight_range=weight_range,
        activation_range=activation_range,
        shortcuts=shortcuts,
    )
    options = BuildOptions(branch_init, stem, head, seed)
    checked_shape = _checked_shape(input_shape)
    intake = take_in(model)
    model = intake.model
    shape = checked_shape or infer_input_shape(model)

    build = partial(_build, model, config, options, shape)
    with collector_paused(), training_flags_kept(model):
        kept = _checked_names(keep, model)
        net = _checked(build, kept, model, shape) if check else build(kept)
        net.plan.notes[:0] = intake.notes
        found = source or infer_source(model)
        if found is not None:
            net.source = replace(found, stem=stem, head=head, keep=tuple(kept))
        net.layout = layout_of(net)
        moved = [f"branches.{name}" for name in move_zeros_apart(net.branches)]
    warn_of_zeros(net, moved, stacklevel=2)
    for untraced in net.plan.untraced:
        warnings.warn(f"{type(model).__name__}: {untraced}", UntracedWarning, stacklevel=2)
    return net


def _checked_names(keep: Sequence[str], model: nn.Module) -> dict[str, str]:
    names = dict(model.named_modules())
    if isinstance(keep, str) or not all(name and name in names for name in keep):
        raise ConfigError(
            f"keep: expected a list of names of modules in {type(model).__name__}, got {keep!r}"
        )
    return dict.fromkeys(keep, "was to be kept")


def _checked(
    build: Callable[[Mapping[str, str]], MultiQuantNet],
    kept: dict[str, str],
    model: nn.Module,
    shape: tuple[int, ...],
) -> MultiQuantNet:
    """The network; what its trace lost of the behaviour in training is kept, and added to it."""
    try:
        net = build(kept)
        while lost := self_check(net, model, shape):
            kept |= lost
            net = build(kept)
    except (UnsupportedModelError, SelfCheckError) as error:
        if not kept:
            raise
        what = "; ".join(f"{name} {does}" for name, does in kept.items())
        advice = f"{what}: a trace would lose that, and with it kept the model is refused; {MOVE}"
        if isinstance(error, UnsupportedModelError):
            raise UnsupportedModelError(type(model).__name__, [*error.reasons, advice]) from error
        raise SelfCheckError(f"{error}. {advice}") from error
    return net


def _build(
    model: nn.Module,
    config: MultiQuantConfig,
    options: BuildOptions,
    shape: tuple[int, ...],
    kept: Mapping[str, str],
) -> MultiQuantNet:
    """Trace, plan, build and swap; the traced copy is gone when this returns."""
    modes = modes_of(model)
    traced = trace(model, shape, kept)
    plan = make_plan(
        traced,
        type(model).__name__,
        options.stem,
        options.head,
        float_shortcuts=config.shortcuts == "float",
        perceptrons=PROFILES[config.profile].takes_perceptrons,
        one_tensor=PROFILES[config.profile].one_tensor,
    )
    refusals = PROFILES[config.profile].refusals(plan, len(traced.outputs), shape)
    if refusals:
        raise UnsupportedModelError(plan.model, refusals)
    _describe_kept(plan, kept)
    active = panel_of(config)
    float_stem, body, float_head = cut(traced, plan)
    uses = bits_of_uses(config.selection)
    bodies = {width: _body(body, width, plan, config) for width in {use.width for use in uses}}
    branches: list[fx.GraphModule] = []
    halves: dict[int, fx.GraphModule] = {}
    for use, bits in uses.items():  # of each branch the widest first
        part = build_branch(bodies[use.width], plan, fittings(config, bits, active))
        if use.index < len(branches):
            halves[use.index] = share_parameters(part, branches[use.index])
            continue
        if options.branch_init == "copy":
            spread_weight_ranges(part, use.index)
        elif use.index > 0:
            shuffle_weights(part, options.seed + use.index)
        branches.append(part)
    if config.assignment is not None:
        own = config.assignment
        own.require_fits("multiquantize", config.bits, tuple(active.dials), None, fixed=own)
    stem, head = (build_shared(part, active) for part in (float_stem, float_head))
    merge, structure = Merge(config.merge), traced.structure
    parts = Parts(config, active, plan, stem, head, branches, halves, merge, structure)
    PROFILES[config.profile].apply(parts)
    _describe_weights(plan, branches[0], config.bits)
    net = _put_together(parts, shape)
    for branch in (*net.branches, *net.halves.values()):
        let_overwrite(branch)
    net.train(model.training)
    for part in (net.stem, *net.branches, *net.halves.values(), net.head):
        carry_over(modes, part)
    return net.to(device_of(model))


def _put_together(parts: Parts, shape: tuple[int, ...]) -> MultiQuantNet:
    return MultiQuantNet(
        parts.stem,
        parts.branches,
        parts.halves,
        parts.head,
        parts.config,
        parts.active,
        parts.plan,
        input_shape=shape,
        merge=parts.merge,
        structure=parts.structure,
    )


def _body(
    body: fx.GraphModule, width: Fraction, plan: Plan, config: MultiQuantConfig
) -> fx.GraphModule:
    """The body of branches of a width."""
    if width == 1:
        return body
    return narrow(body, plan_half(body, plan.model, config.half_width), plan.model)


def _describe_weights(plan: Plan, branch: nn.Module, bits: Sequence[int]) -> None:
    """Say which bits the weights of layers have, where those are not the two of a branch."""
    several = f"weights of {', '.join(map(str, bits))} bits"
    for name, layer in branch.named_modules():
        if isinstance(layer, CodeLayer) and layer.input_dial.weight_bits != BRANCH_BITS:
            own = layer.input_dial.weight_bits
            plan.set_treatment([name], several if own is None else f"{own}-bit weights")


def _describe_kept(plan: Plan, kept: Mapping[str, str]) -> None:
    """They have no control flow on data, so that a file can hold what they do in evaluation."""
    plan.opaque = [name for name in plan.opaque if name not in kept]
    for name, does in kept.items():
        told = [note for note in plan.untraced if note.startswith(f"{name} cannot be traced (")]
        plan.untraced = [note for note in plan.untraced if note not in told]
        plan.notes = [note for note in plan.notes if note not in told]
        plan.notes.insert(0, f"{name} {does}: it stays as it is, its layers are replaced in place")


def _checked_shape(shape: tuple[int, ...] | None) -> tuple[int, ...] | None:
    if shape is None:
        return None
    if not is_image_shape(shape):
        listed = isinstance(shape, (tuple, list))
        instead = {
            2: "; for vectors put nn.Flatten() in front, and take images (1, features, 1, 1)",
            3: "; for signals put nn.Flatten(2) in front, and take images (1, channels, 1, length)",
        }.get(len(shape) if listed else 0, "")
        raise ConfigError(f"input_shape: expected {EXPECTED} got {shape!r}{instead}")
    return (1, *shape[1:])
