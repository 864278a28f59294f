"""What a batch is: frozen values, no files, no clock, no engine.

Front ends (``distribute``, ``prominence``) make a ``Batch``; scheduler, journal and manager know nothing else of where
it came from.  ``check`` reports everything that is wrong with one, together.  The terms: a *step* is one command, a
*job* its steps in order in one directory (its home) on one worker, a *batch* jobs with dependencies among them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from poncho_wq.batch.cycles import find_cycle
from poncho_wq.errors import BatchError, SpecError

WALLTIME = "Walltime limit exceeded"
QUEUED_TOO_LONG = "Maximum time queued was exceeded"
DELETED = "Job deleted by user"
STALLED = "None of the nodes could run the jobs. Aborted"

# What the runner can tell the commands of a job; see ``Job.exports``.
FACTS = ("job_id", "batch_id", "job_name", "batch_name", "attempt", "cores", "memory", "home", "host")

_NAME = re.compile(r"[^/\x00-\x1f]{1,200}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class State(str, Enum):
    """Of a job.  ``waiting`` for other jobs, ``idle`` in our queue, ``submitted`` to the engine, ``running``; then one
    of those that are ``final``.  ``skipped``: a job that it depends on did not complete."""

    WAITING = "waiting"
    IDLE = "idle"
    SUBMITTED = "submitted"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    KILLED = "killed"
    DELETED = "deleted"
    SKIPPED = "skipped"

    @property
    def final(self) -> bool:
        """Whether the job is over; only a rerun leads out of such a state."""
        return self not in (State.WAITING, State.IDLE, State.SUBMITTED, State.RUNNING)


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One command.  ``argv`` is never seen by a shell; its first word is looked up on the environment's PATH.

    ``env`` is set for this command; ``cwd`` is relative to the job's home and made when missing.  ``sidecar`` commands
    start before the others and are ended after them; how they end does not count.  ``environment``: anything that
    ``poncho_wq.environment`` takes, as a path or a dictionary; None for the job's own.  ``inside``: words before the
    command that bring it into a container, for whatever else is to be run where this command runs.
    """

    argv: tuple[str, ...]
    inside: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str = "."
    sidecar: bool = False
    environment: str | Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Input:
    """A file in the job's home, called ``name`` there.  Exactly one of the next four says where it comes from.

    ``path``: a file of this machine, as it is when the batch is handed in.  ``url``: what is there (http, https, file)
    when the batch is handed in.  ``content``: these bytes.  ``job``: the file ``output`` among the results of that job
    of the batch, which must be in ``after``.  ``unpack``: it is a tar or zip archive, and ``name`` the directory
    (``"."`` for the home) that it is unpacked in; or one file compressed by itself, and ``name`` that file.  Later
    inputs replace earlier ones.
    """

    name: str
    path: str | None = None
    content: bytes | None = None
    job: str | None = None
    output: str | None = None
    unpack: bool = False
    url: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Output:
    """What comes back from a job's home: files whose path matches the glob ``pattern`` (``**`` crosses directories).

    A directory that matches comes back with all that is in it.  ``contents``: what is in the directory ``pattern``,
    without its name.  ``archive``: each directory that matches comes back as one file ``NAME.tar.gz`` (``as_name``
    names it otherwise), ``exclude`` being top-level names left out.  ``required``: the job failed when nothing matches.
    """

    pattern: str
    contents: bool = False
    archive: bool = False
    as_name: str | None = None
    exclude: tuple[str, ...] = ()
    required: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Resources:
    """What a job takes of its worker: ``cores``, ``memory`` and ``disk`` in MB (None: not said), ``gpus``, and
    ``walltime`` in seconds that all its steps together may run (None: no limit)."""

    cores: int = 1
    memory: int | None = None
    disk: int | None = None
    gpus: int = 0
    walltime: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Policies:
    """How a job is treated.

    ``step_retries``: a step that fails is run again in place so often.  ``job_retries``: a job that fails is run again
    from the start so often.  ``ignore_step_failures``: the steps after one that failed are run all the same.
    ``fail_on_exit``: a non-zero exit status or a signal makes the job failed; otherwise it is completed, with that
    status, and run again before only with ``retry_on_exit``.  ``max_queue``: seconds that it may be idle before it runs
    (None: any).  ``may_stall``: it is given up when none of the connected workers takes it for long; otherwise it waits
    for one that does.  ``priority``: higher first.
    """

    step_retries: int = 0
    job_retries: int = 0
    ignore_step_failures: bool = False
    fail_on_exit: bool = True
    retry_on_exit: bool = False
    max_queue: float | None = None
    may_stall: bool = True
    priority: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Notification:
    """Tell somebody when a job or the batch is over.  ``kind``: ``matrix``, ``email``; ``to``: whom, as that kind has
    it (empty: whoever is configured)."""

    kind: str
    to: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """Steps in order in one home on one worker.

    ``after``: names of jobs of the batch that must be completed before.  ``features``: what the worker must offer.
    ``environment``: what its steps run in, as of ``Step``; None for the batch's.  ``directories`` are made in the home
    before the steps.  ``exports``: environment variables of all steps that hold a fact known only when it runs,
    ``{variable: one of FACTS}``.
    """

    name: str
    steps: tuple[Step, ...]
    inputs: tuple[Input, ...] = ()
    outputs: tuple[Output, ...] = ()
    resources: Resources = Resources()
    features: tuple[str, ...] = ()
    policies: Policies = Policies()
    after: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    environment: str | Mapping[str, Any] | None = None
    directories: tuple[str, ...] = ()
    exports: Mapping[str, str] = field(default_factory=dict)
    notifications: tuple[Notification, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Jobs with names of their own.  ``environment``: what they run in unless they say otherwise; None is the smallest
    that there is: this Python and its standard library.  ``namespace`` groups batches."""

    name: str
    jobs: tuple[Job, ...]
    environment: str | Mapping[str, Any] | None = None
    namespace: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    notifications: tuple[Notification, ...] = ()


def check(batch: Batch, *, source: str | None = None) -> None:
    """Raise ``BatchError`` with everything that is wrong, each with its place; ``source`` is where it was read."""
    found = problems(batch, source=source)
    if found:
        raise BatchError(found)


def problems(batch: Batch, *, source: str | None = None) -> list[SpecError]:
    """What ``check`` would raise, as a list; empty for a good batch."""
    report = _Report(source)
    report.name("name", batch.name)
    if batch.namespace:
        report.name("namespace", batch.namespace)
    if not batch.jobs:
        report.add("jobs", "a batch needs at least one job")
    seen: set[str] = set()
    twice: set[str] = set()
    for job in batch.jobs:
        (twice if job.name in seen else seen).add(job.name)
    for name in sorted(twice):
        report.add("jobs", f'all jobs must have unique names: "{name}" is used more than once')
    for position, job in enumerate(batch.jobs):
        _check_job(job, f"jobs[{position}]", seen, report)
    cycle = find_cycle({job.name: job.after for job in batch.jobs})
    if cycle:
        report.add("jobs", f"dependency cycle: {' -> '.join(cycle)}")
    return report.found


class _Report:
    def __init__(self, source: str | None) -> None:
        self.source = source
        self.found: list[SpecError] = []

    def add(self, place: str, message: str, advice: str | None = None) -> None:
        self.found.append(SpecError(message, path=place, source=self.source, advice=advice))

    def name(self, place: str, name: str) -> None:
        if not _NAME.fullmatch(name) or name.startswith("."):
            self.add(place, f"{name!r} cannot be the name of a directory", "no slash, no leading dot, not empty")

    def inside(self, place: str, path: str) -> None:
        if not path or path.startswith("/") or ".." in path.split("/") or not _can_be_passed(path):
            self.add(place, f"{path!r}: a path in the job's home is relative and stays inside it")

    def least(self, place: str, value: float | None, least: float) -> None:
        if value is not None and not value >= least:
            self.add(place, f"expected a number from {least:g}, got {value:g}")


def _check_job(job: Job, place: str, names: set[str], report: _Report) -> None:
    report.name(f"{place}.name", job.name)
    if not any(not step.sidecar for step in job.steps):
        report.add(f"{place}.steps", "a job needs at least one step that is no sidecar")
    for n, step in enumerate(job.steps):
        here = f"{place}.steps[{n}]"
        if not step.argv or not step.argv[0]:
            report.add(f"{here}.argv", "there is no command")
        if not all(map(_can_be_passed, (*step.argv, *step.inside))):
            report.add(f"{here}.argv", "a command cannot hold a NUL character, or half of a pair of surrogates")
        report.inside(f"{here}.cwd", step.cwd)
        for variable, value in step.env.items():
            _check_variable(f"{here}.env", variable, report)
            if not _can_be_passed(value):
                report.add(f"{here}.env.{variable}", "a value cannot hold a NUL character, or half of a surrogate pair")
    for variable, fact in job.exports.items():
        _check_variable(f"{place}.exports", variable, report)
        if fact not in FACTS:
            report.add(f"{place}.exports.{variable}", f"{fact!r} is none of {', '.join(FACTS)}")
    for n, given in enumerate(job.inputs):
        here = f"{place}.inputs[{n}]"
        report.inside(f"{here}.name", given.name)
        if sum(source is not None for source in (given.path, given.url, given.content, given.job)) != 1:
            report.add(here, "expected one of path, url, content and job")
        if given.job is not None and (given.job not in job.after or not given.output):
            report.add(here, f"takes a file of {given.job!r}, so that must be in after, and the output be named")
    for name in job.directories:
        report.inside(f"{place}.directories", name)
    for n, output in enumerate(job.outputs):
        report.inside(f"{place}.outputs[{n}].pattern", output.pattern)
        if output.as_name is not None:
            report.inside(f"{place}.outputs[{n}].as_name", output.as_name)
    for name in dict.fromkeys(job.after):
        if name not in names:
            report.add(f"{place}.after", f'parent job "{name}" is not defined')
    needs, policies = job.resources, job.policies
    report.least(f"{place}.resources.cores", needs.cores, 1)
    report.least(f"{place}.resources.memory", needs.memory, 1)
    report.least(f"{place}.resources.disk", needs.disk, 1)
    report.least(f"{place}.resources.gpus", needs.gpus, 0)
    report.least(f"{place}.resources.walltime", needs.walltime, 0)
    report.least(f"{place}.policies.step_retries", policies.step_retries, 0)
    report.least(f"{place}.policies.job_retries", policies.job_retries, 0)
    report.least(f"{place}.policies.max_queue", policies.max_queue, 0)


def _can_be_passed(word: str) -> bool:
    """Whether the kernel takes it as an argument: no NUL, and characters that have a form in bytes."""
    try:
        return b"\0" not in word.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False


def _check_variable(place: str, name: str, report: _Report) -> None:
    if not _VARIABLE.fullmatch(name):
        report.add(place, f"{name!r} cannot be the name of an environment variable")
