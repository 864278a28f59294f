"""PROMINENCE's JSON → a batch, and what is said about JSON that is wrong."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poncho_wq.batch.front_ends import load
from poncho_wq.batch.model import Batch, Input, Output
from poncho_wq.batch.prominence.sweeps import instances
from poncho_wq.batch.prominence.translation import translate
from poncho_wq.errors import BatchError, SpecError

HERE = Path(__file__).parent


def job(name: str = "a", command: str = "true", **more: Any) -> dict[str, Any]:
    return {"name": name, "tasks": [{"cmd": command}], **more}


def workflow(*jobs: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"name": "w", "jobs": list(jobs), **more}


def made(document: Any, directory: Path = HERE) -> Batch:
    return translate(document, directory=directory).batch


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (workflow(job("a"), job("a")), 'all jobs must have unique names: "a" is used more than once'),
        (workflow(job("a"), dependencies={"a": ["zz"]}), 'child job "zz" is not defined'),
        (workflow(job("a"), dependencies={"zz": ["a"]}), 'parent job "zz" is not defined'),
        (workflow(job("a"), job("b"), dependencies={"a": ["b"], "b": ["a"]}), "dependency cycle: a -> b -> a"),
        (job(resources={"nodes": 2}), "nodes=2: a Work Queue job runs on one worker"),
        (job(resources={"cpus": 0}), "resources.cpus: must be at least 1, got 0"),
        (job(resources={"memory": "2"}), 'resources.memory: expected a number, got "2"'),
        (job(resources={"walltime": 0}), "resources.walltime: must be more than 0, got 0"),
        (job(resources={"cpu": 1}), 'resources.cpu: unknown key; did you mean "cpus"?'),
        (job(command="echo 'x"), "tasks[0].cmd: cannot be split into words: No closing quotation"),
        ({"tasks": [{"cmd": "x", "type": "mpi"}]}, "expected one of basic, openmpi, intelmpi, mpich, sidecar"),
        ({"tasks": [{"cmd": "x", "runtime": "docker"}]}, "expected one of singularity, udocker, apptainer"),
        ({"tasks": [{"image": "environment.yml", "cmd": "x"}]}, "environment.yml: there is no such file"),
        ({"tasks": [{"image": "-v=/:/host", "cmd": "x", "runtime": "udocker"}]}, '"-v=/:/host" cannot be an image'),
        ({"tasks": [{"image": "x --privileged", "cmd": "x"}]}, "cannot be an image: no leading dash, no blank"),
        (job(artifacts=[{"url": "ftp://me:s3cret@h/x"}]), '"ftp://***@h/x" is neither a URL'),
        ({"tasks": [{"cmd": "x", "procsPerNode": 2}]}, "2 processes on 1 CPUs; ask for as many CPUs"),
        ({"tasks": [{"type": "basic"}]}, "a task needs a command, unless it is a container that has its own"),
        ({"tasks": [{"cmd": "x", "type": "sidecar"}]}, "a job needs at least one step that is no sidecar"),
        ({"tasks": []}, "a job must contain tasks"),
        ({"jobs": []}, "a workflow must contain jobs"),
        (workflow({"tasks": [{"cmd": "x"}]}), "all jobs of a workflow must have names"),
        (job(artifacts=[{"url": "nowhere"}]), '"nowhere" is neither a URL (http, https, file), nor a file'),
        (job(artifacts=[{"url": "data"}]), '"data" is a directory; an artifact is a file: name an archive of it'),
        (job(artifacts=[{"url": "file:///x", "mountpoint": "d:/d"}]), "/d: only a container has mount points"),
        (job(artifacts=[{"url": "x", "mountpoint": "d:d"}]), "must be an absolute path"),
        (job(inputs=[{"filename": "x", "content": "%"}]), "inputs[0].content: is not base64"),
        (job(inputs=[{"filename": "../x", "content": ""}]), "a path in the job's home is relative"),
        (job(policies={"maximumRetries": -1}), "policies.maximumRetries: must be at least 0, got -1"),
        (job(policies={"maximumTimeInQueue": -2}), "policies.maximumTimeInQueue: must be more than 0, got -2"),
        (job(notifications=[{"event": "jobFinished", "type": "sms"}]), 'expected email, got "sms"'),
        (workflow(job(), factories=[{"type": "zap", "jobs": ["a"]}]), "factories[0].type: expected one of"),
        (workflow(job(), factories=[{"type": "repeat", "number": 1, "jobs": ["b"]}]), 'job "b" is not defined'),
        ([], "expected an object, got a list"),
    ],
)
def test_what_is_wrong_is_said(document: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with pytest.raises(BatchError) as caught:
        made(document, tmp_path)
    assert message in str(caught.value)


def test_everything_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(BatchError) as caught:
        made(workflow(job("a", resources={"nodes": 3}), job("b", "'"), dependencies={"a": ["c"]}))
    assert [error.path for error in caught.value.problems] == [
        "jobs[0].resources.nodes", "jobs[1].tasks[0].cmd", "dependencies.a",
    ]  # fmt: skip


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-2, 5) | st.text(max_size=4) | st.floats(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["name", "jobs", "tasks", "resources", "cmd", "image", "nodes", "cpus", "policies", "priority",
                     "dependencies", "factories", "factory", "type", "parameters", "number", "inputs", "filename",
                     "artifacts", "url", "mountpoint", "notifications", "labels", "env", "outputDirs"]
                ),
                inner, max_size=4,
            )
        ),
        max_leaves=25,
    )
)  # fmt: skip
def test_any_json_at_all_gives_a_batch_or_an_error_of_ours(document: Any) -> None:
    try:
        made(document)
    except SpecError:
        pass


# -- sweeps


def points(*parameters: dict[str, Any], kind: str = "parameterSweep") -> list[dict[str, str]]:
    return instances({"type": kind, "parameters": list(parameters)})


def test_a_sweep_includes_its_end_and_is_exact() -> None:
    assert points({"name": "x", "start": 0, "end": 0.3, "step": 0.1}) == [
        {"x": "0"}, {"x": "0.1"}, {"x": "0.2"}, {"x": "0.3"},
    ]  # fmt: skip
    assert [each["x"] for each in points({"name": "x", "start": 4, "end": 1, "step": -1.5})] == ["4", "2.5", "1"]
    assert [each["x"] for each in points({"name": "x", "start": 1, "end": 1, "step": 1})] == ["1"]
    assert len(points({"name": "x", "start": 0, "end": 1, "step": 0.001})) == 1001
    assert [each["x"] for each in points({"name": "x", "start": 1e-7, "end": 2e-7, "step": 1e-7})] == [
        "0.0000001", "0.0000002",
    ]  # fmt: skip


@given(st.integers(-50, 50), st.integers(0, 60), st.integers(1, 9), st.sampled_from([1, 10, 100, 1000]))
def test_a_sweep_of_decimals_is_that_of_whole_numbers(start: int, length: int, step: int, scale: int) -> None:
    found = points({"name": "x", "start": start / scale, "end": (start + length) / scale, "step": step / scale})
    assert [round(float(each["x"]) * scale) for each in found] == list(range(start, start + length + 1, step))


THOUSAND = {"name": "a", "start": 0, "end": 999, "step": 1}


def test_up_to_four_dimensions_the_last_fastest() -> None:
    two = {"start": 0, "end": 1, "step": 1}
    found = points(*({"name": name, **two} for name in "abcd"))
    assert len(found) == 16
    assert [each["d"] for each in found[:4]] == ["0", "1", "0", "1"]
    assert [each["a"] for each in found] == ["0"] * 8 + ["1"] * 8


@pytest.mark.parametrize(
    ("kind", "parameters", "message"),
    [
        ("parameterSweep", [{**THOUSAND, "name": name} for name in "abcde"], "at most 4 parameters, not 5"),
        ("parameterSweep", [{"name": "a", "start": 0, "end": 1, "step": 0}], "a: the step is 0"),
        ("parameterSweep", [{"name": "a", "start": 0, "end": 1, "step": -1}], "do not lead from 0 to 1"),
        ("parameterSweep", [{"name": "a", "start": 0, "end": 1, "step": 1e-9}], "a: has more than 100000 values"),
        ("parameterSweep", [{"name": "a", "start": 0, "end": 1e300, "step": 1e-300}], "a: has more than"),
        ("parameterSweep", [{"name": "a", "start": 0, "end": float("inf"), "step": 1}], "expected a number as end"),
        ("parameterSweep", [THOUSAND, {**THOUSAND, "name": "b"}], "makes 1000000 jobs"),
        ("parameterSweep", [{"name": "a", "values": [1]}, {"name": "a", "values": [1]}], "more than once"),
        ("zip", [{"name": "a", "values": [1, 2]}, {"name": "b", "values": [1]}], "not 1 and 2"),
        ("zip", [{"name": "a b", "values": [1]}], "cannot be the name of a parameter"),
        ("zip", [], "there are no parameters"),
    ],
)  # fmt: skip
def test_bad_factories(kind: str, parameters: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        points(*parameters, kind=kind)


def test_zip_and_repeat() -> None:
    assert points({"name": "a", "values": [1, 2]}, {"name": "b", "values": ["x", 0.5]}, kind="zip") == [
        {"a": "1", "b": "x"}, {"a": "2", "b": "0.5"},
    ]  # fmt: skip
    assert instances({"type": "repeat", "number": 3}) == [{}, {}, {}]


def test_instances_replace_their_job_and_dependencies_wait_for_all_of_them() -> None:
    sweep = {
        "name": "f", "type": "parameterSweep", "jobs": ["render"],
        "parameters": [{"name": "frame", "start": 1, "end": 3, "step": 1}],
    }  # fmt: skip
    render = job("render", "echo $frame ${frame}x '$frame b' $other $$ $framed", outputFiles=["out_$frame"])
    batch = made(workflow(render, job("gather"), factories=[sweep], dependencies={"render": ["gather"]}))
    assert [each.name for each in batch.jobs] == ["render_0", "render_1", "render_2", "gather"]
    assert batch.jobs[1].steps[0].argv == ("echo", "2", "2x", "2 b", "$other", "$$", "$framed")
    assert batch.jobs[1].steps[0].env["PROMINENCE_PARAMETER_frame"] == "2"
    assert batch.jobs[1].outputs == (Output(pattern="out_2"),)
    assert batch.jobs[3].after == ("render_0", "render_1", "render_2")


def test_an_older_factory_makes_instances_of_all_jobs() -> None:
    old = {"type": "parametricSweep", "parameterSets": [{"name": "n", "start": 1, "end": 2, "step": 1}]}
    assert [each.name for each in made(workflow(job("a"), job("b"), factory=old)).jobs] == ["a_0", "a_1", "b_0", "b_1"]


def test_a_value_with_a_blank_stays_one_word() -> None:
    zipped = {"type": "zip", "jobs": ["a"], "parameters": [{"name": "v", "values": ["x y; rm -rf /"]}]}
    assert made(workflow(job("a", "echo $v"), factories=[zipped])).jobs[0].steps[0].argv == ("echo", "x y; rm -rf /")


# -- jobs


def test_what_a_job_becomes() -> None:
    document = {
        "name": "j",
        "tasks": [
            {"cmd": "watch it", "type": "sidecar"},
            {"cmd": "python3 -c 'print(1)'", "workdir": "sub", "env": {"N": 3}, "image": {"pip": []}},
        ],
        "resources": {"cpus": 2, "memoryPerCpu": 1.5, "disk": 2, "walltime": 3},
        "inputs": [{"filename": "a/b.txt", "content": "aGk="}],
        "artifacts": [{"url": "https://h/x.tar.gz?v=1"}, {"url": "file:///d/y.csv.gz"}, {"url": "http://h/z"}],
        "outputDirs": ["out/", "r*"],
        "policies": {"priority": 5, "maximumTimeInQueue": 2, "maximumTaskRetries": 1, "ignoreTaskFailures": True},
    }
    batch = made(document)
    one = batch.jobs[0]
    assert batch.name == one.name == "j"
    assert [step.sidecar for step in one.steps] == [True, False]
    assert one.steps[1].argv == ("python3", "-c", "print(1)")
    assert (one.steps[1].cwd, one.steps[1].env["N"], one.steps[1].environment) == ("sub", "3", {"pip": []})
    assert one.steps[1].env["PROMINENCE_MEMORY"] == "3"
    assert one.steps[1].env["PROMINENCE_NODES"] == "1"
    assert (one.resources.cores, one.resources.memory, one.resources.disk) == (2, 3072, 2048)
    assert one.resources.walltime == 180
    assert one.inputs == (
        Input(name="a/b.txt", content=b"hi"),
        Input(name=".", url="https://h/x.tar.gz?v=1", unpack=True),
        Input(name="y.csv", url="file:///d/y.csv.gz", unpack=True),
        Input(name="z", url="http://h/z"),
    )
    assert [each.as_name for each in one.outputs] == ["out.tgz", None]
    assert all(each.archive for each in one.outputs)
    policies = one.policies
    assert (policies.priority, policies.max_queue, policies.step_retries) == (5, 120, 1)
    assert policies.ignore_step_failures
    assert policies.may_stall
    assert not policies.fail_on_exit
    assert policies.retry_on_exit
    assert one.exports["PROMINENCE_JOB_ID"] == "job_id"
    assert "PROMINENCE_WORKFLOW_ID" not in one.exports


def test_policies_of_a_workflow() -> None:
    batch = made(
        workflow(
            job("a", policies={"maximumTimeInQueue": -1}), job("b", policies={"reportJobSuccessOnTaskFailure": True}),
            policies={"maximumRetries": 2},
        )
    )  # fmt: skip
    a, b = batch.jobs
    assert a.policies.fail_on_exit
    assert a.policies.job_retries == 2
    assert not a.policies.may_stall
    assert not b.policies.fail_on_exit
    assert not b.policies.retry_on_exit
    assert a.exports["PROMINENCE_WORKFLOW_ID"] == "batch_id"


def test_notifications_go_to_jobs_or_the_workflow() -> None:
    tell = [{"event": "jobFinished", "type": "email"}]
    assert [each.kind for each in made(job(notifications=tell)).jobs[0].notifications] == ["email"]
    over = [{"event": "workflowFinished", "type": "email"}]
    batch = made(workflow(job("a", notifications=tell), job("b"), notifications=over))
    assert [len(each.notifications) for each in batch.jobs] == [1, 0]
    assert len(batch.notifications) == 1


def test_what_clouds_alone_understand_is_noted() -> None:
    notes = translate(job(policies={"placement": {"requirements": {}}}), directory=HERE).notes
    assert len(notes) == 1
    assert "policies.placement" in notes[0]


def test_mpi_on_one_node_runs_under_mpirun() -> None:
    mpi = {"tasks": [{"cmd": "solve x", "type": "openmpi"}, {"cmd": "y", "type": "mpich", "procsPerNode": 1}]}
    steps = made({**mpi, "resources": {"cpus": 2}}).jobs[0].steps
    assert [step.argv for step in steps] == [("mpirun", "-n", "2", "solve", "x"), ("mpirun", "-n", "1", "y")]


# -- containers: the words that are built, shown by tools that say what they were given


def container(task: dict[str, Any], tmp_path: Path, *tools: str, **more: Any) -> list[str]:
    """Run the command that is built, with ``tools`` on PATH that print their arguments."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "home").mkdir()
    for tool in tools:
        program = tmp_path / "bin" / tool
        program.write_text('#!/bin/sh\necho "${0##*/}"; for each; do echo "$each"; done\n')
        program.chmod(0o755)
    step = made({"tasks": [task], **more}, tmp_path).jobs[0].steps[0]
    done = subprocess.run(
        [*step.inside, *step.argv], capture_output=True, text=True, check=False, cwd=tmp_path / "home",
        env={"PATH": f"{tmp_path}/bin:/usr/bin:/bin", "PONCHO_JOB_HOME": f"{tmp_path}/home"},
    )  # fmt: skip
    return done.stdout.splitlines() or [done.stderr.strip(), str(done.returncode)]


