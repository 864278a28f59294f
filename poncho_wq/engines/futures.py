"""``concurrent.futures`` over Work Queue, TaskVine or the embedded engine.

``with Executor(workers=4) as pool: pool.map(f, xs)``.  Every call runs on a worker, in an environment that was worked
out from its function or given for all.  ``as_completed``, ``wait`` and everything else of the standard library works
with these futures.
"""

from __future__ import annotations

import os
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any

from poncho_wq.chunks import Chunksize, Each
from poncho_wq.engines.core import split_arguments
from poncho_wq.engines.dispatcher import Dispatcher, RemoteFuture, Work
from poncho_wq.engines.mapping import works_of
from poncho_wq.engines.opened import Engine, Needs, open_engine
from poncho_wq.warm.wanted import checked_warm

if TYPE_CHECKING:
    from poncho_wq.engines.bar import Bar
    from poncho_wq.prepare import EnvironmentLike
    from poncho_wq.warm.wanted import Warm

__all__ = ["Executor", "RemoteFuture"]


class Executor(futures.Executor):
    """Calls functions on workers.

    ``engine``: ``"work_queue"``, ``"taskvine"`` or ``"local"``, this machine without any manager.  ``environment``:
    anything that ``poncho_wq.environment`` takes, for every call; default: analyzed from each function.  ``workers``
    are started on this machine, with ``cores`` each and offering ``features``; with ``factory`` (``"slurm"``,
    ``"condor"``, … as ``work_queue_factory -T`` takes it) they are jobs of that batch system instead.  With neither,
    point workers of your own to ``port``, or to the project ``name``.

    ``needs``: what each call asks of its worker; default: one core, and three more tries when workers are lost.
    ``warm``: as of ``PonchoTask.specify_warm``, for every call that does not say otherwise; TaskVine has no use for it.
    ``progress`` shows a bar on the terminal.  ``directory`` is for what workers and manager write (default: a temporary
    one).

    A call may be cancelled until it is done: its process is ended.  One that raised gives that exception, whose
    ``__cause__`` shows the traceback on the worker.  Raises ``EngineNotInstalled``, ``EngineError``.
    """

    def __init__(
        self,
        engine: str = "work_queue",
        *,
        environment: EnvironmentLike | None = None,
        workers: int = 0,
        cores: int = 1,
        factory: str | None = None,
        port: int = 0,
        name: str | None = None,
        features: Sequence[str] = (),
        needs: Needs | None = None,
        warm: Warm = False,
        progress: bool = False,
        directory: str | os.PathLike[str] | None = None,
    ) -> None:
        self._environment = environment
        self._warm = checked_warm(warm)
        self._needs = needs if needs is not None else Needs(cores=1, retries=3)
        self._bar: Bar | None = None
        settled: Callable[[Work], None] | None = None
        ended: Callable[[], None] | None = None
        if progress:
            from poncho_wq.engines.bar import Bar

            self._bar = Bar()
            settled, ended = self._bar.settled, self._bar.close
        opened: Callable[[], AbstractContextManager[Engine]] = partial(
            open_engine, engine, port=port, name=name, workers=workers, cores=cores, features=features,
            directory=directory, factory=factory,
        )  # fmt: skip
        self._dispatcher = Dispatcher(opened, settled, ended)
        # For those who let go of an executor without a word: what was submitted is still done.
        weakref.finalize(self, self._dispatcher.stop).atexit = False

    @property
    def port(self) -> int | None:
        """Where workers find the manager; None for the embedded engine."""
        return self._dispatcher.port

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> RemoteFuture:
        """Call ``fn(*args, **kwargs)`` on a worker.

        ``environment=E``, ``unpack_to=`` and ``warm=`` among the keywords are for this call, unless ``fn`` has
        parameters of that name.  Function and arguments are pickled when the call's turn comes: change none of them
        until it is done.

        Raises ``TypeError`` when the function does not take these arguments, ``BrokenExecutor`` when the engine is
        gone, ``RuntimeError`` after ``shutdown``.  What goes wrong later is told by the future.
        """
        ours = split_arguments(fn, args, kwargs)
        return self._put(partial(self._task, fn, args, kwargs, ours))

    def map(
        self, fn: Callable[..., Any], *iterables: Iterable[Any], timeout: float | None = None, chunksize: Chunksize = 1
    ) -> Iterator[Any]:
        """Like ``map(fn, *iterables)``, with the results in order; ``chunksize`` items go into one task.

        ``"auto"`` begins with one, measures, and then sends about half a second of work at a time.  A call that raises
        takes nothing from the others in its task.  The items are taken at once.  Raises ``TimeoutError`` ``timeout``
        seconds after this call, ``ValueError`` for a ``chunksize`` below 1.
        """
        until = None if timeout is None else time.monotonic() + timeout
        calls = zip(*iterables, strict=False)
        if chunksize == 1:
            return _results(deque([self.submit(fn, *arguments) for arguments in calls]), until)
        works = works_of(fn, self._chunk, calls, chunksize)
        return _results(deque([self._hand_over(work) for work in works]), until)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls, and end when all are done; with ``cancel_futures`` those that run are ended too."""
        self._dispatcher.stop(cancel=cancel_futures)
        if wait:
            self._dispatcher.join()

    def _put(self, make: Callable[[Engine], Any]) -> RemoteFuture:
        return self._hand_over(Work(make))

    def _hand_over(self, work: Work) -> RemoteFuture:
        self._dispatcher.put(work)
        if self._bar is not None:
            self._bar.added()
        return work.future

    def _task(
        self,
        fn: Callable[..., Any] | Each,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        ours: dict[str, Any],
        engine: Engine,
    ) -> Any:
        task = engine.PonchoTask(fn, *args, **kwargs, **ours)
        if ours.get("environment") is None and self._environment is not None:
            task.specify_environment(self._environment)
        if self._warm is not False and "warm" not in ours and engine.kind != "taskvine":
            task.specify_warm(self._warm)
        engine.need(task, self._needs)
        return task

    def _chunk(self, each: Each, calls: list[tuple[Any, ...]], engine: Engine) -> Any:
        return self._task(each, (calls,), {}, {}, engine)


def _results(waiting: deque[RemoteFuture], until: float | None) -> Iterator[Any]:
    """The values in order; when nobody wants the rest, it is cancelled."""
    try:
        while waiting:
            # Popped first, so that what was consumed can be freed.
            future = waiting.popleft()
            left = None if until is None else until - time.monotonic()
            try:
                came = future.result(left)
            except BaseException:
                future.cancel()
                raise
            del future
            yield came
    finally:
        for future in waiting:
            future.cancel()
