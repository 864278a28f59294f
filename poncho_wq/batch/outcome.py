"""What came back from a worker → what became of the job, in words.  ``judge`` decides; ``read`` reads the file."""

from __future__ import annotations

import json
import signal
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from poncho_wq.batch.model import WALLTIME, Job, State

# Of standard error, what the journal keeps for people to look at.
TAIL = 4000
# Bytes of a result.json: far more than a job of ten thousand steps has.
_LONGEST = 16 << 20
# How the wrapper ends when it, rather than the runner, failed.  From the design's table of exit statuses.
_WRAPPER = {
    124: "waited too long for another task to unpack the environment",
    125: "the environment could not be provided on the worker",
    126: "the environment's python3 cannot be executed on the worker",
    127: "the environment has no python3",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """Of one attempt.  ``state`` is final; ``exit_code`` and ``signal`` are of the step that failed, or the last.
    ``started`` and ``ended`` by the worker's clock; ``facts`` is the runner's ``result.json``, empty if there is none.
    """

    state: State
    reason: str | None = None
    exit_code: int | None = None
    signal: int | None = None
    host: str | None = None
    worker: str | None = None
    started: float | None = None
    ended: float | None = None
    stderr_tail: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


def read(returned: Path, job: Job) -> Outcome | None:
    """What the runner left in ``returned``; None when that is not there or not whole."""
    try:
        with tarfile.open(returned, "r:") as tar:
            facts = understood(json.loads(_member(tar, "result.json").read(_LONGEST)), job)
            try:
                stderr = _member(tar, "stderr.txt")
            except KeyError:
                tail = ""
            else:
                stderr.seek(max(0, tar.getmember("stderr.txt").size - TAIL))
                tail = stderr.read().decode(errors="replace")
    except (OSError, KeyError, ValueError, RecursionError, tarfile.TarError):
        return None
    return judge(facts, tail, job)


def understood(facts: Any, job: Job) -> Mapping[str, Any]:
    """``facts`` as the runner writes them; they come from a worker.  Raises ``ValueError`` for anything else."""
    if not isinstance(facts, dict):
        raise ValueError("no result")
    for name, kinds in _FACTS.items():
        if name not in facts or not isinstance(facts[name], kinds):
            raise ValueError(f"{name} of a result is {facts.get(name)!r:.80}")
    for record in facts["steps"]:
        step = record.get("step") if isinstance(record, dict) else None
        if not isinstance(step, int) or step not in range(len(job.steps)):
            raise ValueError("a result of a step that the job does not have")
        if not all(name in record and isinstance(record[name], (int, type(None))) for name in ("exit_code", "signal")):
            raise ValueError("a step that ended in no known way")
    if not all(isinstance(each, str) for each in facts["missing"]):
        raise ValueError("outputs without names are missing")
    return facts


def _member(tar: tarfile.TarFile, name: str) -> Any:
    stream = tar.extractfile(name)
    if stream is None:
        raise KeyError(name)
    return stream


_TEXT: tuple[type, ...] = (str,)
_FACTS: dict[str, tuple[type, ...]] = {
    "outcome": _TEXT, "problem": (str, type(None)), "steps": (list,), "missing": (list,), "host": _TEXT,
    "worker": _TEXT, "started": (int, float), "ended": (int, float),
}  # fmt: skip


def judge(facts: Mapping[str, Any], stderr_tail: str, job: Job) -> Outcome:
    """The runner's facts and the job's policies → how the job ended."""
    steps = [record for record in facts["steps"] if not job.steps[record["step"]].sidecar]
    failed = next((record for record in steps if record["exit_code"] != 0), None)
    shown = failed or (steps[-1] if steps else {"exit_code": None, "signal": None})
    state, reason = State.COMPLETED, None
    if facts["outcome"] == "walltime":
        state, reason = State.KILLED, WALLTIME
    elif facts["outcome"] == "inputs":
        state, reason = State.FAILED, facts["problem"]
    elif failed is not None:
        reason = f"exit {failed['exit_code']}" if failed["signal"] is None else _signal_words(failed["signal"])
        state = State.FAILED if job.policies.fail_on_exit else State.COMPLETED
    elif facts["problem"]:
        state, reason = State.FAILED, facts["problem"]
    elif facts["missing"]:
        state, reason = State.FAILED, f"no such output: {', '.join(facts['missing'])}"
    return Outcome(
        state=state, reason=reason, exit_code=shown["exit_code"], signal=shown["signal"], host=facts["host"],
        worker=facts["worker"], started=facts["started"], ended=facts["ended"], stderr_tail=stderr_tail, facts=facts,
    )  # fmt: skip


def lost(status: int | None, said: str, *, host: str | None = None, why: str | None = None) -> Outcome:
    """The attempt left nothing: the engine gave it up (``why``), the environment failed, or the worker did.

    ``status``: the exit status that the engine saw, ``said`` the task's own output, where such things are said.
    """
    if why is None:
        why = _WRAPPER.get(status or 0, f"the job's runner ended without a result (status {status})")
    where = f" on {host}" if host else ""
    return Outcome(state=State.FAILED, reason=f"{why}{where}", host=host, stderr_tail=said[-TAIL:])


def _signal_words(number: int) -> str:
    try:
        return f"signal {number}, {signal.Signals(number).name}"
    except ValueError:
        return f"signal {number}"
