"""``poncho-wq demo``: a manager and workers run a function whose packages the workers do not have."""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from poncho_wq.cli import FAILED, SUCCESS, errors_to_status
from poncho_wq.cli.display import progress
from poncho_wq.errors import EngineNotInstalled
from poncho_wq.progress import shown_by

# What a worker of a cluster typically sees: the system's programs, nothing of the manager's.
WORKER_PATH = "/usr/local/bin:/usr/bin:/bin"


def _make_trend() -> Callable[[str, list[float]], tuple[str, float, str]]:
    """The function that the tasks run: made here, so that it travels by value.

    By its name a worker would look for it in poncho_wq, which it need not have.
    """

    def trend(station: str, temperatures: list[float]) -> tuple[str, float, str]:
        """The slope of a line through a station's yearly means, in degrees a decade."""
        import sys

        import numpy
        import pandas

        daily = pandas.Series(temperatures, index=pandas.date_range("1990-01-01", periods=len(temperatures), freq="D"))
        yearly = daily.resample("YS").mean()
        slope, _ = numpy.polyfit(range(len(yearly)), yearly.to_numpy(), 1)
        return station, 10 * float(slope), sys.prefix

    return trend


def _stations(count: int) -> list[tuple[str, list[float]]]:
    """Twenty years of made-up daily temperatures for each station, the n-th warming by n/10 degrees a decade."""
    noise = random.Random(0)
    days = 20 * 365
    return [
        (f"station-{n}", [10 + 0.1 * n * day / 3650 + noise.gauss(0, 2) for day in range(days)]) for n in range(count)
    ]


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    """The options."""
    ap = argparse.ArgumentParser(prog=prog, description=__doc__)
    ap.add_argument("--engine", choices=("auto", "work_queue", "local"), default="auto")
    ap.add_argument("--workers", type=int, default=2, metavar="N", help="how many one-core workers (default: 2)")
    ap.add_argument("--tasks", type=int, default=8, metavar="N", help="how many tasks (default: 8)")
    return ap


@errors_to_status
def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Exit status: 0 when every task gave its result, 1 otherwise, 2 for bad usage."""
    started = time.time()
    ap = parser(prog)
    args = ap.parse_args(argv)
    if args.workers < 1 or args.tasks < 1:
        ap.error("--workers and --tasks take a number from 1")

    with contextlib.ExitStack() as stack:
        queue = _queue(args.engine, args.workers, stack)
        return _run(queue, args.tasks, started)


def _queue(engine: str, workers: int, stack: contextlib.ExitStack) -> Any:
    """A queue with workers: Work Queue's where it is installed, else the embedded one, which is said."""
    from poncho_wq.engines.local import LocalQueue
    from poncho_wq.engines.workers import LocalWorkers

    if engine != "local":
        try:
            from poncho_wq.engines.work_queue import WorkQueue

            queue = WorkQueue(0)
            environ = {"PATH": WORKER_PATH, "HOME": os.environ.get("HOME", "/")}
            stack.enter_context(LocalWorkers(queue.port, count=workers, environ=environ))
            print(f"Work Queue: a manager on port {queue.port}, {workers} work_queue_worker processes")
            _show_what_workers_lack()
            return queue
        except EngineNotInstalled as missing:
            if engine == "work_queue":
                raise
            print(f"{missing}\nGoing on with the embedded engine: the same tasks, as processes of this machine.")
    return stack.enter_context(LocalQueue(cores=workers))


def _show_what_workers_lack() -> None:
    probe = "import pandas"
    try:
        said = subprocess.run(
            ["python3", "-c", probe], env={"PATH": WORKER_PATH}, capture_output=True, text=True, check=False
        )
        words = said.stderr.strip().rsplit("\n", 1)[-1] if said.returncode else "it has pandas, by chance"
    except FileNotFoundError:
        words = "there is none"
    print(f"The workers' own Python, asked to {probe!r}: {words}")


def _run(queue: Any, count: int, started: float) -> int:
    from poncho_wq.engines.work_queue import PonchoTask

    tasks = []
    trend = _make_trend()
    with progress() as say, shown_by(say):
        for station, temperatures in _stations(count):
            task = PonchoTask(trend, station, temperatures)
            queue.submit(task)
            tasks.append(task)
    env = tasks[0].environment
    assert env is not None
    how = "came from the cache: nothing was built" if env.cached else "was built"
    print(f"The environment {how} ({env.size / 1e6:.0f} MB, {env.tarball})")

    wrong = 0
    report = _first_start(started)
    while not queue.empty():
        task = queue.wait(5)
        if task is None:
            continue
        report(task)
        if isinstance(task.output, BaseException):
            wrong += 1
            print(f"  task {task.id} failed: {task.output}")
        else:
            station, slope, prefix = task.output
            print(f"  {station}: {slope:+.2f} °C a decade   (Python in {prefix})")
    print(f"{count - wrong} of {count} results, {time.time() - started:.1f} s in all")
    return FAILED if wrong else SUCCESS


def _first_start(started: float) -> Callable[[Any], None]:
    """Say once how long after the beginning of the demo the first task began to run on a worker."""
    said = False

    def report(task: Any) -> None:
        nonlocal said
        if not said:
            said = True
            print(f"The first task started after {task.execute_cmd_start / 1e6 - started:.2f} s")

    return report


if __name__ == "__main__":
    sys.exit(main())
