"""Work Queue: ``q.submit(PonchoTask(f, x))``.

Work Queue has no hook at submission: ``submit`` takes ``task._task``, the C structure, and nothing else.  So ``_task``
of a ``PonchoTask`` is a property that works out the environment and attaches it when somebody outside asks for it, and
the structure itself belongs to a plain inner ``Task``, to which every method and property of Work Queue's is handed on.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from poncho_wq import payload, staging
from poncho_wq.chunks import Chunksize, Each, tasks_of
from poncho_wq.engines import stand_in
from poncho_wq.engines.binding import find_work_queue
from poncho_wq.engines.core import Job, Plan
from poncho_wq.engines.outcomes import Ending, Verdict, judge
from poncho_wq.engines.results import Results
from poncho_wq.engines.statistics import EnvironmentStats
from poncho_wq.errors import EngineError, EngineNotInstalled

if TYPE_CHECKING:
    from poncho_wq.engines.core import UnpackTo
    from poncho_wq.engines.stand_in import Task as _Base
    from poncho_wq.prepare import Environment, EnvironmentLike
    from poncho_wq.warm.wanted import Warm

    WorkQueue: Any
    _specify_file: Any
else:
    try:
        _binding = find_work_queue()
    except EngineNotInstalled as _missing:
        _why = _missing
        _Base = stand_in.Task
        _specify_file = None

        class WorkQueue:
            """Stands where Work Queue's class would be, and says how to get it."""

            def __init__(self, *args: Any, **kwargs: Any) -> None:
                raise EngineNotInstalled(_why.message, engine="work_queue", advice=_why.advice)

    else:
        _Base = _binding.Task
        WorkQueue = _binding.WorkQueue
        # Of the C library, where the binding has it by this name.
        _specify_file = getattr(_binding, "work_queue_task_specify_file", None)

__all__ = ["PonchoTask", "WorkQueue"]

# Methods that name files in the sandbox; where the names are among the arguments is read off each one's signature.
_FILE_METHODS = (
    "specify_file",
    "specify_input_file",
    "specify_output_file",
    "specify_file_piece",
    "specify_directory",
    "specify_buffer",
    "specify_url",
    "specify_file_command",
)


# Thousands of tasks remember calls; most are without any, and those do not need a dictionary each.
_NO_KEYWORDS: dict[str, Any] = {}


def _handed_on(base: type) -> dict[str, Any]:
    """For every method and property of ``base``, the same that acts on the inner task."""
    members: dict[str, Any] = {}
    for kind in reversed(base.__mro__[:-1]):
        for name, member in vars(kind).items():
            if name.startswith("__") or isinstance(member, (staticmethod, classmethod)):
                continue
            if isinstance(member, property):
                members[name] = _hand_on_property(name)
            elif callable(member):
                members[name] = _hand_on_specify(name, member) if name.startswith("specify_") else _hand_on(name)
    return members


def _hand_on_property(name: str) -> property:
    return property(lambda self: getattr(self._inner, name), lambda self, value: setattr(self._inner, name, value))


def _hand_on(name: str) -> Callable[..., Any]:
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(self._inner, name)(*args, **kwargs)

    method.__name__ = name
    return method


