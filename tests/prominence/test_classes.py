"""Every class, property and default of PROMINENCE's Python client, against the JSON that it makes."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from poncho_wq.batch.prominence.checking import Checked
from poncho_wq.batch.prominence.factories import Factory
from poncho_wq.errors import SpecError
from poncho_wq.prominence import (
    Artifact,
    Dependency,
    InputFile,
    Job,
    JobPolicies,
    Notification,
    ParameterSet,
    ParameterSweep,
    Repeat,
    Resources,
    Task,
    Workflow,
    WorkflowPolicies,
    Zip,
)


def task(**properties: Any) -> Task:
    made = Task()
    for name, value in properties.items():
        setattr(made, name, value)
    return made


def test_task() -> None:
    assert Task().to_dict() == {}
    made = task(image="centos:7", runtime="singularity", command="hostname")
    golden: dict[str, Any] = {"image": "centos:7", "cmd": "hostname", "runtime": "singularity"}
    assert made.to_dict() == golden
    assert Task.from_dict(golden) == made
    made.type, made.workdir, made.env, made.procs_per_node = "openmpi", "work", {"A": "b"}, 4
    golden |= {"type": "openmpi", "workdir": "work", "env": {"A": "b"}, "procsPerNode": 4}
    assert made.to_dict() == golden
    assert Task.from_dict(golden) == made


def test_a_misspelt_property_is_an_error() -> None:
    with pytest.raises(AttributeError):
        Task().comand = "hostname"  # type: ignore[attr-defined]
    with pytest.raises(AttributeError):
        Job().task = []  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "image", [Path("env.tar.gz"), {"pip": ["numpy"]}, "environment.yml"], ids=["path", "dictionary", "text"]
)
def test_images_are_json(image: Any) -> None:
    assert task(image=image).to_dict() == {"image": str(image) if isinstance(image, Path) else image}


def test_resources() -> None:
    assert Resources().to_dict() == {"cpus": 1, "memory": 1, "disk": 10, "nodes": 1, "walltime": 720}
    made = Resources(4, 8, 20, 1, 60)
    assert made.to_dict() == {"cpus": 4, "memory": 8, "disk": 20, "nodes": 1, "walltime": 60}
    made.memory_per_cpu = 2
    golden = {"cpus": 4, "memoryPerCpu": 2, "disk": 20, "nodes": 1, "walltime": 60}
    assert made.to_dict() == golden
    assert Resources.from_dict(golden).to_dict() == golden
    assert Resources(cpus=2, memory=3, disk=4, nodes=5, walltime=6).nodes == 5


def test_artifact() -> None:
    assert Artifact("https://example.org/a.tar").to_dict() == {"url": "https://example.org/a.tar"}
    made = Artifact("a.tar", directory_name="data", mount_point="/mnt/data")
    assert made.to_dict() == {"url": "a.tar", "mountpoint": "data:/mnt/data"}
    assert Artifact.from_dict(made.to_dict()) == made


def test_input_file(tmp_path: Path) -> None:
    (tmp_path / "in.dat").write_bytes(b"\0\1")
    encoded = base64.b64encode(b"\0\1").decode()
    assert InputFile(str(tmp_path / "in.dat")).to_dict() == {"filename": "in.dat", "content": encoded}
    assert InputFile("in.dat", content=b"\0\1").to_dict() == {"filename": "in.dat", "content": encoded}
    assert InputFile("a.txt", "é").to_dict() == {"filename": "a.txt", "content": "w6k="}
    assert InputFile.from_dict({"filename": "a.txt", "content": "w6k="}).content == "é".encode()


def test_job_policies() -> None:
    made = JobPolicies()
    assert made.to_dict() == {}
    assert (made.maximum_task_retries, made.maximum_retries, made.maximum_time_in_queue, made.priority) == (0, 0, 0, 0)
    assert made.leave_in_queue is made.ignore_task_failures is made.report_job_success_on_task_failure is False
    assert made.run_serial_tasks_on_all_nodes is False
    made.maximum_task_retries, made.maximum_retries, made.maximum_time_in_queue, made.priority = 1, 2, -1, 7
    made.leave_in_queue = made.ignore_task_failures = made.run_serial_tasks_on_all_nodes = True
    made.report_job_success_on_task_failure = True
    golden = {
        "maximumTaskRetries": 1, "maximumRetries": 2, "maximumTimeInQueue": -1, "priority": 7, "leaveInQueue": True,
        "ignoreTaskFailures": True, "runSerialTasksOnAllNodes": True, "reportJobSuccessOnTaskFailure": True,
    }  # fmt: skip
    assert made.to_dict() == golden
    assert JobPolicies.from_dict(golden) == made
    assert JobPolicies.from_dict({"ignoreTaskTailures": True}).ignore_task_failures  # as the client spelt it


def test_workflow_policies_and_notification() -> None:
    made = WorkflowPolicies()
    assert made.to_dict() == {}
    assert (made.maximum_retries, made.leave_in_queue) == (0, False)
    made.maximum_retries, made.leave_in_queue = 3, True
    assert made.to_dict() == {"maximumRetries": 3, "leaveInQueue": True}
    assert WorkflowPolicies.from_dict(made.to_dict()) == made
    told = Notification(event="jobFinished", type="email")
    assert told.to_dict() == {"event": "jobFinished", "type": "email"}
    assert Notification.from_dict(told.to_dict()) == told
    assert Notification().event is Notification().type is None


def test_factories() -> None:
    job = Job()
    job.name = "render"
    sweep = ParameterSweep()
    sweep.name, sweep.jobs = "frames", [job]
    sweep.parameters = [ParameterSet("frame", 1, 4, 1), ParameterSet("x", start=0, end=0.3, step=0.1)]
    golden: dict[str, Any] = {
        "name": "frames", "type": "parameterSweep", "jobs": ["render"],
        "parameters": [
            {"name": "frame", "start": 1, "end": 4, "step": 1}, {"name": "x", "start": 0, "end": 0.3, "step": 0.1},
        ],
    }  # fmt: skip
    assert sweep.to_dict() == golden
    assert ParameterSweep.from_dict(golden).to_dict() == golden
    zipped = Zip()
    zipped.name, zipped.jobs, zipped.parameters = "z", ["render"], [ParameterSet("a", values=[1, "two"])]
    golden = {"name": "z", "type": "zip", "jobs": ["render"], "parameters": [{"name": "a", "values": [1, "two"]}]}
    assert zipped.to_dict() == golden
    assert Zip.from_dict(golden).to_dict() == golden
    repeat = Repeat(name="r", jobs=[job], number=5)
    assert repeat.to_dict() == {"name": "r", "type": "repeat", "jobs": ["render"], "number": 5}
    assert Repeat.from_dict(repeat.to_dict()).to_dict() == repeat.to_dict()
    other = Job()
    other.name = "merge"
    assert Dependency(job, [other, "last"]).to_dict() == {"render": ["merge", "last"]}
    assert Dependency.from_dict({"a": ["b"]}) == Dependency("a", ["b"])


def test_factories_of_older_descriptions() -> None:
    sets = [{"name": "frame", "start": 1, "end": 4, "step": 1}]
    older = {"type": "parametricSweep", "parameterSets": sets}
    sweep = Factory.from_dict({"name": "f", "jobs": ["render"], **older})
    assert sweep == ParameterSweep("f", ["render"], [ParameterSet("frame", 1, 4, 1)])
    assert sweep.to_dict() == {"name": "f", "type": "parameterSweep", "jobs": ["render"], "parameters": sets}
    # The description in PROMINENCE's documentation: without names, and for all jobs.
    jobs = [{"name": name, "tasks": [{"cmd": "echo $frame"}]} for name in ("render", "shade")]
    made = Workflow.from_dict({"name": "ps-workflow", "jobs": jobs, "factory": older})
    assert made.factories == [ParameterSweep(None, ["render", "shade"], [ParameterSet("frame", 1, 4, 1)])]


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"type": "zap", "jobs": []}, 'type: expected "parameterSweep", "zip" or "repeat", got "zap"'),
        ({"type": ["zip"], "jobs": []}, 'type: expected "parameterSweep", "zip" or "repeat", got a list'),
        ({"jobs": []}, 'lacks "type"'),
        ({"type": "repeat", "jobs": []}, 'lacks "number"'),
        ({"type": "zip", "jobs": []}, 'lacks "parameters"'),
        ({"type": "zip", "job": []}, 'job: unknown key; did you mean "jobs"?'),
        ({"type": "repeat", "jobs": [3], "number": 1}, "jobs[0]: expected the name of a job, got the number 3"),
        ({"type": "zip", "parameters": [{"name": "x", "value": [1]}]},
         'parameters[0].value: unknown key; did you mean "values"?'),
    ],
)  # fmt: skip
def test_a_factory_that_is_none_is_refused_with_its_place(document: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        Factory.from_dict(document)
    assert str(caught.value) == message
    with pytest.raises(SpecError) as caught:
        Workflow.from_dict({"jobs": [], "factories": [{"type": "repeat", "jobs": [], "number": 1}, document]})
    dot = " " if message.startswith("lacks") else "."
    assert str(caught.value) == f"factories[1]{':' if dot == ' ' else ''}{dot}{message}"


def test_one_form_of_factories() -> None:
    repeat = {"type": "repeat", "jobs": [], "number": 1}
    with pytest.raises(SpecError, match=r"^factory: is the older form of factories: give one of the two"):
        Workflow.from_dict({"jobs": [], "factory": repeat, "factories": [repeat]})


def full_job() -> Job:
    made = Job()
    made.name = "fit"
    made.labels = {"study": "x1"}
    made.resources = Resources(cpus=2)
    made.tasks.append(task(image="centos:7", runtime="singularity", command="hostname"))
    made.input_files.append(InputFile("in.txt", "hello"))
    made.artifacts.append(Artifact("https://example.org/data.tar.gz", "data", "/data"))
    made.output_files.append("*.csv")
    made.output_directories.append("results")
    made.policies.maximum_retries = 1
    made.notifications.append(Notification("jobFinished", "email"))
    return made


FULL_JOB = {
    "name": "fit",
    "labels": {"study": "x1"},
    "tasks": [{"image": "centos:7", "cmd": "hostname", "runtime": "singularity"}],
    "resources": {"cpus": 2, "memory": 1, "disk": 10, "nodes": 1, "walltime": 720},
    "inputs": [{"filename": "in.txt", "content": "aGVsbG8="}],
    "artifacts": [{"url": "https://example.org/data.tar.gz", "mountpoint": "data:/data"}],
    "outputFiles": ["*.csv"],
    "outputDirs": ["results"],
    "policies": {"maximumRetries": 1},
    "notifications": [{"event": "jobFinished", "type": "email"}],
}


def test_job() -> None:
    new = Job()
    assert new.to_dict() == {"name": "", "tasks": [], "resources": Resources().to_dict()}
    assert new.id is None
    assert new.status is None
    assert not new.done()
    assert full_job().to_dict() == FULL_JOB
    assert Job.from_dict(FULL_JOB).to_dict() == FULL_JOB
    assert Checked(FULL_JOB).found == []


@pytest.mark.parametrize(
    ("kind", "document", "message"),
    [
        (Task, {"command": "hostname"}, 'command: unknown key; did you mean "cmd"?'),
        (Task, {"cmd": "hostname", "enviroment": {}}, "enviroment: unknown key; expected"),
        (Task, {"cmd": "hostname", "env": ["A=b"]}, "env: expected an object, got a list"),
        (Task, "hostname", 'expected an object, got "hostname"'),
        (Resources, {"cpu": 2}, 'cpu: unknown key; did you mean "cpus"?'),
        (Resources, {"memory_per_cpu": 2}, 'memory_per_cpu: unknown key; did you mean "memoryPerCpu"?'),
        (JobPolicies, {"maximumRetry": 2}, 'maximumRetry: unknown key; did you mean "maximumRetries"?'),
        (WorkflowPolicies, {"maximumRetry": 2}, 'maximumRetry: unknown key; did you mean "maximumRetries"?'),
        (Notification, {"events": "jobFinished"}, 'events: unknown key; did you mean "event"?'),
        (Artifact, {"url": "x", "mount": "d:/d"}, 'mount: unknown key; did you mean "mountpoint"?'),
        (Artifact, {"mountpoint": "d:/d"}, 'lacks "url"'),
        (InputFile, {"filename": "x", "contents": ""}, 'contents: unknown key; did you mean "content"?'),
        (InputFile, {"filename": "x", "content": "a"}, "content: is not base64"),
        (InputFile, {"content": ""}, 'lacks "filename"'),
        (ParameterSet, {"start": 1}, 'lacks "name"'),
        (Job, {"task": []}, 'task: unknown key; did you mean "tasks"?'),
        (Job, {"output_files": []}, 'output_files: unknown key; did you mean "outputFiles"?'),
        (Job, {"tasks": {"cmd": "x"}}, "tasks: expected a list, got an object"),
        (Job, {"tasks": [{"cmd": "x"}, {"command": "x"}]}, 'tasks[1].command: unknown key; did you mean "cmd"?'),
        (Job, {"resources": {"cpu": 2}}, 'resources.cpu: unknown key; did you mean "cpus"?'),
        (Job, {"policies": {"priorty": 2}}, 'policies.priorty: unknown key; did you mean "priority"?'),
        (Job, {"storage": {"type": "onedata"}}, "storage: unknown key; expected"),
        (Workflow, {"job": []}, 'job: unknown key; did you mean "jobs"?'),
        (Workflow, {"jobs": [{"tasks": ["x"]}]}, 'jobs[0].tasks[0]: expected an object, got "x"'),
        (Workflow, {"jobs": [], "dependencies": {"a": [1]}}, "dependencies.a[0]: expected the name of a job, got"),
    ],
)  # fmt: skip
def test_a_misspelt_key_is_refused_with_a_hint(kind: Any, document: Any, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        kind.from_dict(document)
    assert str(caught.value).startswith(message)


def test_what_a_server_says_of_a_job_or_a_workflow_is_a_description() -> None:
    said: dict[str, Any] = {
        "id": 7, "status": "completed", "statusReason": "", "username": "me", "execution": {"site": "x", "tasks": []},
        "events": {"createTime": 1, "startTime": 2, "endTime": 3}, "createTime": 1, "elapsedTime": 2, "storage": {},
        "parameters": {"frame": 1},
    }  # fmt: skip
    outputs = {"outputFiles": [{"name": "*.csv", "url": "https://h/x", "size": 3}],
               "outputDirs": [{"name": "results", "url": ""}]}  # fmt: skip
    job = Job.from_dict({**FULL_JOB, **said, **outputs})
    assert job.to_dict() == FULL_JOB
    assert job.id is None
    nothing = {"inputs": {}, "artifacts": [], "notifications": [], "policies": {}, "outputFiles": [], "labels": {}}
    task = {"image": "centos:7", "cmd": "hostname"}
    assert Job.from_dict({"name": "a", "tasks": [task], "resources": {}, **nothing, **said}).tasks[0].command
    workflow = {"name": "w", "jobs": [FULL_JOB], "labels": {"a": "b"}}
    more = {"progress": {"total": 1, "done": 1, "failed": 0}, "factories": [], "dependencies": []}
    assert Workflow.from_dict({**workflow, **said, **more}).to_dict() == workflow


def test_what_says_where_in_clouds_to_run_is_passed_over() -> None:
    noted: dict[str, Any] = {
        "placement": {"requirements": {"sites": ["x"]}},
        "preemptible": True,
        "autoScalingType": None,
    }
    assert JobPolicies.from_dict({**noted, "priority": 2}) == JobPolicies(priority=2)
    assert WorkflowPolicies.from_dict({**noted, "maximumRetries": None}) == WorkflowPolicies()
    document = {"name": "w", "jobs": [FULL_JOB], "policies": noted}
    checked = Checked(document)
    assert checked.found == []
    assert [note.partition(":")[0] for note in checked.notes] == ["policies.placement", "policies.preemptible"]


def test_what_is_not_named_yet_goes_through_json() -> None:
    first, last = Job(), Job()
    made = Workflow()
    made.jobs = [first, last]
    made.dependencies = [Dependency(first, [last])]
    made.factories = [Repeat(jobs=[first], number=2), Zip(parameters=[ParameterSet("x")])]
    made.notifications = [Notification()]
    assert Workflow.from_dict(made.to_dict()).to_dict() == made.to_dict()


def test_workflow() -> None:
    new = Workflow()
    assert new.to_dict() == {"name": "", "jobs": []}
    assert new.id is None
    assert new.status is None
    assert not new.done()
    first, last = full_job(), full_job()
    last.name = "last"
    made = Workflow()
    made.name, made.labels = "study", {"a": "b"}
    made.jobs += [first, last]
    made.dependencies.append(Dependency(first, [last]))
    made.factories.append(Repeat(name="r", jobs=[first], number=2))
    made.policies.maximum_retries = 1
    made.notifications.append(Notification("workflowFinished", "email"))
    golden = {
        "name": "study",
        "labels": {"a": "b"},
        "jobs": [FULL_JOB, {**FULL_JOB, "name": "last"}],
        "dependencies": {"fit": ["last"]},
        "factories": [{"name": "r", "type": "repeat", "jobs": ["fit"], "number": 2}],
        "policies": {"maximumRetries": 1},
        "notifications": [{"event": "workflowFinished", "type": "email"}],
    }
    assert made.to_dict() == golden
    assert Workflow.from_dict(golden).to_dict() == golden
    assert Checked(golden).found == []


def test_the_public_module_has_every_name_and_no_more() -> None:
    names: dict[str, Any] = {}
    exec("from poncho_wq.prominence import *", names)
    names.pop("__builtins__")
    assert set(names) == {
        "Artifact", "Dependency", "InputFile", "Job", "JobPolicies", "Notification", "ParameterSet", "ParameterSweep",
        "Repeat", "Resources", "Task", "Workflow", "WorkflowPolicies", "Zip",
    }  # fmt: skip
