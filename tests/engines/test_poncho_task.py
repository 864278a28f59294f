"""What a PonchoTask accepts and refuses, without any worker."""

from __future__ import annotations

import copy
import gc
import inspect
import os
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from poncho_wq import PonchoTask, payload, staging
from poncho_wq.engines import core, stand_in
from poncho_wq.engines.binding import find_work_queue
from poncho_wq.engines.work_queue import _FILE_METHODS
from poncho_wq.errors import EngineError, EngineNotInstalled, PonchoError


def plain(x: int, *, y: int = 2) -> int:
    return x * y


def wants(x: int, environment: str = "none") -> tuple[int, str]:
    return x, environment


def anything(**kwargs: Any) -> list[str]:
    return sorted(kwargs)


class Callable:
    def __call__(self, x: int) -> int:
        return x

    def method(self, *, environment: int) -> int:
        return environment


@pytest.fixture
def work_queue() -> Any:
    try:
        return find_work_queue()
    except EngineNotInstalled as missing:
        pytest.skip(missing.message)


def given(task: Any) -> Any:
    return task._job._given


def test_environment_is_ours_unless_the_function_takes_it(tarball: Path) -> None:
    assert given(PonchoTask(plain, 1, environment=tarball)) == tarball
    assert given(PonchoTask(wants, 1, environment="theirs")) is None
    assert given(PonchoTask(anything, environment="theirs", other=1)) is None
    assert given(PonchoTask(partial(plain, y=3), 1, environment=tarball)) == tarball
    assert given(PonchoTask(Callable(), 1, environment=tarball)) == tarball
    assert given(PonchoTask(Callable().method, environment=1)) is None
    assert given(PonchoTask(max, 1, 2, environment=tarball)) == tarball, "a built-in function without signature"
    assert given(PonchoTask("true", environment=tarball)) == tarball


@pytest.mark.parametrize(("args", "kwargs"), [((), {}), ((1, 2), {}), ((1,), {"z": 1}), ((1,), {"x": 1})])
def test_wrong_arguments_are_told_at_once(args: tuple[Any, ...], kwargs: dict[str, Any], tarball: Path) -> None:
    with pytest.raises(TypeError, match=r"plain\(x: "):
        PonchoTask(plain, *args, environment=tarball, **kwargs)


def test_a_parameter_may_have_any_name(tarball: Path) -> None:
    def f(self: int, function: int, work: int) -> int:
        return self + function + work

    PonchoTask(f, self=1, function=2, work=3)


@pytest.mark.parametrize("work", [None, 3, b"true", ["true"]])
def test_neither_function_nor_text(work: Any) -> None:
    with pytest.raises(TypeError, match="a function or the text of a command"):
        PonchoTask(work)


def test_a_command_takes_nothing_else() -> None:
    with pytest.raises(TypeError):
        PonchoTask("echo", "x")
    with pytest.raises(TypeError):
        PonchoTask("echo", x=1)
    with pytest.raises(EngineError, match="NUL"):
        PonchoTask("echo \0")


def test_what_cannot_be_sent_is_named() -> None:
    with pytest.raises(EngineError, match="argument 2 cannot be sent"):
        PonchoTask(anything_positional, 1, threading.Lock())
    with pytest.raises(EngineError, match="argument 'y' cannot be sent"):
        PonchoTask(plain, 1, y=threading.Lock())
    lock = threading.Lock()
    with pytest.raises(EngineError, match=r"the function .*<lambda> cannot be sent"):
        PonchoTask(lambda: lock)


def anything_positional(*args: Any) -> int:
    return len(args)


def test_the_environment_is_fixed_by_submission(tarball: Path) -> None:
    t = PonchoTask(plain, 1, environment=tarball)
    t.specify_environment(tarball)
    assert t.environment is None
    t._task
    assert t.environment is not None
    with pytest.raises(EngineError, match="can no longer change"):
        t.specify_environment(tarball)
    command = PonchoTask("true", environment=tarball)
    command.specify_command("false")
    assert command.command == "false"
    command._task
    assert "/bin/sh -c false" in command.command
    with pytest.raises(EngineError, match="can no longer change"):
        command.specify_command("true")
    with pytest.raises(EngineError, match="has no command"):
        t.specify_command("true")