def test_singularity(tmp_path: Path) -> None:
    home = tmp_path / "home"
    task = {"image": "centos:7", "runtime": "singularity", "cmd": "echo 'a b' '$(touch x)'"}
    found = container(task, tmp_path, "singularity")
    assert found == [
        "singularity", "--silent", "exec", "--bind", f"{home}:{home}", "--pwd", str(home), "docker://centos:7", "echo",
        "a b", "$(touch x)",
    ]  # fmt: skip


@pytest.mark.parametrize("parameters", [3, "ab", {"name": "a"}, [1], ["a"], [["name", "a"]], [None]])
@pytest.mark.parametrize("kind", ["parameterSweep", "zip"])
def test_parameters_that_are_no_list_of_objects(kind: str, parameters: object, tmp_path: Path) -> None:
    factory = {"name": "f", "type": kind, "jobs": ["a"], "parameters": parameters}
    document = {"jobs": [{"name": "a", "tasks": [{"cmd": "x"}]}], "factories": [factory]}
    with pytest.raises(BatchError, match="expected a list of parameters, each an object"):
        translate(document, directory=tmp_path)


def test_null_is_what_was_not_said(tmp_path: Path) -> None:
    plain = {"name": "a", "tasks": [{"cmd": "x"}]}
    nothing = {
        "resources": dict.fromkeys(("memory", "memoryPerCpu", "disk", "walltime")),
        "policies": dict.fromkeys(
            ("maximumTaskRetries", "maximumRetries", "maximumTimeInQueue", "priority", "placement")
        ),
        **dict.fromkeys(("labels", "inputs", "artifacts", "outputFiles", "outputDirs", "notifications")),
    }
    task = {**dict.fromkeys(("image", "env", "workdir", "procsPerNode", "type", "runtime")), "cmd": "x"}
    assert (
        translate({**plain, **nothing, "tasks": [task]}, directory=tmp_path).batch
        == translate(plain, directory=tmp_path).batch
    )
    workflow = {"name": "w", "jobs": [plain]}
    empty = {"policies": {"maximumRetries": None}, "dependencies": None, "factories": None, "factory": None}
    assert translate({**workflow, **empty}, directory=tmp_path).batch == translate(workflow, directory=tmp_path).batch


