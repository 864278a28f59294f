"""One way to open any engine, and one face for it: a manager with its own workers, ended when the block ends.

``with open_engine("work_queue", workers=2) as engine: engine.submit(engine.PonchoTask(f, x)); engine.wait(5)``.  For
programs of ours that own the loop (the executor, batches); a user's own program talks to the engine's own classes.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any, Protocol

from poncho_wq import recording
from poncho_wq.engines.factory import Factory
from poncho_wq.engines.released import address_of, released_wait
from poncho_wq.engines.workers import TASKVINE, WORK_QUEUE, LocalWorkers
from poncho_wq.errors import EngineError

__all__ = ["KINDS", "Capacity", "Engine", "Needs", "open_engine"]

KINDS = ("work_queue", "taskvine", "local")


@dataclass(frozen=True, kw_only=True, slots=True)
class Capacity:
    """What is connected now: workers, their cores, memory and disk (MB), GPUs; and the bytes sent to workers so far.

    Zero where the engine cannot tell.
    """

    workers: int
    cores: int
    memory: int = 0
    disk: int = 0
    gpus: int = 0
    sent: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Needs:
    """What a task asks of its worker: cores, memory and disk (MB), GPUs, features that the worker must offer.

    None leaves it to the engine, to which a task that names none of cores, memory and disk takes a whole worker.
    ``retries``: how often it may start anew after its worker was lost; None for ever.  Work Queue takes 0 for 1.
    TaskVine starts it anew for ever where a worker died, and counts when one gave it back, or it used too much.
    ``priority``: higher first; None is 0.
    """

    cores: int | None = 1
    memory: int | None = None
    disk: int | None = None
    gpus: int | None = None
    features: tuple[str, ...] = ()
    retries: int | None = None
    priority: float | None = None


class Engine(Protocol):
    """An opened engine.  Not for several threads: the engines' bindings are not.

    ``queue`` is the engine's own manager object, ``PonchoTask`` the class of its tasks, ``workers`` those that were
    started with it, None for none.
    """

    kind: str
    queue: Any
    workers: LocalWorkers | None

    @property
    def PonchoTask(self) -> Any: ...

    def submit(self, task: Any) -> int:
        """Prepare the task's environment, queue it, and return its id.  Raises as the engine's own ``submit`` does."""

    def wait(self, seconds: float) -> Any:
        """The next task that is done, or None after about ``seconds``; whole seconds to most engines, so at least 1.

        None at once when no task is here.  A task that was cancelled never comes.
        """

    def cancel(self, task: Any) -> None:
        """End a task, wherever it is.  One that is not here is no error."""

    def need(self, task: Any, needs: Needs) -> None:
        """Tell a task, before it is submitted, what it asks of its worker."""

    def describe(self, task: Any, *, category: str | None = None, variables: Mapping[str, str] | None = None) -> None:
        """Give a task a category, and environment variables."""

    def attach(self, task: Any, local: str, remote: str, *, output: bool = False, cache: bool = False) -> None:
        """Give a task a file of its own: ``local`` here is ``remote`` in its sandbox.  ``cache``: it stays there."""

    def capacity(self) -> Capacity:
        """What is connected now, as known since the last ``wait``."""


@contextmanager
def open_engine(
    kind: str = "work_queue",
    *,
    port: int = 0,
    name: str | None = None,
    workers: int = 0,
    cores: int = 1,
    features: Sequence[str] = (),
    directory: str | os.PathLike[str] | None = None,
    factory: str | None = None,
    password_file: str | None = None,
    worker_options: Sequence[str] = (),
    setup: Callable[[Any], None] | None = None,
) -> Iterator[Engine]:
    """A manager on ``port`` (0: any that is free) and ``workers`` local workers of ``cores`` cores each.

    ``name`` is the project name that the manager tells the catalog.  ``features`` are what the workers offer.
    ``directory`` holds what workers and manager write (default: a temporary one); only TaskVine's logs stay there.
    ``factory``: the workers are jobs of this batch system (``slurm``, ``condor``, …) instead of processes here.
    ``password_file`` holds what workers must know; those that are started here do.  Where it is not given, and nobody
    can be told of the manager (no ``port``, ``name``, ``factory`` or ``setup``), there is a password all the same.
    ``worker_options`` are words for the command of each worker that is started here.  ``setup(manager)`` is called
    before any worker can come.
    The embedded engine ``"local"`` is one worker with the cores of all.

    Raises ``EngineError`` for an unknown kind, ``EngineNotInstalled``.  Everything that was started ends with the
    block, and so do tasks that are still there.
    """
    if kind not in KINDS:
        raise EngineError(f"there is no engine {kind!r}", advice=f"choose one of {', '.join(KINDS)}")
    if workers < 0 or cores < 1:
        raise EngineError(f"{workers} workers of {cores} cores cannot be started")
    with ExitStack() as stack:
        if kind == "local":
            embedded = stack.enter_context(_open_local(max(1, workers), cores, tuple(features), directory))
            recording.attach(embedded.queue)
            yield embedded
            return
        opened = _open_work_queue if kind == "work_queue" else _open_taskvine
        engine = stack.enter_context(opened(port, name, directory))
        password = None
        if password_file is not None:
            _want_what_is_in(password_file, kind, engine.queue)
        elif setup is None and workers and not port and name is None and factory is None:
            password = _new_password(kind, engine.queue)
        if setup is not None:
            setup(engine.queue)
        recording.attach(engine.queue)
        options: dict[str, Any] = {
            "count": workers,
            "cores": cores,
            "features": tuple(features),
            "directory": directory,
        }
        if workers and factory is not None:
            started = Factory(
                kind, engine.queue.port, factory, password_file=password_file, worker_options=worker_options, **options
            )
            stack.enter_context(started)
        elif workers:
            told = [] if password_file is None else [f"--password={os.path.abspath(password_file)}"]
            program = WORK_QUEUE if kind == "work_queue" else TASKVINE
            here = LocalWorkers(
                engine.queue.port, program=program, password=password, options=(*worker_options, *told), **options
            )
            # Before the manager ends: workers that lose it would look for it until they are ended.
            engine.workers = stack.enter_context(here)
        yield engine


def _want_what_is_in(password_file: str, kind: str, queue: Any) -> None:
    if not os.path.isfile(password_file):
        raise EngineError(f"{password_file}: there is no such password file")
    # Else the manager would want none, and give tasks to any worker.
    if not (queue.specify_password_file if kind == "work_queue" else queue.set_password_file)(password_file):
        raise EngineError(f"{password_file}: the password file is empty, or cannot be read")


def _new_password(kind: str, queue: Any) -> str:
    """Have the manager want one: a worker of anybody on this machine would be given tasks, and its results read."""
    password = secrets.token_hex(16)
    (queue.specify_password if kind == "work_queue" else queue.set_password)(password)
    return password


class _Managed:
    """What engines with a manager process have in common.  ``kind`` says whose names their tasks' methods have."""

    workers: LocalWorkers | None = None

    def __init__(self, kind: str, queue: Any, task_class: Any, cancel: Callable[[int], Any]) -> None:
        self.kind = kind
        self.queue = queue
        self.PonchoTask = task_class
        self._cancel = cancel
        self._here: dict[int, Any] = {}
        self._released = released_wait(kind, queue)
        self._addresses: dict[int, Any] = {}

    def submit(self, task: Any) -> int:
        number = int(self.queue.submit(task))
        self._here[number] = task
        struct = task._inner._task if self.kind == "work_queue" else task._task
        self._addresses[address_of(struct)] = task
        return number

    def wait(self, seconds: float) -> Any:
        until = time.monotonic() + seconds
        while True:
            # Both count in whole seconds of the clock; Work Queue does nothing at all in a wait of 0.
            task = self._next(max(1, ceil(until - time.monotonic())))
            if task is None:
                return None
            # TaskVine gives back what was cancelled.
            if self._here.pop(task.id, None) is not None:
                return task
            if time.monotonic() >= until:
                return None

    def _next(self, seconds: int) -> Any:
        """The binding's ``wait``, but other threads run meanwhile."""
        if self._released is None:
            return self.queue.wait(seconds)
        address = self._released(seconds)
        if not address:
            return None
        task = self._addresses.pop(address)
        # What the binding's own `wait` does, so that it lets go of the task.
        self.queue._task_table.pop(task.id, None)
        return task

    def cancel(self, task: Any) -> None:
        if self._here.pop(task.id, None) is not None:
            self._cancel(task.id)

    def need(self, task: Any, needs: Needs) -> None:
        verb = "set_" if self.kind == "taskvine" else "specify_"
        for what in ("cores", "memory", "disk", "gpus", "priority"):
            value = getattr(needs, what)
            if value is not None:
                getattr(task, verb + what)(value)
        for feature in needs.features:
            (task.add_feature if self.kind == "taskvine" else task.specify_feature)(feature)
        if needs.retries is not None:
            if self.kind == "taskvine":
                # Where 0 means without limit as well. No count has the tries that were lost with their worker.
                task.set_retries(max(1, needs.retries))
                task.set_max_forsaken(needs.retries)
            else:
                # To which 0 means without limit.
                task.specify_max_retries(max(1, needs.retries))

    def describe(self, task: Any, *, category: str | None = None, variables: Mapping[str, str] | None = None) -> None:
        vine = self.kind == "taskvine"
        if category is not None:
            (task.set_category if vine else task.specify_category)(category)
        for name, value in (variables or {}).items():
            (task.set_env_var if vine else task.specify_environment_variable)(name, value)

    def attach(self, task: Any, local: str, remote: str, *, output: bool = False, cache: bool = False) -> None:
        if self.kind == "taskvine":
            # "True" in TaskVine's words: for as long as this manager runs.
            file = self.queue.declare_file(local, cache=cache)
            (task.add_output if output else task.add_input)(file, remote)
        else:
            (task.specify_output_file if output else task.specify_input_file)(local, remote, cache=cache)

    def capacity(self) -> Capacity:
        if self.kind == "taskvine" and hasattr(self.queue, "_refresh_stats"):
            # Today's TaskVine shows figures that may be five seconds old.
            self.queue._refresh_stats()
        stats = self.queue.stats
        return Capacity(
            workers=stats.workers_connected, cores=max(0, stats.total_cores), memory=max(0, stats.total_memory),
            disk=max(0, stats.total_disk), gpus=max(0, stats.total_gpus),
            sent=max(0, stats.bytes_sent),
        )  # fmt: skip

    def close(self) -> None:
        for number in list(self._here):
            self._cancel(number)
        self._here.clear()
        self._addresses.clear()
        self._released = None
        # The manager ends when nobody refers to it.
        del self.queue, self._cancel


