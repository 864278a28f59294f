"""The executor, on each engine: as the standard library's behave, and with workers that die."""

from __future__ import annotations

import io
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor, CancelledError, as_completed, wait
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import poncho_wq
from poncho_wq.chunks import chunks_of
from poncho_wq.engines.bar import Bar
from poncho_wq.engines.dispatcher import Dispatcher, RemoteFuture, Work
from poncho_wq.errors import EngineError, TaskError
from poncho_wq.futures import Executor, Needs
from tests.engines.conftest import PATIENCE
from tests.engines.opened_engines import KINDS, needed


def double(x: int) -> int:
    return x * 2


def add(x: int, y: int) -> int:
    return x + y


def word() -> str:
    import os

    return os.environ["WORD"]


def fail(x: int) -> int:
    if x == 3:
        raise KeyError("three")
    return x


def sleep_beside(path: str) -> None:
    import os
    import time

    with open(path, "w") as file:
        file.write(str(os.getpid()))
    time.sleep(600)


@pytest.fixture(scope="module")
def environment(shared_cache: Path) -> Any:
    return poncho_wq.environment({"env": {"WORD": "futures"}}, cache_dir=shared_cache)


@pytest.fixture(scope="module", params=KINDS)
def pool(request: pytest.FixtureRequest, environment: Any) -> Iterator[Executor]:
    needed(request.param)
    with Executor(request.param, workers=1, cores=2, environment=environment) as made:
        yield made


def test_results_in_the_given_environment(pool: Executor) -> None:
    futures = [pool.submit(double, 4), pool.submit(add, 1, y=2), pool.submit(word)]
    assert {future.result(PATIENCE) for future in as_completed(futures, PATIENCE)} == {8, 3, "futures"}
    done, not_done = wait(futures)
    assert (len(done), len(not_done)) == (3, 0)
    assert not any(future.running() for future in futures)


def test_an_exception_shows_the_traceback_on_the_worker(pool: Executor) -> None:
    future = pool.submit(fail, 3)
    with pytest.raises(KeyError, match="three") as caught:
        future.result(PATIENCE)
    assert isinstance(caught.value.__cause__, TaskError)
    assert 'raise KeyError("three")' in str(caught.value.__cause__)


@pytest.mark.parametrize("chunksize", [1, 4, 100])
def test_map_keeps_the_order(pool: Executor, chunksize: int) -> None:
    results = pool.map(add, range(10), range(0, 1000, 100), timeout=PATIENCE, chunksize=chunksize)
    assert list(results) == [101 * i for i in range(10)]


def test_map_raises_where_the_function_did(pool: Executor) -> None:
    results = pool.map(fail, range(5), timeout=PATIENCE)
    assert [next(results), next(results), next(results)] == [0, 1, 2]
    with pytest.raises(KeyError):
        next(results)


def test_a_running_call_is_cancelled_and_its_process_ends(pool: Executor, tmp_path: Path) -> None:
    path = tmp_path / "pid"
    future = pool.submit(sleep_beside, str(path))
    pid = _pid_in(path)
    assert future.running()
    assert future.cancel()
    with pytest.raises(CancelledError):
        future.result(PATIENCE)
    assert wait([future], PATIENCE).not_done == set()
    _wait_for_end(pid)
    assert pool.submit(double, 1).result(PATIENCE) == 2


def test_bad_calls_are_told_at_once(pool: Executor) -> None:
    with pytest.raises(TypeError, match="add"):
        pool.submit(add, 1)
    with pytest.raises(ValueError, match="chunksize"):
        pool.map(double, [1], chunksize=0)


def test_what_cannot_be_sent_is_told_by_its_future(pool: Executor) -> None:
    with pytest.raises(EngineError, match="cannot be sent"):
        pool.submit(double, threading.Lock()).result(PATIENCE)
    assert pool.submit(double, 1).result(PATIENCE) == 2


