"""The example and the first lines of the documentation do what they say."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from poncho_wq.batch.prominence import settings
from tests.prominence.conftest import PATIENCE, Service

ROOT = Path(__file__).resolve().parents[2]


def _run(file: Path, directory: Path) -> str:
    done = subprocess.run(
        [sys.executable, file], cwd=directory, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_the_example(here: Service, tmp_path: Path) -> None:
    lines = _run(ROOT / "examples/prominence_sweep.py", tmp_path).splitlines()
    assert lines[0] == "square_0: 0.0 squared is 0.00"
    assert lines[3] == "square_3: 0.3 squared is 0.09"
    assert lines[4] == "last: all of them are done"
    assert re.fullmatch(r"workflow \d+: completed", lines[5])


def test_the_page_begins_with_a_script_that_runs(here: Service, tmp_path: Path) -> None:
    text = (ROOT / "docs/prominence.md").read_text()
    (script,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "environment.yml").write_text("name: x\nchannels: []\ndependencies:\n- pip:\n  - packaging\n")
    (tmp_path / "simulate.py").write_text("import packaging; print('simulated')")
    (tmp_path / "script.py").write_text(script)
    assert _run(tmp_path / "script.py", tmp_path) == "simulated\n\n"


def test_the_page_names_every_setting() -> None:
    text = (ROOT / "docs/prominence.md").read_text()
    for name in settings.Settings.__slots__:
        assert f"`{name.upper()}`" in text, name


def test_the_page_says_where_workers_reach_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs/prominence.md").read_text()
    row = next(line for line in page.splitlines() if line.startswith("| `ADDRESS`"))
    monkeypatch.delenv("PONCHO_PROMINENCE_ADDRESS", raising=False)
    monkeypatch.setenv("PONCHO_PROMINENCE_ENGINE", "local")
    assert settings.settings().address in row
    assert "its name" in row


def test_settings_that_a_running_service_does_not_have(
    here: Service, job: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = job("true")
    first.create()
    monkeypatch.setenv("PONCHO_PROMINENCE_ENGINE", "work_queue")
    monkeypatch.setenv("PONCHO_PROMINENCE_WORKERS", "3")
    with pytest.warns(
        UserWarning, match=rf"process {here.pid}.*not used: engine=work_queue \(it has local\), workers=3"
    ):
        job("true").create()
