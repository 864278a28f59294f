"""What only real managers and workers show: lost workers, several of them, and Work Queue's own traps."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from poncho_wq import PonchoTask
from poncho_wq.engines import binding
from poncho_wq.errors import EngineNotInstalled, TaskError
from tests.engines.conftest import Engine, make_environment


def test_a_killed_worker_s_task_runs_elsewhere(
    make_manager: Any, start_workers: Any, tarball: Path, tmp_path: Path
) -> None:
    told = tmp_path / "pids"

    def stay(first: str) -> str:
        import os
        import time

        if os.path.exists(first):
            return "second try"
        with open(first, "w") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(600)
        return "first try"

    queue = make_manager()
    with start_workers(queue) as workers:
        t = PonchoTask(stay, str(told), environment=tarball)
        queue.submit(t)
        until = time.monotonic() + 60
        while not told.exists() and time.monotonic() < until:
            queue.wait(1)
        os.killpg(workers.processes[0].pid, signal.SIGKILL)
        os.kill(int(told.read_text()), signal.SIGKILL)
        workers.start_one()
        assert Engine("work_queue", queue).wait_for(1) == [t]
        assert t.output == "second try"


def test_too_many_lost_workers(make_manager: Any, start_workers: Any, tarball: Path, tmp_path: Path) -> None:
    told = tmp_path / "pids"
    queue = make_manager()
    with start_workers(queue) as workers:
        t = PonchoTask(_announce_and_stay, str(told), environment=tarball)
        t.specify_max_retries(1)
        queue.submit(t)
        until = time.monotonic() + 60
        # One retry: two lost workers are too many.
        while queue.wait(1) is None:
            assert time.monotonic() < until
            if told.exists() and told.read_text().endswith("\n"):
                os.killpg(workers.processes[-1].pid, signal.SIGKILL)
                os.kill(int(told.read_text()), signal.SIGKILL)
                told.unlink()
                workers.start_one()
        assert type(t.output) is TaskError
        assert "max_retries" in str(t.output)


def _announce_and_stay(told: str) -> None:
    with open(told, "w") as file:
        file.write(f"{os.getpid()}\n")
    time.sleep(600)


def test_many_tasks_over_two_workers(make_manager: Any, start_workers: Any, tarball: Path) -> None:
    queue = make_manager()
    with start_workers(queue, count=2) as workers:
        tasks = [PonchoTask(lambda n: (n, os.environ["PONCHO_PREFIX"]), n, environment=tarball) for n in range(40)]
        Engine("work_queue", queue).run(*tasks)
        assert [t.output[0] for t in tasks] == list(range(40))
        prefixes = {t.output[1] for t in tasks}
        assert len(prefixes) <= len(workers.processes), "unpacked once on each worker"


def test_two_environments_on_one_worker(make_manager: Any, start_workers: Any, tarball: Path, tmp_path: Path) -> None:
    other = make_environment(tmp_path / "env.tar.gz", extra={"lib/only_here": "x"})
    queue = make_manager()
    with start_workers(queue):
        tasks = [PonchoTask("ls $PONCHO_PREFIX/lib", environment=E) for E in (tarball, other, tarball)]
        Engine("work_queue", queue).run(*tasks)
        assert ["only_here" in t.output for t in tasks] == [False, True, False]


def test_a_tarball_rewritten_under_its_path_is_another_environment(
    make_manager: Any, start_workers: Any, tmp_path: Path
) -> None:
    path = tmp_path / "env.tar.gz"
    queue = make_manager()
    with start_workers(queue):
        for n in range(2):
            make_environment(path, extra={"lib/number": f"{n}"})
            t = PonchoTask("cat $PONCHO_PREFIX/lib/number", environment=path)
            Engine("work_queue", queue).run(t)
            assert t.output == f"{n}"


def test_plain_tasks_run_beside(make_manager: Any, start_workers: Any, tarball: Path) -> None:
    work_queue = binding.find_work_queue()
    queue = make_manager()
    with start_workers(queue):
        Engine("work_queue", queue).run(plain := work_queue.Task("echo plain"), PonchoTask("true", environment=tarball))
        assert plain.output == "plain\n"


def test_submitted_again_and_deleted(make_manager: Any, start_workers: Any, tarball: Path) -> None:
    """Debian's Work Queue frees a structure twice that was submitted twice, and the process dies."""
    queue = make_manager()
    with start_workers(queue):
        t = PonchoTask("echo $$", environment=tarball)
        for _ in range(3):
            Engine("work_queue", queue).run(t)
            assert t.returned
            first = t.output
            t._task  # who looks at it now does not lose what came back
            assert t.output == first
        del t
        gc.collect()


