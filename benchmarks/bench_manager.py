"""What a task costs the manager before it is sent: processor time to make and submit it, memory while it waits, files
on disk.  Each measurement is a process of its own, with its files on an ordinary disk; no worker is there.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.bench_tasks import makers
from benchmarks.harness import Row, Unavailable, ratio_row
from benchmarks.peers import debian_work_queue, numpy_environment

SUBMITS, WAITING = 10_000, 100_000
UPSTREAM_SUBMITS = 1_000
ROUNDS = 3


def rows() -> Iterator[Row]:
    """Processor time of making and submitting a task, and memory of many that wait."""

    def one(kind: str, count: int) -> dict[str, float]:
        return _in_a_process(kind, count)

    rounds = [(one("fresh no-op", SUBMITS), one("upstream", UPSTREAM_SUBMITS)) for _ in range(ROUNDS)]
    ours, theirs = [[found["microseconds"] for found in side] for side in zip(*rounds, strict=True)]
    yield ratio_row(
        "manager, to make and submit one, on disk", ours, theirs, unit="µs", target="<= 40 µs",
        peer_name="PythonTask + environment",
        note=f"files for each waiting task: {rounds[0][0]['files']:g}, theirs {rounds[0][1]['files']:g}",
    )  # fmt: skip
    warm = [one("warm no-op", SUBMITS)["microseconds"] for _ in range(ROUNDS)]
    yield Row(name="the same, warm", ours=statistics.median(warm), peer=None, unit="µs", ratio=None, pairs=ROUNDS)
    big = one("fresh no-op", WAITING)
    yield Row(
        name=f"memory of {WAITING} waiting tasks", ours=big["megabytes"], peer=None, unit="MB", ratio=None, pairs=1,
        target="<= 650 MB", note=f"{big['microseconds']:.0f} µs each to make and submit",
    )  # fmt: skip


def _in_a_process(kind: str, count: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="poncho-bench-", dir="/var/tmp") as place:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.bench_manager", kind, str(count)], text=True, capture_output=True,
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

    start = time.process_time()
    for i in range(count):
        task = make(i)
        kept.append(task)
        queue.submit(task)
    spent = time.process_time() - start
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
