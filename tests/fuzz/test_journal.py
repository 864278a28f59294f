"""A batch's journal that was damaged on the disk, or written to by somebody else: an error that says so."""

from __future__ import annotations

import random
import shutil
import sqlite3
import time
from pathlib import Path

import pytest
from hypothesis import strategies as st

from poncho_wq.batch.journal import Journal
from poncho_wq.batch.model import Batch, Job, State, Step
from poncho_wq.batch.spool import Spool
from tests.fuzz.campaign import Campaign, seeded
from tests.fuzz.strategies import NASTY, NUMBERS

PAGE = 4096


def write(spool: Spool) -> None:
    """A journal with some of everything."""
    jobs = tuple(Job(name=f"job{n}", steps=(Step(argv=("true", "x" * 300)),)) for n in range(12))
    with Journal(spool) as journal:
        for name in ("a", "b"):
            number = journal.add(Batch(name=name, jobs=jobs), front_end="distribute", source="text", now=1.0)
            journal.seen(number, "local", {"cores": 1})
            journal.set_environment(number, {"size": 3})
            for job in journal.jobs(number)[:6]:
                attempt = journal.new_attempt(job.id, tries=1, now=2.0)
                journal.end_attempt(
                    job.id, attempt, state=State.FAILED, reason="exit 1", started=2.0, now=3.0, host="h", worker="w",
                    facts={"steps": []},
                )  # fmt: skip
            journal.request("kill", number, [job.id])


def walk(spool: Spool) -> None:
    """All that commands and managers do with a journal, reading first."""
    with Journal(spool, create=False) as journal:
        for batch in journal.batches():
            journal.find(batch.title)
            journal.counts(batch.id)
            journal.jobs(batch.id)
            journal.attempts(batch.id)
            journal.manager(batch.id)
            journal.requests([batch.id])
            journal.document(batch.id)
            journal.unfinished()
            journal.request("kill", batch.id)
            with journal.lease(batch.id, "local"):
                for job in journal.jobs(batch.id)[:2]:
                    journal.job(job.id)
                    journal.set_job(job.id, state=State.IDLE)
                    journal.new_attempt(job.id, tries=2, now=time.time())
            journal.kill(batch.id)
            journal.remove(batch.id)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spool = Spool(tmp_path_factory.mktemp("written") / "save").make()
    write(spool)
    return spool.journal


def fresh(campaign: Campaign, written: Path) -> Spool:
    shutil.rmtree(campaign.directory / "save", ignore_errors=True)
    spool = Spool(campaign.directory / "save").make()
    shutil.copyfile(written, spool.journal)
    return spool


def damage(path: Path, chance: random.Random) -> None:
    data = bytearray(path.read_bytes())
    for _ in range(chance.randint(1, 8)):
        at = chance.randrange(len(data) or 1)
        kind = chance.randrange(6)
        if kind == 0:
            data[at : at + 1] = chance.randbytes(1)
        elif kind == 1:
            data[at : at + 200] = chance.randbytes(200)
        elif kind == 2:
            del data[at:]
        elif kind == 3:  # a page for another, as a disk does that has lost a write
            other = chance.randrange(max(1, len(data) // PAGE)) * PAGE
            at = at // PAGE * PAGE
            data[at : at + PAGE] = data[other : other + PAGE]
        elif kind == 4:
            data[at // PAGE * PAGE : (at // PAGE + 1) * PAGE] = bytes(PAGE)
        else:  # headers decide most
            place = (at // PAGE * PAGE) + chance.randrange(100)
            data[place : place + 1] = chance.randbytes(1)
    path.write_bytes(bytes(data))


def test_a_damaged_file(campaign: Campaign, written: Path) -> None:
    def case(seed: int) -> None:
        spool = fresh(campaign, written)
        damage(spool.journal, seeded(seed))
        walk(spool)

    campaign.run("journal, bytes", case, seed=st.integers(0, 2**32))


COLUMNS = {
    "batch": (
        "id",
        "namespace",
        "name",
        "folder",
        "front_end",
        "source",
        "document",
        "created",
        "ended",
        "environment",
        "removed",
    ),
    "job": ("id", "batch", "position", "name", "state", "reason", "attempt", "tries", "created", "host", "stderr_tail"),
    "attempt": ("job", "number", "state", "facts", "reason", "submitted"),
    "request": ("id", "batch", "job", "kind"),
    "manager": ("batch", "pid", "host", "seen", "engine", "facts"),
}
ODD = (
    *NASTY,
    *NUMBERS[:5],
    b"\xff\0",
    "[]",
    "{}",
    '{"format":1,"batch":{}}',
    '{"format":1,"batch":{"name":1,"jobs":7}}',
    "[" * 3000,
)


def _storable(value: object) -> object:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    return float(value) if isinstance(value, int) and abs(value) > 2**62 else value


def test_odd_values(campaign: Campaign, written: Path) -> None:
    def case(changes: list[tuple[str, object]], statement: str) -> None:
        spool = fresh(campaign, written)
        database = sqlite3.connect(spool.journal, isolation_level=None)
        try:
            for where, value in changes:
                table, _, column = where.partition(".")
                try:
                    database.execute(f"UPDATE {table} SET {column} = ?", (_storable(value),))
                except sqlite3.Error:  # not unique, or not of the type of a key
                    continue
            database.execute(statement)
        finally:
            database.close()
        walk(spool)

    places = [f"{table}.{column}" for table, columns in COLUMNS.items() for column in columns]
    statements = ["SELECT 1", "PRAGMA user_version = 0", "PRAGMA user_version = 99"]
    statements += [f"DROP TABLE {table}" for table in COLUMNS] + ["ALTER TABLE job RENAME COLUMN state TO was"]
    statements += ["DELETE FROM job", "ALTER TABLE batch ADD COLUMN more TEXT"]
    campaign.run(
        "journal, values", case, changes=st.lists(st.tuples(st.sampled_from(places), st.sampled_from(ODD)), max_size=3),
        statement=st.sampled_from(["SELECT 1"] * 8 + statements),
    )  # fmt: skip
