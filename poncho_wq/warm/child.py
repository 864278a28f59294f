"""How a forked child of the warm server takes the place of the task's Python; part of the runner's program, as
``server.py`` is.  See ``warm/__init__.py``."""

from __future__ import annotations

import os
import select
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from poncho_wq.warm.server import _Task

# Variables that are read when Python or a library starts: a child cannot have others than its server.
_SENSITIVE = (
    b"PYTHON", b"LD_", b"LC_", b"LANG", b"TZ", b"OMP_", b"KMP_", b"GOMP_", b"MKL_", b"OPENBLAS_", b"GOTO_", b"BLIS_",
    b"NUMEXPR_", b"NUMBA_", b"VECLIB_", b"NPY_", b"MPL", b"MALLOC_", b"GLIBC_", b"CUDA_", b"NVIDIA_", b"HIP_", b"ROCR_",
    b"HOME", b"XDG_", b"CCTOOLS_", b"SSL_", b"OPENSSL_",
)  # fmt: skip
_TEMPORARY = (b"TMPDIR", b"TEMP", b"TMP")
_PIDFD_GETFD = 438


class _Odd(Exception):
    """Something about the task that the server cannot do as a fresh interpreter would."""


class _Start:
    """What is the same for all children of a server, and so found out once.

    ``environ`` and ``limits`` are those that the server was started with, ``activated`` the names of what the
    environment's activation sets.
    """

    def __init__(self, prefix: str) -> None:
        import resource

        # A child that imports a module pays as much as for all else that it does.
        self.resource = resource
        self.environ = _environ_of("/proc/self")
        self.limits = _content("/proc/self/limits")
        self.prefix = os.fsencode(prefix)
        body = _content(prefix + "/poncho/ready").partition(b"_poncho_activate() {\n")[2].partition(b"\n}\n")[0]
        self.activated: list[bytes] = []
        if body.strip() != b":":
            import re

            self.activated = sorted(set(re.findall(rb"(?m)^(?:export )?([A-Za-z_][A-Za-z0-9_]*)=", body)))


