"""A profile: what is done to the parts of a network before they are put together."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import fx, nn

from brevitas_multiquant.core.config import MultiQuantConfig
from brevitas_multiquant.core.method import method_named
from brevitas_multiquant.core.output_structure import ONE_TENSOR, OutputStructure
from brevitas_multiquant.core.panel import Panel
from brevitas_multiquant.core.selection import bits_of_uses
from brevitas_multiquant.rewrite.plan import Plan


@dataclass
class Parts:
    """A network that is not put together yet; passes change it in place.

    Args:
        config: what the network is to be.
        active: the state that all its switchable modules look at.
        plan: what the rewrite did, for people.
        stem: image -> features that every branch reads.
        head: merged features -> logits.
        branches: features -> input of the head, one copy of the body each.
        halves: index of a branch -> its half branch.
        merge: branch outputs -> input of the head.
        structure: how the head's tensors make up what the network returns.
    """

    config: MultiQuantConfig
    active: Panel
    plan: Plan
    stem: fx.GraphModule
    head: fx.GraphModule
    branches: list[fx.GraphModule]
    halves: dict[int, fx.GraphModule]
    merge: nn.Module
    structure: OutputStructure = ONE_TENSOR

    @property
    def merges(self) -> bool:
        """Whether outputs of several branches are added: a network of one body has nothing to."""
        return method_named(self.config.method).topology.merges

    @property
    def branch_counts(self) -> dict[int, int]:
        """Bit-width -> how many branches run."""
        return {bits: len(chosen) for bits, chosen in self.config.selection.items()}

    def branches_and_bits(self) -> Iterator[tuple[fx.GraphModule, tuple[int, ...]]]:
        """Every branch, of each the widest first, with the bit-widths at which it runs."""
        met: set[int] = set()
        for use, bits in bits_of_uses(self.config.selection).items():
            yield (self.halves if use.index in met else self.branches)[use.index], bits  # type: ignore[index]
            met.add(use.index)


Pass = Callable[[Parts], None]
"""Changes parts in place: their graphs, the merge, the rows of the plan."""


@dataclass(frozen=True)
class Profile:
    """What a network is quantized for.

    Args:
        name: as in `MultiQuantConfig.profile`.
        edges: what stem and classifier are, with an article.
        passes: run in this order over the parts.
        takes_perceptrons: whether networks without a convolution are welcome: linear layers are
            what their 2-bit codes are for as well.
        one_tensor: whether one tensor alone may cross each cut, and leave the network.
        takes_videos: whether images may have frames: (N, C, T, H, W).

    Example:
        >>> Profile("paper", "a float").passes
        ()
    """

    name: str
    edges: str
    passes: tuple[Pass, ...] = ()
    takes_perceptrons: bool = False
    one_tensor: bool = False
    takes_videos: bool = True

    def refusals(self, plan: Plan, outputs: int, input_shape: tuple[int, ...]) -> list[str]:
        """Why a network cannot have this profile.

        Args:
            plan: where it is cut.
            outputs: how many tensors it returns.
            input_shape: of the images that it reads.
        """
        crossing = {
            "branches that read": len(plan.stem_ends),
            "a head that reads": len(plan.head_starts),
            "a network that returns": outputs,
        }
        frames = (
            []
            if self.takes_videos or len(input_shape) == 4
            else [
                f"profile={self.name!r}: expected images (N, C, H, W), got videos {input_shape}: "
                "hardware has no layer for frames so far; use the paper's profile"
            ]
        )
        return frames + [
            f"profile={self.name!r}: expected {who} one tensor, got {count}: hardware has one "
            "stream there so far; use the paper's profile, or move the cut with stem= or head="
            for who, count in crossing.items()
            if self.one_tensor and count > 1
        ]

    def apply(self, parts: Parts) -> None:
        """Run every pass over the parts of a network."""
        for each in self.passes:
            each(parts)
