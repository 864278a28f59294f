"""Progress as a person sees it: bars on a terminal or in a notebook, timed lines in a log, nothing when quiet."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from poncho_wq.drawing.page import amount
from poncho_wq.progress import OnProgress, Progress, everywhere, silent

STAGES = {
    "analyze": "analysing",
    "code": "packing local code",
    "resolve": "resolving packages",
    "interpreter": "copying the interpreter",
    "fetch": "fetching data",
    "download": "downloading packages",
    "unpack": "unpacking data",
    "install": "installing packages",
    "compile": "byte-compiling",
    "pack": "packing",
    "hash": "hashing",
    "wait": "waiting for another build",
    "send": "sending to workers",
    "verify": "checking",
    "ready": "ready",
}

# Not a stage of the work but something to know about it: shown as a line of its own, each time.
NOTE = "note"
# What comes over a network, where the rate tells whether to wait.
_RATED = frozenset({"fetch", "download", "send"})
# In a log a stage that goes on says so after this many seconds, and no more often.
AGAIN = 10.0


@contextmanager
def progress(*, quiet: bool = False, stream: TextIO | None = None) -> Iterator[OnProgress]:
    """A callback that shows what it is told on ``stream`` (default: stderr), for the length of the block."""
    stream = stream or sys.stderr
    if quiet:
        yield silent
    elif stream.isatty():
        with _bars(stream) as callback:
            yield callback
    elif (show := _notebook()) is not None:
        yield _Cell(show).say
    else:
        yield _Lines(stream).say


@contextmanager
def show_progress(*, quiet: bool = False) -> Iterator[None]:
    """Within this block, whatever builds an environment shows what it does: ``q.submit(t)``, ``environment(E)``, the
    threads of executors.  Bars on a terminal or in a notebook, timed lines on a stderr that is neither, nothing at all
    when ``quiet``.

        with poncho_wq.show_progress():
            q.submit(PonchoTask(f, x))

    ``environment(E, on_progress=…)`` has a callback of its own.
    """
    with progress(quiet=quiet) as callback:
        before = everywhere(callback)
        try:
            yield
        finally:
            everywhere(before)


class _Rates:
    """How much has been done of each stage, in words, with the rate where that says something."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._first: dict[str, tuple[float, int]] = {}

    def words(self, what: Progress) -> str:
        """``12 MB of 61 MB, 3.1 MB/s`` or ``3 of 14 packages``; empty when nothing can be counted."""
        if what.done is None:
            return ""
        if what.unit != "bytes":
            return f"{what.done} of {what.total} {what.unit or ''}".rstrip() if what.total else ""
        text = amount(what.done) + (f" of {amount(what.total)}" if what.total else "")
        if what.stage in _RATED:
            began, had = self._first.setdefault(what.stage, (self._clock(), what.done))
            took = self._clock() - began
            if took >= 1 and what.done > had:
                text += f", {amount((what.done - had) / took)}/s"
        return text


