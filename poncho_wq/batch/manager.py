"""The loop: scheduler's decisions → engine, what comes back → results and journal.

One manager runs any number of batches of one journal over one engine:

    with open_engine("local", workers=2) as engine, Journal(spool) as journal, Manager(engine, journal) as manager:
        manager.adopt(journal.add(batch, front_end="mine"))
        while not manager.idle:
            manager.turn(1.0)

A service calls ``adopt`` for every id of ``journal.unfinished()`` that it does not have, and ``turn`` for ever.  Other
processes talk to it through the journal alone.  The order of writing is the story in ``journal``: an attempt is written
down before it is submitted, results are published before that is written down.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

from poncho_wq.batch.journal import BatchRecord, JobRecord, Journal, Request
from poncho_wq.batch.model import STALLED, Batch, Job, Notification, State
from poncho_wq.batch.outcome import Outcome, lost, read
from poncho_wq.batch.publish import publish, published, sweep
from poncho_wq.batch.scheduler import Decision, Node, Scheduler
from poncho_wq.batch.started import has_started, how_it_ended
from poncho_wq.batch.tasks import Companion, Submission, Unplaceable, make_task
from poncho_wq.engines.opened import Capacity, Engine
from poncho_wq.errors import EngineError, LockTimeout, PonchoError
from poncho_wq.scratch import held

# Seconds between looks at which of the submitted tasks run, and between signs of life in the journal.
LOOK_EVERY = 0.5
SIGN_EVERY = 2.0
# How long processes of a job that a dead manager left on this machine may take to notice; they look twice a second.
ORPHANS_SECONDS = 60


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """Something to show or to tell: ``job`` is in its new state (None: the batch is over)."""

    batch: BatchRecord
    job: JobRecord | None = None


@dataclass(kw_only=True, slots=True)
class _Held:
    """A batch that this manager runs."""

    record: BatchRecord
    batch: Batch
    jobs: dict[int, Job]
    lease: ExitStack
    left: int = 0


class Manager:
    """See the module.

    ``stall_limit``: seconds until jobs that no connected worker takes are given up.  ``on_change`` is told of jobs and
    batches that come to another state, ``notify`` what a batch or a job wants to be sent when it is over: neither may
    raise.  ``companion`` goes with every job, ``companion_facts(job id)`` being what it is told.
    """

    def __init__(
        self,
        engine: Engine,
        journal: Journal,
        *,
        stall_limit: float = 300.0,
        on_change: Callable[[Change], None] = lambda change: None,
        notify: Callable[[Notification, Change], None] = lambda notification, change: None,
        companion: Companion | None = None,
        companion_facts: Callable[[int], Mapping[str, Any]] = lambda job: {},
    ) -> None:
        self.engine = engine
        self.journal = journal
        self._scheduler = Scheduler(stall_limit=stall_limit)
        self._on_change = on_change
        self._notify = notify
        self._companion = companion
        self._companion_facts = companion_facts
        self._held: dict[int, _Held] = {}
        self._batch_of: dict[int, int] = {}
        self._tasks: dict[int, Any] = {}
        self._attempts: dict[int, int] = {}
        self._keys: dict[int, int] = {}
        self._looked = self._signed = 0.0
        self._changed: list[int] = []

    def __enter__(self) -> Manager:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Cancel what runs and let go of all batches.  Their jobs are to be resumed, as a killed manager's are."""
        for task in self._tasks.values():
            self.engine.cancel(task)
        self._tasks.clear()
        for each in self._held.values():
            each.lease.close()
        self._held.clear()

    @property
    def idle(self) -> bool:
        """Whether every batch that was adopted is over."""
        return not self._held

    @property
    def batches(self) -> list[int]:
        """The ids of those that are not over."""
        return list(self._held)

    def capacity(self) -> Capacity:
        """What the engine has connected, as known since the last ``turn``."""
        return self.engine.capacity()

    def adopt(
        self, number: int, *, rerun: bool | Iterable[int] = False, on_wait: Callable[[str], None] = lambda job: None
    ) -> None:
        """Run the batch of that id from where it is; with ``rerun`` also what did not complete, and what depends on it
        (True), or these jobs of that.

        ``on_wait(job)`` is called when a job still runs on this machine that a manager left behind when it was killed.
        Raises ``EngineError`` when somebody else runs it, or such a job does not end.
        """
        lease = ExitStack()
        lease.enter_context(self.journal.lease(number, self.engine.kind))
        try:
            record = self.journal.batch(number)
            batch = self.journal.document(number)
            sweep(self.journal.spool.save / record.folder)
            records = self.journal.jobs(number)
            for job, known in zip(batch.jobs, records, strict=True):
                if known.state in (State.SUBMITTED, State.RUNNING):
                    self._recover(record, job, known, on_wait)
            records = self.journal.jobs(number)
        except BaseException:
            lease.close()
            raise
        held_batch = _Held(
            record=record,
            batch=batch,
            lease=lease,
            jobs={each.id: job for each, job in zip(records, batch.jobs, strict=True)},
        )
        self._held[number] = held_batch
        now = time.time()
        by_name = {each.name: each.id for each in records}
        for each, job in zip(records, batch.jobs, strict=True):
            self._batch_of[each.id] = number
            held_batch.left += 1
            self._scheduler.add(_node(each.id, job, by_name), now, state=_restored(each.state), tries=each.tries)
        held_batch.left = sum(not self._scheduler.state(key).final for key in held_batch.jobs)
        if rerun:
            self._rerun(held_batch, held_batch.jobs if rerun is True else rerun)
        with self.journal.together():
            self._write(self._scheduler.news())
        self._tell()
        self._end_batches()

    def turn(self, seconds: float) -> None:
        """Do what is to be done now, and wait for about ``seconds`` for something to happen.  Raises for what is wrong
        with journal or engine; whatever is wrong with a job is that job's outcome."""
        self._serve()
        now = time.time()
        with self.journal.together():
            todo = self._write(self._scheduler.decide(self.engine.capacity(), now))
        self._tell()
        for decision in todo:
            if decision.do == "cancel":
                self._cancel(decision.key)
            else:
                self._submit(decision.key)
        self._look()
        self._sign()
        self._wait(min(seconds, max(0.05, self._scheduler.next_event(now))))
        self._tell()
        self._end_batches()

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        task = self.engine.wait(seconds)
        if task is not None:
            self._collect(task)
        elif not self._tasks:
            # No engine waits when it has no task; without this, jobs that wait for something else would cost a core.
            time.sleep(max(0.0, until - time.monotonic()))

    # -- what another process wants

    def kill(self, batch: int, jobs: Iterable[int] | None = None) -> None:
        """End jobs (None: all) of a batch that this manager runs."""
        self._scheduler.kill(list(self._held[batch].jobs if jobs is None else jobs), time.time())

    def _serve(self) -> None:
        for request in self.journal.requests(self._held):
            held_batch = self._held.get(request.batch)
            if held_batch is None:
                continue  # over since it was read
            with self.journal.together():
                self._carry_out(request, held_batch)
                self.journal.done(request.id)

    def _carry_out(self, request: Request, held_batch: _Held) -> None:
        keys = held_batch.jobs if request.job is None else [request.job]
        if request.kind == "kill":
            self._scheduler.kill([key for key in keys if key in held_batch.jobs], time.time())
        elif request.kind == "rerun":
            self._rerun(held_batch, keys)

    def _rerun(self, held_batch: _Held, keys: Iterable[int]) -> None:
        again = self._scheduler.rerun([key for key in keys if key in held_batch.jobs], time.time())
        for key in again:
            self.journal.set_job(
                key, state=self._scheduler.state(key), reason=None, exit_code=None, signal=None, ended=None, tries=0
            )
        held_batch.left += len(again)
        if again:
            self.journal.set_ended(held_batch.record.id, None)

    # -- decisions

    def _write(self, decisions: list[Decision]) -> list[Decision]:
        """Write them down; returns those that have something to be done."""
        now = time.time()
        todo = []
        for decision in decisions:
            key = decision.key
            if decision.do == "submit":
                self._attempts[key] = self.journal.new_attempt(key, tries=self._scheduler.tries(key), now=now)
            elif decision.do == "note":
                self._note(decision, now)
            if decision.do != "note":
                todo.append(decision)
            else:
                self._changed.append(key)
        return todo

    def _note(self, decision: Decision, now: float) -> None:
        held_batch = self._held[self._batch_of[decision.key]]
        if decision.state is State.IDLE:
            self.journal.set_job(decision.key, state=State.IDLE, idle=now)
            return
        reason = decision.reason
        if decision.cause is not None:
            reason = f"{held_batch.jobs[decision.cause].name} did not complete"
        elif reason == STALLED:
            reason = f"{STALLED}: no worker has {_wanted(held_batch.jobs[decision.key])}"
        self.journal.set_job(decision.key, state=decision.state, reason=reason, ended=now)
        held_batch.left -= 1

    def _submit(self, key: int) -> None:
        if self._scheduler.state(key) is not State.SUBMITTED:
            return  # killed meanwhile
        held_batch = self._held[self._batch_of[key]]
        submission = Submission(
            batch=held_batch.batch, job=held_batch.jobs[key], batch_id=held_batch.record.id, job_id=key,
            attempt=self._attempts[key], results=self.journal.spool.save / held_batch.record.folder,
            companion=self._companion, facts=self._companion_facts(key),
        )  # fmt: skip
        try:
            task = make_task(self.engine, self.journal.spool, submission)
            self._tasks[key] = task
            self._keys[id(task)] = key
            self.engine.submit(task)
        except Unplaceable:
            # This machine will not grow; and a job that may wait for ever stays submitted, to nobody.
            if submission.job.policies.may_stall:
                self._scheduler.kill([key], time.time(), STALLED, State.FAILED)
        except PonchoError as error:
            self._drop(key)
            self._end(key, lost(None, str(error), why=str(error).splitlines()[0]), None)

    def _cancel(self, key: int) -> None:
        task = self._drop(key)
        if task is not None:
            self.engine.cancel(task)
            self.journal.spool.returned(key, self._attempts[key]).unlink(missing_ok=True)

    def _drop(self, key: int) -> Any:
        task = self._tasks.pop(key, None)
        self._keys.pop(id(task), None)
        return task

    # -- what happened

    def _look(self) -> None:
        """Which of the submitted jobs run by now?  No engine tells by itself."""
        if time.monotonic() - self._looked < LOOK_EVERY:
            return
        self._looked = time.monotonic()
        now = time.time()
        with self.journal.together():
            for key, task in self._tasks.items():
                if self._scheduler.state(key) is State.SUBMITTED and has_started(self.engine, task):
                    self._scheduler.started(key, now)
                    self.journal.set_job(key, state=State.RUNNING, started=now)
                    self._changed.append(key)

    def _collect(self, task: Any) -> None:
        key = self._keys.get(id(task))
        if key is None:
            return
        self._drop(key)
        held_batch = self._held[self._batch_of[key]]
        returned = self.journal.spool.returned(key, self._attempts[key])
        outcome = read(returned, held_batch.jobs[key])
        if outcome is None:
            returned.unlink(missing_ok=True)
            self._end(key, how_it_ended(task), None)
        else:
            self._end(key, outcome, task)

    def _end(self, key: int, outcome: Outcome, task: Any) -> None:
        """Publish, then write down, then let the scheduler go on."""
        held_batch = self._held[self._batch_of[key]]
        outcome = self._publish(held_batch.record, held_batch.jobs[key].name, key, self._attempts[key], outcome)
        facts = dict(outcome.facts)
        stats = None if task is None else task.environment_stats
        if stats is not None:
            facts["environment"] = asdict(stats)
        now = time.time()
        with self.journal.together():
            _write_attempt(self.journal, key, self._attempts[key], outcome, facts, now)
            retry = _is_worth_another_try(outcome, held_batch.jobs[key])
            self._scheduler.ended(key, outcome.state, now, outcome.reason, retry=retry)
            self._write(self._scheduler.news())
        self.journal.spool.returned(key, self._attempts[key]).unlink(missing_ok=True)

    def _publish(self, record: BatchRecord, name: str, key: int, attempt: int, outcome: Outcome) -> Outcome:
        spool = self.journal.spool
        returned = spool.returned(key, attempt) if outcome.facts else None
        try:
            publish(
                returned, spool.results(record.folder, name), job=key, attempt=attempt, outcome=outcome,
                said=outcome.stderr_tail,
            )  # fmt: skip
        except EngineError as error:
            return lost(None, error.message, why=error.message)
        return outcome

    def _recover(self, record: BatchRecord, job: Job, known: JobRecord, on_wait: Callable[[str], None]) -> None:
        """A job that a dead manager had submitted: adopt what came of it, or make sure that it no longer runs."""
        spool, journal = self.journal.spool, self.journal
        results = spool.results(record.folder, job.name)
        outcome = published(results, job=known.id, attempt=known.attempt, described=job)
        if outcome is None:
            returned = spool.returned(known.id, known.attempt)
            outcome = read(returned, job)
            if outcome is not None:
                outcome = self._publish(record, job.name, known.id, known.attempt, outcome)
            returned.unlink(missing_ok=True)
        if outcome is None:
            _wait_for_orphans(spool.job_lock(known.id), job.name, on_wait)
            with journal.together():
                # It does not count against its retries: it was not the job's fault.
                journal.set_job(
                    known.id, state=State.WAITING, tries=max(0, known.tries - 1), started=None, submitted=None
                )
            return
        with journal.together():
            _write_attempt(journal, known.id, known.attempt, outcome, outcome.facts, time.time())
            again = _is_worth_another_try(outcome, job) and known.tries <= job.policies.job_retries
            state = State.WAITING if again else outcome.state
            journal.set_job(known.id, state=state, reason=outcome.reason, ended=None if again else time.time())

    # -- telling

    def _tell(self) -> None:
        changed, self._changed = dict.fromkeys(self._changed), []
        for key in changed:
            held_batch = self._held[self._batch_of[key]]
            change = Change(batch=held_batch.record, job=self.journal.job(key))
            self._on_change(change)
            if self._scheduler.state(key).final:
                for notification in held_batch.jobs[key].notifications:
                    self._notify(notification, change)

    def _end_batches(self) -> None:
        for number, held_batch in list(self._held.items()):
            if held_batch.left:
                continue
            # At once: whoever asks later finds the batch over, and does for itself what it wants.
            with self.journal.together():
                for request in self.journal.requests([number]):
                    self._carry_out(request, held_batch)
                    self.journal.done(request.id)
                if held_batch.left:
                    continue
                self.journal.set_ended(number, time.time())
            del self._held[number]
            held_batch.lease.close()
            self._scheduler.forget(held_batch.jobs)
            for key in held_batch.jobs:
                self.journal.spool.job_lock(key).unlink(missing_ok=True)
                self._batch_of.pop(key, None)
                self._attempts.pop(key, None)
            change = Change(batch=self.journal.batch(number))
            self._on_change(change)
            for notification in held_batch.batch.notifications:
                self._notify(notification, change)

    def _sign(self) -> None:
        if time.monotonic() - self._signed < SIGN_EVERY:
            return
        self._signed = time.monotonic()
        here = self.engine.capacity()
        facts = {"workers": here.workers, "cores": here.cores, "port": getattr(self.engine.queue, "port", None)}
        for number in self._held:
            self.journal.seen(number, self.engine.kind, facts)


