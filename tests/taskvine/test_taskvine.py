"""Tasks, PythonTasks, libraries and calls on real TaskVine managers and workers."""

from __future__ import annotations

import dataclasses
import gc
import os
import sys
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from poncho_wq import taskvine
from poncho_wq.engines.vine_parts import ship_in_parts
from poncho_wq.errors import EngineError, TaskError
from poncho_wq.prepare import Environment
from poncho_wq.taskvine import PonchoTask, declare_environment, library_from_functions
from tests.taskvine.conftest import Cluster

Environments = Callable[[str], Environment]
COUNT = 0


@pytest.fixture
def env(environments: Environments) -> Environment:
    return environments("one")


def test_statistics_come_back(cluster: Cluster, env: Environment) -> None:
    cluster.start_worker()
    tasks = [PonchoTask(where, 3, environment=env), PonchoTask("exit 7", environment=env)]
    for task in tasks:
        task.collect_environment_stats()
        assert task.environment_stats is None
    quiet = PonchoTask("true", environment=env)
    cluster.run(*tasks, quiet)
    assert (tasks[0].output[0], tasks[1].exit_code, quiet.environment_stats) == (3, 7, None)
    for task in tasks:
        found = task.environment_stats
        assert found is not None
        assert (found.identity, found.unpacked, found.evicted) == (env.identity, False, 0)
        assert found.host


class Odd(Exception):
    """Of this module, which no worker has."""

    def __init__(self, what: str, *, code: int = 0) -> None:
        super().__init__(what)
        self.code = code


def where(x: Any) -> tuple[Any, str, str]:
    print("said on the way")
    return x, os.environ["WORD"], sys.prefix


def fail(how: str) -> Any:
    print("before", flush=True)
    if how == "raise":
        raise Odd("mine", code=4)
    if how == "exit":
        sys.exit(3)
    if how == "kill":
        os.kill(os.getpid(), 9)
    if how == "unpicklable":
        return (i for i in "abc")
    return None


def test_tasks(cluster: Cluster, env: Environment) -> None:
    cluster.start_worker()
    big = os.urandom(100_000)
    function, bigger = PonchoTask(where, 3, environment=env), PonchoTask(len, big, environment=env)
    text = "cd /; X='a b'; echo \"$X $WORD\" | tr a-z A-Z; python3 -c 'import sys; print(sys.prefix)'; false || exit 7"
    command = PonchoTask(text, environment=env)
    assert (function.output, function.traceback, function.returned, function.environment) == (None, None, False, None)
    cluster.run(function, bigger, command)

    value, word, prefix = function.output
    assert (value, word) == (3, "one")
    assert "/cache/task-md5-" in prefix
    assert (function.std_output, function.exit_code, function.result) == ("said on the way\n", 0, "success")
    assert (function.returned, function.traceback, function.environment) == (True, None, env)
    assert bigger.output == 100_000
    assert command.output.splitlines() == ["A B ONE", prefix]
    assert (command.exit_code, command.returned) == (7, False)
    assert cluster.unpacked() == [1]


def test_failures_are_told_as_for_work_queue(cluster: Cluster, env: Environment) -> None:
    cluster.start_worker()
    tasks = {how: PonchoTask(fail, how, environment=env) for how in ("raise", "exit", "kill", "unpicklable")}
    cluster.run(*tasks.values())
    raised = tasks["raise"].output
    assert (type(raised), raised.code) == (Odd, 4)
    assert isinstance(raised.__cause__, TaskError)
    assert "in fail\n" in tasks["raise"].traceback
    for how, status, words in (
        ("exit", 3, "sys.exit(3)"), ("kill", 9, "9 (SIGKILL)"), ("unpicklable", 1, "cannot be pickled"),
    ):  # fmt: skip
        told = tasks[how].output
        assert type(told) is TaskError
        assert words in str(told)
        assert (told.exit_status, tasks[how].exit_code, tasks[how].returned) == (status, status, False)
        assert told.host


def test_after_submission_nothing_changes(cluster: Cluster, env: Environment) -> None:
    task = PonchoTask(os.getpid, environment=env)
    cluster.submit(task)
    with pytest.raises(EngineError, match="takes a task once"):
        cluster.submit(task)
    with pytest.raises(EngineError, match="submitted"):
        task.specify_environment(env)
    with pytest.raises(EngineError, match="submitted"):
        task.add_environment(None)
    with pytest.raises(EngineError, match="function task"):
        task.set_command("true")
    assert task.output is None