# -- finding the binding


def in_python(code: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(argv, text=True, capture_output=True, timeout=60, check=False)


WITHOUT = """
import pathlib, sys
sys.modules['ndcctools'] = sys.modules['work_queue'] = None
from poncho_wq.engines import binding
binding.DEBIAN = pathlib.Path({directory!r})
"""


def test_without_work_queue_the_embedded_engine_runs_the_same_task(tarball: Path, tmp_path: Path) -> None:
    done = in_python(
        WITHOUT.format(directory=str(tmp_path))
        + f"""
from poncho_wq import LocalQueue, PonchoTask, WorkQueue
from poncho_wq.errors import EngineNotInstalled
try:
    WorkQueue(0)
except EngineNotInstalled as error:
    print(error)
    assert error.engine == "work_queue"
with LocalQueue(cores=1) as q:
    t = PonchoTask(pow, 2, 10, environment={str(tarball)!r})
    t.specify_tag("x")
    t.specify_buffer("x", "x")
    q.submit(t)
    assert q.wait(30) is t, t
    assert (t.output, t.tag, t.result_str) == (1024, "x", "SUCCESS"), t.std_output
    assert (t.return_status, t.traceback) == (0, None)
    twin = t.clone()
    q.submit(twin), q.submit(t)
    while not q.empty(): q.wait(30)
    assert twin.output == t.output == 1024
"""
    )
    assert done.returncode == 0, done.stderr
    for words in ("apt-get install coop-computing-tools python3-workqueue", "conda install -c conda-forge ndcctools"):
        assert words in done.stdout


def test_a_binding_for_another_python_is_named(tmp_path: Path) -> None:
    (tmp_path / "work_queue.py").write_text("import _work_queue")
    (tmp_path / "_work_queue.cpython-31-x86_64-linux-gnu.so").write_text("")
    done = in_python(WITHOUT.format(directory=str(tmp_path)) + "binding.find_work_queue()")
    assert done.returncode == 1
    assert "only _work_queue.cpython-31-x86_64-linux-gnu.so" in done.stderr


def test_a_broken_binding_is_not_left_half_loaded(tmp_path: Path) -> None:
    from importlib.machinery import EXTENSION_SUFFIXES

    library = binding.DEBIAN / f"_work_queue{EXTENSION_SUFFIXES[0]}"
    if not library.exists():
        pytest.skip("Debian's binding for this Python is not installed")
    (tmp_path / library.name).symlink_to(library)
    (tmp_path / "work_queue.py").write_text("import _work_queue\nraise ValueError('broken here')")
    done = in_python(
        "from poncho_wq.engines import binding\nimport pathlib, sys\n"
        f"try: binding._load_debian(pathlib.Path({str(tmp_path)!r}))\n"
        "except ImportError as error: print(error)\n"
        "assert not {'work_queue', '_work_queue'} & set(sys.modules)\nprint('nothing left')"
    )
    assert done.returncode == 0, done.stderr
    assert "work_queue.py: broken here" in done.stdout
    assert "nothing left" in done.stdout


def test_debian_s_binding_brings_nothing_else_in() -> None:
    try:
        found = binding.find_work_queue()
    except EngineNotInstalled as missing:
        pytest.skip(missing.message)
    if found.__name__ != "work_queue" or not str(found.__file__).startswith(str(binding.DEBIAN)):
        pytest.skip("another binding than Debian's is installed")
    done = in_python(
        "import sys\nfrom poncho_wq import WorkQueue, PonchoTask\n"
        f"assert {str(binding.DEBIAN)!r} not in sys.path\nprint(WorkQueue.__module__)"
    )
    assert done.stdout == "work_queue\n", done.stderr


def test_importing_the_package_loads_no_engine() -> None:
    done = in_python(
        "import sys, poncho_wq\n"
        "heavy = {'work_queue', '_work_queue', 'cloudpickle', 'yaml', 'rattler', 'rich', 'multiprocessing'}\n"
        "print(sorted(heavy & set(sys.modules)), [m for m in sys.modules if m.startswith('poncho_wq.engines')])"
    )
    assert done.stdout == "[] []\n", done.stdout + done.stderr