@contextmanager
def _open_work_queue(port: int, name: str | None, directory: str | os.PathLike[str] | None) -> Iterator[_Managed]:
    from poncho_wq.engines.work_queue import PonchoTask, WorkQueue

    manager = WorkQueue(port, name=name)
    engine = _Managed("work_queue", manager, PonchoTask, manager.cancel_by_taskid)
    del manager
    try:
        yield engine
    finally:
        engine.close()


@contextmanager
def _open_taskvine(port: int, name: str | None, directory: str | os.PathLike[str] | None) -> Iterator[_Managed]:
    from poncho_wq.engines.taskvine import Manager, PonchoTask

    # TaskVine writes its logs and what passes through it into the current directory unless told otherwise.
    recorded = recording.current()
    if recorded is not None:
        directory = recorded.directory
    place = Path(tempfile.mkdtemp(prefix="poncho-vine-")) if directory is None else Path(directory, "vine-run-info")
    try:
        with Manager(port=port, name=name, run_info_path=str(place)) as manager:
            engine = _Managed("taskvine", manager, PonchoTask, manager.cancel_by_task_id)
            try:
                yield engine
            finally:
                engine.close()
    finally:
        if directory is None:
            shutil.rmtree(place, ignore_errors=True)


class _Local:
    """The embedded engine.  Its one worker is this machine; what features that is said to offer was declared."""

    kind = "local"
    workers: LocalWorkers | None = None

    def __init__(self, queue: Any, features: tuple[str, ...]) -> None:
        from poncho_wq.engines.work_queue import PonchoTask

        self.queue = queue
        self.PonchoTask = PonchoTask
        self._features = frozenset(features)

    def submit(self, task: Any) -> int:
        return int(self.queue.submit(task))

    def wait(self, seconds: float) -> Any:
        return self.queue.wait(max(0.0, seconds))

    def cancel(self, task: Any) -> None:
        self.queue.cancel_by_taskid(task.id)

    def need(self, task: Any, needs: Needs) -> None:
        for feature in needs.features:
            if feature not in self._features:
                raise EngineError(
                    f"the task asks for the feature {feature!r}, which was not declared: it would wait for ever",
                    advice=f"open the engine with features=({feature!r},) if this machine has it",
                )
        _Managed.need(self, task, needs)  # type: ignore[arg-type] # the same task class as Work Queue's

    def describe(self, task: Any, *, category: str | None = None, variables: Mapping[str, str] | None = None) -> None:
        _Managed.describe(self, task, category=category, variables=variables)  # type: ignore[arg-type]

    def attach(self, task: Any, local: str, remote: str, *, output: bool = False, cache: bool = False) -> None:
        _Managed.attach(self, task, local, remote, output=output, cache=cache)  # type: ignore[arg-type]

    def capacity(self) -> Capacity:
        return Capacity(workers=1, cores=self.queue.cores)


@contextmanager
def _open_local(
    workers: int, cores: int, features: tuple[str, ...], directory: str | os.PathLike[str] | None
) -> Iterator[Engine]:
    from poncho_wq.engines.local import LocalQueue

    engine = _Local(LocalQueue(cores=workers * cores, workdir=directory), features)
    try:
        yield engine
    finally:
        engine.queue.close()
        del engine.queue
