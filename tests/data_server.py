"""An HTTP server on the loopback that fails on purpose, and remembers what it was asked."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Request:
    path: str
    headers: Message


Behaviour = Callable[["Handler"], None]


@dataclass
class FaultyServer:
    """`files` are served properly (with ETag and Range); `faults` come first, one a request to that path."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    faults: dict[str, list[Behaviour]] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    etags: bool = True

    def add(self, path: str, content: bytes, *faults: Behaviour) -> str:
        self.files[path] = content
        self.faults[path] = list(faults)
        return f"{self.url}{path}"

    def asked(self, path: str) -> list[Request]:
        return [request for request in self.requests if request.path == path]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    faulty: FaultyServer

    def do_GET(self) -> None:
        self.faulty.requests.append(Request(self.path, self.headers))
        waiting = self.faulty.faults.get(self.path)
        if waiting:
            waiting.pop(0)(self)
        elif self.path in self.faulty.files:
            self.serve(self.faulty.files[self.path])
        else:
            self.answer(404)

    def etag(self, content: bytes) -> str:
        return f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"'

    def serve(self, content: bytes, *, cut: int | None = None, length: int | None = None) -> None:
        """The whole file or the part that is asked for; `cut` drops the connection after so many bytes of it."""
        start, tag = 0, self.etag(content)
        if self.faulty.etags and self.headers.get("If-None-Match") == tag:
            self.answer(304)
            return
        wanted = self.headers.get("Range")
        if wanted and self.headers.get("If-Range") in (None, tag):
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(content):
                self.answer(416, {"Content-Range": f"bytes */{len(content)}"})
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        body = content[start:]
        self.send_header("Content-Length", str(len(body) if length is None else length))
        if self.faulty.etags:
            self.send_header("ETag", tag)
        self.end_headers()
        self.wfile.write(body if cut is None else body[:cut])
        if cut is not None or length is not None:
            self.close_connection = True

    def answer(self, status: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


def status(code: int, **headers: str) -> Behaviour:
    """Answers with a status and no body."""
    return lambda handler: handler.answer(code, {name.replace("_", "-"): value for name, value in headers.items()})


def drop(after: int) -> Behaviour:
    """Drops the connection after so many bytes of what is asked for."""
    return lambda handler: handler.serve(handler.faulty.files[handler.path], cut=after)


def wrong_length(length: int) -> Behaviour:
    """Announces another length than the file has."""
    return lambda handler: handler.serve(handler.faulty.files[handler.path], length=length)


def hang_up(handler: Handler) -> None:
    """Closes the connection without a word."""
    handler.close_connection = True
    handler.connection.close()


@contextmanager
def faulty_server(handler: type[Handler] = Handler, **options: Any) -> Iterator[FaultyServer]:
    """A server for the block.  Its handlers end when the test does."""
    faulty = FaultyServer(**options)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (handler,), {"faulty": faulty}))
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    faulty.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield faulty
    finally:
        server.shutdown()
        server.server_close()
