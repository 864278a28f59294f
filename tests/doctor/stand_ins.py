"""Managers and workers of releases that are not installed here: programs that say what those say first."""

from __future__ import annotations

import sys
from pathlib import Path

_WORKER = """\
#!{python}
import socket, sys, time
if "--version" in sys.argv:
    print("work_queue_worker version 9.9 STAND-IN")
    sys.exit(0)
link = socket.create_connection((sys.argv[-2], int(sys.argv[-1])))
link.sendall({greeting!r})
link.settimeout(20)
link.recv(1)
"""

_BINDING = """\
import json, select, socket

class WorkQueue:
    def __init__(self, port=0, *args, **kwargs):
        self.server = socket.create_server(("127.0.0.1", port))
        self.port = self.server.getsockname()[1]
        self.links = []

    def wait(self, seconds):
        for ready in select.select([self.server, *self.links], [], [], 0.05)[0]:
            if ready is self.server:
                self.links.append(self.server.accept()[0])
                continue
            text = ready.recv(4096)
            if text.startswith(b"queue_status"):
                ready.sendall(json.dumps([{status!r}]).encode() + b"\\n")
            if not text.startswith(b"workqueue {protocol} "):
                self.links.remove(ready)
                ready.close()

class Task:
    def __init__(self, command):
        pass
"""


def worker(directory: Path, protocol: int | None, name: str = "work_queue_worker") -> Path:
    """A worker that greets with ``protocol``; None: one that says something else."""
    directory.mkdir(exist_ok=True)
    path = directory / name
    kind = "taskvine" if name == "vine_worker" else "workqueue"
    greeting = b"hello?\n" if protocol is None else f"{kind} {protocol} host Linux x86_64 9.9.9\n".encode()
    path.write_text(_WORKER.format(python=sys.executable, greeting=greeting))
    path.chmod(0o755)
    return path


def binding(directory: Path, protocol: int, *, tells: bool) -> Path:
    """A directory for PYTHONPATH with a Work Queue binding; ``tells``: its status names the protocol, as today's."""
    package = directory / "ndcctools"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    status = {"type": "wq_master"} | ({"protocol": protocol} if tells else {})
    (package / "work_queue.py").write_text(_BINDING.format(protocol=protocol, status=status))
    return directory
