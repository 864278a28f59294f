"""A function mapped over items, several calls to a task, with a future for each item.

Every item is a piece of work of its own in the dispatcher's backlog.  When the turn of one comes, it takes those after
it along in its task, as many as ``Sizes`` says at that moment; when their turn comes they find that they have gone.
So the size of a task may depend on what earlier ones took, and nothing is decided before it must be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from poncho_wq.chunks import Chunksize, Each, Sizes
from poncho_wq.engines.dispatcher import Work
from poncho_wq.engines.opened import Engine
from poncho_wq.errors import EngineError

__all__ = ["Mapped", "works_of"]

Make = Callable[[Each, list[tuple[Any, ...]], Engine], Any]


class _Series:
    """The calls of one map.  ``make(each, calls, engine)`` gives the task for some of them."""

    def __init__(self, each: Each, make: Make) -> None:
        self.each, self.make = each, make
        # Those that have gone are None: nothing but its future shall hold a result.
        self.works: list[Mapped | None] = []
        self.taken = 0

    def take(self, number: int, cores: int) -> list[Mapped]:
        """The work ``number`` and what goes with it; nothing when it has gone already.

        Turns come nearly, but not exactly, in order: each work knows for itself whether it has gone.
        """
        found: list[Mapped] = []
        if self.works[number] is None:
            return found
        size = self.each.sizes.next(len(self.works) - self.taken, cores)
        while len(found) < size and number < len(self.works) and (work := self.works[number]) is not None:
            self.works[number] = None
            self.taken += 1
            number += 1
            if not work.future.cancelled():
                found.append(work)
        return found


class Mapped(Work):
    """One item; and, once it leads a task, those that are in it."""

    __slots__ = ("_arguments", "_chunk", "_number", "_series")

    def __init__(self, series: _Series, number: int, arguments: tuple[Any, ...]) -> None:
        super().__init__(self._start)
        self._series, self._number, self._arguments = series, number, arguments
        self._chunk: list[Mapped] = []

    def _start(self, engine: Engine) -> Any:
        self._chunk = self._series.take(self._number, engine.capacity().cores)
        if not self._chunk:
            return None
        for each in self._chunk:
            each.future._submitted = True
        return self._series.make(self._series.each, [each._arguments for each in self._chunk], engine)

    def parts(self) -> Iterator[Work]:
        """Those that ended with this one, to be asked once."""
        parts, self._chunk = self._chunk or [self], []
        return iter(parts)

    def settle(self, task: Any) -> None:
        """Tell every future in the task what became of its own call."""
        verdicts = task.outcomes
        if verdicts is None:
            # The process ended, and left nothing of any.
            error = task.output
            self.fail(error if isinstance(error, BaseException) else EngineError(f"the task failed: {error}"))
            return
        for work, verdict in zip(self._chunk, verdicts, strict=True):
            work._end(verdict.value, verdict.returned)

    def fail(self, error: BaseException) -> None:
        """The task was lost, or could not be made: with it every call in it."""
        for work in self._chunk or [self]:
            work._end(error, False)

    def drop(self) -> None:
        """The task was ended, since nobody wants the rest."""
        for work in self._chunk or [self]:
            work.future.cancel()
            work._tell(lambda: None)

    def _end(self, value: Any, good: bool) -> None:
        self._arguments = ()
        self._tell(lambda: self.future.set_result(value) if good else self.future.set_exception(value))


def works_of(
    function: Callable[..., Any], make: Make, calls: Iterable[tuple[Any, ...]], chunksize: Chunksize
) -> list[Mapped]:
    """The work for each of ``calls``, in order; put all of it.  Raises ``ValueError`` for a bad ``chunksize``."""
    series = _Series(Each(function, Sizes(chunksize)), make)
    works = [Mapped(series, number, arguments) for number, arguments in enumerate(calls)]
    series.works = list(works)
    return works
