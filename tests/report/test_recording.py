"""A recording: what real runs leave, on the embedded engine and on Work Queue; who may record what."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import poncho_wq
from poncho_wq import LocalQueue, PonchoTask, recording
from poncho_wq.engines.statistics import parse_told
from poncho_wq.errors import EngineError
from poncho_wq.report import make_report, read_run
from poncho_wq.report.text import as_text

needs_worker = pytest.mark.skipif(
    shutil.which("work_queue_worker") is None,
    reason="needs Work Queue (apt-get install coop-computing-tools python3-workqueue)",
)


@pytest.fixture(autouse=True)
def _cache(shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("PONCHO_CACHE_DIR", str(shared_cache))
    yield
    found = recording.current()
    if found is not None:
        found.close()


def parse(text):  # type: ignore[no-untyped-def]
    import packaging.version

    if text == "bad":
        raise ValueError(text)
    return str(packaging.version.Version(text))


def drain(queue):  # type: ignore[no-untyped-def]
    found = []
    while not queue.empty():
        task = queue.wait(5)
        if task is not None:
            found.append(task)
    return found


def test_a_run_on_this_machine(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with LocalQueue(cores=1) as queue, poncho_wq.record(run, queue):
        for text in ("1.0", "2.0", "bad"):
            queue.submit(PonchoTask(parse, text))
        queue.submit(PonchoTask("echo  hello", environment={"pip": ["packaging"]}))
        asked = PonchoTask(parse, "3.0")
        asked.collect_environment_stats()
        queue.submit(asked)
        assert len(drain(queue)) == 5
        assert asked.environment_stats is not None  # the recording takes nothing away
    found = read_run(run)
    assert [task.name for task in found.tasks] == ["parse", "parse", "parse", "echo hello", "parse"]
    assert [task.number for task in found.tasks] == [1, 2, 3, 4, 5]
    assert [task.failed for task in found.tasks] == [False, False, True, False, False]
    assert all(task.attempt is not None and task.seconds > 0 for task in found.tasks)
    first, command = found.tasks[0], found.tasks[3]
    assert first.unpacked
    assert first.told.times is not None
    assert 0 < first.told.times.imports <= first.told.times.load + first.told.times.call
    assert command.told.times is None
    report = make_report(found)
    total = next(each for each in report.totals if each.environment == first.environment)
    same = [task for task in found.tasks if task.environment == first.environment]
    assert (total.tasks, total.failed, total.unpackings) == (len(same), 1, 1)
    assert total.sent == 0  # nothing was sent: it is this machine
    (facts,) = [found.environments[first.environment]]
    assert [pin["package"].partition("==")[0] for pin in facts["pins"]] == ["packaging"]
    text = as_text(report)
    assert "parse #3" in text
    assert max(map(len, text.splitlines())) <= 80
    assert json.loads(json.dumps(report.as_dict()))["run"]["tasks"] == 5


def test_warm_interpreters_stay_warm(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with LocalQueue(cores=1) as queue, poncho_wq.record(run, queue):
        for _ in range(4):
            task = PonchoTask(parse, "1.0")
            task.specify_warm(True)
            queue.submit(task)
            assert drain(queue)[0].output == "1.0"
    tasks = read_run(run).tasks
    assert not tasks[0].in_warm_interpreter
    assert any(task.in_warm_interpreter for task in tasks[1:])
    assert make_report(read_run(run)).totals[0].interpreters == sum(task.in_warm_interpreter for task in tasks)


@needs_worker
def test_a_run_on_real_workers(tmp_path: Path) -> None:
    from poncho_wq import WorkQueue
    from poncho_wq.engines.workers import LocalWorkers

    run = tmp_path / "run"
    queue = WorkQueue(0)
    queue.specify_password("its own")  # a worker of another test that has lost its manager may come by this port
    with (
        poncho_wq.record(run, queue),
        LocalWorkers(queue.port, password="its own", environ={"PATH": "/usr/bin:/bin"}),
    ):
        for text in ("1.0", "2.0", "3.0"):
            queue.submit(PonchoTask(parse, text))
        assert {task.output for task in drain(queue)} == {"1.0", "2.0", "3.0"}
    found = read_run(run)
    assert {task.number for task in found.tasks} == {1, 2, 3}
    assert all(task.attempt is not None and task.attempt.ended for task in found.tasks)
    report = make_report(found)
    (cost,) = report.costs
    assert (cost.tasks, cost.unpackings, cost.warm) == (3, 1, 2)
    # Counted or measured, one worker is sent one tarball.
    assert abs(cost.sent - found.environments[cost.environment]["size"]) < 10
    assert cost.worker in found.log.addresses


def test_a_futures_executor_attaches_its_own_manager(tmp_path: Path) -> None:
    from poncho_wq.futures import Executor

    with poncho_wq.record(tmp_path / "run"), Executor(engine="local", workers=1) as executor:
        assert list(executor.map(parse, ["1.0", "2.0"])) == ["1.0", "2.0"]
    found = read_run(tmp_path / "run")
    assert found.facts["engine"] == "local"
    assert found.tasks
    assert all(task.attempt is not None for task in found.tasks)


def test_nothing_is_recorded_before_and_after(tmp_path: Path) -> None:
    with LocalQueue(cores=1) as queue:
        with poncho_wq.record(tmp_path / "run", queue) as going_on:
            assert recording.current() is going_on
            with pytest.raises(EngineError, match="going on already"):
                poncho_wq.record(tmp_path / "other")
        going_on.close()
        assert recording.current() is None
        task = PonchoTask(parse, "1.0")
        queue.submit(task)
        assert drain(queue) == [task]
        assert "PONCHO_STATS" not in task._job.plan.before
    assert read_run(tmp_path / "run").tasks == ()
    assert "nothing to report" in as_text(make_report(read_run(tmp_path / "run")))


def test_a_directory_is_recorded_into_once(tmp_path: Path) -> None:
    poncho_wq.record(tmp_path / "run").close()
    with pytest.raises(EngineError, match="name a new directory"):
        poncho_wq.record(tmp_path / "run")
    (tmp_path / "file").touch()
    with pytest.raises(EngineError, match="cannot be written"):
        poncho_wq.record(tmp_path / "file" / "run")
    assert recording.current() is None


def test_a_manager_that_cannot_be_recorded_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "there" / "mine").mkdir(parents=True)
    for directory in ("new", "there"):
        with pytest.raises(TypeError, match="manager is needed, not int"):
            poncho_wq.record(tmp_path / directory, 7)  # what is no manager
        assert recording.current() is None
    assert [each.name for each in tmp_path.rglob("*")] == ["there", "mine"]
    for directory in ("new", "there"):
        with LocalQueue() as queue, poncho_wq.record(tmp_path / directory, queue):
            pass


@pytest.mark.parametrize("step", ["mkdir", "open", "replace"])
def test_a_recording_that_cannot_be_begun_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    real = getattr(Path, step)

    def full(path: Path, *args: object, **named: object) -> object:
        if path.name in ("told", "tasks.jsonl", "run.json.partial"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(path, *args, **named)

    with monkeypatch.context() as patched:
        patched.setattr(Path, step, full)
        with pytest.raises(EngineError, match="cannot be written: No space left"):
            poncho_wq.record(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_one_manager(tmp_path: Path) -> None:
    with LocalQueue() as one, LocalQueue() as other, poncho_wq.record(tmp_path / "run", one) as going_on:
        with pytest.raises(EngineError, match="of one manager"):
            going_on.attach(other)
        recording.attach(other)  # for those of ours: the first has it
    with (
        poncho_wq.record(tmp_path / "second") as going_on,
        pytest.raises(TypeError, match="manager is needed, not int"),
    ):
        going_on.attach(7)


def test_a_forked_child_does_not_record(tmp_path: Path) -> None:
    with poncho_wq.record(tmp_path / "run"):
        child = os.fork()
        if child == 0:
            os._exit(0 if recording.current() is None else 1)
        assert os.waitpid(child, 0)[1] == 0


def test_a_place_that_is_no_recording(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="is not a recording"):
        read_run(tmp_path)
    poncho_wq.record(tmp_path / "run").close()
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps({**facts, "format": 99}))
    with pytest.raises(EngineError, match="format 99"):
        read_run(tmp_path / "run")
    (tmp_path / "run" / "run.json").write_text(json.dumps(facts))
    with pytest.raises(EngineError, match="--log FILE"):
        read_run(tmp_path / "run", log=tmp_path / "nowhere")


@pytest.mark.parametrize(
    "text",
    [
        "", "poncho-task\n", "poncho-task t.x\n", "poncho-task t.\n", "poncho-run 1\n", "poncho-run 2 at=1\n",
        "poncho-run 1 at=-5\n", "poncho-run 1 at=1 call=\n", "poncho-run 1 at=1 call=2", "\x00\xff\n" * 9,
        "poncho-task t." + "9" * 99 + "\n",
    ],
)  # fmt: skip
def test_what_a_worker_may_have_written(text: str) -> None:
    told = parse_told(text)
    assert (told.number, told.environment, told.times) == (None, None, None)


def test_what_a_worker_writes() -> None:
    told = parse_told(
        "poncho-task task.12\nnoise\nporcho\nponcho-run 1 at=1000000 start=2 load=3 import=4 call=5 new=6\n"
    )
    assert told.number == 12
    assert told.times is not None
    assert (told.times.at, told.times.call) == (1.0, 5e-6)
