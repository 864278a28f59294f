"""PROMINENCE's ``Job``."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from poncho_wq.batch.model import State
from poncho_wq.batch.prominence import keys
from poncho_wq.batch.prominence.created import Created
from poncho_wq.batch.prominence.parts import Artifact, InputFile, JobPolicies, Notification, Resources, Task
from poncho_wq.errors import EngineError
from poncho_wq.specs.document import object_at

# What PROMINENCE calls our states; a job that never ran because one before it did not complete has failed with it.
STATUS = {
    State.WAITING: "idle", State.IDLE: "idle", State.SUBMITTED: "deploying", State.RUNNING: "running",
    State.COMPLETED: "completed", State.FAILED: "failed", State.KILLED: "killed", State.DELETED: "deleted",
    State.SKIPPED: "failed",
}  # fmt: skip


class Job(Created):
    """A job: tasks one after the other in one directory, on one worker.

    ``Job(id)`` is one that was created before, in whatever process.  A property that PROMINENCE does not have cannot
    be set.
    """

    _KIND = "job"
    __slots__ = (
        "artifacts", "input_files", "labels", "name", "notifications", "output_directories", "output_files",
        "policies", "resources", "tasks",
    )  # fmt: skip

    def __init__(self, id: int | None = None) -> None:
        self._id: int | None = None
        self.name = ""
        self.labels: dict[str, str] = {}
        self.resources = Resources()
        self.tasks: list[Task] = []
        self.input_files: list[InputFile] = []
        self.artifacts: list[Artifact] = []
        self.output_files: list[str] = []
        self.output_directories: list[str] = []
        self.policies = JobPolicies()
        self.notifications: list[Notification] = []
        if id is not None:
            self._describe(_description(id))
            self._id = id

    @property
    def status(self) -> str | None:
        """``idle``, ``deploying``, ``running``, ``completed``, ``failed``, ``killed`` or ``deleted``; None before it is
        created."""
        return None if self._id is None else STATUS[self._record().state]

    @property
    def status_reason(self) -> str | None:
        """Why it is in this state, where there is a reason: ``Walltime limit exceeded``, ``exit 3`` …"""
        return None if self._id is None else self._record().reason

    @property
    def exit_code(self) -> int | None:
        """The exit status of the task that failed, else of the last one; None where there is none."""
        return None if self._id is None else self._record().exit_code

    def create(self) -> None:
        """Hand the job over; it runs whether this process goes on or not.

        Raises ``SpecError`` (a ``BatchError``) with all that is wrong with it, ``EngineError`` for what cannot be run.
        """
        from poncho_wq.batch.prominence import client

        _, jobs = client.create(self.to_dict(), "job")
        (self._id,) = jobs.values()

    def delete(self) -> bool:
        """End it; False when it was over."""
        from poncho_wq.batch.prominence import client

        return client.delete(self._record().batch, [self._number()])

    def remove(self) -> bool:
        """Take it out of the listings; False when it is not over, is out already, or is a job of a workflow."""
        from poncho_wq.batch.prominence import client

        record, jobs = client.batch(self._record().batch)
        return record.folder.startswith("job-") and len(jobs) == 1 and client.remove(record.id)

    def execute(self, command: str) -> str:
        """Run a command in the running job, where its first task runs; returns what it writes to stdout and stderr.

        Raises ``EngineError`` when the job does not run or that is more than 512 MiB, ``ValueError`` for a command that
        cannot be split into words.
        """
        from poncho_wq.batch.prominence import client

        words = shlex.split(command)
        if not words:
            raise ValueError("there is no command")
        return client.in_job(self._number(), {"do": "execute", "argv": words})[1].decode(errors="replace")

    def get_snapshot(self, path: str, save_as: str | os.PathLike[str] | None = None) -> str | bytes:
        """A file of the running job as it is now, or a directory as a tar.gz.

        Raises ``EngineError``, also for more than 512 MiB.
        """
        from poncho_wq.batch.prominence import client

        return _content(client.in_job(self._number(), {"do": "snapshot", "path": path})[1], save_as)

    def stdout(self, node: int = 0) -> str:
        """Its standard output, so far if it runs.  Raises ``EngineError`` while it runs and that is over 512 MiB."""
        return self._output("stdout", node)

    def stderr(self, node: int = 0) -> str:
        """Its standard error, so far if it runs.  Raises ``EngineError`` while it runs and that is over 512 MiB."""
        return self._output("stderr", node)

    def get_input_file(self, name: str) -> str | bytes:
        """The content of an input file.  Raises ``EngineError`` when there is none of that name."""
        for given in self.input_files:
            document = given.to_dict()
            if document["filename"] == name:
                return _content(InputFile.from_dict(document).content, None)  # type: ignore[arg-type]
        raise EngineError(f"the job has no input file {name}")

    def get_output_file(self, name: str, save_as: str | os.PathLike[str] | None = None) -> str | bytes:
        """The content of an output file, as bytes where it is no text.  Raises ``EngineError`` when there is none."""
        from poncho_wq.batch.prominence import client

        return _content(client.result(self._number(), name), save_as)

    def get_output_directory(self, name: str, save_as: str | os.PathLike[str] | None = None) -> bytes:
        """An output directory, as the bytes of a tar.gz.  Raises ``EngineError`` when there is none."""
        from poncho_wq.batch.prominence import client

        plain = name.rstrip("/")
        try:
            data = client.result(self._number(), f"{plain}.tgz")
        except EngineError:
            data = client.result(self._number(), f"{plain}.tar.gz")
        if save_as is not None:
            Path(save_as).write_bytes(data)
        return data

    def to_dict(self) -> dict[str, Any]:
        """PROMINENCE's JSON.  Raises ``OSError`` when an input file cannot be read."""
        found: dict[str, Any] = {
            "name": self.name, "tasks": [task.to_dict() for task in self.tasks], "resources": self.resources.to_dict(),
        }  # fmt: skip
        more = {
            "labels": dict(self.labels), "inputs": [each.to_dict() for each in self.input_files],
            "artifacts": [each.to_dict() for each in self.artifacts], "outputFiles": list(self.output_files),
            "outputDirs": list(self.output_directories), "policies": self.policies.to_dict(),
            "notifications": [each.to_dict() for each in self.notifications],
        }  # fmt: skip
        return {**found, **{key: value for key, value in more.items() if value}}

    def _describe(self, document: Mapping[str, Any]) -> None:
        given = keys.description(document, keys.JOB)
        self.name = given.get("name") or ""
        self.labels = dict(object_at(keys.TOP.key("labels"), given.get("labels") or {}))
        with keys.within(keys.TOP.key("resources")):
            self.resources = Resources.from_dict(given.get("resources") or {})
        self.tasks = keys.each_of(given, "tasks", Task.from_dict)
        self.input_files = keys.each_of(given, "inputs", InputFile.from_dict)
        self.artifacts = keys.each_of(given, "artifacts", Artifact.from_dict)
        self.output_files = keys.each_of(given, "outputFiles", _output_name)
        self.output_directories = keys.each_of(given, "outputDirs", _output_name)
        with keys.within(keys.TOP.key("policies")):
            self.policies = JobPolicies.from_dict(given.get("policies") or {})
        self.notifications = keys.each_of(given, "notifications", Notification.from_dict)

    def _record(self) -> Any:
        from poncho_wq.batch.prominence import client

        return client.job(self._number())

    def _output(self, name: str, node: int) -> str:
        from poncho_wq.batch.prominence import client

        if node != 0:
            raise EngineError(f"node {node}: a Work Queue job runs on one worker, which is node 0")
        return client.output(self._number(), name).decode(errors="replace")


def _output_name(given: Any) -> Any:
    """An output as it was asked for; a server says its name, and where it is."""
    return given["name"] if isinstance(given, Mapping) and "name" in given else given


def set_id(job: Job, number: int | None) -> None:
    """The job has been created, as a part of a workflow."""
    job._id = number


def _description(number: int) -> dict[str, Any]:
    """The JSON that a job was created from; that of a workflow has it among its jobs."""
    from poncho_wq.batch.prominence import client
    from poncho_wq.batch.prominence.translation import instance_names

    record = client.job(number)
    found: dict[str, Any] = json.loads(client.batch(record.batch)[0].source)
    if "jobs" not in found:
        return found
    of = {name: job for job, names in instance_names(found).items() for name in names}
    template = next(job for job in found["jobs"] if job["name"] == of[record.name])
    return {**template, "name": record.name}


def _content(data: bytes, save_as: str | os.PathLike[str] | None) -> str | bytes:
    if save_as is not None:
        Path(save_as).write_bytes(data)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data
