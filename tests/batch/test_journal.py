"""The journal and the publishing of results: whole or not at all, whoever looks and whenever it is cut short."""

from __future__ import annotations

import io
import json
import os
import sqlite3
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import pytest

from poncho_wq.batch import publish as publishing
from poncho_wq.batch.journal import Journal
from poncho_wq.batch.model import DELETED, Batch, State
from poncho_wq.batch.outcome import Outcome, lost, read
from poncho_wq.batch.publish import publish, published, sweep
from poncho_wq.batch.spool import RECEIPT, Spool
from poncho_wq.errors import EngineError
from tests.batch.conftest import job
from tests.processes import Child

FACTS = {
    "outcome": "ended", "problem": None, "missing": [], "host": "h", "worker": "w", "started": 1.0, "ended": 2.0,
    "steps": [{"step": 0, "exit_code": 0, "signal": None}],
}  # fmt: skip


@pytest.fixture
def journal(tmp_path: Path) -> Any:
    with Journal(Spool(tmp_path)) as journal:
        yield journal


def _returned(path: Path, **files: str) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, text in {**{f"files/{k}": v for k, v in files.items()}, "result.json": json.dumps(FACTS)}.items():
            info = tarfile.TarInfo(name)
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text.encode()))
    return path


def test_what_is_written_together_is_there_whole_or_not_at_all(journal: Journal, tmp_path: Path) -> None:
    number = journal.add(Batch(name="b", jobs=(job("a"), job("c"))), front_end="t")

    def write() -> None:
        with journal.together():
            journal.set_job(1, state=State.RUNNING)
            with journal.together():
                journal.set_job(2, state=State.RUNNING)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write()
    with Journal(Spool(tmp_path)) as other:
        assert other.counts(number) == {State.WAITING: 2}


def test_readers_do_not_wait_for_a_writer(journal: Journal, tmp_path: Path) -> None:
    number = journal.add(Batch(name="b", jobs=(job("a"),)), front_end="t")
    with journal.together():
        journal.set_job(1, state=State.RUNNING)
        with Journal(Spool(tmp_path), create=False) as other:
            assert other.jobs(number)[0].state is State.WAITING


def test_find(journal: Journal) -> None:
    with pytest.raises(EngineError, match="there are no batches here"):
        journal.find()
    for namespace, name in (("n", "a"), ("m", "a"), ("n", "b")):
        journal.add(Batch(name=name, namespace=namespace, jobs=(job("x"),)), front_end="t")
    assert [journal.find(words).id for words in (None, "n/a", "m/a", "b", "2")] == [3, 1, 2, 3, 2]
    with pytest.raises(EngineError, match=r"several batches are called a\nthere are: n/a, m/a"):
        journal.find("a")
    with pytest.raises(EngineError, match="there is no batch zz"):
        journal.find("zz")


def test_a_folder_is_one_batch_s(journal: Journal) -> None:
    batch = Batch(name="b", namespace="n", jobs=(job("a"),))
    journal.add(batch, front_end="t")
    with pytest.raises(EngineError, match=r"there is a batch n/b in .* already"):
        journal.add(batch, front_end="t")
    again = journal.add(batch, front_end="t", folder="n/{id}")
    assert journal.batch(again).folder == f"n/{again}"
    # What is in braces in a name is the name.
    named = Batch(name="b-{id}", jobs=(job("a"),))
    journal.add(named, front_end="t")
    with pytest.raises(EngineError, match=r"there is a batch b-\{id\} in .* already"):
        journal.add(named, front_end="t")


def test_a_folder_that_is_taken_once_the_number_is_filled_in(journal: Journal, tmp_path: Path) -> None:
    batch = Batch(name="fit", jobs=(job("a"), job("b")))
    assert journal.add(batch, front_end="t", folder="job-{id}") == 1
    journal.add(Batch(name="job-3", jobs=(job("a"),)), front_end="mine")
    with journal.together():
        with pytest.raises(EngineError) as caught:
            journal.add(batch, front_end="t", folder="job-{id}")
        # Nothing is left to be kept by who goes on.
        assert [each.folder for each in journal.batches()] == ["job-1", "job-3"]
    assert str(caught.value) == (
        f"there is a batch job-3 in {tmp_path} already\n"
        "use another --save-dir; for PROMINENCE's jobs, PONCHO_PROMINENCE_SPOOL"
    )
    with pytest.raises(EngineError, match=r"the folder job-1 is taken by the batch fit \(number 1, t\)\ngive this one"):
        journal.refuse_taken(Batch(name="job-1", jobs=(job("a"),)))
    assert [each.folder for each in journal.batches()] == ["job-1", "job-3"]
    assert journal.jobs(3) == []