def test_apptainer_serves_for_singularity_and_artifacts_are_mounted(tmp_path: Path) -> None:
    home = tmp_path / "home"
    found = container(
        {"image": "library://x/y", "cmd": "ls", "workdir": "/opt/w"}, tmp_path, "apptainer",
        artifacts=[
            {"url": "http://h/a.tar", "mountpoint": "a b:/mnt/a"}, {"url": "http://h/b.tar", "mountpoint": "c:/c"},
        ],
    )  # fmt: skip
    assert found == [
        "apptainer", "--silent", "exec", "--bind", f"{home}:{home}", "--bind", f"{home}/a b:/mnt/a", "--bind",
        f"{home}/c:/c", "--pwd", "/opt/w", "library://x/y", "ls",
    ]  # fmt: skip


def test_an_image_file_travels_with_the_job_and_may_have_its_own_command(tmp_path: Path) -> None:
    (tmp_path / "x.sif").touch()
    home = tmp_path / "home"
    document = {"image": "x.sif", "runtime": "singularity"}
    assert container(document, tmp_path, "singularity") == [
        "singularity", "--silent", "run", "--bind", f"{home}:{home}", "--pwd", str(home), f"{home}/.x.sif",
    ]  # fmt: skip
    job = made({"tasks": [document, document]}, tmp_path).jobs[0]
    assert job.inputs == (Input(name=".x.sif", path=str(tmp_path / "x.sif")),)
    assert job.features == ("singularity",)


