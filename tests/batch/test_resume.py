"""A manager that is killed loses nothing and does nothing twice."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from poncho_wq.batch.journal import Journal
from poncho_wq.batch.model import Batch, Job, State, Step
from poncho_wq.batch.spool import RECEIPT, Spool
from poncho_wq.errors import EngineError
from tests.batch.conftest import PATIENCE, drive, installed, job, managed

_MANAGER = """
import sys
from pathlib import Path
from poncho_wq.batch.journal import Journal
from poncho_wq.batch.manager import Manager
from poncho_wq.batch.spool import Spool
from poncho_wq.engines.opened import open_engine

save, kind = Path(sys.argv[1]), sys.argv[2]
with open_engine(kind, workers=2) as engine, Journal(Spool(save)) as journal, Manager(engine, journal) as manager:
    if engine.workers is not None:
        with open(save / "workers", "a") as file:
            file.writelines(f"{process.pid}\\n" for process in engine.workers.processes)
    manager.adopt(1)
    while not manager.idle:
        manager.turn(1)
"""


@pytest.fixture(autouse=True)
def _no_workers_left(tmp_path: Path) -> Iterator[None]:
    """Workers whose manager was killed would look for it for a minute."""
    yield
    told = tmp_path / "save" / "workers"
    for line in told.read_text().split() if told.exists() else []:
        # Only if it still is one: numbers are used again.
        with contextlib.suppress(OSError):
            if b"work_queue_worker" in Path(f"/proc/{line}/cmdline").read_bytes():
                os.kill(int(line), signal.SIGKILL)


def _start(save: Path, kind: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", _MANAGER, str(save), kind], start_new_session=True)


def _jobs(log: Path, count: int, seconds: float) -> list[Any]:
    """Each writes down when it begins and when it ends, and refuses to run beside itself."""
    text = (
        f"mkdir {log}/$0.running || exit 7; echo $0 >> {log}/began; sleep {seconds}; rmdir {log}/$0.running; echo done"
    )
    return [Job(name=f"j{n}", steps=(Step(argv=("/bin/sh", "-c", text, f"j{n}")),)) for n in range(count)]


def _add(save: Path, tarball: Path, jobs: list[Any]) -> None:
    with Journal(Spool(save)) as journal:
        journal.add(Batch(name="b", jobs=tuple(jobs), environment=str(tarball)), front_end="test")


def _wait_until(condition: Any) -> None:
    limit = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.05)


def _completed(save: Path) -> int:
    with Journal(Spool(save)) as journal:
        return journal.counts(1).get(State.COMPLETED, 0)


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()


def _clear_dead_runs(log: Path) -> None:
    """What was killed half way could not remove its mark; nothing of it may run any more."""
    for mark in log.glob("*.running"):
        mark.rmdir()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["local", "work_queue"])
def test_killed_in_the_middle_of_200_jobs(kind: str, tmp_path: Path, tarball: Path) -> None:
    installed(kind)
    log = tmp_path / "log"
    log.mkdir()
    save = tmp_path / "save"
    _add(save, tarball, _jobs(log, 200, 0.02))
    for enough in (20, 80, 140):
        manager = _start(save, kind)
        try:
            _wait_until(lambda enough=enough: _completed(save) >= enough)
        finally:
            _kill(manager)
        before = {path.parent.name: path.read_text() for path in (save / "b").glob(f"*/{RECEIPT}")}
        # Those who lost their manager must end before anything is run again; the next manager waits for it by itself.
        with Journal(Spool(save)) as journal:
            running = [each for each in journal.jobs(1) if each.state in (State.SUBMITTED, State.RUNNING)]
        assert running
        _wait_for_locks(save, [each.id for each in running])
        _clear_dead_runs(log)
    manager = _start(save, kind)
    try:
        assert manager.wait(PATIENCE) == 0
    finally:
        _kill(manager)
    with Journal(Spool(save)) as journal:
        jobs = journal.jobs(1)
        attempts = journal.attempts(1)
    assert {each.state for each in jobs} == {State.COMPLETED}
    assert all((save / "b" / each.name / "stdout.txt").read_text() == "done\n" for each in jobs)
    assert sorted(os.listdir(save / "b")) == sorted(each.name for each in jobs)
    # What had been published before the last kill was not run again.
    assert all((save / "b" / name / RECEIPT).read_text() == text for name, text in before.items())
    # Each completed once, however often it was begun.
    completed = [attempt.job for attempt in attempts if attempt.state is State.COMPLETED]
    assert len(completed) == len(set(completed)) == 200


def _wait_for_locks(save: Path, jobs: list[int]) -> None:
    from poncho_wq.scratch import held

    for number in jobs:
        with held(Spool(save).job_lock(number), timeout=PATIENCE):
            pass


def test_a_job_that_outlives_its_manager_is_ended_before_it_runs_again(tmp_path: Path, tarball: Path) -> None:
    log, save = tmp_path / "log", tmp_path / "save"
    log.mkdir()
    # The second time, one that is still there would make it exit 7.
    text = (
        f"mkdir {log}/running || exit 7; echo x >> {log}/began; trap '' TERM; [ -e {log}/again ] || sleep 60; echo ok"
    )
    _add(save, tarball, [job("a", text)])
    manager = _start(save, "local")
    try:
        _wait_until((log / "began").exists)
    finally:
        _kill(manager)
    (log / "again").touch()
    waited: list[str] = []
    with managed(save) as (second, journal):
        second.adopt(1, on_wait=waited.append)
        (log / "running").rmdir()
        drive(second)
        record = journal.jobs(1)[0]
    assert (record.state, record.exit_code, record.attempt) == (State.COMPLETED, 0, 2)
    assert waited in ([], ["a"])


def test_results_published_by_a_dead_manager_are_adopted(tmp_path: Path, tarball: Path, monkeypatch: Any) -> None:
    save = tmp_path / "save"
    began = tmp_path / "began"
    _add(save, tarball, [job("a", f"echo x >> {began}; exit 3")])

    class Dead(BaseException):
        pass

    def die(*_: Any, **__: Any) -> None:
        raise Dead

    with managed(save) as (manager, journal):
        manager.adopt(1)
        with monkeypatch.context() as patch:
            patch.setattr(journal, "end_attempt", die)
            with pytest.raises(Dead):
                drive(manager)
    with managed(save) as (manager, journal):
        assert journal.jobs(1)[0].state is State.RUNNING or journal.jobs(1)[0].state is State.SUBMITTED
        manager.adopt(1)
        assert manager.idle
        assert journal.jobs(1)[0].words == "failed (exit 3)"
    assert began.read_text() == "x\n"


def test_two_managers_do_not_run_one_batch(tmp_path: Path, tarball: Path) -> None:
    _add(tmp_path, tarball, [job("a")])
    with managed(tmp_path) as (first, _), managed(tmp_path) as (second, _):
        first.adopt(1)
        with pytest.raises(EngineError, match=rf"the batch b is being run by process {os.getpid()} on"):
            second.adopt(1)


def test_two_managers_run_two_batches_of_one_journal(tmp_path: Path, tarball: Path) -> None:
    with Journal(Spool(tmp_path)) as journal:
        for name in ("one", "two"):
            journal.add(Batch(name=name, jobs=(job("a"),), environment=str(tarball)), front_end="test")
        with managed(tmp_path) as (first, _), managed(tmp_path) as (second, _):
            first.adopt(1)
            second.adopt(2)
            drive(first)
            drive(second)
        assert [journal.counts(n) for n in (1, 2)] == [{State.COMPLETED: 1}] * 2