def _node(key: int, job: Job, by_name: Mapping[str, int]) -> Node:
    needs, policies = job.resources, job.policies
    return Node(
        key=key, after=tuple(dict.fromkeys(by_name[name] for name in job.after)), cores=needs.cores,
        shape=(needs.cores, needs.memory, needs.disk, needs.gpus, tuple(sorted(job.features)), policies.may_stall),
        priority=policies.priority, retries=policies.job_retries, max_queue=policies.max_queue,
        may_stall=policies.may_stall,
    )  # fmt: skip


def _is_worth_another_try(outcome: Outcome, job: Job) -> bool:
    """Whether retries are for this: it failed, or (``retry_on_exit``) a step of it did."""
    if outcome.state is State.COMPLETED:
        return job.policies.retry_on_exit and outcome.reason is not None
    return outcome.state is State.FAILED


def _wanted(job: Job) -> str:
    """What a job asks of its worker: ``4 cores, 2000 MB of memory, gfortran``."""
    needs = job.resources
    words = [f"{needs.cores} core{'s' if needs.cores > 1 else ''}"]
    words += [f"{needs.memory} MB of memory"] if needs.memory else []
    words += [f"{needs.disk} MB of disk"] if needs.disk else []
    words += [f"{needs.gpus} GPU{'s' if needs.gpus > 1 else ''}"] if needs.gpus else []
    return ", ".join((*words, *job.features))