@pytest.mark.parametrize("missing", [0.3, 0.01])
def test_an_environment_that_cannot_be_unpacked(
    cluster: Cluster, env: Environment, tmp_path: Any, missing: float
) -> None:
    """TaskVine ignores it, and calls the task a success whose status tells nothing."""
    whole = env.tarball.read_bytes()
    cut = tmp_path / "cut.tar.gz"
    cut.write_bytes(whole[: int(len(whole) * (1 - missing))])
    broken = dataclasses.replace(env, tarball=cut, identity="0" * 64)
    cluster.start_worker()
    function, command = PonchoTask(where, 3, environment=broken), PonchoTask("true", environment=broken)
    cluster.run(function, command)
    assert not command.returned
    assert "could not be unpacked on this worker" in command.std_output
    assert type(function.output) is TaskError
    assert "the environment could not be provided" in str(function.output)


def test_one_environment_for_tasks_python_tasks_and_libraries(
    cluster: Cluster, vine: Any, shared_cache: Any, monkeypatch: Any
) -> None:
    """All from one description, which says nothing of cloudpickle: declared once, unpacked once."""
    monkeypatch.setenv("PONCHO_CACHE_DIR", str(shared_cache))

    # TaskVine's PythonTask sends what is defined in a module by its name only.
    def here(x: int) -> tuple[int, str, str]:
        return x, os.environ["WORD"], sys.prefix

    described = {"env": {"WORD": "described"}}
    declared = declare_environment(cluster.manager, described)
    assert declare_environment(cluster.manager, dict(described)) is declared
    cluster.start_worker()
    python = vine.PythonTask(here, 1)
    python.add_environment(declared)
    ours = PonchoTask(where, 2, environment=described)
    cluster.run(python, ours)
    cluster.manager.install_library(library_from_functions(cluster.manager, "lib", where, environment=described))
    call = cluster.run(vine.FunctionCall("lib", "where", 3))
    assert [task.output[:2] for task in (python, ours, call)] == [(n, "described") for n in (1, 2, 3)]
    assert len({task.output[2] for task in (python, ours, call)}) == 1
    assert cluster.unpacked() == [1]


def test_an_environment_is_analyzed_from_the_functions(cluster: Cluster, shared_cache: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("PONCHO_CACHE_DIR", str(shared_cache))
    cluster.start_worker()
    manager = cluster.manager

    def count(text: str) -> int:
        import json

        return len(json.loads(text))

    manager.install_library(library_from_functions(manager, "lib", count))
    task, call = PonchoTask(count, "[1, 2]"), taskvine.FunctionCall("lib", count, "[1, 2, 3]")
    cluster.run(task, call)
    assert (task.output, call.output) == (2, 3)
    assert cluster.unpacked() == [1]


def counted(x: int) -> tuple[int, int]:
    global COUNT
    COUNT += 1
    return x * x, COUNT


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["fork", "direct"])
def test_a_library_called_a_thousand_times(cluster: Cluster, vine: Any, env: Environment, mode: str) -> None:
    manager = cluster.manager
    manager.install_library(
        library_from_functions(
            manager, "lib", counted, environment=env, exec_mode=mode, cores=2, slots=2 if mode == "fork" else 1
        )
    )
    cluster.start_worker()
    calls = [(taskvine if n % 2 else vine).FunctionCall("lib", "counted", n) for n in range(1000)]
    waiting = list(calls)
    done = 0
    while done < 1000:
        while waiting and len(calls) - len(waiting) - done < 40:
            cluster.submit(waiting.pop(0))
        task = manager.wait(60)
        assert task is not None
        done += 1
    assert [call.output[0] for call in calls] == [n * n for n in range(1000)]
    counts = sorted(call.output[1] for call in calls)
    # A child's memory dies with it; the library's own process counts through.
    assert counts == ([1] * 1000 if mode == "fork" else list(range(1, 1001)))
    assert cluster.unpacked() == [1]


def test_calls_fail_as_tasks_do(cluster: Cluster, vine: Any, env: Environment) -> None:
    manager = cluster.manager
    manager.install_library(library_from_functions(manager, "lib", fail, environment=env))
    cluster.start_worker()
    calls = {how: taskvine.FunctionCall("lib", fail, how) for how in ("raise", "exit", "kill", "unpicklable")}
    upstream, unknown = vine.FunctionCall("lib", "fail", "raise"), taskvine.FunctionCall("lib", "nobody")
    cluster.run(*calls.values(), upstream, unknown)
    raised = calls["raise"].output
    assert (type(raised), raised.code) == (Odd, 4)
    assert isinstance(raised.__cause__, TaskError)
    assert "in fail\n" in calls["raise"].traceback
    assert calls["raise"].std_output.startswith("before\n")
    for how, status, words in (
        ("exit", 3, "sys.exit(3)"), ("kill", 9, "9 (SIGKILL)"), ("unpicklable", 1, "cannot be pickled"),
    ):  # fmt: skip
        assert type(calls[how].output) is TaskError
        assert words in str(calls[how].output)
        assert calls[how].exit_code == status
    assert not upstream.successful()
    assert isinstance(upstream.output, vine.task.FunctionCallNoResult)
    assert "no function nobody" in str(unknown.output)


