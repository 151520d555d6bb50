"""What runs between stem and head: branches, slices of them, and the merge of their outputs."""

from collections.abc import Mapping, Sequence

from torch import nn

from brevitas_multiquant.core.config import MultiQuantConfig
from brevitas_multiquant.core.output_structure import Value, run_part
from brevitas_multiquant.core.panel import Panel
from brevitas_multiquant.core.selection import BranchUse, Selection, bits_of_uses, uses_at


class MultiBranch(nn.Module):
    """Copies of one body, of which a bit-width runs some (paper, section 3.4).

    A branch is as wide as its widest use; where it runs narrower too, ``halves`` has the slice of
    it that does. One branch that runs at every bit-width is a network of one body.
    """

    branches: nn.ModuleList
    halves: nn.ModuleDict
    merge: nn.Module
    config: MultiQuantConfig
    _active: Panel

    def _hold(
        self,
        branches: Sequence[nn.Module],
        halves: Mapping[int, nn.Module],
        selection: Selection,
    ) -> None:
        """Register the branches, and look up once which module runs when."""
        self.branches = nn.ModuleList(branches)
        self.halves = nn.ModuleDict({str(index): half for index, half in halves.items()})
        uses = bits_of_uses(selection)
        self._widths = {index: max(u.width for u in uses if u.index == index) for index in halves}
        self._places = {
            bits: tuple((use.index, self._is_slice(use)) for use in uses_at(selection, bits))
            for bits in selection
        }

    @property
    def selection(self) -> Selection:
        """Bit-width -> indices of the branches that run."""
        return dict(self.config.selection)

    def branches_at(self, bits: int) -> list[nn.Module]:
        """The modules that run at a bit-width, in order: whole branches, then a half one if odd.

        Args:
            bits: one of `bits`.
        """
        return [
            self.halves[str(index)] if is_slice else self.branches[index]
            for index, is_slice in self._places[bits]
        ]

    def branch_of(self, use: BranchUse) -> nn.Module:
        """The module that runs a branch at one of its widths."""
        return self.halves[str(use.index)] if self._is_slice(use) else self.branches[use.index]

    def _is_slice(self, use: BranchUse) -> bool:
        return use.width < self._widths.get(use.index, use.width)

    def _run_branches(self, features: Value) -> list[Value]:
        return [run_part(branch, features) for branch in self.branches_at(self._active.bits)]

    def _by_branch(self, outputs: Sequence[Value]) -> dict[int, Value]:
        """Index of a branch that runs at the active bit-width -> its output."""
        running = self.config.selection[self._active.bits]
        return dict(zip(running, outputs, strict=True))
