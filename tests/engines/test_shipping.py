"""Environments as ranges of few files, through Work Queue: what is sent again, what is shared, and what must not go."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from poncho_wq import PonchoTask, environment, staging
from poncho_wq.cache import Cache
from poncho_wq.caching import admin
from poncho_wq.caching.listing import scan
from poncho_wq.caching.verify import verify
from poncho_wq.engines import core, shipping
from poncho_wq.engines.shipping import Shipment, ship
from poncho_wq.errors import EngineError
from poncho_wq.manifest import Manifest, end_member, read_manifest
from poncho_wq.packing import ranges
from poncho_wq.prepare import Environment
from tests import wheelhouse
from tests.engines.conftest import Engine


@pytest.fixture(autouse=True)
def _nothing_shipped() -> Iterator[None]:
    shipping._forget()
    core._attachments.clear()
    yield
    shipping._forget()
    core._attachments.clear()


@pytest.fixture
def two(shared_cache: Path) -> tuple[Environment, Environment]:
    """Two environments that differ in a variable alone, which is in the layer that we add."""
    one, other = (environment({"env": {"WORD": word}}, cache_dir=shared_cache) for word in ("one", "two"))
    return one, other


@pytest.fixture
def copies(two: tuple[Environment, Environment], tmp_path: Path) -> tuple[Environment, Environment]:
    """Files that a test may remove and change."""
    found = []
    for number, env in enumerate(two):
        path = tmp_path / f"{number}.tar.gz"
        shutil.copyfile(env.tarball, path)
        found.append(dataclasses.replace(env, tarball=path))
    return found[0], found[1]


def content(shipment: Shipment) -> bytes:
    """As the run wrapper puts it together."""
    files = [Path(path).read_bytes() for path, _ in shipment.files]
    if not shipment.ranges:
        return b"".join(files)
    ranges = [[int(word) for word in each.split(":")] for each in shipment.ranges.split(",")]
    return b"".join(files[file - 1][offset : offset + length] for file, offset, length in ranges)


def sent(env: Environment) -> Shipment:
    """What is shipped, which is the tarball."""
    found = ship(env.tarball, env.identity)
    assert content(found) == env.tarball.read_bytes()
    assert found.size == env.size
    return found


def test_the_second_environment_is_what_differs_and_ranges_of_the_first(two: tuple[Environment, Environment]) -> None:
    one, other = two
    first, second = sent(one), sent(other)
    ((whole, name),) = first.files
    assert (first.ranges, first.shared, name) == ("", 0, f"poncho-env-{one.identity[:16]}.tar.gz")
    assert os.path.samefile(whole, one.tarball)
    assert first.options == f"-e {name}"
    (delta, delta_name), there = second.files
    assert there == (whole, name)
    assert delta_name.startswith("poncho-delta-")
    assert second.shared == second.size - os.path.getsize(delta) > 0.99 * second.size
    assert second.ranges.count(",") == 2, "the manifest, the layers of packages, what we add and the end"
    assert second.options == f"-e {delta_name} -e {name} --ranges {second.ranges}"
    assert sent(one) is first
    assert sent(other) is second


def test_a_copy_of_what_was_shipped_is_the_same_file(
    two: tuple[Environment, Environment], copies: tuple[Environment, Environment]
) -> None:
    assert sent(copies[0]).files == ship(two[0].tarball, two[0].identity).files
    assert content(ship(two[1].tarball, two[1].identity)) == two[1].tarball.read_bytes()
    assert sent(copies[1]).files == ship(two[1].tarball, two[1].identity).files


def test_what_is_not_ours_and_what_is_damaged_goes_as_one_file(
    two: tuple[Environment, Environment], tmp_path: Path
) -> None:
    sent(two[0])
    data = two[1].tarball.read_bytes()
    for name, changed in (("short.tar.gz", data[:-1]), ("foreign.tar.gz", gzip.compress(b"x" * 10_000))):
        path = tmp_path / name
        path.write_bytes(changed)
        found = ship(path, name)
        assert (len(found.files), found.ranges, found.shared) == (1, "", 0)
        assert os.path.samefile(found.files[0][0], path)


def test_a_carrier_outlives_its_tarball(copies: tuple[Environment, Environment]) -> None:
    """What a collector takes from the cache: the hard link keeps it."""
    first = sent(copies[0])
    copies[0].tarball.unlink()
    assert sent(copies[1]).files[1:] == first.files


@pytest.mark.parametrize("what", ["removed", "replaced", "written over"])
def test_a_carrier_that_is_not_what_it_was_is_not_used(
    copies: tuple[Environment, Environment], monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Where there are no hard links, it is the tarball itself."""

    def none(*words: object, **more: object) -> None:
        raise OSError

    monkeypatch.setattr(os, "link", none)
    tarball = copies[0].tarball
    sent(copies[0])
    if what == "removed":
        tarball.unlink()
    elif what == "replaced":
        shutil.copyfile(copies[1].tarball, f"{tarball}.new")
        os.replace(f"{tarball}.new", tarball)
    else:
        data = tarball.read_bytes()
        tarball.write_bytes(bytes(len(data)))
    found = sent(copies[1])
    assert (len(found.files), found.shared) == (1, 0)


