"""One thread that owns an engine: others hand it work, it settles their futures.

No binding may be called by two threads.  So everything that concerns the engine, from making a task to freeing it,
happens in the dispatcher's thread; the others leave messages in its inbox.

What each sees.  A program submits: the work lies in the inbox, then in the backlog, then the engine has it as a task.
The program cancels: the future is cancelled there and then, and a message follows.  Should the task have come back
before that message is read, its result finds a cancelled future and is dropped; otherwise the task is ended wherever
it is.  Whatever ends the thread, every future that is left gets an error: nobody waits for ever.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Future
from typing import Any

from poncho_wq import progress
from poncho_wq.engines.backlog import Backlog, depth
from poncho_wq.engines.opened import Engine
from poncho_wq.errors import EngineError, PonchoError

__all__ = ["Dispatcher", "RemoteFuture", "Work"]

# How long the thread may be in the engine before it looks at its inbox again.  The managers count whole seconds; the
# embedded engine can be asked for less.
WAIT_SECONDS = {"work_queue": 1.0, "taskvine": 1.0, "local": 0.02}
# The managers wait to the next full second of the clock, so that a wait begun this long before one is short.
_BEFORE_SECOND = 0.03
# Of the workers that we started ourselves, this many times their number may die without any task done in between.
_DEATHS = 3


class RemoteFuture(Future[Any]):
    """A future whose task may be cancelled until it is done, also while it runs: its process is ended then."""

    def __init__(self) -> None:
        super().__init__()
        self._on_cancel: Callable[[], None] | None = None
        self._submitted = False

    def cancel(self) -> bool:
        """Cancel the call unless it is done; true when it is cancelled."""
        cancelled = super().cancel()
        if cancelled and self._on_cancel is not None:
            self._on_cancel()
        return cancelled

    def running(self) -> bool:
        """Whether the engine has the task: it runs, or waits for a worker."""
        return self._submitted and not self.done()


class Work:
    """What is to be done for one future: ``make(engine)`` gives the task to submit, in the dispatcher's thread."""

    __slots__ = ("counted", "future", "make", "settled")

    def __init__(self, make: Callable[[Engine], Any], future: RemoteFuture | None = None) -> None:
        self.make = make
        self.future = future if future is not None else RemoteFuture()
        self.settled = self.counted = False

    def parts(self) -> Iterator[Work]:
        """Every piece of work that ended with this one, and itself."""
        yield self

    def settle(self, task: Any) -> None:
        """The task is done: tell the future."""
        value = task.output
        if task.returned:
            self._tell(lambda: self.future.set_result(value))
        else:
            error = value if isinstance(value, BaseException) else EngineError(f"the task failed: {value}")
            self._tell(lambda: self.future.set_exception(error))

    def fail(self, error: BaseException) -> None:
        """The task gave no result: the future gets ``error``, unless it is settled or was cancelled."""
        self._tell(lambda: self.future.set_exception(error))

    def drop(self) -> None:
        """The future was cancelled: wake up whoever waits for it."""
        self._tell(lambda: None)

    def _tell(self, tell: Callable[[], None]) -> None:
        if self.settled:
            return
        self.settled = True
        if self.future.set_running_or_notify_cancel():
            tell()


