"""The service's end of the lines to running jobs: any thread asks, the job that is asked answers."""

from __future__ import annotations

import contextlib
import itertools
import secrets
import socket
import threading
from concurrent.futures import Future
from concurrent.futures import TimeoutError as Late
from typing import Any

from poncho_wq.batch.prominence.job_channel import Broken, Line, answer
from poncho_wq.errors import EngineError

# Seconds that a job which has just begun may take to connect.
CONNECTING = 10.0
_HANDSHAKE = 30.0


class Relay:
    """Listens on ``address`` for jobs.  A context manager; everything that waits for a job fails when it ends."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._changed = threading.Condition()
        self._secrets: dict[int, bytes] = {}
        self._lines: dict[int, Line] = {}
        self._waiting: dict[tuple[int, int], Future[tuple[dict[str, Any], bytes]]] = {}
        self._ids = itertools.count(1)
        # A name stands for all of this machine's addresses: workers come by any of them.
        host = address if address.startswith("127.") or address in ("localhost", "::1") else ""
        self._server = socket.create_server((host, 0), backlog=128)

    def __enter__(self) -> Relay:
        threading.Thread(target=self._accept, daemon=True, name="relay").start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        with self._changed:
            lines, self._lines = list(self._lines.values()), {}
        for line in lines:
            line.close()

    def facts(self, job: int) -> dict[str, Any]:
        """What a new attempt of a job is told; from here on only this attempt is believed to be that job."""
        secret = secrets.token_bytes(32)
        with self._changed:
            self._secrets[job] = secret
            old = self._lines.pop(job, None)
        if old is not None:
            old.close()
        return {"address": self._address, "port": self._server.getsockname()[1], "job": job, "secret": secret.hex()}

    def forget(self, job: int) -> None:
        """The job is over."""
        with self._changed:
            self._secrets.pop(job, None)
            old = self._lines.pop(job, None)
        if old is not None:
            old.close()

    def ask(self, job: int, request: dict[str, Any], timeout: float | None = None) -> tuple[dict[str, Any], bytes]:
        """What a running job answers: facts and bytes.  Raises ``EngineError``."""
        with self._changed:
            self._changed.wait_for(lambda: job in self._lines or job not in self._secrets, CONNECTING)
            line = self._lines.get(job)
            if line is None:
                raise EngineError(
                    f"job {job} does not answer",
                    advice="is its worker able to reach this machine? PONCHO_PROMINENCE_ADDRESS says by which address",
                )
            number = next(self._ids)
            future: Future[tuple[dict[str, Any], bytes]] = Future()
            self._waiting[job, number] = future
        try:
            line.send({**request, "id": number})
            facts, data = future.result(timeout)
        except (OSError, Late, Broken) as error:
            raise EngineError(f"job {job} does not answer: it has ended meanwhile, or its worker has") from error
        finally:
            with self._changed:
                self._waiting.pop((job, number), None)
        if facts.get("problem"):
            advice = facts.get("advice")
            raise EngineError(f"job {job}: {facts['problem']}", advice=advice if isinstance(advice, str) else None)
        return facts, data

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._talk, args=(sock,), daemon=True).start()

    def _talk(self, sock: socket.socket) -> None:
        try:
            sock.settimeout(_HANDSHAKE)
            job, line = answer(sock, self._secrets.get)
            sock.settimeout(None)
        except (Broken, OSError, ValueError):
            sock.close()
            return
        with self._changed:
            self._lines[job] = line
            self._changed.notify_all()
        try:
            while True:
                header, data = line.receive()
                number = header.get("id")
                with self._changed:
                    future = self._waiting.get((job, number)) if isinstance(number, int) else None
                if future is not None and not future.done():
                    future.set_result((header, data))
        except (Broken, OSError, ValueError):
            pass
        finally:
            line.close()
            with self._changed:
                if self._lines.get(job) is line:
                    del self._lines[job]
                lost = [future for (which, _), future in self._waiting.items() if which == job]
            for future in lost:
                if not future.done():
                    future.set_exception(Broken("the line was closed"))
