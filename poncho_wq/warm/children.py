"""The warm server's children before they are anybody's; part of the runner's program, as ``server.py`` is.  See
``warm/__init__.py``."""

from __future__ import annotations

import os
import select
import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from collections.abc import Callable
    from typing import Any


class _Child:
    """A forked process, which waits at the other end of ``line`` for whom to be; ``fd`` is its pidfd."""

    __slots__ = ("fd", "line", "pid")

    def __init__(self, pid: int, fd: int, line: socket) -> None:
        self.pid, self.fd, self.line = pid, fd, line

    def end(self) -> None:
        """Kill it, as nobody needs it."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.fd)
        self.line.close()


class _Children:
    """Forks ``live(line, ours)``, which never returns, and has one of them wait for the next task.

    ``ours`` is the number of the other end of the child's ``line``, for it to close.
    """

    def __init__(self, live: Callable[[socket, int], None], poll: select.poll) -> None:
        import _socket

        self.live, self.poll, self.socket = live, poll, _socket
        self.spare: _Child | None = None

    def sent(self, order: bytes, fds: list[int]) -> _Child:
        """The child that has the order now, and the descriptors.  Raises ``OSError`` when there can be none."""
        packed = b"".join(fd.to_bytes(4, sys.byteorder) for fd in fds)
        rights: list[Any] = [(self.socket.SOL_SOCKET, self.socket.SCM_RIGHTS, packed)]
        if self.spare is not None:
            child = self.spare
            try:
                child.line.sendmsg([order], rights)
            except OSError:
                self.forget()  # somebody has killed it
            else:
                self.poll.unregister(child.fd)
                self.spare = None
                return child
        child = self.forked()
        try:
            child.line.sendmsg([order], rights)
        except OSError:
            child.end()
            raise
        return child

    def forked(self) -> _Child:
        """A child that waits.  Raises ``OSError``."""
        ours, theirs = self.socket.socketpair(self.socket.AF_UNIX, self.socket.SOCK_SEQPACKET)
        try:
            pid = os.fork()
            if pid == 0:
                self.live(theirs, ours.fileno())
            try:
                return _Child(pid, os.pidfd_open(pid), ours)
            except OSError:
                # Unwatched it must not be.
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                raise
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()

    def have_spare(self) -> None:
        """Fork before a task waits for it."""
        if self.spare is not None:
            return
        try:
            self.spare = self.forked()
        except OSError:
            return  # a task that comes is told so
        self.poll.register(self.spare.fd, select.POLLIN)

    def forget(self) -> None:
        """End the child that waits: it has not what was imported since, or somebody has killed it."""
        if self.spare is not None:
            self.poll.unregister(self.spare.fd)
            self.spare.end()
            self.spare = None


def _received(line: socket) -> tuple[bytes, list[int]]:
    """In the child: the order, which is empty when the server has gone, and the descriptors."""
    # Longer than the system lets one message be.
    content, rights, _, _ = line.recvmsg(1 << 18, 64)
    line.close()
    packed = rights[0][2] if rights else b""
    return content, [int.from_bytes(packed[at : at + 4], sys.byteorder) for at in range(0, len(packed), 4)]
