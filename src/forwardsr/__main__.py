"""``python -m forwardsr``: the console script, for ``torchrun`` among others."""

from forwardsr.cli import entry

entry()
