"""Runs on the worker, beside a job's steps: does there what the user asks of the running job.

Shipped as it is, loaded by ``job_runner`` as the job's companion: the standard library only, Python 3.7 or later.  The
service (``relay``) uses the same file for its end.

Story.  The service makes a secret for each attempt of a job, which travels with the job.  The job connects to the
service.  Both send a random number, and each proves that it knows the secret by a MAC over both numbers; the secret
itself is never sent.  Every message after that has a MAC with a key of this connection and its place in the sequence:
who can touch the line can cut it, but not have anything executed.  When the line breaks the job connects again.

Messages are a header in JSON and bytes.  Requests: ``{"id", "do": "read", "what": "stdout" | "stderr"}``,
``{"do": "execute", "argv"}``, ``{"do": "snapshot", "path"}``.  Answers have the same id and ``problem``, perhaps with
``advice``, or facts and bytes: all of them, since what is too large for an answer is a problem.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import socket
import struct
import subprocess
import tarfile
import tempfile
import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import IO, Any

LARGEST = 1 << 30  # bytes of a message
ANSWER = LARGEST // 2  # bytes of an answer
AGAIN = 2.0  # seconds until the next try to connect
_NONCE = 32
_MAC = 32


class Broken(Exception):
    """The other end is gone, or is not who it should be."""


class TooLarge(Exception):
    """What was asked for is more than an answer may have."""

    def __init__(self, what: str, advice: str) -> None:
        size = str(ANSWER >> 20) + " MiB" if ANSWER >> 20 else str(ANSWER) + " bytes"
        super().__init__(what + " is larger than the " + size + " that a running job can be asked for")
        self.advice = advice


class Line:
    """One end of a connection whose other end knows the secret.  Any thread may send, one may receive."""

    def __init__(self, sock: socket.socket, key: bytes, ours: bytes, theirs: bytes) -> None:
        self._socket = sock
        self._key = key
        self._ours, self._theirs = ours, theirs
        self._sent = self._received = 0
        self._lock = threading.Lock()

    def send(self, header: dict[str, Any], data: bytes = b"") -> None:
        """Raises ``OSError`` when the line is cut."""
        text = json.dumps(header).encode()
        message = struct.pack("!I", len(text)) + text + data
        with self._lock:
            mac = self._mac(self._ours, self._sent, message)
            self._sent += 1
            self._socket.sendall(struct.pack("!Q", len(message)) + mac + message)

    def receive(self) -> tuple[dict[str, Any], bytes]:
        """Raises ``Broken``, ``OSError``."""
        (length,) = struct.unpack("!Q", _exactly(self._socket, 8))
        if length > LARGEST:
            raise Broken("a message of " + str(length) + " bytes")
        mac = _exactly(self._socket, _MAC)
        message = _exactly(self._socket, length)
        if not hmac.compare_digest(mac, self._mac(self._theirs, self._received, message)):
            raise Broken("a message that is not the other's")
        self._received += 1
        try:
            (size,) = struct.unpack("!I", message[:4])
            header = json.loads(message[4 : 4 + size].decode())
        except (struct.error, ValueError, RecursionError) as error:
            raise Broken("a message that cannot be read: " + str(error)) from error
        if not isinstance(header, dict):
            raise Broken("a message without a header")
        return header, message[4 + size :]

    def close(self) -> None:
        """Cut it: who is in ``receive``, at either end, gets ``Broken`` or ``OSError``.  Safe to call twice."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._socket.close()

    def _mac(self, who: bytes, number: int, message: bytes) -> bytes:
        return hmac.new(self._key, who + struct.pack("!Q", number) + message, hashlib.sha256).digest()


def _exactly(sock: socket.socket, count: int) -> bytes:
    found = bytearray()
    while len(found) < count:
        piece = sock.recv(min(1 << 20, count - len(found)))
        if not piece:
            raise Broken("the line was closed")
        found += piece
    return bytes(found)


def _proof(secret: bytes, who: bytes, numbers: bytes) -> bytes:
    return hmac.new(secret, who + numbers, hashlib.sha256).digest()


def call(sock: socket.socket, job: int, secret: bytes) -> Line:
    """The job's end of a new connection.  Raises ``Broken``, ``OSError``."""
    mine = os.urandom(_NONCE)
    sock.sendall(struct.pack("!Q", job) + mine)
    numbers = mine + _exactly(sock, _NONCE)
    if not hmac.compare_digest(_exactly(sock, _MAC), _proof(secret, b"service", numbers)):
        raise Broken("that is not the service")
    sock.sendall(_proof(secret, b"job", numbers))
    return Line(sock, _proof(secret, b"key", numbers), b"job", b"service")


