"""Processes that meet in one directory: forked from the test, steered by events, killed or failed at any step."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

STEPS = {
    "open",
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.utime",
    "os.scandir",
    "fcntl.flock",
}


class Child:
    """A forked process that runs `work` and ends with status 0, or 1 and a traceback."""

    def __init__(self, work: Callable[[], object]) -> None:
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _run(work)

    def wait(self) -> int:
        """The exit status, or minus the signal."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def kill(self) -> int:
        os.kill(self.pid, signal.SIGKILL)
        return self.wait()


def _run(work: Callable[[], object]) -> NoReturn:
    status = 1
    try:
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


class Event:
    """Set once by any process, waited for by any number of them: the end of a pipe."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()

    def set(self) -> None:
        os.write(self._write, b"x" * 64)

    def wait(self, times: int = 1) -> None:
        """Until it was set `times` times (each caller counts for itself only if it alone waits)."""
        for _ in range(64 * times if times > 1 else 1):
            os.read(self._read, 1)


@contextlib.contextmanager
def children() -> Iterator[Callable[[Callable[[], object]], Child]]:
    """Starts children; whatever happens in the block, none is left."""
    started: list[Child] = []

    def start(work: Callable[[], object]) -> Child:
        started.append(Child(work))
        return started[-1]

    try:
        yield start
    finally:
        for child in started:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(child.pid, signal.SIGKILL)
                os.waitpid(child.pid, 0)


def at_step(number: int, below: Path, act: Callable[[], None]) -> Callable[[], int]:
    """Do `act` before the process's step `number` (from 1) on the file system below a directory.

    For a forked child only: an audit hook cannot be removed.  Returns what tells how many steps there were.
    """
    count = 0
    root = os.fspath(below)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal count
        if event not in STEPS:
            return
        # Removing a tree goes by names relative to open directories; reading a module is not of interest.
        if event in ("open", "os.scandir") and not str(args[0]).startswith(root):
            return
        count += 1
        if count == number:
            act()

    sys.addaudithook(hook)
    return lambda: count


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail(number: int) -> Callable[[], None]:
    def act() -> None:
        raise OSError(number, os.strerror(number))

    return act
