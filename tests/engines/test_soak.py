"""Two minutes of what happens in a month: workers that die at any moment, also while they unpack.

Real Work Queue, one-core workers with directories of their own, killed at random with all that they run and started
again; tasks of several environments, some of which write what they do into a journal.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from poncho_wq.engines.work_queue import PonchoTask
from poncho_wq.engines.workers import LocalWorkers
from tests.engines.conftest import PYTHON, make_environment

TASKS = int(os.environ.get("PONCHO_SOAK_TASKS", "1000"))
ENVIRONMENTS = 3
WORKERS = 4
# Time without any task coming back after which the rest is lost.
PATIENCE = 120


def work(number: int) -> tuple[int, str, str]:
    import time

    import which_environment

    time.sleep(number % 7 / 50)
    return number * number, which_environment.NAME, which_environment.digest_of_all()


# Counts what is there: a half-made environment would give another digest, or none.
MODULE = """
import hashlib, pathlib
NAME = {name!r}
def digest_of_all():
    digest = hashlib.sha256()
    for path in sorted(pathlib.Path(__file__).parent.glob("part*.txt")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
"""


def an_environment(directory: Path, number: int) -> tuple[Path, str]:
    """A tarball that takes a while to unpack, and the digest of its parts."""
    chance = random.Random(number)
    where = f"lib/{PYTHON}/site-packages"
    parts = {f"part{part:04}.txt": chance.randbytes(2000).hex() for part in range(600)}
    extra = {f"{where}/{name}": text for name, text in parts.items()}
    extra[f"{where}/which_environment.py"] = MODULE.format(name=f"environment {number}")
    path = make_environment(directory / f"environment-{number}.tar.gz", extra=extra)
    return path, hashlib.sha256("".join(parts[name] for name in sorted(parts)).encode()).hexdigest()


def below(directory: Path) -> list[str]:
    """Processes that work below a directory, or were started from there."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                at = os.readlink(entry / "cwd")
                words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if at.startswith(f"{directory}/") or f"{directory}/" in words:
                    found.append(f"{entry.name}: {words}")
    return found


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("unpack_to", ["worker", "node"])
def test_workers_that_die_at_any_moment(make_manager: Callable[[], Any], tmp_path: Path, unpack_to: str) -> None:
    environments = [an_environment(tmp_path, number) for number in range(ENVIRONMENTS)]
    workplace, temporary, node = tmp_path / "workers", tmp_path / "tmp", tmp_path / "node"
    workplace.mkdir()
    temporary.mkdir()
    queue = make_manager()
    environ = {
        "PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/nonexistent", "TMPDIR": str(temporary),
        # room for one of the three, so that there is something to evict
        "PONCHO_NODE_CACHE": str(node), "PONCHO_NODE_CACHE_SIZE": "4M",
    }  # fmt: skip
    chance = random.Random(1)
    expected: dict[int, tuple[int, str, str]] = {}
    results: dict[int, list[Any]] = {}
    stats = []
    submitted = kills = while_unpacking = 0
    with LocalWorkers(queue.port, count=WORKERS, directory=workplace, environ=environ) as workers:
        next_kill = time.monotonic() + 1
        last = time.monotonic()
        while sum(map(len, results.values())) < TASKS:
            while submitted < TASKS and submitted - sum(map(len, results.values())) < 4 * WORKERS:
                tarball, digest = environments[submitted % ENVIRONMENTS]
                task = PonchoTask(work, submitted, environment=str(tarball), unpack_to=unpack_to)
                task.specify_tag(str(submitted))
                task.specify_cores(1)
                task.collect_environment_stats()
                queue.submit(task)
                expected[submitted] = (submitted * submitted, f"environment {submitted % ENVIRONMENTS}", digest)
                submitted += 1
            task = queue.wait(1)
            if task is not None:
                last = time.monotonic()
                results.setdefault(int(task.tag), []).append(task.output)
                stats.append(task.environment_stats)
            assert time.monotonic() - last < PATIENCE, f"lost: {sorted(set(expected) - set(results))[:9]}"
            if time.monotonic() >= next_kill:
                # A worker that has just begun unpacks: half of the kills are meant for such a one.
                victim = workers.processes[-1] if chance.random() < 0.5 else chance.choice(workers.processes)
                while_unpacking += is_unpacking(victim)
                for pid in [victim.pid, *descendants(victim.pid)]:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                victim.wait()
                workers.processes.remove(victim)
                kills += 1
                # what a worker leaves that is killed is its site's to remove, here as there
                workers.start_one()
                next_kill = time.monotonic() + chance.choice((0.2, 0.5, 1, 3))
    wrong = {number: found for number, found in results.items() if found != [expected[number]]}
    unpacked = sum(each.unpacked for each in stats if each is not None)
    evicted = sum(each.evicted for each in stats if each is not None)
    print(
        f"{unpack_to}: tasks: {TASKS}, workers killed: {kills} ({while_unpacking} while unpacking), "
        f"unpacked: {unpacked}, evicted: {evicted}, "
        f"wrong: {len(wrong)}, lost: {TASKS - len(results)}"
    )
    assert wrong == {}
    assert len(results) == TASKS
    assert kills > TASKS / 50
    # in the node's cache an environment is seldom unpacked, and so seldom killed in the middle of it
    assert while_unpacking > 0 or TASKS < 1000 or unpack_to == "node"
    assert below(tmp_path) == []
    assert list(workplace.iterdir()) == []
    assert list(temporary.iterdir()) == []
    if unpack_to == "node":
        left = sorted(path.name for path in node.iterdir() if not path.name.startswith(".poncho-lock"))
        # what a death left goes with the next that unpacks
        assert all(len(name) == 64 or name.startswith((".poncho-new.", ".poncho-old.")) for name in left)
        shutil.rmtree(node)


def is_unpacking(worker: subprocess.Popen[bytes]) -> bool:
    """Whether an environment is being made in the workspace of a worker, or by one of its tasks in the node's cache."""
    argv = worker.args
    assert isinstance(argv, list)
    if list(Path(argv[argv.index("-s") + 1]).glob("*/.poncho-new.*")):
        return True
    words = [(Path("/proc") / str(pid) / "cmdline") for pid in descendants(worker.pid)]
    with contextlib.suppress(OSError):
        return any(b"tar\0-x" in each.read_bytes() for each in words)
    return False


def descendants(pid: int) -> list[int]:
    """A process's children and theirs."""
    found = []
    with contextlib.suppress(OSError):
        for child in (Path("/proc") / str(pid) / "task" / str(pid) / "children").read_text().split():
            found += [int(child), *descendants(int(child))]
    return found
