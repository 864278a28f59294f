"""What the server does of a library's for its children, before there are any."""

from __future__ import annotations

import importlib
import os
import random
import subprocess
import sys
import threading
import types
import warnings
from typing import Any

import numpy
import pandas
import pytest

from poncho_wq.warm import settling


def _state() -> dict[str, Any]:
    return {
        "numpy's random numbers": repr(numpy.random.get_state()),
        "numpy's errors": numpy.geterr(),
        "numpy's printing": numpy.get_printoptions(),
        "pandas' options": {name: pandas.get_option(name) for name in ("display.max_rows", "display.precision")},
        "warnings": list(warnings.filters),
        "threads": threading.active_count(),
    }


@pytest.mark.parametrize("name", settling._FIRST_USES)
def test_a_first_use_works_and_changes_nothing(name: str) -> None:
    library = importlib.import_module(name)
    before = _state()
    settling._FIRST_USES[name](library)
    assert _state() == before


def test_each_is_used_once_and_only_if_it_was_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[str] = []
    monkeypatch.setattr(settling, "_FIRST_USES", {"here": lambda lib: used.append(lib.__name__), "absent": used.append})
    monkeypatch.setitem(sys.modules, "here", types.ModuleType("here"))
    done: set[str] = set()
    settling._first_use(done)
    settling._first_use(done)
    assert used == ["here"]
    assert done == {"here"}


def test_a_broken_library_is_the_task_s_to_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", types.ModuleType("pandas"))
    monkeypatch.setitem(sys.modules, "numpy", types.ModuleType("numpy"))
    done: set[str] = set()
    settling._first_use(done)
    assert done == {"numpy", "pandas"}


def test_what_it_warns_of_is_left_to_be_said_to_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    def old(_: Any) -> None:
        warnings.warn("old", FutureWarning, stacklevel=1)

    monkeypatch.setattr(settling, "_FIRST_USES", {"sys": old})
    with warnings.catch_warnings(record=True) as said:
        settling._first_use(set())
        assert not said
        old(None)
    assert [str(warning.message) for warning in said] == ["old"]


def test_generators_are_seeded_anew_and_as_their_own_functions_do(monkeypatch: pytest.MonkeyPatch) -> None:
    kept, numpys = random.getstate(), numpy.random.get_state()
    urandom = os.urandom
    try:
        numpy.random.normal()  # of two that are made at once, one is kept
        random.gauss(0, 1)
        generators = settling._Generators()
        generators.settled()
        assert generators.address
        found = []
        for _ in range(3):
            words = urandom(4 * 624)
            monkeypatch.setattr(os, "urandom", lambda size, words=words: words[:size])
            generators.seed()
            monkeypatch.setattr(os, "urandom", urandom)
            name, key, used, has_gauss, _ = numpy.random.get_state()
            assert (name, key.tobytes(), used, has_gauss) == ("MT19937", words, 624, 0)
            assert random.getstate()[2] is None
            found.append((random.random(), numpy.random.random()))
            numpy.random.set_state(("MT19937", numpy.frombuffer(words, "u4"), 624))
            assert numpy.random.random() == found[-1][1]
        assert len({one for one, _ in found}) == len({other for _, other in found}) == 3
    finally:
        random.setstate(kept)
        numpy.random.set_state(numpys)


def test_another_numpy_is_seeded_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = numpy.random.get_state()

    def unknown(_: Any) -> int:
        raise AttributeError("no such thing")

    try:
        generators = settling._Generators()
        monkeypatch.setattr(generators, "state_of", unknown)
        generators.settled()
        found = set()
        for _ in range(3):
            numpy.random.seed(1)
            generators.seed()
            found.add(float(numpy.random.random()))
        assert len(found) == 3
    finally:
        numpy.random.set_state(kept)


def test_state_that_lies_elsewhere_is_not_written_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another numpy may say the address of something else."""
    import ctypes

    elsewhere = ctypes.create_string_buffer(4 * 625)
    fake = types.SimpleNamespace(
        frombuffer=numpy.frombuffer,
        random=types.SimpleNamespace(
            set_state=lambda state: None,
            mtrand=types.SimpleNamespace(
                _rand=types.SimpleNamespace(
                    _bit_generator=types.SimpleNamespace(
                        ctypes=types.SimpleNamespace(state_address=ctypes.addressof(elsewhere))
                    )
                )
            ),
        ),
    )
    assert settling._Generators().state_of(fake) == 0


def test_threads_that_fork_at_the_same_time_all_wait_for_the_hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    registering, go = threading.Event(), threading.Event()
    registered: list[str] = []
    called: list[str] = []

    def register(**hooks: Any) -> None:
        if "after_in_child" in hooks:
            registering.set()
            assert go.wait(30)
            registered.extend(hooks)

    monkeypatch.setattr(os, "register_at_fork", register)
    hooks = settling._Hooks()
    hooks.kept = [{"before": lambda: called.append("one"), "after_in_child": lambda: None}]
    hooks.keeping = False
    ended: list[int] = []

    def fork() -> None:
        hooks.before()
        ended.append(len(registered))

    threads = [threading.Thread(target=fork) for _ in range(2)]
    threads[0].start()
    assert registering.wait(30)
    threads[1].start()
    threads[1].join(0.3)
    assert (ended, called) == ([], [])
    go.set()
    for thread in threads:
        thread.join(30)
    assert (ended, called, sorted(registered)) == ([2, 2], ["one", "one"], ["after_in_child", "before"])
    # Nobody waits for a thread that a fork has left behind with the lock.
    hooks.lock.acquire()
    hooks.before()


HOOKS = """
import os, sys
from poncho_wq.warm.settling import _Hooks, _KEPT_BACK
assert not sys.modules.keys() & set(_KEPT_BACK), sys.modules.keys() & set(_KEPT_BACK)
hooks = _Hooks()
import logging, threading, random, concurrent.futures.thread
names = {hook.__module__ for kept in hooks.kept for hook in kept.values() if hook.__module__}
assert names >= {"logging", "threading", "random"}, names
said = []
os.register_at_fork(after_in_child=lambda: said.append("not the library's"))

def child(work):
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0, work

def first():
    assert said == ["not the library's"]
    assert os.register_at_fork is not hooks.register
    hooks.keeping = False
    logging.basicConfig(stream=sys.stdout, format="%(message)s")
    # What other threads of a task do at the moment of its fork is mended in what it forks.
    held, go = threading.Event(), threading.Event()
    def hold():
        with logging._lock:
            held.set()
            go.wait(.3)
    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    child(second)
    child(second)
    thread.join()
    assert not hooks.kept
    os.register_at_fork(before=lambda: said.append("before"))
    child(lambda: None)
    assert "before" in said

def second():
    assert threading.active_count() == 1, threading.enumerate()
    logging.warning("said")
    print(random.random(), flush=True)

child(first)
assert hooks.kept
print("done")
"""


def test_a_task_s_own_forks_are_mended_as_ever() -> None:
    """What the library registers is kept from the server's forks, but not from those of its children."""
    ended = subprocess.run(
        [sys.executable, "-c", HOOKS], capture_output=True, text=True, timeout=60, check=False,
        cwd=os.path.dirname(os.path.dirname(os.path.dirname(settling.__file__))),
    )  # fmt: skip
    # Also of what a hook has raised, which ends nothing.
    assert (ended.returncode, ended.stderr) == (0, "")
    lines = ended.stdout.split()
    assert [line for line in lines if line in ("said", "done")] == ["said", "said", "done"]
    numbers = [line for line in lines if line not in ("said", "done")]
    assert len(set(numbers)) == 2
