"""What jobs and workflows are made of, as PROMINENCE's Python client has it.

Every class has ``to_dict()``, which returns PROMINENCE's JSON (what is at its default is mostly left out), and
``from_dict()``, which reads it.  Plain values: they are not checked before a job or workflow is created.  A misspelt
property is an ``AttributeError``, a misspelt key a ``SpecError`` that says what it could have been.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from poncho_wq.batch.prominence import keys
from poncho_wq.batch.prominence.keys import TOP, fields
from poncho_wq.specs.document import object_at, required_at


@dataclass(slots=True)
class Task:
    """One command of a job.

    ``image``: a Poncho environment (anything that ``poncho_wq.environment`` takes: a tarball, a specification, an
    ``environment.yml``, a dictionary …), the name of a container image, or None for this Python and its standard
    library.  ``runtime``: ``singularity``, ``udocker`` or ``apptainer``; it matters for container images alone.
    ``command`` is split into words as a shell would, but run without one.  ``type``: ``basic`` (None is the same),
    ``openmpi``, ``intelmpi``, ``mpich`` or ``sidecar``.  ``workdir`` is relative to the job's directory.
    """

    image: Any = None
    runtime: str | None = None
    command: str | None = None
    type: str | None = None
    workdir: str | None = None
    env: dict[str, str] = field(default_factory=dict)
    procs_per_node: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """PROMINENCE's JSON without what is None; a prepared ``Environment`` is the path of its tarball there."""
        found = {
            "image": _image(self.image), "cmd": self.command, "runtime": self.runtime, "type": self.type,
            "workdir": self.workdir, "env": dict(self.env or {}) or None, "procsPerNode": self.procs_per_node,
        }  # fmt: skip
        return {key: value for key, value in found.items() if value is not None}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Task:
        """From PROMINENCE's JSON.  Raises ``SpecError`` for a key that a task does not have."""
        get = fields(document, keys.TASK).get
        return cls(
            image=get("image"), runtime=get("runtime"), command=get("cmd"), type=get("type"), workdir=get("workdir"),
            env=dict(object_at(TOP.key("env"), get("env") or {})), procs_per_node=get("procsPerNode"),
        )  # fmt: skip


def _image(image: Any) -> Any:
    """An image as JSON has it: a name, a path, or the specification of an environment."""
    from poncho_wq.prepare import Environment
    from poncho_wq.spec import EnvSpec

    if isinstance(image, Environment):
        return str(image.tarball)
    if isinstance(image, EnvSpec):
        return json.loads(image.to_json())
    if isinstance(image, Mapping):
        return dict(image)
    return os.fspath(image) if isinstance(image, os.PathLike) else image


@dataclass(slots=True)
class Resources:
    """What a job asks of its worker: CPUs, memory and disk in GB, nodes (1 is all there is), walltime in minutes.

    ``memory_per_cpu``, in GB, counts instead of ``memory``.
    """

    cpus: int = 1
    memory: float = 1
    disk: float = 10
    nodes: int = 1
    walltime: float = 720
    memory_per_cpu: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """PROMINENCE's JSON, in the same units; ``memoryPerCpu``, if set, in the place of ``memory``."""
        memory = {"memoryPerCpu": self.memory_per_cpu} if self.memory_per_cpu else {"memory": self.memory}
        return {"cpus": self.cpus, **memory, "disk": self.disk, "nodes": self.nodes, "walltime": self.walltime}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Resources:
        """From PROMINENCE's JSON; null is the default.  Raises ``SpecError`` for a key that resources do not have."""
        names = {"memoryPerCpu": "memory_per_cpu"}
        given = fields(document, keys.RESOURCES)
        return cls(**{names.get(key, key): value for key, value in given.items() if value is not None})


@dataclass(slots=True)
class Artifact:
    """Something that is fetched and, if it is an archive, unpacked in the job's directory before its tasks.

    ``name``: a URL (http, https, file), a file of this machine, or what it was called in ``upload``.
    ``directory_name``: the directory that it unpacks to, which ``mount_point`` makes appear at an absolute path in a
    container.
    """

    name: str
    directory_name: str | None = None
    mount_point: str | None = None

    def upload(self, filename: str | os.PathLike[str]) -> None:
        """Keep a copy of a file as the artifact ``name``, for this user's jobs.  Raises ``EngineError``."""
        from poncho_wq.batch.prominence.uploads import keep

        keep(self.name, filename)

    def to_dict(self) -> dict[str, Any]:
        """PROMINENCE's JSON: ``url``, and ``mountpoint`` (``DIRECTORY:/PATH``) where both of its halves are given."""
        found = {"url": self.name}
        if self.directory_name and self.mount_point:
            found["mountpoint"] = f"{self.directory_name}:{self.mount_point}"
        return found

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Artifact:
        """From PROMINENCE's JSON.  Raises ``SpecError`` without ``url``, and for a key that it does not have."""
        given = fields(document, keys.ARTIFACT)
        directory, _, mount = str(given.get("mountpoint") or "").partition(":")
        url: Any = required_at(TOP, given, "url")
        return cls(url, directory or None, mount or None)


