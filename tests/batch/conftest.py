"""Batches for tests: small steps, a spool of their own, and each engine in turn."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import poncho_wq
from poncho_wq.batch.journal import JobRecord, Journal
from poncho_wq.batch.manager import Manager
from poncho_wq.batch.model import Batch, Job, Step, check
from poncho_wq.batch.spool import Spool
from poncho_wq.engines.opened import open_engine
from poncho_wq.errors import EngineNotInstalled
from poncho_wq.wrapper import wrapper_path
from tests.engines.conftest import make_environment

PATIENCE = 120


def sh(text: str, **options: Any) -> Step:
    """A step for tests; batches themselves know no shell."""
    return Step(argv=("/bin/sh", "-c", text), **options)


def job(name: str, text: str = "true", **options: Any) -> Job:
    return Job(name=name, steps=(sh(text),), **options)


@pytest.fixture(scope="session")
def tarball(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small environment, so that a test can unpack it."""
    return small_environment(tmp_path_factory.mktemp("environment") / "env.tar.gz")


def small_environment(path: Path, extra: dict[str, str] | None = None) -> Path:
    """As the engines' tests have it, with what TaskVine asks of one besides."""
    plain = make_environment(path.with_name(f"plain-{path.name}"), extra=extra)
    with tarfile.open(plain) as source, tarfile.open(path, "w:gz") as target:
        for member in source:
            target.addfile(member, source.extractfile(member) if member.isfile() else None)
        for name, whence in (
            ("bin/run_in_env", Path(poncho_wq.__file__).parent / "prefix_files" / "run_in_env"),
            ("bin/poncho_package_run", wrapper_path()),
        ):
            info = target.gettarinfo(whence, name)
            info.mode = 0o755
            with whence.open("rb") as file:
                target.addfile(info, file)
        target.addfile(tarfile.TarInfo("poncho/spec.json"))
    plain.unlink()
    return path


@pytest.fixture(params=["local", "work_queue", "taskvine"])
def kind(request: pytest.FixtureRequest) -> str:
    """Each engine in turn; skips those that are not installed."""
    return installed(str(request.param))


def installed(kind: str) -> str:
    from poncho_wq.engines.binding import find_work_queue
    from poncho_wq.engines.vine_manager import find_taskvine

    try:
        if kind == "work_queue":
            find_work_queue()
        elif kind == "taskvine":
            find_taskvine()
    except EngineNotInstalled as missing:
        pytest.skip(f"{kind} is not installed: {missing.message}")
    return kind


@pytest.fixture
def run(tmp_path: Path, tarball: Path) -> Callable[..., dict[str, JobRecord]]:
    """``run(job, …)`` runs a batch of jobs to its end and returns their records by name; results in tmp_path/b."""

    def run(*jobs: Job, kind: str = "local", features: tuple[str, ...] = (), **options: Any) -> dict[str, JobRecord]:
        batch = Batch(name="b", jobs=jobs, environment=str(tarball))
        check(batch)
        with managed(tmp_path, kind, features=features, **options) as (manager, journal):
            number = journal.add(batch, front_end="test")
            manager.adopt(number)
            drive(manager)
            return {record.name: record for record in journal.jobs(number)}

    return run


@contextmanager
def managed(
    save: Path, kind: str = "local", *, workers: int = 2, features: tuple[str, ...] = (), **options: Any
) -> Iterator[tuple[Manager, Journal]]:
    with (
        open_engine(kind, workers=workers, features=features) as engine,
        Journal(Spool(save)) as journal,
        Manager(engine, journal, **options) as manager,
    ):
        yield manager, journal


def drive(manager: Manager, until: Callable[[], bool] | None = None) -> None:
    """Turn the manager's loop until it is idle, or ``until`` says so."""
    limit = time.monotonic() + PATIENCE
    while not (manager.idle if until is None else until()):
        manager.turn(0.2)
        if time.monotonic() > limit:
            pytest.fail("the batch did not come to an end")


def cli(*words: str | os.PathLike[str], cwd: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """``poncho-wq batch …`` as a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "poncho_wq.cli.main", "batch", *map(str, words)],
        cwd=cwd, env={**os.environ, **environ}, capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
