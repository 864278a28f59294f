"""Several calls of one function in one task: what a task costs beyond its work is then paid once for all of them.

A task whose work is ``Each(function)`` takes a list of argument tuples, and calls the function for each by itself: what
one of them raises takes nothing from the others.  ``Sizes`` says how many calls the next task takes: a fixed number, or
"auto", which begins with single calls, has the worker measure them, and then fills tasks with some ``SECONDS`` of work.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

__all__ = ["SECONDS", "Chunksize", "Each", "Sizes", "chunks_of", "tasks_of"]

T = TypeVar("T")
Call = tuple[Any, ...]
Chunksize = int | Literal["auto"]

# Of work in one task: some fifty times what a task costs, and short enough to be lost with a worker.
SECONDS = 0.5
# Near the end tasks get smaller, so that no core waits long for the last one: so many are left for each core.
_ROUNDS = 3
_MOST = 10_000


class Sizes:
    """How many calls go into the next task.  Raises ``ValueError`` for a ``chunksize`` below 1."""

    def __init__(self, chunksize: Chunksize) -> None:
        if chunksize != "auto" and (type(chunksize) is not int or chunksize < 1):
            raise ValueError('chunksize must be >= 1, or "auto"')
        self._fixed = None if chunksize == "auto" else chunksize
        self._calls = 0
        self._seconds = 0.0
        self.tasks = 0

    def measured(self, calls: int, seconds: float) -> None:
        """A task of ``calls`` calls is done, and they took ``seconds`` on the worker, without the task's own start."""
        self.tasks += 1
        self._calls += calls
        self._seconds += seconds

    def next(self, waiting: int, cores: int) -> int:
        """The size, at least 1, when so many calls wait for so many cores."""
        if self._fixed is not None:
            return self._fixed
        if not self._calls:
            return 1
        enough = SECONDS / max(self._seconds / self._calls, SECONDS / _MOST)
        share = waiting / (_ROUNDS * max(1, cores))
        return max(1, int(min(enough, share)))


@dataclass(frozen=True, slots=True)
class Each:
    """The work of a task that calls ``function`` for each of a list of argument tuples, and tells ``sizes`` how long
    that took."""

    function: Callable[..., Any]
    sizes: Sizes


def tasks_of(
    make: Callable[[Each, list[Call]], T], function: Callable[..., Any], calls: Iterable[Call], chunksize: Chunksize
) -> Iterator[T]:
    """``make(each, some calls)`` for all of the calls, in order; every task is made when it is asked for.

    Raises ``ValueError`` for a bad ``chunksize``, at once.
    """
    each = Each(function, Sizes(chunksize))
    if chunksize != "auto":
        return (make(each, chunk) for chunk in chunks_of(calls, chunksize))
    return _measured_tasks(make, each, list(calls))


def _measured_tasks(make: Callable[[Each, list[Call]], T], each: Each, calls: list[Call]) -> Iterator[T]:
    made = taken = 0
    while taken < len(calls):
        # Those that have been made and not come back are about as many as there are cores.
        size = each.sizes.next(len(calls) - taken, made - each.sizes.tasks)
        made, taken = made + 1, taken + size
        yield make(each, calls[taken - size : taken])


def chunks_of(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """The items in order, in lists of ``size``; the last may be shorter."""
    source = iter(items)
    while chunk := list(itertools.islice(source, size)):
        yield chunk
