"""What a run of tasks leaves for ``poncho-wq report``: a directory.

    RUN/run.json            when and by what the run was made, and where the engine's log is
    RUN/tasks.jsonl         a line for each submission: a number, the function, the environment's identity
    RUN/environments/ID     what was sent for each environment, and the layers it is made of (JSON)
    RUN/told/N              what task N told of itself: the wrapper and the runner on the worker write it
    RUN/transactions        the engine's own log, where it can be told to write it there

Nothing has to be caught when a task comes back: the file with what it told is an output of the task, which the engine
puts into the directory itself.  So it does not matter who waits for the tasks, or whether anybody looks at them.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from poncho_wq.errors import EngineError, redact
from poncho_wq.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Sequence

    from poncho_wq.prepare import Environment
    from poncho_wq.spec import EnvSpec

FORMAT = 1
RUN_NAME, TASKS_NAME, ENVIRONMENTS_NAME, TOLD_NAME = "run.json", "tasks.jsonl", "environments", "told"
LOG_NAME = "transactions"

_current: Recording | None = None


class Kept:
    """An output of a task that stays, where ``staging.OwnFile`` is one that goes."""

    __slots__ = ("path",)

    def __init__(self, path: str) -> None:
        self.path = path

    def remove(self) -> None:
        """It belongs to the recording."""


class Recording:
    """Every ``PonchoTask`` that this process submits until ``close()``, with what it costs.

    Made by ``record``.  A task tells of itself in one more small output file.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = Path(directory).absolute()
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._number = 0
        self._seen: set[str] = set()
        self._facts: dict[str, Any] = {
            "format": FORMAT, "version": VERSION, "began": time.time(), "ended": None, "host": socket.gethostname(),
            "program": os.path.basename(sys.argv[0]) or "python", "engine": None, "log": None,
        }  # fmt: skip
        self._undo = contextlib.ExitStack()
        try:
            self._make()
        except FileExistsError:
            self._undo.close()
            raise EngineError(
                f"{self.directory}: there is a recording already", advice="name a new directory for each run"
            ) from None
        except OSError as error:
            self._undo.close()
            raise EngineError(
                f"{self.directory}: cannot be written: {error.strerror or error}", advice="name another directory"
            ) from error

    def _make(self) -> None:
        """The directory and what is in it from the beginning; what has been made is undone by ``discard``."""
        if not self.directory.exists():
            self.directory.mkdir(parents=True)
            self._undo.callback(_remove, self.directory)
        for name in (ENVIRONMENTS_NAME, TOLD_NAME):
            (self.directory / name).mkdir()
            self._undo.callback(_remove, self.directory / name)
        self._tasks = (self.directory / TASKS_NAME).open("x", encoding="utf-8", buffering=1)
        self._undo.callback(_remove, self.directory / TASKS_NAME)
        self._undo.callback(self._tasks.close)
        for name in (RUN_NAME, _partial(RUN_NAME)):
            self._undo.callback(_remove, self.directory / name)
        self._write_facts()

    def __enter__(self) -> Recording:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def attach(self, queue: Any) -> None:
        """Have ``queue`` write its log here: a ``WorkQueue``, a TaskVine ``Manager`` or a ``LocalQueue``.

        Raises ``EngineError`` for the second of a recording: two number their tasks alike; ``TypeError`` for what is
        none of these.
        """
        if self._facts["log"] is not None:
            raise EngineError("a recording is of one manager", advice="make one recording for each")
        if hasattr(queue, "specify_transactions_log"):
            queue.specify_transactions_log(str(self.directory / LOG_NAME))
            log = LOG_NAME
            engine = "local" if type(queue).__module__.startswith("poncho_wq.") else "work_queue"
        elif hasattr(queue, "logging_directory"):
            path, engine = Path(queue.logging_directory, "transactions").absolute(), "taskvine"
            log = str(path.relative_to(self.directory) if path.is_relative_to(self.directory) else path)
        else:
            raise TypeError(f"a queue or manager is needed, not {type(queue).__name__}")
        self._facts.update(log=log, engine=engine)
        self._write_facts()

    def add(self, name: str, environment: Environment, inputs: Sequence[tuple[str, str]]) -> Kept:
        """A task that is about to be submitted; returns the output in which it shall tell of itself.

        ``inputs`` are (local path, remote name) of the files in which the environment goes to workers.
        """
        with self._lock:
            self._number += 1
            number = self._number
            self._tasks.write(
                json.dumps({"task": number, "name": name, "environment": environment.identity, "at": time.time()})
                + "\n"
            )
            new = environment.identity not in self._seen
            self._seen.add(environment.identity)
        if new:
            self._describe(environment, inputs)
        return Kept(str(self.directory / TOLD_NAME / str(number)))

    def close(self) -> None:
        """No more tasks are recorded; those that are running still tell of themselves.  Safe to call twice."""
        global _current
        if _current is self:
            _current = None
        if not self._tasks.closed and self._pid == os.getpid():
            self._tasks.close()
            self._facts["ended"] = time.time()
            self._write_facts()

    def discard(self) -> None:
        """Close it and remove what it has made, so that its directory can be named again.  For one without tasks."""
        self._undo.close()

    def _describe(self, environment: Environment, inputs: Sequence[tuple[str, str]]) -> None:
        from poncho_wq.manifest import read_manifest

        manifest = None
        with contextlib.suppress(OSError):
            manifest = read_manifest(environment.tarball)
        spec = environment.spec
        facts = {
            "identity": environment.identity,
            "size": environment.size,
            "python": environment.python,
            "built": not environment.cached,
            "packages": [] if spec is None else [redact(each) for each in (*_conda(spec), *spec.pip)],
            "unpacked": None if manifest is None else manifest.unpacked,
            "layers": [] if manifest is None else [
                {"name": each.name, "size": each.length, "unpacked": each.unpacked, "digest": each.digest}
                for each in manifest.layers
            ],
            "pins": _pins(environment, [] if manifest is None else [each.name for each in manifest.layers]),
            "inputs": {remote: _size(local) for local, remote in inputs},
        }  # fmt: skip
        self._publish(self.directory / ENVIRONMENTS_NAME / environment.identity, facts)

    def _write_facts(self) -> None:
        self._publish(self.directory / RUN_NAME, self._facts)

    def _publish(self, path: Path, facts: dict[str, Any]) -> None:
        partial = path.with_name(_partial(path.name))
        partial.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        partial.replace(path)


