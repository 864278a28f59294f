"""Function tasks through real Work Queue, fresh and warm: against Debian's ``PythonTask`` with the same environment,
and against plain ``true``, the fastest that the queue itself can do.  All rates are measured in turn, on a memory file
system where there is one.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.harness import Row, in_turn, ratio_row, seconds
from benchmarks.peers import debian_work_queue, numpy_environment
from poncho_wq import PonchoTask
from poncho_wq.engines.workers import LocalWorkers

SHALLOW, DEEP = 16, 600
CORES = ", which says its cores only"
ROUNDS = 3

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


def asks_for_all(task: Any) -> Any:
    """What both cores can be busy with.

    Of what a task does not say, Debian's manager gives it a share of what the worker had when it connected.  When that
    has less disk since, because environments lie there, it holds one task back: one of two cores is idle.
    """
    task.specify_cores(1)
    task.specify_memory(512)
    task.specify_disk(512)
    return task


def asks_for_cores(task: Any) -> Any:
    """What most programs say."""
    task.specify_cores(1)
    return task


def makers(wq: Any, env: Any, asks: Callable[[Any], Any] = asks_for_all) -> dict[str, Callable[[int], Any]]:
    """How each kind of task is made, which ``asks`` has ask for resources."""
    made = functions()

    def ours(function: Any, warm: bool) -> Callable[[int], Any]:
        def make(i: int) -> Any:
            task = PonchoTask(function, i)
            task.specify_environment(env)
            if warm:
                task.specify_warm(True)
            return asks(task)

        return make

    def theirs(i: int) -> Any:
        task = wq.PythonTask(made["nothing"], i)
        task.specify_environment(str(env.tarball))
        return asks(task)

    def plain(_: int) -> Any:
        return asks(wq.Task("true"))

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
    """Tasks a second, one worker of two cores."""
    wq = debian_work_queue()
    env = numpy_environment()
    place = tempfile.mkdtemp(prefix="poncho-bench-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
    path, temporary = os.environ["PATH"], tempfile.tempdir
    # Debian's PythonTask looks its wrapper up on PATH, and runs whatever `python` the environment has.
    os.environ["PATH"] = f"/usr/bin:{path}"
    tempfile.tempdir = place
    try:
        yield from _rates(wq, env, place)
    finally:
        os.environ["PATH"], tempfile.tempdir = path, temporary
        shutil.rmtree(place, ignore_errors=True)


def _rates(wq: Any, env: Any, place: str) -> Iterator[Row]:
    queue = wq.WorkQueue(0)
    make = makers(wq, env)
    make |= {f"{kind}{CORES}": maker for kind, maker in makers(wq, env, asks_for_cores).items()}
    environ = {"PATH": "/usr/bin:/bin", "HOME": os.environ.get("HOME", "/"), "TMPDIR": place}
    # The rounds of the other kinds may take longer than a server waits.
    environ["PONCHO_WARM_IDLE"] = "3600"
    counts = {
        ("true", SHALLOW): 300, ("upstream", SHALLOW): 10,
        ("fresh no-op", SHALLOW): 50, ("fresh numpy", SHALLOW): 15, ("fresh pandas", SHALLOW): 8,
        ("warm no-op", SHALLOW): 200, ("warm numpy", SHALLOW): 100, ("warm pandas", SHALLOW): 80,
        ("true", DEEP): 1000, ("warm no-op", DEEP): 1000,
        (f"upstream{CORES}", SHALLOW): 10, (f"warm no-op{CORES}", SHALLOW): 200, (f"warm pandas{CORES}", SHALLOW): 80,
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
            peer_name=peer.replace("upstream", "PythonTask + environment, no-op"), target=target,
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
    yield row(f"warm no-op{CORES}", f"upstream{CORES}", ">= 15x")
    yield row(f"warm pandas{CORES}", f"upstream{CORES}", ">= 8x")
