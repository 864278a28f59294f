"""How a task came to its environment: what the wrapper says of it comes back, and a cache of the node is used."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poncho_wq.engines.core import Job
from poncho_wq.engines.local import LocalQueue
from poncho_wq.engines.statistics import EnvironmentStats, parse_stats, read_stats
from poncho_wq.engines.work_queue import PonchoTask
from poncho_wq.errors import EngineError
from poncho_wq.prepare import environment
from tests.engines.conftest import Engine

LINE = "poncho-stats 1 identity=abc host=n1 waited=150 unpacked=1 evicted=2 unpacking=7 total=160\n"
STATS = EnvironmentStats(
    identity="abc", host="n1", unpacked=True, evicted=2, waited=1.5, unpacking=0.07, total=1.6
)  # fmt: skip


def test_a_line() -> None:
    assert parse_stats(LINE) == STATS
    # of what comes later, and of keys that a newer wrapper adds, nothing is known
    assert parse_stats("noise\n" + LINE.replace("total", "new=x total") + LINE.replace("n1", "n2")) == STATS
    unknown = parse_stats("poncho-stats 1 identity=- host=- waited=0 unpacked=0 total=3\n")
    assert unknown == EnvironmentStats(
        identity=None, host=None, unpacked=False, evicted=0, waited=0, unpacking=0, total=0.03
    )  # fmt: skip


@pytest.mark.parametrize(
    "text",
    ["", "\n", LINE[:-1], LINE.replace(" 1 ", " 2 "), LINE.replace("=150", "=-1"), LINE.replace(" total=160", ""),
     LINE.replace("=150", "=" + "9" * 5000), LINE.replace("=2", "=")],
)  # fmt: skip
def test_what_is_no_line(text: str) -> None:
    assert parse_stats(text) is None


@given(st.text() | st.text().map(lambda text: LINE.replace("=1", text)))
def test_anything_at_all(text: str) -> None:
    assert isinstance(parse_stats(text), EnvironmentStats | None)


def test_no_file(tmp_path: Path) -> None:
    assert read_stats(str(tmp_path / "none")) is None
    (tmp_path / "binary").write_bytes(bytes(range(256)) + b"\n" + LINE.encode())
    assert read_stats(str(tmp_path / "binary")) == STATS


def _where() -> str:
    return os.environ["PONCHO_PREFIX"] + " " + os.environ.get("PONCHO_STATS", "no statistics")


def test_they_come_back(engine: Engine, tarball: Path) -> None:
    tasks: list[Any] = [PonchoTask(_where, environment=str(tarball)) for _ in range(2)]
    tasks += [PonchoTask("echo hello", environment=str(tarball)), PonchoTask("exit 9", environment=str(tarball))]
    for task in tasks:
        task.collect_environment_stats()
        assert task.environment_stats is None
    quiet = PonchoTask("true", environment=str(tarball))
    for task in (*tasks, quiet):
        engine.run(task)
    assert quiet.environment_stats is None
    identity = environment(str(tarball)).identity
    for task in tasks:
        found = task.environment_stats
        assert isinstance(found, EnvironmentStats)
        assert (found.identity, found.evicted) == (identity, 0)
        assert found.host
        assert task.environment_stats is found
    assert sum(task.environment_stats.unpacked for task in tasks) <= 1
    assert not tasks[1].environment_stats.unpacked
    assert [task.return_status for task in tasks] == [0, 0, 0, 9]
    assert tasks[0].output.endswith(" no statistics")
    again = tasks[0].clone()
    assert again.environment_stats is None
    engine.run(again)
    assert again.environment_stats is not None
    with pytest.raises(EngineError, match="has been submitted"):
        quiet.collect_environment_stats()


def test_what_failed_before_the_command_has_none(tmp_path: Path) -> None:
    (tmp_path / "bad.tar.gz").write_bytes(b"\x1f\x8b\x08 no environment")
    task = PonchoTask("true", environment=str(tmp_path / "bad.tar.gz"))
    task.collect_environment_stats()
    with LocalQueue(cores=1) as queue:
        queue.submit(task)
        assert queue.wait(60) is task
    # 125 as without statistics: no output is missing
    assert (task.return_status, task.result, task.environment_stats) == (125, 0, None)


def test_one_unpack_for_all_workers_of_a_node(tarball: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PONCHO_NODE_CACHE", str(tmp_path / "node"))
    unpacked = []
    for _ in range(2):  # two workspaces, as of two workers
        with LocalQueue(cores=1) as queue:
            tasks: list[Any] = [PonchoTask(_where, environment=str(tarball), unpack_to="node")]
            tasks.append(PonchoTask('echo "$PONCHO_PREFIX"', environment=str(tarball)))
            tasks[1].specify_unpack_to("node")
            for task in tasks:
                task.collect_environment_stats()
                queue.submit(task)
                assert queue.wait(60) is task
                assert str(task.output).startswith(f"{tmp_path}/node/"), task.output
                unpacked.append(task.environment_stats.unpacked)
    assert unpacked == [True, False, False, False]


def test_where_to_unpack_is_said_in_time_and_in_known_words(tarball: Path) -> None:
    with pytest.raises(EngineError, match=r"worker.*node"):
        PonchoTask("true", environment=str(tarball), unpack_to="moon")

    def takes(unpack_to: str) -> str:
        return unpack_to

    assert Job(takes, (), {"unpack_to": "its own"}).unpack_to == "worker"
    task = PonchoTask("true", environment=str(tarball))
    with LocalQueue(cores=1) as queue:
        queue.submit(task)
        with pytest.raises(EngineError, match="submitted"):
            task.specify_unpack_to("node")
        queue.wait(60)
