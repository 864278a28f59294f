"""What the embedded engine does by itself: processes, deadlines, order, and leaving nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from poncho_wq import LocalQueue, PonchoTask
from poncho_wq.errors import EngineError, TaskError


def is_gone(pid: int, patience: float = 5) -> bool:
    """Whether a process has ended, or does within ``patience`` seconds."""
    until = time.monotonic() + patience
    while time.monotonic() < until:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.01)
    return False


def wait_for(path: Path, patience: float = 20) -> str:
    """The content of a file that a task is about to write."""
    until = time.monotonic() + patience
    while not (path.exists() and path.read_text().endswith("\n")):
        assert time.monotonic() < until, f"{path} never came"
        time.sleep(0.01)
    return path.read_text()


@pytest.fixture
def command(tarball: Path) -> Callable[..., Any]:
    def make(text: str, **wishes: Any) -> Any:
        t = PonchoTask(text, environment=tarball)
        for name, value in wishes.items():
            getattr(t, f"specify_{name}")(value)
        return t

    return make


def test_the_end_ends_everything(command: Any, tmp_path: Path) -> None:
    told = tmp_path / "pids"
    with LocalQueue(cores=1, workdir=tmp_path) as q:
        q.submit(command(f"sleep 600 & echo $! $$ > {told}; wait"))
        q.submit(command("true"))
        child, leader = map(int, wait_for(told).split())
        assert os.getpgid(child) == leader, "a group of its own"
        assert os.getsid(leader) == os.getsid(0) or sys.version_info < (3, 11), "the session of the manager"
        workspace = q.workspace
    assert is_gone(child)
    assert is_gone(leader)
    assert not workspace.exists()
    assert list(tmp_path.iterdir()) == [told]
    q.close()
    with pytest.raises(EngineError, match="closed"):
        q.submit(command("true"))


def test_the_end_of_a_process_without_with(tarball: Path, tmp_path: Path) -> None:
    told = tmp_path / "pids"
    code = (
        "import sys, time, pathlib\nfrom poncho_wq import LocalQueue, PonchoTask\nq = LocalQueue(cores=1)\n"
        f"told, tarball = {str(told)!r}, {str(tarball)!r}\n"
        "command = f'sleep 600 & echo $! > {told}.new; mv {told}.new {told}; wait'\n"
        "q.submit(PonchoTask(command, environment=tarball))\n"
        "while not pathlib.Path(told).exists(): time.sleep(0.01)\n"
    )
    (tmp_path / "tmp").mkdir()
    environ = {**os.environ, "TMPDIR": str(tmp_path / "tmp")}
    subprocess.run([sys.executable, "-c", code], env=environ, check=True, timeout=60)
    assert is_gone(int(wait_for(told)))
    assert list((tmp_path / "tmp").iterdir()) == []


def test_what_a_task_leaves_running_is_ended_with_it(command: Any, tmp_path: Path) -> None:
    told = tmp_path / "pid"
    with LocalQueue(cores=1) as q:
        q.submit(command(f"sleep 600 & echo $! > {told}"))
        t = q.wait(20)
        assert t.returned
        assert is_gone(int(told.read_text()))


def test_a_task_over_its_time_is_ended(command: Any) -> None:
    with LocalQueue(cores=3) as q:
        q.submit(command("sleep 600", running_time_max=1))
        q.submit(command("sleep 600", end_time=int((time.time() + 1) * 1e6)))
        q.submit(command("true", running_time_max=500))
        tasks = {t.id: t for t in (q.wait(20) for _ in range(3))}
        assert [tasks[n].result for n in (1, 2, 3)] == [56, 24, 0]
        assert tasks[1].return_status == 9


def test_a_function_over_its_time(tarball: Path) -> None:
    with LocalQueue(cores=1) as q:
        t = PonchoTask(time.sleep, 600, environment=tarball)
        t.specify_running_time_max(1)
        q.submit(t)
        assert q.wait(20) is t
        assert type(t.output) is TaskError
        assert "running_time_max" in str(t.output)


def test_cores_are_shared_out(command: Any, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with LocalQueue(cores=2) as q:
        for _ in range(4):
            q.submit(command(f"echo + >> {log}; sleep 0.2; echo - >> {log}"))
        q.submit(command(f"echo + >> {log}; echo + >> {log}; sleep 0.1; echo - >> {log}; echo - >> {log}", cores=2))
        assert not q.hungry()
        while not q.empty():
            assert q.wait(20).returned
        assert q.hungry()
    running = most = 0
    for sign in log.read_text().split():
        running += 1 if sign == "+" else -1
        most = max(most, running)
    assert most == 2


def test_priority_then_age(command: Any, tmp_path: Path) -> None:
    order = tmp_path / "order"
    with LocalQueue(cores=1) as q:
        q.submit(command("sleep 0.3"))
        for n, priority in enumerate((0, 0, 5, -1, 5)):
            q.submit(command(f"echo {n} >> {order}", priority=priority))
        while not q.empty():
            q.wait(20)
    assert order.read_text().split() == ["2", "4", "0", "1", "3"]


def test_waiting(command: Any) -> None:
    with LocalQueue(cores=1) as q:
        assert q.empty()
        assert q.wait(0) is None
        assert q.wait() is None, "nothing to wait for"
        q.submit(command("sleep 0.3"))
        assert not q.empty()
        assert q.wait(0.01) is None
        assert q.wait(None).returned
        assert q.empty()


def test_without_pidfd(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux before 5.3, and some sandboxes."""
    monkeypatch.delattr(os, "pidfd_open")
    with LocalQueue(cores=2) as q:
        q.submit(command("sleep 0.1; exit 3"))
        q.submit(command("sleep 600"))
        assert q.wait(20).return_status == 3
        assert q.wait(0.1) is None


