"""PROMINENCE's JSON of a job or a workflow → a ``Batch``."""

from __future__ import annotations

import base64
import json
import os
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from poncho_wq.batch.model import Batch, Input, Job, Notification, Output, Policies, Resources, Step, check
from poncho_wq.batch.prominence.checking import MPI, Checked, factories_of
from poncho_wq.batch.prominence.containers import Image, image_of, inside
from poncho_wq.batch.prominence.parts import JobPolicies
from poncho_wq.batch.prominence.parts import Resources as Wanted
from poncho_wq.batch.prominence.sweeps import instances
from poncho_wq.errors import BatchError, SpecError, redact
from poncho_wq.specs.document import Place

# Ends of names that PROMINENCE unpacks: into the job's directory, or to the name without the ending.
_ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".zip")
_COMPRESSED = (".gz", ".bz2", ".xz")
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
_MB = 1024  # to a GB, as Work Queue counts


@dataclass(frozen=True, kw_only=True, slots=True)
class Translated:
    """The batch, and ``notes`` for the user: what was asked for and means nothing here."""

    batch: Batch
    notes: tuple[str, ...] = ()


def translate(
    document: Any, *, directory: Path, source: str | None = None, upload: Callable[[str], Path] | None = None
) -> Translated:
    """Read the JSON; the files that it names are relative to ``directory``, and are looked for.

    ``upload``: where what was uploaded under a name is.  Raises ``BatchError`` with everything that is wrong.
    """
    checked = Checked(document, source)
    if checked.found:
        raise BatchError(checked.found)
    reader = _Reader(directory, source, upload)
    workflow = "jobs" in document
    batch = reader.workflow(document) if workflow else reader.single(document)
    if reader.found:
        raise BatchError(reader.found)
    check(batch, source=source)
    return Translated(batch=batch, notes=tuple(checked.notes))


def instance_names(document: Mapping[str, Any]) -> dict[str, list[str]]:
    """The jobs that each job of a checked workflow becomes: itself, or a factory's instances of it."""
    made = {name: factory for factory in factories_of(document) for name in factory["jobs"]}
    return {
        job["name"]: [f"{job['name']}_{i}" for i in range(len(instances(made[job["name"]])))]
        if job["name"] in made
        else [job["name"]]
        for job in document["jobs"]
    }