def _partial(name: str) -> str:
    return f"{name}.partial"


def _remove(path: Path) -> None:
    """What was made; a directory stays as long as anything of somebody else's is in it."""
    with contextlib.suppress(OSError):
        path.rmdir() if path.is_dir() else path.unlink()


def record(directory: str | os.PathLike[str], queue: Any = None) -> Recording:
    """Record what this process's tasks cost, for ``poncho-wq report DIRECTORY``.

    ``directory`` is made, and holds no other recording.  ``queue`` is the manager that the tasks will be submitted to,
    before the first is: its log tells which worker ran what, and when.  Executors and batches attach their own.

        with poncho_wq.record("run-1", q):
            …submit and wait as ever…

    Raises ``EngineError`` when the directory cannot be written or holds a recording, or another one is going on, and
    ``TypeError`` for a queue that is none.
    """
    global _current
    if current() is not None:
        raise EngineError("a recording is going on already", advice="close() it first")
    recording = Recording(directory)
    if queue is not None:
        try:
            recording.attach(queue)
        except BaseException:
            recording.discard()
            raise
    _current = recording
    return recording


def current() -> Recording | None:
    """The recording that is going on in this process; a forked child has none."""
    return _current if _current is not None and _current._pid == os.getpid() else None


def attach(queue: Any) -> None:
    """For whoever opens a manager of ours: have a recording that has no log yet take this one's."""
    recording = current()
    if recording is not None and recording._facts["log"] is None:
        recording.attach(queue)


def _pins(environment: Environment, layers: Sequence[str]) -> list[dict[str, Any]]:
    """Each package that was locked, and the layers that hold it; none where the tarball does not tell."""
    from poncho_wq.described import describe
    from poncho_wq.errors import PonchoError
    from poncho_wq.packing.planning import layers_of

    if not layers:
        return []
    try:
        lock = describe(str(environment.tarball)).lock
    except PonchoError:
        return []
    if lock is None:
        return []
    packages = [(each.name, each.version) for each in lock.packages]
    packages += [(each.name, each.version) for each in lock.conda]
    return [
        {"package": name if version is None else f"{name}=={version}", "layers": layers_of(name, version, layers)}
        for name, version in packages
    ]


def _conda(spec: EnvSpec) -> tuple[str, ...]:
    return () if spec.conda is None else spec.conda.packages


def _size(path: str) -> int:
    try:
        return os.path.getsize(path)
    except OSError:
        return 0
