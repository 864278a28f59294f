"""Function tasks through real Work Queue, fresh and warm: against Debian's ``PythonTask`` with the same environment,
and against plain ``true``, the fastest that the queue itself can do.  All rates are measured in turn, on a memory file
system where there is one; what the manager pays for a task is measured on disk, in a process of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.harness import Row, Unavailable, in_turn, ratio_row, seconds
from benchmarks.peers import debian_work_queue, numpy_environment
from poncho_wq import PonchoTask
from poncho_wq.engines.workers import LocalWorkers

SHALLOW, DEEP = 16, 600
ROUNDS = 3
SUBMITS, WAITING = 10_000, 100_000
UPSTREAM_SUBMITS = 1_000
FEW, MANY = 500, 10_000

# Of no module, so that both sides send them by value: no worker can import this file.
FUNCTIONS = """
def nothing(x):
    return x

def with_numpy(x):
    import numpy
    return float((numpy.arange(1000) * x).sum())

def with_pandas(x):
    import pandas
    return float(pandas.DataFrame({"n": range(100), "x": x}).sum()["n"])
"""


def functions() -> dict[str, Any]:
    """The functions, as if they had been typed into the program that is run."""
    made: dict[str, Any] = {"__name__": "__main__"}
    exec(FUNCTIONS, made)
    return made


def makers(wq: Any, env: Any) -> dict[str, Callable[[int], Any]]:
    """How each kind of task is made."""
    made = functions()

    def ours(function: Any, warm: bool) -> Callable[[int], Any]:
        def make(i: int) -> Any:
            task = PonchoTask(function, i)
            task.specify_environment(env)
            task.specify_cores(1)
            if warm:
                task.specify_warm(True)
            return task

        return make

    def theirs(i: int) -> Any:
        task = wq.PythonTask(made["nothing"], i)
        task.specify_environment(str(env.tarball))
        task.specify_cores(1)
        return task

    def plain(_: int) -> Any:
        task = wq.Task("true")
        task.specify_cores(1)
        return task

    found = {"true": plain, "upstream": theirs}
    for name, function in (("no-op", "nothing"), ("numpy", "with_numpy"), ("pandas", "with_pandas")):
        found[f"fresh {name}"] = ours(made[function], False)
        found[f"warm {name}"] = ours(made[function], True)
    return found


def drive(queue: Any, make: Callable[[int], Any], count: int, depth: int) -> float:
    """Tasks a second, with at most ``depth`` submitted at a time."""

    def all_of_them() -> None:
        sent = done = 0
        while done < count:
            while sent < count and sent - done < depth:
                queue.submit(make(sent))
                sent += 1
            task = queue.wait(5)
            if task is not None:
                done += 1
                if isinstance(task, PonchoTask) and not task.returned:
                    raise RuntimeError(f"a task failed: {task.output!r}\n{task.std_output}")
                if isinstance(task.output, BaseException):
                    raise RuntimeError(f"a task failed: {task.output!r}")

    return count / seconds(all_of_them)


def rows() -> Iterator[Row]:
    """Tasks a second, one worker of two cores; what a waiting task costs the manager; the executor with many calls."""
    wq = debian_work_queue()
    env = numpy_environment()
    place = tempfile.mkdtemp(prefix="poncho-bench-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
    path, temporary = os.environ["PATH"], tempfile.tempdir
    # Debian's PythonTask looks its wrapper up on PATH, and runs whatever `python` the environment has.
    os.environ["PATH"] = f"/usr/bin:{path}"
    tempfile.tempdir = place
    try:
        yield from _rates(wq, env, place)
        yield from _executor(env, place)
    finally:
        os.environ["PATH"], tempfile.tempdir = path, temporary
        shutil.rmtree(place, ignore_errors=True)
    yield from _manager()


def _rates(wq: Any, env: Any, place: str) -> Iterator[Row]:
    queue = wq.WorkQueue(0)
    make = makers(wq, env)
    environ = {"PATH": "/usr/bin:/bin", "HOME": os.environ.get("HOME", "/"), "TMPDIR": place}
    counts = {
        ("true", SHALLOW): 600, ("upstream", SHALLOW): 20,
        ("fresh no-op", SHALLOW): 100, ("fresh numpy", SHALLOW): 30, ("fresh pandas", SHALLOW): 16,
        ("warm no-op", SHALLOW): 400, ("warm numpy", SHALLOW): 200, ("warm pandas", SHALLOW): 150,
        ("true", DEEP): 1200, ("warm no-op", DEEP): 1200,
    }  # fmt: skip
    with LocalWorkers(queue.port, count=1, cores=2, environ=environ, directory=place):
        arms = {
            key: lambda kind=key[0], count=count, depth=key[1]: drive(queue, make[kind], count, depth)
            for key, count in counts.items()
        }
        measured = in_turn(arms, rounds=ROUNDS)

    def row(kind: str, peer: str, target: str, depth: int = SHALLOW) -> Row:
        return ratio_row(
            f"{kind}, {depth} queued", measured[kind, depth], measured[peer, depth], unit="tasks/s",
            peer_name={"upstream": "PythonTask + environment, no-op"}.get(peer, peer), target=target,
        )  # fmt: skip

    yield row("fresh no-op", "upstream", ">= 5x")
    yield row("fresh numpy", "upstream", "")
    yield row("fresh pandas", "upstream", "")
    yield row("warm no-op", "upstream", ">= 15x")
    yield row("warm numpy", "upstream", "")
    yield row("warm pandas", "upstream", ">= 8x")
    yield row("warm pandas", "warm no-op", ">= 0.4x (2.5 times the cost)")
    yield row("warm no-op", "true", ">= 0.3x")
    yield row("warm no-op", "true", ">= 0.6x", DEEP)


def _executor(env: Any, place: str) -> Iterator[Row]:
    """Whether a long list of calls costs each of them more than a short one: four workers of one core."""
    from poncho_wq.futures import Executor

    nothing = functions()["nothing"]
    with Executor("work_queue", workers=4, environment=env, warm=True, directory=place) as pool:

        def rate(count: int) -> float:
            return count / seconds(lambda: list(pool.map(nothing, range(count))))

        rate(FEW)
        few, many = [rate(FEW)], [rate(MANY)]
        few.append(rate(FEW))
        yield ratio_row(
            f"executor, warm, {MANY} calls, 4 workers", many, [statistics.mean(few)], unit="calls/s",
            peer_name=f"{FEW} calls", target=">= 0.8x",
        )  # fmt: skip


def _manager() -> Iterator[Row]:
    def one(kind: str, count: int) -> dict[str, float]:
        return _in_a_process(kind, count)

    rounds = [(one("fresh no-op", SUBMITS), one("upstream", UPSTREAM_SUBMITS)) for _ in range(3)]
    ours, theirs = [[found["microseconds"] for found in side] for side in zip(*rounds, strict=True)]
    yield ratio_row(
        "manager, to make and submit one, on disk", ours, theirs, unit="µs", target="<= 40 µs",
        peer_name="PythonTask + environment",
        note=f"files for each waiting task: {rounds[0][0]['files']:g}, theirs {rounds[0][1]['files']:g}",
    )  # fmt: skip
    warm = [one("warm no-op", SUBMITS)["microseconds"] for _ in range(3)]
    yield Row(name="the same, warm", ours=statistics.median(warm), peer=None, unit="µs", ratio=None, pairs=3)
    big = one("fresh no-op", WAITING)
    yield Row(
        name=f"memory of {WAITING} waiting tasks", ours=big["megabytes"], peer=None, unit="MB", ratio=None, pairs=1,
        target="<= 650 MB", note=f"{big['microseconds']:.0f} µs each to make and submit",
    )  # fmt: skip


def _in_a_process(kind: str, count: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="poncho-bench-", dir="/var/tmp") as place:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.bench_tasks", kind, str(count)], text=True, capture_output=True,
            env={**os.environ, "PATH": f"/usr/bin:{os.environ['PATH']}", "TMPDIR": place}, check=False,
        )  # fmt: skip
    if done.returncode:
        raise Unavailable(f"the manager failed: {done.stderr[-500:]}")
    return dict(json.loads(done.stdout))


def _submit_many(kind: str, count: int) -> None:
    """In a process of its own: what ``count`` waiting tasks cost it in time, memory and files."""
    wq: Any = debian_work_queue()
    make = makers(wq, numpy_environment())[kind]
    queue = wq.WorkQueue(0)
    kept = [make(i) for i in range(5)]
    for task in kept:
        queue.submit(task)
    place = Path(tempfile.gettempdir())
    files, memory = sum(1 for _ in place.rglob("*")), _resident()

    def all_of_them() -> None:
        for i in range(count):
            task = make(i)
            kept.append(task)
            queue.submit(task)

    spent = seconds(all_of_them)
    found = {
        "microseconds": 1e6 * spent / count,
        "megabytes": _resident() - memory,
        "files": (sum(1 for _ in place.rglob("*")) - files) / count,
    }
    print(json.dumps(found))


def _resident() -> float:
    """Megabytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    _submit_many(sys.argv[1], int(sys.argv[2]))
