"""What a child of the warm server has to do to take a client's place, found out by the server: what Python does for the
first time after a fork costs more.  Part of the runner's program, as ``server.py`` is.  See ``warm/__init__.py``."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# Variables that are read when Python or a library starts: a child cannot have others than its server.
_SENSITIVE = (
    b"PYTHON", b"LD_", b"LC_", b"LANG", b"TZ", b"OMP_", b"KMP_", b"GOMP_", b"MKL_", b"OPENBLAS_", b"GOTO_", b"BLIS_",
    b"NUMEXPR_", b"NUMBA_", b"VECLIB_", b"NPY_", b"MPL", b"MALLOC_", b"GLIBC_", b"CUDA_", b"NVIDIA_", b"HIP_", b"ROCR_",
    b"HOME", b"XDG_", b"CCTOOLS_", b"SSL_", b"OPENSSL_",
)  # fmt: skip
_TEMPORARY = (b"TMPDIR", b"TEMP", b"TMP")
_PIDFD_GETFD = 438
# More than such a file has: what came short was all of it.
_AT_ONCE = 1 << 18


class _Odd(Exception):
    """Something about the task that the server cannot do as a fresh interpreter would."""


class _Start:
    """What is the same for all children of a server, and so found out once.

    ``environ`` and ``limits`` are those that the server was started with, ``activated`` the names of what the
    environment's activation sets.  ``ours`` are the server's variables since its last import.
    """

    def __init__(self, prefix: str) -> None:
        import resource

        self.resource = resource
        self.kinds = sorted({getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")})
        self.environ = _environ_of("/proc/self")
        self.kept = _kept_environ(self.environ)
        self.limits = _content("/proc/self/limits")
        self.getfd = _system_call()
        self.ours: dict[bytes, bytes] = {}
        self.prefix = os.fsencode(prefix)
        body = _content(prefix + "/poncho/ready").partition(b"_poncho_activate() {\n")[2].partition(b"\n}\n")[0]
        self.activated: list[bytes] = []
        if body.strip() != b":":
            import re

            self.activated = sorted(set(re.findall(rb"(?m)^(?:export )?([A-Za-z_][A-Za-z0-9_]*)=", body)))

    def settled(self) -> None:
        """What was imported may have set variables, and does not any more."""
        self.ours = dict(os.environb)


def _order(client: int, start: _Start) -> dict[str, Any]:
    """What only reading tells about a client; its streams are ``_streams``.

    Raises ``_Odd`` or ``OSError`` when a child could not be just as the client is.
    """
    proc = f"/proc/{client}"
    if os.stat(proc).st_uid != os.getuid():
        raise _Odd("not a process of ours")
    order: dict[str, Any] = {"client": client, "limits": []}
    theirs = _activated_environ(proc, start.prefix)
    if start.activated:
        order["activate"] = theirs
    else:
        order["environ"] = _wanted_changes(theirs, start)
    order["umask"] = int(_content(proc + "/status").partition(b"\nUmask:")[2].split(None, 1)[0], 8)
    nice = os.getpriority(os.PRIO_PROCESS, client)
    if nice != os.getpriority(os.PRIO_PROCESS, 0):
        order["nice"] = nice
    affinity = os.sched_getaffinity(client)
    if affinity != os.sched_getaffinity(0):
        order["affinity"] = affinity
    if _content(proc + "/limits") != start.limits:
        limits = [(kind, start.resource.prlimit(client, kind)) for kind in start.kinds]
        order["limits"] = [(kind, limit) for kind, limit in limits if limit != start.resource.getrlimit(kind)]
    return order


def _activated_environ(proc: str, prefix: bytes) -> dict[bytes, bytes]:
    """The client's variables as the wrapper would leave them; see ``_poncho_exec`` there."""
    theirs = _environ_of(proc)
    for name in (b"PYTHONPATH", b"PYTHONHOME"):
        theirs.pop(name, None)
    theirs[b"PONCHO_PREFIX"] = theirs[b"CONDA_PREFIX"] = prefix
    path = theirs.get(b"PATH")
    if b":" not in prefix:
        theirs[b"PATH"] = prefix + b"/bin" + (b":" + path if path else b"")
    return theirs


def _wanted_changes(theirs: dict[bytes, bytes], start: _Start) -> tuple[dict[bytes, bytes], list[bytes]]:
    """What to set, and what to remove, in a child's environment variables.  Raises ``_Odd``."""
    initial, ours = start.environ, start.ours
    kept = _kept_environ(theirs)
    if kept != start.kept:
        names = ", ".join(sorted({name.decode(errors="replace") for name, _ in kept.items() ^ start.kept.items()}))
        raise _Odd(f"variables that are read when Python starts are not the server's: {names}")
    changed = {name: value for name, value in theirs.items() if ours.get(name) != value}
    gone = []
    for name, value in ours.items():
        own = theirs.get(name)
        if own != value and initial.get(name) != value and own == initial.get(name) and name not in _TEMPORARY:
            # What Python, or a module, has set here when it started or was imported, it would have set there.
            changed.pop(name, None)
        elif own is None:
            gone.append(name)
    return changed, gone


def _streams(client: int, clientfd: int, getfd: Any) -> list[int]:
    """Descriptors for the client's stdin, stdout and stderr, which it keeps at 3, 8 and 9.  Raises ``OSError``."""
    found: list[int] = []
    try:
        for number, flags in ((3, os.O_RDONLY), (8, os.O_WRONLY | os.O_APPEND), (9, os.O_WRONLY | os.O_APPEND)):
            fd = getfd(_PIDFD_GETFD, clientfd, number, 0) if getfd is not None else -1
            # Forbidden (Yama, seccomp): the file by its name.  To its end, where the other descriptor has written to.
            found.append(fd if fd >= 0 else os.open(f"/proc/{client}/fd/{number}", flags | os.O_NOCTTY))
    except BaseException:
        _close(found)
        raise
    return found


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


def _content(path: str) -> bytes:
    """A small file, without the ceremony of Python's own."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        found = more = os.read(fd, _AT_ONCE)
        while len(more) == _AT_ONCE:
            more = os.read(fd, _AT_ONCE)
            found += more
        return found
    finally:
        os.close(fd)


def _environ_of(proc: str) -> dict[bytes, bytes]:
    """The variables that a process was started with."""
    return dict(item.split(b"=", 1) for item in _content(proc + "/environ").split(b"\0") if b"=" in item)


def _kept_environ(environ: dict[bytes, bytes]) -> dict[bytes, bytes]:
    return {name: value for name, value in environ.items() if name.startswith(_SENSITIVE)}


def _system_call() -> Any:
    """``syscall`` of the C library; None where it cannot be had."""
    try:
        import ctypes

        call = ctypes.CDLL(None).syscall
        call.restype = ctypes.c_long
        return call
    except Exception:
        return None
