"""The scheduler's decisions, in virtual time with an engine that is made up."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest

from poncho_wq.batch.model import DELETED, QUEUED_TOO_LONG, STALLED, State
from poncho_wq.batch.scheduler import Decision, Node, Scheduler


@dataclass
class World:
    """Workers that run what is submitted, in virtual time.  ``takes(node)``: whether a worker can hold it."""

    scheduler: Scheduler
    cores: int = 4
    workers: int = 1
    seconds: Callable[[int], float] = lambda key: 1.0
    ends: Callable[[int], State] = lambda key: State.COMPLETED
    takes: Callable[[Node], bool] = lambda node: True
    now: float = 0.0
    nodes: dict[int, Node] = field(default_factory=dict)
    waiting: list[int] = field(default_factory=list)
    running: list[tuple[float, int]] = field(default_factory=list)
    log: list[tuple[float, str, int, Any]] = field(default_factory=list)
    most: int = 0

    def add(self, *nodes: Node) -> None:
        for node in nodes:
            self.nodes[node.key] = node
            self.scheduler.add(node, self.now)

    def turn(self, step: float = 1.0) -> None:
        self.carry_out(self.scheduler.decide(self, self.now))
        self.most = max(self.most, len(self.waiting) + len(self.running))
        free = self.cores - sum(self.nodes[key].cores for _, key in self.running)
        for key in list(self.waiting):
            node = self.nodes[key]
            if node.cores <= free and self.takes(node) and self.workers:
                self.waiting.remove(key)
                free -= node.cores
                self.scheduler.started(key, self.now)
                heapq.heappush(self.running, (self.now + self.seconds(key), key))
                self.log.append((self.now, "started", key, None))
        following = self.running[0][0] if self.running else self.now + step
        self.now = min(following, self.now + step)
        while self.running and self.running[0][0] <= self.now:
            key = heapq.heappop(self.running)[1]
            self.scheduler.ended(key, self.ends(key), self.now)
            self.carry_out(self.scheduler.news())

    def carry_out(self, decisions: Iterable[Decision]) -> None:
        for decision in decisions:
            self.log.append((self.now, decision.do, decision.key, decision))
            if decision.do == "submit":
                self.waiting.append(decision.key)
            elif decision.do == "cancel":
                self.waiting = [key for key in self.waiting if key != decision.key]
                self.running = [entry for entry in self.running if entry[1] != decision.key]

    def run(self, turns: int = 100_000) -> None:
        while self.scheduler.unfinished and turns:
            self.turn()
            turns -= 1
        assert not self.scheduler.unfinished
        self.carry_out(self.scheduler.news())

    def started(self) -> list[int]:
        return [key for _, what, key, _ in self.log if what == "started"]

    def reason(self, key: int) -> str | None:
        return next(d.reason for _, what, k, d in reversed(self.log) if what == "note" and k == key)


def world(**options: Any) -> World:
    return World(Scheduler(stall_limit=options.pop("stall_limit", 300.0)), **options)


def test_a_job_starts_after_all_it_depends_on_whatever_the_order_of_adding() -> None:
    random.seed(3)
    nodes = [Node(key=n, after=tuple(random.sample(range(n), min(n, 3)))) for n in range(60)]
    w = world()
    w.add(*random.sample(nodes, len(nodes)))
    w.run()
    order = w.started()
    assert sorted(order) == list(range(60))
    for node in nodes:
        assert all(order.index(parent) < order.index(node.key) for parent in node.after)


def test_priority_then_age() -> None:
    w = world(cores=1)
    w.add(Node(key=1), Node(key=2, priority=5), Node(key=3), Node(key=4, priority=5))
    w.run()
    assert w.started() == [2, 4, 1, 3]


def test_priority_counts_across_shapes() -> None:
    w = world(cores=1)
    w.add(*(Node(key=n, shape=n % 3, priority=-n) for n in range(9)))
    w.run()
    assert w.started() == list(range(9))


def test_about_twice_the_cores_are_submitted_and_at_least_sixteen() -> None:
    few, many = world(cores=2), world(cores=50)
    for w in (few, many):
        w.add(*(Node(key=n) for n in range(500)))
        w.run()
    assert (few.most, many.most) == (16, 100)


def test_what_depends_on_a_failed_job_is_skipped_and_the_rest_runs() -> None:
    w = world(ends=lambda key: State.FAILED if key == 1 else State.COMPLETED)
    w.add(Node(key=1), Node(key=2, after=(1,)), Node(key=3, after=(2,)), Node(key=4))
    w.run()
    states = [w.scheduler.state(key) for key in (1, 2, 3, 4)]
    assert states == [State.FAILED, State.SKIPPED, State.SKIPPED, State.COMPLETED]
    assert [d.cause for _, what, key, d in w.log if what == "note" and key in (2, 3) and d.state is State.SKIPPED] == [
        1,
        2,
    ]


def test_retries_from_the_start() -> None:
    tries = {1: 0, 2: 0}

    def ends(key: int) -> State:
        tries[key] += 1
        return State.COMPLETED if tries[key] == 3 else State.FAILED

    w = world(ends=ends)
    w.add(Node(key=1, retries=2), Node(key=2, retries=1))
    w.run()
    assert (w.scheduler.state(1), w.scheduler.state(2)) == (State.COMPLETED, State.FAILED)
    assert tries == {1: 3, 2: 2}


def test_a_killed_job_is_not_retried() -> None:
    w = world(ends=lambda key: State.KILLED)
    w.add(Node(key=1, retries=5))
    w.run()
    assert w.started() == [1]


def test_maximum_time_queued() -> None:
    w = world(cores=1, seconds=lambda key: 100.0)
    w.add(Node(key=1), Node(key=2, max_queue=30), Node(key=3, max_queue=1000), Node(key=4, after=(1,), max_queue=30))
    w.run()
    assert w.scheduler.state(2) is State.KILLED
    assert w.reason(2) == QUEUED_TOO_LONG
    # The time of a job that waits for another one begins when that is over.
    assert w.started() == [1, 3]
    assert w.reason(4) == QUEUED_TOO_LONG
    assert [when for when, what, key, d in w.log if what == "note" and key == 4 and d.state is State.KILLED] == [130]


def test_a_running_job_is_not_queued_too_long() -> None:
    w = world(seconds=lambda key: 100.0)
    w.add(Node(key=1, max_queue=5))
    w.run()
    assert w.scheduler.state(1) is State.COMPLETED


def test_kill_one_running_one_waiting() -> None:
    w = world(cores=1, seconds=lambda key: 10.0)
    w.add(Node(key=1), Node(key=2), Node(key=3), Node(key=4, after=(3,)))
    w.turn()
    w.scheduler.kill([1, 3], w.now)
    w.run()
    states = [w.scheduler.state(key) for key in (1, 2, 3, 4)]
    assert states == [State.DELETED, State.COMPLETED, State.DELETED, State.SKIPPED]
    assert w.reason(1) == DELETED
    assert [key for _, what, key, _ in w.log if what == "cancel"] == [1, 3]


def test_killing_all_leaves_none_skipped() -> None:
    w = world(seconds=lambda key: 100.0)
    w.add(*(Node(key=n, after=(n - 1,) if n else ()) for n in range(5)))
    w.turn()
    w.scheduler.kill(range(5), w.now)
    assert {w.scheduler.state(n) for n in range(5)} == {State.DELETED}


def test_what_no_worker_takes_is_given_up_after_the_stall_limit() -> None:
    w = world(stall_limit=60, takes=lambda node: node.shape != "odd", seconds=lambda key: 5.0)
    # More of them than are submitted at a time, before all the others.
    w.add(*(Node(key=n, shape="odd", priority=9) for n in range(40)), *(Node(key=n) for n in range(100, 160)))
    w.run()
    assert {w.scheduler.state(n) for n in range(40)} == {State.FAILED}
    assert {w.scheduler.state(n) for n in range(100, 160)} == {State.COMPLETED}
    assert w.reason(39) == STALLED
    given_up = {when for when, what, key, d in w.log if what == "note" and key < 40 and d.state is State.FAILED}
    assert len(given_up) == 1
    # The others did not wait for that.
    assert min(when for when, what, key, _ in w.log if what == "started" and key >= 100) < 60


def test_busy_workers_are_no_stall() -> None:
    w = world(cores=1, stall_limit=60, seconds=lambda key: 500.0)
    w.add(Node(key=1, shape="a"), Node(key=2, shape="b"))
    w.run()
    assert {w.scheduler.state(n) for n in (1, 2)} == {State.COMPLETED}


def test_no_worker_is_no_stall() -> None:
    w = world(workers=0, cores=0, stall_limit=60)
    w.add(Node(key=1))
    for _ in range(1000):
        w.turn()
    assert w.scheduler.state(1) is State.SUBMITTED
    w.workers, w.cores = 1, 1
    w.run()
    assert w.scheduler.state(1) is State.COMPLETED


def test_more_cores_than_any_worker_has_is_a_stall() -> None:
    w = world(cores=4, stall_limit=60)
    w.add(Node(key=1, cores=8, shape=8), Node(key=2))
    w.run()
    assert (w.scheduler.state(1), w.scheduler.state(2)) == (State.FAILED, State.COMPLETED)


def test_rerun_runs_what_failed_and_what_depends_on_it() -> None:
    bad = {2}
    w = world(ends=lambda key: State.FAILED if key in bad else State.COMPLETED)
    w.add(Node(key=1), Node(key=2), Node(key=3, after=(1, 2)), Node(key=4, after=(1,)), Node(key=5, after=(3,)))
    w.run()
    bad.clear()
    before = len(w.started())
    assert sorted(w.scheduler.rerun([1, 2, 3, 4, 5], w.now)) == [2, 3, 5]
    w.run()
    assert w.started()[before:] == [2, 3, 5]


def test_rerun_of_a_skipped_job_runs_what_kept_it_from_running() -> None:
    bad = {1}
    w = world(ends=lambda key: State.FAILED if key in bad else State.COMPLETED)
    w.add(Node(key=1), Node(key=2, after=(1,)), Node(key=3))
    w.run()
    bad.clear()
    assert sorted(w.scheduler.rerun([2], w.now)) == [1, 2]
    w.run()
    assert w.scheduler.state(2) is State.COMPLETED


def test_a_resumed_batch_goes_on_from_what_is_over() -> None:
    w = world()
    s = w.scheduler
    done, open_ = Node(key=1), Node(key=2, after=(1,))
    w.nodes.update({1: done, 2: open_, 3: Node(key=3, after=(4,)), 4: Node(key=4)})
    s.add(open_, 0.0)
    s.add(done, 0.0, state=State.COMPLETED)
    s.add(w.nodes[4], 0.0, state=State.FAILED)
    s.add(w.nodes[3], 0.0)
    w.run()
    assert w.started() == [2]
    assert s.state(3) is State.SKIPPED


def test_jobs_of_a_batch_that_is_over_can_be_forgotten() -> None:
    w = world()
    w.add(Node(key=1), Node(key=2, after=(1,)))
    with pytest.raises(ValueError):
        w.scheduler.forget([1])
    w = world()
    w.add(Node(key=1), Node(key=2, after=(1,)))
    w.run()
    w.scheduler.forget([1, 2])
    w.add(Node(key=1))
    w.run()
    assert w.started() == [1, 2, 1]


def test_ten_thousand_jobs_in_one_batch() -> None:
    random.seed(1)
    w = world(cores=100)
    w.add(*(Node(key=n, after=tuple(random.sample(range(n), min(n, 10)))) for n in range(10_000)))
    w.run()
    assert {w.scheduler.state(n) for n in range(10_000)} == {State.COMPLETED}
