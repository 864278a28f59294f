"""Progress as a person sees it: a bar on a terminal, one timed line a stage in a log, nothing when quiet."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from poncho_wq.progress import OnProgress, Progress, silent

STAGES = {
    "analyze": "analysing",
    "code": "packing local code",
    "resolve": "resolving packages",
    "interpreter": "copying the interpreter",
    "fetch": "fetching data",
    "unpack": "unpacking data",
    "install": "installing packages",
    "compile": "byte-compiling",
    "pack": "packing",
    "wait": "waiting for another build",
    "ready": "ready",
}


# Not a stage of the work but something to know about it: shown as a line of its own, each time.
NOTE = "note"


@contextmanager
def progress(*, quiet: bool = False, stream: TextIO | None = None) -> Iterator[OnProgress]:
    """A callback that shows what it is told on ``stream`` (default: stderr), for the length of the block."""
    stream = stream or sys.stderr
    if quiet:
        yield silent
    elif stream.isatty():
        with _bars(stream) as callback:
            yield callback
    else:
        yield _lines(stream)


def _lines(stream: TextIO) -> OnProgress:
    """One line when a stage begins, with the seconds since the first: what a batch system's log can use."""
    start = time.monotonic()
    seen: set[str] = set()

    def say(what: Progress) -> None:
        if what.stage == NOTE:
            print(f"note: {what.detail}", file=stream, flush=True)
            return
        if what.stage in seen:
            return
        seen.add(what.stage)
        detail = f": {what.detail}" if what.detail else ""
        print(
            f"[{time.monotonic() - start:6.1f} s] {STAGES.get(what.stage, what.stage)}{detail}", file=stream, flush=True
        )

    return say


@contextmanager
def _bars(stream: TextIO) -> Iterator[OnProgress]:
    from rich.console import Console
    from rich.progress import BarColumn, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    bars = Bars(
        SpinnerColumn(finished_text="✓"),
        TextColumn("{task.description:<26}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[count]:>16}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[detail]}", markup=False),
        console=Console(file=stream),
        transient=False,
    )
    rows: dict[str, TaskID] = {}

    def finish(stage: str) -> None:
        row = bars.tasks[bars.task_ids.index(rows[stage])]
        total = row.total if row.total is not None else 1
        bars.update(rows[stage], total=total, completed=total, detail="")
        bars.stop_task(rows[stage])

    def say(what: Progress) -> None:
        if what.stage == NOTE:
            bars.console.print(f"note: {what.detail}", markup=False, highlight=False)
            return
        if what.stage not in rows:
            for stage in rows:
                finish(stage)
            rows[what.stage] = bars.add_task(STAGES.get(what.stage, what.stage), total=what.total, detail="", count="")
        count = f"{what.done}/{what.total} {what.unit or ''}" if what.done is not None and what.total else ""
        bars.update(rows[what.stage], total=what.total, completed=what.done or 0, detail=what.detail[:40], count=count)
        if what.stage == "ready":
            finish(what.stage)

    with bars:
        yield say
