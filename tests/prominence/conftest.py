"""A spool of its own for each test, with a service on each engine in turn, which ends with the test."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from poncho_wq.batch.prominence import client, door
from poncho_wq.batch.spool import Spool
from poncho_wq.errors import EngineError
from poncho_wq.prominence import Job, Task
from tests.engines.conftest import make_environment
from tests.engines.opened_engines import needed

PATIENCE = 120


@pytest.fixture(scope="session")
def tarball(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Poncho environment, with an mpirun that says what it was given."""
    mpirun = '#!/bin/sh\necho "mpirun $*"; shift 2; exec "$@"\n'
    path = make_environment(tmp_path_factory.mktemp("environment") / "env.tar.gz", extra={"bin/mpirun": mpirun})
    return _executable(path)


def _executable(path: Path) -> Path:
    import tarfile

    done = path.with_name("environment.tar.gz")
    with tarfile.open(path) as source, tarfile.open(done, "w:gz") as target:
        for member in source:
            member.mode |= 0o111 if member.name.startswith("bin/") else 0
            target.addfile(member, source.extractfile(member) if member.isfile() else None)
    return done


class Service:
    """The spool of a test, and the process that serves it."""

    def __init__(self, spool: Path) -> None:
        self.spool = Spool(spool)

    @property
    def pid(self) -> int:
        return int(door.ask(self.spool, {"do": "knock"})[0]["pid"])

    @property
    def is_there(self) -> bool:
        try:
            door.ask(self.spool, {"do": "knock"})
        except EngineError:
            return False
        return True

    def kill(self) -> None:
        """As a crash would."""
        pid = self.pid
        os.kill(pid, signal.SIGKILL)
        until(lambda: not _lives(pid))

    def end(self) -> None:
        try:
            pid = self.pid
        except EngineError:
            return
        os.kill(pid, signal.SIGTERM)
        until(lambda: not _lives(pid))


def _lives(pid: int) -> bool:
    for process in client._started:
        process.poll()  # one of ours would stay a zombie
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def until(condition: Callable[[], Any]) -> Any:
    """Wait for it, and return what it is; a test that waits for ever has failed."""
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < deadline, "this never came to pass"
        time.sleep(0.05)
    return found


@contextmanager
def _serving(spool: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> Iterator[Service]:
    for name, value in {"spool": spool, "idle": 60, **settings}.items():
        monkeypatch.setenv(f"PONCHO_PROMINENCE_{name.upper()}", str(value))
    monkeypatch.setenv("PONCHO_CONFIG", str(spool.with_name("config.toml")))
    service = Service(spool)
    try:
        yield service
    finally:
        service.end()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    """A service on the embedded engine."""
    with _serving(tmp_path / "spool", monkeypatch, engine="local", cores=2) as service:
        yield service


@pytest.fixture(params=["local", "work_queue"])
def service(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    """A service on each engine; Work Queue's with two real workers."""
    needed(request.param)
    more = {"workers": 2} if request.param == "work_queue" else {"cores": 2}
    with _serving(tmp_path / "spool", monkeypatch, engine=request.param, **more) as service:
        yield service


@pytest.fixture
def serving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """``with serving(engine="local", stall=1) as service:`` a service with settings of one's own."""
    return lambda **settings: _serving(tmp_path / "spool", monkeypatch, **settings)


@pytest.fixture
def task(tarball: Path) -> Callable[..., Task]:
    """``task("text of a shell")``: in the small environment."""

    def make(text: str, **properties: Any) -> Task:
        import shlex

        made = Task(image=str(tarball), runtime="singularity", command=f"/bin/sh -c {shlex.quote(text)}")
        for name, value in properties.items():
            setattr(made, name, value)
        return made

    return make


@pytest.fixture
def job(task: Callable[..., Task]) -> Callable[..., Job]:
    """``job("text of a shell", …)``: one task after the other, that ask for little."""

    def make(*texts: str | Task, name: str = "") -> Job:
        made = Job()
        made.name = name
        made.resources.disk = 0.1
        made.resources.memory = 0.1
        made.tasks = [text if isinstance(text, Task) else task(text) for text in texts]
        return made

    return make
