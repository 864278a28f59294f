"""The embedded engine: the same tasks, the same wrapper, as processes of this machine.

``with LocalQueue(cores=4) as q: q.submit(t); q.wait()``.  A task finds what it would find on a worker: a workspace with
``cache/`` and a sandbox ``t.N`` of its own, ``$WORK_QUEUE_SANDBOX``, ``$TMPDIR``, ``$CORES``, its own process group,
stdin empty, stdout and stderr merged; only its declared files go in and come out.

There is no thread and no server: tasks start in ``submit`` and ``wait``, and end by themselves.
"""

from __future__ import annotations

import atexit
import errno
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from poncho_wq.engines import sandbox, stand_in
from poncho_wq.engines.work_queue import PonchoTask
from poncho_wq.errors import EngineError

__all__ = ["LocalQueue"]

WAITFORTASK = -1
# What `wait` looks at besides the ends of processes: deadlines, and tasks of which no descriptor tells the end.
POLL_SECONDS = 0.02


@dataclass(kw_only=True)
class _Running:
    """A task that has been started.  ``pidfd`` is None where the kernel has none (before Linux 5.3)."""

    task: Any
    wishes: stand_in.Task
    process: subprocess.Popen[bytes]
    pidfd: int | None
    home: Path
    said: IO[bytes]
    cores: int
    started: float
    deadline: float | None
    ended_for: int | None = None


