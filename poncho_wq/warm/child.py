"""How a forked child of the warm server takes the place of the task's Python; part of the runner's program, as
``server.py`` is.  See ``warm/__init__.py``."""

from __future__ import annotations

import os
import select
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _pickle
    from _socket import socket
    from typing import Any

    from poncho_wq.runner import _FORMAT, _dump, _end, _Loader, _open_descriptors, _Short, main
    from poncho_wq.warm.children import _received
    from poncho_wq.warm.order import _Odd, _Start, _wanted_changes
    from poncho_wq.warm.server import _Server
    from poncho_wq.warm.settling import _Generators

# What a task's child has said so far.
NOTHING, STARTED, ENDED = range(3)


def _live(server: _Server, line: socket, highest: int) -> None:
    """Wait for whom to be, and become what that client's Python would be; never returns.

    ``highest``: the greatest descriptor that is open.
    """
    try:
        # Below are the lock and the worker.
        os.closerange(3, line.fileno())
        os.closerange(line.fileno() + 1, highest + 1)
        server.hooks.keeping = False
        server.gc.enable()
        _refresh(server.generators)
        _rehearse()
        content, fds = _received(line)
        if not content:
            os._exit(0)
        order = server.marshal.loads(content)
        _take_place(order, fds, server.start)
        client, slot, words = order["client"], order["slot"], order["words"]
        reply = f"{server.place}/reply.{slot}"
        server.said[slot] = STARTED
        _tell(reply, f"{client} started {os.getpid()}\n")
    except BaseException as odd:
        server.note(odd)
        os._exit(1)
    try:

        def leaving(status: int) -> None:
            # Giving its memory back takes a while, for which the client need not wait. For threads it does.
            if not sys.modules["_thread"]._count():
                os.chdir("/")
                os.closerange(0, 3)
                # First: who sees the client go must not take this process for one whose task was killed.
                server.said[slot] = ENDED
                _tell(reply, f"{client} exit {status & 0xFF}\n")

        globals()["_leaving"] = leaving
        before = _open_descriptors()
        sys.argv[1:] = words
        if len(words) > 3:
            words.append(server.workspace)
        _end(main(words), before)
    except SystemExit:
        raise
    except BaseException:
        os._exit(1)


def _tell(path: str, words: str) -> None:
    """One line to a client, by a FIFO that is opened for it alone: what the task starts must not hold it open."""
    fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        os.write(fd, words.encode())
    finally:
        os.close(fd)


def _take_place(order: dict[str, Any], fds: list[int], start: _Start) -> None:
    """Be in the client's group, directory and environment, with its streams, umask, limits and priority.

    ``fds``: the client's pidfd, and its three streams.  Raises ``_Odd`` or ``OSError`` when that cannot be had exactly.
    """
    client, clientfd = order["client"], fds[0]
    _take_environ(order, start)
    # A shell that stays may be between the worker and the client; a client that has made itself a leader has a session
    # of its own, whose groups are closed to us.  Then the server kills our group when the client dies.
    joined = os.getpgid(client) == client and os.getsid(client) == os.getsid(0)
    os.setpgid(0, client if joined else 0)
    os.chdir(f"/proc/{client}/cwd")
    os.umask(order["umask"])
    if "nice" in order:
        os.setpriority(os.PRIO_PROCESS, 0, order["nice"])
    if "affinity" in order:
        os.sched_setaffinity(0, order["affinity"])
    for kind, limit in order["limits"]:
        start.resource.setrlimit(kind, limit)
    for number, fd in enumerate(fds[1:]):
        os.dup2(fd, number)
        os.close(fd)
    # Whoever had that pid may have died, and another have got it, while we looked: then none of this was the client's.
    if select.select([clientfd], [], [], 0)[0]:
        raise _Odd("the client has gone")
    os.close(clientfd)


def _take_environ(order: dict[str, Any], start: _Start) -> None:
    if "environ" in order:
        changed, gone = order["environ"]
    else:
        theirs = order["activate"]
        theirs.update(_activation(start.activated, theirs))
        changed, gone = _wanted_changes(theirs, start)
    ours = os.environb
    for name in gone:
        del ours[name]
    for name, value in changed.items():
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


def _refresh(generators: _Generators) -> None:
    """Neither another's random numbers, nor the server's $TMPDIR and number."""
    generators.seed()
    threading = sys.modules.get("threading")
    if threading is not None:
        threading.main_thread()._set_native_id()  # which Python before 3.13 forgets as well
    tempfile = sys.modules.get("tempfile")
    if tempfile is not None:
        tempfile.tempdir = None  # type: ignore[attr-defined]


def _rehearse() -> None:
    """Do what every task does, on nothing: memory that is written to for the first time after a fork is copied then,
    which is better done before a task waits for it."""
    import binascii
    import io

    function, args = _Loader(io.BytesIO(_pickle.dumps((len, ("",)), 4))).load()
    short = _Short("", 1 << 16)
    short.write(_FORMAT % (b"value", 0, 0))
    _dump(function(*args), short)
    binascii.b2a_base64(bytes(short.content))
    os.environb[b"PONCHO_PREFIX"] = os.environb[b"PONCHO_PREFIX"]
    _open_descriptors()
