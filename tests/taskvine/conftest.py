"""Real TaskVine managers and workers, where TaskVine is installed; prepared environments for them."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import poncho_wq
from poncho_wq.prepare import Environment

PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"
# How long a test waits for a task before it calls it lost.
PATIENCE = 60


@pytest.fixture(scope="session")
def environments(shared_cache: Path) -> Callable[[str], Environment]:
    """``environments("word")``: an environment of ours without packages, in which ``$WORD`` is that word."""

    def make(word: str) -> Environment:
        return poncho_wq.environment({"env": {"WORD": word}}, cache_dir=shared_cache)

    return make


@pytest.fixture(scope="session")
def vine() -> Any:
    """TaskVine's module; skips where it or its worker is not installed."""
    if importlib.util.find_spec("ndcctools") is None or importlib.util.find_spec("ndcctools.taskvine") is None:
        pytest.skip("TaskVine is not installed: no module ndcctools.taskvine")
    if shutil.which("vine_worker") is None:
        pytest.skip("TaskVine is not installed: no vine_worker on PATH")
    import ndcctools.taskvine

    return ndcctools.taskvine


class Cluster:
    """A manager and its workers on this machine."""

    def __init__(self, manager: Any, home: Path, trap: Path) -> None:
        self.manager = manager
        self._home = home
        self._trap = trap
        self.workers: list[subprocess.Popen[bytes]] = []

    def start_worker(self, cores: int = 2) -> subprocess.Popen[bytes]:
        """One more worker.  Its directory is its own, since it removes it in the end, and without a blank, since it
        cannot use one otherwise."""
        number = len(self.workers)
        program = shutil.which("vine_worker")
        assert program is not None
        with (self._home / f"{number}.out").open("wb") as out:
            worker = subprocess.Popen(
                [
                    program, "-s", str(self._home / f"worker{number}"), "--cores", str(cores), "--memory", "2000",
                    "--disk", "4000", "-t", "60", "-d", "vine", "-o", str(self._home / f"{number}.debug"),
                    "127.0.0.1", str(self.manager.port),
                ],
                env={"PATH": f"{self._trap}:/usr/bin:/bin", "HOME": "/nonexistent", "PYTHONPATH": str(self._trap)},
                stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        self.workers.append(worker)
        return worker

    def unpacked(self) -> list[int]:
        """How many environments each worker has unpacked."""
        return [
            len(re.findall("cache: creating .* via mini task", (self._home / f"{n}.debug").read_text(errors="replace")))
            for n in range(len(self.workers))
        ]

    def uploads(self, size: int) -> int:
        """How many files of ``size`` bytes the manager itself has sent."""
        log = Path(self.manager.logging_directory, "debug").read_text(errors="replace")
        return len(re.findall(rf"tx to .*: put \S+ [0-9]+ {size}\n", log))

    def submit(self, *tasks: Any) -> None:
        for task in tasks:
            self.manager.submit(task)

    def finish(self) -> list[Any]:
        """Wait for everything that was submitted."""
        done = []
        until = time.monotonic() + PATIENCE
        while not self.manager.empty():
            task = self.manager.wait(1)
            if task is not None:
                done.append(task)
                until = time.monotonic() + PATIENCE
            elif time.monotonic() > until:
                pytest.fail("a task never came back")
        return done

    def run(self, *tasks: Any) -> Any:
        """Submit tasks and wait for all; returns the first, done."""
        self.submit(*tasks)
        self.finish()
        return tasks[0]

    def stop(self) -> None:
        for worker in self.workers:
            worker.send_signal(signal.SIGKILL if worker.poll() is None else signal.SIGCONT)
        for worker in self.workers:
            worker.wait()
            # Its transfer server and its tasks; those with a group of their own see that it is gone.
            try:
                os.killpg(worker.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass


@pytest.fixture
def cluster(vine: Any, tmp_path: Path) -> Iterator[Cluster]:
    """A manager without workers."""
    trap = tmp_path / "trap"
    trap.mkdir()
    for name in ("python", "python3", PYTHON):
        (trap / name).write_text("#!/bin/sh\necho the Python of the worker was used\nexit 97\n")
        (trap / name).chmod(0o755)
    manager = vine.Manager(port=0, run_info_path=str(tmp_path / "info"))
    made = Cluster(manager, tmp_path, trap)
    try:
        yield made
    finally:
        made.stop()