def _hand_on_specify(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    """A ``specify_`` method: checked, remembered for clones and for the embedded engine, and handed on."""
    names = original.__code__.co_varnames[1 : original.__code__.co_argcount]
    is_file = name in _FILE_METHODS

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        if is_file:
            self._check_file(name, {**dict(zip(names, args, strict=False)), **kwargs})
        answer = getattr(self._inner, name)(*args, **kwargs)
        if answer is not None and answer == 0:
            raise EngineError(f"{name}{args} was refused: it contradicts what the task has already")
        self._calls.append((name, args, kwargs or _NO_KEYWORDS))
        return answer

    method.__name__ = name
    method.__doc__ = original.__doc__
    return method


_HandedOn: Any = type("_HandedOn", (_Base,), _handed_on(_Base))


# Work Queue's result codes above the low bits, in words.
REASONS = {
    stand_in.INPUT_MISSING: "an input file is missing or could not be sent",
    1 << 3: "it was ended by a signal",
    2 << 3: "it used more than the resources it was given",
    3 << 3: "its end time passed",
    5 << 3: "Work Queue gave it up",
    6 << 3: "it was lost with its worker as often as max_retries allows",
    7 << 3: "it ran for longer than running_time_max allows",
    8 << 3: "its disk allocation was full",
    9 << 3: "the resource monitor failed",
    10 << 3: "its output could not be stored on the manager",
}


class PonchoTask(Results, _HandedOn):  # type: ignore[misc] # that base is whichever binding was found
    """A Work Queue task that runs in an environment prepared for it.

    ``PonchoTask(function, *args, **kwargs)`` calls the function on a worker.  Its environment is analyzed from the
    function unless ``environment=E`` is given, which is the function's own argument if it takes one of that name; then
    use ``specify_environment(E)``.  ``PonchoTask("shell text", environment=E)`` runs any command.  ``E`` is anything
    that ``poncho_wq.environment`` takes.  ``unpack_to="node"`` has all workers of a machine share one unpacked copy.
    ``warm=`` is for functions, as of ``specify_warm``.  Everything else that a Work Queue ``Task`` can do works as
    there.

    Local modules that the function reaches are sent with it, as they are on disk when the task is made.

    Raises ``TypeError`` when the function does not take these arguments, ``EngineError`` when they cannot be sent, or
    local modules are too large to be, ``AnalysisError`` when those are not Python.
    """

    def __init__(self, work: Callable[..., Any] | Each | str, /, *args: Any, **kwargs: Any) -> None:
        self._bound = False
        self._calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self._names: tuple[tuple[str, str | None], ...] = ()
        self._buffers: tuple[staging.SharedFile, ...] = ()
        self._verdict: tuple[Any, Verdict] | None = None
        self._stats: tuple[Any, EnvironmentStats | None] | None = None
        # Known to the embedded engine alone: the signal that ended the process, 0 for none.
        self._signal: int | None = None
        self._said: str | None = None
        self._job = Job(work, args, kwargs)
        self._latest = _Base(self._job.command or "")
        self._again: Any = None

    @classmethod
    def map(
        cls,
        function: Callable[..., Any],
        /,
        *iterables: Iterable[Any],
        chunksize: Chunksize = 1,
        environment: EnvironmentLike | None = None,
        unpack_to: UnpackTo = "worker",
        warm: Warm = False,
    ) -> Iterator[Any]:
        """Tasks for ``map(function, *iterables)``, ``chunksize`` calls in each, made one by one as you ask for them.

        ``"auto"`` begins with single calls, and fills later tasks by what those took that have come back: so ask for a
        task when there is room for one.  A task's ``output`` is the list of its results, with the exceptions of those
        that raised; its ``outcomes`` tell the two apart.  The other arguments are as of ``PonchoTask``.

        Raises ``ValueError`` for a ``chunksize`` below 1, and for each task what ``PonchoTask`` does.
        """

        def make(each: Each, calls: list[tuple[Any, ...]]) -> Any:
            return cls(each, calls, environment=environment, unpack_to=unpack_to, warm=warm)

        return tasks_of(make, function, zip(*iterables, strict=False), chunksize)

    def __del__(self) -> None:
        """The inner task frees the structure; the job's files go with the job."""

    def __repr__(self) -> str:
        function = self._job.function
        what = getattr(function, "__qualname__", repr(function)) if function is not None else repr(self._job.command)
        return f"<PonchoTask {what}>"

    # -- environment and submission

    def specify_environment(self, E: EnvironmentLike) -> None:
        """Run in ``E``: anything that ``poncho_wq.environment`` takes.  Raises ``EngineError`` after submission."""
        self._job.set_environment(E)

    def specify_unpack_to(self, where: UnpackTo) -> None:
        """Unpack the environment into the worker's workspace (``"worker"``, the default) or into a cache that all
        workers of this user on the machine share (``"node"``: ``$PONCHO_NODE_CACHE`` there, else below ``/tmp``).

        Raises ``EngineError`` for anything else, and after submission.
        """
        self._job.set_unpack_to(where)

    def specify_warm(self, warm: Warm) -> None:
        """Whether the function may run in a warm interpreter: a forked child of a process, one for each environment,
        group of imported packages and worker, that has done the imports.  ``"auto"``: unless it imports what is known
        not to survive that.  The default is False.

        It costs a third of a fresh one, of one that imports numpy or pandas less than a tenth, and no task sees
        another's state; but the child is no descendant of the task's shell, so that what measures processes by their
        ancestors does not see it.  Raises ``EngineError`` for a command task, and after submission.
        """
        self._job.set_warm(warm)

    def specify_monitor_output(self, directory: str) -> Any:
        """Where the resource monitor leaves this task's summary.  Raises ``EngineError`` when it is nowhere."""
        if not directory:
            # Work Queue would end this process.
            raise EngineError("specify_monitor_output: no directory given")
        return super().specify_monitor_output(directory)

    def specify_command(self, command: str) -> None:
        """Replace the text of a command task.  Raises ``EngineError`` for a function task, and after submission."""
        self._job.set_command(command)
        self._inner.specify_command(command)

    @property
    def environment(self) -> Environment | None:
        """The environment that the task runs in; None before submission."""
        return self._job.plan.environment if self._job.plan is not None else None

    @property
    def code_size(self) -> int:
        """Bytes of the archive of local modules that is sent with the task, once to each worker; 0 for none."""
        return self._job.code_size

    @property
    def _task(self) -> Any:
        """The C structure, complete, for a submission.  This is what ``submit`` reads, and nobody else.

        A structure is submitted once: Debian's Work Queue frees one that was submitted again twice over.  So a task
        that has come back shows a new one here, and goes on showing its results until that is submitted.
        """
        if not self._bound:
            self._bind()
        struct = self._inner._task
        if struct.taskid == 0:
            return struct
        if not _is_done(struct):
            raise EngineError(
                f"task {struct.taskid} was submitted and has not come back",
                advice="submit a clone() of a task that is still waiting, running, or was cancelled",
            )
        if self._again is None:
            self._again = self._fresh_inner(self._job.prepare())
        return self._again._task

    @property
    def _inner(self) -> Any:
        """The plain task of the latest submission."""
        if self._again is not None and self._again._task.taskid != 0:
            self._latest, self._again = self._again, None
            self._signal, self._said = None, None
        return self._latest

    def _bind(self) -> None:
        """Work out the environment, attach its files and wrap the command.  Raises before anything is submitted."""
        plan = self._job.prepare()
        try:
            _attach(self._latest, plan)
        except EngineError:
            self._latest = self._fresh_inner()
            raise
        self._bound = True

    def clone(self) -> PonchoTask:
        """A copy that can be submitted as well, with a result of its own."""
        new = object.__new__(type(self))
        # Whatever a subclass or the user keeps on the task comes along, as with Work Queue's own clone.
        new.__dict__.update(self.__dict__)
        new._bound, new._again, new._verdict, new._signal, new._said = False, None, None, None, None
        new._stats = None
        new._calls = list(self._calls)
        new._job = self._job.clone()
        new._latest = new._fresh_inner()
        return new

    def _fresh_inner(self, plan: Plan | None = None) -> Any:
        """A new plain task with all that was specified, and with what ``plan`` adds."""
        inner = _Base(self._job.command or "")
        self._replay(inner)
        if plan is not None:
            _attach(inner, plan)
        return inner

    def _replay(self, task: Any) -> None:
        for name, args, kwargs in self._calls:
            getattr(task, name)(*args, **kwargs)

    def _wishes(self) -> stand_in.Task:
        """Everything that was specified, by the user and by us, for an engine that reads it in Python."""
        wishes = stand_in.Task("")
        self._replay(wishes)
        theirs = len(wishes.files)
        _attach(wishes, self._job.prepare())
        wishes.files[theirs:] = [replace(file, ours=True) for file in wishes.files[theirs:]]
        return wishes

    # -- files and everything else that is specified

    def specify_buffer(
        self, buffer: str | bytes, remote_name: Any, flags: int | None = None, cache: bool | None = None
    ) -> Any:
        """Text or bytes as an input file.

        Work Queue itself takes no bytes, cuts text that is not ASCII short, and gives one task the cached buffer of
        another; such buffers travel as files of this process's staging directory.
        """
        cached = bool(cache) or bool((flags or 0) & stand_in.CACHE)
        if isinstance(buffer, str) and buffer.isascii() and "\0" not in buffer and not cached:
            return super().specify_buffer(buffer, remote_name, flags, cache)
        content = buffer.encode(errors="surrogateescape") if isinstance(buffer, str) else bytes(buffer)
        shared = staging.share("poncho-buffer", content)
        # Held, so that the file stays for as long as the task or a clone of it does.
        self._buffers = (*self._buffers, shared)
        return self.specify_input_file(shared.path, remote_name, flags, cache)

    def _check_file(self, method: str, given: dict[str, Any]) -> None:
        """Refuse what makes Work Queue end this process, leave the sandbox or print to stderr."""
        local = given.get("local_name")
        local = None if local is None else str(local)
        remote = str(given.get("remote_name") or os.path.basename(local or ""))
        if not remote:
            raise EngineError(f"{method}: the file has no name in the task's sandbox")
        if remote.startswith("/") or ".." in remote.split("/"):
            raise EngineError(
                f"{method}: {remote}: a name in the task's sandbox is relative and stays inside it",
                advice="give a remote name such as the file's own name",
            )
        if "cmd" in given and "%%" not in str(given["cmd"]):
            raise EngineError(f"{method}: {given['cmd']}: the command must write to %%, which stands for the file")
        taken = [other for name, other in self._names if name == remote]
        if taken and (local is None or taken[0] != local):
            raise EngineError(f"{method}: {remote}: another file of the task has this name in its sandbox")
        self._names = (*self._names, (remote, local))

    # -- results

    @property
    def std_output(self) -> Any:
        """The task's stdout and stderr, as text; None before it is done."""
        said = self._all_said()
        return said if said is None or self._job.function is None else payload.split_said(said, self._job.mark)[0]

    def _all_said(self) -> Any:
        return self._said if self._said is not None else self._inner.std_output

    @property
    def return_status(self) -> Any:
        """The exit status of the task's process, or the number of the signal that ended it; -1 before it is done."""
        status = self._inner.return_status
        if status == payload.RESULT_IN_FILE and self._job.function is not None and self.returned:
            # The runner's word to us that its result is not on stdout.
            return 0
        return status

    def _collected(self) -> EnvironmentStats | None:
        inner = self._inner
        if not _is_done(inner._task):
            return None
        run = inner._task.taskid, inner._task.time_when_done
        if self._stats is None or self._stats[0] != run:
            self._stats = run, self._job.stats()
        return self._stats[1]

    def _went_well(self) -> bool:
        return bool(self.result == stand_in.SUCCESS and self.return_status == 0)

    def _judged(self) -> Verdict | None:
        """The verdict on the latest run: a task may be submitted again after it came back."""
        inner = self._inner
        struct = inner._task
        if not _is_done(struct):
            return None
        run = struct.taskid, struct.time_when_done
        if self._verdict is None or self._verdict[0] != run:
            said, result = payload.split_said(self._all_said() or "", self._job.mark)
            ending = Ending(
                status=struct.return_status,
                said=said,
                host=struct.hostname or None,
                signal=self._signal,
                reason=REASONS.get(struct.result & ~0b110),
            )
            self._verdict = run, judge(self._job.outcome(result), ending)
        return self._verdict[1]

    @property
    def _manager(self) -> Any:
        """Today's Work Queue notes here who has the task, and asks when it frees the structure."""
        return getattr(self._inner, "_manager", None)

    @_manager.setter
    def _manager(self, manager: Any) -> None:
        self._inner._manager = manager


def _is_done(struct: Any) -> bool:
    """Whether a submitted structure has come back from its queue."""
    return bool(struct.result != stand_in.UNKNOWN or struct.return_status != -1)


def _attach(task: Any, plan: Plan) -> None:
    """Tell Work Queue's task what the plan says.  Raises ``EngineError`` when it refuses."""
    specify = task.specify_file
    if _specify_file is not None and type(task) is _Base:
        # A task has five files or more, and half of the method's time is the method's own.
        specify = partial(_specify_file, task._task)
    for local, remote in plan.cached:
        _accepted(specify(local, remote, stand_in.INPUT, stand_in.CACHE), remote)
    for local, remote in plan.inputs:
        _accepted(specify(local, remote, stand_in.INPUT, stand_in.NOCACHE), remote)
    for text, remote in plan.buffers:
        _accepted(task.specify_buffer(text, remote, cache=False), remote)
    for local, remote in plan.outputs:
        _accepted(specify(local, remote, stand_in.OUTPUT, stand_in.NOCACHE), remote)
    for local, remote in plan.failure_outputs:
        _accepted(specify(local, remote, stand_in.OUTPUT, stand_in.FAILURE_ONLY), remote)
    task.specify_command(plan.before + plan.command)


def _accepted(answer: Any, remote: str) -> None:
    if not answer:
        raise EngineError(
            f"{remote}: the task cannot have this file",
            advice="a file of the task's own has that name in its sandbox: give it another remote name",
        )
