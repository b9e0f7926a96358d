"""``python -m forwardsr``, alone or under ``torchrun``."""

import sys

from forwardsr.cli import main
from forwardsr.parallel import run

sys.exit(run(main))
