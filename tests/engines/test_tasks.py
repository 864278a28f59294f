"""The same tasks on real Work Queue workers and on the embedded engine."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from poncho_wq import PonchoTask
from poncho_wq.errors import EngineError, TaskError
from poncho_wq.prepare import Environment
from tests.engines.conftest import Engine, make_environment

LIMIT = 7


class Odd(Exception):
    """Of this module, which no worker has; takes other arguments than it keeps."""

    def __init__(self, what: str, *, code: int = 0) -> None:
        super().__init__(what)
        self.code = code


class Needy(Exception):
    """Can be pickled, but not loaded."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__("one message")


def helper(x: int) -> int:
    return x + LIMIT


def where(x: int, *, y: int = 2) -> tuple[int, str, str, str]:
    import only_there

    print("said on the way")
    return helper(x) * y, sys.prefix, only_there.WORDS, os.getcwd()


def test_function_runs_in_its_environment(engine: Engine, tarball: Path) -> None:
    t = engine.run(PonchoTask(where, 3, y=5, environment=tarball))
    value, prefix, words, cwd = t.output
    assert (value, words) == (50, "from the environment")
    assert f"poncho-env-{t.environment.identity[:32]}" in prefix, "unpacked once in the worker's workspace"
    assert Path(cwd).parent == Path(prefix).parent, "the sandbox lies in the same workspace"
    assert (t.std_output, t.return_status, t.result, t.traceback) == ("said on the way\n", 0, 0, None)
    assert t.returned
    assert t.environment.tarball == tarball


@pytest.mark.parametrize(
    "text",
    [
        "cd /; X='a b'; echo \"$X\" | tr a-z A-Z; false || exit 7",
        "printf '%s\n' 'A B'\nexit 7",
        ": " + "x" * 200_000 + "\necho A B; exit 7",
    ],
    ids=["list", "lines", "long"],
)
def test_command_runs_whole_in_its_environment(engine: Engine, tarball: Path, text: str) -> None:
    show = "only-there; python3 -c 'import only_there, sys; print(sys.prefix)'\n"
    t = engine.run(PonchoTask(show + text, environment=tarball))
    program, prefix, said = t.output.splitlines()
    assert program == "a program of the environment"
    assert "poncho-env-" in prefix
    assert (said, t.return_status, t.result) == ("A B", 7, 0)
    assert t.output == t.std_output
    assert not t.returned


@pytest.mark.parametrize("size", [0, 1_000, 1_536, 10_000, 200_000])
def test_arguments_of_any_size(engine: Engine, tarball: Path, size: int) -> None:
    blob = os.urandom(size)
    t = engine.run(PonchoTask(lambda b: (len(b), b[::-1]), blob, environment=tarball))
    assert t.output == (size, blob[::-1])


@pytest.mark.slow
def test_a_hundred_megabytes_each_way(engine: Engine, tarball: Path) -> None:
    blob = os.urandom(1 << 20) * 100
    t = engine.run(PonchoTask(lambda b: b + b"!", blob, environment=tarball))
    assert t.output == blob + b"!"


def test_arguments_are_those_of_construction(engine: Engine, tarball: Path) -> None:
    numbers = [1, 2]
    t = PonchoTask(sum, numbers, environment=tarball)
    numbers.append(100)
    assert engine.run(t).output == 3


def test_objects_of_local_classes_travel_both_ways(engine: Engine, tarball: Path) -> None:
    t = engine.run(PonchoTask(lambda e: (e, type(e)("back", code=2)), Odd("there", code=1), environment=tarball))
    there, back = t.output
    assert type(there) is Odd
    assert type(back) is Odd
    assert (there.code, back.code, back.args) == (1, 2, ("back",))


def test_a_returned_exception_is_a_result(engine: Engine, tarball: Path) -> None:
    t = engine.run(PonchoTask(lambda: ValueError("as a value"), environment=tarball))
    assert isinstance(t.output, ValueError)
    assert t.returned
    assert t.output.__cause__ is None


# -- what goes wrong


