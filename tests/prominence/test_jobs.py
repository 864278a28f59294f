"""Jobs of PROMINENCE's client, run: on real Work Queue workers and on the embedded engine."""

from __future__ import annotations

import gzip
import io
import os
import socket
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from poncho_wq.batch.journal import Journal
from poncho_wq.errors import EngineError
from poncho_wq.prominence import Artifact, InputFile, Job, Task
from tests.data_server import faulty_server
from tests.prominence.conftest import Service, until

SEED = """\
# Define a task
task = Task()
task.image = 'centos:7'
task.runtime = 'singularity'
task.command = 'hostname'

# Define a job
job = Job()
job.tasks.append(task)
job.create()

# Wait for job to complete
job.wait()

# Print standard output
print(job.stdout())
"""


def test_the_example_of_the_documentation(service: Service, tarball: Path) -> None:
    script = "from poncho_wq.prominence import *\n" + SEED.replace("centos:7", str(tarball))
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    assert done.stderr == ""
    assert done.stdout.strip() == socket.gethostname()


def test_a_job_from_beginning_to_end(service: Service, job: Callable[..., Job], tmp_path: Path) -> None:
    go = tmp_path / "go"
    made = job(
        f"cat in/hello.txt; echo oops >&2; mkdir -p deep/er out; echo 1 > a1.csv; echo 2 > a2.csv; "
        f"echo x > deep/er/x; echo y > out/y; while ! [ -e {go} ]; do sleep 0.1; done; echo end",
        name="whole",
    )
    made.labels = {"study": "x"}
    made.input_files.append(InputFile("in/hello.txt", content="hello\n"))
    made.output_files = ["a*.csv"]
    made.output_directories = ["out", "deep"]
    assert made.id is None
    made.create()
    assert isinstance(made.id, int)
    until(lambda: made.status == "running" and "hello" in made.stdout())
    assert not made.done()
    made.wait(timeout=1)
    assert made.status == "running"
    assert (made.stdout(), made.stderr()) == ("hello\n", "oops\n")
    # Inside the running job: its directory, its environment.
    assert made.execute("cat in/hello.txt").strip() == "hello"
    assert made.execute("python3 -c 'import only_there; print(only_there.WORDS)'") == "from the environment\n"
    assert made.execute("no-such-command") == "no-such-command: No such file or directory\n"
    assert made.get_snapshot("a1.csv", save_as=tmp_path / "snap") == "1\n"
    assert (tmp_path / "snap").read_text() == "1\n"
    snapshot = made.get_snapshot("deep")
    assert isinstance(snapshot, bytes)
    with tarfile.open(fileobj=io.BytesIO(snapshot)) as tar:
        assert "deep/er/x" in tar.getnames()
    with pytest.raises(EngineError, match="No such file"):
        made.get_snapshot("not-there")
    go.touch()
    made.wait()
    assert (made.status, made.status_reason, made.exit_code, made.done()) == ("completed", None, 0, True)
    # From another process, and as it was described.
    known = Job(made.id)
    assert known.to_dict() == made.to_dict()
    assert known.stdout() == "hello\nend\n"
    assert known.stderr() == "oops\n"
    assert known.get_input_file("in/hello.txt") == "hello\n"
    assert known.get_output_file("a1.csv") == "1\n"
    assert known.get_output_file("a2.csv", save_as=tmp_path / "saved") == "2\n"
    assert (tmp_path / "saved").read_text() == "2\n"
    for name, member in (("out", "out/y"), ("deep/", "deep/er/x")):
        data = known.get_output_directory(name, save_as=tmp_path / "saved.tgz")
        assert (tmp_path / "saved.tgz").read_bytes() == data
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            assert member in tar.getnames()
    with pytest.raises(EngineError, match="has no output nothing"):
        known.get_output_file("nothing")
    with pytest.raises(EngineError, match="has no input file nothing"):
        known.get_input_file("nothing")
    with pytest.raises(EngineError, match="only a running job can be asked"):
        known.execute("true")
    with pytest.raises(EngineError, match="node 1: a Work Queue job runs on one worker"):
        known.stdout(node=1)
    assert not known.delete()
    assert known.remove()
    assert not known.remove()


