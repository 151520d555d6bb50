"""``python -m brevitas_multiquant``."""

import sys

from brevitas_multiquant.cli import main

sys.exit(main())
