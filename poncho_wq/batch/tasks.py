"""A job → the engine's task: its environment, its files, one command.

The command is ``python3 poncho-job-runner.py``, run by the Python of the job's environment, or, where that has none, of
the smallest environment that can be built.  Inputs come from the spool by their content, cached on the worker; the one
output is the runner's RESULT.tar.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poncho_wq import staging
from poncho_wq.batch.model import Batch, Input, Job, Step
from poncho_wq.batch.spool import Spool
from poncho_wq.engines.core import prepared
from poncho_wq.engines.opened import Engine, Needs
from poncho_wq.engines.shipping import ship
from poncho_wq.errors import EngineError
from poncho_wq.wrapper import wrapper_digest, wrapper_path

if TYPE_CHECKING:
    from poncho_wq.prepare import Environment

RESULT = "poncho-result.tar"
# No conda section and no packages: this Python and its standard library.
SMALLEST: dict[str, Any] = {"pip": []}


@dataclass(frozen=True, kw_only=True, slots=True)
class Companion:
    """A Python file that goes with every job, and runs beside its steps: see ``job_runner._attach``."""

    path: Path


@dataclass(frozen=True, kw_only=True, slots=True)
class Submission:
    """One attempt of a job, and the numbers it has in the journal.  ``results``: where the results of other jobs of
    the batch are.  ``facts``: for the companion, as JSON."""

    batch: Batch
    job: Job
    batch_id: int
    job_id: int
    attempt: int
    results: Path
    companion: Companion | None = None
    facts: Mapping[str, Any] | None = None


def keep_inputs(batch: Batch, spool: Spool) -> Batch:
    """The same batch with the files of its inputs kept in the spool, by content; each file is copied, and each URL
    fetched, once.

    Raises ``EngineError`` when one cannot be read, ``FetchError`` when one cannot be had.
    """
    from dataclasses import replace

    kept: dict[str, str] = {}

    def keep(item: Input) -> Input:
        source = item.path or item.url
        if source is None:
            return item
        if source not in kept:
            kept[source] = spool.keep(source) if item.url is None else spool.fetch(source)
        return replace(item, path=kept[source], url=None)

    return replace(batch, jobs=tuple(replace(job, inputs=tuple(map(keep, job.inputs))) for job in batch.jobs))


def environments(batch: Batch) -> list[Any]:
    """Everything that the batch's jobs and steps are to run in, each once, the batch's own first."""
    found: list[Any] = [_or_smallest(batch.environment)]
    for job in batch.jobs:
        for each in (job.environment, *(step.environment for step in job.steps)):
            if each is not None and each not in found:
                found.append(each)
    return found


def make_task(engine: Engine, spool: Spool, submission: Submission) -> Any:
    """A task ready to be submitted.  Raises what preparing the environment raises, ``EngineError`` for an input of
    another job that is not there, or what the engine cannot do."""
    job = submission.job
    env = prepared(_or_smallest(job.environment or submission.batch.environment))
    outer = env if env.python or env.platform is None else prepared(SMALLEST)
    files = _Files(engine)
    description = _description(spool, submission, files)
    description["steps"] = [_step(step, env, outer, files) for step in job.steps]
    text = json.dumps(description).encode()
    described = staging.share("poncho-job", text, ".json")
    runner = _runner()
    files.cached(runner.path, runner.name)
    command = f"exec python3 -s {runner.name} {described.name} {RESULT}"
    # The paths of every cached name must differ by content: an engine knows a cached file by its path.
    task = engine.PonchoTask(command, environment=outer)
    task.collect_environment_stats()
    files.own(described.path, described.name)
    files.attach(task)
    output = spool.returned(submission.job_id, submission.attempt)
    output.unlink(missing_ok=True)
    if engine.kind == "taskvine":
        task.add_output(engine.queue.declare_file(str(output)), RESULT)
        task.set_tag(f"{submission.batch_id}/{submission.job_id}")
    else:
        task.specify_output_file(str(output), RESULT, cache=False)
        task.specify_tag(f"{submission.batch_id}/{submission.job_id}")
    # Held, so that these files stay for as long as the task does.
    task.poncho_batch_files = (described, runner)
    _place(engine, task, job, submission.job_id)
    return task


# More than there are jobs; both together are exact in an engine's double for priorities up to nine million.
_PRIORITY = 1e9


class Unplaceable(EngineError):
    """No worker of this engine can ever hold the task, and the engine knows."""


def _place(engine: Engine, task: Any, job: Job, number: int) -> None:
    """Tell the task what it asks of its worker.  Raises ``Unplaceable``."""
    needs = job.resources
    if engine.kind == "local" and needs.cores > engine.capacity().cores:
        raise Unplaceable(f"{needs.cores} cores are more than this machine was said to have")
    features = list(job.features)
    if engine.kind == "local" and needs.gpus and not _has_gpu():
        features.append("gpu")
    # Work Queue starts the latest of equal tasks first, and so would starve the oldest of them.
    priority = job.policies.priority * _PRIORITY - number
    wanted = Needs(
        cores=needs.cores, memory=needs.memory, disk=needs.disk, gpus=needs.gpus or None, features=tuple(features),
        priority=priority,
    )  # fmt: skip
    try:
        engine.need(task, wanted)
    except EngineError as error:
        raise Unplaceable(error.message) from error


def _has_gpu() -> bool:
    return any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/kfd").exists()


class _Files:
    """The inputs of a task, by the engine's own means."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._wanted: dict[str, tuple[str, bool]] = {}

    def cached(self, path: str, name: str) -> str:
        self._wanted[name] = path, True
        return name

    def own(self, path: str, name: str) -> str:
        self._wanted[name] = path, False
        return name

    def attach(self, task: Any) -> None:
        for name, (path, cached) in self._wanted.items():
            if self._engine.kind == "taskvine":
                task.add_input(_declared(self._engine.queue, path, cached), name)
            else:
                task.specify_input_file(path, name, cache=cached)


