"""Which job next: decisions only.  No engine, no files, no clock of its own; time is what the caller says.

The caller adds jobs, asks ``decide(capacity, now)`` again and again, carries out each ``Decision`` that it returns, and
tells what happened: ``started``, ``ended``, ``kill``, ``rerun``.  Every call takes time in proportion to what it
changes, not to how many jobs there are.

Only about twice as many jobs as the workers have cores are submitted at a time (``depth``), by priority, then by age.
Jobs that ask the same of a worker are of one *shape*.  When workers could take another job of a shape, as far as cores
tell, and yet none of it has started for a while, it is *stuck*: it stops taking room from the others, and after the
stall limit its jobs are given up.  While no worker is connected nothing is stuck: workers may be waiting in a queue of
their own.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from poncho_wq.batch.model import DELETED, QUEUED_TOO_LONG, STALLED, State
from poncho_wq.engines.backlog import depth

# Seconds after which jobs that could have started and did not make room for others.
STUCK_AFTER = 10.0


class Capacity(Protocol):
    """What is connected now: how many workers, and how many cores they have together."""

    @property
    def workers(self) -> int: ...
    @property
    def cores(self) -> int: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """A job as the scheduler sees it.

    ``key`` names it, ``after`` are the keys of those that must complete before (added before or after this one).
    ``shape``: all that it asks of a worker, equal for jobs that any worker treats alike.  ``retries``: how often it may
    be run again after it failed.  ``max_queue``: seconds that it may be idle, None for any.  ``may_stall``: given up
    with all of its shape, of which it must be a part, when no worker takes them.
    """

    key: int
    after: tuple[int, ...] = ()
    cores: int = 1
    shape: Hashable = None
    priority: float = 0.0
    retries: int = 0
    max_queue: float | None = None
    may_stall: bool = True


@dataclass(frozen=True, slots=True)
class Decision:
    """``do``: ``submit`` the job to the engine, ``cancel`` it there, or ``note`` that it is ``state`` now, ``reason``
    being why where that needs words, and ``cause`` the job that a skipped one waited for."""

    do: str
    key: int
    state: State = State.SUBMITTED
    reason: str | None = None
    cause: int | None = None


@dataclass(slots=True)
class _Entry:
    node: Node
    order: int
    state: State = State.WAITING
    missing: int = 0
    children: list[int] = field(default_factory=list)
    tries: int = 0
    # Times one stay in the queue from the next, for what the heaps still hold of an earlier one.
    stay: int = 0


@dataclass(slots=True)
class _Shape:
    cores: int
    may_stall: bool = True
    ready: list[tuple[float, int, int]] = field(default_factory=list)
    submitted: set[int] = field(default_factory=set)
    # Since when a worker could have taken one of it and did not; None while that is not so.
    idle_since: float | None = None


class Scheduler:
    """See the module.  ``stall_limit`` in seconds."""

    def __init__(self, *, stall_limit: float = 300.0) -> None:
        self.stall_limit = stall_limit
        self._entries: dict[int, _Entry] = {}
        self._shapes: dict[Hashable, _Shape] = {}
        self._orders = itertools.count()
        self._stays = itertools.count(1)
        self._running: set[int] = set()
        self._cores_running = 0
        self._deadlines: list[tuple[float, int, int]] = []
        self._news: list[Decision] = []
        self._open = 0
        self._now = 0.0
        # Children of jobs that are not added yet.
        self._orphans: dict[int, list[int]] = {}

    # -- what there is

    @property
    def unfinished(self) -> int:
        """How many jobs are not in a final state."""
        return self._open

    def state(self, key: int) -> State:
        """Raises ``KeyError`` for a job that was never added, or is forgotten."""
        return self._entries[key].state

    def tries(self, key: int) -> int:
        """How often the job has been submitted."""
        return self._entries[key].tries

    def add(self, node: Node, now: float, *, state: State = State.WAITING, tries: int = 0) -> None:
        """A job; ``state`` final for one that was over before (a resumed batch), else it is scheduled from here."""
        entry = _Entry(node, next(self._orders), tries=tries)
        self._entries[node.key] = entry
        entry.children = self._orphans.pop(node.key, entry.children)
        for parent in node.after:
            known = self._entries.get(parent)
            (self._orphans.setdefault(parent, []) if known is None else known.children).append(node.key)
        if state.final:
            entry.state = state
            if state is State.COMPLETED:
                # Children that were added before this one waited for it.
                self._parent_completed(entry, now)
            return
        self._open += 1
        entry.missing = sum(1 for parent in node.after if not self._is_completed(parent))
        if any(self._has_failed(parent) for parent in node.after):
            self._skip(entry)
        elif entry.missing == 0:
            self._enqueue(entry, now)

    def forget(self, keys: Iterable[int]) -> None:
        """Drop jobs that are all final and that no other waits for, such as those of a batch that is over."""
        for key in keys:
            entry = self._entries.pop(key, None)
            if entry is not None and not entry.state.final:
                raise ValueError(f"job {key} is {entry.state.value}")

    # -- what happened

    def started(self, key: int, now: float) -> None:
        """The engine says that a submitted job runs on a worker."""
        entry = self._entries[key]
        if entry.state is not State.SUBMITTED:
            return
        self._shapes[entry.node.shape].idle_since = None
        entry.state = State.RUNNING
        self._leave_queue(entry)
        self._running.add(key)
        self._cores_running += entry.node.cores

    def ended(
        self, key: int, state: State, now: float, reason: str | None = None, *, retry: bool | None = None
    ) -> bool:
        """A submitted job is over, in a final ``state``.  Returns whether it will be run again: ``retry`` (None: it
        failed) and it has retries left.  Then it is idle now; else all that depends on it goes on, or is skipped."""
        entry = self._entries[key]
        if entry.state.final:
            return False
        if entry.state is State.SUBMITTED:
            # Too quick to be seen running, but it did run.
            self._shapes[entry.node.shape].idle_since = None
        self._leave(entry)
        wanted = state is State.FAILED if retry is None else retry
        if wanted and entry.tries <= entry.node.retries:
            self._enqueue(entry, now)
            return True
        self._finish(entry, state, reason, now)
        return False

    def kill(self, keys: Iterable[int], now: float, reason: str | None = DELETED, state: State = State.DELETED) -> None:
        """End jobs, wherever they are; what else depends on them is skipped.  Those that are over stay as they are."""
        killed = []
        for key in keys:
            entry = self._entries[key]
            if entry.state.final:
                continue
            if entry.state in (State.SUBMITTED, State.RUNNING):
                self._news.append(Decision("cancel", key))
            self._leave(entry)
            self._end(entry, state, reason)
            killed.append(entry)
        for entry in killed:
            self._skip_children(entry)

    def rerun(self, keys: Iterable[int], now: float) -> list[int]:
        """Run again those of ``keys`` that are over and did not complete, and all that was skipped because of them.

        Returns the keys that are to be run.  Retries start anew.
        """
        chosen: dict[int, _Entry] = {}
        todo = list(keys)
        while todo:
            entry = self._entries[todo.pop()]
            key = entry.node.key
            if key in chosen or not entry.state.final or entry.state is State.COMPLETED:
                continue
            chosen[key] = entry
            todo.extend(entry.children)
            # A skipped job can only run when what kept it from it does.
            if entry.state is State.SKIPPED:
                todo.extend(entry.node.after)
        for entry in chosen.values():
            entry.state, entry.tries = State.WAITING, 0
            self._open += 1
        for entry in chosen.values():
            entry.missing = sum(1 for parent in entry.node.after if not self._is_completed(parent))
            if entry.missing == 0:
                self._enqueue(entry, now)
        return list(chosen)

    # -- what to do

    def decide(self, capacity: Capacity, now: float) -> list[Decision]:
        """What is to be done now.  Jobs it says to submit count as submitted from here."""
        self._now = now
        self._expire(now)
        self._watch(capacity, now)
        self._submit(depth(capacity.cores))
        return self.news()

    def news(self) -> list[Decision]:
        """What has come to pass since the last look, without deciding anything more: for writing it down at once."""
        news, self._news = self._news, []
        return news

    def next_event(self, now: float) -> float:
        """Seconds until a limit may pass by itself; at most the time in which stuck jobs should be noticed."""
        while self._deadlines and not self._is_current(self._deadlines[0]):
            heapq.heappop(self._deadlines)
        until = self._deadlines[0][0] - now if self._deadlines else STUCK_AFTER
        return max(0.0, min(until, STUCK_AFTER, self.stall_limit))

    # -- how

    def _is_completed(self, key: int) -> bool:
        entry = self._entries.get(key)
        return entry is not None and entry.state is State.COMPLETED

    def _has_failed(self, key: int) -> bool:
        entry = self._entries.get(key)
        return entry is not None and entry.state.final and entry.state is not State.COMPLETED

    def _enqueue(self, entry: _Entry, now: float) -> None:
        node = entry.node
        entry.stay = next(self._stays)
        entry.state = State.IDLE
        shape = self._shapes.setdefault(node.shape, _Shape(node.cores, node.may_stall))
        heapq.heappush(shape.ready, (-node.priority, entry.order, node.key))
        if node.max_queue is not None:
            heapq.heappush(self._deadlines, (now + node.max_queue, entry.stay, node.key))
        self._news.append(Decision("note", node.key, State.IDLE))

    def _leave_queue(self, entry: _Entry) -> None:
        shape = self._shapes.get(entry.node.shape)
        if shape is not None:
            shape.submitted.discard(entry.node.key)

    def _leave(self, entry: _Entry) -> None:
        """Out of the queue and off the workers; what the heaps hold of it is passed over later."""
        self._leave_queue(entry)
        entry.stay = 0
        if entry.state is State.RUNNING:
            self._running.discard(entry.node.key)
            self._cores_running -= entry.node.cores

    def _finish(self, entry: _Entry, state: State, reason: str | None, now: float) -> None:
        self._end(entry, state, reason)
        if state is State.COMPLETED:
            self._parent_completed(entry, now)
        else:
            self._skip_children(entry)

    def _end(self, entry: _Entry, state: State, reason: str | None) -> None:
        entry.state = state
        self._open -= 1
        self._news.append(Decision("note", entry.node.key, state, reason))

    def _parent_completed(self, entry: _Entry, now: float) -> None:
        for key in entry.children:
            child = self._entries.get(key)
            if child is None or child.state is not State.WAITING:
                continue
            child.missing -= 1
            if child.missing == 0:
                self._enqueue(child, now)

    def _skip(self, entry: _Entry) -> None:
        entry.state = State.SKIPPED
        self._open -= 1
        parents = (key for key in entry.node.after if self._has_failed(key))
        self._news.append(Decision("note", entry.node.key, State.SKIPPED, cause=next(parents)))
        self._skip_children(entry)

    def _skip_children(self, entry: _Entry) -> None:
        todo = [(key, entry.node.key) for key in entry.children]
        while todo:
            key, parent = todo.pop()
            child = self._entries.get(key)
            if child is None or child.state is not State.WAITING:
                continue
            child.state = State.SKIPPED
            self._open -= 1
            self._news.append(Decision("note", key, State.SKIPPED, cause=parent))
            todo.extend((each, key) for each in child.children)

    def _is_current(self, deadline: tuple[float, int, int]) -> bool:
        _, stay, key = deadline
        entry = self._entries.get(key)
        return entry is not None and entry.stay == stay and entry.state in (State.IDLE, State.SUBMITTED)

    def _expire(self, now: float) -> None:
        while self._deadlines and self._deadlines[0][0] <= now:
            deadline = heapq.heappop(self._deadlines)
            if self._is_current(deadline):
                self.kill([deadline[2]], now, QUEUED_TOO_LONG, State.KILLED)

    def _watch(self, capacity: Capacity, now: float) -> None:
        """Notice shapes that no worker takes, and give up those that are over the stall limit."""
        idle = capacity.cores - self._cores_running
        for name, shape in list(self._shapes.items()):
            if not shape.ready and not shape.submitted:
                del self._shapes[name]  # comes back with the next of its jobs
                continue
            could = capacity.workers > 0 and (idle >= shape.cores or not self._running)
            if not shape.submitted or not could:
                shape.idle_since = None
            elif shape.idle_since is None:
                shape.idle_since = now
            elif shape.may_stall and now - shape.idle_since >= self.stall_limit:
                waiting = [key for key in shape.submitted if self._entries[key].state is State.SUBMITTED]
                waiting += [key for _, order, key in shape.ready if self._is_ready(key, order)]
                shape.idle_since = None
                self.kill(waiting, now, STALLED, State.FAILED)

    def _is_ready(self, key: int, order: int) -> bool:
        entry = self._entries.get(key)
        return entry is not None and entry.state is State.IDLE and entry.order == order

    def _submit(self, limit: int) -> None:
        shapes = [shape for shape in self._shapes.values() if shape.ready and not self._is_stuck(shape)]
        if not shapes:
            return
        taken = len(self._running)
        taken += sum(len(shape.submitted) for shape in self._shapes.values() if not self._is_stuck(shape))
        room = limit - taken
        heads = [(shape.ready[0], number) for number, shape in enumerate(shapes)]
        heapq.heapify(heads)
        while room > 0 and heads:
            (_, order, key), number = heapq.heappop(heads)
            shape = shapes[number]
            heapq.heappop(shape.ready)
            if shape.ready:
                heapq.heappush(heads, (shape.ready[0], number))
            if not self._is_ready(key, order):
                continue
            entry = self._entries[key]
            entry.state = State.SUBMITTED
            entry.tries += 1
            shape.submitted.add(key)
            room -= 1
            self._news.append(Decision("submit", key))

    def _is_stuck(self, shape: _Shape) -> bool:
        """Whether jobs of this shape have been passed over for so long that they must not keep others out."""
        if shape.idle_since is None:
            return False
        return self._now - shape.idle_since >= min(STUCK_AFTER, self.stall_limit / 2)
