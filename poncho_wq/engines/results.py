"""What a task tells once it is done: the same properties whichever engine ran it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from poncho_wq.engines.core import Job
    from poncho_wq.engines.outcomes import Verdict
    from poncho_wq.engines.statistics import EnvironmentStats

__all__ = ["Results"]


class Results:
    """A base of each engine's ``PonchoTask``, which adds how the three below are known."""

    _job: Job

    def _judged(self) -> Verdict | None:
        """The verdict on a function task's latest run; None before it is done."""
        raise NotImplementedError

    def _went_well(self) -> bool:
        """Whether a command is done, with exit status 0 and all its outputs."""
        raise NotImplementedError

    def _collected(self) -> EnvironmentStats | None:
        """What the latest run brought back of its environment."""
        raise NotImplementedError

    def collect_environment_stats(self) -> None:
        """Have ``environment_stats`` come back with the task: one more small file.  Raises ``EngineError`` after
        submission."""
        self._job.collect_stats()

    @property
    def environment_stats(self) -> EnvironmentStats | None:
        """How the task came to its environment: whether it unpacked it, and how long it waited for that.

        None before the task is done, when ``collect_environment_stats`` was not called, and when nothing came back.
        TaskVine unpacks environments before their tasks: ``unpacked`` is never true there.
        """
        return self._collected()

    @property
    def output(self) -> Any:
        """A function's result, or the exception that it raised, or a ``TaskError``; a command's ``std_output``.

        None before the task is done.
        """
        if self._job.function is None:
            return self.std_output  # type: ignore[attr-defined] # the engine's
        verdict = self._judged()
        return None if verdict is None else verdict.value

    @property
    def outcomes(self) -> tuple[Verdict, ...] | None:
        """Of a task of ``map``, for each of its calls: ``value``, whether it ``returned`` that, and ``traceback``.

        None before the task is done, when its process left nothing, and for all other tasks.
        """
        verdict = None if self._job.function is None else self._judged()
        return None if verdict is None else verdict.items

    @property
    def traceback(self) -> str | None:
        """The function's traceback on the worker as text; empty when its process died without one; None when it
        returned, when the task is not done, and for commands."""
        verdict = None if self._job.function is None else self._judged()
        return None if verdict is None else verdict.traceback

    @property
    def returned(self) -> bool:
        """Whether the function returned: ``output`` is then its result, even if that is an exception object.

        For a command: whether it is done with exit status 0 and all its outputs are here.
        """
        if self._job.function is None:
            return self._went_well()
        verdict = self._judged()
        return verdict is not None and verdict.returned
