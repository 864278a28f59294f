"""What came of a function task → what ``t.output`` shows: the result, or an exception that says what happened.

The same words whatever the engine: each tells what it knows of the task's end as an ``Ending``.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import Any

from poncho_wq.errors import TaskError
from poncho_wq.payload import Outcome

# How the wrapper ends when it, rather than the command, failed.  From the design's table of exit statuses.
_WRAPPER = {
    124: "waited too long for another task to unpack the environment",
    125: "the environment could not be provided",
    126: "the environment's python3 cannot be executed",
    127: "there is no python3 in the environment",
}
# Of the task's own output, what an error shows: enough for a traceback's end or the wrapper's words.
_TAIL = 2000


@dataclass(frozen=True, kw_only=True, slots=True)
class Ending:
    """How a task ended, as its engine saw it.

    ``status``: the exit status, or the number of the signal that ended it.  ``signal``: that signal, 0 when there was
    none, None where the engine cannot tell.  ``reason``: why the engine ended or gave up the task, None when it ran to
    its own end.  ``said``: its stdout and stderr.  ``host``: where it ran.
    """

    status: int
    said: str
    host: str | None = None
    signal: int | None = None
    reason: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """``value`` is for ``t.output``; ``traceback`` the worker's text, None when the function returned; ``returned``
    tells an exception that was raised from one that is the result.  ``items``: of a task with several calls, the same
    for each of them."""

    value: Any
    traceback: str | None = None
    returned: bool = False
    items: tuple[Verdict, ...] | None = None


def judge(outcome: Outcome | None, ending: Ending) -> Verdict:
    """What to show for a task that left ``outcome`` (None: nothing) and ended so."""
    if outcome is None:
        return Verdict(value=_nothing_left(ending), traceback="")
    if outcome.kind == "value":
        return Verdict(value=outcome.value, returned=True)
    if outcome.kind == "each":
        items = tuple(judge(item, ending) for item in outcome.items)
        return Verdict(value=[item.value for item in items], returned=True, items=items)
    error = TaskError(_words(outcome, ending), traceback=outcome.traceback, exit_status=ending.status, host=ending.host)
    if outcome.kind == "raised" and isinstance(outcome.value, BaseException):
        # As concurrent.futures does: an uncaught `raise t.output` shows the worker's traceback before the manager's.
        outcome.value.__cause__ = error
        return Verdict(value=outcome.value, traceback=outcome.traceback)
    return Verdict(value=error, traceback=outcome.traceback)


def _words(outcome: Outcome, ending: Ending) -> str:
    where = f" on {ending.host}" if ending.host else ""
    if outcome.kind == "raised":
        return f"the function raised {outcome.message}{where}; the traceback there:\n{outcome.traceback.rstrip()}"
    if outcome.kind == "exit":
        return f"the function ended its process with sys.exit({outcome.message}){where} and so has no result"
    return f"{outcome.message} (task{where})" if where else outcome.message


def _nothing_left(ending: Ending) -> TaskError:
    """The process left no result: it was ended, or never began."""
    where = f" on {ending.host}" if ending.host else ""
    status = ending.status
    if ending.reason is not None:
        message = f"the task has no result: {ending.reason}{where}"
    elif ending.signal:
        message = f"the task's process was ended by signal {_signal_name(ending.signal)}{where}"
    elif status in _WRAPPER:
        message = f"{_WRAPPER[status]}{where} (exit status {status})"
    elif status == 0:
        message = f"the task's process ended without a result{where} (exit status 0, as after os._exit(0))"
    elif ending.signal is None and status < 65:
        # Work Queue reports `exit 9` and `kill -9` alike; 64 is Linux's last signal.
        message = (
            f"the task's process ended without a result{where}: either its exit status was {status} or signal "
            f"{_signal_name(status)} ended it"
        )
    else:
        message = f"the task's process ended without a result{where} (exit status {status})"
    if signal.SIGKILL in (ending.signal, None if ending.signal == 0 else status) and ending.reason is None:
        advice = "signal 9 often means that the machine was short of memory: specify_memory says what a task needs"
    elif ending.signal is None:
        advice = "submit it to a poncho_wq.LocalQueue to see it happen on this machine"
    else:
        advice = "what it printed before is in the task's std_output"
    said = ending.said.strip()
    if said:
        message += "; it said:\n" + (said if len(said) <= _TAIL else "…" + said[-_TAIL:])
    return TaskError(message, exit_status=status, host=ending.host, advice=advice)


def _signal_name(number: int) -> str:
    try:
        return f"{number} ({signal.Signals(number).name})"
    except ValueError:
        return str(number)
