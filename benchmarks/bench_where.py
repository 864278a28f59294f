"""Where a task's time goes: processor milliseconds of the manager, the worker, the task's own processes and the warm
server, for each kind of task.  Unlike a rate, that hardly depends on what else the machine does.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.bench_tasks import SHALLOW, drive, makers
from benchmarks.harness import Row
from benchmarks.peers import debian_work_queue, numpy_environment
from poncho_wq.engines.workers import LocalWorkers

COUNTS = {
    "true": 400, "upstream": 12, "fresh no-op": 100, "fresh numpy": 30, "fresh pandas": 12, "warm no-op": 400,
    "warm numpy": 200, "warm pandas": 200,
}  # fmt: skip
ROUNDS = 3


def rows() -> Iterator[Row]:
    """Milliseconds of processor time a task, with 16 queued and one worker of two cores."""
    wq: Any = debian_work_queue()
    make = makers(wq, numpy_environment())
    place = tempfile.mkdtemp(prefix="poncho-bench-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
    path, temporary = os.environ["PATH"], tempfile.tempdir
    os.environ["PATH"] = f"/usr/bin:{path}"
    tempfile.tempdir = place
    try:
        queue = wq.WorkQueue(0)
        environ = {"PATH": "/usr/bin:/bin", "HOME": os.environ.get("HOME", "/"), "TMPDIR": place}
        with LocalWorkers(queue.port, count=1, cores=2, environ=environ, directory=place) as workers:
            worker = workers.processes[0].pid
            for kind, count in COUNTS.items():
                # Also starts the warm server, and unpacks the environment.
                drive(queue, make[kind], 20, SHALLOW)
                yield _row(kind, [_spent(queue, make[kind], count, worker, Path(place)) for _ in range(ROUNDS)])
    finally:
        os.environ["PATH"], tempfile.tempdir = path, temporary
        shutil.rmtree(place, ignore_errors=True)


def _row(kind: str, measured: list[dict[str, float]]) -> Row:
    parts = {name: statistics.median(each[name] for each in measured) for name in measured[0]}
    note = ", ".join(f"{name} {parts[name]:.2f}" for name in parts)
    total = statistics.median(sum(each.values()) for each in measured)
    return Row(name=f"processor time of {kind}", ours=total, peer=None, unit="ms", ratio=None, pairs=ROUNDS, note=note)


def _spent(queue: Any, make: Any, count: int, worker: int, place: Path) -> dict[str, float]:
    before = time.process_time(), _processor(worker), _servers(place)
    drive(queue, make, count, SHALLOW)
    after = time.process_time(), _processor(worker), _servers(place)
    each = 1000 / count
    return {
        "manager": each * (after[0] - before[0]),
        "worker": each * (after[1][0] - before[1][0]),
        "task": each * (after[1][1] - before[1][1]),
        "server": each * (after[2][0] - before[2][0]),
        "child": each * (after[2][1] - before[2][1]),
    }


def _servers(place: Path) -> tuple[float, float]:
    found = [_processor(int(cur.read_text())) for cur in place.glob("*/*/*/poncho-warm-*/cur")]
    return sum(own for own, _ in found), sum(children for _, children in found)


def _processor(pid: int) -> tuple[float, float]:
    """Seconds of a process, and of those of its children that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    own, children = sum(map(int, fields[11:13])), sum(map(int, fields[13:15]))
    return own / os.sysconf("SC_CLK_TCK"), children / os.sysconf("SC_CLK_TCK")
