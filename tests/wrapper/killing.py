"""What the tests of faults share: worlds that are slow enough to be killed in, kills at any moment, and their verdict.

`PONCHO_FAULTS=N` tries N moments (or offsets) instead of the few that a usual run has; the slow tests try 200.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.wrapper.conftest import Tree, World, tree

FEW = int(os.environ.get("PONCHO_FAULTS", "4"))
MANY = max(FEW, 200)
# On a busy machine two hundred kills may take half an hour.
_many = pytest.param(MANY, marks=[pytest.mark.slow, pytest.mark.timeout(3600)], id="many")
counts = pytest.mark.parametrize("count", [FEW, _many])

# A decompressor that takes its time and not the processor's, so that there is a middle to be killed in.
SLOW = f"""#!{sys.executable} -IS
import sys, time, zlib
rest = sys.stdin.buffer.read()
out = b""
while rest:
    decoder = zlib.decompressobj(31)
    out += decoder.decompress(rest)
    rest = decoder.unused_data
step = len(out) // 25 + 1
for start in range(0, len(out), step):
    sys.stdout.buffer.write(out[start : start + step])
    sys.stdout.buffer.flush()
    time.sleep(0.01)
"""


def slowed(world: World, directory: Path) -> World:
    """The same world with a decompressor that takes about a quarter of a second."""
    programs = directory / "slow programs"
    programs.mkdir(exist_ok=True)
    (programs / "igzip").write_text(SLOW)
    (programs / "igzip").chmod(0o755)
    return dataclasses.replace(world, path=f"{programs}:{world.path}")


def processes(session: int) -> dict[int, list[str]]:
    """The living processes of a session, with their command lines."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError, IndexError):
            state, *rest = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(rest[2]) == session and state != "Z":
                found[int(entry.name)] = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
    return found


def wait_until(condition: object, what: str, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, what
        time.sleep(0.005)


def all_ended(session: int) -> None:
    wait_until(lambda: not processes(session), f"processes remain: {processes(session)}")


def beside(directory: Path) -> list[str]:
    """What lies beside an unpacked DIR other than lock files."""
    return sorted(path.name for path in directory.parent.iterdir() if "lock" not in path.name)


def how_long(world: World, words: Sequence[object], directory: Path) -> float:
    """Seconds that a first run takes when nothing disturbs it: the least of a few."""
    took = []
    for _ in range(3):
        start = time.monotonic()
        assert world.run(*words, "-d", directory).returncode == 0
        took.append(time.monotonic() - start)
        shutil.rmtree(directory)
    return min(took)


class Verdict:
    """What went wrong, with the number of the attempt: a count alone explains nothing."""

    def __init__(self) -> None:
        self.wrong: list[str] = []

    def check(self, number: int, right: bool, what: object) -> None:
        if not right:
            self.wrong.append(f"{number}: {what}")

    def served(
        self, number: int, world: World, words: Sequence[object], directory: Path, expected: Tree, **env: str
    ) -> None:
        """A run that begins now must find or make the whole environment, and leave nothing beside it."""
        done = world.run(*words, "-d", directory, "where", env=env)
        self.check(number, (done.returncode, done.stdout, done.stderr) == (0, f"{directory}\n", ""), done)
        found = tree(directory)
        self.check(number, found == expected, f"differs: {sorted(set(found.items()) ^ set(expected.items()))[:3]}")


def killed_groups(
    world: World, faulty: World, words: Sequence[object], expected: Tree, room: Path, count: int, what: str = ""
) -> int:
    """First runs in the slow ``world`` whose whole group is killed at any moment, after each of which a run in
    ``faulty`` must be served.  How many were killed in time; asserts that nothing went wrong."""
    took = how_long(world, words, room / "env")
    verdict, in_time, late = Verdict(), 0, 0
    for number in range(count):
        directory = room / f"env {number}"
        process = world.start(*words, "-d", directory, "where")
        time.sleep(random.Random(number).uniform(0, took))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        in_time += process.returncode == -signal.SIGKILL
        if directory.exists():
            verdict.check(number, tree(directory) == expected, "DIR is there and not whole")
        verdict.served(number, faulty, words, directory, expected, CORES=str(1 + number % 3))
        if beside(directory) != [directory.name]:  # on a busy machine the killed may die after the sweep
            late += 1
            shutil.rmtree(directory)
            verdict.served(number, faulty, words, directory, expected)
            verdict.check(number, beside(directory) == [directory.name], beside(directory))
        shutil.rmtree(directory)
    print(
        f"{faulty.name}: {what}groups killed: {count}, while unpacking: {in_time}, swept late: {late}, "
        f"wrong: {len(verdict.wrong)}"
    )
    assert verdict.wrong == []
    return in_time


VICTIMS = pytest.mark.parametrize("victims", [pytest.param("the group", marks=pytest.mark.slow), "one of all"])


def killed_while_others_come(
    faulty: World, words: Sequence[object], expected: Tree, room: Path, count: int, victims: str
) -> int:
    """The same with another run at once, while what was not killed goes on: ``victims`` are "the group", or "one of
    all" processes."""
    world = slowed(faulty, room.parent)
    took = how_long(world, words, room / "env")
    verdict, in_time = Verdict(), 0
    for number in range(count):
        chance = random.Random(number)
        directory = room / f"env {number}"
        process = world.start(*words, "-d", directory, "where")
        time.sleep(chance.uniform(0, took))
        alive = sorted(processes(process.pid))
        with contextlib.suppress(ProcessLookupError):
            if victims == "the group":
                os.killpg(process.pid, signal.SIGKILL)
            elif alive:
                os.kill(chance.choice(alive), signal.SIGKILL)
        in_time += bool(alive)
        done = faulty.run(*words, "-d", directory, "where", env={"CORES": str(1 + number % 3)})
        verdict.check(number, (done.returncode, done.stdout, done.stderr) == (0, f"{directory}\n", ""), done)
        process.communicate()
        all_ended(process.pid)
        verdict.check(number, tree(directory) == expected, "DIR is not whole")
        if beside(directory) != [directory.name]:  # what died late is swept by the next first run
            shutil.rmtree(directory)
            assert faulty.run(*words, "-d", directory).returncode == 0
            verdict.check(number, beside(directory) == [directory.name], beside(directory))
        shutil.rmtree(directory)
    print(f"{faulty.name}: {victims} killed: {count}, in time: {in_time}, wrong: {len(verdict.wrong)}")
    assert verdict.wrong == []
    return in_time
