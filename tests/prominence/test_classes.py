"""Every class, property and default of PROMINENCE's Python client, against the JSON that it makes."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from poncho_wq.batch.prominence.checking import Checked
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