def test_a_delta_that_somebody_removed_is_made_again(two: tuple[Environment, Environment]) -> None:
    sent(two[0])
    path = Path(sent(two[1]).files[0][0])
    path.unlink()
    shipping._shipments.clear()
    assert sent(two[1]).files[0][0] == str(path)


def test_where_there_is_no_room_for_a_delta_it_goes_as_one_file(
    two: tuple[Environment, Environment], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*words: object) -> str:
        raise EngineError("cannot write the files of a task: No space left on device")

    monkeypatch.setattr(staging, "cut", full)
    sent(two[0])
    found = sent(two[1])
    assert (len(found.files), found.shared) == (1, 0)


def recompressed(tarball: Path, made: Path) -> None:
    """The same environment by another compressor: of equal identity, and other members."""
    manifest = read_manifest(tarball)
    assert manifest is not None
    data, layers, at, bodies = tarball.read_bytes()[manifest.member :], [], 0, []
    for layer in manifest.layers:
        body = data[layer.offset : layer.offset + layer.length]
        if len(body) < 1_000_000:
            body = gzip.compress(gzip.decompress(body), 1, mtime=0)
        layers.append(dataclasses.replace(layer, offset=at, length=len(body)))
        bodies.append(body)
        at += len(body)
    other = Manifest(
        platform=manifest.platform, python=manifest.python, glibc=manifest.glibc, unpacked=manifest.unpacked,
        files=manifest.files, layers=tuple(layers), placeholder=manifest.placeholder,
        relocations=manifest.relocations,
    )  # fmt: skip
    assert other.identity == manifest.identity
    made.write_bytes(b"".join((other.first_member(), *bodies, end_member())))


def test_one_name_is_one_content(two: tuple[Environment, Environment], tmp_path: Path, monkeypatch: Any) -> None:
    """Work Queue knows a cached file by its path: what a worker has must be what the ranges are of."""
    monkeypatch.setattr("poncho_wq.engines.shipping.assemble", lambda *words: None)
    path = tmp_path / "other.tar.gz"
    recompressed(two[0].tarball, path)
    first = sent(two[0])
    other = ship(path, two[0].identity)
    assert first.files[0][1] != other.files[0][1]
    assert content(first) == two[0].tarball.read_bytes()
    assert content(other) == path.read_bytes()
    monkeypatch.undo()
    assert content(ship(two[1].tarball, two[1].identity)) == two[1].tarball.read_bytes()


def test_threads_are_given_the_same(two: tuple[Environment, Environment], monkeypatch: pytest.MonkeyPatch) -> None:
    def slowly(tarball: Path) -> Manifest | None:
        time.sleep(0.05)
        return read_manifest(tarball)

    monkeypatch.setattr(shipping, "read_manifest", slowly)
    found: list[Shipment] = []
    threads = [
        threading.Thread(target=lambda env=env: found.append(ship(env.tarball, env.identity))) for env in two * 8
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(each) for each in found}) == 2
    assert sorted(len(each.files) for each in found) == [1] * 8 + [2] * 8


def test_a_forked_child_ships_files_of_its_own(two: tuple[Environment, Environment]) -> None:
    parent = sent(two[0])
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            own = ship(two[1].tarball, two[1].identity)
            if len(own.files) == 1 and os.path.dirname(own.files[0][0]) != os.path.dirname(parent.files[0][0]):
                shutil.rmtree(os.path.dirname(own.files[0][0]))
                os._exit(0)
        os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
    assert Path(parent.files[0][0]).exists()


