"""Two minutes of what happens in a month: workers that die at any moment, also while they unpack.

Real Work Queue, one-core workers with directories of their own, killed at random with all that they run and started
again; tasks of several environments, some of which write what they do into a journal.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from poncho_wq.engines.work_queue import PonchoTask
from poncho_wq.engines.workers import LocalWorkers
from tests.engines.conftest import PASSWORD
from tests.engines.opened_engines import needed
from tests.engines.soak import Soak
from tests.engines.soaking import an_environment, below, kill_one

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
    with LocalWorkers(
        queue.port, count=WORKERS, directory=workplace, environ=environ, password=PASSWORD
    ) as workers:  # fmt: skip
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
                while_unpacking += kill_one(workers, chance)
                kills += 1
                next_kill = time.monotonic() + chance.choice((0.1, 0.2, 0.5, 1))
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
    assert below(tmp_path) == []
    assert list(workplace.iterdir()) == []
    assert list(temporary.iterdir()) == []
    if unpack_to == "node":
        left = sorted(path.name for path in node.iterdir() if not path.name.startswith(".poncho-lock"))
        # what a death left goes with the next that unpacks
        assert all(len(name) == 64 or name.startswith((".poncho-new.", ".poncho-old.")) for name in left)
        shutil.rmtree(node)


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("engine", ["work_queue", "taskvine"])
def test_a_manager_that_dies_too_while_code_and_pins_change(tmp_path: Path, engine: str) -> None:
    """`make soak` does this with twenty thousand tasks on twenty workers."""
    needed(engine)
    tasks = int(os.environ.get("PONCHO_SOAK_TASKS", "300"))
    figures = Soak(tmp_path, tasks=tasks, workers=4, seed=1, engine=engine).run()
    print(figures)
    assert figures.wrong == []
    assert figures.left == []
    assert (figures.lost, figures.twice, figures.tasks) == (0, 0, tasks)
    assert (figures.restarts, figures.pins) == (1, 2)
    assert figures.kills > 0
    assert engine == "taskvine" or figures.unpacked > 0, "who unpacks can tell"
    assert engine == "taskvine" or figures.warm > 0
    assert not figures.grown
