"""``Executor.map`` on Work Queue: many calls in a task against a task for each."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

from benchmarks.harness import Row, Unavailable, paired, seconds
from poncho_wq.futures import Executor

CALLS, CHUNK = 100, 25


def rows() -> Iterator[Row]:
    """Calls a second of a function that does nothing, one worker of two cores."""
    if shutil.which("work_queue_worker") is None:
        raise Unavailable("work_queue_worker is not installed (Debian: coop-computing-tools)")

    def nothing(x: int) -> int:
        return x

    with Executor("work_queue", workers=1, cores=2) as pool:

        def rate(chunksize: int) -> float:
            return CALLS / seconds(lambda: list(pool.map(nothing, range(CALLS), chunksize=chunksize)))

        yield paired(
            f"map, calls a second, chunksize={CHUNK}", lambda: rate(CHUNK), lambda: rate(1), pairs=2, unit="calls/s",
            peer_name="one task per item",
        )  # fmt: skip