class _Reader:
    def __init__(self, directory: Path, source: str | None, upload: Callable[[str], Path] | None) -> None:
        self._directory = directory
        self._source = source
        self._upload = upload
        self.found: list[SpecError] = []

    def workflow(self, document: Mapping[str, Any]) -> Batch:
        names = instance_names(document)
        parents: dict[str, list[str]] = {}
        for parent, children in (document.get("dependencies") or {}).items():
            for child in children:
                parents.setdefault(child, []).extend(names[parent])
        parameters: dict[str, list[dict[str, str]]] = {}
        for factory in factories_of(document):
            parameters.update((name, instances(factory)) for name in factory["jobs"])
        policies = document.get("policies") or {}
        jobs = []
        for position, job in enumerate(document["jobs"]):
            place = Place(f"jobs[{position}]", self._source)
            after = tuple(dict.fromkeys(parents.get(job["name"], ())))
            for name, values in zip(names[job["name"]], parameters.get(job["name"], [{}]), strict=True):
                jobs.append(self._job(place, job, name, values, after=after, workflow=policies))
        events = [each["event"] for each in document.get("notifications") or ()]
        finished = Notification(kind="email")
        if "jobFinished" in events:
            jobs = [replace(job, notifications=(*job.notifications, finished)) for job in jobs]
        return Batch(
            name=document.get("name") or "workflow", jobs=tuple(jobs), labels=dict(document.get("labels") or {}),
            notifications=(finished,) if "workflowFinished" in events else (),
        )  # fmt: skip

    def single(self, document: Mapping[str, Any]) -> Batch:
        name = document.get("name") or "job"
        job = self._job(Place("", self._source), document, name, {}, after=(), workflow=None)
        return Batch(name=name, jobs=(job,))

    def _job(
        self, place: Place, job: Mapping[str, Any], name: str, values: Mapping[str, str], *, after: tuple[str, ...],
        workflow: Mapping[str, Any] | None,
    ) -> Job:  # fmt: skip
        wanted = Wanted.from_dict(job.get("resources") or {})
        inputs = [
            Input(name=each["filename"], content=base64.b64decode(each["content"])) for each in job.get("inputs") or ()
        ]
        mounts = []
        for position, artifact in enumerate(job.get("artifacts") or ()):
            here = place.key("artifacts").item(position)
            try:
                inputs.append(self._artifact(_filled(artifact["url"], values)))
            except ValueError as error:
                self._bad(here.key("url"), str(error))
            if artifact.get("mountpoint"):
                directory, _, target = artifact["mountpoint"].partition(":")
                mounts.append((directory, target))
        steps, features = [], []
        for position, task in enumerate(job["tasks"]):
            here = place.key("tasks").item(position)
            try:
                image = image_of(task.get("image"), self._directory)
            except ValueError as error:
                self._bad(here.key("image"), str(error))
                continue
            if image.container is not None:
                features.append(task.get("runtime") or "singularity")
            if image.file:
                packed = Input(name=str(_packed(image)), path=image.container)
                inputs += [packed] if packed not in inputs else []
            step = self._step(here, task, image, values, wanted, mounts)
            steps += [step] if step is not None else []
        exports = {"PROMINENCE_JOB_ID": "job_id", "PROMINENCE_CPUS": "cores"}
        exports.update(dict.fromkeys(("HOME", "TMP", "TEMP"), "home"))
        if workflow is not None:
            exports["PROMINENCE_WORKFLOW_ID"] = "batch_id"
        outputs = [Output(pattern=_filled(each, values)) for each in job.get("outputFiles") or ()]
        outputs += [_directory_output(_filled(each, values)) for each in job.get("outputDirs") or ()]
        # One environment for all tasks is the job's own: then nothing else is needed on the worker.
        environment = steps[0].environment if steps else None
        if any(step.environment != environment for step in steps):
            environment = None
        else:
            steps = [replace(step, environment=None) for step in steps]
        finished = any(each["event"] == "jobFinished" for each in job.get("notifications") or ())
        return Job(
            name=name, steps=tuple(steps), inputs=tuple(inputs), outputs=tuple(outputs), after=after,
            resources=_resources(wanted), features=tuple(dict.fromkeys(features)), policies=_policies(job, workflow),
            labels=dict(job.get("labels") or {}), exports=exports, environment=environment,
            notifications=(Notification(kind="email"),) if finished else (),
        )  # fmt: skip

    def _step(
        self, place: Place, task: Mapping[str, Any], image: Image, values: Mapping[str, str], wanted: Wanted,
        mounts: list[tuple[str, str]],
    ) -> Step | None:  # fmt: skip
        kind, runtime, workdir = task.get("type"), task.get("runtime") or "singularity", task.get("workdir")
        # Words first: a parameter's value never becomes two.
        words = [_filled(word, values) for word in shlex.split(task.get("cmd") or "")]
        env = {
            "PROMINENCE_MEMORY": f"{_memory(wanted):g}", "PROMINENCE_NODES": "1", "PROMINENCE_NODE_NUM": "0",
            **{f"PROMINENCE_PARAMETER_{name}": value for name, value in values.items()},
        }  # fmt: skip
        around: tuple[str, ...] = ()
        if image.container is not None:
            env["PROMINENCE_CONTAINER_RUNTIME"] = runtime
            absolute = workdir if workdir and workdir.startswith("/") else None
            around = inside(
                image, runtime, name=_packed(image), workdir=absolute, mounts=mounts, verb="exec" if words else "run"
            )
            workdir = None if absolute else workdir
            if runtime == "udocker" and image.file:
                self._bad(place.key("image"), f"{image.container}: udocker has no images of this kind; use singularity")
        else:
            if not words:
                self._bad(place.key("cmd"), "a task needs a command, unless it is a container that has its own")
                return None
            if mounts:
                self._bad(
                    place, f"{mounts[0][1]}: only a container has mount points",
                    f'this task finds the artifact in the directory "{mounts[0][0]}" of its job',
                )  # fmt: skip
        if kind in MPI and words:
            words = ["mpirun", "-n", str(task.get("procsPerNode") or wanted.cpus), *words]
        if not words:
            around, words = (), list(around)
        env.update((name, _filled(str(value), values)) for name, value in (task.get("env") or {}).items())
        return Step(
            argv=tuple(words), inside=around, env=env, cwd=workdir or ".", sidecar=kind == "sidecar",
            environment=image.environment,
        )  # fmt: skip

    def _artifact(self, url: str) -> Input:
        parts = urlsplit(url)
        file = parts.path.rpartition("/")[2] or "artifact"
        if parts.scheme in ("http", "https", "file"):
            return _fetched(file, url=url)
        uploaded = None if self._upload is None else self._upload(url)
        if uploaded is not None and os.path.isfile(uploaded):
            return _fetched(url.rpartition("/")[2], path=str(uploaded))
        path = self._directory / url
        if os.path.isfile(path):
            return _fetched(path.name, path=str(path.absolute()))
        if os.path.isdir(path):
            raise ValueError(f'"{redact(url)}" is a directory; an artifact is a file: name an archive of it (.tar.gz)')
        raise ValueError(f'"{redact(url)}" is neither a URL (http, https, file), nor a file, nor has it been uploaded')

    def _bad(self, place: Place, message: str, advice: str | None = None) -> None:
        self.found.append(SpecError(message, path=place.path or None, source=place.source, advice=advice))


