"""TaskVine: ``m.submit(PonchoTask(f, x))``, and calls of the functions of a library.

The same ``Job`` as for Work Queue, with another way to the environment: TaskVine unpacks the tarball once a worker, in
a task of its own, mounts it in a task's sandbox and puts its ``bin/run_in_env`` before the command.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poncho_wq import payload
from poncho_wq.chunks import Chunksize, Each, tasks_of
from poncho_wq.engines import vine_manager
from poncho_wq.engines.core import Job
from poncho_wq.engines.outcomes import Ending, Verdict, judge
from poncho_wq.engines.results import Results
from poncho_wq.engines.statistics import EnvironmentStats
from poncho_wq.engines.vine_manager import Shared, declare_environment, find_taskvine
from poncho_wq.errors import EngineError, EngineNotInstalled

if TYPE_CHECKING:
    from poncho_wq.prepare import Environment, EnvironmentLike

    Manager: Any
    _Task: Any
    _Call: Any
else:
    try:
        _vine = find_taskvine()
    except EngineNotInstalled as _missing:
        _why = _missing

        class Manager:
            """Stands where TaskVine's class would be, and says how to get it."""

            def __init__(self, *args: Any, **kwargs: Any) -> None:
                raise EngineNotInstalled(_why.message, engine="taskvine", advice=_why.advice)

        _Task = _Call = Manager
    else:
        Manager, _Task, _Call = _vine.Manager, _vine.Task, _vine.FunctionCall

__all__ = ["FunctionCall", "Manager", "PonchoTask", "declare_environment"]

# What TaskVine says of a task that did not come to its own end.
REASONS = {
    "cancelled": "it was cancelled",
    "fixed location missing": "no worker had a file that it must run beside",
    "forsaken": "it was lost with its worker, or never started, as often as set_max_forsaken allows",
    "input missing": "an input could not be provided",
    "library exit": "its library ended",
    "max end time": "its end time passed",
    "max retries": "it failed as often as set_retries allows",
    "max wall time": "it ran for longer than set_time_max allows",
    "missing library": "there is no library of that name",
    "monitor error": "the resource monitor failed",
    "output transfer error": "its output could not be brought to the manager",
    "resource exhaustion": "it used more than the resources it was given",
    "sandbox exhaustion": "its sandbox used more disk than it was given",
}


class PonchoTask(Results, _Task):  # type: ignore[misc] # that base is whatever the binding has
    """A TaskVine task that runs in an environment prepared for it.

    ``PonchoTask(function, *args, **kwargs)`` calls the function on a worker.  Its environment is analyzed from the
    function unless ``environment=E`` is given, which is the function's own argument if it takes one of that name; then
    use ``specify_environment(E)``.  ``PonchoTask("shell text", environment=E)`` runs any command, all of it inside the
    environment.  ``E`` is anything that ``poncho_wq.environment`` takes.  Everything else that TaskVine's ``Task`` can
    do works as there.

    Raises ``TypeError`` when the function does not take these arguments, ``EngineError`` when they cannot be sent.
    """

    # For TaskVine's `__del__` of a task that could not be made.
    _task: Any = None

    def __init__(self, work: Callable[..., Any] | Each | str, /, *args: Any, **kwargs: Any) -> None:
        self._files: list[Shared] = []
        self._contexts: list[Any] = []
        self._submitted = False
        self._verdict: Verdict | None = None
        self._stats: EnvironmentStats | None = None
        self._job = Job(work, args, kwargs)
        super().__init__(self._job.command or "")

    @classmethod
    def map(
        cls,
        function: Callable[..., Any],
        /,
        *iterables: Iterable[Any],
        chunksize: Chunksize = 1,
        environment: EnvironmentLike | None = None,
    ) -> Iterator[Any]:
        """Tasks for ``map(function, *iterables)``, ``chunksize`` calls in each, made one by one as you ask for them.

        ``"auto"`` begins with single calls, and fills later tasks by what those took that have come back: so ask for a
        task when there is room for one.  A task's ``output`` is the list of its results, with the exceptions of those
        that raised; its ``outcomes`` tell the two apart.  ``environment`` is as of ``PonchoTask``.

        Raises ``ValueError`` for a ``chunksize`` below 1, and for each task what ``PonchoTask`` does.
        """

        def make(each: Each, calls: list[tuple[Any, ...]]) -> Any:
            return cls(each, calls, environment=environment)

        return tasks_of(make, function, zip(*iterables, strict=False), chunksize)

    def __repr__(self) -> str:
        function = self._job.function
        what = getattr(function, "__qualname__", repr(function)) if function is not None else repr(self._job.command)
        return f"<PonchoTask {what}>"

    # -- environment and submission

    def specify_environment(self, E: EnvironmentLike) -> None:
        """Run in ``E``: anything that ``poncho_wq.environment`` takes.  Raises ``EngineError`` after submission."""
        self._job.set_environment(E)

    def set_command(self, command: str) -> None:
        """Replace the text of a command task.  Raises ``EngineError`` for a function task, and after submission."""
        self._job.set_command(command)
        super().set_command(command)

    @property
    def environment(self) -> Environment | None:
        """The environment that the task runs in; None before submission."""
        return self._job.plan.environment if self._job.plan is not None else None

    def add_execution_context(self, f: Any) -> None:
        """TaskVine's own: run inside what ``f`` holds, around our environment; of several the first is innermost.

        Raises ``EngineError`` after submission.
        """
        if self._submitted:
            raise EngineError("the task has been submitted: its environment can no longer change")
        self._contexts.append(f)

    add_environment = add_poncho_package = add_starch_package = add_execution_context

    def submit_finalize(self) -> None:
        """Work out the environment and attach its files.  The manager calls this; it raises before it submits."""
        super().submit_finalize()
        if self._submitted:
            raise EngineError("TaskVine takes a task once", advice="make another PonchoTask of the same")
        plan = self._job.prepare(vine_manager.means())
        # Last what cannot be undone: a task that could not be submitted can be corrected and submitted again.
        environment = vine_manager.declare(self.manager, plan.environment)
        shared = vine_manager.declared_to(self.manager)
        cached = [(shared.share(self.manager, path), name) for path, name in plan.cached]
        own = [(self._declare(path), name) for path, name in plan.inputs]
        own += [(self._declare_buffer(text), name) for text, name in plan.buffers]
        outputs = [(self._declare(path), name) for path, name in plan.outputs]
        for file, name in (*cached, *own):
            self.add_input(file.file, name)
        for file, name in outputs:
            self.add_output(file.file, name)
        self._files = [file for file, _ in (*cached, *own, *outputs)]
        super().set_command(plan.command)
        super().add_execution_context(environment)
        directory = vine_manager.mounted(self.command)
        for context in self._contexts:
            super().add_execution_context(context)
        super().set_command(plan.before + vine_manager.checked(self.command, directory, plan.environment))
        self._submitted = True

    def _declare(self, path: str) -> Shared:
        return Shared(self.manager, self.manager.declare_file(path, cache=False))

    def _declare_buffer(self, text: str) -> Shared:
        return Shared(self.manager, self.manager.declare_buffer(text, cache=False))

    # -- results

    def _collected(self) -> EnvironmentStats | None:
        if self._stats is None and _is_done(self):
            self._stats = self._job.stats()
        return self._stats

    def _went_well(self) -> bool:
        return bool(self.successful())

    def _judged(self) -> Verdict | None:
        if self._verdict is None and _is_done(self):
            self._verdict = judge(self._job.outcome(), _ending_of(self))
        return self._verdict


