"""The keys of PROMINENCE's JSON, and refusing others: for ``from_dict``, and for ``checking`` of a document as a whole.

What a server adds where it describes a job or a workflow is passed over: prominence-eosc/prominence, list_jobs.py,
list_workflows.py and serializers.py of its frontend.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from poncho_wq.errors import SpecError
from poncho_wq.specs.document import Place, items_at, kind, object_at

_T = TypeVar("_T")

# What each kind of factory is called, and was called once.
FACTORIES = {"parameterSweep": "parameterSweep", "parametricSweep": "parameterSweep", "zip": "zip", "repeat": "repeat"}

JOB = (
    "name", "labels", "tasks", "resources", "policies", "inputs", "artifacts", "outputFiles", "outputDirs",
    "notifications",
)  # fmt: skip
WORKFLOW = ("name", "labels", "jobs", "dependencies", "factories", "factory", "policies", "notifications")
TASK = ("image", "cmd", "env", "workdir", "procsPerNode", "type", "runtime")
RESOURCES = ("nodes", "cpus", "memory", "memoryPerCpu", "disk", "walltime")
ARTIFACT = ("url", "mountpoint")
INPUT = ("filename", "content")
NOTIFICATION = ("event", "type")
FACTORY = ("name", "type", "jobs", "parameters", "parameterSets", "number")
PARAMETER = ("name", "start", "end", "step", "values")
JOB_POLICIES = (
    "maximumTaskRetries", "maximumRetries", "maximumTimeInQueue", "priority", "leaveInQueue", "ignoreTaskFailures",
    "ignoreTaskTailures", "runSerialTasksOnAllNodes", "reportJobSuccessOnTaskFailure",
)  # fmt: skip
WORKFLOW_POLICIES = ("maximumRetries", "leaveInQueue")
# Where in PROMINENCE's clouds a job runs.
NOTED_POLICIES = ("placement", "autoScalingType", "preemptible")
HABITS = {"command": "cmd", "output_files": "outputFiles", "output_directories": "outputDirs", "input_files": "inputs"}

_DESCRIBED = frozenset({
    "id", "status", "statusReason", "username", "events", "createTime", "startTime", "endTime", "elapsedTime",
    "execution", "parameters", "preemptible", "constraints", "progress",
})  # fmt: skip

TOP = Place("", None)


def fields(document: Any, known: Sequence[str]) -> Mapping[str, Any]:
    """The document, if it is an object that has none but these keys.  Raises ``SpecError``."""
    return object_at(TOP, document, known=known, hints={habit: key for habit, key in HABITS.items() if key in known})


def description(document: Any, known: Sequence[str]) -> Mapping[str, Any]:
    """A job or a workflow as a user writes it or a server describes it: what is the user's.  Raises ``SpecError``."""
    object_at(TOP, document)
    users = {key: value for key, value in document.items() if key not in _DESCRIBED}
    # A server says so of every job; what is mounted there would be missing here.
    if not users.get("storage"):
        users.pop("storage", None)
    return fields(users, known)


def each_of(document: Mapping[str, Any], key: str, make: Callable[[Any], _T]) -> list[_T]:
    """What ``make`` makes of each item of the list that ``key`` is, if it is there.  Raises ``SpecError``."""
    made = []
    for place, item in items_at(TOP.key(key), document.get(key) or None):
        with within(place):
            made.append(make(item))
    return made


def names_at(place: Place, value: Any) -> list[str]:
    """A list of names of jobs, which may be empty while nothing is created.  Raises ``SpecError``."""
    for where, item in items_at(place, value, expected="a list of names of jobs"):
        if not isinstance(item, str):
            where.fail(f"expected the name of a job, got {kind(item)}")
    return list(value or ())


@contextmanager
def within(place: Place) -> Iterator[None]:
    """Errors of what is read by itself, with the place where that stands in front of theirs."""
    try:
        yield
    except SpecError as error:
        path = error.path or ""
        dot = "." if path and not path.startswith("[") else ""
        raise SpecError(error.message, path=f"{place.path}{dot}{path}", advice=error.advice) from None
