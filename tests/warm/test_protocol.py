"""The warm server and its clients: each trap of the protocol, and the way back to a fresh interpreter."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from poncho_wq.program import warm_client
from tests.warm.conftest import Workspace, alive, named, nothing, parent, until

SLEEPER = named(
    """
def f(file, seconds=60):
    import os, subprocess, time
    child = subprocess.Popen(["sleep", str(seconds)])
    with open(file + ".new", "w") as out:
        out.write(f"{os.getpid()} {child.pid}")
    os.rename(file + ".new", file)
    time.sleep(seconds)
"""
)


def _running(workspace: Workspace, **options: Any) -> tuple[Any, int, int]:
    """A warm task that runs: the task, the pid of its Python and of that one's child."""
    task = workspace.start(SLEEPER, str(workspace.root / f"pids.{workspace.count}"), **options)
    file = workspace.root / f"pids.{workspace.count - 1}"
    until(file.exists, "the task's start")
    one, other = map(int, file.read_text().split())
    return task, one, other


# -- what a warm task is


def test_the_second_task_is_warm_and_where_it_belongs(any_shell: Workspace) -> None:
    look = named("def f():\n    import os\n    return os.getppid(), os.getcwd(), os.environ['OWN'], os.getpgid(0)")
    server = any_shell.warm_up()
    task = any_shell.start(look, environ={"OWN": "a b'c"})
    task.status = task.process.wait(30)
    assert (task.status, task.said) == (0, "")
    assert task.value == (server, str(task.home), "a b'c", task.process.pid)


def test_streams_are_the_task_s(any_shell: Workspace) -> None:
    speak = named(
        "def f():\n import os, sys\n print('out')\n sys.stdout.flush()\n os.system('echo shell')\n"
        " sys.stderr.write('err\\n')\n return sys.stdin.read()"
    )
    any_shell.warm_up()
    task = any_shell.run(speak, before="echo before; ")
    assert task.value == ""
    assert task.said == "before\nout\nshell\nerr\n"


def test_stderr_apart_from_stdout(any_shell: Workspace) -> None:
    speak = named("def f():\n import os\n os.write(1, b'out')\n os.write(2, b'err')\n return os.getppid()")
    server = any_shell.warm_up()
    task = any_shell.run(speak, before="exec 2>errors; ")
    assert (task.value, task.said, (task.home / "errors").read_text()) == (server, "out", "err")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("return 1", 0),
        ("raise ValueError('x')", 1),
        ("import sys; sys.exit(7)", 7),
        ("import os; os._exit(3)", 3),
        ("import os; os._exit(255)", 255),
        ("import os; os.kill(os.getpid(), 9)", -9),
        ("import os; os.kill(os.getpid(), 11)", -11),
        ("import os, signal; signal.signal(15, signal.SIG_DFL); os.kill(os.getpid(), 15)", -15),
    ],
)
def test_a_task_ends_as_its_function_does(any_shell: Workspace, body: str, status: int) -> None:
    server = any_shell.warm_up()
    assert any_shell.run(named(f"def f():\n    {body}")).status == status
    # And the next one does not notice.
    assert any_shell.run(parent).value == server


def test_exit_functions_threads_and_open_files_as_in_a_fresh_one(workspace: Workspace) -> None:
    late = named(
        "def f():\n import atexit, threading, time\n global kept\n kept = open('left', 'w')\n kept.write('words')\n"
        " atexit.register(print, 'exit')\n"
        " threading.Thread(target=lambda: (time.sleep(0.2), open('thread', 'w'))).start()"
    )
    workspace.warm_up()
    task = workspace.run(late)
    assert (task.status, task.said) == (0, "exit\n")
    assert (task.home / "left").read_text() == "words"
    assert (task.home / "thread").exists()
    assert workspace.read("status").count("refused=0") == 1


def test_modules_are_imported_beforehand_and_later_ones_too(workspace: Workspace) -> None:
    look = named("def f(*names):\n    import os, sys\n    return os.getppid(), [n in sys.modules for n in names]")
    server = workspace.warm_up("decimal")
    assert workspace.run(look, "decimal", "wave").value == (server, [True, False])
    # Another function, which names another module: the same server learns it.
    assert workspace.run(look, "decimal", "wave", modules=("wave", "no_such_module_xyz")).value == (
        server, [True, True],
    )  # fmt: skip