def test_two_libraries_with_two_environments(cluster: Cluster, environments: Environments) -> None:
    """On one worker, in turn: TaskVine ends the idle library each time, which used to hang the worker."""
    manager = cluster.manager
    for word in ("one", "two"):
        manager.install_library(
            library_from_functions(manager, word, where, environment=environments(word), cores=1, slots=1)
        )
    cluster.start_worker(cores=2)
    for word in ("one", "two", "one"):
        call = cluster.run(taskvine.FunctionCall(word, where, 0))
        assert call.output[1] == word
    assert cluster.unpacked() == [2]


def test_three_workers_get_it_from_each_other(cluster: Cluster, env: Environment) -> None:
    cluster.start_worker()
    cluster.run(PonchoTask("true", environment=env))
    cluster.start_worker()
    cluster.start_worker()
    hosts = set()
    while len(hosts) < 3:
        tasks = [PonchoTask("sleep 0.2", environment=env) for _ in range(12)]
        for task in tasks:
            task.set_cores(1)
        cluster.run(*tasks)
        assert all(task.successful() for task in tasks)
        hosts |= {task.addrport for task in tasks}
    assert cluster.unpacked() == [1, 1, 1]
    sizes = [os.path.getsize(path) for path, _ in ship_in_parts(env.tarball, env.identity).files]
    assert len(sizes) > 2
    assert [cluster.uploads(size) for size in sizes] == [1] * len(sizes)


def test_another_environment_brings_only_the_parts_that_differ(cluster: Cluster, environments: Environments) -> None:
    one, two = environments("one"), environments("two")
    cluster.start_worker()
    for each, word in ((one, "one"), (two, "two"), (one, "one")):
        task = cluster.run(PonchoTask("echo $WORD", environment=each))
        assert (task.output, task.exit_code) == (f"{word}\n", 0)
    assert cluster.unpacked() == [2]
    files = [ship_in_parts(each.tarball, each.identity).files for each in (one, two)]
    sizes = {name: os.path.getsize(path) for each in files for path, name in each}
    shared = {name for _, name in files[0]} & {name for _, name in files[1]}
    assert len(shared) == len(files[0]) - 2  # but the first and the last
    assert sum(sizes[name] for name in shared) > 0.99 * one.size
    assert [cluster.uploads(sizes[name]) for name in shared] == [1] * len(shared)


def test_a_worker_killed_in_the_middle(cluster: Cluster, env: Environment) -> None:
    manager = cluster.manager
    manager.install_library(library_from_functions(manager, "lib", where, environment=env, cores=1, slots=1))
    first = cluster.start_worker()
    tasks: list[Any] = [PonchoTask("sleep 0.3; echo done", environment=env) for _ in range(6)]
    tasks += [taskvine.FunctionCall("lib", where, n) for n in range(6)]
    for task in tasks[:6]:
        task.set_cores(1)
    cluster.submit(*tasks)
    while manager.wait(1) is None:
        pass
    os.killpg(first.pid, 9)
    cluster.start_worker()
    cluster.start_worker()
    cluster.finish()
    assert [task.output for task in tasks[:6]] == ["done\n"] * 6
    assert [task.output[0] for task in tasks[6:]] == list(range(6))
    assert max(cluster.unpacked()) == 1


def test_local_modules_come_along(cluster: Cluster, env: Environment, tmp_path: Any, monkeypatch: Any) -> None:
    """A module beside a script, its data, and objects of its class: for tasks and for libraries."""
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "__init__.py").write_text("class Point:\n    def __init__(self, x): self.x = x\n")
    (tmp_path / "ours" / "more.py").write_text(
        "from pathlib import Path\ndef read(): return Path(__file__).with_name('data.txt').read_text()\n"
    )
    (tmp_path / "ours" / "data.txt").write_text("data")
    monkeypatch.syspath_prepend(tmp_path)
    import ours  # type: ignore[import-not-found]

    def use(point: Any) -> Any:
        from ours import Point, more

        # No assert, whose rewritten form would need pytest there.
        return Point(point.x + more.read()) if isinstance(point, Point) else None

    manager = cluster.manager
    manager.install_library(library_from_functions(manager, "lib", use, environment=env))
    cluster.start_worker()
    call, task = taskvine.FunctionCall("lib", use, ours.Point("1")), PonchoTask(use, ours.Point("2"), environment=env)
    cluster.run(call, task)
    for done, text in ((call, "1data"), (task, "2data")):
        assert isinstance(done.output, ours.Point), done.output
        assert done.output.x == text
    unsendable = taskvine.FunctionCall("lib", use, (i for i in "abc"))
    with pytest.raises(EngineError, match="the arguments cannot be sent"):
        cluster.submit(unsendable)