def fail(how: str) -> Any:
    print("before")
    if how == "raise":
        raise ZeroDivisionError("on the worker")
    if how == "odd":
        raise Odd("mine", code=4)
    if how == "needy":
        raise Needy(1, 2)
    if how == "unpicklable exception":
        raise ValueError(threading.Lock())
    if how == "unpicklable result":
        return threading.Lock()
    if how == "interrupt":
        raise KeyboardInterrupt
    if how.startswith("exit "):
        sys.exit({"3": 3, "none": None, "words": "some words", "300": 300}[how[5:]])
    if how == "_exit":
        os._exit(5)
    sys.stdout.flush()
    os.kill(os.getpid(), 9)
    return None


def test_an_exception_comes_back_as_itself(engine: Engine, tarball: Path) -> None:
    t = engine.run(PonchoTask(fail, "raise", environment=tarball))
    assert type(t.output) is ZeroDivisionError
    assert t.output.args == ("on the worker",)
    assert "in fail\n" in t.traceback
    assert "runner" not in t.traceback
    assert t.traceback.rstrip().endswith("ZeroDivisionError: on the worker")
    cause = t.output.__cause__
    assert isinstance(cause, TaskError)
    assert cause.traceback == t.traceback
    assert t.traceback.rstrip() in str(cause)
    assert t.std_output.startswith("before\n"), "and the traceback after it, as from any program"
    assert (t.return_status, t.result, t.returned) == (1, 0, False)


def test_a_local_exception_class_comes_back_as_itself(engine: Engine, tarball: Path) -> None:
    t = engine.run(PonchoTask(fail, "odd", environment=tarball))
    assert type(t.output) is Odd
    assert t.output.code == 4


def test_other_base_exceptions(engine: Engine, tarball: Path) -> None:
    t = engine.run(PonchoTask(fail, "interrupt", environment=tarball))
    assert type(t.output) is KeyboardInterrupt
    assert isinstance(t.output.__cause__, TaskError)


@pytest.mark.parametrize(("how", "status", "words"), [
    ("needy", 1, "the function raised tests.engines.test_tasks.Needy: one message"),
    ("unpicklable exception", 1, "the function raised ValueError: <unlocked _thread.lock object"),
    ("unpicklable result", 1, "the result, of type _thread.lock, cannot be pickled"),
    ("exit 3", 3, "sys.exit(3)"),
    ("exit none", 0, "sys.exit(0)"),
    ("exit words", 1, "sys.exit(some words)"),
    ("exit 300", 44, "sys.exit(300)"),
    ("_exit", 5, "exit status was 5"),
])  # fmt: skip
def test_task_errors(engine: Engine, tarball: Path, how: str, status: int, words: str) -> None:
    t = engine.run(PonchoTask(fail, how, environment=tarball))
    assert type(t.output) is TaskError
    if engine.name == "local" and how == "_exit":
        words = "exit status 5"
    assert words in str(t.output)
    assert (t.return_status, t.output.exit_status, t.returned) == (status, status, False)
    assert t.output.host
    if how not in ("_exit",):
        assert t.output.traceback == t.traceback != ""


def test_a_killed_process(engine: Engine, tarball: Path) -> None:
    t = engine.run(PonchoTask(fail, "kill", environment=tarball))
    assert type(t.output) is TaskError
    assert "9 (SIGKILL)" in str(t.output)
    assert "before" in str(t.output), "what it said last"
    assert (t.return_status, t.result) == (9, 2)
    if engine.name == "local":
        assert "was ended by signal" in str(t.output), "told apart from an exit status of 9"


def test_a_function_that_cannot_be_loaded_there(engine: Engine, tarball: Path) -> None:
    import packaging.version

    t = engine.run(PonchoTask(packaging.version.parse, "1.0", environment=tarball))
    assert type(t.output) is TaskError
    assert "the function cannot be loaded in this environment" in str(t.output)
    assert "packaging" in str(t.output)