def test_activation_sets_what_it_sets(workspace: Workspace) -> None:
    workspace.activation("export DATA='a b'\nexport LIST=\"$PONCHO_PREFIX/x${LIST:+:$LIST}\"\nexport OWN=${OWN-theirs}")
    look = named(
        "def f():\n    import os\n    return os.getppid(), os.environ['DATA'], os.environ['LIST'], os.environ['OWN']"
    )
    server = workspace.warm_up()
    assert workspace.run(look, environ={"LIST": "mine", "OWN": "ours"}).value == (
        server, "a b", f"{workspace.prefix}/x:mine", "ours",
    )  # fmt: skip


def test_many_at_once(workspace: Workspace) -> None:
    server = workspace.warm_up()
    work = named("def f(n):\n    import os, time\n    time.sleep(n % 7 / 500)\n    return n, os.getppid()")
    for start in range(0, 240, 80):  # more than there are slots
        tasks = [workspace.start(work, n) for n in range(start, start + 80)]
        assert [task.process.wait(60) for task in tasks] == [0] * 80
        values = [task.value for task in tasks]
        assert [value[0] for value in values] == list(range(start, start + 80))
        assert sum(value[1] == server for value in values) > 40
    place = workspace.homes()[0] / str(server)
    until(lambda: not list(place.glob("claim.*")), "every slot to be free again")


# -- ways back to a fresh interpreter


def _is_fresh(workspace: Workspace, server: int, **options: Any) -> bool:
    task = workspace.run(parent, **options)
    assert task.status == 0, task.said
    return bool(task.value != server)


def test_a_resource_monitor_would_not_see_the_child(any_shell: Workspace) -> None:
    server = any_shell.warm_up()
    assert _is_fresh(any_shell, server, environ={"CCTOOLS_RESOURCE_MONITOR_INFO": "x"})
    assert not _is_fresh(any_shell, server)


@pytest.mark.parametrize("name", ["PYTHONHASHSEED", "LD_LIBRARY_PATH", "LC_ALL", "TZ", "CUDA_VISIBLE_DEVICES"])
def test_variables_that_are_read_at_the_start(workspace: Workspace, name: str) -> None:
    server = workspace.warm_up()
    assert _is_fresh(workspace, server, environ={name: "1"})
    assert name in workspace.read("refused")


def test_another_number_of_threads_is_another_server(workspace: Workspace) -> None:
    workspace.warm_up()
    assert workspace.run(nothing, 1, environ={"OMP_NUM_THREADS": "2"}).status == 0
    until(lambda: len([home for home in workspace.homes() if (home / "cur").exists()]) == 2, "a second server")
    workspace.servers.update(int((home / "cur").read_text()) for home in workspace.homes())
    assert workspace.run(nothing, 1, environ={"OMP_NUM_THREADS": "$(touch x)/.."}).status == 0
    assert len(workspace.homes()) == 2


def test_a_line_that_could_be_torn_apart(any_shell: Workspace) -> None:
    server = any_shell.warm_up()
    size = named("def f(text):\n    import os\n    return os.getppid(), len(text)")
    assert any_shell.run(size, "x" * 1000).value == (server, 1000)
    # Longer than any argument that is sent inline.
    name = "n" * 200
    task = any_shell.start(size, "y" * 1400)
    assert task.process.wait(30) == 0
    assert task.value == (server, 1400)
    long = any_shell.start(parent, *[name[: 7 + n] for n in range(4)])
    assert long.process.wait(30) == 0
    client = warm_client("test", "echo fresh")
    script = f"set -- {client.name} a {'b' * 4000} c; . {client.path}"
    done = subprocess.run([*any_shell.shell, "-c", script], cwd=long.home, env=any_shell.environ, text=True,
                          capture_output=True, check=False, timeout=30)  # fmt: skip
    assert (done.stdout, done.stderr) == ("fresh\n", "")