def _fetched(name: str, *, url: str | None = None, path: str | None = None) -> Input:
    if name.endswith(_ARCHIVES):
        return Input(name=".", url=url, path=path, unpack=True)
    ending = next((each for each in _COMPRESSED if name.endswith(each)), "")
    return Input(name=name.removesuffix(ending) or name, url=url, path=path, unpack=bool(ending))


def _filled(text: str, values: Mapping[str, str]) -> str:
    """``$name`` and ``${name}`` of the parameters replaced; any other dollar stays."""
    return _VARIABLE.sub(lambda match: values.get(match[1] or match[2], match[0]), text)


def _packed(image: Image) -> str | None:
    """What an image file is called in the home, where no pattern of an output finds it."""
    return f".{Path(str(image.container)).name}" if image.file else None


def _directory_output(name: str) -> Output:
    plain = not any(character in name for character in "*?[")
    return Output(pattern=name, archive=True, as_name=f"{name.rstrip('/')}.tgz" if plain else None)


def _memory(wanted: Wanted) -> float:
    return wanted.memory_per_cpu * wanted.cpus if wanted.memory_per_cpu else wanted.memory


def _resources(wanted: Wanted) -> Resources:
    return Resources(
        cores=wanted.cpus, memory=max(1, round(_memory(wanted) * _MB)), disk=max(1, round(wanted.disk * _MB)),
        walltime=wanted.walltime * 60,
    )  # fmt: skip


def _policies(job: Mapping[str, Any], workflow: Mapping[str, Any] | None) -> Policies:
    """A job by itself is completed however its tasks end; of a workflow, it has failed, unless the policy says not."""
    given = JobPolicies.from_dict(job.get("policies") or {})
    limit = given.maximum_time_in_queue
    return Policies(
        step_retries=given.maximum_task_retries,
        job_retries=max(given.maximum_retries, (workflow or {}).get("maximumRetries") or 0),
        ignore_step_failures=given.ignore_task_failures,
        fail_on_exit=workflow is not None and not given.report_job_success_on_task_failure,
        retry_on_exit=workflow is None and not given.report_job_success_on_task_failure,
        max_queue=limit * 60 if limit > 0 else None,
        may_stall=limit != -1,
        priority=given.priority,
    )


def text_of(document: Mapping[str, Any]) -> str:
    """The JSON as the journal keeps it."""
    return json.dumps(document, sort_keys=True)