def test_an_environment_that_cannot_be_unpacked(engine: Engine, tmp_path: Path, tarball: Path) -> None:
    broken = tmp_path / "broken.tar.gz"
    broken.write_bytes(tarball.read_bytes()[:300])
    t = engine.run(PonchoTask(where, 1, environment=broken))
    assert type(t.output) is TaskError
    assert t.output.exit_status == 125
    assert "the environment could not be provided" in str(t.output)
    assert "poncho_package_run: " in str(t.output), "the wrapper's own words"


def test_an_environment_without_python(engine: Engine, tmp_path: Path, trap: Path) -> None:
    bare = make_environment(tmp_path / "bare.tar.gz", python=False)
    t = PonchoTask(where, 1, environment=bare)
    # The worker's PATH has a Python, which is a trap.
    engine.run(t)
    assert type(t.output) is TaskError
    assert t.output.exit_status in (97, 127)


def test_another_python_is_refused_before_submission(engine: Engine, tarball: Path) -> None:
    other = Environment(
        spec_hash=None, tarball=tarball, identity="0" * 64, size=1, python="3.7.1", platform=None, glibc=None, spec=None
    )
    with pytest.raises(EngineError, match=r"Python 3\.7\.1"):
        engine.queue.submit(PonchoTask(where, 1, environment=other))
    assert engine.queue.empty()
    # A command may use any.
    engine.queue.submit(command := PonchoTask("true", environment=tarball))
    engine.wait_for(1)
    assert command.returned


# -- everything else that a Work Queue task can do


def test_files_variables_and_resources(engine: Engine, tarball: Path, tmp_path: Path) -> None:
    (tmp_path / "in file").write_text("plain ")
    (tmp_path / "tree" / "deep").mkdir(parents=True)
    (tmp_path / "tree" / "deep" / "leaf").write_text("leaf ")
    t = PonchoTask(
        "cat 'in file' sub/cached tree/deep/leaf piece buffer bytes > all; mkdir -p d/e; echo x > d/e/f; "
        'echo "$COLOUR-$CORES-$MEMORY"; test -d "$TMPDIR" && touch "$TMPDIR"/y',
        environment=tarball,
    )
    t.specify_input_file(str(tmp_path / "in file"))
    t.specify_input_file(tmp_path / "in file", "sub/cached", cache=True)
    t.specify_directory(tmp_path / "tree", "tree", recursive=True)
    t.specify_file_piece(str(tmp_path / "in file"), "piece", 0, 4)
    t.specify_buffer("buffer ", "buffer")
    t.specify_buffer("é\0\n".encode() + b"\xff", "bytes")
    t.specify_output_file(str(tmp_path / "out" / "all"), "all")
    t.specify_output_file(str(tmp_path / "d"), "d")
    t.specify_environment_variable("COLOUR", "deep blue")
    t.specify_cores(1)
    t.specify_memory(100)
    t.specify_tag("a tag")
    t.specify_category("a category")
    t.specify_priority(3)
    (tmp_path / "out").mkdir()
    engine.run(t)
    colour, cores, memory = t.std_output.split("-")
    # Newer versions of Work Queue give a task its share of the worker rather than what it asked for.
    assert (colour, cores, int(memory) >= 100) == ("deep blue", "1", True)
    assert t.returned, t.result_str
    content = (tmp_path / "out" / "all").read_bytes()
    assert content == b"plain plain leaf plainbuffer " + "é\0\n".encode() + b"\xff"
    assert (tmp_path / "d" / "e" / "f").read_text() == "x\n"
    assert (t.tag, t.category, t.priority, t.result_str) == ("a tag", "a category", 3, "SUCCESS")
    assert t.id > 0
    assert t.hostname
    assert t.execute_cmd_finish >= t.execute_cmd_start > t.submit_time > 0


def test_cached_buffers_are_not_mixed_up(engine: Engine, tarball: Path) -> None:
    """Work Queue keeps all cached buffers in one file, which a task sees change while it runs."""
    tasks = [PonchoTask("sleep 0.5; cat b", environment=tarball) for _ in range(2)]
    for n, t in enumerate(tasks):
        t.specify_buffer(f"buffer {n}", "b", cache=True)
        t.specify_cores(1)
    engine.run(*tasks)
    assert [t.output for t in tasks] == ["buffer 0", "buffer 1"]