# A worker that makes no task the leader of a group, or tries it when the task's shell runs already, which the system
# refuses.  It says who the task was.
SLOW_WORKER = """
import os, subprocess, sys
open("/proc/self/comm", "w").write("work_queue_worker")
os.environ.pop("LC_CTYPE", None)  # set by this Python itself (PEP 538), and a task with other languages runs fresh
task = subprocess.Popen(sys.argv[1:])
print(task.pid, flush=True)
sys.exit(task.wait())
"""


def test_a_task_in_its_workers_group_leads_one_of_its_own(any_shell: Workspace) -> None:
    """Nobody could kill it there: its worker kills groups."""
    server = any_shell.warm_up()
    look = named("def f(*words):\n    import os\n    return os.getppid(), words")
    slow_worker = [sys.executable, "-c", SLOW_WORKER]
    assert any_shell.run(look, "a b", "c", parent=slow_worker).value == (server, ("a b", "c"))
    task, one, other = _running(any_shell, parent=slow_worker)
    os.killpg(int(task.said), signal.SIGKILL)
    until(lambda: not alive(one) and not alive(other), "the end of the whole group")
    assert task.process.wait(30) != 0


def test_the_first_task_of_a_server_led_a_session(any_shell: Workspace) -> None:
    """Which is the server's and its children's then, and no other task's."""
    stays = f"{SLOW_WORKER.replace('sys.exit(task.wait())', 'task.wait()')}\nimport time; time.sleep(60)"
    any_shell.start(nothing, 1, parent=[sys.executable, "-c", stays])
    server = until(any_shell.server, "a warm server")
    look = named("def f():\n    import os\n    return os.getppid(), os.getpgrp() == os.getpid()")
    assert any_shell.run(look).value == (server, True)
    task, one, other = _running(any_shell)
    os.killpg(task.process.pid, signal.SIGKILL)
    until(lambda: not alive(one) and not alive(other), "the end of the whole group")


def test_a_task_that_leads_no_group_of_its_own(workspace: Workspace) -> None:
    """A shell that stays may be between a worker and the client."""
    server = workspace.warm_up()
    inner = workspace.start(parent, parent=["/bin/sh", "-c", '"$@"; exit $?', "sh"])
    assert inner.process.wait(30) == 0
    assert inner.value == server


@pytest.mark.parametrize("victim", ["client", "server"])
def test_the_group_of_a_task_that_leads_none(any_shell: Workspace, victim: str) -> None:
    server = any_shell.warm_up()
    task, one, other = _running(any_shell, parent=["/bin/sh", "-c", '"$@"; exit $?', "sh"])
    assert os.getpgid(one) == os.getpgid(other) == one
    client = int(Path(f"/proc/{task.process.pid}/task/{task.process.pid}/children").read_text())
    os.kill(server if victim == "server" else client, signal.SIGKILL)
    assert task.process.wait(30) == 128 + signal.SIGKILL
    until(lambda: not alive(one) and not alive(other), "the end of the whole group")
    assert alive(os.getpid())


def test_the_server_has_died(any_shell: Workspace) -> None:
    """FIFOs without a reader."""
    server = any_shell.warm_up()
    os.kill(server, signal.SIGKILL)
    until(lambda: not alive(server), "its death")
    assert any_shell.homes()[0].joinpath("cur").exists()
    assert _is_fresh(any_shell, server)


def test_a_pointer_to_nowhere_and_rubbish(any_shell: Workspace) -> None:
    server = any_shell.warm_up()
    cur = any_shell.homes()[0] / "cur"
    for text in ("999999\n", "", "../../x\n", "a b c\n"):
        cur.write_text(text)
        assert _is_fresh(any_shell, server)


def test_rubbish_among_the_requests(workspace: Workspace) -> None:
    server = workspace.warm_up()
    requests = workspace.homes()[0] / str(server) / "requests"
    with requests.open("wb", buffering=0) as fifo:
        for line in (b"\n", b"run\n", b"run x y z\n", b"run 1 0 a b c\n", b"free 1 99\n", b"run -1 -1 \xff\n"):
            fifo.write(line)
    assert not _is_fresh(workspace, server)


