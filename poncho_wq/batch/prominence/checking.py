"""Everything that is wrong with PROMINENCE's JSON of a job or a workflow, each with its place.  Reads, decides nothing.

What other versions of PROMINENCE know and what means nothing here is noted; what would change a result is refused.
"""

from __future__ import annotations

import base64
import binascii
import math
import shlex
from collections.abc import Callable, Mapping
from typing import Any

from poncho_wq.batch.cycles import find_cycle
from poncho_wq.batch.prominence import keys
from poncho_wq.batch.prominence.keys import FACTORIES
from poncho_wq.batch.prominence.sweeps import instances
from poncho_wq.errors import SpecError
from poncho_wq.specs.document import Place, kind, object_at

RUNTIMES = ("singularity", "udocker", "apptainer")
MPI = ("openmpi", "intelmpi", "mpich")
TYPES = ("basic", *MPI, "sidecar")


class Checked:
    """What was ``found`` wrong with a document, and ``notes`` for the user."""

    def __init__(self, document: Any, source: str | None = None) -> None:
        self.found: list[SpecError] = []
        self.notes: list[str] = []
        top = Place("", source)
        if isinstance(document, Mapping) and "jobs" in document:
            self._try(self._workflow, top, document)
        else:
            self._try(self._job, top, document, False)

    def _try(self, check: Callable[..., None], place: Place, *given: Any) -> None:
        """One check; what it raises is one thing that is wrong."""
        try:
            check(place, *given)
        except SpecError as error:
            self.found.append(error)

    def _bad(self, place: Place, message: str) -> None:
        self.found.append(SpecError(message, path=place.path or None, source=place.source))

    # -- a workflow

    def _workflow(self, place: Place, document: Any) -> None:
        object_at(place, document, known=keys.WORKFLOW, hints=keys.HABITS)
        self._try(_name, place.key("name"), document.get("name"))
        self._try(_labels, place.key("labels"), document.get("labels"))
        self._try(self._policies, place.key("policies"), document.get("policies"), keys.WORKFLOW_POLICIES)
        self._try(_notifications, place.key("notifications"), document.get("notifications"))
        jobs = place.key("jobs")
        given = document["jobs"]
        if not isinstance(given, list) or not given:
            jobs.fail("a workflow must contain jobs")
        for position, job in enumerate(given):
            self._try(self._job, jobs.item(position), job, True)
        names = [job["name"] for job in given if isinstance(job, Mapping) and isinstance(job.get("name"), str)]
        for name in dict.fromkeys(name for name in names if names.count(name) > 1):
            self._bad(jobs, f'all jobs must have unique names: "{name}" is used more than once')
        self._factories(place, document, names)
        if document.get("dependencies"):
            self._try(self._dependencies, place.key("dependencies"), document["dependencies"], names)

    def _dependencies(self, place: Place, given: Any, names: list[str]) -> None:
        object_at(place, given)
        for parent, children in given.items():
            here = place.key(parent)
            if parent not in names:
                self._bad(here, f'parent job "{parent}" is not defined')
            if not isinstance(children, list) or not all(isinstance(child, str) for child in children):
                self._bad(here, f"expected a list of names of jobs, got {kind(children)}")
                continue
            for child in children:
                if child not in names:
                    self._bad(here, f'child job "{child}" is not defined')
        after: dict[str, list[str]] = {name: [] for name in names}
        for parent, children in given.items():
            for child in children if isinstance(children, list) else ():
                if isinstance(child, str) and child in after:
                    after[child].append(parent)
        cycle = find_cycle(after)
        if cycle:
            place.fail(f"dependency cycle: {' -> '.join(cycle)}")

    def _factories(self, place: Place, document: Mapping[str, Any], names: list[str]) -> None:
        if document.get("factory") is not None and document.get("factories"):
            self._bad(place.key("factory"), "is the older form of factories: give one of the two")
            return
        try:
            given = factories_of(document)
        except (TypeError, ValueError, KeyError):
            self._bad(place.key("factories"), "expected a list of factories")
            return
        owner: dict[str, int] = {}
        for position, factory in enumerate(given):
            self._try(self._factory, place.key("factories").item(position), factory, names, owner, position)

    def _factory(self, place: Place, given: Any, names: list[str], owner: dict[str, int], position: int) -> None:
        object_at(place, given, known=keys.FACTORY)
        if given.get("type") not in FACTORIES:
            place.key("type").fail(f"expected one of {', '.join(FACTORIES)}, got {kind(given.get('type'))}")
        jobs = given.get("jobs")
        if not isinstance(jobs, list) or not jobs:
            place.key("jobs").fail("expected a list of names of jobs")
        for name in jobs:
            if name not in names:
                place.key("jobs").fail(f'job "{name}" is not defined')
            if owner.setdefault(name, position) != position:
                place.key("jobs").fail(f'job "{name}" is made by another factory already')
        try:
            instances(given)
        except (ValueError, AttributeError) as error:
            place.fail(str(error))

    # -- a job

    def _job(self, place: Place, job: Any, of_workflow: bool) -> None:
        object_at(place, job, known=keys.JOB, hints=keys.HABITS)
        self._try(_name, place.key("name"), job.get("name"))
        if of_workflow and not job.get("name"):
            self._bad(place.key("name"), "all jobs of a workflow must have names")
        self._try(_labels, place.key("labels"), job.get("labels"))
        self._try(_resources, place.key("resources"), job.get("resources"))
        self._try(self._policies, place.key("policies"), job.get("policies"), keys.JOB_POLICIES)
        self._try(_notifications, place.key("notifications"), job.get("notifications"))
        tasks = job.get("tasks")
        if not isinstance(tasks, list) or not tasks:
            self._bad(place.key("tasks"), "a job must contain tasks")
        else:
            for position, task in enumerate(tasks):
                self._try(_task, place.key("tasks").item(position), task, (job.get("resources") or {}))
        for key in ("outputFiles", "outputDirs"):
            self._try(_strings, place.key(key), job.get(key))
        self._try(_inputs, place.key("inputs"), job.get("inputs"))
        self._try(_artifacts, place.key("artifacts"), job.get("artifacts"))

    def _policies(self, place: Place, given: Any, known: tuple[str, ...]) -> None:
        if isinstance(given, Mapping):
            for key in keys.NOTED_POLICIES:
                if given.get(key) is not None:
                    self.notes.append(f"{place.key(key).path}: says where in PROMINENCE's clouds to run; not used here")
        _policies(place, given, (*known, *keys.NOTED_POLICIES))