class LocalQueue:
    """Runs tasks on this machine, up to ``cores`` at a time.

    ``cores`` defaults to those that this process may use; a task counts as one unless it calls ``specify_cores``.  The
    workspace is a new directory below ``workdir`` (default: the temporary directory).  Tasks of higher priority start
    first, others in the order of submission.  As a context manager it ends with everything that it started ended, and
    its workspace removed; ``close()`` does the same.

    Features and preferred hosts mean nothing here; memory and disk (MB) are passed on to the task, not enforced.
    Raises ``EngineError`` for less than one core.
    """

    def __init__(self, cores: int | None = None, workdir: str | os.PathLike[str] | None = None) -> None:
        self.cores = cores if cores is not None else len(os.sched_getaffinity(0))
        if self.cores < 1:
            raise EngineError(f"LocalQueue takes a number of cores from 1, not {cores}")
        self._parent = workdir
        self._workspace: Path | None = None
        self._closed = False
        self._pid = os.getpid()
        self._ids = 0
        self._waiting: list[tuple[Any, stand_in.Task]] = []
        self._running: list[_Running] = []
        self._done: list[Any] = []
        self._log: IO[str] | None = None
        # For those who do not use a with block; at exit it is too late for `__del__`.
        self._at_exit = partial(_close, weakref.ref(self))
        atexit.register(self._at_exit)

    def __enter__(self) -> LocalQueue:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        try:
            self.close()
        except Exception:
            pass  # at interpreter exit modules may be half gone

    @property
    def workspace(self) -> Path:
        """The directory that plays the worker's workspace, made when first needed."""
        if self._workspace is None:
            self._workspace = Path(tempfile.mkdtemp(prefix="poncho-local-", dir=self._parent))
            (self._workspace / "cache").mkdir()
        return self._workspace

    # -- as WorkQueue has them

    def submit(self, task: PonchoTask) -> int:
        """Queue a task and return its id.

        Raises what preparing its environment raises, and ``EngineError`` for what this engine cannot do.
        """
        if self._closed:
            raise EngineError("the LocalQueue is closed")
        if not isinstance(task, PonchoTask):
            raise EngineError(f"LocalQueue runs PonchoTask objects, not {type(task).__name__}")
        if any(task is other for other in self._tasks()):
            raise EngineError("the task has been submitted already and has not come back")
        struct = task._task
        wishes = task._wishes()
        self._refuse(wishes)
        self._ids += 1
        struct.taskid = self._ids
        struct.time_when_submitted = struct.time_task_submit = _now()
        self._say(f"TASK {self._ids} WAITING {task.category} FIRST_RESOURCES {{}}")
        self._waiting.append((task, wishes))
        self._start_waiting()
        return self._ids

    def wait(self, timeout: float | None = WAITFORTASK) -> Any:
        """The next task that is done, or None after ``timeout`` seconds, or at once when there is none to wait for.

        ``None`` and ``-1`` mean no limit.
        """
        until = None if timeout is None or timeout < 0 else time.monotonic() + timeout
        while True:
            self._collect()
            self._start_waiting()
            if self._done:
                return self._done.pop(0)
            left = None if until is None else until - time.monotonic()
            if not self._running or (left is not None and left <= 0):
                return None
            self._sleep(left)

    def empty(self) -> bool:
        """Whether there is nothing to wait for."""
        return not (self._waiting or self._running or self._done)

    def hungry(self) -> bool:
        """Whether another task could start now."""
        return not self._waiting and sum(run.cores for run in self._running) < self.cores

    def specify_transactions_log(self, path: str) -> None:
        """Write what becomes of tasks to ``path``, as Work Queue does, with this process as the worker.

        Raises ``OSError`` when it cannot be written.
        """
        self._log = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 # closed by close()
        self._say("MANAGER START")

    def _say(self, what: str) -> None:
        if self._log is not None:
            self._log.write(f"{_now()} {self._pid} {what}\n")

    def cancel_by_taskid(self, taskid: int) -> Any:
        """End a task, with all its processes, and return it; None when there is no such task here."""
        return self._cancel(lambda task: task.id == taskid)

    def cancel_by_tasktag(self, tag: str) -> Any:
        """End the first task with this tag, with all its processes, and return it; None when there is none."""
        return self._cancel(lambda task: task.tag == tag)

    def cancel_by_category(self, category: str) -> list[Any]:
        """End all tasks of a category and return them."""
        cancelled = []
        while (task := self._cancel(lambda task: task.category == category)) is not None:
            cancelled.append(task)
        return cancelled

    def close(self) -> None:
        """End every task with all its processes and remove the workspace; safe to call twice, and in a forked child."""
        if self._closed or self._pid != os.getpid():
            return
        self._closed = True
        atexit.unregister(self._at_exit)
        for run in self._running:
            _kill_group(run.process.pid)
        for run in self._running:
            self._forget(run)
        self._running.clear()
        self._waiting.clear()
        if self._log is not None:
            self._say("MANAGER END")
            self._log.close()
        if self._workspace is not None:
            sandbox.remove(self._workspace)

    # -- how

    def _tasks(self) -> list[Any]:
        return [*(task for task, _ in self._waiting), *(run.task for run in self._running), *self._done]

    def _refuse(self, wishes: stand_in.Task) -> None:
        cores = wishes.resources.get("cores", 1)
        if cores > self.cores:
            raise EngineError(
                f"the task asks for {cores} cores, this LocalQueue has {self.cores}: it would wait for ever",
                advice=f"use LocalQueue(cores={cores})",
            )
        for file in wishes.files:
            if file.kind in ("command", "url"):
                raise EngineError(
                    f"{file.remote}: the embedded engine does not fetch files by {file.kind}",
                    advice="fetch it first and use specify_input_file, or submit to a WorkQueue",
                )

    def _start_waiting(self) -> None:
        """Start what fits: by priority, then by age; a task that does not fit lets smaller ones pass."""
        free = self.cores - sum(run.cores for run in self._running)
        if not self._waiting or free < 1:
            return
        order = sorted(range(len(self._waiting)), key=lambda i: (-self._waiting[i][0].priority, i))
        started = set()
        for i in order:
            if free < 1:
                break
            task, wishes = self._waiting[i]
            cores = max(1, wishes.resources.get("cores", 1))
            if cores <= free:
                started.add(i)
                free -= cores if self._start(task, wishes, cores) else 0
        self._waiting = [item for i, item in enumerate(self._waiting) if i not in started]

    def _start(self, task: Any, wishes: stand_in.Task, cores: int) -> bool:
        """Fill the sandbox and start the command; False when the task was done before it began."""
        struct = task._inner._task
        home = self.workspace / f"t.{struct.taskid}"
        struct.time_when_commit_start = struct.time_send_input_start = _now()
        try:
            sandbox.fill(home, self.workspace / "cache", wishes.files)
        except OSError as error:
            self._finish(task, status=-1, result=stand_in.INPUT_MISSING, said=f"{error}\n".encode())
            sandbox.remove(home)
            return False
        struct.time_when_commit_end = struct.time_send_input_finish = _now()
        said = (self.workspace / f"worker.stdout.{struct.taskid}").open("w+b")
        try:
            process = _spawn(struct.command_line, home, self._environ(struct.taskid, home, wishes, cores), said)
        except OSError as error:
            said.close()
            self._finish(task, status=-1, result=stand_in.INPUT_MISSING, said=f"{error}\n".encode())
            sandbox.remove(home)
            return False
        started = time.monotonic()
        struct.time_execute_cmd_start = _now()
        self._say(f"TASK {struct.taskid} RUNNING {socket.gethostname()}:0 FIRST_RESOURCES {{}}")
        self._running.append(
            _Running(
                task=task, wishes=wishes, process=process, pidfd=_pidfd(process.pid), home=home, said=said,
                cores=cores, started=started, deadline=_deadline(wishes, started),
            )
        )  # fmt: skip
        return True

    def _environ(self, taskid: int, home: Path, wishes: stand_in.Task, cores: int) -> dict[str, str]:
        """The environment variables that ``work_queue_worker`` gives to a task."""
        environ = dict(os.environ)
        environ.pop("DISPLAY", None)
        # Ours even when we run inside a worker's task, whose own variable names a workspace that is not ours.
        environ["WORK_QUEUE_SANDBOX"] = str(self.workspace)
        given = wishes.resources
        if given.get("cores", 0) > 0:
            for name in ("CORES", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_NUM_THREADS", "MKL_NUM_THREADS",
                         "NUMEXPR_NUM_THREADS"):  # fmt: skip
                environ[name] = str(cores)
        for name in ("memory", "disk", "gpus"):
            if given.get(name, 0) > 0:
                environ[name.upper()] = str(given[name])
        for name, value in wishes.variables:
            if value is None:
                environ.pop(name, None)
            else:
                environ[name] = value
        temporary = tempfile.mkdtemp(prefix=f"cctools-temp-t.{taskid}.", dir=home)
        environ.update(TMPDIR=temporary, TEMP=temporary, TMP=temporary)
        return environ

    def _sleep(self, limit: float | None) -> None:
        """Until a process may have ended, a deadline has come, or ``limit`` seconds have passed."""
        now = time.monotonic()
        waits = [limit] if limit is not None else []
        waits += [max(0.0, run.deadline - now) for run in self._running if run.deadline is not None]
        pidfds = [run.pidfd for run in self._running if run.pidfd is not None]
        if len(pidfds) < len(self._running):
            waits.append(POLL_SECONDS)
        poll = select.poll()
        for pidfd in pidfds:
            poll.register(pidfd, select.POLLIN)
        poll.poll(None if not waits else max(1, int(min(waits) * 1000)))

    def _collect(self) -> None:
        """Finish every task whose process has ended; end those that are over their time."""
        now = time.monotonic()
        for run in list(self._running):
            if run.deadline is not None and now >= run.deadline and run.ended_for is None:
                late = run.wishes.end_time is not None and _now() >= run.wishes.end_time
                run.ended_for = stand_in.TASK_TIMEOUT if late else stand_in.TASK_MAX_RUN_TIME
                _kill_group(run.process.pid)
            if _has_ended(run.process.pid):
                self._running.remove(run)
                self._end(run)

    def _end(self, run: _Running) -> None:
        """The process has ended: fetch the outputs and fill in the task, as the manager of Work Queue does."""
        # Not reaped yet, so that its number still names its group, and what it left running can be ended.
        _kill_group(run.process.pid)
        struct = run.task._inner._task
        struct.time_execute_cmd_finish = _now()
        self._say(f"TASK {struct.taskid} WAITING_RETRIEVAL {socket.gethostname()}:0")
        elapsed = int((time.monotonic() - run.started) * 1e6)
        struct.cmd_execution_time = struct.time_workers_execute_last = elapsed
        struct.total_cmd_execution_time = elapsed
        code = run.process.wait()
        # Work Queue shows a signal's number as the exit status; here it is known which of the two it was.
        run.task._signal = max(0, -code)
        run.said.seek(0)
        said = run.said.read()
        result = run.ended_for or stand_in.SUCCESS
        missing = sandbox.fetch(run.home, run.wishes.files, failed=code != 0)
        if missing and not run.ended_for:
            result |= stand_in.OUTPUT_MISSING
        self._forget(run)
        self._finish(run.task, status=abs(code), result=result, said=said)

    def _forget(self, run: _Running) -> None:
        run.process.wait()
        if run.pidfd is not None:
            os.close(run.pidfd)
        run.said.close()
        Path(run.said.name).unlink(missing_ok=True)
        sandbox.remove(run.home)

    def _finish(self, task: Any, *, status: int, result: int, said: bytes) -> None:
        struct = task._inner._task
        text = said.decode(errors="surrogateescape")
        task._said = text
        struct.return_status = status
        struct.result = result
        # For those who read the structure itself: a C string, which has no NUL and is UTF-8.
        struct.output = said.decode(errors="replace").replace("\0", "")
        struct.hostname = socket.gethostname()
        struct.host = f"{socket.gethostname()}:0"
        struct.total_submissions = 1
        struct.time_when_done = struct.time_task_finish = struct.time_when_retrieval = _now()
        self._say(
            f"TASK {struct.taskid} DONE {'SUCCESS' if result == stand_in.SUCCESS else 'UNKNOWN'} {status} {{}} {{}}"
        )
        self._done.append(task)

    def _cancel(self, wanted: Callable[[Any], bool]) -> Any:
        for i, (task, _) in enumerate(self._waiting):
            if wanted(task):
                del self._waiting[i]
                return task
        for run in self._running:
            if wanted(run.task):
                self._running.remove(run)
                _kill_group(run.process.pid)
                self._forget(run)
                return run.task
        for task in self._done:
            if wanted(task):
                self._done.remove(task)
                return task
        return None


