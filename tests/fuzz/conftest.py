"""A campaign for each test, and its figures at the end of the run, whichever process it ran in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fuzz.campaign import EXAMPLES, Campaign


@pytest.fixture
def campaign(tmp_path: Path, record_property: Callable[[str, object], None]) -> Iterator[Campaign]:
    directory = tmp_path.resolve() / "inside"
    directory.mkdir()
    (tmp_path / "outside").mkdir()
    yield Campaign(directory, record_property)
    assert list((tmp_path / "outside").iterdir()) == []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Ten thousand cases take minutes."""
    for item in items:
        if EXAMPLES > 1000 and "tests/fuzz" in str(item.path):
            item.add_marker(pytest.mark.timeout(3600))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    lines = [
        f"{value}{'' if outcome == 'passed' else '  FAILED'}"
        for outcome in ("passed", "failed")
        for report in terminalreporter.stats.get(outcome, [])
        for name, value in report.user_properties
        if name == "fuzz"
    ]
    if lines:
        terminalreporter.section("fuzzing")
        for line in sorted(lines):
            terminalreporter.line(line)
