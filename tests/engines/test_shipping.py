"""Environments in parts, through the engines: what is sent again, what is shared, and what the cache keeps."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from poncho_wq import PonchoTask, environment
from poncho_wq.cache import Cache
from poncho_wq.caching import admin
from poncho_wq.caching.listing import scan
from poncho_wq.caching.verify import verify
from poncho_wq.engines import core, shipping
from poncho_wq.engines.shipping import ship
from poncho_wq.prepare import Environment
from tests.engines.conftest import Engine


@pytest.fixture
def two(shared_cache: Path) -> tuple[Environment, Environment]:
    """Two environments that differ in a variable alone, which is in the layer that we add."""
    one, other = (environment({"env": {"WORD": word}}, cache_dir=shared_cache) for word in ("one", "two"))
    shipping._forget()
    core._attachments.clear()
    return one, other


def content(files: tuple[tuple[str, str], ...]) -> bytes:
    return b"".join(Path(path).read_bytes() for path, _ in files)


def test_the_parts_are_the_tarball(two: tuple[Environment, Environment]) -> None:
    one, other = two
    first, second = ship(one.tarball, one.identity), ship(other.tarball, other.identity)
    for env, shipment in ((one, first), (other, second)):
        assert len(shipment.files) > 2
        assert content(shipment.files) == env.tarball.read_bytes()
        assert shipment.size == env.size
    changed = set(second.files) - set(first.files)
    assert len(changed) == 2, "the manifest, and what we add"
    assert first.shared == 0
    assert second.shared == second.size - sum(os.path.getsize(path) for path, _ in changed)
    assert ship(one.tarball, one.identity) is first


def test_large_parts_are_the_cache_s_own_files(two: tuple[Environment, Environment], shared_cache: Path) -> None:
    one, _ = two
    layers = {os.stat(path).st_ino for path in (Cache(shared_cache).home / "layers").iterdir()}
    files = [os.stat(path) for path, _ in ship(one.tarball, one.identity).files]
    own = sum(each.st_size for each in files if each.st_ino in layers)
    assert own > 0.8 * one.size


def test_a_copy_whose_layers_are_in_no_cache_goes_as_one_file(
    two: tuple[Environment, Environment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PONCHO_CACHE_DIR", str(tmp_path / "empty"))
    copy = tmp_path / "env.tar.gz"
    shutil.copyfile(two[0].tarball, copy)
    ((path, name),) = ship(copy, two[0].identity).files
    assert name.startswith("poncho-env-")
    assert os.path.samefile(path, copy)


def test_a_copy_whose_layers_are_in_the_cache_goes_in_parts(
    two: tuple[Environment, Environment], shared_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PONCHO_CACHE_DIR", str(shared_cache))
    copy = tmp_path / "env.tar.gz"
    shutil.copyfile(two[0].tarball, copy)
    assert content(ship(copy, two[0].identity).files) == copy.read_bytes()


@pytest.mark.parametrize("damage", ["missing", "short", "other"])
def test_a_layer_that_is_not_what_it_was_is_not_sent(
    two: tuple[Environment, Environment], shared_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    damage: str,
) -> None:  # fmt: skip
    own = tmp_path / "cache"
    monkeypatch.setenv("PONCHO_CACHE_DIR", str(own))
    where = two[0].tarball.relative_to(Cache(shared_cache).home)
    tarball = Cache(own).home / where
    tarball.parent.mkdir(parents=True)
    shutil.copyfile(two[0].tarball, tarball)
    shutil.copytree(Cache(shared_cache).home / "layers", Cache(own).home / "layers")
    env = dataclasses.replace(two[0], tarball=tarball)
    largest = max((Cache(own).home / "layers").iterdir(), key=lambda path: path.stat().st_size)
    data = largest.read_bytes()
    assert len(ship(tarball, env.identity).files) > 2
    shipping._forget()
    if damage == "missing":
        largest.unlink()
    else:
        largest.unlink()  # not in place: what was shipped is a link to it
        largest.write_bytes(data[:-1] if damage == "short" else data[:-8] + bytes(8))
    assert content(ship(tarball, env.identity).files) == tarball.read_bytes()


def test_a_worker_is_sent_only_what_differs(
    make_manager: Any, start_workers: Any, two: tuple[Environment, Environment]
) -> None:
    queue = make_manager()
    engine = Engine("work_queue", queue)
    sent, said = [], []
    with start_workers(queue):
        for env in (*two, two[0]):
            before = queue.stats.bytes_sent
            task = PonchoTask("echo $WORD", environment=env)
            task.collect_environment_stats()
            queue.submit(task)
            engine.wait_for(1)
            said.append((task.output, task.environment_stats.unpacked, task.environment_stats.shared))
            sent.append(queue.stats.bytes_sent - before)
    assert [word for word, _, _ in said] == ["one\n", "two\n", "one\n"]
    assert [unpacked for _, unpacked, _ in said] == [True, True, False]
    assert sent[0] > two[0].size
    assert sent[1] < two[1].size * 0.01
    assert sent[2] < two[1].size * 0.01
    assert said[1][2] > two[1].size * 0.99


PROGRAM = """
import sys
from poncho_wq import LocalQueue, PonchoTask, environment
from poncho_wq.engines.shipping import ship
with LocalQueue(cores=1) as queue:
    for word in sys.argv[2:]:
        env = environment({"env": {"WORD": word}}, cache_dir=sys.argv[1])
        task = PonchoTask("echo $WORD", environment=env)
        queue.submit(task)
        task = queue.wait()
        print(task.output.strip(), len(ship(env.tarball, env.identity).files) > 2)
