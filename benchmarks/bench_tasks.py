"""Function tasks through real Work Queue: ours against Debian's ``PythonTask``, both with an environment."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.harness import Row, paired, seconds
from benchmarks.peers import debian_work_queue, numpy_environment
from poncho_wq import PonchoTask
from poncho_wq.engines.workers import LocalWorkers

TASKS = 60
DEPTH = 16
SUBMITS = 2000


def _drive(queue: Any, make: Callable[[int], Any], count: int) -> float:
    """Tasks a second, with at most ``DEPTH`` submitted at a time."""

    def all_of_them() -> None:
        sent = done = 0
        while done < count:
            while sent < count and sent - done < DEPTH:
                queue.submit(make(sent))
                sent += 1
            task = queue.wait(5)
            if task is not None:
                done += 1
                if isinstance(task.output, BaseException):
                    raise RuntimeError(f"a task failed: {task.output!r}\n{task.std_output}")

    return count / seconds(all_of_them)


def rows() -> Iterator[Row]:
    """Tasks a second (16 queued, one worker of two cores), and the manager's time to make and submit one."""
    wq = debian_work_queue()
    env = numpy_environment()

    # Of no module, so that both sides send it by value: no worker can import this file.
    made: dict[str, Any] = {"__name__": "__main__"}
    exec("def nothing(x): return x", made)
    nothing = made["nothing"]

    def ours(i: int) -> Any:
        task = PonchoTask(nothing, i)
        task.specify_environment(env)
        task.specify_cores(1)
        return task

    def theirs(i: int) -> Any:
        task = wq.PythonTask(nothing, i)  # type: ignore[attr-defined]
        task.specify_environment(str(env.tarball))
        task.specify_cores(1)
        return task

    queue = wq.WorkQueue(0)  # type: ignore[attr-defined]
    # Debian's PythonTask looks its wrapper up on PATH, and runs whatever `python` the environment has.
    os.environ["PATH"] = f"/usr/bin:{os.environ['PATH']}"
    environ = {"PATH": "/usr/bin:/bin", "HOME": os.environ.get("HOME", "/")}
    with LocalWorkers(queue.port, count=1, cores=2, environ=environ):
        yield paired(
            "function tasks a second, no-op, 16 queued",
            lambda: _drive(queue, ours, TASKS), lambda: _drive(queue, theirs, TASKS),
            pairs=3, unit="tasks/s", peer_name="PythonTask with environment", target="fresh interpreter",
        )  # fmt: skip

    def submit(make: Callable[[int], Any]) -> float:
        idle = wq.WorkQueue(0)  # type: ignore[attr-defined]
        kept = []

        def all_of_them() -> None:
            for i in range(SUBMITS):
                kept.append(make(i))
                idle.submit(kept[-1])

        return 1e6 * seconds(all_of_them) / SUBMITS

    yield paired(
        f"manager, to make and submit one of {SUBMITS}", lambda: submit(ours), lambda: submit(theirs),
        pairs=3, unit="µs", peer_name="PythonTask with environment", target="<= 150 µs",
    )  # fmt: skip