class _Lines:
    """A line when a stage begins, with the seconds since the first, and again while it goes on: what a batch system's
    log can use."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._clock = stream, clock
        self._start = clock()
        self._said: dict[str, float] = {}
        self._rates = _Rates(clock)
        self._lock = threading.Lock()

    def say(self, what: Progress) -> None:
        if what.stage == NOTE:
            print(f"note: {what.detail}", file=self._stream, flush=True)
            return
        with self._lock:
            count = self._rates.words(what)
            last, now = self._said.get(what.stage), self._clock()
            if last is not None and (now - last < AGAIN or what.stage == "ready"):
                return
            self._said[what.stage] = now
        facts = "; ".join(part for part in (what.detail, count if last is not None else _total(what)) if part)
        text = f"[{now - self._start:6.1f} s] {STAGES.get(what.stage, what.stage)}{': ' if facts else ''}{facts}"
        print(text, file=self._stream, flush=True)


def _total(what: Progress) -> str:
    """At the beginning: how much there is to do."""
    if what.stage not in _RATED or not what.total:
        return ""
    return amount(what.total) if what.unit == "bytes" else f"{what.total} {what.unit or ''}".rstrip()


def prints_to_terminal() -> bool:
    """Whether what the program prints goes to a terminal, and so has to make room for what is drawn there.

    What goes to a file or a pipe must not be drawn with the rest, which rich would do.
    """
    try:
        return sys.stdout.isatty()
    except (AttributeError, ValueError):  # none, or closed
        return False


@contextmanager
def _bars(stream: TextIO) -> Iterator[OnProgress]:
    from rich.console import Console
    from rich.progress import BarColumn, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars
    from rich.table import Column

    bars = Bars(
        SpinnerColumn(finished_text="✓"),
        TextColumn("{task.description}", table_column=Column(min_width=22, no_wrap=True)),
        BarColumn(bar_width=12),
        TimeElapsedColumn(),
        # What is left of the line: at 80 columns a name is cut rather than wrapped.
        TextColumn(
            "{task.fields[words]}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)
        ),
        console=Console(file=stream),
        transient=False,
        expand=True,
        redirect_stdout=prints_to_terminal(),
    )
    rows: dict[str, TaskID] = {}
    rates = _Rates()

    def finish(stage: str) -> None:
        row = bars.tasks[bars.task_ids.index(rows[stage])]
        if row.finished:
            return
        total = row.total if row.total is not None else 1
        bars.update(rows[stage], total=total, completed=total)
        bars.stop_task(rows[stage])

    def say(what: Progress) -> None:
        if what.stage == NOTE:
            bars.console.print(f"note: {what.detail}", markup=False, highlight=False)
            return
        if what.stage not in rows:
            for stage in rows:
                finish(stage)
            rows[what.stage] = bars.add_task(STAGES.get(what.stage, what.stage), total=what.total, words="")
        words = "  ".join(part for part in (rates.words(what), what.detail) if part)
        bars.update(rows[what.stage], total=what.total, completed=what.done or 0, words=words)
        if what.stage == "ready":
            finish(what.stage)

    with bars:
        yield say


def _notebook() -> Callable[[str], None] | None:
    """What shows a text in the cell of a notebook that runs just now, in place of the one before; None elsewhere."""
    ipython = sys.modules.get("IPython")
    shell: Any = ipython.get_ipython() if ipython is not None else None
    # A terminal's IPython has no kernel, and its stderr is a terminal.
    if shell is None or getattr(shell, "kernel", None) is None:
        return None
    from importlib import import_module

    handle = import_module("IPython.display").display({"text/plain": ""}, raw=True, display_id=True)

    def show(text: str) -> None:
        handle.update({"text/plain": text}, raw=True)

    return show


class _Cell:
    """The stages as lines of one text, which is renewed at most a few times a second: a notebook keeps each."""

    def __init__(self, show: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._show, self._clock = show, clock
        self._lines: dict[str, str] = {}
        self._began: dict[str, float] = {}
        self._notes: list[str] = []
        self._rates = _Rates(clock)
        self._shown = -1.0
        self._lock = threading.Lock()

    def say(self, what: Progress) -> None:
        with self._lock:
            now = self._clock()
            new = what.stage == NOTE or what.stage not in self._lines
            if what.stage == NOTE:
                self._notes.append(f"note: {what.detail}")
            else:
                began = self._began.setdefault(what.stage, now)
                words = "  ".join(part for part in (self._rates.words(what), what.detail) if part)
                name = STAGES.get(what.stage, what.stage)
                self._lines[what.stage] = f"{name:<26} {now - began:6.1f} s  {words}".rstrip()
            whole = what.total is not None and what.done == what.total
            if new or whole or now - self._shown > 0.25:
                self._shown = now
                self._show("\n".join([*self._notes, *self._lines.values()]))
