"""The backlog: tasks that wait on our side, so that the engine's own waiting list stays short.

Work Queue goes through its whole waiting list whenever it sends a task: with 10,000 tasks in it that is 46 ms of
CPU for each, with 16 it is a quarter of one.  About twice as many tasks as there are cores keep every core busy.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from poncho_wq.engines.opened import Engine

__all__ = ["LEAST", "Backlog", "depth"]

T = TypeVar("T")

# Submitted before anything is known of the workers, and at least: enough for one of eight cores.
LEAST = 16


def depth(cores: int) -> int:
    """How many tasks to keep submitted for so many connected cores."""
    return max(LEAST, 2 * cores)


class Backlog(Generic[T]):
    """Items that wait for their turn, and how many tasks the engine has of us.

    An item is whatever the caller makes a task of; making it late also keeps what it pickles from filling memory.
    ``add`` items, ``feed`` the engine, ``wait`` for tasks.  Higher priority first, then the order of arrival.  For one
    thread.
    """

    def __init__(self, engine: Engine, make: Callable[[T], Any], failed: Callable[[T, Exception], None]) -> None:
        """``make(item)`` gives the task to submit, or None when the item needs none any more.  What it or the
        submission raises goes to ``failed(item, error)``, and the next item gets its turn."""
        self._engine = engine
        self._make = make
        self._failed = failed
        self._heap: list[tuple[float, int, T]] = []
        self._count = 0
        # The items behind the tasks that the engine has, by the task's own identity: ids are the engine's.
        self._submitted: dict[int, tuple[T, Any]] = {}

    def __len__(self) -> int:
        """How many items wait here; what has been submitted is not among them."""
        return len(self._heap)

    @property
    def submitted(self) -> int:
        """How many tasks the engine has."""
        return len(self._submitted)

    def add(self, item: T, priority: float = 0.0) -> None:
        """Have an item wait for its turn; ``priority`` as the engines have it, higher first."""
        heapq.heappush(self._heap, (-priority, self._count, item))
        self._count += 1

    def extend(self, items: Iterable[T]) -> None:
        """``add`` all of them, in their order, with priority 0."""
        for item in items:
            self.add(item)

    def feed(self) -> int:
        """Submit until the engine has its fill; returns how many were submitted."""
        if not self._heap:
            return 0
        fed = 0
        room = depth(self._engine.capacity().cores) - len(self._submitted)
        while room > fed and self._heap:
            item = heapq.heappop(self._heap)[2]
            try:
                task = self._make(item)
                if task is None:
                    continue
                self._engine.submit(task)
            except Exception as error:
                self._failed(item, error)
                continue
            self._submitted[id(task)] = item, task
            fed += 1
        return fed

    def wait(self, seconds: float) -> tuple[T, Any] | None:
        """The next item whose task is done, with that task; None after about ``seconds``."""
        task = self._engine.wait(seconds)
        if task is None:
            return None
        # None also for somebody else's, who submitted to the same engine: of no interest here.
        return self._submitted.pop(id(task), None)

    def cancel(self, unwanted: Callable[[T], bool]) -> list[T]:
        """Take back every item that is ``unwanted``, waiting or submitted; returns them."""
        gone = [item for _, _, item in self._heap if unwanted(item)]
        if gone:
            self._heap = [entry for entry in self._heap if not unwanted(entry[2])]
            heapq.heapify(self._heap)
        for key, (item, task) in list(self._submitted.items()):
            if unwanted(item):
                del self._submitted[key]
                self._engine.cancel(task)
                gone.append(item)
        return gone

    def forget(self) -> list[T]:
        """Every item that is left, waiting or submitted, without a word to the engine, which is gone."""
        left = [item for _, _, item in sorted(self._heap, key=lambda entry: entry[:2])] + [
            item for item, _ in self._submitted.values()
        ]
        self._heap.clear()
        self._submitted.clear()
        return left
