"""What a job does, on every engine that is here: steps, inputs, outputs, limits, retries."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from poncho_wq import environment
from poncho_wq.batch.model import (
    QUEUED_TOO_LONG,
    STALLED,
    WALLTIME,
    Batch,
    Input,
    Job,
    Output,
    Policies,
    Resources,
    State,
    Step,
)
from poncho_wq.batch.tasks import Companion
from poncho_wq.engines.shipping import ship
from tests.batch.conftest import drive, job, managed, sh, small_environment

Run = Callable[..., dict[str, Any]]


def test_steps_share_a_home_and_their_streams_stay_apart(run: Run, tmp_path: Path, kind: str) -> None:
    done = run(
        Job(
            name="a",
            steps=(
                sh("echo one; echo err one >&2; echo $GREETING > f", env={"GREETING": "hi"}),
                sh("cat ../f; pwd | sed 's,.*/,,'", cwd="sub"),
                Step(argv=("only-there",)),
            ),
            exports={"ID": "job_id", "MANY": "cores", "WHERE": "home"},
            outputs=(Output(pattern="f"),),
        ),
        kind=kind,
    )
    assert done["a"].words == "completed"
    results = tmp_path / "b" / "a"
    assert (results / "stdout.txt").read_text() == "one\nhi\nsub\na program of the environment\n"
    assert (results / "stderr.txt").read_text() == "err one\n"
    assert (results / "f").read_text() == "hi\n"


def test_a_failed_step_ends_the_job_and_outputs_come_back(run: Run, tmp_path: Path, kind: str) -> None:
    done = run(
        Job(name="a", steps=(sh("echo x > f; echo why >&2; exit 3"), sh("echo never")), outputs=(Output(pattern="f"),)),
        job("later", after=("a",)),
        job("other"),
        kind=kind,
    )
    assert (done["a"].words, done["a"].exit_code, done["a"].signal) == ("failed (exit 3)", 3, None)
    assert done["a"].stderr_tail == "why\n"
    assert done["later"].words == "skipped (a did not complete)"
    assert done["other"].state is State.COMPLETED
    assert (tmp_path / "b/a/f").read_text() == "x\n"
    assert (tmp_path / "b/a/stdout.txt").read_text() == ""


def test_exit_codes_and_signals_are_told_apart(run: Run) -> None:
    done = run(job("exit", "exit 9"), job("signal", "kill -9 $$"), Job(name="none", steps=(Step(argv=("no-such",)),)))
    assert done["exit"].words == "failed (exit 9)"
    assert done["signal"].words == "failed (signal 9, SIGKILL)"
    assert (done["signal"].exit_code, done["signal"].signal) == (None, 9)
    assert done["none"].words == "failed (exit 127)"
    assert done["none"].stderr_tail == "no-such: command not found\n"


def test_whether_a_non_zero_exit_fails_the_job(run: Run) -> None:
    lenient = Policies(fail_on_exit=False)
    done = run(job("a", "exit 3", policies=lenient), job("b", "true", after=("a",)))
    assert (done["a"].words, done["a"].exit_code) == ("completed (exit 3)", 3)
    assert done["b"].state is State.COMPLETED


def test_failures_of_steps_can_be_ignored(run: Run, tmp_path: Path) -> None:
    done = run(Job(name="a", steps=(sh("exit 3"), sh("echo on")), policies=Policies(ignore_step_failures=True)))
    assert done["a"].words == "failed (exit 3)"
    assert (tmp_path / "b/a/stdout.txt").read_text() == "on\n"


def test_retries_of_a_step_in_place_and_of_a_job_from_the_start(run: Run, tmp_path: Path) -> None:
    count = "n=$(cat n 2>/dev/null || echo 0); n=$((n+1)); echo $n > n; echo try $n; [ $n -ge 3 ]"
    outside = f"echo x >> {tmp_path}/tries; ls; [ $(wc -l < {tmp_path}/tries) -ge 2 ]"
    done = run(
        job("step", count, policies=Policies(step_retries=2)),
        job("whole", outside, policies=Policies(job_retries=2)),
        job("never", "exit 1", policies=Policies(step_retries=1, job_retries=1)),
    )
    assert {name: (each.state, each.attempt) for name, each in done.items()} == {
        "step": (State.COMPLETED, 1),
        "whole": (State.COMPLETED, 2),
        "never": (State.FAILED, 2),
    }
    assert (tmp_path / "b/step/stdout.txt").read_text() == "try 1\ntry 2\ntry 3\n"
    # In a new home.
    assert (tmp_path / "b/whole/stdout.txt").read_text() == ""


def test_jobs_run_by_priority_then_in_their_order(run: Run, tmp_path: Path, kind: str) -> None:
    jobs = [job(f"j{n:02}", f"echo j{n:02} >> {tmp_path}/order") for n in range(18)]
    late = job("late", f"echo late >> {tmp_path}/order", policies=Policies(priority=1))
    run(*jobs, late, kind=kind, workers=1)
    order = (tmp_path / "order").read_text().split()
    # Chosen before all others, and those in the order of the batch.
    assert order == ["late", *(f"j{n:02}" for n in range(18))]


def test_walltime(run: Run, tmp_path: Path, kind: str) -> None:
    text = "echo begun; (setsid sleep 300 & echo $! > pid); sleep 300"
    done = run(job("a", text, resources=Resources(walltime=1), outputs=(Output(pattern="pid"),)), kind=kind)
    assert done["a"].words == f"killed ({WALLTIME})"
    assert (tmp_path / "b/a/stdout.txt").read_text() == "begun\n"
    assert not _is_alive((tmp_path / "b/a/pid").read_text())


def _is_alive(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid.strip()}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_a_step_that_ignores_sigterm_ends_all_the_same(run: Run) -> None:
    done = run(job("a", "trap '' TERM; while :; do sleep 1; done", resources=Resources(walltime=1)))
    assert done["a"].words == f"killed ({WALLTIME})"


def test_sidecars_start_first_and_end_last(run: Run, tmp_path: Path) -> None:
    sidecar = sh("echo up > up; trap 'echo down; exit 5' TERM; while :; do sleep 0.05; done", sidecar=True)
    work = sh("while [ ! -e up ]; do sleep 0.05; done; echo worked")
    done = run(Job(name="a", steps=(work, sidecar)))
    # How a sidecar ends does not count.
    assert done["a"].words == "completed"
    assert (tmp_path / "b/a/stdout.txt").read_text() == "worked\ndown\n"


def test_inputs_of_every_kind(run: Run, tmp_path: Path, kind: str) -> None:
    (tmp_path / "given").write_text("a file")
    with tarfile.open(tmp_path / "t.tar.gz", "w:gz") as tar:
        info = tarfile.TarInfo("deep/in-tar")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"tar"))
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as zipped:
        zipped.writestr("in-zip", "zip")
    from poncho_wq.batch.model import Batch
    from poncho_wq.batch.spool import Spool
    from poncho_wq.batch.tasks import keep_inputs

    first = job("first", "echo from first > out", outputs=(Output(pattern="out"),))
    second = Job(
        name="second", after=("first",), outputs=(Output(pattern="**"),),
        steps=(sh("cat in/a b in/deep/in-tar in-zip c > all; echo changed >> in/a"),),
        inputs=(
            Input(name="in/a", path=str(tmp_path / "given")), Input(name="b", content=b"\xffbytes"),
            Input(name="in", path=str(tmp_path / "t.tar.gz"), unpack=True),
            Input(name=".", path=str(tmp_path / "z.zip"), unpack=True), Input(name="c", job="first", output="out"),
        ),
    )  # fmt: skip
    kept = keep_inputs(Batch(name="b", jobs=(first, second)), Spool(tmp_path).make())
    done = run(*kept.jobs, job("third", "true"), kind=kind)
    assert done["second"].words == "completed"
    assert (tmp_path / "b/second/all").read_bytes() == b"a file\xffbytestarzipfrom first\n"
    # A copy, never the user's own.
    assert (tmp_path / "given").read_text() == "a file"


def test_outputs_globs_directories_archives(run: Run, tmp_path: Path, kind: str) -> None:
    text = "mkdir -p d/e s; echo 1 > d/e/x; echo 2 > one.dat; echo 3 > two.dat; echo 4 > s/4; ln -s ../one.dat s/link"
    outputs = (
        Output(pattern="*.dat"), Output(pattern="d", archive=True), Output(pattern="s", contents=True),
        Output(pattern="no/such", required=False), Output(pattern=".", archive=True, as_name="all.tgz", exclude=("d",)),
    )  # fmt: skip
    done = run(job("a", text, outputs=outputs), kind=kind)
    assert done["a"].words == "completed"
    results = tmp_path / "b/a"
    assert sorted(path.name for path in results.iterdir() if not path.name.startswith(".")) == [
        "4", "all.tgz", "d.tar.gz", "link", "one.dat", "stderr.txt", "stdout.txt", "two.dat",
    ]  # fmt: skip
    assert (results / "link").read_text() == "2\n"
    with tarfile.open(results / "d.tar.gz") as tar:
        assert "d/e/x" in tar.getnames()
    with tarfile.open(results / "all.tgz") as tar:
        assert {name.split("/")[0] for name in tar.getnames()} == {"one.dat", "two.dat", "s"}


def test_outputs_with_names_of_ours(run: Run, tmp_path: Path) -> None:
    text = (
        "mkdir files; for f in result.json stdout.txt .poncho-result.json files/x; do echo mine > $f; done; echo ours"
    )
    outputs = (Output(pattern="*"), Output(pattern=".poncho-result.json"))
    assert run(job("a", text, outputs=outputs))["a"].words == "completed"
    results = tmp_path / "b/a"
    assert [(results / name).read_text() for name in ("result.json", "files/x", "stdout.txt")] == [
        "mine\n", "mine\n", "ours\n",
    ]  # fmt: skip
    assert '"attempt": 1' in (results / ".poncho-result.json").read_text()


def test_an_output_that_is_missing(run: Run) -> None:
    done = run(job("a", "true", outputs=(Output(pattern="x"), Output(pattern="*.y"))))
    assert done["a"].words == "failed (no such output: x, *.y)"


def test_a_step_in_an_environment_of_its_own(run: Run, tmp_path: Path, kind: str) -> None:
    other = small_environment(tmp_path / "other.tar.gz", extra={"bin/marker": "x"})
    with tarfile.open(other) as tar:
        assert "bin/marker" in tar.getnames()
    step = sh('ls "$PONCHO_PREFIX/bin"', environment=str(other))
    done = run(Job(name="a", steps=(sh('ls "$PONCHO_PREFIX/bin"'), step)), kind=kind)
    assert done["a"].words == "completed"
    assert (tmp_path / "b/a/stdout.txt").read_text().split().count("marker") == 1


def test_a_step_in_an_environment_that_shares_parts_with_the_job_s(
    run: Run, tmp_path: Path, shared_cache: Path, kind: str
) -> None:
    one, two = (environment({"env": {"WORD": word}}, cache_dir=shared_cache) for word in ("one", "two"))
    shared = {path for path, _ in ship(one.tarball, one.identity).files} & {
        path for path, _ in ship(two.tarball, two.identity).files
    }
    assert shared
    paths = [str(each.tarball) for each in (one, two)]
    steps = tuple(sh("echo $WORD", environment=path) for path in (paths[0], paths[1], paths[0]))
    assert run(Job(name="a", steps=steps, environment=paths[0]), kind=kind)["a"].words == "completed"
    assert (tmp_path / "b/a/stdout.txt").read_text() == "one\ntwo\none\n"


def test_a_feature_that_no_worker_offers(run: Run, kind: str) -> None:
    done = run(
        job("a", features=("gfortran",)), job("b"), job("c", features=("there",)), kind=kind, features=("there",),
        stall_limit=4,
    )  # fmt: skip
    assert done["a"].words == f"failed ({STALLED}: no worker has 1 core, gfortran)"
    assert (done["b"].state, done["c"].state) == (State.COMPLETED, State.COMPLETED)


def test_this_machine_says_at_once_what_it_lacks(run: Run) -> None:
    """Nothing will join it: there is no limit to wait for.  (The run's own patience is far below this one.)"""
    done = run(job("a", features=("gfortran",)), job("b"), stall_limit=1e6)
    assert done["a"].words == f"failed ({STALLED}: no worker has 1 core, gfortran)"
    assert done["b"].state is State.COMPLETED


def test_a_manager_with_nothing_to_wait_for_sleeps(
    tmp_path: Path, tarball: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Engines return at once when they have no task: a batch whose jobs wait for something else took a whole core."""
    patient = job("a", features=("gfortran",), policies=Policies(may_stall=False))
    batch = Batch(name="b", jobs=(patient,), environment=str(tarball))
    with managed(tmp_path) as (manager, journal):
        manager.adopt(journal.add(batch, front_end="test"))
        manager.turn(0.01)
        slept: list[float] = []
        monkeypatch.setattr("poncho_wq.batch.manager.time.sleep", slept.append)
        manager.turn(30)
        assert sum(slept) > 1


def test_queued_for_too_long(run: Run) -> None:
    done = run(
        job("a", "sleep 3"), job("b", "sleep 3"), job("c", policies=Policies(max_queue=1)),
        job("d", policies=Policies(max_queue=60)),
    )  # fmt: skip
    assert done["c"].words == f"killed ({QUEUED_TOO_LONG})"
    assert done["d"].state is State.COMPLETED


def test_an_environment_that_cannot_be_had_is_that_job_s_failure(run: Run) -> None:
    done = run(job("a", environment="/no/such/environment.json"), job("b"))
    assert done["a"].state is State.FAILED
    assert "/no/such/environment.json" in str(done["a"].reason)
    assert done["b"].state is State.COMPLETED


def test_a_damaged_environment_says_so(run: Run, tmp_path: Path, tarball: Path) -> None:
    bad = tmp_path / "bad.tar.gz"
    bad.write_bytes(tarball.read_bytes()[: tarball.stat().st_size // 2])
    done = run(job("a", environment=str(bad)))
    assert str(done["a"].reason).startswith("the environment could not be provided on the worker")


def test_a_companion_runs_beside_the_steps(tmp_path: Path, tarball: Path) -> None:
    companion = tmp_path / "beside.py"
    companion.write_text(
        "import json, os\n"
        "class Beside:\n"
        "    def __init__(self, running):\n"
        "        self.running = running\n"
        "        with open(os.path.join(running.home, 'told'), 'w') as f:\n"
        "            f.write(running.job['companion_facts']['token'])\n"
        "    def close(self):\n"
        "        open(os.path.join(self.running.home, 'closed'), 'w').close()\n"
        "attach = Beside\n"
    )
    from poncho_wq.batch.model import Batch

    outputs = (Output(pattern="told"), Output(pattern="closed"))
    batch = Batch(name="b", jobs=(job("a", "cat told", outputs=outputs),), environment=str(tarball))
    with managed(tmp_path, companion=Companion(path=companion), companion_facts=lambda job: {"token": f"t{job}"}) as (
        manager,
        journal,
    ):
        manager.adopt(journal.add(batch, front_end="test"))
        drive(manager)
        assert journal.jobs(1)[0].words == "completed"
    assert (tmp_path / "b/a/stdout.txt").read_text() == "t1"
