"""Calls of a TaskVine library: ours against the one that TaskVine generates, both in a prepared environment."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.harness import Row, Unavailable, paired, seconds
from poncho_wq import Environment, environment

CALLS = 300
DEPTH = 64
# What TaskVine's generated library imports; ndcctools itself, which is on no index, is added below.
PACKAGES = ["numpy", "cloudpickle", "threadpoolctl", "packaging"]


def nothing(x: int) -> int:
    """What is measured is everything around it."""
    return x


def small_sum(x: int) -> float:
    """A call that uses numpy, which both libraries have imported before."""
    import numpy

    return float(numpy.arange(1000 + x).sum())


@contextlib.contextmanager
def _cluster(vine: Any, home: Path) -> Iterator[Any]:
    """A manager with one worker of two cores."""
    home.mkdir()
    program = shutil.which("vine_worker")
    assert program is not None
    manager = vine.Manager(port=0, run_info_path=str(home / "info"))
    worker = subprocess.Popen(
        [
            program, "-s", str(home / "worker"), "--cores", "2", "--memory", "2000", "--disk", "4000", "-t", "60",
            "127.0.0.1", str(manager.port),
        ],
        env={"PATH": "/usr/bin:/bin"}, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    with manager:
        try:
            yield manager
        finally:
            worker.terminate()
            try:
                worker.wait(20)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()


def _with_taskvine(env: Environment, path: Path) -> Path:
    """The environment's tarball with the manager's ndcctools in it, which the generated library cannot do without."""
    module = importlib.util.find_spec("ndcctools")
    assert module is not None
    assert module.origin is not None
    unpacked = path.with_suffix(".d")
    with tarfile.open(env.tarball) as tar:
        tar.extractall(unpacked, filter="tar")
    (place,) = unpacked.glob("lib/python3*/site-packages")
    shutil.copytree(Path(module.origin).parent, place / "ndcctools")
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        tar.add(unpacked, ".")
    return path


def _drive(manager: Any, make: Callable[[int], Any]) -> float:
    """Calls a second, with at most ``DEPTH`` submitted at a time."""

    def all_of_them() -> None:
        sent = done = 0
        while done < CALLS:
            while sent < CALLS and sent - done < DEPTH:
                manager.submit(make(sent))
                sent += 1
            task = manager.wait(60)
            if task is None:
                raise RuntimeError("no call came back within a minute")
            if not task.successful() or task.output is None:
                raise RuntimeError(f"a call failed: {task.output!r}\n{task.std_output}")
            done += 1

    return CALLS / seconds(all_of_them)


def rows() -> Iterator[Row]:
    """Calls a second (64 queued, one worker, two at a time) of a function that does nothing, and of one with numpy."""
    from poncho_wq.engines.vine_manager import find_taskvine
    from poncho_wq.errors import EngineNotInstalled

    try:
        vine = find_taskvine()
    except EngineNotInstalled as missing:
        raise Unavailable(missing.message) from None
    if shutil.which("vine_worker") is None:
        raise Unavailable("vine_worker is not on PATH")
    from poncho_wq.taskvine import FunctionCall, library_from_functions

    env = environment({"pip": PACKAGES})
    with tempfile.TemporaryDirectory(prefix="poncho-bench-") as directory, contextlib.ExitStack() as stack:
        home = Path(directory)
        upstream = _with_taskvine(env, home / "with-taskvine.tar.gz")
        # Each has a manager and a worker of its own: TaskVine ends an idle library when another one is called.
        ours = stack.enter_context(_cluster(vine, home / "ours"))
        theirs = stack.enter_context(_cluster(vine, home / "theirs"))
        ours.install_library(library_from_functions(ours, "lib", nothing, small_sum, environment=env, cores=2, slots=2))
        import cloudpickle
        import numpy

        # TaskVine sends what is defined in a module by its name only.
        cloudpickle.register_pickle_by_value(sys.modules[__name__])
        task = theirs.create_library_from_functions(
            "lib", nothing, small_sum, poncho_env=str(upstream), hoisting_modules=[numpy]
        )
        task.set_cores(2)
        task.set_function_slots(2)
        theirs.install_library(task)
        for function in (nothing, small_sum):
            name = function.__name__
            yield paired(
                f"library calls a second, {name}",
                lambda name=name: _drive(ours, lambda i: FunctionCall("lib", name, i)),  # type: ignore[misc]
                lambda name=name: _drive(theirs, lambda i: vine.FunctionCall("lib", name, i)),  # type: ignore[misc]
                pairs=5, unit="calls/s", peer_name="create_library_from_functions", target=">= 1",
            )  # fmt: skip
