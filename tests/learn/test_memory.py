"""Memory freed by one step serves the next without page faults."""

import subprocess
import sys

import pytest

from forwardsr.learn import memory

SCRIPT = """
import ctypes, resource, runpy, sys
if not runpy.run_path(sys.argv[1])["keep_freed_memory"]():
    sys.exit(3)
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
def faults(size):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = ctypes.c_void_p(libc.malloc(size))
    libc.memset(block, 1, ctypes.c_size_t(size))
    libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
first = faults(64 << 20)
later = sum(faults(size << 20) for size in (64, 48, 2, 64))
assert first > 1000 and later < first / 10, (first, later)
"""


def test_later_steps_have_no_page_faults() -> None:
    command = [sys.executable, "-c", SCRIPT, memory.__file__]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 3:
        pytest.skip("not glibc")
    assert done.returncode == 0, done.stderr
