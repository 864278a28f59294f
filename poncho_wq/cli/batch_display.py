"""A batch while it runs: a live table on a terminal, a line for each job that comes to an end otherwise."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from poncho_wq.showing import prints_to_terminal

if TYPE_CHECKING:
    from poncho_wq.batch.journal import BatchRecord, JobRecord, Journal
    from poncho_wq.batch.manager import Change

_COLOURS = {
    "running": "blue", "submitted": "cyan", "completed": "green", "failed": "red", "killed": "red",
    "deleted": "magenta", "skipped": "yellow",
}  # fmt: skip


class Display(Protocol):
    """What the manager's loop tells."""

    def change(self, change: Change) -> None:
        """A job is in its new state, or the batch is over."""

    def warn(self, text: str) -> None:
        """Something for the user that is no job's outcome; shown at once, and it stays."""

    def look(self) -> None:
        """After every turn, about once a second: show how far the batch is, where that is shown at all."""


@contextmanager
def display(journal: Journal, number: int, engine: Any) -> Iterator[Display]:
    """Show a batch on stderr for the length of the block."""
    if sys.stderr.isatty():
        with _Table(journal, number, engine) as table:
            yield table
    else:
        yield _Lines()


class _Lines:
    def __init__(self) -> None:
        self._start = time.monotonic()

    def change(self, change: Change) -> None:
        if change.job is not None and change.job.state.final:
            self._say(f"{change.job.name}: {change.job.words}{_took(change.job)}")

    def warn(self, text: str) -> None:
        self._say(text)

    def look(self) -> None:
        pass

    def _say(self, text: str) -> None:
        print(f"[{time.monotonic() - self._start:6.1f} s] {text}", file=sys.stderr, flush=True)


def _took(job: JobRecord) -> str:
    if job.started is None or job.ended is None:
        return ""
    return f", {max(0.0, job.ended - job.started):.1f} s on {job.host}"


class _Table:
    """Jobs by state, the environment, the workers; what failed stays above it."""

    def __init__(self, journal: Journal, number: int, engine: Any) -> None:
        from rich.console import Console
        from rich.live import Live

        self._journal = journal
        self._number = number
        self._engine = engine
        self._record = journal.batch(number)
        self._start = time.monotonic()
        self._console = Console(file=sys.stderr)
        self._live = Live(
            console=self._console, refresh_per_second=4, transient=False, redirect_stdout=prints_to_terminal()
        )

    def __enter__(self) -> _Table:
        self._live.__enter__()
        self.look()
        return self

    def __exit__(self, *error: Any) -> None:
        self.look()
        self._live.__exit__(*error)

    def change(self, change: Change) -> None:
        job = change.job
        if job is not None and job.state.final and job.reason:
            self._console.print(f"{job.name}: {job.words}", markup=False, highlight=False)

    def warn(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False)

    def look(self) -> None:
        from rich.table import Table
        from rich.text import Text

        from poncho_wq.batch.model import State
        from poncho_wq.drawing.page import amount

        if not self._record.environment:
            self._record = self._journal.batch(self._number)
        counts = self._journal.counts(self._number)
        total = sum(counts.values())
        over = sum(count for state, count in counts.items() if state.final)
        here = self._engine.capacity()
        grid = Table.grid(padding=(0, 2))
        order = list(State)
        states = Text("  ").join(
            Text(f"{count} {state.value}", style=_COLOURS.get(state.value, "default"))
            for state, count in sorted(counts.items(), key=lambda item: order.index(item[0]))
        )
        width = 30
        filled = width * over // total if total else width
        grid.add_row("jobs", Text("█" * filled + "░" * (width - filled) + f" {over}/{total}"), states)
        where = "this machine" if self._engine.kind == "local" else f"port {self._engine.queue.port}"
        sent = f", {amount(here.sent)} sent" if here.sent else ""
        grid.add_row("workers", f"{here.workers}, {here.cores} cores{sent}", where)
        grid.add_row("environment", environment_words(self._record), "")
        grid.add_row("time", f"{time.monotonic() - self._start:.0f} s", self._record.title)
        self._live.update(grid)


def environment_words(record: BatchRecord) -> str:
    """``12.1 MB, Python 3.11.2, built in 3.4 s``."""
    known = record.environment.get("environments")
    if not known:
        return "none yet"
    first = known[0]
    how = f"built in {first['seconds']:.1f} s" if first["built"] else "from the cache"
    python = f"Python {first['python']}, " if first["python"] else ""
    return f"{first['size'] / 1e6:.1f} MB, {python}{how}"