def answer(sock: socket.socket, secret_of: Callable[[int], bytes | None]) -> tuple[int, Line]:
    """The service's end: which job it is, by ``secret_of(job)``.  Raises ``Broken``, ``OSError``."""
    (job,) = struct.unpack("!Q", _exactly(sock, 8))
    theirs, mine = _exactly(sock, _NONCE), os.urandom(_NONCE)
    known = secret_of(job)
    # An unknown job is told apart from a wrong secret by nobody.
    secret = os.urandom(_NONCE) if known is None else known
    numbers = theirs + mine
    sock.sendall(mine + _proof(secret, b"service", numbers))
    if not hmac.compare_digest(_exactly(sock, _MAC), _proof(secret, b"job", numbers)) or known is None:
        raise Broken("no job of ours")
    return job, Line(sock, _proof(secret, b"key", numbers), b"service", b"job")


# -- in the job


def attach(running: Any) -> Companion:
    """What ``job_runner`` calls before the steps."""
    return Companion(running, running.job["companion_facts"])


class Companion:
    """Keeps a line to the service for as long as the job runs.  Without one the job runs all the same."""

    def __init__(self, running: Any, facts: dict[str, Any]) -> None:
        self._running = running
        self._facts = facts
        self._over = threading.Event()
        self._line = None  # type: Line | None
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Cut the line and connect no more; waits ``AGAIN`` seconds at most for its thread."""
        self._over.set()
        line = self._line
        if line is not None:
            line.close()
        # What it has started is ended by the runner, with all that the steps have left.
        self._thread.join(AGAIN)

    def _keep(self) -> None:
        while not self._over.is_set():
            try:
                sock = socket.create_connection((self._facts["address"], self._facts["port"]), timeout=30)
                try:
                    line = call(sock, self._facts["job"], bytes.fromhex(self._facts["secret"]))
                    sock.settimeout(None)
                    self._line = line
                    if self._over.is_set():
                        return
                    while True:
                        header, _ = line.receive()
                        threading.Thread(target=self._serve, args=(line, header), daemon=True).start()
                finally:
                    sock.close()
            except (Broken, OSError, ValueError):
                pass
            self._over.wait(AGAIN)

    def _serve(self, line: Line, request: dict[str, Any]) -> None:
        try:
            facts, data = getattr(self, "_do_" + request["do"])(request)
        except TooLarge as error:
            facts, data = {"problem": str(error), "advice": error.advice}, b""
        except Exception as error:
            facts, data = {"problem": str(error) or type(error).__name__}, b""
        try:
            line.send(dict(facts, id=request["id"]), data)
        except OSError:
            pass

    def _do_read(self, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        name = "stderr" if request["what"] == "stderr" else "stdout"
        with open(getattr(self._running, name), "rb") as file:
            return {}, _all_of(file, name, "wait for the end of the job: then there is no limit")

    def _do_execute(self, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        """In the place of the first task that is no sidecar: its environment, container, variables and directory."""
        steps = [step for step in self._running.job["steps"] if not step.get("sidecar")]
        step = dict(steps[0], argv=request["argv"])
        with tempfile.TemporaryFile(dir=self._running.sandbox) as said:
            try:
                process = self._running.start(step, said, subprocess.STDOUT)
            except OSError as error:
                return {"exit_code": 127}, (step["argv"][0] + ": " + str(error.strerror) + "\n").encode()
            code = process.wait()
            said.seek(0)
            what = "what " + step["argv"][0] + " writes"
            return {"exit_code": code}, _all_of(said, what, "have it write to a file, and only the part that is wanted")

    def _do_snapshot(self, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        """A file as it is, a directory as a tar.gz."""
        path = os.path.join(self._running.home, request["path"])
        advice = "ask for parts of it, or make it an output of the job: those come back whole when it is over"
        if not os.path.isdir(path):
            with open(path, "rb") as file:
                return {"archive": False}, _all_of(file, request["path"], advice)
        what = request["path"] + ", as a tar.gz,"
        with tempfile.TemporaryFile(dir=self._running.sandbox) as packed:
            limited: Any = _Limited(packed, what, advice)
            with tarfile.open(fileobj=limited, mode="w:gz", compresslevel=1) as tar:
                tar.add(path, os.path.basename(os.path.normpath(path)))
            packed.seek(0)
            return {"archive": True}, _all_of(packed, what, advice)


def _all_of(file: IO[bytes], what: str, advice: str) -> bytes:
    """The rest of a file, which may grow meanwhile.  Raises ``TooLarge``."""
    # Looked at first, so as not to read so much for nothing; what is in /proc has no size.
    data = None if os.fstat(file.fileno()).st_size > ANSWER else file.read(ANSWER + 1)
    if data is None or len(data) > ANSWER:
        raise TooLarge(what, advice)
    return data


class _Limited:
    """Stops whoever writes more to a file than an answer may have, before that fills the job's disk."""

    def __init__(self, file: IO[bytes], what: str, advice: str) -> None:
        self._file = file
        self._left = ANSWER
        self._problem = TooLarge(what, advice)

    def write(self, data: bytes) -> int:
        self._left -= len(data)
        if self._left < 0:
            raise self._problem
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()
