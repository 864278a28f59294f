"""What the run wrapper tells of a task's environment: one line, which comes back as a small file.

The line is described in ``docs/formats/wrapper.md``.  It was written on a worker: anything may have become of it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

# Its name in the task's sandbox.
STATS_NAME = "poncho-environment-stats"

# What the shell does first, outside the environment.  The file is there whatever becomes of the wrapper: a missing
# output would hide the wrapper's own exit status.
COLLECT = f": >{STATS_NAME}; export PONCHO_STATS={STATS_NAME}; "

# A line is about 200 bytes; nobody reads a gigabyte that a task has written there.
_LONGEST = 64 * 1024
_NUMBER = re.compile(r"[0-9]{1,15}")


@dataclass(frozen=True, kw_only=True, slots=True)
class EnvironmentStats:
    """How a task came to its environment.

    ``identity`` of the environment and ``host`` it was on, None where unknown.  ``unpacked``: this task unpacked it;
    ``evicted``: how many environments of the node's cache went for it.  Seconds, to a hundredth: ``waited`` for other
    tasks that unpacked, ``unpacking``, and ``total`` from the wrapper's start to the command's.
    """

    identity: str | None
    host: str | None
    unpacked: bool
    evicted: int
    waited: float
    unpacking: float
    total: float


def parse_stats(text: str) -> EnvironmentStats | None:
    """The first line that is whole and of a version that is known; None when there is none."""
    for line in text.split("\n")[:-1]:  # what has no end was cut off
        words = line.split(" ")
        if words[:2] != ["poncho-stats", "1"]:
            continue
        facts = dict(word.split("=", 1) for word in words[2:] if "=" in word)
        numbers = [facts.get(key, "0") for key in ("unpacked", "evicted", "waited", "unpacking", "total")]
        if "total" not in facts or not all(_NUMBER.fullmatch(number) for number in numbers):
            continue
        unpacked, evicted, waited, unpacking, total = map(int, numbers)
        return EnvironmentStats(
            identity=_known(facts.get("identity")),
            host=_known(facts.get("host")),
            unpacked=bool(unpacked),
            evicted=evicted,
            waited=waited / 100,
            unpacking=unpacking / 100,
            total=total / 100,
        )
    return None


def read_stats(path: str) -> EnvironmentStats | None:
    """The same from a file; None when it is not there."""
    try:
        with Path(path).open("rb") as file:
            return parse_stats(file.read(_LONGEST).decode(errors="replace"))
    except OSError:
        return None


def _known(word: str | None) -> str | None:
    return None if word in (None, "", "-") else word
