"""The network of every bit-width: stem, branches, head, its modes and its settings."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from brevitas_multiquant.core.config import MultiQuantConfig
from brevitas_multiquant.core.image_task import ImageTask
from brevitas_multiquant.core.method import method_named
from brevitas_multiquant.core.output_structure import (
    ONE_TENSOR,
    OutputStructure,
    Value,
    run_part,
)
from brevitas_multiquant.core.panel import Panel, Setting
from brevitas_multiquant.core.precision import Assignment, Precision
from brevitas_multiquant.errors import PackedFileError
from brevitas_multiquant.nn.compiled import compiled_by_bits, warn_of_graphs
from brevitas_multiquant.nn.merge import Merge
from brevitas_multiquant.nn.modes import restore_fixed
from brevitas_multiquant.nn.multi_branch import MultiBranch
from brevitas_multiquant.nn.parameter_groups import ParameterGroups
from brevitas_multiquant.nn.switchable import ScaleShiftNorm, exact_norm, is_scale_and_shift
from brevitas_multiquant.nn.twin import twin_of
from brevitas_multiquant.quant.exact import exact_arithmetic
from brevitas_multiquant.quant.pickling import reconnect


class MultiQuantNet(ParameterGroups, MultiBranch):
    """One network for every candidate bit-width; made by `brevitas_multiquant.multiquantize`.

    Args:
        stem: image (N, C, H, W) -> features that every branch reads.
        branches: features -> input of the head, one copy of the body each.
        halves: index of a branch -> its half branch, for the odd bit-widths that end with it; a
            branch that only ever runs at half is narrow itself.
        head: merged features -> the tensors of the output: logits (N, classes) of a classifier.
        config: bit-widths, selection, profile and merge.
        active: the state that all switchable modules of the parts look at.
        plan: what the rewrite did, for people (`print(net.plan)`).
        source: how the float model can be built again, or None if unknown.
        input_shape: (1, C, H, W), the shape it was checked with.
        merge: branch outputs -> input of the head; default: that of the configuration.
        structure: how tensors make up what the float model returns.

    Attributes:
        layout: module -> what a reader of its packed file finds there, as it was built.
        evaluation_only: it came out of a packed file, and training is refused.
        batch_statistics: whether its batch norms have statistics to train with.
        image_task: images, classes and accuracy, where known; files and exports carry it.
    """

    layout: Mapping[str, str] | None = None
    save_pretrained: Callable[..., str | None]
    """`brevitas_multiquant.storage.hub.save_pretrained`."""

    push_to_hub: Callable[..., str]
    """`brevitas_multiquant.storage.hub.push_to_hub`."""

    from_pretrained: ClassVar[Callable[..., "MultiQuantNet"]]
    """`brevitas_multiquant.storage.hub.from_pretrained`."""

    structure = ONE_TENSOR
    evaluation_only = False
    batch_statistics = True
    image_task: ImageTask | None = None

    def __init__(
        self,
        stem: nn.Module,
        branches: Sequence[nn.Module],
        halves: Mapping[int, nn.Module],
        head: nn.Module,
        config: MultiQuantConfig,
        active: Panel,
        plan: Any = None,
        source: Any = None,
        input_shape: tuple[int, ...] | None = None,
        merge: nn.Module | None = None,
        structure: OutputStructure = ONE_TENSOR,
    ) -> None:
        super().__init__()
        self.structure = structure
        self.stem = stem
        self._hold(branches, halves, config.selection)
        self.head = head
        self.merge = Merge(config.merge) if merge is None else merge
        self.config = config
        self.plan = plan
        self.source = source
        self.input_shape = input_shape
        self._active = active

    def __setstate__(self, state: dict[str, Any]) -> None:
        """From a pickle, or a copy."""
        super().__setstate__(state)
        reconnect(self)

    @property
    def bits(self) -> tuple[int, ...]:
        """Candidate bit-widths, ascending."""
        return self.config.bits

    @property
    def active_bits(self) -> int:
        """The bit-width at which `forward` runs: of an assignment, the network's."""
        return self._active.bits

    @property
    def sites(self) -> tuple[str, ...]:
        """Tensors of the branches that are quantized: names of the first layers that read them."""
        return tuple(self._active.dials)

    @property
    def assignment(self) -> Assignment:
        """The bits at which every site runs now."""
        return self._active.assignment

    def precision_at(self, site: str, bits: int) -> Precision:
        """Bits of the weights that read a site, and of its activations, at one bit-width."""
        return self._active.precision_at(site, bits)

    @property
    def setting(self) -> int | Assignment:
        """What `set_active_bits` was given: one bit-width, or an assignment where sites differ."""
        return self._active.setting

    def set_active_bits(self, bits: int | Assignment) -> None:
        """Choose the bit-width of the forwards that follow, in every thread that runs this network.

        An assignment gives sites bits of their own, out of the candidates: branches, norms and
        ranges are those of its ``bits``, and each site's codes have as many levels as it says,
        within the same range. So have the weights that read it, where these follow the bit-width;
        those of branches have two bits always.

        Raises:
            BitWidthError: not a candidate of this network, or an assignment that does not fit it.
            ConcurrentUseError: another thread runs it inside `at_bits`; see `view`.

        Example:
            >>> from torchvision.models import resnet18
            >>> from brevitas_multiquant import Assignment, multiquantize
            >>> net = multiquantize(resnet18(num_classes=10), [2, 4], input_shape=(1, 3, 32, 32))
            >>> net.set_active_bits(Assignment(4, {"layer1.0.conv2": (2, 2)}))
            >>> net.active_bits, net.assignment["layer1.0.conv2"].activation
            (4, 2)
        """
        self._active.switch(self._checked("set_active_bits", bits))

    @contextmanager
    def at_bits(self, bits: int | Assignment) -> Iterator[Self]:
        """Run at another bit-width, or at an assignment, inside the block.

        Raises:
            BitWidthError: as of `set_active_bits`.
            ConcurrentUseError: another thread, or another task of the event loop, has such a
                block open; see `view`.
        """
        with self._active.at(self._checked("at_bits", bits)):
            yield self

    def train(self, mode: bool = True) -> Self:
        """Training or evaluation mode of all modules but those whose author keeps them in one.

        That is what the float model's own ``train()`` did, such as freezing its norms.

        Raises:
            PackedFileError: training mode for a network of a packed file.
        """
        if mode:
            self.require_trainable("train()")
        super().train(mode)
        restore_fixed(self)
        self._keep_norms_exact()
        return self

    def require_trainable(self, where: str) -> None:
        """Refuse to train a network that was loaded for evaluation.

        Args:
            where: what starts the error.

        Raises:
            PackedFileError: it came out of a packed file.
        """
        if self.evaluation_only:
            raise PackedFileError(
                f"{where}: expected a network that can be trained, got one of a packed file, which "
                "is for evaluation: latent weights and batch norm statistics are not in it. To go "
                "on training load a checkpoint of the state dict; to start anew from the codes, "
                "load_packed(path, trainable=True)"
            )

    def add_module(self, name: str, module: nn.Module | None) -> None:
        """As of any module; conversions such as ``convert_sync_batchnorm`` hand parts over here."""
        super().add_module(name, module)
        self._keep_norms_exact()

    def _keep_norms_exact(self) -> None:
        """Norms that somebody put in place of others evaluate as those did."""
        for module in self.modules():
            if is_scale_and_shift(module) and not isinstance(module, ScaleShiftNorm):
                exact: Any = exact_norm(module, self._active)
                exact.fixed_statistics = not self.batch_statistics

    @contextmanager
    def floating(self) -> Iterator[Self]:
        """Run with all quantizers off inside the block."""
        with self._active.floating():
            yield self

    def view(self, bits: int | Assignment | None = None) -> Self:
        """This network once more, with an active bit-width of its own: for threads and servers.

        A view shares every parameter and buffer with the network, so it costs no memory for
        tensors, and what one of them learns, loads or calibrates the other has. Bit-width, modes
        (`train`, `eval`) and hooks are its own; they start as the network's. It is a network like
        any other: it can be saved, exported, viewed again, or copied to be independent.

        Several threads may evaluate views at once. To train, or to move to a device or type, is
        to change the tensors that all of them run on, so none may run meanwhile; afterwards all of
        them have moved. A state dict of a view is the network's, and loading one into a view loads
        it into the network. What `compile` or a wrapper made of the network stays with it.

        Args:
            bits: of the view, or an assignment; default: the network's.

        Raises:
            BitWidthError: as of `set_active_bits`.

        Example:
            >>> from torchvision.models import resnet18
            >>> from brevitas_multiquant import multiquantize
            >>> net = multiquantize(resnet18(num_classes=10), [2, 4], input_shape=(1, 3, 32, 32))
            >>> low = net.view(2)
            >>> low.active_bits, net.active_bits
            (2, 4)
            >>> all(a is b for a, b in zip(low.parameters(), net.parameters()))
            True
        """
        setting = self.setting if bits is None else self._checked("view", bits)
        view: Self = twin_of(self, self._active.twin(setting))
        return view

    def _checked(self, caller: str, given: Any) -> Setting:
        return self._active.checked(caller, given, self.bits)

    def forward(self, x: Tensor) -> Any:
        """What the float model returns of images (N, C, H, W), at the active bit-width (eq. 6).

        Logits (N, classes) of a classifier; else tensors in the model's own containers.

        Raises:
            ConcurrentUseError: another thread switched the bit-width midway; see `view`.
        """
        if torch.compiler.is_compiling():
            panel = self._active
            assigned = not panel.telling and bool(panel.own or panel.own_weights)
            warn_of_graphs(len(self.bits), assigned)
        with self._at_one_bit_width(), self._exactly(x.device):
            return self._output(self._run_branches(self.stem(x)))

    def _output(self, outputs: Sequence[Value]) -> Any:
        """What merge and head make of the branches' outputs."""
        given: Value = run_part(self.head, self.merge(outputs))
        return given if self.structure.is_one_tensor else self.structure.rebuild(given)

    def compile(self, **options: Any) -> None:  # type: ignore[override]
        """Compile the forward in place, once for each bit-width that runs, in either mode.

        And once more for all assignments that have its branches, norms and ranges, where the bits
        of sites choose none of these. For any number of bit-widths, where ``torch.compile(net)``
        stops to compile after as many graphs as torch keeps of one function. Copies, pickles and
        views are not compiled.

        Args:
            **options: of ``torch.compile``.

        Example:
            >>> from brevitas_multiquant import calibrate, multiquantize
            >>> layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()]
            >>> model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * 28**2, 10))
            >>> net = multiquantize(model, [2, 4], input_shape=(1, 3, 32, 32))
            >>> calibrate(net, [torch.rand(4, 3, 32, 32)])
            >>> net.compile(backend="eager", dynamic=False)
            >>> net(torch.rand(2, 3, 32, 32)).shape
            torch.Size([2, 10])
        """
        run = compiled_by_bits(self, self._call_impl, **options)

        def call(x: Tensor) -> Any:
            with self._exactly(x.device):
                return run(x)

        self._compiled_call_impl = call

    def _at_one_bit_width(self) -> AbstractContextManager[None]:
        compiled = torch.compiler.is_compiling()  # a graph is of one bit-width
        return nullcontext() if compiled else self._active.unswitched()

    def _exactly(self, device: torch.device) -> AbstractContextManager[None]:
        return nullcontext() if self.training else exact_arithmetic(device)

    def forward_with_stand_ins(self, x: Tensor, others: Sequence[int]) -> list[Any]:
        """What `forward` gives, and stand-ins for other bit-widths, at the price of one forward.

        A bit-width's stand-in is what its own merge and head make of its branches as they run at
        the *active* bit-width: what it would give if coarser activations changed nothing. Where
        it ends with a half branch, the whole one takes its place.

        Args:
            x: images (N, C, H, W).
            others: bit-widths whose branches all run at the active one.

        Returns:
            The output at the active bit-width, then one for each of ``others``.

        Raises:
            ConcurrentUseError: as of `forward`.
        """
        with self._at_one_bit_width():
            outputs = self._run_branches(self.stem(x))
            output_of = self._by_branch(outputs)
            given = [self._output(outputs)]
            for bits in others:
                with self._active.part_at(bits):
                    own = [output_of[branch] for branch in self.config.selection[bits]]
                    given.append(self._output(own))
            return given

    def extra_repr(self) -> str:
        """Bit-widths, branches, the method, and the options that it has."""
        own = method_named(self.config.method).options
        chosen = {name: getattr(self.config, name) for name in ("method", *own)}
        shown = ", ".join(f"{name}={value!r}" for name, value in chosen.items())
        return f"bits={list(self.bits)}, selection={self.selection}, {shown}"


def device_of(module: nn.Module) -> torch.device:
    """The device of a network's parameters."""
    return next(module.parameters()).device
