"""One of two processes of a search: writes what it found."""

import json
import os
import sys
from pathlib import Path
from typing import Any

from brevitas_multiquant.recipes import search
from brevitas_multiquant.recipes.options.search import parse_search

if __name__ == "__main__":
    kept: dict[str, Any] = {}
    settle = search.settle_when_due

    def settle_and_tell(run: Any) -> None:
        settle(run)
        settled = run.trainee.search.settled
        if settled is not None:
            allocation = settled.allocation
            kept.update(settled.to_dict(), cost=allocation.cost, budget=allocation.budget)

    search.settle_when_due = settle_and_tell
    search.search(parse_search(sys.argv[2:]))
    path = Path(sys.argv[1]) / f"rank{os.environ['RANK']}.json"
    path.write_text(json.dumps(kept))
