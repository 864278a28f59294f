"""The batch scheduler: 10,000 jobs with 100,000 dependencies, in virtual time; and what the journal costs a job."""

from __future__ import annotations

import heapq
import random
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.harness import Row
from poncho_wq.batch.journal import Journal
from poncho_wq.batch.model import Batch, Job, State, Step
from poncho_wq.batch.scheduler import Node, Scheduler
from poncho_wq.batch.spool import Spool

JOBS = 10_000
PARENTS = 10  # of each job, among those before it: 100,000 in all
CORES = 128


@dataclass(frozen=True)
class Cluster:
    workers: int = CORES
    cores: int = CORES


def nodes() -> list[Node]:
    random.seed(10)
    return [Node(key=n, after=tuple(random.sample(range(n), min(n, PARENTS)))) for n in range(JOBS)]


def run(jobs: list[Node]) -> tuple[float, int, float]:
    """Seconds spent in the scheduler, decisions made, and the longest time for one turn in seconds."""
    scheduler, cluster = Scheduler(), Cluster()
    running: list[tuple[float, int]] = []
    now = spent = longest = 0.0
    decisions = 0
    clock = time.perf_counter
    start = clock()
    for node in jobs:
        scheduler.add(node, now)
    spent += clock() - start
    while scheduler.unfinished:
        start = clock()
        todo = scheduler.decide(cluster, now)
        for decision in todo:
            if decision.do == "submit":
                scheduler.started(decision.key, now)
        took = clock() - start
        for decision in todo:
            if decision.do == "submit":
                heapq.heappush(running, (now + random.uniform(1, 100), decision.key))
        now, key = heapq.heappop(running)
        start = clock()
        scheduler.ended(key, State.COMPLETED, now)
        news = scheduler.news()
        took += clock() - start
        spent += took
        longest = max(longest, took)
        decisions += 1 + len(todo) + len(news)
    return spent, decisions, longest


def rows() -> Iterator[Row]:
    jobs = nodes()
    results = [run(jobs) for _ in range(3)]
    spent, decisions, _ = min(results)
    yield Row(
        name=f"scheduler, {JOBS} jobs, {sum(len(n.after) for n in jobs)} dependencies", ours=spent / decisions * 1e6,
        peer=None, unit="µs", ratio=None, pairs=3, target="< 100 µs a decision",
        note=f"{decisions} decisions, {spent / JOBS * 1e6:.0f} µs a job with all, "
        f"longest turn {min(r[2] for r in results) * 1e6:.0f} µs",
    )  # fmt: skip
    yield _journal()


def _journal() -> Row:
    """A job's way through the journal: submitted, started, ended, each its own transaction."""
    batch = Batch(name="b", jobs=tuple(Job(name=f"j{n}", steps=(Step(argv=("true",)),)) for n in range(1000)))
    with tempfile.TemporaryDirectory() as directory, Journal(Spool(directory)) as journal:
        number = journal.add(batch, front_end="bench")
        start = time.perf_counter()
        for job in journal.jobs(number):
            with journal.together():
                attempt = journal.new_attempt(job.id, tries=1, now=1.0)
            with journal.together():
                journal.set_job(job.id, state=State.RUNNING, started=2.0)
            with journal.together():
                journal.end_attempt(
                    job.id,
                    attempt,
                    state=State.COMPLETED,
                    reason=None,
                    started=2.0,
                    now=3.0,
                    host="h",
                    worker="w",
                    facts={},
                )
                journal.set_job(job.id, state=State.COMPLETED, ended=3.0)
        spent = time.perf_counter() - start
    return Row(name="journal, three transactions", ours=spent * 1e3, peer=None, unit="µs", ratio=None, pairs=1)
