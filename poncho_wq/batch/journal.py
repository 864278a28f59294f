"""The only state of batches: one SQLite file (WAL) that any number of processes of one machine read and write.

Story.  M is a manager; it holds the lock of batch 7 (``lease``) and writes down what it is about to do before it does
it, what happened after it is safe on the disk.  S asks for the status: it reads, and stops nobody.  K wants job 12
killed: it writes a request, M reads those at every turn of its loop; when nobody holds the lease, K takes it itself and
marks the job.  M is killed (-9): its lease ends with it; N takes it, finds jobs that were submitted or running, waits
until what M left running on this machine is gone (``Spool.job_lock``), adopts results that M published but could not
write down, and goes on with the rest.  N2 came at the same time: it does not get the lease, and says who has it.

SQLite's WAL needs shared memory, so the file must not be on a network file system if processes of several machines use
it at once.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from poncho_wq.batch.database import Database, Row, made
from poncho_wq.batch.document import from_json, to_json
from poncho_wq.batch.model import DELETED, Batch, State
from poncho_wq.batch.spool import Spool
from poncho_wq.errors import EngineError, LockTimeout, redact
from poncho_wq.scratch import held

_VERSION = 1
_SCHEMA = """
CREATE TABLE batch(
  id INTEGER PRIMARY KEY AUTOINCREMENT, namespace TEXT NOT NULL, name TEXT NOT NULL, folder TEXT NOT NULL UNIQUE,
  front_end TEXT NOT NULL, source TEXT NOT NULL, document TEXT NOT NULL, created REAL NOT NULL,
  ended REAL, environment TEXT, removed INTEGER NOT NULL DEFAULT 0);
CREATE TABLE job(
  id INTEGER PRIMARY KEY AUTOINCREMENT, batch INTEGER NOT NULL REFERENCES batch, position INTEGER NOT NULL,
  name TEXT NOT NULL, state TEXT NOT NULL, reason TEXT, exit_code INTEGER, signal INTEGER,
  attempt INTEGER NOT NULL DEFAULT 0, tries INTEGER NOT NULL DEFAULT 0,
  created REAL NOT NULL, idle REAL, submitted REAL, started REAL, ended REAL,
  host TEXT, worker TEXT, stderr_tail TEXT, UNIQUE(batch, name));
CREATE INDEX job_batch ON job(batch, position);
CREATE TABLE attempt(
  job INTEGER NOT NULL REFERENCES job, number INTEGER NOT NULL, submitted REAL, started REAL, ended REAL,
  state TEXT, reason TEXT, host TEXT, worker TEXT, facts TEXT, PRIMARY KEY(job, number)) WITHOUT ROWID;
CREATE TABLE request(
  id INTEGER PRIMARY KEY AUTOINCREMENT, batch INTEGER NOT NULL, job INTEGER, kind TEXT NOT NULL, made REAL NOT NULL);
CREATE TABLE manager(
  batch INTEGER PRIMARY KEY, pid INTEGER NOT NULL, host TEXT NOT NULL, seen REAL NOT NULL, engine TEXT NOT NULL,
  facts TEXT NOT NULL);
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchRecord:
    """A batch as the journal has it.  Times are seconds since the Epoch.  ``source``: what the front end wants to
    remember of it, as text.  ``environment``: facts for people about the environment (size, seconds to build …)."""

    id: int
    namespace: str
    name: str
    folder: str
    front_end: str
    source: str
    created: float
    ended: float | None
    environment: Mapping[str, Any]
    removed: bool

    @property
    def title(self) -> str:
        """``NAMESPACE/NAME``; the name alone where there is no namespace."""
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


