"""How long work tells what it is doing: one frozen value, handed to a callback.

Library code never prints.  It calls the ``OnProgress`` it was given; the command line and ``prepare`` decide what a
person sees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal

Unit = Literal["bytes", "files", "packages", "layers"]


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One step of something long.

    ``stage`` is one word of the field (``analyze``, ``code``, ``resolve``, ``fetch``, ``download``, ``unpack``,
    ``install``, ``pack``, ``hash``, ``wait``, ``send``, ``verify``, ``ready``, and ``note`` for something to know),
    ``detail`` what it is about.  ``done`` of ``total`` count ``unit``; all three are None where nothing can be counted.
    """

    stage: str
    detail: str = ""
    done: int | None = None
    total: int | None = None
    unit: Unit | None = None


OnProgress = Callable[[Progress], None]


def silent(progress: Progress) -> None:
    """The callback of those who do not want to know."""


_current: ContextVar[OnProgress | None] = ContextVar("poncho_wq_progress", default=None)
# For the whole process, with the threads of executors.
_everywhere: OnProgress = silent


def current() -> OnProgress:
    """The callback in force where none was given: what ``shown_by`` or ``everywhere`` say, else ``silent``."""
    return _current.get() or _everywhere


def everywhere(callback: OnProgress) -> OnProgress:
    """Have all threads of this process report to ``callback`` where no other is in force; returns the one before."""
    global _everywhere
    before, _everywhere = _everywhere, callback
    return before


@contextmanager
def shown_by(callback: OnProgress) -> Iterator[None]:
    """Within this block, calls that were given no ``on_progress`` report to ``callback``.

    A task that is submitted builds its environment deep inside ``q.submit(t)``, where no argument can be passed.
    """
    token = _current.set(callback)
    try:
        yield
    finally:
        _current.reset(token)