def test_udocker(tmp_path: Path) -> None:
    home = tmp_path / "home"
    found = container({"image": "centos:7", "runtime": "udocker", "cmd": "a b"}, tmp_path, "udocker")
    assert found == [
        "udocker", "--quiet", "run", "--hostenv", f"--volume={home}:{home}", f"--workdir={home}", "centos:7", "a", "b",
    ]  # fmt: skip
    assert made({"tasks": [{"image": "centos:7", "runtime": "udocker", "cmd": "a"}]}).jobs[0].features == ("udocker",)


def test_a_worker_without_the_runtime_says_so(tmp_path: Path) -> None:
    assert container({"image": "centos:7", "cmd": "a"}, tmp_path) == [
        "neither singularity nor apptainer is on this worker", "127",
    ]  # fmt: skip


# -- batch run


def test_batch_run_takes_a_file(tmp_path: Path) -> None:
    (tmp_path / "data.csv").touch()
    (tmp_path / "w.json").write_text(json.dumps(workflow(job("a", artifacts=[{"url": "data.csv"}]))))
    loaded = load(tmp_path / "w.json")
    assert loaded.front_end == "prominence"
    assert loaded.batch.jobs[0].inputs == (Input(name="data.csv", path=str(tmp_path / "data.csv")),)
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(SpecError, match=r"bad.json: is not JSON"):
        load(tmp_path / "bad.json")
