"""Memory that a training step frees is what the next one needs: have the C library keep it."""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's <malloc.h>
_GIBIBYTE = 1 << 30


def keep_freed_memory() -> bool:
    """From now on, this process keeps freed blocks of up to 1 GiB for itself; returns whether that could be arranged.

    glibc hands large freed blocks back to the system, which clears every page of them again when the next step asks for them:
    up to a quarter of a step on CPUs. Peak memory is the same; it is held until the process ends. Other C libraries than
    glibc are left as they are.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _GIBIBYTE)) and bool(mallopt(_TRIM_THRESHOLD, _GIBIBYTE))