def test_other_users_are_refused(workspace: Workspace) -> None:
    if os.getuid() != 0:
        pytest.skip("needs root to give a file away")
    server = workspace.warm_up()
    cur = workspace.homes()[0] / "cur"
    os.chown(cur, 12345, -1)
    assert _is_fresh(workspace, server)
    os.chown(cur, 0, -1)
    assert not _is_fresh(workspace, server)


def test_a_process_of_another_user_is_not_served(workspace: Workspace) -> None:
    if os.getuid() != 0:
        pytest.skip("needs root to be another user")
    server = workspace.warm_up()
    place = workspace.homes()[0] / str(server)
    with subprocess.Popen(["sleep", "60"], user=65534, cwd="/") as other:
        try:
            (place / "claim.0").write_text(f"{other.pid}\n")
            with (place / "reply.0").open("rb+", buffering=0) as reply:
                with (place / "requests").open("wb", buffering=0) as requests:
                    requests.write(f"run {other.pid} 0 f gA== result\n".encode())
                assert reply.readline() == f"{other.pid} fresh 0\n".encode()
        finally:
            other.kill()
    assert not _is_fresh(workspace, server)


def test_an_ordinary_user() -> None:
    """Whose processes may be looked into by nobody but themselves and root."""
    if os.getuid() != 0:
        pytest.skip("every other test is that of an ordinary user")
    python = f"/usr/bin/python{sys.version_info.major}.{sys.version_info.minor}"
    if not os.access(python, os.X_OK):
        pytest.skip(f"there is no {python}, for any user to run")
    # Not below pytest's own directory, which is root's alone.
    place = Path(tempfile.mkdtemp(prefix="poncho-warm-test-"))
    place.chmod(0o755)
    workspace = Workspace(place / "work", ["/bin/sh"], python, user=65534)
    try:
        server = workspace.warm_up()
        assert os.stat(f"/proc/{server}").st_uid == 65534
        assert workspace.run(parent).value == server, workspace.read("refused")
        task, one, other = _running(workspace)
        task.process.kill()
        until(lambda: not alive(one) and not alive(other), "the end of the whole group")
    finally:
        workspace.close()
        shutil.rmtree(place)


def test_a_directory_that_others_can_write_to(workspace: Workspace) -> None:
    home = workspace.root / "poncho-warm-test-......."
    home.mkdir(mode=0o700)
    home.chmod(0o777)
    assert workspace.run(nothing, 1).status == 0
    time.sleep(0.3)
    assert list(home.iterdir()) == []


@contextlib.contextmanager
def _installed(code: str) -> Iterator[Path]:
    """A module of the environment; no variable would get one past the wrapper."""
    module = Path(sysconfig.get_path("purelib")) / f"poncho_test_module_{os.getpid()}.py"
    module.write_text(code)
    try:
        yield module
    finally:
        module.unlink()


def test_a_module_that_asks_for_a_temporary_directory(workspace: Workspace) -> None:
    look = named("def f():\n    import os, tempfile\n    return os.getppid(), tempfile.gettempdir() == os.getcwd()")
    with _installed("import tempfile\ntempfile.gettempdir()\n") as module:
        server = workspace.warm_up(module.stem)
        assert workspace.run(look).value == (server, True)


def test_a_module_that_starts_a_thread(workspace: Workspace) -> None:
    code = "import threading, time\nthreading.Thread(target=time.sleep, args=(1000,), daemon=True).start()\n"
    server = workspace.warm_up()
    with _installed(code) as module:
        task = workspace.run(parent, modules=(module.stem,))
        assert task.value != server
        until(lambda: not alive(server), "the server's end, which has a thread now")
        assert workspace.read("unfit").split() == [module.stem]
        # Others get a new server; this function does not get one again.
        second = workspace.warm_up()
        assert workspace.run(parent, modules=(module.stem,)).value != second
        assert workspace.run(parent).value == second