def _restored(state: State) -> State:
    return state if state.final else State.WAITING


def _write_attempt(
    journal: Journal, key: int, attempt: int, outcome: Outcome, facts: Mapping[str, Any], now: float
) -> None:
    """An attempt that is over, and what of it the job shows."""
    started, ended = _on_our_clock(outcome, now)
    journal.end_attempt(
        key, attempt, state=outcome.state, reason=outcome.reason, started=started, now=ended, host=outcome.host,
        worker=outcome.worker, facts=json.loads(json.dumps(facts)),
    )  # fmt: skip
    journal.set_job(
        key, exit_code=outcome.exit_code, signal=outcome.signal, host=outcome.host, worker=outcome.worker,
        stderr_tail=outcome.stderr_tail if outcome.reason else None, started=started,
    )  # fmt: skip


def _on_our_clock(outcome: Outcome, now: float) -> tuple[float | None, float]:
    """When it ran: as long as the worker says, and over by now, however wrong the worker's clock is."""
    if outcome.started is None or outcome.ended is None:
        return None, now
    ended = min(outcome.ended, now) if abs(outcome.ended - now) < ORPHANS_SECONDS else now
    return ended - max(0.0, outcome.ended - outcome.started), ended


def _wait_for_orphans(lock: Any, job: str, on_wait: Callable[[str], None]) -> None:
    try:
        with held(lock, timeout=ORPHANS_SECONDS, on_wait=lambda: on_wait(job)):
            return
    except LockTimeout as error:
        raise EngineError(
            f"the job {job} still runs on this machine, left by a manager that is gone",
            advice=f"end the processes that have {lock} open (fuser {lock})",
        ) from error