def _close(queue: weakref.ref[LocalQueue]) -> None:
    alive = queue()
    if alive is not None:
        alive.close()


def _spawn(command: str, home: Path, environ: dict[str, str], said: IO[bytes]) -> subprocess.Popen[bytes]:
    """``sh -c command`` as the leader of a process group, in the session of this process where that can be had."""
    group: dict[str, Any] = {"process_group": 0} if sys.version_info >= (3, 11) else {"start_new_session": True}
    return subprocess.Popen(
        ["/bin/sh", "-c", command], cwd=home, env=environ, stdin=subprocess.DEVNULL, stdout=said,
        stderr=subprocess.STDOUT, executable="/bin/sh", **group,
    )  # fmt: skip


def _pidfd(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None


def _has_ended(pid: int) -> bool:
    """Whether a child has ended, without reaping it."""
    ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    return ended is not None


def _kill_group(pid: int) -> None:
    """SIGKILL for a process group whose leader is our child and not reaped yet."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except OSError as error:
        if error.errno not in (errno.ESRCH, errno.EPERM):
            raise


def _deadline(wishes: stand_in.Task, started: float) -> float | None:
    """When the task must have ended, on the monotonic clock."""
    limits = []
    if wishes.running_time_max is not None:
        limits.append(started + wishes.running_time_max)
    if wishes.end_time is not None:
        limits.append(started + (wishes.end_time - _now()) / 1e6)
    return min(limits, default=None)


def _now() -> int:
    """Microseconds since the Epoch, as in Work Queue's fields."""
    return time.time_ns() // 1000
