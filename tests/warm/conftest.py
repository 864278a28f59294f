"""A worker's workspace without a worker: tasks as Work Queue starts them, ``sh -c`` in a sandbox of their own."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from poncho_wq import payload
from poncho_wq.program import runner_program, warm_client

PATIENCE = 30
SHELLS = {"dash": ["dash"], "bash": ["bash", "--posix"], "busybox": ["busybox", "sh"]}


def until(condition: Callable[[], Any], what: str) -> Any:
    """Wait for something to become true, and return it."""
    end = time.monotonic() + PATIENCE
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > end:
            pytest.fail(f"{what}: not within {PATIENCE} s")
        time.sleep(0.01)


def alive(pid: int) -> bool:
    """Whether there is such a process, a zombie aside."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def named(source: str, name: str = "f") -> Any:
    """A function of ``__main__``, which travels by value."""
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(source, space)
    return space[name]


class Workspace:
    """``run`` does one task to its end; ``start`` returns its process."""

    def __init__(self, root: Path, shell: list[str], python: str = sys.executable, user: int | None = None) -> None:
        self.root, self.shell, self.python, self.user = root, shell, python, user
        self.environ = {"PATH": "/usr/bin:/bin", "HOME": "/root", "WORK_QUEUE_SANDBOX": str(root)}
        self.prefix = root / "prefix"
        (self.prefix / "poncho").mkdir(parents=True)
        self.activation(":")
        self.count = 0
        self.started: list[subprocess.Popen[bytes]] = []
        self.servers: set[int] = set()
        self.kept: list[Any] = []

    def activation(self, body: str) -> None:
        (self.prefix / "poncho" / "ready").write_text(f"_poncho_activate() {{\n{body}\n}}\n_poncho_found=ready\n")

    def command(self, home: Path, function: Any, args: tuple[Any, ...], modules: tuple[str, ...], server: str) -> str:
        shipped = payload.pickle_function(function, None, modules)
        arguments = payload.pickle_arguments(args, {})
        if arguments.text is not None:
            (home / payload.ARGUMENTS_NAME).write_text(arguments.text)
        runner = runner_program()
        # What the wrapper does, as far as it matters here.
        prefix = shlex.quote(str(self.prefix))
        wrapper = (
            f"unset PYTHONPATH PYTHONHOME; export PONCHO_PREFIX={prefix} CONDA_PREFIX={prefix}; "
            f"PATH={prefix}/bin:$PATH; . {prefix}/poncho/ready; _poncho_activate; exec {self.python}"
        )
        client = warm_client(server, f'{wrapper} -s ./{runner.name} --warm "$_poncho_warm" "$@"')
        self.kept += [shipped, runner, client]
        for file in (shipped, runner, client):
            shutil.copyfile(file.path, home / file.name)
        return f"set -- {client.name} {shipped.name} {arguments.word} poncho-result; . ./$1"

    def start(
        self,
        function: Any,
        *args: Any,
        modules: tuple[str, ...] = (),
        environ: dict[str, str] | None = None,
        parent: list[str] | None = None,
        before: str = "",
        server: str = "test",
    ) -> Task:
        self.count += 1
        home = self.root / f"t.{self.count}"
        home.mkdir()
        command = before + self.command(home, function, args, modules, server)
        out = (self.root / f"out.{self.count}").open("w+b")
        if self.user is not None:
            for path in (self.root, home):
                os.chown(path, self.user, -1)
        process = subprocess.Popen(
            [*(parent or []), *self.shell, "-c", command], cwd=home, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
            env={**self.environ, "TMPDIR": str(home), **(environ or {})}, preexec_fn=lambda: os.setpgid(0, 0),
            user=self.user,
        )  # fmt: skip
        self.started.append(process)
        return Task(process, home, out)

    def run(self, function: Any, *args: Any, **options: Any) -> Task:
        task = self.start(function, *args, **options)
        task.status = task.process.wait(PATIENCE)
        return task

    def warm_up(self, *modules: str, **options: Any) -> int:
        """Run a first task, and return the server's pid when it serves."""
        first = self.run(nothing, 1, modules=modules, **options)
        assert (first.status, first.said) == (0, "")
        return int(until(self.server, "a warm server"))

    def server(self) -> int | None:
        for cur in self.root.glob("poncho-warm-*/cur"):
            with contextlib.suppress(OSError, ValueError):
                pid = int(cur.read_text())
                self.servers.add(pid)
                return pid
        return None

    def homes(self) -> list[Path]:
        return list(self.root.glob("poncho-warm-*"))

    def read(self, name: str) -> str:
        return "".join(path.read_text() for path in self.root.glob(f"poncho-warm-*/{name}"))

    def close(self) -> None:
        self.server()
        for process in self.started:
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for pid in self.servers:
            with contextlib.suppress(OSError):
                if b"--serve" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                    os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.root, ignore_errors=True)


class Task:
    def __init__(self, process: subprocess.Popen[bytes], home: Path, out: Any) -> None:
        self.process, self.home, self._out = process, home, out
        self.status: int | None = None

    @property
    def said(self) -> str:
        self._out.seek(0)
        return str(self._out.read().decode())

    @property
    def outcome(self) -> payload.Outcome | None:
        return payload.load_result(self.home / "poncho-result")

    @property
    def value(self) -> Any:
        assert self.outcome is not None, self.said
        assert self.outcome.kind == "value", self.outcome
        return self.outcome.value


nothing = named("def f(x): return x")
parent = named("def f(*args):\n    import os\n    return os.getppid()")


def make(tmp_path: Path, shell: str) -> Iterator[Workspace]:
    if shutil.which(SHELLS[shell][0]) is None:
        pytest.skip(f"{shell} is not installed")
    workspace = Workspace(tmp_path / "work space", [str(shutil.which(SHELLS[shell][0])), *SHELLS[shell][1:]])
    try:
        yield workspace
    finally:
        workspace.close()


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    """With the shell that most workers have as /bin/sh."""
    yield from make(tmp_path, "dash")


@pytest.fixture(params=sorted(SHELLS))
def any_shell(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Workspace]:
    """With each of the shells in turn."""
    yield from make(tmp_path, request.param)
