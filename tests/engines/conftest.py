"""Queues with real workers, and a small environment for them.

The environment is a tarball in the manner of venv-pack: a ``pyvenv.cfg``, a link to this Python and one module that is
installed nowhere else.  Small, so that a test can unpack it; real, so that ``sys.prefix`` says where a task ran.
"""

from __future__ import annotations

import io
import os
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from poncho_wq.engines.local import LocalQueue
from poncho_wq.engines.work_queue import WorkQueue
from poncho_wq.engines.workers import LocalWorkers
from poncho_wq.errors import EngineNotInstalled

PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"
# How long a test waits for a task before it calls it lost.
PATIENCE = 60
# So that no worker of another test, or of anybody on this machine, is given tasks.
PASSWORD = "of the tests"


def _add(tar: tarfile.TarFile, name: str, text: str, mode: int = 0o644) -> None:
    info = tarfile.TarInfo(name)
    info.mode, info.size = mode, len(text.encode())
    tar.addfile(info, io.BytesIO(text.encode()))


def _link(tar: tarfile.TarFile, name: str, target: str) -> None:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, target
    tar.addfile(info)


def make_environment(path: Path, *, python: bool = True, extra: dict[str, str] | None = None) -> Path:
    """Write the tarball; ``extra`` are more files, by their name in it; those in ``bin`` are programs."""
    base = Path(sys.base_prefix) / "bin"
    with tarfile.open(path, "w:gz") as tar:
        _add(tar, "bin/activate", "# nothing to do\n")
        _add(tar, "bin/only-there", "#!/bin/sh\necho a program of the environment\n", 0o755)
        if python:
            _add(tar, "pyvenv.cfg", f"home = {base}\ninclude-system-site-packages = false\n")
            for name in ("python", "python3", PYTHON):
                _link(tar, f"bin/{name}", str(base / PYTHON))
        _add(tar, f"lib/{PYTHON}/site-packages/only_there.py", "WORDS = 'from the environment'\n")
        for name, text in (extra or {}).items():
            _add(tar, name, text, 0o755 if name.startswith("bin/") else 0o644)
    return path


@pytest.fixture(scope="session")
def tarball(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The environment's tarball."""
    return make_environment(tmp_path_factory.mktemp("environment") / "env.tar.gz")


@pytest.fixture(scope="session")
def trap(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory for the front of a worker's PATH: any Python found there spoils the task."""
    directory = tmp_path_factory.mktemp("trap")
    for name in ("python", "python3", PYTHON):
        (directory / name).write_text("#!/bin/sh\necho the Python of the worker was used\nexit 97\n")
        (directory / name).chmod(0o755)
    return directory


class Engine:
    """A queue with something to run its tasks, and how tests use it."""

    def __init__(self, name: str, queue: Any) -> None:
        self.name = name
        self.queue = queue

    def run(self, *tasks: Any) -> Any:
        """Submit tasks and wait for all; returns the first, done."""
        for task in tasks:
            self.queue.submit(task)
        self.wait_for(len(tasks))
        return tasks[0]

    def wait_for(self, count: int) -> list[Any]:
        done: list[Any] = []
        until = time.monotonic() + PATIENCE
        while len(done) < count:
            task = self.queue.wait(1)
            if task is not None:
                done.append(task)
            elif time.monotonic() > until:
                pytest.fail(f"{self.name}: {count - len(done)} tasks never came back")
        return done


def _worker_environ(trap: Path) -> dict[str, str]:
    return {"PATH": f"{trap}:/usr/local/bin:/usr/bin:/bin", "HOME": "/nonexistent", "PYTHONPATH": str(trap)}


@pytest.fixture(scope="session")
def start_workers(trap: Path) -> Callable[..., Any]:
    """``with start_workers(q) as workers:`` real workers for a manager, whose own Python is a trap."""

    def start(queue: Any, **options: Any) -> LocalWorkers:
        return LocalWorkers(queue.port, environ=_worker_environ(trap), password=PASSWORD, **options)

    return start


@pytest.fixture(scope="session")
def make_manager() -> Callable[[], Any]:
    """A new manager of the real Work Queue on a port that is free; skips where it is not installed."""

    def make() -> Any:
        try:
            queue = WorkQueue(0)
        except EngineNotInstalled as missing:
            pytest.skip(f"Work Queue is not installed: {missing.message}")
        queue.specify_password(PASSWORD)
        return queue

    return make


@pytest.fixture(scope="module", params=["work_queue", "local"])
def engine(
    request: pytest.FixtureRequest, make_manager: Callable[[], Any], start_workers: Callable[..., Any], trap: Path
) -> Iterator[Engine]:
    """Each engine in turn, with two cores; one queue for all tests of a module."""
    if request.param == "work_queue":
        queue = make_manager()
        with start_workers(queue, cores=2, options=("--disk", "2000", "--memory", "4000")):
            yield Engine("work_queue", queue)
        return
    before = dict(os.environ)
    os.environ.update(_worker_environ(trap))
    try:
        with LocalQueue(cores=2) as queue:
            yield Engine("local", queue)
    finally:
        os.environ.clear()
        os.environ.update(before)
