"""Workflows of PROMINENCE's client, run: factories, failures, what is run again, and a service that is killed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from poncho_wq.batch.journal import Journal
from poncho_wq.batch.model import State
from poncho_wq.errors import BatchError, EngineError
from poncho_wq.prominence import Dependency, Job, ParameterSet, ParameterSweep, Workflow
from tests.prominence.conftest import Service, until


def sweep_and_gather(job: Callable[..., Job], directory: Path, text: str = "") -> Workflow:
    """Four instances that note when they run, and a job that follows them."""
    point = job(f"{text} echo point-$x >> {directory}/ran; echo $PROMINENCE_PARAMETER_x", name="point")
    gather = job(f"echo gather >> {directory}/ran; cat {directory}/ran", name="gather")
    made = Workflow()
    made.name = "study"
    made.jobs = [point, gather]
    made.factories.append(ParameterSweep(name="f", jobs=[point], parameters=[ParameterSet("x", 0, 0.3, 0.1)]))
    made.dependencies.append(Dependency(point, [gather]))
    return made


def ran(directory: Path) -> list[str]:
    file = directory / "ran"
    return file.read_text().split() if file.exists() else []


def test_a_sweep_and_what_gathers_it(service: Service, job: Callable[..., Job], tmp_path: Path) -> None:
    made = sweep_and_gather(job, tmp_path)
    made.create()
    assert isinstance(made.id, int)
    made.wait()
    assert made.status == "completed"
    assert made.done()
    assert sorted(ran(tmp_path)[:4]) == ["point-0", "point-0.1", "point-0.2", "point-0.3"]
    assert ran(tmp_path)[4:] == ["gather"]
    assert [made.job(f"point_{i}").stdout() for i in range(4)] == ["0\n", "0.1\n", "0.2\n", "0.3\n"]
    # The job that no factory makes instances of is itself; the other one is none.
    assert made.jobs[1].stdout().split()[-1] == "gather"
    assert made.jobs[0].id is None
    known = Workflow(made.id)
    assert known.to_dict() == made.to_dict()
    assert known.jobs[1].id == made.jobs[1].id
    assert known.status == "completed"
    with pytest.raises(EngineError, match="nothing to run again"):
        made.rerun()
    with pytest.raises(EngineError, match="the workflow has no job point"):
        made.job("point")
    assert not made.delete()
    assert made.remove()


def test_what_failed_and_what_follows_is_run_again(service: Service, job: Callable[..., Job], tmp_path: Path) -> None:
    made = sweep_and_gather(job, tmp_path, f"if [ $x = 0.2 ] && ! [ -e {tmp_path}/mended ]; then exit 7; fi;")
    made.create()
    made.wait()
    assert made.status == "failed"
    assert sorted(ran(tmp_path)) == ["point-0", "point-0.1", "point-0.3"]
    failed, gather = made.job("point_2"), made.job("gather")
    assert (failed.status, failed.exit_code, failed.status_reason) == ("failed", 7, "exit 7")
    assert (gather.status, gather.status_reason) == ("failed", "point_2 did not complete")
    (tmp_path / "mended").touch()
    (tmp_path / "ran").unlink()
    number = made.rerun()
    assert number != made.id
    again = Workflow(number)
    again.wait()
    assert again.status == "completed"
    assert ran(tmp_path) == ["point-0.2", "gather"]
    # The results of those that were not run again are there too.
    assert again.job("point_3").stdout() == "0.3\n"
    assert made.status == "failed"


def test_policies_about_failures(here: Service, job: Callable[..., Job], tmp_path: Path) -> None:
    made = Workflow()
    forgiven, last = job("exit 1", name="forgiven"), job("true", name="last")
    retried = job(f"mkdir {tmp_path}/d && exit 1; echo ok", name="retried")
    forgiven.policies.report_job_success_on_task_failure = True
    made.jobs = [forgiven, retried, last]
    made.dependencies = [Dependency("forgiven", ["last"]), Dependency(retried, [last])]
    made.policies.maximum_retries = 1
    made.create()
    made.wait()
    assert made.status == "completed"
    assert (made.jobs[0].status, made.jobs[0].exit_code) == ("completed", 1)
    assert made.jobs[1].stdout() == "ok\n"
    with Journal(here.spool) as journal:
        tries = {job.name: job.attempt for job in journal.jobs(made.id or 0)}
    assert tries == {"forgiven": 1, "retried": 2, "last": 1}


def test_deleting_a_workflow(here: Service, job: Callable[..., Job]) -> None:
    made = Workflow()
    made.jobs = [job("sleep 600", name="a"), job("true", name="b")]
    made.dependencies.append(Dependency("a", ["b"]))
    made.create()
    until(lambda: made.jobs[0].status == "running")
    assert made.status == "running"
    with pytest.raises(EngineError, match="still running"):
        made.rerun()
    assert not made.remove()
    assert made.delete()
    assert made.status == "deleted"
    assert made.jobs[1].status in ("deleted", "failed")


def test_a_job_of_a_workflow_is_deleted_alone(here: Service, job: Callable[..., Job]) -> None:
    made = Workflow()
    made.jobs = [job("sleep 600", name="a"), job("echo b", name="b")]
    made.create()
    until(lambda: made.jobs[0].status == "running")
    assert Job(made.jobs[0].id).delete()
    made.wait()
    assert [each.status for each in made.jobs] == ["deleted", "completed"]
    assert not made.jobs[1].remove()
    assert made.status == "deleted"


def test_what_is_wrong_is_said_before_anything_runs(here: Service, job: Callable[..., Job]) -> None:
    def messages(made: Job | Workflow) -> str:
        with pytest.raises(BatchError) as caught:
            made.create()
        return str(caught.value)

    made = Workflow()
    made.jobs = [job("true", name="a"), job("true", name="a")]
    assert 'all jobs must have unique names: "a" is used more than once' in messages(made)
    made.jobs[1].name = "b"
    made.dependencies = [Dependency("a", ["zz"])]
    assert 'child job "zz" is not defined' in messages(made)
    made.dependencies = [Dependency("a", ["b"]), Dependency("b", ["a"])]
    assert "dependency cycle: a -> b -> a" in messages(made)
    wide = job("true")
    wide.resources.nodes = 2
    assert "nodes=2: a Work Queue job runs on one worker" in messages(wide)
    assert not here.is_there


def test_a_killed_service_loses_nothing(service: Service, job: Callable[..., Job], tmp_path: Path) -> None:
    """Killed while some jobs are done, some run and some wait; a new process waits for all."""
    made = Workflow()
    hold = f"while ! [ -e {tmp_path}/go ]; do sleep 0.05; done;"
    first = [job(f"echo {i} >> {tmp_path}/done; echo result {i}", name=f"first_{i}") for i in range(3)]
    middle = [
        job(f"touch {tmp_path}/in-{i}; {hold} echo {i} >> {tmp_path}/done; echo result {i}", name=f"middle_{i}")
        for i in range(3, 6)
    ]
    last = job(f"cat {tmp_path}/done", name="last")
    made.jobs = [*first, *middle, last]
    made.dependencies = [Dependency(each, middle) for each in first] + [Dependency(each, [last]) for each in middle]
    made.create()
    until(lambda: len(list(tmp_path.glob("in-*"))) >= 2)
    with Journal(service.spool) as journal:
        before = {each.name: each.attempt for each in journal.jobs(made.id or 0)}
    service.kill()
    (tmp_path / "go").touch()
    script = f"from poncho_wq.prominence import *; w = Workflow({made.id}); w.wait(); print(w.status)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=240)
    assert (done.stdout, done.stderr) == ("completed\n", "")
    # Every result is there, once: what was done before was not done again, what was lost was.
    assert [made.job(f"first_{i}").stdout() for i in range(3)] == [f"result {i}\n" for i in range(3)]
    assert [made.job(f"middle_{i}").stdout() for i in range(3, 6)] == [f"result {i}\n" for i in range(3, 6)]
    with Journal(service.spool) as journal:
        jobs = journal.jobs(made.id or 0)
        attempts = journal.attempts(made.id or 0)
    assert [each.state for each in jobs] == [State.COMPLETED] * 7
    assert {each.name: each.attempt for each in jobs if each.name.startswith("first")} == {
        name: 1 for name in before if name.startswith("first")
    }
    completed = [each.job for each in attempts if each.state is State.COMPLETED]
    assert sorted(completed) == sorted(each.id for each in jobs)
    said = made.jobs[-1].stdout().split()
    assert sorted(set(said)) == ["0", "1", "2", "3", "4", "5"]
    assert [said.count(str(i)) for i in range(3)] == [1, 1, 1]
