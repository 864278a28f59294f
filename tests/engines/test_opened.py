"""Engines opened by kind: what was started ends, and each behaves as the others do."""

from __future__ import annotations

import gc
import os
import shlex
import time
import weakref
from pathlib import Path
from typing import Any

import pytest

from poncho_wq.engines.backlog import LEAST, Backlog, depth
from poncho_wq.engines.opened import Capacity, Needs, open_engine
from poncho_wq.engines.workers import TASKVINE, WORK_QUEUE, LocalWorkers
from poncho_wq.errors import EngineError, EngineNotInstalled, TaskError
from tests.engines.conftest import PATIENCE
from tests.engines.opened_engines import KINDS, opened


def double(x: int) -> int:
    return x * 2


def _finish(engine: Any, count: int) -> list[Any]:
    done: list[Any] = []
    until = time.monotonic() + PATIENCE
    while len(done) < count:
        task = engine.wait(1)
        if task is not None:
            done.append(task)
        elif time.monotonic() > until:
            pytest.fail(f"{count - len(done)} tasks never came back")
    return done


@pytest.fixture(scope="module")
def environment(shared_cache: Path) -> Any:
    import poncho_wq

    return poncho_wq.environment({"env": {"WORD": "opened"}}, cache_dir=shared_cache)


@pytest.mark.parametrize("factory", [None, "local"])
@pytest.mark.parametrize("kind", ["work_queue", "taskvine"])
def test_workers_that_are_started_know_the_password(
    kind: str, factory: str | None, environment: Any, tmp_path: Path
) -> None:
    words = tmp_path / "words"
    words.write_text("open sesame\n")
    with opened(kind, workers=1, factory=factory, password_file=str(words), directory=tmp_path) as engine:
        task = engine.PonchoTask(double, 21, environment=environment)
        engine.need(task, Needs())
        engine.submit(task)
        assert _finish(engine, 1) == [task]
        assert task.output == 42


def test_a_password_file_that_is_not_there(tmp_path: Path) -> None:
    with (
        pytest.raises(EngineError, match="none: there is no such password file"),
        opened("work_queue", workers=1, password_file=str(tmp_path / "none")),
    ):
        pass


@pytest.mark.parametrize("kind", ["work_queue", "taskvine"])
def test_a_password_file_that_holds_none(kind: str, tmp_path: Path) -> None:
    """With which a manager would want no password at all."""
    (tmp_path / "empty").touch()
    with (
        pytest.raises(EngineError, match="empty: the password file is empty, or cannot be read"),
        opened(kind, workers=1, password_file=str(tmp_path / "empty")),
    ):
        pass


@pytest.mark.parametrize("retries", [1, 2])
def test_a_task_is_given_up_when_its_workers_die(retries: int, environment: Any, tmp_path: Path) -> None:
    """Not before it was tried again as often as it may be."""
    tries = tmp_path / "tries"

    def take_the_worker_along(tries: str) -> None:
        import signal

        with open(tries, "a") as file:
            file.write("x")
        pid = os.getpid()
        while not Path(f"/proc/{pid}/comm").read_text().startswith("work_queue_wo"):
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(pid, signal.SIGKILL)
        os._exit(1)  # what it has of its worker, such as the connection, must not outlive that

    with opened("work_queue", workers=1, directory=tmp_path) as engine:
        task = engine.PonchoTask(take_the_worker_along, str(tries), environment=environment)
        engine.need(task, Needs(retries=retries))
        engine.submit(task)
        until, back = time.monotonic() + PATIENCE, None
        while back is None and time.monotonic() < until:
            back = engine.wait(1)
            engine.workers.replace_dead()
        assert back is task
        assert isinstance(task.output, TaskError)
        assert tries.read_text() == "x" * (1 + retries)


@pytest.mark.parametrize("kind", KINDS)
def test_tasks_capacity_features_and_cancel(kind: str, environment: Any, tmp_path: Path) -> None:
    with opened(kind, workers=1, cores=2, features=("fast",), directory=tmp_path) as engine:
        task = engine.PonchoTask(double, 21, environment=environment)
        engine.need(task, Needs(cores=1, features=("fast",), retries=2, priority=1))
        engine.submit(task)
        assert _finish(engine, 1) == [task]
        assert task.output == 42
        assert (engine.capacity().workers, engine.capacity().cores) == (1, 2)
        running = tmp_path / "running"
        cancelled = engine.PonchoTask(f"touch {shlex.quote(str(running))}; sleep 600", environment=environment)
        cut_off = engine.PonchoTask("sleep 600", environment=environment)
        after = engine.PonchoTask("true", environment=environment)
        for each in (cancelled, cut_off, after):
            engine.need(each, Needs())
        engine.submit(cancelled)
        until = time.monotonic() + 60
        while not running.exists():
            assert time.monotonic() < until
            engine.wait(1)
        engine.cancel(cancelled)
        engine.cancel(cancelled)
        engine.submit(after)
        assert _finish(engine, 1) == [after]
        # What is still there ends with the block.
        engine.submit(cut_off)
        engine.wait(1)
        processes = [] if engine.workers is None else list(engine.workers.processes)
        assert len(processes) == (kind != "local")
    assert all(process.returncode is not None for process in processes)
    assert _running_below(tmp_path) == []


