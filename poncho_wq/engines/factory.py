"""Workers as jobs of a batch system: a ``work_queue_factory`` or ``vine_factory`` of ours, ended with its workers."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from poncho_wq.errors import EngineNotInstalled

__all__ = ["Factory"]

# What a factory gets to take its jobs out of the batch system.
GRACE_SECONDS = 30


class Factory:
    """Keeps ``count`` workers of ``cores`` cores running as jobs of ``batch_type``, for the manager on ``port`` here.

    A context manager.  ``batch_type`` is what ``-T`` of the factory takes: ``slurm``, ``condor``, ``local``, ….  Raises
    ``EngineNotInstalled`` when the factory's program is not on PATH.
    """

    def __init__(
        self,
        kind: str,
        port: int,
        batch_type: str,
        *,
        count: int,
        cores: int,
        features: tuple[str, ...] = (),
        directory: str | os.PathLike[str] | None = None,
        password_file: str | None = None,
        worker_options: Sequence[str] = (),
    ) -> None:
        name = "vine_factory" if kind == "taskvine" else "work_queue_factory"
        program = shutil.which(name)
        if program is None:
            raise EngineNotInstalled(
                f"{name} is not on PATH", engine=kind, advice="conda install -c conda-forge ndcctools"
            )
        options = [*(f"--feature={feature}" for feature in features), *worker_options]
        self._command = [
            program, "-T", batch_type, "-w", str(count), "-W", str(count), f"--workers-per-cycle={count}",
            f"--cores={cores}", "--parent-death", *(["-E", shlex.join(options)] if options else []),
            *([] if password_file is None else ["-P", os.path.abspath(password_file)]),
            # Batch jobs run elsewhere; those of this machine may find no route to its public name.
            "127.0.0.1" if batch_type == "local" else socket.getfqdn(), str(port),
        ]  # fmt: skip
        self._parent = directory
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Factory:
        self._scratch = Path(tempfile.mkdtemp(prefix="poncho-factory-", dir=self._parent))
        with (self._scratch / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [self._command[0], "-S", str(self._scratch), *self._command[1:]],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        process = self._process
        if process is None:
            return
        process.send_signal(signal.SIGINT if process.poll() is None else signal.SIGCONT)
        try:
            process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        shutil.rmtree(self._scratch, ignore_errors=True)