def test_a_task_cannot_spoil_its_owner_s_files(engine: Engine, tarball: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    t = PonchoTask("echo spoilt > a; echo spoilt > b", environment=tarball)
    t.specify_input_file(tmp_path / "mine", "a", cache=False)
    t.specify_input_file(tmp_path / "mine", "b", cache=True)
    engine.run(t)
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_missing_output_leaves_the_others(engine: Engine, tarball: Path, tmp_path: Path) -> None:
    t = PonchoTask(lambda: "fine", environment=tarball)
    t.specify_output_file(str(tmp_path / "never"), "never")
    engine.run(t)
    assert t.result == 2
    assert t.output == "fine"


def test_a_missing_input_is_told(engine: Engine, tarball: Path, tmp_path: Path) -> None:
    t = PonchoTask(lambda: "fine", environment=tarball)
    t.specify_input_file(str(tmp_path / "never"), "never")
    engine.run(t)
    assert t.result == 1
    assert type(t.output) is TaskError
    assert "input file" in str(t.output)


def test_a_helper_in_the_sandbox_can_be_imported(engine: Engine, tarball: Path, tmp_path: Path) -> None:
    (tmp_path / "helper_there.py").write_text("x = 5\n")
    (tmp_path / "only_there.py").write_text("WORDS = 'shadowed'\n")

    def use() -> tuple[int, str]:
        import helper_there
        import only_there

        return helper_there.x, only_there.WORDS

    t = PonchoTask(use, environment=tarball)
    t.specify_input_file(str(tmp_path / "helper_there.py"))
    t.specify_input_file(str(tmp_path / "only_there.py"))
    assert engine.run(t).output == (5, "from the environment")


def test_clones_before_and_after(engine: Engine, tarball: Path) -> None:
    t = PonchoTask(lambda x: (x, os.environ["N"]), [1, 2], environment=tarball)
    t.specify_environment_variable("N", "n")
    t.specify_tag("tagged")
    before = t.clone()
    engine.run(t, before)
    after = t.clone()
    assert after.output is None
    assert after.environment is None
    engine.run(after)
    del t
    gc.collect()
    assert before.output == after.output == ([1, 2], "n")
    assert (before.tag, after.tag) == ("tagged", "tagged")
    assert len({before.id, after.id}) == 2


def test_a_task_that_came_back_can_be_submitted_again(engine: Engine, tarball: Path, tmp_path: Path) -> None:
    t = PonchoTask(lambda: len(os.listdir()), environment=tarball)
    first = engine.run(t).output
    first_id = t.id
    assert engine.run(t).output == first
    assert t.id != first_id


def test_results_do_not_stay_on_disk(engine: Engine, tarball: Path) -> None:
    t = PonchoTask(bytes.upper, b"x" * 100_000, environment=tarball)
    result, arguments = Path(t._job._result.path), Path(t._job._arguments.file.path)
    engine.run(t)
    assert result.exists()
    assert arguments.exists()
    assert len(t.output) == 100_000
    assert not result.exists(), "read once, kept in memory"
    unread = engine.run(PonchoTask(bytes.upper, b"x" * 100_000, environment=tarball))
    result_of_unread = Path(unread._job._result.path)
    function = Path(unread._job._function_file.path)
    assert result_of_unread.exists()
    del t, unread
    gc.collect()
    assert not arguments.exists()
    assert not result_of_unread.exists()
    assert not function.exists()


def test_failure_to_prepare_submits_nothing(engine: Engine, tmp_path: Path) -> None:
    t = PonchoTask(where, 1, environment=tmp_path / "no such file.json")
    with pytest.raises(Exception, match="no such file"):
        engine.queue.submit(t)
    assert engine.queue.empty()
    with pytest.raises(EngineError, match="needs an environment"):
        engine.queue.submit(PonchoTask("true"))
    assert engine.queue.empty()


def test_a_conflict_found_at_submission(engine: Engine, tarball: Path, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("x")
    t = PonchoTask(lambda: 1, environment=tarball)
    t.specify_input_file(tmp_path / "x", "poncho-result")
    for _ in range(2):
        with pytest.raises(EngineError, match="poncho-result"):
            engine.queue.submit(t)
        assert engine.queue.empty()


def test_closed_and_odd_output_streams(engine: Engine, tarball: Path) -> None:
    def close() -> str:
        sys.stdout.buffer.write(b"\xff\xfe\n")
        sys.stdout.flush()
        sys.stdout.close()
        sys.stderr.close()
        return "fine"

    t = engine.run(PonchoTask(close, environment=tarball))
    assert t.output == "fine"
    assert t.std_output.encode(errors="surrogateescape") == b"\xff\xfe\n"


def test_worker_variables_do_not_leak_in(engine: Engine, tarball: Path, trap: Path) -> None:
    t = engine.run(PonchoTask(lambda: (sys.path, sys.flags.no_user_site, sys.argv[0]), environment=tarball))
    path, no_user_site, _ = t.output
    assert str(trap) not in path, "PYTHONPATH of the worker"
    assert no_user_site


def test_a_subprocess_of_the_task_is_inside_too(engine: Engine, tarball: Path) -> None:
    def ask() -> str:
        return subprocess.run(["python3", "-c", "import only_there; print(only_there.WORDS)"], text=True,
                              capture_output=True, check=True).stdout  # fmt: skip

    assert engine.run(PonchoTask(ask, environment=tarball)).output == "from the environment\n"


# -- results on stdout, and in a file


def test_a_small_result_needs_no_file(engine: Engine, tarball: Path) -> None:
    """And what the function printed is as it was, also what comes after the result."""

    def speak(text: str, late: str) -> int:
        import atexit

        print(text, end="")
        atexit.register(print, late, end="")
        return 5

    for text, late in (("", ""), ("one\n", ""), ("no newline", "last"), ("=poncho-result= gA==\n", "\n")):
        task = PonchoTask(speak, text, late, environment=tarball)
        result = Path(task._job._result.path)
        engine.run(task)
        assert not result.exists()
        assert (task.output, task.return_status, task.result) == (5, 0, 0)
        assert task.std_output == text + late


@pytest.mark.parametrize("size", [0, 10_000, 16_200, 16_400, 20_000, 1_000_000])
def test_results_of_every_size(engine: Engine, tarball: Path, size: int) -> None:
    task = engine.run(PonchoTask(bytes.upper, b"x" * size, environment=tarball))
    assert (task.output, task.return_status, task.result) == (b"X" * size, 0, 0)
    assert not task.std_output


def test_a_function_that_takes_stdout_away(engine: Engine, tarball: Path) -> None:
    def close() -> str:
        import os

        os.close(1)
        return "closed"

    def redirect() -> str:
        import os

        os.dup2(os.open("mine", os.O_RDWR | os.O_CREAT), 1)
        return "redirected"

    def pipe() -> str:
        import os

        # Nobody reads it.
        os.dup2(os.pipe()[1], 1)
        return "a pipe"

    def fork() -> str:
        import os
        import time

        if os.fork() == 0:
            time.sleep(0.2)
            os.write(1, b"from another process\n")
            os._exit(0)
        os.wait()
        return "forked"

    tasks = [PonchoTask(f, environment=tarball) for f in (close, redirect, pipe, fork)]
    engine.run(*tasks)
    assert [task.output for task in tasks] == ["closed", "redirected", "a pipe", "forked"]
    assert [task.return_status for task in tasks] == [0, 0, 0, 0]
    assert tasks[3].std_output == "from another process\n"


def test_a_function_whose_own_status_is_the_runner_s(engine: Engine, tarball: Path) -> None:
    def leave(status: int) -> None:
        import sys

        sys.exit(status)

    for status in (120, 0):
        task = engine.run(PonchoTask(leave, status, environment=tarball))
        assert task.return_status == status
        assert isinstance(task.output, TaskError)
        assert f"sys.exit({status})" in str(task.output)
