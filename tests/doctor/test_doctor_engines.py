"""Managers and workers that cannot understand each other are found before a queue waits for ever."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from poncho_wq.doctor import engines
from poncho_wq.doctor.finding import Finding
from tests.doctor import stand_ins


def doctor(check: str, *, path: list[Path], python_path: Path | None = None) -> tuple[list[dict[str, str]], int]:
    """The findings of one engine, and the exit status."""
    environ = os.environ | {"PATH": ":".join([*map(str, path), "/usr/bin", "/bin"])}
    if python_path is not None:
        environ["PYTHONPATH"] = str(python_path)
    done = subprocess.run(
        [sys.executable, "-m", "poncho_wq.cli.doctor", "--json", "--offline", "--timeout", "5"],
        env=environ, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.stderr == ""
    return [each for each in json.loads(done.stdout) if each["check"] == check], done.returncode


@pytest.mark.parametrize("tells", [True, False], ids=["its status tells", "it is greeted"])
def test_a_newer_manager_and_an_older_worker(tmp_path: Path, tells: bool) -> None:
    theirs = stand_ins.binding(tmp_path / "python", 11, tells=tells)
    old = stand_ins.worker(tmp_path / "old", 9)
    found, status = doctor("work_queue", path=[old.parent], python_path=theirs)
    assert status == 1
    (bad,) = [each for each in found if each["level"] == "problem"]
    assert "speaks protocol 9 and the manager 11" in bad["text"]
    assert "conda install -c conda-forge ndcctools" in bad["mend"]


def test_the_worker_that_fits_is_further_down_path(tmp_path: Path) -> None:
    theirs = stand_ins.binding(tmp_path / "python", 11, tells=True)
    old, new = stand_ins.worker(tmp_path / "old", 9), stand_ins.worker(tmp_path / "new", 11)
    found, status = doctor("work_queue", path=[old.parent, new.parent], python_path=theirs)
    (bad,) = [each for each in found if each["level"] == "problem"]
    assert (status, bad["mend"]) == (1, f'export PATH="{new.parent}:$PATH"')


def test_a_pair_that_fits_is_no_problem(tmp_path: Path) -> None:
    theirs = stand_ins.binding(tmp_path / "python", 12, tells=False)
    found, status = doctor("work_queue", path=[stand_ins.worker(tmp_path / "bin", 12).parent], python_path=theirs)
    assert "problem" not in {each["level"] for each in found}
    assert any("worker" in each["text"] and "protocol 12" in each["text"] for each in found)
    assert status == 0


def test_a_manager_that_cannot_start(tmp_path: Path) -> None:
    theirs = stand_ins.binding(tmp_path / "python", 11, tells=True)
    module = theirs / "ndcctools" / "work_queue.py"
    module.write_text(module.read_text().replace("self.links = []", "raise OSError('no ports left')"))
    found, status = doctor("work_queue", path=[], python_path=theirs)
    (bad,) = [each for each in found if each["level"] == "problem"]
    assert "OSError: no ports left" in bad["text"]
    assert status == 1


def of_workers(monkeypatch: pytest.MonkeyPatch, workers: list[str], protocol: int | None = 11) -> list[Finding]:
    """What is said of workers beside a manager that speaks ``protocol``."""
    manager = engines._Manager("/opt/lib/work_queue.py", protocol)
    return list(engines._workers(engines._WORK_QUEUE, manager, workers, 3))


def test_a_worker_that_is_something_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = of_workers(monkeypatch, [str(stand_ins.worker(tmp_path / "bin", None))])
    assert found.level == "problem"
    assert "does not greet" in found.text


def test_a_worker_that_says_why_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "work_queue_worker"
    program.write_text("#!/bin/sh\necho 'libcctools.so: cannot open shared object file' >&2\nexit 127\n")
    program.chmod(0o755)
    (found,) = of_workers(monkeypatch, [str(program)])
    assert found.level == "problem"
    assert "libcctools.so: cannot open" in found.text
    assert found.mend


def test_a_worker_for_another_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "work_queue_worker"
    program.write_bytes(b"\x7fELF not really")
    program.chmod(0o755)
    (found,) = of_workers(monkeypatch, [str(program)])
    assert found.level == "problem"


def test_a_debian_manager_is_told_debians_worker(tmp_path: Path) -> None:
    manager = engines._Manager("/usr/lib/python3/dist-packages/work_queue.py", 9)
    worker = stand_ins.worker(tmp_path / "bin", 11)
    (found,) = engines._workers(engines._WORK_QUEUE, manager, [str(worker)], 3)
    assert found.level == "problem"
    assert "/usr/bin/work_queue_worker" in (found.mend or "")


@pytest.mark.skipif(shutil.which("work_queue_worker") is None, reason="needs Debian's Work Queue")
def test_the_real_ones_here_fit(tmp_path: Path) -> None:
    found = list(engines.work_queue(10))
    assert [each.level for each in found][:2] == ["ok", "ok"]
    assert all("protocol" in each.text for each in found[:2])


def test_an_engine_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from poncho_wq.errors import EngineNotInstalled

    missing = EngineNotInstalled("not found", engine="work_queue")
    monkeypatch.setattr(engines, "_programs", lambda name: [])
    (found,) = engines._engine(engines._WORK_QUEUE, missing, 1)
    assert (found.level, "apt-get install" in (found.mend or "")) == ("warning", True)
    (found,) = engines._engine(engines._TASKVINE, missing, 1)
    assert found.level == "note"
    # Workers alone show that somebody means to use it.
    monkeypatch.setattr(engines, "_programs", lambda name: ["/opt/bin/vine_worker"])
    (found,) = engines._engine(engines._TASKVINE, missing, 1)
    assert (found.level, "/opt/bin/vine_worker" in found.text) == ("warning", True)


def test_no_workers_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "_programs", lambda name: [])
    monkeypatch.setattr(engines, "_manager_protocol", lambda kind, seconds: engines._Manager("/x.py", 11))
    found = list(engines._engine(engines._WORK_QUEUE, None, 1))
    assert [each.level for each in found] == ["ok", "warning"]
    assert "work_queue_worker is not on PATH" in found[1].text
