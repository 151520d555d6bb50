"""One of two processes of a search: writes what it found."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from brevitas_multiquant.recipes import search
from brevitas_multiquant.recipes.options.search import parse_search


def main(output: Path, argv: Sequence[str]) -> None:
    """Search, and write to ``output`` what this rank settled on."""
    kept: dict[str, Any] = {}
    settle = search.settle_when_due

    def settle_and_tell(run: Any) -> None:
        settle(run)
        settled = run.trainee.search.settled
        if settled is not None:
            allocation = settled.allocation
            kept.update(settled.to_dict(), cost=allocation.cost, budget=allocation.budget)

    search.settle_when_due = settle_and_tell
    search.search(parse_search(argv))
    (output / f"rank{os.environ['RANK']}.json").write_text(json.dumps(kept))
