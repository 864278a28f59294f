"""Whatever a task does to its process, the next one does not see it."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from tests.warm.conftest import Workspace, alive, named, nothing, parent, until

LOOK = named(
    """
def f(*imports):
    import builtins, decimal, gc, json, locale, os, random, resource, signal, sys, tempfile, threading, warnings
    sandbox = os.getcwd()
    return {
        "globals": (hasattr(json, "spoiled"), decimal.getcontext().prec, hasattr(builtins, "spoiled"), len(sys.path)),
        "environment": sorted(name for name in os.environ if "SPOILED" in name),
        "path": os.environ["PATH"],
        "cwd": os.path.basename(os.path.dirname(sandbox)),
        "own sandbox": sandbox.startswith(os.environ["TMPDIR"]) and tempfile.gettempdir() == sandbox,
        "descriptors": sorted(int(fd) for fd in os.listdir("/proc/self/fd"))[:4],
        "signals": [signal.getsignal(n) in (signal.SIG_DFL, signal.SIG_IGN, signal.default_int_handler)
                    for n in (1, 2, 10, 13, 14, 15)],
        "mask": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        "alarm": signal.alarm(0),
        "limits": [resource.getrlimit(r) for r in (resource.RLIMIT_AS, resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE)],
        "umask": (os.umask(0o22), os.umask(0o22)),
        "nice": os.getpriority(os.PRIO_PROCESS, 0),
        "affinity": sorted(os.sched_getaffinity(0)),
        "threads": (threading.active_count(), len(os.listdir("/proc/self/task"))),
        "its number": threading.main_thread().native_id == os.getpid(),
        "recursion": sys.getrecursionlimit(),
        "switches": (sys.getswitchinterval(), gc.isenabled(), gc.get_threshold()),
        "trace": (sys.gettrace(), sys.getprofile(), sys.displayhook is sys.__displayhook__),
        "streams": (sys.stdout is sys.__stdout__, sys.stdin.closed),
        "locale": locale.setlocale(locale.LC_ALL),
        "modules": sorted(name for name in sys.modules if "spoiled" in name or name == "wave"),
        "warnings": len(warnings.filters),
        "exit": sys.flags.dont_write_bytecode,
    }
"""
)

SPOIL = {
    "globals": "import json, decimal, builtins, sys; json.spoiled = 1; decimal.getcontext().prec = 3; "
    "builtins.spoiled = 1; sys.path.clear()",
    "environment": "import os; os.environ['SPOILED'] = '1'; os.environ['PATH'] = 'x'; del os.environ['HOME']",
    "cwd": "import os; os.chdir('/')",
    "descriptors": "import os; [os.dup(0) for _ in range(100)]; os.close(0)",
    "close all": "import os; os.closerange(0, 1000); os._exit(0)",
    "signals": "import signal, os; [signal.signal(n, signal.SIG_IGN) for n in (1, 2, 10, 13, 14, 15)]; "
    "signal.pthread_sigmask(signal.SIG_BLOCK, {10, 15}); signal.alarm(100)",
    "limits": "import resource as r; r.setrlimit(r.RLIMIT_AS, (1 << 30, 1 << 30)); "
    "r.setrlimit(r.RLIMIT_NOFILE, (20, 20))",
    "umask": "import os; os.umask(0o777); os.nice(5); os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})",
    "thread": "import threading, time; threading.Thread(target=time.sleep, args=(30,), daemon=True).start()",
    "switches": "import sys, gc; sys.setrecursionlimit(5000); sys.setswitchinterval(1); gc.disable(); "
    "gc.set_threshold(1)",
    "trace": "import sys; sys.setprofile(print); sys.setprofile(None); sys.displayhook = print",
    "streams": "import sys, io; sys.stdout = io.StringIO(); sys.stdin.close()",
    "locale": "import locale, warnings; locale.setlocale(locale.LC_ALL, 'C'); warnings.simplefilter('error')",
    "modules": "import sys, types, wave; sys.modules['spoiled'] = types.ModuleType('x'); del sys.modules['json']",
    "os._exit": "import os; os._exit(5)",
    "segfault": "import ctypes; ctypes.string_at(0)",
    "abort": "import os; os.abort()",
    "kill": "import os; os.kill(os.getpid(), 9)",
    "stop of its parent's children": "import os, signal; signal.signal(17, signal.SIG_IGN)",
    "out of memory": "import resource as r; r.setrlimit(r.RLIMIT_AS, (1 << 29, 1 << 29)); bytes(1 << 30)",
    "fork": "import os, time\n    if os.fork() == 0:\n        time.sleep(0.1)\n        os._exit(0)",
    "exit functions": "import atexit, os; atexit.register(os._exit, 9)",
}


@pytest.fixture
def clean(workspace: Workspace) -> tuple[Workspace, int, dict[str, Any]]:
    """A workspace, its server, and what a warm task sees when nothing has happened yet."""
    server = workspace.warm_up("json", "decimal", "random", "tempfile", "locale")
    return workspace, server, workspace.run(LOOK).value


@pytest.mark.parametrize("modules", [(), ("logging", "random", "tempfile", "threading")])
def test_a_warm_task_sees_what_a_fresh_one_does(workspace: Workspace, modules: tuple[str, ...]) -> None:
    fresh = workspace.run(LOOK, modules=modules)
    until(workspace.server, "a server")
    warm = workspace.run(LOOK, modules=modules)
    assert "served=1 " in until(
        lambda: "served=1 " in workspace.read("status") and workspace.read("status"), "a report"
    )
    assert warm.value == fresh.value


@pytest.mark.parametrize("what", SPOIL)
def test_the_next_task_sees_nothing_of_it(clean: tuple[Workspace, int, dict[str, Any]], what: str) -> None:
    workspace, server, before = clean
    spoiler = workspace.run(named(f"def f():\n    {SPOIL[what]}"))
    assert spoiler.status is not None
    after = workspace.run(LOOK)
    assert after.status == 0, after.said
    assert after.value == before
    assert workspace.run(parent).value == server, "and it is still the same server"


def test_limits_of_the_client_are_the_child_s(workspace: Workspace) -> None:
    server = workspace.warm_up()
    limited = named(
        "def f():\n    import os, resource as r\n    try:\n        bytes(1 << 30)\n    except MemoryError:\n"
        "        return os.getppid(), r.getrlimit(r.RLIMIT_AS)[0], r.getrlimit(r.RLIMIT_CORE), os.umask(0)"
    )
    task = workspace.run(limited, before="ulimit -v 524288; ulimit -c 0; umask 037; ")
    assert task.value == (server, 524288 * 1024, (0, 0), 0o037)


@pytest.mark.parametrize(
    "generator", ["random.random()", "numpy.random.random()", "numpy.random.default_rng().random()"]
)
def test_random_numbers_are_not_repeated(workspace: Workspace, generator: str) -> None:
    module = "numpy.random" if generator.startswith("numpy") else "random"
    draw = named(f"def f():\n    import os, {module}\n    return os.getppid(), {generator}")
    server = workspace.warm_up(module)
    found = [workspace.run(draw).value for _ in range(5)]
    assert {pid for pid, _ in found} == {server}
    assert len({value for _, value in found}) == 5


def test_a_library_s_first_use_is_the_server_s(workspace: Workspace) -> None:
    first = "pandas.io.formats.string"  # imported when a frame is printed
    look = named(f"def f():\n    import os, sys, pandas\n    return os.getppid(), {first!r} in sys.modules")
    server = workspace.warm_up("pandas")
    assert workspace.run(look).value == (server, True)
    sums = named("def f():\n    import pandas\n    return float(pandas.DataFrame({'a': [1, 2]}).sum()['a'])")
    assert workspace.run(sums).value == 3.0


def test_seeds_are_not_passed_on(workspace: Workspace) -> None:
    workspace.warm_up("random", "numpy.random")
    seed = named("def f():\n    import random, numpy\n    random.seed(1)\n    numpy.random.seed(1)")
    draw = named("def f():\n    import random, numpy\n    return random.random(), numpy.random.random()")
    values = []
    for _ in range(2):
        workspace.run(seed)
        values.append(workspace.run(draw).value)
    assert values[0][0] != values[1][0]
    assert values[0][1] != values[1][1]


def test_a_task_may_fork_while_its_threads_hold_locks(workspace: Workspace) -> None:
    server = workspace.warm_up("logging", "random", "threading")
    work = named(
        """
