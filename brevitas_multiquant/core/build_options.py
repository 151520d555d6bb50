"""How a network is built, beside what it is."""

from dataclasses import dataclass

from brevitas_multiquant.core.config import check_choice


@dataclass(frozen=True)
class BuildOptions:
    """How a network is built, beside what it is.

    Args:
        branch_init: ``"copy"``: each branch has the model's weights; ``"shuffle"``: each but the
            first a permutation of them.
        stem: module that ends the stem.
        head: module that starts the head.
        seed: of the permutations.

    Raises:
        ConfigError: a value outside its range.
    """

    branch_init: str = "copy"
    stem: str | None = None
    head: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("branch_init", self.branch_init, ("copy", "shuffle"))