@dataclass(frozen=True, kw_only=True, slots=True)
class JobRecord:
    """A job as the journal has it.  ``attempt`` numbers its submissions from 1; ``tries`` counts those since it was
    last (re)run.  ``stderr_tail``: the end of its standard error, where it failed."""

    id: int
    batch: int
    position: int
    name: str
    state: State
    reason: str | None
    exit_code: int | None
    signal: int | None
    attempt: int
    tries: int
    created: float
    idle: float | None
    submitted: float | None
    started: float | None
    ended: float | None
    host: str | None
    worker: str | None
    stderr_tail: str | None

    @property
    def words(self) -> str:
        """``running``, ``failed (exit 3)``, ``killed (Walltime limit exceeded)``."""
        return f"{self.state.value} ({self.reason})" if self.reason else self.state.value


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """One submission of a job: when, where, and what came of it.  ``facts`` are the runner's (steps, their times)."""

    job: int
    number: int
    submitted: float | None
    started: float | None
    ended: float | None
    state: State | None
    reason: str | None
    host: str | None
    worker: str | None
    facts: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What another process wants of the manager: ``kill`` or ``rerun``, of a ``job`` or (None) the whole batch."""

    id: int
    batch: int
    job: int | None
    kind: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ManagerRecord:
    """Who runs a batch, or did last.  ``seen``: when it last wrote; ``facts``: port, workers, cores."""

    batch: int
    pid: int
    host: str
    seen: float
    engine: str
    facts: Mapping[str, Any]


class Journal:
    """An open journal.  Not for several threads; each process and thread opens its own.  Use as a context manager.

    Raises ``EngineError`` when the file cannot be used, or was written by a later version of this program.
    """

    def __init__(self, spool: Spool, *, create: bool = True) -> None:
        self.spool = spool
        if spool.own.exists():
            spool.check()
        if not create and not spool.journal.exists():
            raise EngineError(
                f"{spool.save}: there are no batches here",
                advice="name the directory that they were run with: --save-dir DIR",
            )
        if create:
            spool.make()
        self._db = Database(spool.journal, advice="is it on a local disk, and yours?")
        try:
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._make_schema()
        except BaseException:
            self._db.close()
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file.  A lease ends with its own block, not with this."""
        self._db.close()

    @contextmanager
    def together(self) -> Iterator[None]:
        """What is written in the block is there whole or not at all, for whoever looks, and after a crash."""
        if self._db.in_transaction:
            yield
            return
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            if self._db.in_transaction:  # an error on the disk ends it by itself
                self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    # -- batches

    def add(
        self, batch: Batch, *, front_end: str, source: str = "", folder: str | None = None, now: float | None = None
    ) -> int:
        """Put a checked batch in and return its id; all its jobs are waiting.

        ``folder``: where below SAVE its results go, with the new id for ``{id}`` in it; None is ``NAMESPACE/NAME``.
        ``source`` is kept without the credentials of URLs in it.
        Raises ``EngineError`` when another batch has that folder.
        """
        now = time.time() if now is None else now
        with self.together():
            number = self._next_id()
            if folder is None:
                folder = folder_of(batch)
                self.refuse_taken(batch)
            else:
                folder = folder.replace("{id}", str(number))
                self._refuse_folder(folder, "use another --save-dir; for PROMINENCE's jobs, PONCHO_PROMINENCE_SPOOL")
            self._db.execute(
                "INSERT INTO batch(id, namespace, name, folder, front_end, source, document, created) "
                "VALUES(?,?,?,?,?,?,?,?)",
                (number, batch.namespace, batch.name, folder, front_end, redact(source), to_json(batch), now),
            )
            self._db.executemany(
                "INSERT INTO job(batch, position, name, state, created) VALUES(?,?,?,?,?)",
                [(number, n, job.name, State.WAITING.value, now) for n, job in enumerate(batch.jobs)],
            )
        return number

    def refuse_taken(self, batch: Batch) -> None:
        """Raise ``EngineError`` when another batch has the folder that is this one's by default."""
        advice = "give this one another name, go on with that one (--resume), or use another --save-dir"
        self._refuse_folder(folder_of(batch), advice)

    def _refuse_folder(self, folder: str, advice: str) -> None:
        found = self._db.read(_batch, "SELECT * FROM batch WHERE folder = ?", (folder,))
        if found and found[0].title == folder:
            raise EngineError(f"there is a batch {folder} in {self.spool.save} already", advice=advice)
        if found:
            whose = f"the batch {found[0].title} (number {found[0].id}, {found[0].front_end})"
            raise EngineError(f"{self.spool.save}: the folder {folder} is taken by {whose}", advice=advice)

    def _next_id(self) -> int:
        """What SQLite would number the next batch, while nobody else can add one: in a transaction."""
        counted = "SELECT MAX(CAST(seq AS INTEGER)) AS id FROM sqlite_sequence WHERE name = 'batch'"
        last = (self._db.execute(each)[0]["id"] for each in (counted, "SELECT MAX(id) AS id FROM batch"))
        return max(number or 0 for number in last) + 1

    def batches(self) -> list[BatchRecord]:
        """All of them, oldest first."""
        return self._db.read(_batch, "SELECT * FROM batch ORDER BY id")

    def batch(self, number: int) -> BatchRecord:
        """Raises ``EngineError`` when there is none of that number."""
        found = self._db.read(_batch, "SELECT * FROM batch WHERE id = ?", (number,))
        if not found:
            raise EngineError(f"there is no batch {number} in {self.spool.save}")
        return found[0]

    def find(self, words: str | None = None) -> BatchRecord:
        """A batch by ``NAMESPACE/NAME``, its name or its id; without words, the latest.

        Raises ``EngineError`` when there is none, or there are several.
        """
        every = self.batches()
        if words is None:
            if not every:
                raise EngineError(f"{self.spool.save}: there are no batches here")
            return every[-1]
        found = [each for each in every if words in (each.title, each.folder)]
        found = found or [each for each in every if words in (each.name, str(each.id))]
        if len(found) == 1:
            return found[0]
        names = ", ".join(each.folder for each in (found or every)) or "none"
        what = f"several batches are called {words}" if found else f"there is no batch {words} in {self.spool.save}"
        raise EngineError(what, advice=f"there are: {names}")

    def document(self, number: int) -> Batch:
        """The batch itself, as it was added.  Raises ``EngineError`` when there is none of that number."""
        found = self._db.read(_document, "SELECT document FROM batch WHERE id = ?", (number,))
        if not found:
            raise EngineError(f"there is no batch {number} in {self.spool.save}")
        return found[0]

    def set_environment(self, number: int, facts: Mapping[str, Any]) -> None:
        """Facts for people about the environment of a batch."""
        self._db.execute("UPDATE batch SET environment = ? WHERE id = ?", (json.dumps(facts), number))

    def set_ended(self, number: int, now: float | None) -> None:
        """All its jobs are over; None: they no longer are."""
        self._db.execute("UPDATE batch SET ended = ? WHERE id = ?", (now, number))

    def remove(self, number: int) -> None:
        """Mark a batch as no longer of interest to listings; its results stay."""
        self._db.execute("UPDATE batch SET removed = 1 WHERE id = ?", (number,))

    def unfinished(self) -> list[int]:
        """The ids of batches with jobs that are not over, oldest first."""
        return self._db.read(_id, "SELECT id FROM batch WHERE ended IS NULL ORDER BY id")

    # -- jobs

    def jobs(self, batch: int) -> list[JobRecord]:
        """In the order of the batch."""
        return self._db.read(_job, "SELECT * FROM job WHERE batch = ? ORDER BY position", (batch,))

    def job(self, number: int) -> JobRecord:
        """Raises ``EngineError`` when there is none of that number."""
        found = self._db.read(_job, "SELECT * FROM job WHERE id = ?", (number,))
        if not found:
            raise EngineError(f"there is no job {number} in {self.spool.save}")
        return found[0]

    def counts(self, batch: int) -> dict[State, int]:
        """How many jobs are in each state that any is in."""
        count = "SELECT state, COUNT(*) AS n FROM job WHERE batch = ? GROUP BY state"
        return dict(self._db.read(lambda row: (State(row["state"]), row["n"]), count, (batch,)))

    def set_job(self, number: int, **values: Any) -> None:
        """Change columns of a job, as ``JobRecord`` names them."""
        unknown = values.keys() - JobRecord.__dataclass_fields__.keys()
        if unknown:
            raise TypeError(f"a job has no {', '.join(sorted(unknown))}")
        words = ", ".join(f"{name} = ?" for name in values)
        self._db.execute(f"UPDATE job SET {words} WHERE id = ?", (*map(_value, values.values()), number))

    def new_attempt(self, number: int, *, tries: int, now: float) -> int:
        """A job is about to be submitted: written down before, so that what runs is always known.  Its number."""
        self._db.execute(
            "UPDATE job SET state = 'submitted', attempt = attempt + 1, tries = ?, submitted = ?, started = NULL, "
            "ended = NULL, host = NULL, worker = NULL, reason = NULL, exit_code = NULL, signal = NULL, "
            "stderr_tail = NULL WHERE id = ?",
            (tries, now, number),
        )
        attempt = self.job(number).attempt
        self._db.execute("INSERT INTO attempt(job, number, submitted) VALUES(?,?,?)", (number, attempt, now))
        return attempt

    def end_attempt(
        self, number: int, attempt: int, *, state: State, reason: str | None, started: float | None, now: float,
        host: str | None, worker: str | None, facts: Mapping[str, Any],
    ) -> None:  # fmt: skip
        """What came of it."""
        self._db.execute(
            "UPDATE attempt SET state=?, reason=?, started=?, ended=?, host=?, worker=?, facts=? "
            "WHERE job=? AND number=?",
            (state.value, reason, started, now, host, worker, json.dumps(facts), number, attempt),
        )

    def attempts(self, batch: int) -> list[Attempt]:
        """Of all jobs of a batch, by job and number."""
        return self._db.read(
            _attempt,
            "SELECT attempt.* FROM attempt JOIN job ON job.id = attempt.job WHERE job.batch = ? "
            "ORDER BY job.position, number",
            (batch,),
        )

    # -- managers and those who want something of them

    @contextmanager
    def lease(self, batch: int, engine: str | None = None) -> Iterator[None]:
        """Be the one who runs this batch, for the block, on that engine, if on any.

        Raises ``EngineError`` when somebody else does.
        """
        try:
            # A manager that has just ended its batch lets go of it a moment later.
            with held(self.spool.batch_lock(batch), timeout=1):
                if engine is not None:
                    self.seen(batch, engine, {})
                yield
        except LockTimeout as error:
            who = self.manager(batch)
            by = f" by process {who.pid} on {who.host}" if who else ""
            raise EngineError(
                f"the batch {self.batch(batch).title} is being run{by}",
                advice="poncho-wq batch status shows it; wait for that process, or end it",
            ) from error

    def is_leased(self, batch: int) -> bool:
        """Whether somebody runs this batch now."""
        try:
            with held(self.spool.batch_lock(batch), timeout=0):
                return False
        except LockTimeout:
            return True

    def seen(self, batch: int, engine: str, facts: Mapping[str, Any]) -> None:
        """The manager of a batch is alive, and this is what it has."""
        self._db.execute(
            "INSERT OR REPLACE INTO manager VALUES(?,?,?,?,?,?)",
            (batch, os.getpid(), socket.gethostname(), time.time(), engine, json.dumps(facts)),
        )

    def manager(self, batch: int) -> ManagerRecord | None:
        """Who runs a batch, or did last."""
        found = self._db.read(_manager, "SELECT * FROM manager WHERE batch = ?", (batch,))
        return found[0] if found else None

    def request(self, kind: str, batch: int, jobs: Iterable[int] | None = None) -> bool:
        """Ask whoever runs the batch for a ``kill`` or a ``rerun`` of jobs (None: all).

        Returns False, and asks nothing, when the batch is over: then nobody would hear.
        """
        with self.together():
            if self.batch(batch).ended is not None:
                return False
            self._db.executemany(
                "INSERT INTO request(batch, job, kind, made) VALUES(?,?,?,?)",
                [(batch, job, kind, time.time()) for job in ([None] if jobs is None else jobs)],
            )
        return True

    def requests(self, batches: Iterable[int]) -> list[Request]:
        """Those of these batches, oldest first.  They stay until ``done`` is told."""
        wanted = set(batches)
        every = self._db.read(
            lambda row: made(Request, dict(row)), "SELECT id, batch, job, kind FROM request ORDER BY id"
        )
        return [each for each in every if each.batch in wanted]

    def done(self, request: int) -> None:
        """A request has been carried out."""
        self._db.execute("DELETE FROM request WHERE id = ?", (request,))

    def kill(self, batch: int, jobs: Iterable[int] | None = None) -> None:
        """End jobs (None: all) of a batch: by its manager if it has one, else at once.  Those that are over stay so."""
        every = {job.id: job for job in self.jobs(batch)}
        numbers = None if jobs is None else list(jobs)
        try:
            with self.lease(batch), self.together():
                for number in every if numbers is None else numbers:
                    if not every[number].state.final:
                        self.set_job(number, state=State.DELETED, reason=DELETED, ended=time.time())
                if all(job.state.final for job in self.jobs(batch)):
                    self.set_ended(batch, time.time())
        except EngineError:
            if not self.is_leased(batch):
                raise
            self.request("kill", batch, numbers)

    def _make_schema(self) -> None:
        if self._db.execute("PRAGMA user_version")[0][0] == _VERSION:
            return
        with self.together():
            # Again: another process may have made it meanwhile.
            version: int = self._db.execute("PRAGMA user_version")[0][0]
            if version == 0:
                for statement in _SCHEMA.split(";"):
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version = {_VERSION}")
            elif version != _VERSION:
                raise EngineError(
                    f"{self.spool.journal}: of another version of poncho_wq (format {version}, ours {_VERSION})",
                    advice="use that version, or another --save-dir",
                )


def folder_of(batch: Batch) -> str:
    """Where below SAVE the results of a batch go: ``NAMESPACE/NAME``."""
    return "/".join(filter(None, (batch.namespace, batch.name)))


def _value(value: Any) -> Any:
    return value.value if isinstance(value, State) else value


def _id(row: Row) -> int:
    return int(row["id"])


def _document(row: Row) -> Batch:
    return from_json(row["document"])


def _batch(row: Row) -> BatchRecord:
    facts = dict(row)
    del facts["document"]
    environment = json.loads(row["environment"] or "{}")
    return made(BatchRecord, {**facts, "environment": environment, "removed": bool(row["removed"])})


def _job(row: Row) -> JobRecord:
    return made(JobRecord, {**dict(row), "state": State(row["state"])})


def _attempt(row: Row) -> Attempt:
    state = None if row["state"] is None else State(row["state"])
    return made(Attempt, {**dict(row), "state": state, "facts": json.loads(row["facts"] or "{}")})


def _manager(row: Row) -> ManagerRecord:
    return made(ManagerRecord, {**dict(row), "facts": json.loads(row["facts"])})