def f():
    import logging, os, random, threading
    go = threading.Event()
    def hold():
        with logging._lock:
            go.wait(0.2)
    thread = threading.Thread(target=hold)
    thread.start()
    found = []
    for _ in range(2):
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            logging.getLogger("another").warning("%d threads", threading.active_count())
            os.write(writing, str((threading.active_count(), random.random())).encode())
            os._exit(0)
        os.close(writing)
        with open(reading) as file:
            found.append(file.read())
        os.waitpid(child, 0)
    go.set()
    thread.join()
    return os.getppid(), found
"""
    )
    pid, found = workspace.run(work).value
    assert pid == server
    assert [text.startswith("(1, ") for text in found] == [True, True], found
    assert found[0] != found[1]


def test_numpy_works_in_every_child(workspace: Workspace) -> None:
    """OpenBLAS has threads of its own, which it ends before a fork and starts again after."""
    work = named(
        "def f(n):\n    import os, numpy\n    a = numpy.eye(300) * n\n    return os.getppid(), float((a @ a).trace())"
    )
    server = workspace.warm_up("numpy", environ={"OPENBLAS_NUM_THREADS": "2", "OMP_NUM_THREADS": "2"})
    for n in range(5):
        task = workspace.run(work, n, environ={"OPENBLAS_NUM_THREADS": "2", "OMP_NUM_THREADS": "2"})
        assert task.value == (server, 300.0 * n * n)


def test_a_fork_bomb_ends_with_its_task(workspace: Workspace) -> None:
    server = workspace.warm_up()
    bomb = named(
        """
def f(file):
    import os, time
    for _ in range(6):
        os.fork()
    with open(file, "a") as out:
        out.write(f"{os.getpid()}\\n")
    time.sleep(100)
"""
    )
    file = workspace.root / "pids"
    task = workspace.start(bomb, str(file))
    until(lambda: file.exists() and len(file.read_text().split()) == 64, "64 processes")
    assert workspace.run(parent).value == server, "others are served meanwhile"
    os.killpg(task.process.pid, signal.SIGKILL)
    until(lambda: not any(alive(int(pid)) for pid in file.read_text().split()), "the end of them all")
    assert workspace.run(nothing, 3).value == 3
    assert workspace.run(parent).value == server
