"""The engines that are found here, and whether their managers and workers speak one protocol.

Story.  A manager of one release meets a worker of another.  The worker's first line names the version of its protocol;
the manager compares, writes "rejecting worker" to a debug log that nobody asked for, and hangs up.  The worker tries
again, for ever; the queue waits, for ever; nobody says a word.  So both are asked here: the worker, by being its
manager for as long as its first line takes; the manager, by asking for its status as ``work_queue_status`` does, and
where that does not tell (Debian's), by greeting it as workers of every version: it hangs up on all but one.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from poncho_wq.doctor.finding import Finding, note, ok, problem, warning
from poncho_wq.engines.binding import find_work_queue
from poncho_wq.engines.vine_manager import find_taskvine
from poncho_wq.engines.workers import TASKVINE, WORK_QUEUE
from poncho_wq.errors import EngineNotInstalled

_DEBIAN_INSTALL = "apt-get install coop-computing-tools python3-workqueue"
_CONDA_INSTALL = "conda install -c conda-forge ndcctools"
# work_queue_worker.c, vine_worker.c: report_worker_ready().
_GREETING = re.compile(rb"(?:workqueue|taskvine) (\d+) ")
_LONGEST = 1 << 20
# Debian's of 2023 has 9, today's Work Queue 11 and TaskVine 13.
_VERSIONS = range(1, 33)

# A manager of its own process: the engine's library may end the process that it is in.  It ends with its stdin.
_MANAGER = """\
import select, sys
from poncho_wq.engines.{module} import {finder}
engine = {finder}()
manager = engine.{make}
print("port", manager.port, engine.__file__, flush=True)
# With nothing submitted, wait() returns at once, but not without having listened.
while not select.select([sys.stdin], [], [], 0.05)[0]:
    manager.wait(1)
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Kind:
    check: str
    name: str
    worker: str
    factory: str
    script: str
    status: bytes
    greeting: str
    install: str


_WORK_QUEUE = _Kind(
    check="work_queue", name="Work Queue", worker=WORK_QUEUE, factory="work_queue_factory",
    script=_MANAGER.format(module="binding", finder="find_work_queue", make="WorkQueue(0)"),
    status=b"queue_status\n", greeting="workqueue", install=f"{_DEBIAN_INSTALL}    (or: {_CONDA_INSTALL})",
)  # fmt: skip
_TASKVINE = _Kind(
    check="taskvine", name="TaskVine", worker=TASKVINE, factory="vine_factory",
    script=_MANAGER.format(module="vine_manager", finder="find_taskvine", make="Manager(port=0)"),
    status=b"manager_status\n", greeting="taskvine", install=_CONDA_INSTALL,
)  # fmt: skip


def work_queue(seconds: float) -> Iterator[Finding]:
    """Work Queue's binding and workers."""
    try:
        find_work_queue()
        missing = None
    except EngineNotInstalled as error:
        missing = error
    yield from _engine(_WORK_QUEUE, missing, seconds)


def taskvine(seconds: float) -> Iterator[Finding]:
    """TaskVine's binding and workers; where there is neither, nobody asked for it."""
    try:
        find_taskvine()
        missing = None
    except EngineNotInstalled as error:
        missing = error
    yield from _engine(_TASKVINE, missing, seconds)


def parsl() -> Iterator[Finding]:
    """Parsl, when it is installed beside us."""
    with contextlib.suppress(metadata.PackageNotFoundError):
        yield ok("parsl", f"Parsl {metadata.version('parsl')}")


def _engine(kind: _Kind, missing: EngineNotInstalled | None, seconds: float) -> Iterator[Finding]:
    workers = _programs(kind.worker)
    if missing is not None:
        found = note if kind is _TASKVINE and not workers else warning
        and_workers = f", though {workers[0]} is here" if workers else ""
        yield found(
            kind.check,
            f"{kind.name} is not installed for this Python ({sys.executable}){and_workers}: {missing.message}",
            kind.install,
        )
        return
    manager = _manager_protocol(kind, seconds)
    if isinstance(manager, str):
        yield problem(kind.check, f"{kind.name}'s manager does not work: {manager}", kind.install)
        return
    yield ok(kind.check, f"manager: {manager.place}, protocol {manager.protocol or 'unknown'}")
    if not workers:
        yield warning(
            kind.check, f"{kind.worker} is not on PATH: no workers can be started on this machine", kind.install
        )
        return
    yield from _workers(kind, manager, workers, seconds)
    if shutil.which(kind.factory) is None:
        yield note(kind.check, f"{kind.factory} is not on PATH: no workers from a batch system", kind.install)


def _workers(kind: _Kind, manager: _Manager, workers: Sequence[str], seconds: float) -> Iterator[Finding]:
    """The first worker of PATH is the one that is started; the others may be the ones that fit."""
    first, *others = workers
    protocol = _worker_protocol(first, seconds)
    shown = f"{first} ({_version(first, seconds)})"
    if isinstance(protocol, str):
        yield problem(kind.check, f"{shown} does not work: {protocol}", kind.install)
    elif manager.protocol is None:
        yield note(kind.check, f"{shown}: protocol {protocol}; the manager does not tell its own")
    elif protocol == manager.protocol:
        yield ok(kind.check, f"worker: {shown}, protocol {protocol}")
    else:
        fitting = next((each for each in others if _worker_protocol(each, seconds) == manager.protocol), None)
        yield problem(
            kind.check,
            f"worker {shown} speaks protocol {protocol} and the manager {manager.protocol}: the manager will reject it "
            "for ever, and say nothing",
            f'export PATH="{Path(fitting).parent}:$PATH"' if fitting else _same_origin(kind, manager.place),
        )


