"""Losses of outputs that are several: one for each entry of a dict, a tuple or a list."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from brevitas_multiquant.errors import ConfigError
from brevitas_multiquant.training.criteria import (
    ONE_LABEL,
    Criterion,
    check_reads_a_teacher,
    distill_criterion_for,
    kind_of,
    loss_of,
)

Key = str | int
"""Of a mapping, of a named tuple's field, or the place in a tuple or list."""

Losses = Criterion | Mapping[Any, Any] | Sequence[Any]
"""What is given as a criterion: one of the whole output, or for each entry of it another one of
these, in a mapping by its key, or in a list or tuple by its place; None for an entry that is not
learned from."""


class EntryLosses(nn.Module):
    """A criterion for an output of several entries: a loss for each, added up.

    Args:
        criteria: key of the entry -> its criterion (output, target) -> scalar; None where the entry
            is not learned from. Entries of an entry: another `EntryLosses` in its place, or what
            one is made of.
        weights: key -> factor of its loss; 1 where there is none.

    Raises:
        ConfigError: no criterion at all, or something else; weights of other entries; when it runs,
            entries that the output has not, or that have no criterion, and targets that the
            criteria do not take.

    Example:
        >>> losses = EntryLosses(
        ...     {"out": nn.CrossEntropyLoss(), "aux": nn.CrossEntropyLoss()}, {"aux": 0.5}
        ... )
        >>> scores = torch.zeros(1, 2, 4, 4)  # a number for each class and pixel
        >>> losses({"out": scores, "aux": scores}, torch.zeros(1, 4, 4).long())
        tensor(1.0397)
    """

    def __init__(
        self,
        criteria: Mapping[Any, Any] | Sequence[Any],
        weights: Mapping[Any, float] | None = None,
    ) -> None:
        super().__init__()
        given = criteria if isinstance(criteria, Mapping) else dict(enumerate(criteria))
        self.criteria = {
            key: None if one is None else as_criterion(one, _of_entry("criterion", key))
            for key, one in given.items()
        }
        self.weights = dict(weights or {})
        if all(criterion is None for criterion in self.criteria.values()):
            raise ConfigError("criterion: expected a loss for at least one entry, got none")
        if unknown := sorted(map(repr, self.weights.keys() - self.criteria.keys())):
            raise ConfigError(
                f"weights: expected factors of the entries {list(self.criteria)}, got those of "
                f"{', '.join(unknown)}"
            )
        for key, criterion in self.criteria.items():
            if isinstance(criterion, nn.Module):  # moved with the task, as a class weight has to
                self.add_module(f"of_{key}".replace(".", "_"), criterion)

    def forward(self, output: Any, target: Any) -> Tensor:
        """The weighted sum of the entries' losses.

        Args:
            output: what the network returned.
            target: a container with the same keys, or one target for all entries.
        """
        targets = entries_of(target) or dict.fromkeys(self.criteria, target)
        if missing := [key for key, _, _ in self.parts(output) if key not in targets]:
            raise ConfigError(
                f"target: expected the entries {list(self.criteria)}, or one target for all, got "
                f"none for {missing}"
            )
        losses = [
            self.weights.get(key, 1.0)
            * loss_of(criterion, part, targets[key], _of_entry("criterion", key))
            for key, criterion, part in self.parts(output)
        ]
        return torch.stack(losses).sum()

    def parts(self, output: Any, where: str = "criterion") -> Iterator[tuple[Key, Criterion, Any]]:
        """Each entry that is learned from, with its criterion.

        Args:
            output: what the network returned.
            where: what this is called in errors.

        Raises:
            ConfigError: entries without a criterion, or criteria without an entry.
        """
        entries = entries_of(output)
        if entries is None or entries.keys() != self.criteria.keys():
            got = "a tensor" if entries is None else f"the entries {list(entries)}"
            raise ConfigError(
                f"{where}: expected an output with the entries {list(self.criteria)}, got {got}: "
                "name a loss for each, None for those that are not learned from"
            )
        for key, criterion in self.criteria.items():
            if criterion is not None:
                yield key, criterion, entries[key]


def entries_of(output: Any) -> dict[Any, Any] | None:
    """Key -> what an output holds there; None for what is no container.

    Example:
        >>> entries_of([3, 4])
        {0: 3, 1: 4}
    """
    if hasattr(output, "_asdict"):
        return dict(output._asdict())
    if isinstance(output, Mapping):
        return dict(output)
    return dict(enumerate(output)) if isinstance(output, tuple | list) else None


def _of_entry(where: str, key: Key) -> str:
    return f"{where} of {key!r}"


def as_criterion(given: Losses, where: str = "criterion") -> Criterion:
    """A criterion, which a mapping, a list or a tuple of entries becomes too.

    Args:
        given: what was passed for one.
        where: what it is called in errors.

    Raises:
        ConfigError: neither, such as a class in place of a criterion made of it.
    """
    if isinstance(given, Mapping | list | tuple):
        return EntryLosses(given)
    if isinstance(given, type) or not callable(given):
        made = f": make one, {given.__name__}()" if isinstance(given, type) else ""
        raise ConfigError(
            f"{where}: expected a function of an output and a target, or one for each entry of an "
            f"output of several, got {given!r}{made}"
        )
    return given


def distillation_of(criterion: Criterion) -> Criterion:
    """The distillation loss that goes with a criterion, entry by entry, with the same weights.

    Raises:
        ConfigError: as of `distill_criterion_for`.
    """
    if not isinstance(criterion, EntryLosses):
        return distill_criterion_for(criterion)
    own = {
        key: None if one is None else distillation_of(one)
        for key, one in criterion.criteria.items()
    }
    return EntryLosses(own, criterion.weights)


def check_distillation(criterion: Criterion) -> None:
    """Refuse a criterion, or one of an entry, that cannot read a teacher's output."""
    if not isinstance(criterion, EntryLosses):
        return check_reads_a_teacher(criterion)
    for one in criterion.criteria.values():
        if one is not None:
            check_distillation(one)


def check_classes(criterion: Criterion, output: Any, where: str = "criterion") -> None:
    """Refuse cross entropies of one class, and known criteria of a container.

    Args:
        criterion: as of the task.
        output: what the network returned.
        where: what it is called in errors.

    Raises:
        ConfigError: saying what to use.
    """
    if isinstance(criterion, EntryLosses):
        for key, one, part in criterion.parts(output, where):
            check_classes(one, part, _of_entry(where, key))
        return
    kind = kind_of(criterion)
    if kind is not None and not isinstance(output, Tensor):
        raise ConfigError(
            f"{where}: expected a loss for each entry of an output of several, got one for a "
            f"tensor: pass {where}={{key: loss}} for {list(entries_of(output) or ())}"
        )
    if kind == ONE_LABEL and (output.dim() < 2 or output.shape[1] == 1):
        raise ConfigError(
            f"{where}: expected logits (N, classes) of two classes or more, got "
            f"{tuple(output.shape)}: the softmax of one output is 1 and its cross entropy 0, "
            "so that nothing would be learned: use criterion=nn.BCEWithLogitsLoss() with a "
            "float target (N, 1), or nn.MSELoss() for a value"
        )