def test_the_environment_is_analyzed_from_the_function(shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PONCHO_CACHE_DIR", str(shared_cache))
    with Executor("local", workers=2) as pool:
        assert list(pool.map(double, range(4), chunksize=2)) == [0, 2, 4, 6]
        # A call's own goes before what is analyzed.
        assert pool.submit(word, environment={"env": {"WORD": "mine"}}).result(PATIENCE) == "mine"


def test_shutdown_finishes_what_there_is_and_takes_no_more(environment: Any) -> None:
    pool = Executor("local", workers=2, environment=environment)
    futures = [pool.submit(double, i) for i in range(5)]
    pool.shutdown()
    assert [future.result(0) for future in futures] == [0, 2, 4, 6, 8]
    with pytest.raises(RuntimeError, match="after shutdown"):
        pool.submit(double, 1)


def test_shutdown_can_cancel(environment: Any, tmp_path: Path) -> None:
    pool = Executor("local", environment=environment)
    futures = [pool.submit(sleep_beside, str(tmp_path / "pid")) for _ in range(40)]
    pid = _pid_in(tmp_path / "pid")
    pool.shutdown(cancel_futures=True)
    assert all(future.cancelled() for future in futures)
    _wait_for_end(pid)


@pytest.mark.parametrize("kind", ["work_queue", "taskvine"])
def test_a_call_survives_its_worker(kind: str, environment: Any, tmp_path: Path) -> None:
    needed(kind)
    path = tmp_path / "once"

    def die_once(marker: str) -> str:
        import os
        import signal
        from pathlib import Path

        if not os.path.exists(marker):
            Path(marker).touch()
            pid = os.getpid()
            # The worker is an ancestor: the one whose command is a worker's.
            while not Path(f"/proc/{pid}/comm").read_text().startswith(("work_queue_wo", "vine_worker")):
                pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
            os.kill(pid, signal.SIGKILL)
        return "done by another worker"

    with Executor(kind, workers=1, environment=environment) as pool:
        assert pool.submit(die_once, str(path)).result(PATIENCE) == "done by another worker"
    assert path.exists()


def test_workers_that_always_die_break_the_executor(
    environment: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed("work_queue")
    program = tmp_path / "work_queue_worker"
    program.write_text("#!/bin/sh\necho no such luck\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with Executor("work_queue", workers=1, environment=environment) as pool:
        with pytest.raises(BrokenExecutor, match="no such luck"):
            pool.submit(double, 1).result(PATIENCE)
        with pytest.raises(BrokenExecutor, match="no such luck"):
            pool.submit(double, 1)


@pytest.mark.parametrize("kind", ["work_queue", "local", "taskvine"])
def test_another_warm_is_refused_before_anything_is_started(kind: str) -> None:
    with pytest.raises(EngineError, match="warm is \"auto\", True or False, not 'maybe'"):
        Executor(kind, workers=1, warm="maybe")  # type: ignore[arg-type]


def test_an_engine_that_cannot_be_opened_raises_at_once() -> None:
    with pytest.raises(EngineError, match="no engine 'abacus'"):
        Executor("abacus")


def test_a_factory_brings_the_workers(environment: Any, tmp_path: Path) -> None:
    needed("work_queue")
    with Executor("work_queue", workers=1, factory="local", environment=environment, directory=tmp_path) as pool:
        assert pool.submit(double, 21).result(PATIENCE) == 42
    assert list(tmp_path.glob("poncho-factory-*")) == []


def test_a_bar_counts() -> None:
    said = io.StringIO()
    bar = Bar(Console(file=said, force_terminal=True, width=100))
    for error in (None, ValueError("no")):
        bar.added()
        work = Work(lambda engine: None, RemoteFuture())
        work.fail(error) if error is not None else work.future.set_result(1)
        bar.settled(work)
    bar.close()
    assert "2/2" in said.getvalue()
    assert "1 failed" in said.getvalue()


def test_a_bar_ends_also_when_nobody_waits(environment: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = threading.Event()
    monkeypatch.setattr(Bar, "close", lambda bar: closed.set())
    pool = Executor("local", workers=1, environment=environment, progress=True)
    future = pool.submit(double, 21)
    pool.shutdown(wait=False)
    assert future.result(PATIENCE) == 42
    assert closed.wait(PATIENCE)


def test_other_threads_run_while_the_manager_waits(environment: Any) -> None:
    """The bindings hold Python's lock in `wait`: this thread would get a turn once a second."""
    needed("work_queue")
    with Executor("work_queue", environment=environment) as pool:
        future = pool.submit(double, 1)
        turns, until = 0, time.monotonic() + 3
        while time.monotonic() < until:
            time.sleep(0.01)
            turns += 1
        future.cancel()
    # 300 on an idle machine, 3 with the lock held.
    assert turns > 30


def test_work_put_into_a_dead_dispatcher_is_refused() -> None:
    from contextlib import contextmanager

    @contextmanager
    def broken() -> Iterator[Any]:
        class Engine:
            kind, queue, workers = "local", None, None

            def capacity(self) -> Any:
                raise OSError("pulled out")

        yield Engine()

    dispatcher = Dispatcher(broken)
    work = Work(lambda engine: None)
    dispatcher.put(work)
    with pytest.raises(BrokenExecutor, match="pulled out"):
        work.future.result(PATIENCE)
    dispatcher.join()
    with pytest.raises(BrokenExecutor):
        dispatcher.put(Work(lambda engine: None))


def test_needs_reach_the_task(environment: Any) -> None:
    def cores() -> str:
        import os

        return os.environ["CORES"]

    with Executor("local", workers=1, cores=3, environment=environment, needs=Needs(cores=3)) as pool:
        assert pool.submit(cores).result(PATIENCE) == "3"


def test_chunks() -> None:
    assert list(chunks_of(range(5), 2)) == [[0, 1], [2, 3], [4]]


def _pid_in(path: Path) -> int:
    until = time.monotonic() + PATIENCE
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < until, "the call never began"
        time.sleep(0.02)
    return int(path.read_text())


def _wait_for_end(pid: int) -> None:
    until = time.monotonic() + PATIENCE
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < until, f"process {pid} was left"
        time.sleep(0.02)
