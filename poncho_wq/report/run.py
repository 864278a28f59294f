"""A recorded run, read: each task with what the engine and the task itself tell of it.

Three witnesses are joined: the manager wrote down what it was about to submit, the engine which worker ran which
number and when, and the task its number and what it did with its time.  Each may be missing: a task that never ran told
nothing, a log may not have been kept, and what comes from a worker may be spoilt.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from poncho_wq.engines.statistics import Told, parse_told
from poncho_wq.errors import EngineError
from poncho_wq.recording import ENVIRONMENTS_NAME, FORMAT, RUN_NAME, TASKS_NAME, TOLD_NAME
from poncho_wq.report.log import Attempt, Log, read_log

# What a task tells is a few hundred bytes; nobody reads a gigabyte that it has written there.
_LONGEST = 64 * 1024
_NOBODY = Told(number=None, environment=None, times=None)


@dataclass(frozen=True, kw_only=True)
class Task:
    """``number`` is the engine's (None where nobody told), ``name`` the function's.  ``submitted`` and the times of
    ``attempt``, which is the last, are seconds since the Epoch.
    """

    number: int | None
    name: str
    environment: str
    submitted: float
    attempt: Attempt | None
    told: Told

    @property
    def worker(self) -> str | None:
        """The engine's name for it; without a log, its host's."""
        if self.attempt is not None:
            return self.attempt.worker
        return self.told.environment.host if self.told.environment is not None else None

    @property
    def unpacked(self) -> bool:
        """Whether this task had to unpack its environment itself."""
        return self.told.environment is not None and self.told.environment.unpacked

    @property
    def in_warm_interpreter(self) -> bool:
        """The wrapper was not needed: a forked child of a warm interpreter did it."""
        return self.told.environment is None and self.told.times is not None

    @property
    def span(self) -> tuple[float, float] | None:
        """When the task began on its worker and when it ended; None when neither witness tells."""
        if self.attempt is not None and self.attempt.ended is not None:
            return self.attempt.started, max(self.attempt.started, self.attempt.ended)
        times = self.told.times
        if times is None:
            return None
        before = times.start + (self.told.environment.total if self.told.environment is not None else 0.0)
        return times.at - before, times.at + times.load + times.call

    @property
    def seconds(self) -> float:
        """On the worker, from beginning to end; 0 when unknown."""
        return 0.0 if self.span is None else self.span[1] - self.span[0]

    @property
    def providing(self) -> float:
        """Seconds until the command could start: waiting for, unpacking and checking the environment."""
        attempt = self.attempt
        if attempt is not None and attempt.began is not None:
            return max(0.0, attempt.began - attempt.started)
        return self.told.environment.total if self.told.environment is not None else 0.0

    @property
    def failed(self) -> bool:
        """Whether it ended with anything but success and status 0."""
        found = self.attempt
        return found is not None and found.result is not None and (found.result != "SUCCESS" or found.status != 0)


@dataclass(frozen=True, kw_only=True)
class Run:
    """``facts`` are those of ``run.json``; ``environments`` by identity, as recorded."""

    directory: Path
    facts: Mapping[str, Any]
    environments: Mapping[str, Mapping[str, Any]]
    tasks: Sequence[Task]
    log: Log


def read_run(directory: str | Path, *, log: str | Path | None = None) -> Run:
    """The recording in ``directory``; ``log`` is the engine's transaction log when it is somewhere else.

    Raises ``EngineError`` when there is no recording, or one of a format that is not known.
    """
    place = Path(directory)
    try:
        facts = json.loads((place / RUN_NAME).read_text())
        lines = (place / TASKS_NAME).read_text(errors="replace").split("\n")[:-1]
        if facts["format"] != FORMAT:
            raise EngineError(
                f"{place}: is a recording of format {facts['format']}", advice="read it with the poncho_wq that made it"
            )
        environments = {}
        for path in sorted((place / ENVIRONMENTS_NAME).iterdir()):
            if not path.name.endswith(".partial"):
                environments[path.name] = json.loads(path.read_text())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EngineError(
            f"{place}: is not a recording of a run: {getattr(error, 'strerror', None) or error}",
            advice="record one: with poncho_wq.record(DIRECTORY, queue): …",
        ) from error
    found = _engine_log(place, facts, log)
    return Run(
        directory=place, facts=facts, environments=environments, tasks=tuple(_tasks(place, lines, found)), log=found
    )


def _engine_log(place: Path, facts: Mapping[str, Any], given: str | Path | None) -> Log:
    where = given if given is not None else facts.get("log")
    if where is None:
        return Log()
    try:
        with Path(place, where).open(errors="replace") as file:
            return read_log(file)
    except OSError as error:
        if given is not None:
            raise EngineError(f"{given}: {error.strerror or error}", advice="name the log with --log FILE") from error
        return Log()  # it was elsewhere, and is gone


def _tasks(place: Path, lines: Sequence[str], log: Log) -> Iterator[Task]:
    attempts = {attempt.task: attempt for attempt in log.attempts}
    for line in lines:
        try:
            facts = json.loads(line)
            told = _told(place / TOLD_NAME / str(int(facts["task"])))
            yield Task(
                number=told.number, name=str(facts["name"]), environment=str(facts["environment"]),
                submitted=float(facts["at"]), told=told,
                attempt=attempts.get(told.number) if told.number is not None else None,
            )  # fmt: skip
        except (ValueError, KeyError, TypeError):
            continue  # the last line, of a manager that was killed


def _told(path: Path) -> Told:
    try:
        with path.open("rb") as file:
            return parse_told(file.read(_LONGEST).decode(errors="replace"))
    except OSError:
        return _NOBODY
