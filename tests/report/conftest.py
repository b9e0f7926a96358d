"""A browser and two pages, made once for all tests of the report."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from browser import CHROMIUM, Browser
from synthetic import make_run

from forwardsr.report.page import write_report

HOSTILE = '</script><script>document.title="broken"</script><img src=x onerror=alert(1)> & "quoted" \'too\''


@pytest.fixture(scope="session")
def one_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of one run whose every text tries to break out of the page."""
    folder = tmp_path_factory.mktemp("one")
    run = make_run(folder / "run <b>bold", source=HOSTILE, method=HOSTILE, message=HOSTILE)
    return write_report([run], folder / "page.html")


@pytest.fixture(scope="session")
def two_runs_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    runs = [make_run(folder / "first", sides=(8, 16)), make_run(folder / "second", seed=1, reports=2, sides=(12, 24))]
    return write_report(runs, folder / "page.html")


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium or Chrome is installed")
    with Browser(tmp_path_factory.mktemp("profile")) as page:
        yield page
