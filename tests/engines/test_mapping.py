"""Several calls to a task: their number, and results and errors for each."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from poncho_wq.chunks import SECONDS, Each, Sizes, tasks_of
from poncho_wq.engines.futures import Executor
from poncho_wq.engines.local import LocalQueue
from poncho_wq.engines.mapping import works_of
from poncho_wq.engines.work_queue import PonchoTask
from poncho_wq.errors import EngineError, TaskError


def _maybe(n: int) -> int:
    if n % 3 == 0:
        raise ValueError(n)
    return n * 10


def _number(n: int) -> tuple[int, int]:
    import os

    return n, os.getpid()


def _anything(what: str) -> Any:
    import os
    import sys
    import threading

    class Own(Exception):
        pass

    class Unpicklable(Exception):
        def __reduce__(self) -> Any:
            raise TypeError("no")

    if what == "own":
        raise Own("words")
    if what == "unpicklable":
        raise Unpicklable("words")
    if what == "exit":
        sys.exit("enough")
    if what == "status":
        sys.exit(3)
    if what == "lock":
        return threading.Lock()
    if what == "not here":
        return Own, os.getpid()
    if what == "error as a value":
        return ValueError("no harm")
    if what == "stop":
        raise KeyboardInterrupt
    return what


ANYTHING = ["plain", "own", "unpicklable", "exit", "status", "lock", "not here", "error as a value", "stop", "last"]


@pytest.fixture(scope="module")
def pool(environment: Path) -> Iterator[Executor]:
    with Executor("local", cores=2, environment=environment) as pool:
        yield pool


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.engines.conftest import make_environment

    return make_environment(tmp_path_factory.mktemp("environment") / "env.tar.gz")


def _shown(task: Any) -> tuple[Any, ...]:
    """What is to be seen of a task with one call, or of one of several."""
    value, traceback = getattr(task, "value", None) or getattr(task, "output", None), task.traceback
    text = None if traceback is None else traceback.rstrip().rpartition("\n")[2]
    if isinstance(value, BaseException):
        return type(value).__name__, str(value).partition(" on ")[0], type(value.__cause__), text, task.returned
    return str(type(value)), text, task.returned


def test_each_call_is_shown_as_if_it_were_alone(environment: Path) -> None:
    with LocalQueue(cores=2) as queue:
        tasks = [PonchoTask(_anything, what, environment=environment) for what in ANYTHING]
        (chunk,) = PonchoTask.map(_anything, ANYTHING, chunksize=100, environment=environment)
        assert (chunk.outcomes, chunk.output) == (None, None)
        again = chunk.clone()
        for task in (*tasks, chunk, again):
            queue.submit(task)
        while not queue.empty():
            queue.wait(5)
        assert chunk.return_status == 0
        alone, together = [_shown(task) for task in tasks], [_shown(item) for item in chunk.outcomes]
        assert together == alone
        assert [str(type(value)) for value in chunk.output] == [str(type(task.output)) for task in tasks]
        assert tasks[0].outcomes is None
        assert [_shown(item) for item in again.outcomes] == together


def test_a_task_of_several_calls_is_checked_when_it_is_made(environment: Path) -> None:
    tasks = PonchoTask.map(_maybe, range(3), range(3), chunksize=2, environment=environment)
    with pytest.raises(TypeError, match="_maybe"):
        next(tasks)
    lock = threading.Lock()
    with pytest.raises(EngineError, match="call 2 of 3"):
        next(PonchoTask.map(_maybe, [1, lock, 2], chunksize=3, environment=environment))


def test_a_map_that_asks_for_a_task_when_there_is_room(environment: Path) -> None:
    with LocalQueue(cores=2) as queue:
        tasks = PonchoTask.map(_number, range(500), chunksize="auto", environment=environment, warm="auto")
        running = found = count = 0
        for task in tasks:
            queue.submit(task)
            count, running = count + 1, running + 1
            while running >= 4:
                done = queue.wait(5)
                if done is not None:
                    running, found = running - 1, found + len(done.output)
        while not queue.empty():
            done = queue.wait(5)
            found += 0 if done is None else len(done.output)
    assert found == 500
    assert count < 100


def test_sizes() -> None:
    assert Sizes(7).next(100, 4) == 7
    sizes = Sizes("auto")
    assert sizes.next(1000, 4) == 1, "nothing is known yet"
    sizes.measured(10, 10 * SECONDS / 50)
    assert sizes.next(100_000, 4) == 50
    assert 1 < sizes.next(60, 4) < 50, "every core gets some of the rest"
    assert sizes.next(1, 4) == 1
    sizes.measured(1, 1000.0)
    assert sizes.next(100_000, 4) == 1
    idle = Sizes("auto")
    idle.measured(5, 0.0)
    assert 1 < idle.next(10**9, 1) < 10**6
    for bad in (0, -1, 1.5, "all", None):
        with pytest.raises(ValueError, match="chunksize"):
            Sizes(bad)  # type: ignore[arg-type]


def test_turns_that_come_out_of_order_leave_nothing_out() -> None:
    works = works_of(_maybe, lambda each, calls, engine: list(calls), [(n,) for n in range(20)], 3)

    class Engine:
        def capacity(self) -> Any:
            return type("Capacity", (), {"cores": 2})

    order = [1, 0, 7, 5, 6, *range(2, 20)]
    tasks = [task for n in order if (task := works[n].make(Engine())) is not None]  # type: ignore[arg-type]
    assert sorted(n for task in tasks for (n,) in task) == list(range(20))


def test_tasks_are_made_when_they_are_asked_for() -> None:
    taken: list[int] = []

    def endless() -> Iterator[tuple[int]]:
        for n in itertools.count():
            taken.append(n)
            yield (n,)

    tasks = tasks_of(lambda each, calls: calls, _maybe, endless(), 3)
    assert next(tasks) == [(0,), (1,), (2,)]
    assert len(taken) == 3
    with pytest.raises(ValueError, match="chunksize"):
        tasks_of(lambda each, calls: calls, _maybe, [], 0)


def test_tasks_grow_by_what_others_took() -> None:
    made: list[Each] = []

    def make(each: Each, calls: list[Any]) -> int:
        made.append(each)
        return len(calls)

    tasks = tasks_of(make, _maybe, [(n,) for n in range(1000)], "auto")
    assert [next(tasks), next(tasks)] == [1, 1]
    made[0].sizes.measured(1, SECONDS / 50)
    sizes = list(tasks)
    assert sizes[0] == 50
    assert sum(sizes) == 998


@pytest.mark.parametrize("chunksize", [3, "auto"])
def test_errors_stay_with_their_item(pool: Executor, chunksize: Any) -> None:
    results = pool.map(_maybe, [1, 2, 3, 4], chunksize=chunksize, timeout=60)
    assert next(results) == 10
    assert next(results) == 20
    with pytest.raises(ValueError, match="3") as caught:
        next(results)
    assert isinstance(caught.value.__cause__, TaskError)
    assert "in _maybe" in caught.value.__cause__.traceback


def test_auto_fills_tasks_once_it_knows(pool: Executor) -> None:
    found = list(pool.map(_number, range(300), chunksize="auto", timeout=120))
    assert [n for n, _ in found] == list(range(300))
    processes = {pid for _, pid in found}
    assert len(processes) < 100, "many calls to a process"
    assert len(processes) > 2


def test_a_chunk_whose_process_dies(pool: Executor) -> None:
    def die(n: int) -> int:
        import os

        if n == 1:
            os._exit(3)
        return n

    for chunksize in (2, "auto"):
        results = pool.map(die, [1, 2, 3, 4], chunksize=chunksize, timeout=60)  # type: ignore[arg-type]
        with pytest.raises(TaskError, match="without a result"):
            next(results)


def test_letting_go_of_a_map_ends_it(pool: Executor) -> None:
    def slow(n: int) -> int:
        import time

        time.sleep(60 if n > 30 else 0)
        return n

    start = time.monotonic()
    results = pool.map(slow, range(50), chunksize="auto", timeout=60)
    assert next(results) == 0
    results.close()  # type: ignore[attr-defined]
    assert next(pool.map(_number, [5], timeout=50))[0] == 5
    assert time.monotonic() - start < 55, "the slow ones were ended"


def test_the_bar_counts_calls(environment: Path) -> None:
    counted: list[Any] = []
    with Executor("local", cores=2, environment=environment) as pool:
        pool._dispatcher._on_settled = counted.append
        assert len(list(pool.map(_number, range(30), chunksize=4, timeout=60))) == 30
        results = pool.map(_maybe, range(30), chunksize=7)
        with pytest.raises(ValueError, match="0"):
            next(results)
    assert len(counted) == len({id(work) for work in counted}) == 60


def test_an_idle_executor_begins_with_the_first(environment: Path) -> None:
    def when(_: int) -> float:
        import time

        return time.monotonic()

    with Executor("local", cores=1, environment=environment) as pool:
        time.sleep(0.2)  # it waits for work
        times = list(pool.map(when, range(12), timeout=60))
        assert times[0] == min(times)


def test_an_executor_that_is_warm_by_default(environment: Path) -> None:
    def server(_: int) -> int:
        import os

        return os.getppid()

    with Executor("local", cores=1, environment=environment, warm=True) as pool:
        until = time.monotonic() + 60
        while (found := pool.submit(server, 1).result()) == os.getpid():
            assert time.monotonic() < until, "no task was ever warm"
        assert pool.submit(server, 1, warm=False).result() == os.getpid()
        assert set(pool.map(server, range(4), chunksize=2)) == {found}
