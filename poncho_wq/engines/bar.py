"""A progress bar for calls that are done out of calls that were asked for."""

from __future__ import annotations

import threading
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from poncho_wq.showing import prints_to_terminal

__all__ = ["Bar"]


class Bar:
    """A bar on stderr, from the first call on; used by several threads."""

    def __init__(self, console: Console | None = None) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
            console=console or Console(stderr=True), redirect_stdout=prints_to_terminal(),
        )  # fmt: skip
        self._lock = threading.Lock()
        self._task = self._progress.add_task("calls", total=0)
        self._total = 0
        self._failed = 0

    def added(self) -> None:
        """One more was asked for; the first makes the bar appear."""
        with self._lock:
            if self._total == 0:
                self._progress.start()
            self._total += 1
            self._progress.update(self._task, total=self._total)

    def settled(self, work: Any) -> None:
        """One more is done; called with the work that ended."""
        with self._lock:
            future = work.future
            if future.cancelled() or future.exception() is not None:
                self._failed += 1
                self._progress.update(self._task, description=f"calls, {self._failed} failed")
            self._progress.advance(self._task)

    def close(self) -> None:
        """Draw no more and give the terminal its cursor back; what was drawn stays."""
        with self._lock:
            self._progress.stop()