def test_properties_do_not_bind(tarball: Path) -> None:
    t = PonchoTask(plain, 1, environment="/no/such/file.json")
    t.specify_tag("a")
    t.specify_cores(2)
    assert (t.tag, t.id, t.result, t.return_status) == ("a", 0, 32, -1)
    assert (t.output, t.traceback, t.returned) == (None, None, False)
    assert "plain" in repr(t)
    with pytest.raises(PonchoError):
        t._task
    assert t.clone().tag == "a"


@pytest.mark.parametrize("name", ["/etc/passwd", "../up", "a/../../b", ""])
@pytest.mark.parametrize("method", ["specify_input_file", "specify_output_file", "specify_file", "specify_file_piece",
                                    "specify_directory", "specify_buffer"])  # fmt: skip
def test_names_that_leave_the_sandbox_are_refused(method: str, name: str) -> None:
    """Work Queue's C code ends the whole process for the first."""
    t = PonchoTask("true")
    local = "text" if method == "specify_buffer" else ("/" if not name else "/etc/hosts")
    with pytest.raises(EngineError, match="sandbox"):
        getattr(t, method)(local, name)
    first = "buffer" if method == "specify_buffer" else "local_name"
    with pytest.raises(EngineError, match="sandbox"):
        getattr(t, method)(remote_name=name, **{first: local})
    assert t._calls == []


def test_what_would_end_the_process_is_refused() -> None:
    t = PonchoTask("true")
    with pytest.raises(EngineError, match="must write to %%"):
        t.specify_file_command(remote_name="x", cmd="touch x")
    with pytest.raises(EngineError, match="no directory"):
        t.specify_monitor_output("")
    t.specify_file_command(remote_name="x", cmd="touch %%")


def test_two_files_of_one_name_are_refused(capfd: pytest.CaptureFixture[str]) -> None:
    t = PonchoTask("true")
    t.specify_input_file("/etc/hosts", "h")
    t.specify_input_file("/etc/hosts", "h")
    with pytest.raises(EngineError, match="h: another file"):
        t.specify_input_file("/etc/passwd", "h")
    with pytest.raises(EngineError, match="h: another file"):
        t.specify_buffer("text", "h")
    t.specify_buffer("text", "b")
    with pytest.raises(EngineError, match="b: another file"):
        t.specify_buffer("other", "b")
    assert capfd.readouterr() == ("", ""), "Work Queue would have said it on stderr"


def test_it_is_a_task_of_work_queue(work_queue: Any) -> None:
    t, plain_task = PonchoTask(plain, 1), work_queue.Task("")
    assert isinstance(t, work_queue.Task)
    for name, member in vars(work_queue.Task).items():
        if isinstance(member, property):
            # Debian's own `total_submissions` raises AttributeError.
            assert hasattr(t, name) == hasattr(plain_task, name), name
        elif not name.startswith("_"):
            assert callable(getattr(t, name))


def test_the_stand_in_has_every_method_of_the_binding(work_queue: Any) -> None:
    """The embedded engine replays on it what was specified, by position as well as by name."""
    for name, member in vars(work_queue.Task).items():
        if name.startswith("_"):
            continue
        ours = getattr(stand_in.Task, name, None)
        assert ours is not None, name
        if name.startswith("specify_") and name != "specify_file_command":
            theirs = list(inspect.signature(member).parameters)
            assert list(inspect.signature(ours).parameters)[: len(theirs)] == theirs, name
    for name in _FILE_METHODS:
        assert hasattr(stand_in.Task, name)


def test_a_copy_shares_but_frees_nothing_twice(tarball: Path) -> None:
    t = PonchoTask(plain, 1, environment=tarball)
    other = copy.copy(t)
    t._task
    del t
    gc.collect()
    assert other.id == 0


