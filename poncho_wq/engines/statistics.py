"""What a task tells of what it cost: a few lines, which come back as a small file.

    poncho-task t.7                the task's shell: its sandbox, whose name holds the engine's number of the task
    poncho-stats 1 identity=…      the run wrapper, of the environment; described in ``docs/formats/wrapper.md``
    poncho-run 1 at=… start=…      the runner, of a function task; described in ``runner._Times``

They were written on a worker: anything may have become of them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

# Its name in the task's sandbox.
STATS_NAME = "poncho-environment-stats"

# What the shell does first, outside the environment.  The file is there whatever becomes of the wrapper: a missing
# output would hide the wrapper's own exit status.
COLLECT = f'echo "poncho-task ${{PWD##*/}}" >{STATS_NAME}; export PONCHO_STATS={STATS_NAME}; '

# A line is about 200 bytes; nobody reads a gigabyte that a task has written there.
_LONGEST = 64 * 1024
_NUMBER = re.compile(r"[0-9]{1,17}")


@dataclass(frozen=True, kw_only=True, slots=True)
class EnvironmentStats:
    """How a task came to its environment.

    ``identity`` of the environment and ``host`` it was on, None where unknown.  ``unpacked``: this task unpacked it;
    ``evicted``: how many environments of the node's cache went for it.  Seconds, to a hundredth: ``waited`` for other
    tasks that unpacked, ``unpacking``, and ``total`` from the wrapper's start to the command's.

    Of the environment: in how many ``parts`` it goes to workers, its ``size`` in bytes, and how many of these are
    ``shared`` with environments that this process had shipped before it: a worker that has those is not sent them.
    """

    identity: str | None
    host: str | None
    unpacked: bool
    evicted: int
    waited: float
    unpacking: float
    total: float
    parts: int = 1
    size: int = 0
    shared: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class RunTimes:
    """Where a function task's time went: when its Python began (seconds since the Epoch), and seconds for Python's own
    ``start``, to ``load`` the function with its arguments, and for the ``call``; ``imports`` is a part of the last two.
    """

    at: float
    start: float
    load: float
    imports: float
    call: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Told:
    """All that a task told: its ``number`` in the engine, ``environment`` and ``times``; None for what it did not."""

    number: int | None
    environment: EnvironmentStats | None
    times: RunTimes | None


def parse_told(text: str) -> Told:
    """Every line that is whole, known and has not been spoilt; the last of a kind counts."""
    number, times = None, None
    for line in text.split("\n")[:-1]:
        words = line.split(" ")
        if words[0] == "poncho-task" and (found := re.fullmatch(r"\D*\.([0-9]{1,15})", words[-1])):
            number = int(found[1])
        if words[:2] == ["poncho-run", "1"]:
            facts = dict(word.split("=", 1) for word in words[2:] if "=" in word)
            if "at" in facts and all(map(_NUMBER.fullmatch, facts.values())):
                seconds = {key: int(value) / 1e6 for key, value in facts.items()}
                times = RunTimes(
                    at=seconds["at"], start=seconds.get("start", 0.0), load=seconds.get("load", 0.0),
                    imports=seconds.get("import", 0.0), call=seconds.get("call", 0.0),
                )  # fmt: skip
    return Told(number=number, environment=parse_stats(text), times=times)


def parse_stats(text: str) -> EnvironmentStats | None:
    """The first line that is whole and of a version that is known; None when there is none."""
    for line in text.split("\n")[:-1]:  # what has no end was cut off
        words = line.split(" ")
        if words[:2] != ["poncho-stats", "1"]:
            continue
        facts = dict(word.split("=", 1) for word in words[2:] if "=" in word)
        numbers = [facts.get(key, "0") for key in ("unpacked", "evicted", "waited", "unpacking", "total")]
        numbers.append(facts.get("parts", "1"))
        if "total" not in facts or not all(_NUMBER.fullmatch(number) for number in numbers):
            continue
        unpacked, evicted, waited, unpacking, total, parts = map(int, numbers)
        return EnvironmentStats(
            identity=_known(facts.get("identity")),
            host=_known(facts.get("host")),
            unpacked=bool(unpacked),
            evicted=evicted,
            waited=waited / 100,
            unpacking=unpacking / 100,
            total=total / 100,
            parts=parts,
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
