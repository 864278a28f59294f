"""Whether a long list of calls costs each of them more than a short one: the executor with four workers of one core."""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Iterator

from benchmarks.bench_tasks import functions
from benchmarks.harness import Row, ratio_row, seconds
from benchmarks.peers import numpy_environment
from poncho_wq.futures import Executor

FEW, MANY = 500, 10_000


def rows() -> Iterator[Row]:
    """Calls a second of 10,000 against those of 500 before and after them, warm."""
    nothing = functions()["nothing"]
    shm = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with (
        tempfile.TemporaryDirectory(prefix="poncho-bench-", dir=shm) as place,
        Executor("work_queue", workers=4, environment=numpy_environment(), warm=True, directory=place) as pool,
    ):

        def rate(count: int) -> float:
            return count / seconds(lambda: list(pool.map(nothing, range(count))))

        rate(FEW)
        before, many, after = rate(FEW), rate(MANY), rate(FEW)
        yield ratio_row(
            f"executor, warm, {MANY} calls, 4 workers", [many], [statistics.mean((before, after))], unit="calls/s",
            peer_name=f"{FEW} calls", target=">= 0.8x",
        )  # fmt: skip