def test_numbers_are_given_once(journal: Journal, tmp_path: Path) -> None:
    batch = Batch(name="fit", jobs=(job("a"),))
    assert [journal.add(batch, front_end="t", folder="job-{id}") for _ in range(2)] == [1, 2]
    database = sqlite3.connect(Spool(tmp_path).journal, isolation_level=None)
    database.execute("DELETE FROM batch WHERE id = 2")
    assert journal.add(batch, front_end="t", folder="job-{id}") == 3
    # A journal that was put together by hand does not count.
    database.execute("DELETE FROM sqlite_sequence")
    database.close()
    assert journal.add(batch, front_end="t", folder="job-{id}") == 4


def test_a_contradiction_is_damage_only_where_the_file_is(journal: Journal, tmp_path: Path) -> None:
    batch = Batch(name="b", jobs=(job("a"), job("a")))
    with pytest.raises(EngineError, match=r"contradicts what is there: UNIQUE constraint failed: job.batch, job.name"):
        journal.add(batch, front_end="t")
    assert journal.batches() == []
    journal.add(Batch(name="c", jobs=(job("a"),)), front_end="t")
    database = sqlite3.connect(Spool(tmp_path).journal, isolation_level=None)
    database.execute("PRAGMA writable_schema = ON")
    stricter = "replace(sql, 'host TEXT', 'host TEXT NOT NULL')"
    database.execute(f"UPDATE sqlite_master SET sql = {stricter} WHERE name = 'job'")
    database.close()
    with Journal(Spool(tmp_path)) as other, pytest.raises(EngineError, match="is damaged: NOT NULL"):
        other.add(batch, front_end="t")


def test_kill_without_a_manager_and_with_one(journal: Journal, tmp_path: Path) -> None:
    number = journal.add(Batch(name="b", jobs=(job("a"), job("c"))), front_end="t")
    journal.kill(number, [1])
    assert (journal.job(1).state, journal.job(1).reason) == (State.DELETED, DELETED)
    assert journal.batch(number).ended is None
    with Journal(Spool(tmp_path)) as manager, manager.lease(number, "local"):
        assert journal.is_leased(number)
        journal.kill(number)
        assert [(each.kind, each.job) for each in manager.requests([number])] == [("kill", None)]
        assert journal.job(2).state is State.WAITING
    journal.kill(number)
    assert journal.batch(number).ended is not None


def test_nobody_is_asked_about_a_batch_that_is_over(journal: Journal) -> None:
    number = journal.add(Batch(name="b", jobs=(job("a"),)), front_end="t")
    assert journal.request("rerun", number)
    journal.set_ended(number, 1.0)
    assert not journal.request("rerun", number)
    assert len(journal.requests([number])) == 1


def test_a_journal_of_another_version_is_refused(journal: Journal, tmp_path: Path) -> None:
    with sqlite3.connect(Spool(tmp_path).journal) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(EngineError, match="format 99, ours 1"):
        Journal(Spool(tmp_path))


def test_a_file_that_is_no_journal_is_refused(tmp_path: Path) -> None:
    Spool(tmp_path).make().journal.write_text("something else, long enough to be looked at" * 50)
    with pytest.raises(EngineError, match="file is not a database"):
        Journal(Spool(tmp_path))


def test_results_cut_short_are_no_results(tmp_path: Path) -> None:
    whole = _returned(tmp_path / "r.tar", x="1" * 5000).read_bytes()
    assert read(tmp_path / "r.tar", job("a")) is not None
    end = whole.index(b'"outcome"')
    for size in (0, 1, 511, 512, 2000, end):
        (tmp_path / "cut.tar").write_bytes(whole[:size])
        assert read(tmp_path / "cut.tar", job("a")) is None