def _declared(manager: Any, path: str, cached: bool) -> Any:
    """TaskVine's file, declared once for each manager where tasks share it."""
    if not cached:
        return manager.declare_file(path, cache=False)
    known: dict[str, Any] = manager.__dict__.setdefault("_poncho_batch_files", {})
    if path not in known:
        known[path] = manager.declare_file(path, cache=True)
    return known[path]


def _description(spool: Spool, submission: Submission, files: _Files) -> dict[str, Any]:
    job, batch = submission.job, submission.batch
    companion = submission.companion
    return {
        "format": 1,
        "facts": {
            "job_id": submission.job_id, "batch_id": submission.batch_id, "job_name": job.name,
            "batch_name": batch.name, "attempt": submission.attempt, "cores": job.resources.cores,
            "memory": job.resources.memory or "",
        },
        "exports": dict(job.exports),
        "lock": [_boot_id(), str(spool.job_lock(submission.job_id))],
        "walltime": job.resources.walltime,
        "step_retries": job.policies.step_retries,
        "ignore_step_failures": job.policies.ignore_step_failures,
        "inputs": [_input(item, spool, submission, files) for item in job.inputs],
        "directories": list(job.directories),
        "outputs": [asdict(output) for output in job.outputs],
        "companion": None if companion is None else files.cached(str(companion.path), companion.path.name),
        "companion_facts": dict(submission.facts or {}),
    }  # fmt: skip


def _input(item: Input, spool: Spool, submission: Submission, files: _Files) -> dict[str, Any]:
    if item.content is not None:
        shared = _content(item.content)
        source, name = Path(shared.path), shared.name
    elif item.job is not None:
        source = submission.results / item.job / str(item.output)
        if not source.is_file():
            raise EngineError(f"{source}: the results of the job {item.job} do not have this file")
        # One for all jobs that take it, and another when that job is run again.
        facts = source.stat()
        name = "in-" + hashlib.sha256(f"{source}\0{facts.st_ino}\0{facts.st_mtime_ns}".encode()).hexdigest()[:32]
        source = Path(staging.link(name, source))
    else:
        name = "in-" + str(item.path)[:32] + ("x" if str(item.path).endswith("x") else "")
        source = spool.kept(str(item.path))
        if not source.is_file():
            raise EngineError(f"{source}: an input of the batch is no longer in its spool")
    files.cached(str(source), name)
    executable = item.content is None and bool(source.stat().st_mode & 0o100)
    return {"file": name, "name": item.name, "unpack": item.unpack, "executable": executable}


@cache
def _content(content: bytes) -> staging.SharedFile:
    # Kept for as long as the process: jobs of a sweep share most of it, and a path must never get another content.
    return staging.share("in", content)


@cache
def _runner() -> staging.SharedFile:
    return staging.share("poncho-job-runner", Path(__file__).with_name("job_runner.py").read_bytes(), ".py")


@cache
def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _or_smallest(given: Any) -> Any:
    return SMALLEST if given is None else given


def _step(step: Step, env: Environment, outer: Environment, files: _Files) -> dict[str, Any]:
    """A step in the environment around the runner needs nothing; another one brings its own, and the wrapper."""
    own = env if step.environment is None else prepared(step.environment)
    described: dict[str, Any] = {
        "argv": list(step.argv), "inside": list(step.inside), "env": dict(step.env), "cwd": step.cwd,
        "sidecar": step.sidecar,
    }  # fmt: skip
    if own.identity != outer.identity:
        # By other names than the files of the environment around it, some of which may be the same.
        shipment = ship(own.tarball, own.identity)
        parts = [(path, f"poncho-step-{name}") for path, name in shipment.files]
        wrapper = f"poncho-step-wrapper-{wrapper_digest()[:12]}"
        for path, name in parts:
            files.cached(path, name)
        files.cached(staging.link(wrapper, wrapper_path()), wrapper)
        described["environment"] = {
            "parts": [name for _, name in parts], "ranges": shipment.ranges, "wrapper": wrapper,
            "identity": own.identity,
        }  # fmt: skip
    return described


def words_of(command: tuple[str, ...]) -> str:
    """A command as a person would type it."""
    return shlex.join(command)