class FunctionCall(_Call):  # type: ignore[misc] # the base is whatever the binding has
    """TaskVine's ``FunctionCall`` for a library of ``library_from_functions``, with results as of a ``PonchoTask``.

    ``function`` is its name or the function itself.  TaskVine's own class works as well; it tells a failed call only by
    ``FunctionCallNoResult``.  Submitting raises ``EngineError`` when the arguments cannot be sent.
    """

    def __init__(self, library: str, function: str | Callable[..., Any], /, *args: Any, **kwargs: Any) -> None:
        self._verdict: Verdict | None = None
        super().__init__(library, function if isinstance(function, str) else function.__name__, *args, **kwargs)
        self._event: dict[str, Any]
        # TaskVine's class keeps itself here, and so would live until the garbage collector comes by.
        self._fn_def = None

    def submit_finalize(self) -> None:
        """Pickle the arguments as the library's functions are.  The manager calls this; it raises before it submits."""
        library = vine_manager.declared_to(self.manager).libraries.get(self.get_library_required())
        if library is not None:
            event: dict[str, Any] = self._event
            arguments = tuple(event["fn_args"]), dict(event["fn_kwargs"])
            self._event = {"poncho": payload.pickled(arguments, "the arguments", library.by_value)}
        super().submit_finalize()

    @property
    def output(self) -> Any:
        """The result, or the exception that the function raised, or a ``TaskError``; None before the call is done.

        Raises ``ValueError`` when the result was to stay on the workers.
        """
        if self._tmp_output_enabled:
            return super().output
        verdict = self._judged()
        return None if verdict is None else verdict.value

    @property
    def traceback(self) -> str | None:
        """The function's traceback on the worker as text, as of a ``PonchoTask``."""
        verdict = self._judged()
        return None if verdict is None else verdict.traceback

    @property
    def returned(self) -> bool:
        """Whether the function returned."""
        verdict = self._judged()
        return verdict is not None and verdict.returned

    def _judged(self) -> Verdict | None:
        if self._verdict is None and _is_done(self):
            self._verdict = judge(_load_call(self.output_file.source()), _ending_of(self))
        return self._verdict


def _load_call(path: str) -> payload.Outcome | None:
    """What a library left in ``path``; None when there is nothing."""
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        return None
    try:
        result = pickle.loads(content)
        if result["Success"]:
            return payload.Outcome(kind="value", value=result["Result"])
        facts = result.get("poncho")
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        return payload.Outcome(kind="failed", message=f"the result cannot be loaded on the manager: {said}")
    if facts is None:
        # A library that TaskVine made itself leaves the traceback and nothing else.
        reason = str(result["Reason"])
        return payload.Outcome(kind="raised", traceback=reason, message=reason.rstrip().rpartition("\n")[2])
    raised = None
    if facts["error"] is not None:
        try:
            raised = pickle.loads(facts["error"])
        except Exception:
            pass  # its class cannot be made here: its text has to do
    return payload.Outcome(kind=facts["kind"], value=raised, traceback=facts["traceback"], message=facts["message"])


def _is_done(task: Any) -> bool:
    return bool(task.result != "unknown" or task.exit_code != -1)


def _ending_of(task: Any) -> Ending:
    return Ending(
        status=task.exit_code, said=task.std_output or "", host=task.hostname or None, reason=REASONS.get(task.result)
    )