def _content(path: str) -> bytes:
    """A small file, without the ceremony of Python's own."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        found = os.read(fd, 1 << 16)
        while more := os.read(fd, 1 << 16):
            found += more
        return found
    finally:
        os.close(fd)


def _environ_of(proc: str) -> dict[bytes, bytes]:
    """The variables that a process was started with."""
    return dict(item.split(b"=", 1) for item in _content(proc + "/environ").split(b"\0") if b"=" in item)


def _kept_environ(environ: dict[bytes, bytes]) -> dict[bytes, bytes]:
    return {name: value for name, value in environ.items() if name.startswith(_SENSITIVE)}


def _take_place(task: _Task, getfd: Any, start: _Start) -> None:
    """Be in the client's group, directory and environment, with its streams, umask, limits and priority.

    Raises ``_Odd`` or ``OSError`` when that cannot be had exactly.
    """
    client, proc = task.client, f"/proc/{task.client}"
    if os.stat(proc).st_uid != os.getuid():
        raise _Odd("not a process of ours")
    _take_environ(proc, start)
    # Work Queue makes its task the leader of a group from outside, which fails when the task's shell is quicker.
    os.setpgid(0, client if os.getpgid(client) == client else 0)
    os.chdir(proc + "/cwd")
    _take_limits(client, proc, start)
    _take_streams(task, proc, getfd)
    # Whoever had that pid may have died, and another have got it, while we looked: then none of this was the client's.
    if select.select([task.clientfd], [], [], 0)[0]:
        raise _Odd("the client has gone")


def _take_environ(proc: str, start: _Start) -> None:
    theirs, initial, prefix = _environ_of(proc), start.environ, start.prefix
    # As the wrapper does it; see `_poncho_exec` there.
    for name in (b"PYTHONPATH", b"PYTHONHOME"):
        theirs.pop(name, None)
    theirs[b"PONCHO_PREFIX"] = theirs[b"CONDA_PREFIX"] = prefix
    path = theirs.get(b"PATH")
    if b":" not in prefix:
        theirs[b"PATH"] = prefix + b"/bin" + (b":" + path if path else b"")
    if start.activated:
        theirs.update(_activation(start.activated, theirs))
    odd = _kept_environ(theirs).items() ^ _kept_environ(initial).items()
    if odd:
        names = ", ".join(sorted({name.decode(errors="replace") for name, _ in odd}))
        raise _Odd(f"variables that are read when Python starts are not the server's: {names}")
    # What Python, or a module, has set here when it started or was imported, it would have set there.
    ours = os.environb
    for name, value in ours.items():
        if initial.get(name) != value and theirs.get(name) == initial.get(name) and name not in _TEMPORARY:
            theirs[name] = value
    for name in [name for name in ours if name not in theirs]:
        del ours[name]
    for name, value in theirs.items():
        if ours.get(name) != value:
            ours[name] = value


def _activation(names: list[bytes], environ: dict[bytes, bytes]) -> dict[bytes, bytes]:
    """What the environment's activation sets for a task with these variables, as the wrapper recorded it.

    Most environments have none.  For the others a shell says it, which costs less than a fresh interpreter.
    """
    values = b" ".join(b'"${' + name + b'-}"' for name in names)
    script = b'. "$PONCHO_PREFIX/poncho/ready" && _poncho_activate && printf "%s\\0" ' + values
    reading, writing = os.pipe()
    child = os.posix_spawn("/bin/sh", [b"sh", b"-c", script], environ, file_actions=[(os.POSIX_SPAWN_DUP2, writing, 1)])
    os.close(writing)
    with open(reading, "rb") as file:
        found = file.read().split(b"\0")[:-1]
    if os.waitpid(child, 0)[1] != 0 or len(found) != len(names):
        raise _Odd("the environment's activation failed")
    return dict(zip(names, found))  # noqa: B905 # strict= is Python 3.10's


def _take_limits(client: int, proc: str, start: _Start) -> None:
    os.umask(int(_content(proc + "/status").partition(b"\nUmask:")[2].split(None, 1)[0], 8))
    nice = os.getpriority(os.PRIO_PROCESS, client)
    if nice != os.getpriority(os.PRIO_PROCESS, 0):
        os.setpriority(os.PRIO_PROCESS, 0, nice)
    if os.sched_getaffinity(client) != os.sched_getaffinity(0):
        os.sched_setaffinity(0, os.sched_getaffinity(client))
    if _content(proc + "/limits") == start.limits:
        return
    resource = start.resource
    for kind in {getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")}:
        limit = resource.prlimit(client, kind)
        if limit != resource.getrlimit(kind):
            resource.setrlimit(kind, limit)


def _take_streams(task: _Task, proc: str, getfd: Any) -> None:
    found = []
    for number, flags in ((3, os.O_RDONLY), (8, os.O_WRONLY | os.O_APPEND), (9, os.O_WRONLY | os.O_APPEND)):
        fd = getfd(_PIDFD_GETFD, task.clientfd, number, 0) if getfd is not None else -1
        # Forbidden (Yama, seccomp): the file by its name.  To its end, where the other descriptor has written to.
        found.append(fd if fd >= 0 else os.open(f"{proc}/fd/{number}", flags | os.O_NOCTTY))
    for number, fd in enumerate(found):
        os.dup2(fd, number)
        os.close(fd)


def _refresh() -> None:
    """Python's own generator seeds itself after a fork; numpy's global one does not.  Nor is $TMPDIR the server's."""
    tempfile = sys.modules.get("tempfile")
    if tempfile is not None:
        tempfile.tempdir = None  # type: ignore[attr-defined]
    numpy = sys.modules.get("numpy.random")
    if numpy is not None:
        numpy.seed()


def _system_call() -> Any:
    """``syscall`` of the C library; None where it cannot be had."""
    try:
        import ctypes

        call = ctypes.CDLL(None).syscall
        call.restype = ctypes.c_long
        return call
    except Exception:
        return None
