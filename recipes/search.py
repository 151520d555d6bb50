"""``brevitas_multiquant.recipes.search`` of this clone, by its path."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from brevitas_multiquant.recipes.search import main

if __name__ == "__main__":
    sys.exit(main())