def _running_below(directory: Path) -> list[str]:
    """The processes whose current directory is in ``directory``."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            where = os.readlink(f"/proc/{pid}/cwd")
        except OSError:
            continue
        if Path(where).is_relative_to(directory):
            found.append(f"{pid} {where}")
    return found


@pytest.mark.parametrize("kind", ["work_queue", "taskvine"])
def test_a_worker_of_somebody_else_is_given_nothing(kind: str, environment: Any, tmp_path: Path) -> None:
    (tmp_path / "foreign").mkdir()
    program = WORK_QUEUE if kind == "work_queue" else TASKVINE
    with (
        opened(kind, workers=1, directory=tmp_path) as engine,
        LocalWorkers(engine.queue.port, count=2, program=program, directory=tmp_path / "foreign"),
    ):
        for _ in range(6):
            engine.submit(engine.PonchoTask("pwd; sleep 0.3", environment=environment))
        places = [Path(task.std_output.strip()) for task in _finish(engine, 6)]
        assert [place for place in places if place.is_relative_to(tmp_path / "foreign")] == []
        assert engine.capacity().workers == 1


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_started_ends_with_an_error_too(kind: str) -> None:
    seen: list[Any] = []
    with pytest.raises(ZeroDivisionError):
        _fail_inside(kind, seen)
    queue, processes = seen
    assert all(process.returncode is not None for process in processes)
    gc.collect()
    assert queue() is None


def _fail_inside(kind: str, seen: list[Any]) -> None:
    with opened(kind, workers=2) as engine:
        seen += [weakref.ref(engine.queue), [] if engine.workers is None else list(engine.workers.processes)]
        raise ZeroDivisionError


def test_the_embedded_engine_refuses_a_feature_that_nobody_declared() -> None:
    with open_engine("local", features=("here",)) as engine:
        task = engine.PonchoTask("true", environment={})
        engine.need(task, Needs(features=("here",)))
        with pytest.raises(EngineError, match="'gpu-box'"):
            engine.need(task, Needs(features=("gpu-box",)))


def test_unknown_kinds_and_impossible_workers_are_refused() -> None:
    with pytest.raises(EngineError, match="choose one of work_queue, taskvine, local"), open_engine("dask"):
        pass
    with pytest.raises(EngineError, match="-1 workers"), open_engine("local", workers=-1):
        pass


def test_a_missing_worker_program_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from poncho_wq.engines.workers import TASKVINE, LocalWorkers

    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EngineNotInstalled, match="vine_worker is not on PATH"):
        LocalWorkers(1, program=TASKVINE)


# -- the backlog, with an engine of which everything is known


class Honest:
    """Takes tasks, and gives them back in order when it is asked."""

    kind, queue, workers, PonchoTask = "fake", None, None, None

    def __init__(self, cores: int) -> None:
        self.cores = cores
        self.tasks: list[Any] = []
        self.most = 0

    def submit(self, task: Any) -> int:
        if task == ["refused"]:
            raise EngineError("no such environment")
        self.tasks.append(task)
        self.most = max(self.most, len(self.tasks))
        return len(self.tasks)

    def wait(self, seconds: float) -> Any:
        return self.tasks.pop(0) if self.tasks else None

    def cancel(self, task: Any) -> None:
        self.tasks.remove(task)

    def need(self, task: Any, needs: Needs) -> None:
        pass

    def capacity(self) -> Capacity:
        return Capacity(workers=1, cores=self.cores)


def _no_failure(item: Any, error: Exception) -> None:
    raise error


def test_depth_is_about_twice_the_cores() -> None:
    assert [depth(cores) for cores in (0, 1, 8, 9, 100)] == [LEAST, LEAST, 16, 18, 200]


def test_few_tasks_are_submitted_and_all_are_done_in_order() -> None:
    engine = Honest(cores=12)
    backlog: Backlog[int] = Backlog(engine, lambda item: [item], _no_failure)
    backlog.extend(range(1000))
    done = []
    while backlog or backlog.submitted:
        backlog.feed()
        came = backlog.wait(1)
        assert came is not None
        done.append(came[0])
    assert done == list(range(1000))
    assert engine.most == depth(12)


def test_priority_goes_before_arrival() -> None:
    engine = Honest(cores=1)
    backlog: Backlog[str] = Backlog(engine, lambda item: [item], _no_failure)
    backlog.add("first")
    backlog.add("urgent", priority=5)
    backlog.add("last")
    backlog.feed()
    assert engine.tasks == [["urgent"], ["first"], ["last"]]


def test_an_item_that_cannot_be_submitted_is_told_and_the_next_gets_its_turn() -> None:
    engine = Honest(cores=1)
    told: list[tuple[str, str]] = []
    backlog: Backlog[str] = Backlog(
        engine,
        lambda item: None if item == "given up" else [item],
        lambda item, error: told.append((item, str(error))),
    )
    backlog.extend(["refused", "given up", "good"])
    assert backlog.feed() == 1
    assert engine.tasks == [["good"]]
    assert told == [("refused", "no such environment")]


def test_cancelled_items_are_taken_back_wherever_they_are() -> None:
    engine = Honest(cores=1)
    backlog: Backlog[int] = Backlog(engine, lambda item: [item], _no_failure)
    backlog.extend(range(LEAST + 10))
    backlog.feed()
    gone = backlog.cancel(lambda item: item % 2 == 0)
    assert sorted(gone) == list(range(0, LEAST + 10, 2))
    assert [task[0] for task in engine.tasks] == list(range(1, LEAST, 2))
    assert len(backlog) == 5
