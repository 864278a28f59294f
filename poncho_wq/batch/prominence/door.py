"""The service's door: a socket in its spool that opens to this user alone, and to who has read the token file.

One request a connection: a line of JSON with ``token`` and ``do``, answered by a line of JSON (``problem``, or facts
with the ``size`` of what follows) and that many bytes.  Two locks on one door, since a spool's permissions may have
been changed: the kernel says whose the other process is, and the token file is 0600.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import os
import secrets
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from poncho_wq.batch.spool import Spool
from poncho_wq.errors import EngineError, PonchoError

SOCKET, TOKEN, LOG = "service.socket", "service.token", "service.log"
_LONGEST = 1 << 20
_PATIENCE = 30.0

Serve = Callable[[dict[str, Any]], tuple[dict[str, Any], bytes]]


class Refused(EngineError):
    """The service does not know us."""


class Closed(EngineError):
    """There is no service, or it is about to end."""


@contextmanager
def _short(directory: Path, name: str) -> Iterator[str]:
    """A path for ``directory/name`` that is short enough for a socket's address (108 bytes)."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{name}"
    finally:
        os.close(descriptor)


class Door:
    """Serves requests with ``serve(request)``, in threads, until the block ends.

    A ``PonchoError`` that ``serve`` raises is told to the other side.  For who holds the service's lock alone.
    """

    def __init__(self, spool: Spool, serve: Serve) -> None:
        self._serve = serve
        self._directory = spool.own
        self._token = secrets.token_hex(32)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)

    def __enter__(self) -> Door:
        # The token before the socket, and both whole or not at all.
        partial = self._directory / f".{TOKEN}"
        partial.unlink(missing_ok=True)
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(self._token)
        partial.replace(self._directory / TOKEN)
        (self._directory / SOCKET).unlink(missing_ok=True)
        with _short(self._directory, SOCKET) as path:
            self._socket.bind(path)
            os.chmod(path, 0o600)
        self._socket.listen(128)
        threading.Thread(target=self._accept, daemon=True, name="door").start()
        return self

    def __exit__(self, *_: object) -> None:
        (self._directory / SOCKET).unlink(missing_ok=True)
        (self._directory / TOKEN).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.settimeout(_PATIENCE)
            facts, data = self._answer(connection)
            connection.settimeout(None)
            connection.sendall(json.dumps({**facts, "size": len(data)}).encode() + b"\n" + data)

    def _answer(self, connection: socket.socket) -> tuple[dict[str, Any], bytes]:
        try:
            # Read in any case: who is answered before being heard to the end may lose the answer.
            line = _line(connection)
            if _user_of(connection) != os.geteuid():
                return {"problem": "this service is another user's", "refused": True}, b""
            request = json.loads(line)
            token = str(request.get("token", "")).encode("utf-8", "surrogatepass")
        except (ValueError, AttributeError, RecursionError):
            return {"problem": "not a request", "refused": True}, b""
        if not hmac.compare_digest(token, self._token.encode()):
            return {"problem": "the token is missing or wrong", "refused": True}, b""
        try:
            return self._serve(request)
        except Closed as error:
            return {"problem": error.message, "closed": True}, b""
        except PonchoError as error:
            return {"problem": error.message, "advice": error.advice}, b""


def _user_of(connection: socket.socket) -> int:
    """Whose process is at the other end: SO_PEERCRED, unix(7)."""
    _, user, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return int(user)


def _line(connection: socket.socket) -> bytes:
    found = bytearray()
    while not found.endswith(b"\n"):
        piece = connection.recv(1 << 16)
        if not piece or len(found) > _LONGEST:
            raise ValueError("no line")
        found += piece
    return bytes(found)


def ask(spool: Spool, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """Ask the service of this spool.  Raises ``Closed``, ``Refused``, ``EngineError`` with what it says."""
    try:
        token = (spool.own / TOKEN).read_text()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            with _short(spool.own, SOCKET) as path:
                connection.connect(path)
            connection.sendall(json.dumps({**request, "token": token}).encode() + b"\n")
            with connection.makefile("rb") as stream:
                facts: dict[str, Any] = json.loads(stream.readline())
                data = stream.read(facts["size"])
    except PermissionError as error:
        raise Refused(f"{spool.save}: the service there is another user's") from error
    except (OSError, ValueError) as error:
        raise Closed(f"{spool.save}: no service answers") from error
    if "problem" not in facts:
        return facts, data
    if facts.get("refused"):
        raise Refused(facts["problem"])
    raise (Closed if facts.get("closed") else EngineError)(facts["problem"], advice=facts.get("advice"))
