"""What all tests share: one cache for the run, so that an environment is built once, and processes that always end."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Tests describe their own configuration; what the person who runs them has set must not change a result.
for name in ("PYTHONPATH", "PYTHONHOME", "PONCHO_CACHE_DIR", "PONCHO_STATS", "WORK_QUEUE_SANDBOX"):
    os.environ.pop(name, None)


# A run that was started in the background of a script ignores these, and so would every program that a test starts.
for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


@pytest.fixture(scope="session")
def run_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that all processes of this test run share, also under pytest-xdist."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base


@pytest.fixture(scope="session")
def shared_cache(run_directory: Path) -> Path:
    """The environment cache of this test run.  Its own locks keep parallel tests from building anything twice."""
    root = run_directory / "shared-cache"
    root.mkdir(mode=0o700, exist_ok=True)
    return root


@pytest.fixture(scope="session")
def _no_cache_of_the_user(run_directory: Path) -> None:
    """Nothing that a test does may end in the user's own cache."""
    os.environ["PONCHO_CACHE_DIR"] = str(run_directory / "default-cache")


@pytest.fixture(autouse=True)
def _isolated(_no_cache_of_the_user: None) -> None:
    """Applies the session's isolation to every test."""


@pytest.fixture(scope="session")
def programs() -> Path:
    """The directory of this installation's commands (`poncho_package_create` and the like)."""
    directory = Path(sys.executable).parent
    if not (directory / "poncho-wq").exists():
        pytest.fail("poncho_wq is not installed in this Python: pip install -e '.[test]'")
    return directory


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List what was skipped, with its reason: a skip must never look like a pass."""
    skipped = terminalreporter.stats.get("skipped", [])
    if skipped:
        terminalreporter.section("not run here")
        for report in skipped:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
            terminalreporter.line(f"{report.nodeid}: {reason}")