@pytest.mark.parametrize("unpack_to", ["worker", "node"])
def test_a_worker_is_sent_only_what_differs(
    make_manager: Any, start_workers: Any, two: tuple[Environment, Environment], tmp_path: Path,
    unpack_to: Any,
) -> None:  # fmt: skip
    queue = make_manager()
    engine = Engine("work_queue", queue)
    took, said = [], []
    with start_workers(queue):
        for env in (*two, two[0]):
            before = queue.stats.bytes_sent
            task = PonchoTask("echo $WORD", environment=env, unpack_to=unpack_to)
            task.specify_environment_variable("PONCHO_NODE_CACHE", str(tmp_path / "node"))
            task.collect_environment_stats()
            queue.submit(task)
            engine.wait_for(1)
            stats = task.environment_stats
            said.append((task.output, stats.unpacked, stats.parts, stats.size, stats.shared))
            took.append(queue.stats.bytes_sent - before)
    assert [word for word, *_ in said] == ["one\n", "two\n", "one\n"]
    assert [unpacked for _, unpacked, *_ in said] == [True, True, False]
    assert [parts for _, _, parts, *_ in said] == [1, 2, 1]
    assert [size for *_, size, _ in said] == [two[0].size, two[1].size, two[0].size]
    assert took[0] > two[0].size
    assert took[1] < two[1].size * 0.01
    assert took[2] < two[1].size * 0.01
    assert said[1][-1] > two[1].size * 0.99


PINS = [("greeter", "1.1"), *((name, f"{number}.0") for number in range(2, 6) for name in ("alpha", "greeter"))]


@pytest.mark.parametrize("changes", [2, pytest.param(9, marks=pytest.mark.slow)])
def test_a_changed_pin_sends_that_package(
    make_manager: Any, start_workers: Any, shared_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    changes: int,
) -> None:  # fmt: skip
    """Wheels, installed by uv; each change of a pin on top of the last one, by what the last one has sent."""
    monkeypatch.setattr(ranges, "LEAST", 10_000)  # these packages are small
    wheels = tmp_path / "wheels"
    pins = {"greeter": "1.0", "alpha": "1.0"}
    for name, version in (*pins.items(), *PINS):
        module = {
            f"{name}.py": f"VALUE = '{name} {version}'\nDATA = '{random.Random(version).randbytes(90_000).hex()}'\n"
        }
        wheelhouse.write_wheel(wheels, name, version, module)
    monkeypatch.setenv("UV_FIND_LINKS", str(wheels))
    monkeypatch.setenv("UV_NO_INDEX", "1")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv"))
    queue = make_manager()
    engine = Engine("work_queue", queue)
    took = []
    with start_workers(queue):
        for name, version in (("alpha", "1.0"), *PINS[:changes]):
            pins[name] = version
            env = environment({"pip": [f"{each}=={pin}" for each, pin in pins.items()]}, cache_dir=shared_cache)
            found = sent(env)
            assert len(found.files) == min(1 + len(took), 3), "each in a delta of its own"
            before = queue.stats.bytes_sent
            queue.submit(
                PonchoTask("python3 -c 'import greeter, alpha; print(greeter.VALUE, alpha.VALUE)'", environment=env)
            )
            (task,) = engine.wait_for(1)
            assert task.output == f"greeter {pins['greeter']} alpha {pins['alpha']}\n"
            took.append((queue.stats.bytes_sent - before) / env.size)
    assert took[0] > 1
    assert max(took[1:]) < 0.03


def test_a_worker_that_has_nothing_gets_what_it_needs(
    make_manager: Any, start_workers: Any, two: tuple[Environment, Environment]
) -> None:
    """It never had the environment whose file is a carrier."""
    sent(two[0])
    queue = make_manager()
    with start_workers(queue):
        queue.submit(PonchoTask("echo $WORD", environment=two[1]))
        (task,) = Engine("work_queue", queue).wait_for(1)
    assert task.output == "two\n"
    assert two[1].size < queue.stats.bytes_sent < 1.02 * two[1].size


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
        print(task.output.strip(), len(ship(env.tarball, env.identity).files))
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
            assert (out, err) == ("".join(f"{word} {1 + (number > 0)}\n" for number, word in enumerate(each)), "")
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
    assert start("undisturbed").communicate() == ("undisturbed 1\n", "")
    took = time.monotonic() - began
    in_time = 0
    for number in range(count):
        victim = start(f"killed {number} {count}")
        time.sleep(random.Random(number).uniform(0, took))
        in_time += victim.poll() is None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(victim.pid, signal.SIGKILL)
        victim.communicate()
        assert start(f"killed {number} {count}").communicate() == (f"killed {number} {count} 1\n", "")
    print(f"managers killed: {count}, in time: {in_time}")
    assert in_time > 0
    cache = Cache(shared_cache)
    mine = [each for each in scan(cache) if each.tarball is not None and each.used > time.time() - 3600]
    assert verify(cache, mine) == []