def test_published_again_in_the_place_of_earlier_results(tmp_path: Path) -> None:
    outcome = Outcome(state=State.COMPLETED, facts=FACTS)
    for attempt, name in ((1, "old"), (2, "new")):
        returned = _returned(tmp_path / "r.tar", **{name: "x"})
        publish(returned, tmp_path / "b/a", job=7, attempt=attempt, outcome=outcome)
    assert {path.name for path in (tmp_path / "b/a").iterdir()} == {"new", "stdout.txt", "stderr.txt", RECEIPT}
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["a"]
    found = published(tmp_path / "b/a", job=7, attempt=2, described=job("a"))
    assert found is not None
    assert found.state is State.COMPLETED
    assert published(tmp_path / "b/a", job=7, attempt=1, described=job("a")) is None
    assert published(tmp_path / "b/a", job=8, attempt=2, described=job("a")) is None
    publish(None, tmp_path / "b/a", job=7, attempt=3, outcome=lost(125, "why"), said="why")
    assert (tmp_path / "b/a/stderr.txt").read_text() == "why"
    assert published(tmp_path / "b/a", job=7, attempt=3, described=job("a")) is None


def test_a_manager_that_dies_between_two_renames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = Outcome(state=State.COMPLETED, facts=FACTS)
    publish(_returned(tmp_path / "r.tar", old="x"), tmp_path / "b/a", job=1, attempt=1, outcome=outcome)

    class Dead(BaseException):
        pass

    real, calls = Path.rename, []

    def rename(self: Path, target: Path) -> Path:
        if Path(target) == tmp_path / "b/a":
            raise Dead
        calls.append(target)
        return real(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(publishing.Path, "rename", rename)
        with pytest.raises(Dead):
            publish(_returned(tmp_path / "r.tar", new="x"), tmp_path / "b/a", job=1, attempt=2, outcome=outcome)
    (tmp_path / "b/.half.0123.partial").mkdir()
    assert not (tmp_path / "b/a").exists()
    sweep(tmp_path / "b")
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["a"]
    assert (tmp_path / "b/a/old").exists()


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside"])
def test_results_that_would_leave_their_directory_are_refused(tmp_path: Path, name: str) -> None:
    outcome = Outcome(state=State.COMPLETED, facts=FACTS)
    with tarfile.open(tmp_path / "r.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo(name))
    with pytest.raises(EngineError, match="the results could not be stored"):
        publish(tmp_path / "r.tar", tmp_path / "b/a", job=1, attempt=1, outcome=outcome)
    assert list((tmp_path / "b").iterdir()) == []


@pytest.mark.parametrize(
    ("table", "column", "value"),
    [
        ("job", "state", "unheard of"), ("job", "attempt", "many"), ("batch", "document", "{"), ("batch", "document",
        "[" * 5000), ("batch", "document", '{"format":1,"batch":{"name":"b","jobs":7}}'), ("batch", "name", b"\xff"),
        ("attempt", "facts", "{"), ("manager", "facts", "x"), ("request", "job", "x"),
    ],
)  # fmt: skip
def test_a_value_of_another_kind_is_damage_that_is_told(tmp_path: Path, table: str, column: str, value: object) -> None:
    with Journal(Spool(tmp_path)) as journal:
        number = journal.add(Batch(name="b", jobs=(job("a"),)), front_end="t")
        journal.new_attempt(1, tries=1, now=1.0)
        journal.seen(number, "local", {})
        journal.request("kill", number)
    database = sqlite3.connect(Spool(tmp_path).journal, isolation_level=None)
    database.execute(f"UPDATE {table} SET {column} = ?", (value,))
    database.close()
    with pytest.raises(EngineError, match="is damaged"):
        _read_all(tmp_path)


def _read_all(save: Path) -> None:
    with Journal(Spool(save)) as journal:
        journal.batches()
        journal.document(1)
        journal.jobs(1)
        journal.attempts(1)
        journal.manager(1)
        journal.requests([1])


def _change(save: Path) -> None:
    with Journal(Spool(save)) as journal:
        journal.set_job(300, state=State.IDLE)
        journal.kill(1)


def test_a_damaged_page_is_told_whenever_it_is_met(tmp_path: Path) -> None:
    with Journal(Spool(tmp_path)) as journal:
        journal.add(Batch(name="b", jobs=tuple(job(f"j{n}") for n in range(400))), front_end="t")
    file = Spool(tmp_path).journal
    data = bytearray(file.read_bytes())
    assert len(data) > 8 * 4096
    data[3 * 4096 :] = b"\xff" * (len(data) - 3 * 4096)
    file.write_bytes(bytes(data))
    with pytest.raises(EngineError, match="is damaged"):
        _read_all(tmp_path)
    with pytest.raises(EngineError):
        _change(tmp_path)


def _with_facts(path: Path, facts: object) -> Path:
    with tarfile.open(path, "w") as tar:
        text = json.dumps(facts).encode()
        info = tarfile.TarInfo("result.json")
        info.size = len(text)
        tar.addfile(info, io.BytesIO(text))
    return path


@pytest.mark.parametrize(
    "facts",
    [
        [], {}, {**FACTS, "steps": [{"step": 1, "exit_code": 0, "signal": None}]}, {**FACTS, "steps": [{}]}, {**FACTS,
        "steps": 3}, {**FACTS, "steps": [{"step": 0, "exit_code": "0", "signal": None}]}, {**FACTS, "host": []},
        {**FACTS, "missing": [1]}, {**FACTS, "started": "now"}, {**FACTS, "problem": 1},
        {name: value for name, value in FACTS.items() if name != "problem"},
        {**FACTS, "steps": [{"step": 0.0, "exit_code": 0, "signal": None}]},
        {**FACTS, "steps": [{"step": [], "exit_code": 0, "signal": None}]},
    ],
)  # fmt: skip
def test_what_a_worker_says_is_believed_only_in_the_runners_form(tmp_path: Path, facts: object) -> None:
    assert read(_with_facts(tmp_path / "good.tar", FACTS), job("a")) is not None
    assert read(_with_facts(tmp_path / "1-1.tar", facts), job("a")) is None


def test_a_result_that_is_a_bomb_is_not_unpacked_to_be_looked_at(tmp_path: Path) -> None:
    import bz2

    plain = _with_facts(tmp_path / "plain.tar", FACTS).read_bytes()
    (tmp_path / "1-1.tar").write_bytes(bz2.compress(plain))
    assert read(tmp_path / "1-1.tar", job("a")) is None


@pytest.mark.parametrize(
    "receipt", ["[]", "{}", '{"job": 1, "attempt": 1, "facts": {"steps": 1}, "stderr_tail": ""}', "[" * 9000]
)
def test_a_receipt_that_is_none_is_passed_over(tmp_path: Path, receipt: str) -> None:
    (tmp_path / RECEIPT).write_text(receipt)
    assert published(tmp_path, job=1, attempt=1, described=job("a")) is None


def test_credentials_in_a_description_are_not_kept(journal: Journal, tmp_path: Path) -> None:
    source = '{"artifacts": [{"url": "https://me:s3cret@host/x?token=s3cret&a=b"}]}'
    number = journal.add(Batch(name="b", jobs=(job("a"),)), front_end="t", source=source)
    assert json.loads(journal.batch(number).source) == {"artifacts": [{"url": "https://***@host/x?token=***&a=b"}]}
    journal.close()
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"s3cret" in path.read_bytes()]


def test_a_spool_is_its_users_alone(tmp_path: Path) -> None:
    with Journal(Spool(tmp_path)):
        pass
    own = Spool(tmp_path).own
    assert own.stat().st_mode & 0o077 == 0
    own.chmod(0o777)
    with pytest.raises(EngineError, match="everybody can write to it"):
        Journal(Spool(tmp_path))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_a_spool_that_somebody_else_has_made_is_refused() -> None:
    """Its journal would say what runs as this user."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o777)
        own = Path(name, ".poncho-batch")
        own.mkdir()
        own.chmod(0o777)

        def as_nobody() -> None:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            with pytest.raises(EngineError, match="belongs to user 0, and you are 65534"):
                Journal(Spool(name))
            with pytest.raises(EngineError, match="belongs to user 0, and you are 65534"):
                Journal(Spool(name), create=False)

        assert Child(as_nobody).wait() == 0
        assert not (own / "journal.sqlite").exists()
