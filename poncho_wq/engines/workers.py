"""Workers on this machine: real worker processes of Work Queue or TaskVine, started and always ended by us."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from poncho_wq.errors import EngineError, EngineNotInstalled

WORK_QUEUE, TASKVINE = "work_queue_worker", "vine_worker"
_ADVICE = {
    WORK_QUEUE: "install Debian's coop-computing-tools (apt-get), or conda's ndcctools "
    "(conda install -c conda-forge ndcctools)",
    TASKVINE: "conda install -c conda-forge ndcctools   (TaskVine is on no other package index)",
}

# A worker whose manager has gone leaves by itself after this many seconds, should we not live to end it.
ORPHAN_SECONDS = 60
# One whose manager is there waits for work: a program may well think for an hour between two tasks.
IDLE_SECONDS = 24 * 3600
# What a worker gets to finish its own clean-up after SIGTERM, before SIGKILL.
GRACE_SECONDS = 5


class LocalWorkers:
    """``count`` workers of ``cores`` cores each, for the manager on ``port`` of this machine.

    A context manager.  Each worker has a work directory of its own below ``directory`` (default: a temporary one),
    which is removed with it.  ``environ`` is the workers' whole environment (default: this process's own).
    ``program``: ``WORK_QUEUE`` or ``TASKVINE``.  ``features`` are what they offer to tasks that ask for them.
    ``password`` is what the manager wants to hear.

    Raises ``EngineNotInstalled`` when the program is not on PATH.
    """

    def __init__(
        self,
        port: int,
        *,
        count: int = 1,
        cores: int = 1,
        directory: str | os.PathLike[str] | None = None,
        environ: Mapping[str, str] | None = None,
        options: Sequence[str] = (),
        program: str = WORK_QUEUE,
        features: Sequence[str] = (),
        password: str | None = None,
    ) -> None:
        found = shutil.which(program)
        if found is None:
            raise EngineNotInstalled(f"{program} is not on PATH", advice=_ADVICE.get(program))
        self.port = port
        self._program = found
        self._features = tuple(f"--feature={feature}" for feature in features)
        self._count = count
        self._cores = cores
        self._options = tuple(options)
        self._password = password
        self._environ = dict(os.environ if environ is None else environ)
        self._parent = directory
        self._root: Path | None = None
        self._logs: dict[int, Path] = {}
        self.processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> LocalWorkers:
        self._root = Path(tempfile.mkdtemp(prefix="poncho-workers-", dir=self._parent)).resolve()
        if " " in str(self._root) and Path(self._program).name == TASKVINE:
            self._root.rmdir()
            raise EngineError(
                f"{self._root}: TaskVine's worker cannot use a directory with a blank in its name",
                advice="set TMPDIR, or give another directory",
            )
        try:
            if self._password is not None:
                # Not on a command line, which everybody on this machine can read.
                file = self._root / "password"
                file.touch(mode=0o600)
                file.write_text(self._password, encoding="ascii")
                self._options = (*self._options, f"--password={file}")
            for _ in range(self._count):
                self.start_one()
        except BaseException:
            self.stop()
            raise
        return self

    def start_one(self) -> subprocess.Popen[bytes]:
        """Start one more worker and return its process, the leader of a group of its own."""
        if self._root is None:
            raise RuntimeError("LocalWorkers is used outside its with block")
        # Two workers in one directory would share what they unpack, and one's end would empty the other's.
        home = Path(tempfile.mkdtemp(prefix="worker-", dir=self._root))
        # The log beside it: TaskVine's worker removes its directory with all that is in it.
        with home.with_suffix(".log").open("wb") as log:
            process = subprocess.Popen(
                [
                    self._program, "-s", str(home), "--cores", str(self._cores),
                    f"--idle-timeout={IDLE_SECONDS}", f"--connect-timeout={ORPHAN_SECONDS}",
                    *self._features, *self._options, "127.0.0.1", str(self.port),
                ],
                env=self._environ, cwd=self._root, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
        self.processes.append(process)
        self._logs[process.pid] = home.with_suffix(".log")
        return process

    def replace_dead(self) -> list[str]:
        """Start a new worker for each that has ended by itself; returns the last lines that each of these wrote."""
        dead = [process for process in self.processes if process.poll() is not None]
        said = []
        for process in dead:
            self.processes.remove(process)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            log = self._logs.pop(process.pid)
            said.append(log.read_text(errors="replace")[-1000:].strip() or f"nothing (status {process.returncode})")
            self.start_one()
        return said

    def stop(self) -> None:
        """End every worker and remove their directories; safe to call twice."""
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self.processes:
            try:
                process.wait(GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                pass
            # Its tasks are in its group; a worker that was killed leaves them behind.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self.processes.clear()
        if self._root is not None:
            shutil.rmtree(self._root, ignore_errors=True)
            self._root = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
