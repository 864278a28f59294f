"""Warm interpreters through real Work Queue, and with the embedded engine."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from poncho_wq.engines.work_queue import PonchoTask
from poncho_wq.errors import EngineError, TaskError
from tests.engines.conftest import PATIENCE, Engine


def _warm(function: Any, *args: Any, environment: Path, warm: Any = True) -> PonchoTask:
    task = PonchoTask(function, *args, environment=environment)
    task.specify_warm(warm)
    task.specify_cores(1)
    return task


def who(*_: Any) -> tuple[int, str, str]:
    import os

    import only_there  # type: ignore[import-not-found]

    return os.getppid(), only_there.WORDS, os.getcwd()


def _get_warm(engine: Engine, tarball: Path) -> int:
    """Run tasks until they are warm; returns the server's pid."""
    until = time.monotonic() + PATIENCE
    workers = engine.run(PonchoTask(who, environment=tarball)).output[0]
    while time.monotonic() < until:
        parent = engine.run(_warm(who, environment=tarball)).output[0]
        if parent != workers:
            return int(parent)
        time.sleep(0.1)
    pytest.fail("no task was ever warm")


def test_tasks_become_warm(engine: Engine, tarball: Path) -> None:
    server = _get_warm(engine, tarball)
    tasks = [_warm(who, n, environment=tarball, warm=("auto", True)[n % 2]) for n in range(20)]
    engine.run(*tasks)
    refused = [path.read_text() for path in Path(tasks[0].output[2]).parent.glob("poncho-warm-*/refused")]
    assert {task.output[:2] for task in tasks} == {(server, "from the environment")}, refused
    assert len({task.output[2] for task in tasks}) == 20, "each in a sandbox of its own"
    assert {task.return_status for task in tasks} == {0}
    again = tasks[0].clone()
    assert engine.run(again).output[0] == server, "a clone is what its original is"


def test_results_errors_and_output_are_as_of_a_fresh_one(engine: Engine, tarball: Path) -> None:
    def work(what: str) -> Any:
        import os
        import sys

        print("said", what)
        if what == "raise":
            raise KeyError(what)
        if what == "exit":
            sys.exit(4)
        if what == "die":
            sys.stdout.flush()
            os.kill(os.getpid(), 11)
        return what

    _get_warm(engine, tarball)
    for what in ("value", "raise", "exit", "die"):
        cold, warm = PonchoTask(work, what, environment=tarball), _warm(work, what, environment=tarball)
        engine.run(cold, warm)
        assert (type(warm.output), str(warm.output)) == (type(cold.output), str(cold.output))
        assert (warm.return_status, warm.result) == (cold.return_status, cold.result)
        assert [line for line in warm.std_output.splitlines() if "File" not in line] == [
            line for line in cold.std_output.splitlines() if "File" not in line
        ]


def test_local_modules_come_along(
    engine: Engine, tarball: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "warm_helper.py").write_text("def helped(x):\n    return x + 1\n")
    (tmp_path / "warm_main.py").write_text(
        "import os\nimport warm_helper\ndef f(x): return os.getppid(), warm_helper.helped(x)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    import warm_main  # type: ignore[import-not-found]

    server = _get_warm(engine, tarball)
    tasks = [_warm(warm_main.f, n, environment=tarball) for n in range(4)]
    engine.run(*tasks)
    assert [task.output for task in tasks] == [(server, n + 1) for n in range(4)]


def test_one_that_runs_too_long_is_ended_with_all_its_processes(engine: Engine, tarball: Path, tmp_path: Path) -> None:
    def linger(file: str) -> None:
        import os
        import subprocess
        import time

        child = subprocess.Popen(["sleep", "300"])
        with open(file + ".new", "w") as out:
            out.write(f"{os.getpid()} {child.pid}")
        os.rename(file + ".new", file)
        time.sleep(300)

    server = _get_warm(engine, tarball)
    file = tmp_path / "pids"
    task = _warm(linger, str(file), environment=tarball)
    task.specify_running_time_max(1)
    assert isinstance(engine.run(task).output, TaskError)
    until = time.monotonic() + PATIENCE
    pids = file.read_text().split()
    while any(os.path.exists(f"/proc/{pid}") for pid in pids):
        assert time.monotonic() < until, "its processes live on"
        time.sleep(0.05)
    assert engine.run(_warm(who, environment=tarball)).output[0] == server


def test_the_server_goes_with_its_worker(
    make_manager: Callable[[], Any], start_workers: Callable[..., Any], tarball: Path
) -> None:
    queue = make_manager()
    with start_workers(queue, cores=2):
        server = _get_warm(Engine("work_queue", queue), tarball)
        assert os.path.exists(f"/proc/{server}")
    until = time.monotonic() + PATIENCE
    while os.path.exists(f"/proc/{server}"):
        assert time.monotonic() < until, "the server outlives its worker"
        time.sleep(0.05)


def test_what_cannot_be_warm(tarball: Path) -> None:
    with pytest.raises(EngineError, match="only a function task"):
        PonchoTask("true", environment=tarball).specify_warm(True)
    with pytest.raises(EngineError, match="not 'hot'"):
        PonchoTask(who, environment=tarball).specify_warm("hot")  # type: ignore[arg-type]
    task = PonchoTask(who, environment=tarball)
    _ = task._task
    with pytest.raises(EngineError, match="has been submitted"):
        task.specify_warm(True)


def test_the_default_is_a_fresh_interpreter(tarball: Path) -> None:
    task = PonchoTask(who, environment=tarball)
    _ = task._task
    assert "poncho-warm" not in task._job.prepare().command
