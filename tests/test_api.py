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


def test_no_public_name_is_hidden_by_a_subpackage() -> None:
    """Importing ``forwardsr.x`` sets the attribute ``x``: a function of that name would then be a module."""
    code = (
        "import forwardsr, types, pkgutil, importlib\n"
        "for m in pkgutil.iter_modules(forwardsr.__path__):\n"
        "    if m.name != '__main__': importlib.import_module('forwardsr.' + m.name)\n"
        "assert not [n for n in forwardsr.__all__ if isinstance(getattr(forwardsr, n), types.ModuleType)]\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