@pytest.mark.parametrize(
    "code",
    [
        "import sys\nkept = open(sys.executable, 'rb')",
        "import socket\nkept = socket.socketpair()",
        "import mmap\nkept = mmap.mmap(-1, 4096)",
        "import subprocess\nkept = subprocess.Popen(['sleep', '60'])",
    ],
    ids=["file", "socket", "memory", "process"],
)
def test_a_module_that_keeps_what_children_would_share(workspace: Workspace, code: str) -> None:
    """An offset, a buffer of the system's, memory as a GPU's driver maps it: what one task does there, all see."""
    with _installed(code + "\n") as module:
        first = workspace.run(nothing, 1, modules=("json", module.stem))
        assert first.status == 0
        until(lambda: module.stem in workspace.read("unfit"), "the server's note")
        assert workspace.server() is None
        server = workspace.warm_up()
        assert workspace.run(parent, modules=(module.stem,)).value != server
        assert workspace.run(parent).value == server


def test_a_module_that_keeps_it_and_comes_later(workspace: Workspace) -> None:
    server = workspace.warm_up()
    task, *_ = _running(workspace)  # what is the server's own meanwhile is not the module's
    with _installed("import sys\nkept = open(sys.executable, 'rb')\n") as module:
        assert workspace.run(parent, modules=("wave",)).value == server
        assert workspace.run(parent, modules=(module.stem,)).value != server
        assert module.stem in workspace.read("unfit").split()
        assert "wave" not in workspace.read("unfit").split()
    task.process.kill()


def test_modules_that_are_listed(workspace: Workspace) -> None:
    server = workspace.warm_up()
    task = workspace.run(parent, modules=("tensorflow",))
    assert task.value != server
    assert workspace.run(parent).value == server


def test_memory_of_the_idle_server_is_bounded(workspace: Workspace) -> None:
    first = workspace.run(nothing, 1, modules=("decimal",), environ={"PONCHO_WARM_MEMORY": "1"})
    assert first.status == 0
    until(lambda: workspace.read("unfit"), "the server's note that it is too large")
    assert workspace.server() is None


def test_its_memory_is_reported(workspace: Workspace) -> None:
    server = workspace.warm_up()
    assert workspace.run(nothing, 1).value == 1
    words = dict(word.split("=") for word in until(lambda: workspace.read("status"), "a report").split()[2:])
    assert int(words["pid"]) == server
    assert 1 < int(words["megabytes"]) < int(words["limit"])
    until(lambda: "served=1 " in workspace.read("status"), "the count of tasks")


def test_streams_when_pidfd_getfd_is_forbidden(tmp_path: Path) -> None:
    """Yama and seccomp may forbid it: then by the file's name, to its end."""
    out = tmp_path / "out"
    with out.open("w+b") as file:
        file.write(b"before\n")
        file.flush()
        client = subprocess.Popen(["sh", "-c", "command exec 3<&0 8>&1 9>&2; echo ready; exec sleep 60"],
                                  stdin=subprocess.DEVNULL, stdout=file, stderr=file)  # fmt: skip
    try:
        until(lambda: "ready" in out.read_text(), "the client")
        code = (
            "import os, sys; from poncho_wq.warm import order\n"
            f"for number, fd in enumerate(order._streams({client.pid}, -1, None)): os.dup2(fd, number)\n"
        )
        code += "os.write(1, b'out\\n'); os.write(2, b'err\\n'); os.write(1, repr(os.read(0, 10)).encode())"
        subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
        assert out.read_text() == "before\nready\nout\nerr\nb''"
    finally:
        client.kill()
        client.wait()


# -- children that wait for a task


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _spare(server: int) -> int:
    """The only child, which waits."""

    def only() -> int | None:
        found = _children(server)
        return found[0] if len(found) == 1 and alive(found[0]) else None

    return int(until(only, "one child"))


def test_a_child_waits_for_the_next_task(workspace: Workspace) -> None:
    look = named("def f():\n    import os\n    return os.getpid(), os.getppid()")
    server = workspace.warm_up()
    used: set[int] = set()
    for _ in range(3):
        spare = int(until(lambda: _spare(server) not in used and _spare(server), "another child"))
        assert workspace.run(look).value == (spare, server)
        used.add(spare)