class Dispatcher:
    """Opens an engine in a thread of its own and runs work there until it is told to stop.

    ``open_it()`` is a context manager with the engine; it is entered and left in that thread.  The constructor returns
    when the engine is open, and raises what opening it raised.  ``on_settled`` is called there for all work that ended,
    ``on_end`` when there will be no more.
    """

    def __init__(
        self,
        open_it: Callable[[], Any],
        on_settled: Callable[[Work], None] | None = None,
        on_end: Callable[[], None] | None = None,
    ) -> None:
        self._open = open_it
        self._on_settled = on_settled
        self._on_end = on_end
        self._inbox: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        # Taken out of the inbox, but not acted upon yet: the one that came first.
        self._next_message: tuple[str, Any] | None = None
        self._lock = threading.Lock()
        self._broken: BaseException | None = None
        self._stopping = False
        self._deaths = 0
        self._looked = 0.0
        self._sent = 0
        self.kind = ""
        self.port: int | None = None
        opened: Future[None] = Future()
        # Not a daemon: a program that ends its main thread with work left waits for it, as with every executor.
        self._thread = threading.Thread(target=self._run, args=(opened,), name="poncho-dispatcher", daemon=False)
        self._thread.start()
        opened.result()

    def put(self, work: Work) -> None:
        """Hand over work.  Raises ``BrokenExecutor`` when the engine is gone, ``RuntimeError`` after ``stop``."""
        with self._lock:
            if self._broken is not None:
                raise BrokenExecutor(f"the engine is gone: {self._broken}") from self._broken
            if self._stopping:
                raise RuntimeError("cannot schedule new futures after shutdown")
            work.future._on_cancel = lambda: self._inbox.put(("cancel", work))
            self._inbox.put(("work", work))

    def stop(self, *, cancel: bool = False) -> None:
        """Take no more work; end when what there is is done, or with ``cancel`` at once."""
        with self._lock:
            self._stopping = True
        self._inbox.put(("cancel all" if cancel else "stop", None))

    def join(self) -> None:
        """Wait until the engine is closed and every future has its outcome; its own thread goes on at once."""
        if threading.current_thread() is not self._thread:
            self._thread.join()

    # -- in the thread

    def _run(self, opened: Future[None]) -> None:
        backlog: Backlog[Work] | None = None
        try:
            with self._open() as engine:
                backlog = Backlog(engine, lambda work: self._make(engine, work), self._failed)
                self.kind, self.port = engine.kind, getattr(engine.queue, "port", None)
                opened.set_result(None)
                self._serve(engine, backlog)
        except BaseException as error:
            with self._lock:
                self._broken = error
            if not opened.done():
                opened.set_exception(error)
        finally:
            self._fail_what_is_left(backlog)
            if self._on_end is not None:
                self._on_end()

    def _serve(self, engine: Engine, backlog: Backlog[Work]) -> None:
        stopping = False
        while True:
            stopping = self._read_inbox(backlog) or stopping or not threading.main_thread().is_alive()
            self._replace_workers(engine)
            backlog.feed()
            if not backlog and not backlog.submitted and self._inbox.empty():
                if stopping:
                    return
                self._idle(engine)
                continue
            seconds = WAIT_SECONDS[engine.kind]
            if engine.kind == "local" and backlog.submitted >= depth(engine.capacity().cores):
                seconds = 1.0
            came = backlog.wait(seconds)
            self._tell_sent(engine)
            if came is not None:
                work, task = came
                self._deaths = 0
                work.settle(task)
                self._settled(work)

    def _tell_sent(self, engine: Engine) -> None:
        """For who wants to see it: how much has gone to workers, twice a second at most, when it is more than before.

        The engine sends while it waits, and says nothing meanwhile.
        """
        say, now = progress.current(), time.monotonic()
        if say is progress.silent or now - self._looked < 0.5:
            return
        self._looked = now
        here = engine.capacity()
        if here.sent > self._sent:
            self._sent = here.sent
            workers = f"{here.workers} worker{'s' if here.workers != 1 else ''}"
            say(progress.Progress(stage="send", detail=workers, done=here.sent, unit="bytes"))

    def _idle(self, engine: Engine) -> None:
        """Nothing to do: wait for a message, and now and then let the manager greet its workers."""
        now = time.time()
        left = 1.0 - now % 1.0 - _BEFORE_SECOND
        try:
            self._next_message = self._inbox.get(timeout=left if left > 0 else left + 1.0)
        except queue.Empty:
            engine.wait(1)

    def _messages(self) -> Iterator[tuple[str, Any]]:
        """Every message there is, in the order of arrival."""
        while True:
            message, self._next_message = self._next_message, None
            if message is None:
                try:
                    message = self._inbox.get_nowait()
                except queue.Empty:
                    return
            yield message

    def _read_inbox(self, backlog: Backlog[Work]) -> bool:
        """Act on every message there is; whether one of them was to stop."""
        stop = False
        # By their identity, and held, so that no other work can get the same.
        cancelled: dict[int, Work] = {}
        for what, work in self._messages():
            if what == "work":
                backlog.add(work)
            elif what == "cancel":
                cancelled[id(work)] = work
            else:
                stop = True
                if what == "cancel all":
                    for each in backlog.cancel(lambda _: True):
                        each.future.cancel()
                        each.drop()
                        self._settled(each)
        if cancelled:
            for each in backlog.cancel(lambda item: id(item) in cancelled):
                each.drop()
                self._settled(each)
        return stop

    def _make(self, engine: Engine, work: Work) -> Any:
        if work.future.cancelled():
            # The message is on its way, and will find nothing.
            work.drop()
            self._settled(work)
            return None
        task = work.make(engine)
        work.future._submitted = True
        return task

    def _failed(self, work: Work, error: Exception) -> None:
        work.fail(error)
        self._settled(work)

    def _settled(self, work: Work) -> None:
        for each in work.parts():
            if self._on_settled is not None and not each.counted:
                each.counted = True
                self._on_settled(each)

    def _replace_workers(self, engine: Engine) -> None:
        """Start another for each of our workers that died; its tasks are the engine's to send again."""
        if engine.workers is None:
            return
        dead = engine.workers.replace_dead()
        self._deaths += len(dead)
        if self._deaths > _DEATHS * max(1, len(engine.workers.processes)):
            raise EngineError(f"the workers die as soon as they are started; the last one said:\n{dead[-1]}")

    def _fail_what_is_left(self, backlog: Backlog[Work] | None) -> None:
        with self._lock:
            self._stopping = True
            error = self._broken
        left = [] if backlog is None else backlog.forget()
        left += [work for what, work in self._messages() if what == "work"]
        for work in left:
            broken = BrokenExecutor(
                f"the engine is gone: {error}" if error is not None else "the executor was shut down"
            )
            broken.__cause__ = error if isinstance(error, (PonchoError, Exception)) else None
            work.fail(broken)
            self._settled(work)