@dataclass(slots=True)
class InputFile:
    """A small file in the job's directory: with ``content`` (text or bytes), else a copy of the file ``filename``."""

    filename: str
    content: str | bytes | None = None

    def to_dict(self) -> dict[str, Any]:
        """Reads the file, if there is no ``content``; raises ``OSError`` when it cannot."""
        content, name = self.content, os.fspath(self.filename)
        if content is None:
            content, name = Path(name).read_bytes(), Path(name).name
        elif isinstance(content, str):
            content = content.encode()
        return {"filename": name, "content": base64.b64encode(content).decode()}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> InputFile:
        """From PROMINENCE's JSON, the content as bytes.

        Raises ``SpecError`` without one of its two keys or with another, and for what is not base64.
        """
        given = fields(document, keys.INPUT)
        name: Any = required_at(TOP, given, "filename")
        content: Any = required_at(TOP, given, "content")
        try:
            return cls(name, base64.b64decode(content))
        except (ValueError, TypeError):
            TOP.key("content").fail("is not base64")


@dataclass(slots=True)
class JobPolicies:
    """How a job is treated.

    ``maximum_time_in_queue`` in minutes: 0, until it starts or no connected worker can run it; -1, until it starts.
    """

    maximum_task_retries: int = 0
    maximum_retries: int = 0
    maximum_time_in_queue: float = 0
    priority: int = 0
    leave_in_queue: bool = False
    ignore_task_failures: bool = False
    run_serial_tasks_on_all_nodes: bool = False
    report_job_success_on_task_failure: bool = False

    def to_dict(self) -> dict[str, Any]:
        """PROMINENCE's JSON of what is not at its default; ``maximumTimeInQueue`` in minutes."""
        return _changed(self, _JOB_POLICIES)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> JobPolicies:
        """From PROMINENCE's JSON; null, and what says where in its clouds to run (``placement`` …), is passed over.

        Raises ``SpecError`` for any other key.
        """
        names = {key: name for name, key in _JOB_POLICIES.items()}
        # The client wrote it like this.
        names["ignoreTaskTailures"] = "ignore_task_failures"
        given = fields(document, (*keys.JOB_POLICIES, *keys.NOTED_POLICIES))
        return cls(**{names[key]: value for key, value in given.items() if key in names and value is not None})


@dataclass(slots=True)
class WorkflowPolicies:
    """How a workflow is treated: ``maximum_retries`` is for each of its jobs."""

    maximum_retries: int = 0
    leave_in_queue: bool = False

    def to_dict(self) -> dict[str, Any]:
        """PROMINENCE's JSON of what is not at its default."""
        return _changed(self, _WORKFLOW_POLICIES)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> WorkflowPolicies:
        """From PROMINENCE's JSON; null, and what says where in its clouds to run (``placement``), is passed over.

        Raises ``SpecError`` for any other key.
        """
        names = {key: name for name, key in _WORKFLOW_POLICIES.items()}
        given = fields(document, (*keys.WORKFLOW_POLICIES, *keys.NOTED_POLICIES))
        return cls(**{names[key]: value for key, value in given.items() if key in names and value is not None})


_WORKFLOW_POLICIES = {"maximum_retries": "maximumRetries", "leave_in_queue": "leaveInQueue"}
_JOB_POLICIES = {
    "maximum_task_retries": "maximumTaskRetries", "maximum_retries": "maximumRetries",
    "maximum_time_in_queue": "maximumTimeInQueue", "priority": "priority", "leave_in_queue": "leaveInQueue",
    "ignore_task_failures": "ignoreTaskFailures", "run_serial_tasks_on_all_nodes": "runSerialTasksOnAllNodes",
    "report_job_success_on_task_failure": "reportJobSuccessOnTaskFailure",
}  # fmt: skip


def _changed(policies: Any, names: Mapping[str, str]) -> dict[str, Any]:
    """What is not at its default."""
    new = type(policies)()
    changed = [name for name in names if getattr(policies, name) != getattr(new, name)]
    return {names[name]: getattr(policies, name) for name in changed}


@dataclass(slots=True)
class Notification:
    """Tell the user by ``type`` (``email``) when ``event``: ``jobFinished`` or ``workflowFinished``."""

    event: str | None = None
    type: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """PROMINENCE's JSON; what is None is null there, and refused when the job is created."""
        return {"event": self.event, "type": self.type}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Notification:
        """From PROMINENCE's JSON; what is not in it is None.  Raises ``SpecError`` for a key that it does not have."""
        given = fields(document, keys.NOTIFICATION)
        return cls(given.get("event"), given.get("type"))
