"""Many cases of one target, each under watch: what comes out, what it takes, what it touches.

A case may end well or with an error of this package's family.  It fails the test when anything else is raised, when it
takes more than ``CPU`` seconds of processor time (which a busy machine does not change), and when it writes, starts a
program or opens a connection where it was not allowed to.
"""

from __future__ import annotations

import os
import random
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, Verbosity, given, settings
from hypothesis.strategies import SearchStrategy

from poncho_wq.errors import PonchoError

# A few cases each in the tests, always the same ones; `make fuzz` asks for many, others every time.
EXAMPLES = int(os.environ.get("PONCHO_FUZZ_EXAMPLES", "25"))
FEW = "PONCHO_FUZZ_EXAMPLES" not in os.environ
CPU = 30.0
# Audit events (library reference, "Audit events table"), and which of their arguments names the directory's descriptor.
_WRITES = {
    "os.mkdir": 2, "os.rename": 2, "os.remove": 1, "os.rmdir": 1, "os.link": 3, "os.symlink": 2, "os.chmod": 2,
    "os.chown": 3, "os.utime": 3, "os.truncate": None, "os.setxattr": None,
}  # fmt: skip
_PROGRAMS = {
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "socket.connect",
    "webbrowser.open",
}


class Campaign:
    """The cases of one target.  ``counts`` says how they ended: accepted, or the name of the error."""

    def __init__(self, directory: Path, record: Callable[[str, object], None]) -> None:
        self.directory = directory
        self._record = record
        self.target = ""
        self.counts: Counter[str] = Counter()

    def run(
        self, target: str, case: Callable[..., object], *, programs: bool = False, share: int = 1, **given_: Any
    ) -> None:
        """Call ``case`` with values drawn from the strategies ``given_``, as often as is asked for.

        ``case`` may write below ``directory``; ``programs``: it may start some, and connect.  ``share``: over so many
        tests one target's cases are spread.
        """
        self.target = target

        def watched(**values: Any) -> None:
            with _watch(self.directory, programs), _in_time():
                try:
                    case(**values)
                except PonchoError as error:
                    str(error)
                    self.counts[type(error).__name__] += 1
                else:
                    self.counts["accepted"] += 1

        strategies: dict[str, SearchStrategy[Any]] = given_
        chosen = settings(
            max_examples=-(-EXAMPLES // share),
            deadline=None, database=None, derandomize=FEW, verbosity=Verbosity.normal,
            phases=(Phase.explicit, Phase.generate, Phase.shrink), suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        try:
            chosen(given(**strategies)(watched))()
        finally:
            self._record("fuzz", self.summary)

    @property
    def summary(self) -> str:
        ended = ", ".join(f"{name} {count}" for name, count in self.counts.most_common())
        return f"{self.target}: {sum(self.counts.values())} cases ({ended})"


# -- the watch

_allowed: Path | None = None
_programs_allowed = False
# What a module leaves when it is imported for the first time is not the case's.
sys.dont_write_bytecode = True
_seen: list[str] = []
_hooked = False


@contextmanager
def _watch(directory: Path, programs: bool) -> Iterator[None]:
    """Fails when the block writes outside ``directory``, as far as this process does it itself."""
    global _allowed, _programs_allowed, _hooked
    if not _hooked:
        sys.addaudithook(_hook)
        _hooked = True
    _seen.clear()
    _allowed, _programs_allowed = directory, programs
    try:
        yield
    finally:
        _allowed = None
    assert not _seen, f"touched what it should not: {_seen[:5]}"


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if _allowed is None:
        return
    if event == "open":
        path, mode, flags = args
        writes = (isinstance(mode, str) and set(mode) & set("wax+")) or (
            isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        )
        if writes:
            _look(event, path)
    elif event in _WRITES:
        at = _WRITES[event]
        _look(event, args[1] if event in ("os.link", "os.symlink") else args[0], -1 if at is None else args[at])
        if event == "os.rename":
            _look(event, args[1], args[3])
    elif event in _PROGRAMS and not _programs_allowed:
        _seen.append(f"{event} {args!r}"[:200])


def _look(event: str, path: Any, directory: int = -1) -> None:
    if isinstance(path, int):  # an open file: opening it has been looked at
        return
    base = os.getcwd() if directory < 0 else os.readlink(f"/proc/self/fd/{directory}")
    where = os.path.realpath(os.path.dirname(os.path.join(base, os.fsdecode(path))))
    root = str(_allowed)
    if os.fsdecode(path) != os.devnull and where != root and not where.startswith(root + os.sep):
        _seen.append(f"{event} {path!r}")


@contextmanager
def _in_time() -> Iterator[None]:
    def late(number: int, frame: object) -> None:
        raise AssertionError(f"a case took more than {CPU:g} seconds of processor time")

    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, CPU)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def seeded(seed: int) -> random.Random:
    """Chance that a failing case can repeat."""
    return random.Random(seed)