def test_cancel(command: Any, tmp_path: Path) -> None:
    told = tmp_path / "pid"
    with LocalQueue(cores=1) as q:
        running = command(f"sleep 600 & echo $! > {told}; wait", tag="running")
        waiting, third = command("true", tag="waiting"), command("true", category="rest")
        ids = [q.submit(t) for t in (running, waiting, third)]
        child = int(wait_for(told))
        assert q.cancel_by_taskid(99) is None
        assert q.cancel_by_tasktag("waiting") is waiting
        assert q.cancel_by_taskid(ids[0]) is running
        assert is_gone(child)
        assert q.cancel_by_category("rest") == [third]
        assert q.empty()
        with pytest.raises(EngineError, match="clone"):
            q.submit(running)
        again = waiting.clone()
        q.submit(again)
        assert q.wait(20) is again


def test_signals_and_statuses_are_told_apart(tarball: Path) -> None:
    with LocalQueue(cores=2) as q:
        cases = (lambda: os._exit(9), "exit status 9"), (lambda: os.kill(os.getpid(), 9), "ended by signal 9")
        for f, expected in cases:
            t = PonchoTask(f, environment=tarball)
            q.submit(t)
            q.wait(20)
            assert t.return_status == 9
            assert expected in str(t.output)
            assert ("memory" in t.output.advice) == ("signal" in expected)
            assert "LocalQueue" not in t.output.advice  # where it is
        term = PonchoTask(lambda: os.kill(os.getpid(), signal.SIGTERM), environment=tarball)
        q.submit(term)
        q.wait(20)
        assert "15 (SIGTERM)" in str(term.output)


def test_what_it_cannot_do_is_refused(command: Any) -> None:
    with pytest.raises(EngineError, match="cores"):
        LocalQueue(cores=0)
    with LocalQueue(cores=1) as q:
        with pytest.raises(EngineError, match="asks for 2 cores"):
            q.submit(command("true", cores=2))
        t = command("true")
        t.specify_file_command(remote_name="x", cmd="touch %%")
        with pytest.raises(EngineError, match="by command"):
            q.submit(t)
        with pytest.raises(EngineError, match="not str"):
            q.submit("true")
        twice = command("sleep 0.2")
        q.submit(twice)
        with pytest.raises(EngineError, match="has not come back"):
            q.submit(twice)
        assert q.wait(20) is twice


def test_outputs_for_failure_and_success_only(command: Any, tmp_path: Path) -> None:
    with LocalQueue(cores=1) as q:
        for status in (0, 1):
            t = command(f"echo x > x; exit {status}")
            t.specify_output_file(str(tmp_path / f"failed-{status}"), "x", failure_only=True)
            q.submit(t)
            assert q.wait(20).result == 0
    assert [p.name for p in tmp_path.glob("failed-*")] == ["failed-1"]


def test_the_cache_follows_a_file_that_changes(command: Any, tmp_path: Path) -> None:
    """Work Queue knows a file by its path alone and would go on with the old one."""
    data = tmp_path / "data"
    with LocalQueue(cores=1) as q:
        for text in ("old", "new!"):
            data.write_text(text)
            t = command("cat d")
            t.specify_input_file(str(data), "d", cache=True)
            q.submit(t)
            assert q.wait(20).output == text


def test_a_sandbox_that_resists_removal(command: Any, tmp_path: Path) -> None:
    with LocalQueue(cores=1, workdir=tmp_path) as q:
        q.submit(command("mkdir -p a/b; touch a/b/c; chmod 500 a/b a"))
        assert q.wait(20).returned
    assert list(tmp_path.iterdir()) == []


def test_inside_another_worker_s_task(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORK_QUEUE_SANDBOX", "/nonexistent")
    with LocalQueue(cores=1) as q:
        t = command('echo "$WORK_QUEUE_SANDBOX"')
        t.specify_environment_variable("COLOUR", None)
        q.submit(t)
        assert q.wait(20).output == f"{q.workspace}\n"


def test_a_variable_can_be_taken_away(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLOUR", "red")
    with LocalQueue(cores=1) as q:
        t = command("echo ${COLOUR-none}")
        t.specify_environment_variable("COLOUR", None)
        q.submit(t)
        assert q.wait(20).output == "none\n"


def test_a_cancelled_process_without_workspace_directory(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nowhere"), LocalQueue(cores=1, workdir=tmp_path / "nowhere") as q:
        q.workspace