def test_tasks_share_a_directory_and_sidecars_frame_them(service: Service, job: Callable[..., Job], task: Any) -> None:
    until_told = "trap 'echo down >&2; exit 0' TERM; while :; do sleep 0.1; done"
    watch = task(f"echo up > new; mv new ready; {until_told}", type="sidecar")
    first = task("while ! [ -e ready ]; do sleep 0.05; done; cat ready; echo $WHO > shared", env={"WHO": "me"})
    second = task("cat ../shared; pwd; echo $HOME", workdir="sub")
    made = job(watch, first, second)
    made.create()
    made.wait()
    said = made.stdout().split()
    assert said[:2] == ["up", "me"]
    assert said[2] == f"{said[3]}/sub"
    assert made.status == "completed"
    assert "down" in made.stderr().split()  # and what the shell says of what it lost


def test_variables(here: Service, job: Callable[..., Job], task: Any) -> None:
    names = ("CPUS", "MEMORY", "NODES", "NODE_NUM", "JOB_ID", "WORKFLOW_ID", "CONTAINER_RUNTIME")
    made = job("; ".join(f"echo {name}=${{PROMINENCE_{name}-none}}" for name in names))
    made.resources.cpus, made.resources.memory = 2, 3
    made.create()
    made.wait()
    assert dict(line.split("=") for line in made.stdout().split()) == {
        "CPUS": "2", "MEMORY": "3", "NODES": "1", "NODE_NUM": "0", "JOB_ID": str(made.id), "WORKFLOW_ID": "none",
        "CONTAINER_RUNTIME": "none",
    }  # fmt: skip


def test_a_failing_task_ends_a_job_that_is_completed_all_the_same(here: Service, job: Callable[..., Job]) -> None:
    made = job("echo one; exit 3", "echo two")
    made.create()
    other = job("echo one; exit 3", "echo two")
    other.policies.ignore_task_failures = True
    other.create()
    made.wait()
    other.wait()
    assert (made.status, made.exit_code, made.stdout()) == ("completed", 3, "one\n")
    assert (other.status, other.exit_code, other.stdout()) == ("completed", 3, "one\ntwo\n")


def test_retries(here: Service, job: Callable[..., Job], tmp_path: Path) -> None:
    def counting(name: str, fails: int) -> Job:
        made: Job = job(f"echo x >> {tmp_path}/{name}; [ $(wc -l < {tmp_path}/{name}) -gt {fails} ]")
        return made

    tasks, jobs, in_vain, never = (counting(name, 2) for name in ("tasks", "jobs", "in_vain", "never"))
    tasks.policies.maximum_task_retries = 2
    jobs.policies.maximum_retries = 5
    in_vain.policies.maximum_retries = 1
    made = [tasks, jobs, in_vain, never]
    for each in made:
        each.create()
    for each in made:
        each.wait()
    assert [each.exit_code for each in made] == [0, 0, 1, 1]
    tries = [len((tmp_path / name).read_text().split()) for name in ("tasks", "jobs", "in_vain", "never")]
    assert tries == [3, 3, 2, 1]


def test_a_missing_output_fails_the_job(here: Service, job: Callable[..., Job]) -> None:
    made = job("echo x > there")
    made.output_files = ["there", "not-*"]
    made.create()
    made.wait()
    assert (made.status, made.status_reason) == ("failed", "no such output: not-*")
    assert made.get_output_file("there") == "x\n"