"""


def test_two_managers_share_a_cache(tmp_path: Path, two: tuple[Environment, Environment], shared_cache: Path) -> None:
    """Each builds what the other has not, while a collector goes round and round."""
    words = ["one", "two", "three", "four"]
    managers = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(shared_cache), *each], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, env={**os.environ, "TMPDIR": str(tmp_path)},
        )
        for each in (words, words[::-1])
    ]  # fmt: skip
    try:
        while any(manager.poll() is None for manager in managers):
            admin.collect(Cache(shared_cache))
        for manager, each in zip(managers, (words, words[::-1]), strict=True):
            out, err = manager.communicate()
            assert (out, err) == ("".join(f"{word} True\n" for word in each), "")
    finally:
        for manager in managers:
            manager.kill()
            manager.wait()


@pytest.mark.parametrize("count", [3, pytest.param(60, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])])
def test_a_manager_killed_at_any_moment_spoils_nothing(
    tmp_path: Path, two: tuple[Environment, Environment], shared_cache: Path, count: int
) -> None:
    """While it builds, keeps, cuts and sends: whoever comes next builds and sends what is right."""

    def start(word: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(shared_cache), word], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, env={**os.environ, "TMPDIR": str(tmp_path)}, start_new_session=True,
        )  # fmt: skip

    began = time.monotonic()
    assert start("undisturbed").communicate() == ("undisturbed True\n", "")
    took = time.monotonic() - began
    in_time = 0
    for number in range(count):
        victim = start(f"killed {number} {count}")
        time.sleep(random.Random(number).uniform(0, took))
        in_time += victim.poll() is None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(victim.pid, signal.SIGKILL)
        victim.communicate()
        assert start(f"killed {number} {count}").communicate() == (f"killed {number} {count} True\n", "")
    print(f"managers killed: {count}, in time: {in_time}")
    assert in_time > 0
    cache = Cache(shared_cache)
    mine = [each for each in scan(cache) if each.tarball is not None and each.used > time.time() - 3600]
    assert verify(cache, mine) == []


def test_layers_of_a_superseded_environment_in_use_stay(
    tmp_path: Path, shared_cache: Path, two: tuple[Environment, Environment]
) -> None:
    """Where a part cannot be a hard link it is a symbolic one: its layer must not go while a task may want it."""
    root = tmp_path / "cache"
    first = environment({"env": {"WORD": "one"}}, cache_dir=root)
    cache = Cache(root)
    (listed,) = admin.scan_with(cache, admin.inuse.Claims(cache.home, writable=False))
    changed = tmp_path / "changed.tar.gz"
    shutil.copyfile(two[1].tarball, changed)

    def make(work: Path) -> Any:
        from poncho_wq.manifest import read_manifest
        from poncho_wq.pack import Packed

        manifest = read_manifest(changed)
        assert manifest is not None
        shutil.copyfile(changed, work / "env.tar.gz")
        return Packed(
            path=work / "env.tar.gz", identity=manifest.identity, size=manifest.size, python=manifest.python,
            glibc=manifest.glibc, platform=manifest.platform, layers=manifest.layers,
        )  # fmt: skip

    cache.build_once(listed.spec_hash, make, refresh=True)
    admin.collect(cache)
    assert first.tarball.exists(), "in use by this process"
    assert all((cache.home / "layers" / f"{digest}.gz").exists() for digest in listed.layers)