def test_the_files_of_a_task_go_with_it(tarball: Path) -> None:
    t = PonchoTask(lambda x: x, os.urandom(100_000), environment=tarball)
    files = [Path(t._job._arguments.file.path), Path(t._job._function_file.path)]
    twin = t.clone()
    t._task
    del t
    gc.collect()
    assert all(file.exists() for file in files), "the clone needs them"
    del twin
    gc.collect()
    assert not any(file.exists() for file in files)


def test_small_tasks_have_no_file_of_their_own(tarball: Path) -> None:
    PonchoTask(plain, 0, environment=tarball)._task
    first = PonchoTask(plain, 1, environment=tarball)
    first._task
    before = sorted(os.listdir(staging.directory()))
    tasks = [PonchoTask(plain, n, environment=tarball) for n in range(20)]
    for t in tasks:
        t._task
    assert sorted(os.listdir(staging.directory())) == before


def test_a_redefined_function_is_sent_again(tarball: Path) -> None:
    space: dict[str, Any] = {"__name__": "__main__", "factor": 2}
    exec("def f(x): return x * factor", space)
    one = PonchoTask(space["f"], 1)._job._function_file.name
    assert PonchoTask(space["f"], 2)._job._function_file.name == one
    space["factor"] = 3
    two = PonchoTask(space["f"], 1)._job._function_file.name
    exec("def f(x): return x + factor", space)
    three = PonchoTask(space["f"], 1)._job._function_file.name
    assert len({one, two, three}) == 3


def test_an_environment_file_that_changes_is_prepared_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from poncho_wq import prepare

    asked = []
    monkeypatch.setattr(prepare, "environment", lambda E, **_: asked.append(E) or Fake())

    class Fake:
        tarball = tmp_path

    spec = tmp_path / "spec.json"
    spec.write_text("{}")
    for _ in range(3):
        core.prepared(spec)
    assert len(asked) == 1
    spec.write_text('{"pip": []}')
    core.prepared(str(spec))
    assert len(asked) == 2
    for E in ({"pip": ["a"]}, {"pip": ["a"]}, {"pip": ["b"]}):
        core.prepared(E)
    assert len(asked) == 4


def in_python(code: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=False,
                          env={**os.environ, **environ}, timeout=60)  # fmt: skip


def test_the_staging_directory_goes_with_the_process(tmp_path: Path) -> None:
    done = in_python(
        "import os\nfrom poncho_wq import PonchoTask, staging\n"
        "t = PonchoTask(len, os.urandom(100000))\nprint(len(os.listdir(staging.directory())))",
        TMPDIR=str(tmp_path),
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 2
    assert list(tmp_path.glob("poncho-*")) == []


def test_a_forked_child_leaves_the_parent_s_files_alone(tmp_path: Path) -> None:
    done = in_python(
        """
import gc, os, sys
from poncho_wq import PonchoTask, LocalQueue, staging
t = PonchoTask(len, os.urandom(100000))
q = LocalQueue(cores=1)
workspace = q.workspace
path = t._job._arguments.file.path
if os.fork() == 0:
    del t, q
    gc.collect()
    other = PonchoTask(len, os.urandom(100000))
    assert os.path.dirname(other._job._arguments.file.path) != os.path.dirname(path)
    sys.exit(0)
assert os.wait()[1] == 0
assert os.path.exists(path) and workspace.exists()
print("fine")
""",
        TMPDIR=str(tmp_path),
    )
    assert done.stdout == "fine\n", done.stderr
    assert list(tmp_path.glob("poncho-*")) == []


def test_a_full_disk_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(EngineError, match="No space left on device"):
        PonchoTask(len, os.urandom(100_000))


def test_packages_that_arguments_name(tarball: Path) -> None:
    numpy = pytest.importorskip("numpy")
    arguments = payload.pickle_arguments((1, [numpy.float64(2)], Callable()), {})
    assert "numpy" in arguments.modules
    assert payload.pickle_arguments((1, "x", {"y": (2.0, None)}), {}).modules == frozenset()
