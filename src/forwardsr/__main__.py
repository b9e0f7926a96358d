"""``python -m forwardsr``."""

from forwardsr.cli import entry

entry()