def test_artifacts_are_unpacked(here: Service, job: Callable[..., Job], tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.txt").write_text("in the archive\n")
    with tarfile.open(tmp_path / "data.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "data", "data")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"compressed\n"))
    (tmp_path / "c.txt").write_text("as it is\n")
    made = job("cat data/a.txt b.txt c.txt up.txt")
    with faulty_server() as server:
        url = server.add("/x/data.tar.gz", (tmp_path / "data.tar.gz").read_bytes())
        uploaded = Artifact("up.txt")
        uploaded.upload(str(tmp_path / "c.txt"))
        made.artifacts = [
            Artifact(url), Artifact(f"file://{tmp_path}/b.txt.gz"), Artifact(str(tmp_path / "c.txt")), uploaded,
        ]  # fmt: skip
        made.create()
    # As they were when it was created.
    (tmp_path / "c.txt").unlink()
    made.wait()
    assert made.stdout() == "in the archive\ncompressed\nas it is\nas it is\n"
    missing = job("true")
    missing.artifacts.append(Artifact(f"file://{tmp_path}/nothing"))
    with pytest.raises(EngineError, match="nothing: No such file"):
        missing.create()


def test_walltime(here: Service, job: Callable[..., Job]) -> None:
    made = job("echo begun; sleep 600")
    made.resources.walltime = 0.02
    made.create()
    made.wait()
    assert (made.status, made.status_reason, made.stdout()) == ("killed", "Walltime limit exceeded", "begun\n")


@pytest.mark.slow
def test_a_walltime_of_one_minute(service: Service, job: Callable[..., Job]) -> None:
    made = job("sleep 600")
    made.resources.walltime = 1
    made.create()
    made.wait()
    assert (made.status, made.status_reason) == ("killed", "Walltime limit exceeded")


def test_deleting(service: Service, job: Callable[..., Job], tmp_path: Path) -> None:
    made = job(f"echo $$ > {tmp_path}/pid; exec sleep 600")
    made.create()
    until(lambda: made.status == "running" and (tmp_path / "pid").exists())
    assert made.delete()
    assert (made.status, made.status_reason) == ("deleted", "Job deleted by user")
    until(lambda: not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}").exists())
    assert not made.delete()


def test_time_in_queue_and_priority(serving: Callable[..., Any], job: Callable[..., Job], tmp_path: Path) -> None:
    with serving(engine="local", cores=1):
        blocker = job(f"while ! [ -e {tmp_path}/go ]; do sleep 0.05; done")
        blocker.create()
        until(lambda: blocker.status == "running")
        late = job("true")
        late.policies.maximum_time_in_queue = 0.02
        low, high = (job(f"echo {name} >> {tmp_path}/order") for name in ("low", "high"))
        high.policies.priority = 10
        for each in (late, low, high):
            each.create()
        late.wait()
        assert (late.status, late.status_reason) == ("killed", "Maximum time queued was exceeded")
        until(lambda: {low.status, high.status} <= {"idle", "deploying"})
        (tmp_path / "go").touch()
        low.wait()
        high.wait()
        assert (tmp_path / "order").read_text().split() == ["high", "low"]


def test_jobs_that_no_worker_can_run_are_given_up_unless_they_are_to_wait(
    serving: Callable[..., Any], job: Callable[..., Job]
) -> None:
    with serving(engine="local", cores=1, stall=1):
        patient, other = job("true"), job("true")
        patient.resources.cpus = other.resources.cpus = 64
        patient.policies.maximum_time_in_queue = -1
        patient.create()
        other.create()
        other.wait()
        assert other.status == "failed"
        assert "no worker has 64 cores" in str(other.status_reason)
        assert patient.status in ("idle", "deploying")
        assert patient.delete()


def test_a_container_image_needs_a_worker_with_the_runtime(here: Service, job: Callable[..., Job]) -> None:
    with pytest.raises(EngineError, match="no worker has udocker, which its container image needs"):
        job(Task(image="centos:7", runtime="udocker", command="hostname")).create()
    with Journal(here.spool) as journal:
        assert journal.batches() == []


def test_a_container_runs_where_a_worker_offers_the_runtime(
    serving: Callable[..., Any], job: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runtime is one that says what it was given and runs the rest; the real ones need privileges."""
    (tmp_path / "bin").mkdir()
    tool = tmp_path / "bin" / "singularity"
    tool.write_text('#!/bin/sh\necho "$3 in $7"; shift 7; exec "$@"\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    with serving(engine="local"):
        words = "sh -c 'sleep 5; echo $PROMINENCE_CONTAINER_RUNTIME'"
        made = job(Task(image="centos:7", runtime="singularity", command=words))
        made.create()
        until(lambda: made.status == "running")
        assert made.execute("echo also there").splitlines() == ["--bind in docker://centos:7", "also there"]
        made.wait()
        assert made.stdout().splitlines() == ["--bind in docker://centos:7", "singularity"]


def test_mpi_runs_with_the_environments_mpirun(here: Service, job: Callable[..., Job], task: Any) -> None:
    made = job(task("echo rank", type="openmpi"))
    made.resources.cpus = 2
    made.create()
    made.wait()
    assert made.stdout().splitlines()[0].startswith("mpirun -n 2 /bin/sh -c")
    assert made.stdout().splitlines()[1:] == ["rank"]


def test_what_was_not_created_says_so(here: Service) -> None:
    made = Job()
    assert made.id is None
    for method in (made.wait, made.delete, made.stdout, made.remove):
        with pytest.raises(EngineError, match="has not been created"):
            method()
    with pytest.raises(EngineError, match="there is no job 77"):
        Job(77)
