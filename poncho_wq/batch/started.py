"""What the engines know of a task: whether it runs, and how it ended when it left nothing."""

from __future__ import annotations

from typing import Any

from poncho_wq.batch.outcome import Outcome, lost
from poncho_wq.engines.opened import Engine
from poncho_wq.engines.work_queue import REASONS

# work_queue_task_state_t: ready is 1, and from 2 it has been given to a worker.
_RUNNING = 2


def has_started(engine: Engine, task: Any) -> bool:
    """Whether a submitted task has been given to a worker."""
    if engine.kind == "local":
        return bool(task.execute_cmd_start)
    if engine.kind == "taskvine":
        # Its manager has a task_state, which calls what today's library does not export.
        return bool(task.get_metric("time_when_commit_start"))
    return int(engine.queue.task_state(task.id)) >= _RUNNING


def how_it_ended(task: Any) -> Outcome:
    """The outcome of a task that came back without the runner's result."""
    said = task.std_output or ""
    if hasattr(task, "exit_code"):  # TaskVine
        from poncho_wq.engines import taskvine

        return lost(task.exit_code, said, host=task.hostname or None, why=taskvine.REASONS.get(task.result))
    why = REASONS.get(task.result & ~0b110)
    return lost(task.return_status, said, host=task.hostname or None, why=why)
