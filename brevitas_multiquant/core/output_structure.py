"""How the tensors that a forward gives are put together: alone, in tuples, lists, dicts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

Value = Tensor | tuple[Tensor, ...]
"""What one part of a network hands to the next: one tensor, or several."""


class _ATensor:
    """Stands where a tensor does."""

    def __repr__(self) -> str:
        return "Tensor"

    def __reduce__(self) -> str:
        return "A_TENSOR"


A_TENSOR = _ATensor()


@dataclass(frozen=True)
class OutputStructure:
    """What a forward returns, without the tensors in it.

    Containers are those of torch's pytree: tuples, lists, dicts, ordered dicts, named tuples, and
    what is registered with it. What is no tensor in them (None, numbers) is kept as it is.

    Args:
        spec: the containers.
        leaves: what is in them, in order: `A_TENSOR`, or a constant.

    Example:
        >>> import torch
        >>> structure = OutputStructure.of({"out": torch.zeros(1), "size": 3, "aux": torch.ones(1)})
        >>> structure.names
        ('out', 'aux')
        >>> structure.rebuild([torch.zeros(2), torch.ones(2)])
        {'out': tensor([0., 0.]), 'size': 3, 'aux': tensor([1., 1.])}
    """

    spec: Any
    leaves: tuple[Any, ...]

    @classmethod
    def of(
        cls, output: Any, is_tensor: Callable[[Any], bool] = lambda leaf: isinstance(leaf, Tensor)
    ) -> "OutputStructure":
        """The structure of what a forward has returned.

        Args:
            output: what it returned.
            is_tensor: tells what stands for a tensor.
        """
        leaves, spec = pytree.tree_flatten(output)
        return cls(spec, tuple(A_TENSOR if is_tensor(leaf) else leaf for leaf in leaves))

    @property
    def is_one_tensor(self) -> bool:
        """Whether it is a tensor and no container."""
        return self.leaves == (A_TENSOR,) and self.spec == ONE_TENSOR.spec

    @property
    def names(self) -> tuple[str, ...]:
        """Where each tensor stands, joined by dots; ``"output"`` where it stands alone.

        A place in a sequence is ``"output_0"``: graphs take no number for a name.
        """
        marked = pytree.tree_unflatten(list(self.leaves), self.spec)
        places = pytree.tree_flatten_with_path(marked)[0]
        names = (".".join(map(_key, path)) for path, leaf in places if leaf is A_TENSOR)
        return tuple(f"output_{n}" if n.isdigit() else n or "output" for n in names)

    def tensors(self, output: Any) -> tuple[Tensor, ...]:
        """The tensors in an output of this structure, in order."""
        leaves = pytree.tree_flatten(output)[0]
        pairs = zip(leaves, self.leaves, strict=True)
        return tuple(leaf for leaf, known in pairs if known is A_TENSOR)

    def rebuild(self, tensors: Value | Sequence[Tensor]) -> Any:
        """The output that holds these tensors."""
        if isinstance(tensors, Tensor):
            tensors = (tensors,)
        rest = iter(tensors)
        leaves = [next(rest) if leaf is A_TENSOR else leaf for leaf in self.leaves]
        return pytree.tree_unflatten(leaves, self.spec)

    def with_pieces(self, pieces: Sequence[Sequence[Any] | None]) -> "OutputStructure":
        """The structure where some tensors turn out to be sequences of tensors.

        Args:
            pieces: for each tensor the sequence that stands in its place, or None.

        Example:
            >>> import torch
            >>> structure = OutputStructure.of({"out": torch.zeros(1), "aux": torch.ones(1)})
            >>> str(structure.with_pieces([[A_TENSOR, A_TENSOR], None]))
            "{'out': [Tensor, Tensor], 'aux': Tensor}"
        """
        tensors: list[Any] = [A_TENSOR if piece is None else piece for piece in pieces]
        return OutputStructure.of(self.rebuild(tensors), lambda leaf: leaf is A_TENSOR)

    def part_of(self, output: Any) -> Any:
        """What of an output this structure has: a forward may give more while it trains.

        The first of a sequence where this is one tensor, the entries of these names of a mapping.
        """
        if self.is_one_tensor and isinstance(output, Sequence) and len(output):
            return output[0]
        own = self.rebuild([A_TENSOR] * self.leaves.count(A_TENSOR))  # type: ignore[list-item]
        if isinstance(own, Mapping) and isinstance(output, Mapping) and own.keys() < output.keys():
            kept = {key: output[key] for key in own}
            return pytree.tree_unflatten(pytree.tree_flatten(kept)[0], self.spec)
        return output

    def __str__(self) -> str:
        return repr(pytree.tree_unflatten(list(self.leaves), self.spec))


def _key(entry: Any) -> str:
    """A step of a path: an index, a key, or the name of a field."""
    found = (getattr(entry, name) for name in ("idx", "key", "name") if hasattr(entry, name))
    return str(next(found, entry))


ONE_TENSOR = OutputStructure.of(A_TENSOR, lambda leaf: leaf is A_TENSOR)
"""Of most classifiers: logits."""


def tensors_of(value: Value) -> tuple[Tensor, ...]:
    """The tensors that one part hands to the next."""
    return value if isinstance(value, tuple) else (value,)


def run_part(part: Callable[..., Any], value: Value) -> Any:
    """What a part makes of what the one before it has given."""
    return part(*tensors_of(value))