def _same_origin(kind: _Kind, binding: str) -> str:
    """How to get workers from where the manager's binding comes from."""
    if binding.startswith("/usr/lib/python3/dist-packages"):
        return "apt-get install coop-computing-tools, and start workers as /usr/bin/work_queue_worker"
    return f"{_CONDA_INSTALL}    (for the workers as well: {kind.worker} from the same environment as {binding})"


@dataclass(frozen=True, slots=True)
class _Manager:
    place: str
    protocol: int | None


def _manager_protocol(kind: _Kind, seconds: float) -> _Manager | str:
    """The binding's file and protocol; why not, in words, when no manager comes up."""
    # What TaskVine's manager writes goes with the directory.
    with tempfile.TemporaryDirectory(prefix="poncho-doctor-") as work, open(Path(work, "said"), "w+b") as said:
        process = subprocess.Popen(
            [sys.executable, "-c", kind.script], cwd=work, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said,
            env={**os.environ, "PYTHONUNBUFFERED": "1"}, start_new_session=True,
        )  # fmt: skip
        try:
            assert process.stdout is not None
            line = _first_line(process.stdout.fileno(), seconds + 10).decode(errors="replace").split(maxsplit=2)
            if len(line) != 3 or line[0] != "port":
                process.kill()
                process.wait()
                said.seek(0)
                words = said.read(_LONGEST).decode(errors="replace").strip().splitlines()
                return words[-1] if words else "it does not start"
            port = int(line[1])
            protocol = _ask_protocol(port, kind.status, seconds) or _try_protocols(port, kind.greeting, seconds)
            return _Manager(line[2].strip(), protocol)
        finally:
            _end(process)


def _ask_protocol(port: int, request: bytes, seconds: float) -> int | None:
    """The ``protocol`` of a manager's status, a JSON list; None when it does not tell."""
    until, answer = time.monotonic() + seconds, b""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=seconds) as link:
        link.sendall(request)
        while time.monotonic() < until and len(answer) < _LONGEST:
            link.settimeout(max(0.1, until - time.monotonic()))
            piece = link.recv(65536)
            if not piece:
                break
            answer += piece
            with contextlib.suppress(ValueError):
                (facts, *_) = json.loads(answer)
                return int(facts["protocol"]) if "protocol" in facts else None
    return None


def _try_protocols(port: int, greeting: str, seconds: float) -> int | None:
    """The one version with which a manager at ``port`` accepts workers; None when it cannot be told."""
    with contextlib.ExitStack() as stack:
        links: dict[int, socket.socket] = {}
        with contextlib.suppress(OSError):
            for version in _VERSIONS:
                links[version] = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=seconds))
                links[version].sendall(f"{greeting} {version} doctor Linux x86_64 0.0.0\n".encode())
        until = time.monotonic() + seconds
        while len(links) > 1 and time.monotonic() < until:
            ready, _, _ = select.select(list(links.values()), [], [], 0.2)
            for version, link in list(links.items()):
                if link in ready and _hung_up(link):
                    del links[version]
        return next(iter(links)) if len(links) == 1 else None


def _hung_up(link: socket.socket) -> bool:
    try:
        return not link.recv(4096)
    except OSError:
        return True


def _worker_protocol(program: str, seconds: float) -> int | str:
    """What a worker tells the manager first; why not, in words, when it says nothing."""
    with tempfile.TemporaryDirectory(prefix="poncho-doctor-") as work, socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        server.settimeout(0.2)
        Path(work, "worker").mkdir()  # TaskVine's removes the directory that it is given
        log = Path(work, "said")
        with log.open("wb") as said:
            try:
                process = subprocess.Popen(
                    [program, "-s", str(Path(work, "worker")), "-t", str(int(seconds) + 1), "127.0.0.1",
                     str(server.getsockname()[1])],
                    cwd=work, stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True,
                )  # fmt: skip
            except OSError as error:
                return str(error.strerror or error)
        try:
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                try:
                    link, _ = server.accept()
                except TimeoutError:
                    if process.poll() is not None:
                        break
                    continue
                with link:
                    link.settimeout(seconds)
                    with contextlib.suppress(OSError):
                        found = _GREETING.match(link.recv(4096))
                        if found:
                            return int(found[1])
                return "it does not greet the manager as a worker does"
        finally:
            _end(process)
        words = log.read_text(errors="replace").strip().splitlines()
        return words[-1] if words else f"it did not connect within {seconds:.0f} s"


def _first_line(descriptor: int, seconds: float) -> bytes:
    until, text = time.monotonic() + seconds, b""
    while b"\n" not in text:
        ready, _, _ = select.select([descriptor], [], [], max(0.0, until - time.monotonic()))
        piece = os.read(descriptor, 4096) if ready else b""
        if not piece:
            break
        text += piece
    return text


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the process and all of its group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(3)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()


def _programs(name: str) -> list[str]:
    """All of this name on PATH and beside this Python, the first of PATH first."""
    places = [*os.get_exec_path(), str(Path(sys.executable).parent), "/usr/bin"]
    found = [os.path.join(place, name) for place in places if place]
    return list(dict.fromkeys(each for each in found if os.access(each, os.X_OK) and os.path.isfile(each)))


def _version(program: str, seconds: float) -> str:
    try:
        done = subprocess.run(
            [program, "--version"], capture_output=True, text=True, errors="replace", timeout=seconds, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return "version unknown"
    found = re.search(r"version ([^\n]+)", done.stdout + done.stderr)
    return found[1].strip() if found else "version unknown"
