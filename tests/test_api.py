"""The public names are there, and importing the package alone imports nothing heavy."""

import subprocess
import sys

import pytest

import forwardsr


def test_every_public_name_exists() -> None:
    for name in forwardsr.__all__:
        assert getattr(forwardsr, name) is not None
    assert set(dir(forwardsr)) == set(forwardsr.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = forwardsr.nonsense


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, forwardsr; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