def test_a_child_that_waits_is_killed(workspace: Workspace) -> None:
    server = workspace.warm_up()
    spare = _spare(server)
    os.kill(spare, signal.SIGKILL)
    assert not _is_fresh(workspace, server)
    # Also before the server has seen it: the order goes to nobody.
    spare = _spare(server)
    os.kill(server, signal.SIGSTOP)
    try:
        task = workspace.start(parent)
        until(lambda: (workspace.homes()[0] / str(server) / "claim.0").exists(), "a request")
        time.sleep(0.1)
        os.kill(spare, signal.SIGKILL)
        until(lambda: not alive(spare), "its end")
    finally:
        os.kill(server, signal.SIGCONT)
    assert task.process.wait(30) == 0
    assert task.value == server, workspace.read("refused")


def test_no_child_waits_for_a_server_that_has_gone(workspace: Workspace) -> None:
    server = workspace.warm_up()
    spare = _spare(server)
    os.kill(server, signal.SIGKILL)
    until(lambda: not alive(spare), "its end")


def test_a_child_that_waits_has_what_is_imported_later(workspace: Workspace) -> None:
    look = named("def f():\n    import os, sys\n    return os.getppid(), 'wave' in sys.modules")
    server = workspace.warm_up()
    until(lambda: _children(server), "a child that has it not")
    assert workspace.run(look, modules=("wave",)).value == (server, True)


def test_what_a_task_leaves_running_goes_on(workspace: Workspace) -> None:
    """As with a fresh interpreter, whose end nobody takes for a kill."""
    leave = named(
        "def f():\n    import os, subprocess\n    return os.getppid(), subprocess.Popen(['sleep', '60'],"
        " stdin=-3, stdout=-3, stderr=-3).pid"
    )
    server = workspace.warm_up()
    left = []
    try:
        for _ in range(20):
            task = workspace.run(leave)
            assert (task.status, task.value[0]) == (0, server)
            left.append(task.value[1])
        time.sleep(0.2)
        assert [alive(pid) for pid in left] == [True] * 20
    finally:
        for pid in left:
            os.kill(pid, signal.SIGKILL)


def test_the_least_recently_used_server_makes_room(workspace: Workspace) -> None:
    from poncho_wq.warm.starting import MOST_SERVERS

    def current() -> set[str]:
        return {home.name for home in workspace.homes() if (home / "cur").exists()}

    names = [f"{number:08d}" for number in range(MOST_SERVERS + 1)]
    homes = []
    for number, name in enumerate(names):
        assert workspace.run(nothing, 1, server=name).status == 0
        (home,) = until(lambda: current() - set(homes), "a server of its own")
        homes.append(home)
        workspace.servers.add(int((workspace.root / home / "cur").read_text()))
        os.utime(workspace.root / home / "cur", (number, 1000 + number if number else 10**9))
    # The first had been used last.
    assert current() == {homes[0], *homes[2:]}
    gone = workspace.root / homes[1]
    until(lambda: not [path for path in gone.iterdir() if path.is_dir()], "the end of the server that made room")


# -- the ends


def test_cancel_kills_the_group(workspace: Workspace) -> None:
    workspace.warm_up()
    task, one, other = _running(workspace)
    assert os.getpgid(one) == os.getpgid(other) == task.process.pid
    os.killpg(task.process.pid, signal.SIGKILL)
    until(lambda: not alive(one) and not alive(other), "the end of the whole group")


def test_a_kill_of_the_leader_alone_reaches_the_whole_group(workspace: Workspace) -> None:
    server = workspace.warm_up()
    task, one, other = _running(workspace)
    task.process.kill()
    until(lambda: not alive(one) and not alive(other), "the end of the whole group")
    assert not _is_fresh(workspace, server)


def test_term_is_forwarded(any_shell: Workspace) -> None:
    graceful = named(
        """
def f(file):
    import os, signal, sys, time
    def stop(*_):
        print("told to stop")
        sys.exit(33)
    signal.signal(signal.SIGTERM, stop)
    open(file, "w").close()
    time.sleep(60)
"""
    )
    any_shell.warm_up()
    file = any_shell.root / "up"
    task = any_shell.start(graceful, str(file))
    until(file.exists, "the task's start")
    time.sleep(0.1)
    task.process.terminate()
    assert task.process.wait(30) == 33
    assert task.said == "told to stop\n"