# -- what a library does before its first call

MODEL: list[str] = []


def load_model() -> dict[str, str]:
    MODEL.append("loaded in " + os.environ["WORD"])
    return {"variable": "by name"}


def use_model() -> tuple[list[str], str]:
    from ndcctools.taskvine.utils import load_variable_from_library

    return MODEL, load_variable_from_library("variable")


def test_init_is_a_function(cluster: Cluster, env: Environment) -> None:
    manager = cluster.manager
    manager.install_library(library_from_functions(manager, "lib", use_model, environment=env, init=load_model))
    cluster.start_worker()
    calls = [taskvine.FunctionCall("lib", use_model) for _ in range(3)]
    cluster.run(*calls)
    assert [call.output for call in calls] == [(["loaded in one"], "by name")] * 3
    assert MODEL == []


def test_init_is_shell_and_stays_inside(cluster: Cluster, env: Environment) -> None:
    manager = cluster.manager

    def look() -> tuple[str, str, str]:
        return os.environ["FOUND"], os.environ["WORD"], sys.prefix

    text = "cd / && FOUND=$(python3 -c 'import sys; print(sys.prefix)') && export FOUND; cd \"$OLDPWD\"\n"
    # What would lead out of the environment, or spoil the arguments that TaskVine appends.
    text += "PATH=/usr/bin:/bin; IFS=/; set -- 1 2"
    manager.install_library(library_from_functions(manager, "lib", look, environment=env, init=text))
    cluster.start_worker()
    found, word, prefix = cluster.run(taskvine.FunctionCall("lib", look)).output
    assert (found, word) == (prefix, "one")
    assert "/cache/task-md5-" in prefix


def boom() -> None:
    raise ZeroDivisionError("at the start")


@pytest.mark.parametrize(("options", "words"), [
    ({"init": boom}, "init of library lib raised ZeroDivisionError: at the start"),
    ({"init": "echo no; exit 5"}, "init of library lib ended with exit status 5"),
    ({"init": "false"}, "init of library lib ended with exit status 1"),
    ({"hoist": ["no_such_module"]}, "module no_such_module cannot be imported"),
], ids=["function", "exit", "false", "hoist"])  # fmt: skip
def test_a_library_that_cannot_start_answers_its_calls(
    cluster: Cluster, env: Environment, options: dict[str, Any], words: str
) -> None:
    manager = cluster.manager
    manager.install_library(library_from_functions(manager, "lib", where, environment=env, **options))
    cluster.start_worker()
    told = cluster.run(taskvine.FunctionCall("lib", where, 1)).output
    assert type(told) is TaskError
    assert words in str(told)


# -- refused before anything is sent


@pytest.mark.parametrize(("options", "words"), [
    ({"init": "module load gcc &&"}, "init is no complete shell command"),
    ({"init": "}; rm -rf x; {"}, "init is no complete shell command"),
    ({"init": 3}, "init is a function or the text"),
    ({"exec_mode": "spawn"}, "exec_mode is 'fork' or 'direct'"),
    ({"exec_mode": "direct", "slots": 2}, "slots"),
    ({"slots": 3, "cores": 2}, "slots"),
    ({"hoist": "numpy"}, "hoist is"),
    ({"hoist": [where]}, "hoist names modules"),
])  # fmt: skip
def test_refused(cluster: Cluster, env: Environment, options: dict[str, Any], words: str) -> None:
    with pytest.raises((EngineError, ValueError, TypeError), match=words):
        library_from_functions(cluster.manager, "lib", where, environment=env, **options)


def test_functions_are_named_by_their_names(cluster: Cluster, env: Environment) -> None:
    with pytest.raises(ValueError, match="at least one"):
        library_from_functions(cluster.manager, "lib", environment=env)
    with pytest.raises(ValueError, match="two functions"):
        library_from_functions(cluster.manager, "lib", lambda: 1, lambda: 2, environment=env)
    with pytest.raises(TypeError, match="a TaskVine manager is needed"):
        declare_environment("no manager", env)


def test_nothing_keeps_a_manager_alive(vine: Any, env: Environment, tmp_path: Any) -> None:
    manager = vine.Manager(port=0, run_info_path=str(tmp_path / "info"))
    declare_environment(manager, env)
    manager.install_library(library_from_functions(manager, "lib", where, environment=env))
    gone = weakref.ref(manager)
    del manager
    gc.collect()
    assert gone() is None