def factories_of(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The factories of a workflow in today's form: an older ``factory`` makes instances of all jobs."""
    old = document.get("factory")
    given = document.get("factories") or ()
    if old is not None:
        given = [{**old, "jobs": [job["name"] for job in document["jobs"]]}]
    found = []
    for each in given:
        new = dict(each)
        if "parameterSets" in new:
            new["parameters"] = new.pop("parameterSets")
        new["type"] = FACTORIES.get(new.get("type", ""), new.get("type"))
        found.append(new)
    return found


def _name(place: Place, name: Any) -> None:
    if name is None or name == "":
        return
    if not isinstance(name, str):
        place.fail(f"expected a string, got {kind(name)}")
    if len(name) > 190 or "/" in name or name.startswith(".") or not name.isprintable():
        place.fail(f"{name!r} cannot be a name", advice="no slash, no leading dot, at most 190 characters")


def _labels(place: Place, labels: Any) -> None:
    for key, value in object_at(place, labels or {}).items():
        if not isinstance(value, str):
            place.key(key).fail(f"expected a string, got {kind(value)}")


def _whole(place: Place, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        place.fail(f"expected a whole number, got {kind(value)}")
    if value < least:
        place.fail(f"must be at least {least}, got {value}")


def _above_zero(place: Place, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        place.fail(f"expected a number, got {kind(value)}")
    if value <= 0:
        place.fail(f"must be more than 0, got {value:g}")


def _resources(place: Place, given: Any) -> None:
    if given is None:
        return
    object_at(place, given, known=keys.RESOURCES)
    nodes = given.get("nodes", 1)
    _whole(place.key("nodes"), nodes, 1)
    if nodes > 1:
        place.key("nodes").fail(f"nodes={nodes}: a Work Queue job runs on one worker")
    _whole(place.key("cpus"), given.get("cpus", 1), 1)
    for key in ("memory", "memoryPerCpu", "disk", "walltime"):
        if given.get(key) is not None:
            _above_zero(place.key(key), given[key])


def _task(place: Place, task: Any, resources: Mapping[str, Any]) -> None:
    object_at(place, task, known=keys.TASK, hints=keys.HABITS)
    image = task.get("image")
    if image is not None and not isinstance(image, str | Mapping):
        place.key("image").fail(f"expected an environment or the name of a container image, got {kind(image)}")
    if task.get("runtime") is not None and task["runtime"] not in RUNTIMES:
        place.key("runtime").fail(f"expected one of {', '.join(RUNTIMES)}, got {kind(task['runtime'])}")
    if task.get("type") is not None and task["type"] not in TYPES:
        place.key("type").fail(f"expected one of {', '.join(TYPES)}, got {kind(task['type'])}")
    command = task.get("cmd")
    if command is not None:
        if not isinstance(command, str):
            place.key("cmd").fail(f"expected a string, got {kind(command)}")
        try:
            shlex.split(command)
        except ValueError as error:
            place.key("cmd").fail(f"cannot be split into words: {error}")
    for key, value in object_at(place.key("env"), task.get("env") or {}).items():
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            place.key("env").key(key).fail(f"expected a string, got {kind(value)}")
    if task.get("workdir") is not None and not isinstance(task["workdir"], str):
        place.key("workdir").fail(f"expected a string, got {kind(task['workdir'])}")
    processes = task.get("procsPerNode")
    if processes is not None:
        _whole(place.key("procsPerNode"), processes, 1)
        cpus = resources.get("cpus", 1)
        if isinstance(cpus, int) and processes > cpus:
            place.key("procsPerNode").fail(f"{processes} processes on {cpus} CPUs; ask for as many CPUs")


def _policies(place: Place, given: Any, known: tuple[str, ...]) -> None:
    if given is None:
        return
    object_at(place, given, known=known)
    for key in ("maximumTaskRetries", "maximumRetries"):
        if given.get(key) is not None:
            _whole(place.key(key), given[key], 0)
    if given.get("priority") is not None:
        _whole(place.key("priority"), given["priority"], -(10**9))
    limit = given.get("maximumTimeInQueue")
    if limit is not None and limit not in (0, -1):
        _above_zero(place.key("maximumTimeInQueue"), limit)
    for key in known:
        if key.startswith(("leave", "ignore", "run", "report")) and not isinstance(given.get(key, False), bool):
            place.key(key).fail(f"expected true or false, got {kind(given[key])}")


def _notifications(place: Place, given: Any) -> None:
    for position, each in enumerate(_list(place, given)):
        here = place.item(position)
        object_at(here, each, known=keys.NOTIFICATION)
        if each.get("event") not in ("jobFinished", "workflowFinished"):
            here.key("event").fail(f"expected jobFinished or workflowFinished, got {kind(each.get('event'))}")
        if each.get("type") != "email":
            here.key("type").fail(f"expected email, got {kind(each.get('type'))}")


def _list(place: Place, given: Any) -> list[Any]:
    if given is None:
        return []
    if not isinstance(given, list | tuple):
        place.fail(f"expected a list, got {kind(given)}")
    return list(given)


def _strings(place: Place, given: Any) -> None:
    for position, each in enumerate(_list(place, given)):
        if not isinstance(each, str) or not each:
            place.item(position).fail(f"expected the name of a file, got {kind(each)}")


def _inputs(place: Place, given: Any) -> None:
    for position, each in enumerate(_list(place, given)):
        here = place.item(position)
        object_at(here, each, known=keys.INPUT)
        if not isinstance(each.get("filename"), str):
            here.fail("each input must contain a filename")
        if not isinstance(each.get("content"), str):
            here.fail("each input must contain base64 encoded content")
        try:
            base64.b64decode(each["content"], validate=True)
        except (binascii.Error, ValueError):
            here.key("content").fail("is not base64")


def _artifacts(place: Place, given: Any) -> None:
    for position, each in enumerate(_list(place, given)):
        here = place.item(position)
        object_at(here, each, known=keys.ARTIFACT)
        if not isinstance(each.get("url"), str) or not each["url"]:
            here.fail("an artifact must contain a URL")
        mount = each.get("mountpoint")
        if mount is not None:
            directory, colon, target = str(mount).partition(":")
            if not colon or not directory or "/" in directory or directory in ("..", "."):
                here.key("mountpoint").fail(f"expected DIRECTORY:/ABSOLUTE/PATH, got {kind(mount)}")
            if not target.startswith("/") or ":" in target or "," in target:
                here.key("mountpoint").fail("the mountpoint for an artifact must be an absolute path")