def test_the_server_dies_while_a_task_runs(any_shell: Workspace) -> None:
    """A grandchild holds no descriptor of the server's, so that the client sees its end."""
    server = any_shell.warm_up()
    task, one, other = _running(any_shell)
    for pid in (one, other):
        assert not [fd for fd in os.listdir(f"/proc/{pid}/fd") if "poncho-warm" in os.readlink(f"/proc/{pid}/fd/{fd}")]
    os.kill(server, signal.SIGKILL)
    assert task.process.wait(30) == -signal.SIGKILL
    until(lambda: not alive(one) and not alive(other), "the end of the whole group")


def test_the_server_ends_with_its_worker(workspace: Workspace) -> None:
    # `timeout` is a parent that ends with its task's shell, as a worker does not.
    worker = subprocess.Popen(["sleep", "1000"])
    try:
        home = workspace.root / "poncho-warm-by-hand"
        home.mkdir(mode=0o700)
        code = (
            "import os; os.getppid = lambda: int(os.environ['PARENT'])\n"
            "from poncho_wq.warm import starting; from poncho_wq.program import runner_program\n"
            f"assert starting.start_server({str(home)!r}, runner_program().path, '.', ['json'])"
        )
        environ = {**os.environ, "PARENT": str(worker.pid), "PONCHO_PREFIX": str(workspace.prefix)}
        subprocess.run([sys.executable, "-c", code], env=environ, check=True, timeout=60)
        server = until(workspace.server, "a server")
        assert alive(server)
        worker.kill()
        worker.wait()
        until(lambda: not alive(server), "the server's end")
        assert not (home / "cur").exists()
        assert not (home / str(server)).exists()
    finally:
        worker.kill()
        worker.wait()


def test_the_server_ends_with_its_directory(workspace: Workspace) -> None:
    server = workspace.warm_up()
    home = workspace.homes()[0]
    home.rename(workspace.root / "elsewhere")
    until(lambda: not alive(server), "the server's end")


def test_the_server_ends_with_its_environment(workspace: Workspace) -> None:
    server = workspace.warm_up()
    assert not _is_fresh(workspace, server)
    # As whoever evicts it takes that away first.
    ready = workspace.prefix / "poncho" / "ready"
    ready.rename(ready.with_name("gone"))
    task = workspace.start(parent)
    until(lambda: not alive(server), "the server's end")
    assert task.process.wait(30) != 0, "there is nothing for a fresh interpreter either"


def test_the_server_ends_when_idle(workspace: Workspace) -> None:
    server = workspace.warm_up(environ={"PONCHO_WARM_IDLE": "0.5"})
    until(lambda: not alive(server), "the server's end")
    assert workspace.server() is None


def test_the_server_holds_nothing_of_a_task(workspace: Workspace) -> None:
    server = workspace.warm_up()
    assert workspace.run(parent).value == server
    held = [os.readlink(f"/proc/{server}/cwd")]
    for fd in os.listdir(f"/proc/{server}/fd"):
        with contextlib.suppress(FileNotFoundError):  # it forks, and closes what it forked by
            held.append(os.readlink(f"/proc/{server}/fd/{fd}"))
    assert not [name for name in held if f"{workspace.root}/t." in name or f"{workspace.root}/out" in name]
    assert os.getpgid(server) == server
    assert os.getsid(server) == os.getsid(0)


def test_the_slot_of_one_who_died_unheard_is_freed(workspace: Workspace) -> None:
    server = workspace.warm_up()
    dead = subprocess.Popen(["true"])
    dead.wait()
    claim = workspace.homes()[0] / str(server) / "claim.0"
    claim.write_text(f"{dead.pid}\n")
    os.utime(claim, (1, 1))
    until(lambda: not claim.exists(), "the slot to be freed")


def test_one_server_however_many_start_one(workspace: Workspace) -> None:
    tasks = [workspace.start(nothing, n) for n in range(12)]
    assert [task.process.wait(60) for task in tasks] == [0] * 12
    until(workspace.server, "a server")
    time.sleep(0.5)
    found = {}
    for each in Path("/proc").glob("[0-9]*"):
        try:
            line = (each / "cmdline").read_bytes()
            if str(workspace.root).encode() in line and b"--serve" in line:
                found[int(each.name)] = int((each / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    # Their children are not servers.
    assert len([pid for pid, parent in found.items() if parent not in found]) == 1
