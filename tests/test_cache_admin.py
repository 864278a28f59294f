"""Looking after the cache: what may go goes, what a living process uses stays, whoever does what at the same time."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import pickle
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poncho_wq.cache import Cache, Entry
from poncho_wq.caching import admin as cache_admin
from poncho_wq.caching import failures, inuse, listing, removing
from poncho_wq.caching.admin import collect, limit, parse_size, remove, tidy
from poncho_wq.caching.books import Books
from poncho_wq.caching.listing import Listed, find, scan
from poncho_wq.caching.removing import Remover
from poncho_wq.caching.usage import areas
from poncho_wq.caching.verify import mend, verify
from poncho_wq.errors import BuildError, CacheError, FetchError, LockTimeout, PackError, SolveError
from poncho_wq.pack import Packed, pack
from poncho_wq.packing.compression import COMPRESSIONS, LAYER_SUFFIXES, Compression, form_of
from poncho_wq.packing.layers import Layer
from tests import prefixes
from tests.processes import Child, Event, at_step, children, die

A, B, C, D = ("a" * 64, "b" * 64, "c" * 64, "d" * 64)


def layer_names(*names: str) -> tuple[str, ...]:
    return tuple(name * 64 for name in names)


def maker(content: bytes = b"a tarball", *layers: str) -> Callable[[Path], Packed]:
    """A build whose tarball is ``content``, and which names layers by one hexadecimal digit."""

    def make(work: Path) -> Packed:
        path = work / "env.tar.gz"
        path.write_bytes(content)
        known = {"length": 0, "unpacked": 0, "crc": 0, "content": 0, "files": 0}
        return Packed(
            path=path, identity=content.hex().ljust(64, "0")[:64], size=len(content), python="3.11.7", glibc=None,
            platform="linux-64", layers=tuple(Layer(path=path, digest=d, **known) for d in layer_names(*layers)),
        )  # fmt: skip

    return make


def elsewhere(work: Callable[[], object]) -> None:
    """Do it in a process that ends, and so uses nothing any more."""
    assert Child(work).wait() == 0


def put(root: Path, spec_hash: str, content: bytes = b"a tarball", *layers: str, used: float = 1000.0) -> Path:
    """An environment that nobody uses, with layers of 100 bytes; its directory."""
    elsewhere(lambda: Cache(root).build_once(spec_hash, maker(content, *layers), refresh=True))
    for digest in layer_names(*layers):
        for name in ("layers", "recipes"):
            (root / "v1" / name).mkdir(exist_ok=True)
        (root / f"v1/layers/{digest}.gz").write_bytes(b"x" * 100)
        (root / f"v1/recipes/{digest}").write_text(json.dumps({"digest": digest}))
    directory = root / "v1/environments" / spec_hash
    os.utime(directory / "used", (used, used))
    return directory


def here(root: Path) -> set[str]:
    """The first digits of the hashes that can be looked up, found out without using them."""
    return {each.spec_hash[0] for each in scan(Cache(root)) if each.path is not None}


def layers_here(root: Path) -> set[str]:
    return {path.name[0] for path in (root / "v1/layers").glob("*.gz")}


def never(work: Path) -> Packed:
    raise AssertionError("built again")


# Sizes


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("20G", 20 * 10**9), ("1.5 kB", 1500), ("2GiB", 2 << 30), ("7", 7), ("500mb", 5 * 10**8), ("1T", 10**12),
     ("none", None), (" Unlimited ", None)],
)  # fmt: skip
def test_sizes(text: str, size: int | None) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "-1", "20 apples", "G", "1e9", "nan", "20GG", "²"])
def test_what_is_no_size_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="expected a size such as 20G"):
        parse_size(text)
    monkeypatch.setenv("PONCHO_CACHE_SIZE", text)
    if text:
        with pytest.raises(CacheError, match=r"PONCHO_CACHE_SIZE: expected a size(?s:.)*export PONCHO_CACHE_SIZE=20G"):
            limit()
    else:
        assert limit() is None


# What goes


def test_the_one_not_used_for_longest_goes_first(tmp_path: Path) -> None:
    put(tmp_path, A, b"x" * 1000, used=3)
    put(tmp_path, B, b"y" * 1000, used=1)
    put(tmp_path, C, b"z" * 1000, used=2)
    done = collect(Cache(tmp_path), max_size=1999)
    assert [each.spec_hash for each in done.evicted] == [B, C]
    assert (done.freed, done.left) == (2000, 1000)
    assert here(tmp_path) == {"a"}
    assert list((tmp_path / "v1/tmp").glob("*/")) == []


def test_exactly_the_limit_is_within_it(tmp_path: Path) -> None:
    put(tmp_path, A, b"x" * 1000)
    assert collect(Cache(tmp_path), max_size=1000).evicted == ()
    assert len(collect(Cache(tmp_path), max_size=999).evicted) == 1


def test_what_was_not_used_for_so_long_goes(tmp_path: Path) -> None:
    put(tmp_path, A, used=1)
    put(tmp_path, B)
    os.utime(tmp_path / "v1/environments" / B / "used")
    collect(Cache(tmp_path), older_than=3600)
    assert here(tmp_path) == {"b"}


def test_layers_are_counted_once_and_go_with_the_last_who_names_them(tmp_path: Path) -> None:
    put(tmp_path, A, b"x" * 10, "1", "2", used=1)
    put(tmp_path, B, b"y" * 10, "2", "3", used=2)
    # 20 bytes of tarballs and three layers of 100.
    assert collect(Cache(tmp_path), max_size=320).evicted == ()
    done = collect(Cache(tmp_path), max_size=319)
    assert (len(done.evicted), done.layers, done.freed, done.left) == (1, 1, 110, 210)
    assert layers_here(tmp_path) == {"2", "3"}
    assert {path.name[0] for path in (tmp_path / "v1/recipes").iterdir()} == {"2", "3"}


def test_a_file_with_two_names_is_counted_once(tmp_path: Path) -> None:
    put(tmp_path, A, b"x" * 1000, used=1)
    put(tmp_path, B, b"x" * 1000, used=2)
    one, two = (next(path.glob("*/*.tar.gz")) for path in (tmp_path / "v1/environments").iterdir())
    one.unlink()
    os.link(two, one)
    assert collect(Cache(tmp_path), max_size=1000).left == 1000
    assert here(tmp_path) == {"a", "b"}
    done = collect(Cache(tmp_path), max_size=999)
    assert (len(done.evicted), done.freed) == (2, 1000)


def test_garbage_goes_without_being_asked(tmp_path: Path) -> None:
    directory = put(tmp_path, A, b"old", "1")
    put(tmp_path, A, b"new", "2")
    broken = put(tmp_path, B)
    (broken / "entry.json").write_text("{")
    (tmp_path / "v1/tmp/dead/build").mkdir(parents=True)
    half = directory / "0123456789abcdef"  # of a builder that died before its entry
    half.mkdir()
    done = collect(Cache(tmp_path))
    assert (done.superseded, done.layers, done.leftovers, len(done.evicted)) == (2, 1, 1, 1)
    assert here(tmp_path) == {"a"}
    assert len(list(directory.glob("*/"))) == 1
    assert (layers_here(tmp_path), list((tmp_path / "v1/tmp").glob("*/"))) == ({"2"}, [])
    again = collect(Cache(tmp_path))
    assert (again.superseded, again.layers, again.leftovers, again.evicted) == (0, 0, 0, ())


def test_a_dry_run_says_what_would_go_and_changes_nothing(tmp_path: Path) -> None:
    put(tmp_path, A, b"x" * 10, "1", used=1)
    put(tmp_path, A, b"x" * 20, "2", used=1)
    put(tmp_path, B, b"y" * 10, "2", used=2)

    def everything() -> list[tuple[str, int]]:
        return sorted((str(path), path.lstat().st_mtime_ns) for path in tmp_path.rglob("*"))

    before = everything()
    would = collect(Cache(tmp_path), max_size=110, dry_run=True)
    assert everything() == before
    did = collect(Cache(tmp_path), max_size=110)
    assert [each.spec_hash for each in would.evicted] == [each.spec_hash for each in did.evicted] == [A]
    assert (would.freed, would.left, would.superseded, would.layers) == (
        did.freed,
        did.left,
        did.superseded,
        did.layers,
    )
    assert did.freed == 10 + 20 + 100


def test_a_cache_that_is_not_there_is_empty(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "none")
    assert scan(cache) == []
    assert collect(cache, max_size=0).evicted == ()
    tidy(cache, 0)
    assert not (tmp_path / "none").exists()


def test_find(tmp_path: Path) -> None:
    put(tmp_path, A, b"one")
    put(tmp_path, B, b"two")
    entries = scan(Cache(tmp_path))
    (a,) = find(entries, "aaaa")
    assert a.tarball is not None
    assert find(entries, "AAAAA") == find(entries, a.tarball.name) == find(entries, str(a.tarball)) == [a]
    assert find(entries, a.identity[:8]) == [a]
    assert find(entries, "cccc") == find(entries, "a") == find(entries, "") == find(entries, "/nowhere") == []


# What is in use


def test_what_this_very_process_uses_stays(tmp_path: Path) -> None:
    entry = Cache(tmp_path).build_once(A, maker())
    os.utime(tmp_path / "v1/environments" / A / "used", (1, 1))
    done = collect(Cache(tmp_path), max_size=0)
    assert [each.spec_hash for each in done.in_use] == [A]
    assert entry.tarball.exists()
    assert scan(Cache(tmp_path))[0].in_use


@pytest.mark.parametrize("how", ["lookup", "hit", "build"])
def test_what_a_living_process_uses_stays_until_it_ends(how: str, tmp_path: Path) -> None:
    ready = Event()
    if how != "build":
        put(tmp_path, A, b"x", "1")

    def use() -> None:
        if how == "lookup":
            Cache(tmp_path).lookup(A)
        else:
            Cache(tmp_path).build_once(A, maker(b"x", "1") if how == "build" else never)
        ready.set()
        signal.pause()

    with children() as start:
        child = start(use)
        ready.wait()
        os.utime(tmp_path / "v1/environments" / A / "used", (1, 1))
        assert len(collect(Cache(tmp_path), max_size=0).in_use) == 1
        assert len(collect(Cache(tmp_path), max_size=0, dry_run=True).in_use) == 1
        assert remove(Cache(tmp_path), scan(Cache(tmp_path)))[0] == []
        assert here(tmp_path) == {"a"}
        assert how == "build" or layers_here(tmp_path) == {"1"}
        child.kill()
    assert len(collect(Cache(tmp_path), max_size=0).evicted) == 1
    assert here(tmp_path) == set()


def test_a_forked_child_uses_what_its_parent_uses(tmp_path: Path) -> None:
    ready = Event()

    def parent() -> None:
        Cache(tmp_path).build_once(A, maker())
        Child(lambda: (ready.set(), signal.pause()))
        os._exit(0)

    pid = os.fork()
    if pid == 0:
        os.setsid()
        parent()
    try:
        ready.wait()
        os.waitpid(pid, 0)
        assert len(collect(Cache(tmp_path), max_size=0).in_use) == 1
    finally:
        os.killpg(pid, signal.SIGKILL)


def test_a_superseded_generation_stays_with_who_has_it(tmp_path: Path) -> None:
    ready, held = Event(), tmp_path / "held"
    put(tmp_path / "c", A, b"old")

    def use() -> None:
        entry = Cache(tmp_path / "c").lookup(A)
        assert entry is not None
        held.write_text(str(entry.tarball))
        ready.set()
        signal.pause()

    with children() as start:
        child = start(use)
        ready.wait()
        put(tmp_path / "c", A, b"newer")
        assert collect(Cache(tmp_path / "c")).superseded == 0
        # Nor does the entry go as long as one of its generations is in use.
        assert len(collect(Cache(tmp_path / "c"), max_size=0).in_use) == 1
        assert Path(held.read_text()).read_bytes() == b"old"
        child.kill()
    assert collect(Cache(tmp_path / "c")).superseded == 1
    assert not Path(held.read_text()).exists()
    assert here(tmp_path / "c") == {"a"}


def test_nothing_that_is_being_built_goes_and_no_layer_under_the_builder(tmp_path: Path) -> None:
    inside, go_on = Event(), Event()
    put(tmp_path, B, b"y", "2")
    put(tmp_path, A, b"old", "1")

    def slow(work: Path) -> Packed:
        inside.set()
        go_on.wait()
        return maker(b"new", "2")(work)

    with children() as start:
        builder = start(lambda: Cache(tmp_path).build_once(A, slow, refresh=True))
        inside.wait()
        done = collect(Cache(tmp_path), max_size=0)
        assert [each.spec_hash for each in done.evicted] == [B]
        assert [each.spec_hash for each in done.in_use] == [A]
        assert len(list((tmp_path / "v1/tmp").glob("*/build"))) == 1, "the builder's own directory"
        assert layers_here(tmp_path) == {"1", "2"}, "it may just have found one"
        go_on.set()
        assert builder.wait() == 0
    assert collect(Cache(tmp_path)).layers == 1
    assert layers_here(tmp_path) == {"2"}
    assert here(tmp_path) == {"a"}


def test_a_builder_that_has_just_made_the_directory_of_its_entry_is_not_disturbed(tmp_path: Path) -> None:
    put(tmp_path, B)
    made, go_on = Event(), Event()

    def build() -> None:
        real = Path.rename

        def rename(path: Path, target: Path) -> Path:
            if target.parent.name == A:
                made.set()
                go_on.wait()
            return real(path, target)

        Path.rename = rename  # type: ignore[method-assign, assignment]
        Cache(tmp_path).build_once(A, maker(b"new"))

    with children() as start:
        builder = start(build)
        made.wait()
        collect(Cache(tmp_path), max_size=0)
        go_on.set()
        assert builder.wait() == 0
    assert here(tmp_path) == {"a"}


def test_what_could_not_be_removed_is_as_free_as_before(tmp_path: Path) -> None:
    first = put(tmp_path, A, b"old")
    (old,) = (path.name for path in first.glob("*/"))
    put(tmp_path, A, b"newer")
    (new,) = (path.name for path in first.glob("*/") if path.name != old)
    for used, other in ((old, new), (new, old)):
        ready = Event()
        with children() as start, inuse.Claims(tmp_path / "v1") as claims:
            start(lambda used=used, ready=ready: (inuse.keep(tmp_path / "v1", used), ready.set(), signal.pause()))
            ready.wait()
            remover = Remover(tmp_path / "v1", claims, 0, dry_run=False)
            assert not remover.remove_entry(scan(Cache(tmp_path))[0])
            elsewhere(lambda other=other: inuse.keep(tmp_path / "v1", other) or os._exit(3))
            elsewhere(lambda: Cache(tmp_path).build_once(A, never))


def test_used_between_listing_and_removing(tmp_path: Path) -> None:
    put(tmp_path, A)
    listed = scan(Cache(tmp_path))
    elsewhere(lambda: Cache(tmp_path).lookup(A))
    assert remove(Cache(tmp_path), listed) == ([], listed)
    assert here(tmp_path) == {"a"}


def test_who_looks_up_what_is_just_being_removed_builds_it_again(tmp_path: Path) -> None:
    put(tmp_path, A, b"old")
    (listed,) = scan(Cache(tmp_path))
    generation = str(listed.tarball).split("/")[-2]
    claimed, go_on = Event(), Event()

    def evict() -> None:
        real = os.rename

        def rename(*names: str) -> None:
            claimed.set()
            go_on.wait()
            real(*names)

        cache_admin.os.rename = rename  # type: ignore[assignment]
        assert remove(Cache(tmp_path), [listed])[0] == [listed]

    with children() as start:
        evictor = start(evict)
        claimed.wait()
        assert Cache(tmp_path).lookup(A) is None, "it is still there, but no longer to be had"
        assert (tmp_path / "v1/environments" / A / generation).is_dir()
        built = start(lambda: Cache(tmp_path).build_once(A, maker(b"new")))
        # A second collector is refused what the first has.
        assert collect(Cache(tmp_path), max_size=0).evicted == ()
        go_on.set()
        assert [evictor.wait(), built.wait()] == [0, 0]
    entry = Cache(tmp_path).lookup(A)
    assert entry is not None
    assert entry.tarball.read_bytes() == b"new"


def test_a_lookup_that_comes_between_the_pointer_and_the_lock_is_a_miss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, A)
    real = inuse.keep

    def keep(home: Path, generation: str) -> bool:
        elsewhere(lambda: collect(Cache(tmp_path), max_size=0))
        return real(home, generation)

    monkeypatch.setattr(inuse, "keep", keep)
    assert Cache(tmp_path).lookup(A) is None


def test_collectors_and_builders_all_at_once(tmp_path: Path) -> None:
    hashes = [f"{number:x}" * 64 for number in range(8)]

    def build() -> None:
        for spec_hash in hashes:
            entry = Cache(tmp_path).build_once(spec_hash, maker(spec_hash.encode(), spec_hash[0]))
            assert entry.tarball.read_bytes() == spec_hash.encode()
        for spec_hash in hashes:
            found = Cache(tmp_path).lookup(spec_hash)
            assert found is not None, "it was handed out to this process, which lives"
            assert found.tarball.read_bytes() == spec_hash.encode()

    def tidy_up() -> None:
        for _ in range(10):
            collect(Cache(tmp_path), max_size=0)

    with children() as start:
        everybody = [start(work) for work in (build, tidy_up, build, tidy_up, build)]
        assert [child.wait() for child in everybody] == [0] * 5
    collect(Cache(tmp_path), max_size=0)
    assert here(tmp_path) == set()
    assert list((tmp_path / "v1/tmp").glob("*/")) == []


def test_killed_at_every_step_of_a_removal(tmp_path: Path) -> None:
    def steps(root: Path, number: int) -> int:
        read, write = os.pipe()

        def work() -> None:
            counted = at_step(number, root, die)
            collect(Cache(root), max_size=0)
            os.write(write, str(counted()).encode())

        status = Child(work).wait()
        os.close(write)
        if number == 0:
            return int(os.read(read, 100))
        return status

    root = tmp_path / "0"
    put(root, A, b"x", "1")
    total = steps(root, 0)
    assert total > 5
    gone = 0
    for number in range(1, total + 1):
        root = tmp_path / str(number)
        put(root, A, b"x", "1")
        assert steps(root, number) == -signal.SIGKILL
        entry = Cache(root).lookup(A)
        gone += entry is None
        assert entry is None or entry.tarball.read_bytes() == b"x"
        if entry is None:
            collect(Cache(root), max_size=0)
            assert list((root / "v1/tmp").glob("*/")) == []
            assert layers_here(root) == set()
    assert 0 < gone < total


def test_without_locks_what_was_of_use_lately_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, A, b"x", "1", used=1)
    put(tmp_path, B, b"y", "2")
    os.utime(tmp_path / "v1/environments" / B / "used")

    def fails(*_: object) -> bytes:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "fcntl", fails)
    assert Cache(tmp_path).lookup(B) is not None, "using works as ever"
    collect(Cache(tmp_path), max_size=0)
    assert here(tmp_path) == {"b"}
    assert layers_here(tmp_path) == {"1", "2"}, "nobody can tell who packs"


def test_a_thousand_environments_need_one_open_file(tmp_path: Path) -> None:
    def work() -> None:
        home = tmp_path / "v1"
        home.mkdir()
        for number in range(1000):
            assert inuse.keep(home, f"{number:016x}")
        opened = []
        for fd in os.listdir("/proc/self/fd"):
            with contextlib.suppress(FileNotFoundError):  # that of the listing itself
                opened.append(os.readlink(f"/proc/self/fd/{fd}"))
        assert opened.count(str(home / "in-use")) == 1

    elsewhere(work)


def test_a_cache_that_was_removed_and_made_again_is_used_again(tmp_path: Path) -> None:
    home = tmp_path / "v1"
    home.mkdir()
    byte = inuse.generation_byte("a" * 16)
    assert inuse.keep(home, "a" * 16)
    (home / "in-use").unlink()
    assert inuse.keep(home, "a" * 16)
    with inuse.Claims(home) as claims:
        assert not claims.claim(byte)
        assert claims.claim(byte + 1)


def test_files_of_caches_that_are_gone_are_closed(tmp_path: Path) -> None:
    def work() -> None:
        before = len(os.listdir("/proc/self/fd"))
        for number in range(20):
            home = tmp_path / f"{number}"
            home.mkdir()
            assert inuse.keep(home, "a" * 16)
            (home / "in-use").unlink()
        assert len(os.listdir("/proc/self/fd")) <= before + 1

    elsewhere(work)


# After a build


def test_tidy_keeps_to_the_limit_and_never_takes_what_was_just_built(tmp_path: Path) -> None:
    put(tmp_path, A, b"x" * 100)
    Cache(tmp_path).build_once(B, maker(b"y" * 100))
    tidy(Cache(tmp_path), 150)
    assert here(tmp_path) == {"b"}
    tidy(Cache(tmp_path), 0)
    assert here(tmp_path) == {"b"}


def test_one_tidies_at_a_time(tmp_path: Path) -> None:
    put(tmp_path, A)
    with inuse.Claims(tmp_path / "v1") as claims:
        assert claims.claim(inuse.COLLECTOR)
        tidy(Cache(tmp_path), 0)
    assert here(tmp_path) == {"a"}
    tidy(Cache(tmp_path), 0)
    assert here(tmp_path) == set()


def test_what_cannot_be_tidied_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, A)

    def rename(*_: str) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(cache_admin.os, "rename", rename)
    tidy(Cache(tmp_path), 0)
    with pytest.raises(CacheError, match="could not be removed: broken"):
        collect(Cache(tmp_path), max_size=0)
    assert here(tmp_path) == {"a"}


# Failures


def failing(error: BaseException, log: list[str] | None = None) -> Callable[[Path], Packed]:
    def make(work: Path) -> Packed:
        if log is not None:
            log.append("tried")
        raise error

    return make


@pytest.mark.parametrize(
    "error",
    [
        SolveError("no such package", advice="look again", command=("uv", "pip"), log="…no…"),
        BuildError("it broke\nin two lines"),
        FetchError("gone", url="https://example.org/x"),
        PackError("odd file"),
    ],
)
def test_a_failure_is_remembered_as_it_was(error: BuildError, tmp_path: Path) -> None:
    tried: list[str] = []
    with pytest.raises(type(error)) as first:
        Cache(tmp_path).build_once(A, failing(error, tried))
    assert first.value is error
    with pytest.raises(type(error)) as second:
        Cache(tmp_path).build_once(A, failing(error, tried))
    assert tried == ["tried"]
    again = second.value
    assert type(again) is type(error)
    assert str(again).startswith(str(error))
    assert "this happened at 2" in str(again)
    assert "--retry" in str(again)
    assert (again.message, again.command, again.log) == (error.message, error.command, error.log)
    assert getattr(again, "url", None) == getattr(error, "url", None)
    assert str(pickle.loads(pickle.dumps(again))) == str(again)
    assert pickle.loads(pickle.dumps(again)).failed_at == again.__dict__["failed_at"]
    # Another hash, other circumstances: other builds.
    assert Cache(tmp_path).build_once(B, maker()).size == 9
    assert Cache(tmp_path).build_once(A, maker(), circumstances="online").size == 9
    assert list((tmp_path / "v1/failures").iterdir()) == [], "it was built after all"


def _full(number: int) -> BuildError:
    try:
        try:
            raise OSError(number, os.strerror(number))
        except OSError as error:
            raise PackError("could not write the tarball") from error
    except PackError as error:
        return error


@pytest.mark.parametrize(
    "error",
    [
        KeyboardInterrupt(),
        LockTimeout("held"),
        CacheError("full"),
        MemoryError(),
        _full(errno.ENOSPC),
        _full(errno.EDQUOT),
        BuildError("uv failed", log="error: failed to copy: No space left on device (os error 28)"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_may_go_well_the_next_time_is_not_remembered(error: BaseException, tmp_path: Path) -> None:
    with pytest.raises(type(error)):
        Cache(tmp_path).build_once(A, failing(error))
    assert not (tmp_path / "v1/failures").exists()
    assert Cache(tmp_path).build_once(A, maker()).size == 9


def test_a_full_disk_is_told_from_a_missing_file() -> None:
    assert not failures._is_of_the_moment(_full(errno.ENOENT))


def test_a_failure_is_forgotten_after_ten_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BuildError):
        Cache(tmp_path).build_once(A, failing(BuildError("x")))
    now = failures.time.time()
    monkeypatch.setattr(failures.time, "time", lambda: now + failures.REMEMBERED - 5)
    with pytest.raises(BuildError):
        Cache(tmp_path).build_once(A, never)
    monkeypatch.setattr(failures.time, "time", lambda: now + failures.REMEMBERED + 5)
    assert failures.Failures(tmp_path / "v1").recall(A, "") is None
    collect(Cache(tmp_path))
    assert list((tmp_path / "v1/failures").iterdir()) == []
    assert Cache(tmp_path).build_once(A, maker()).size == 9


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"kind": "OSError"}', "\0"])
def test_a_damaged_memory_is_none(text: str, tmp_path: Path) -> None:
    put(tmp_path, B)
    with pytest.raises(BuildError):
        Cache(tmp_path).build_once(A, failing(BuildError("x")))
    (tmp_path / f"v1/failures/{A}.json").write_text(text)
    assert Cache(tmp_path).build_once(A, maker()).size == 9


@pytest.mark.parametrize("name", ["UnresolvedImport", "CacheError", "json"])
def test_a_memory_that_names_another_class_is_not_believed(name: str, tmp_path: Path) -> None:
    with pytest.raises(BuildError):
        Cache(tmp_path).build_once(A, failing(BuildError("x")))
    path = tmp_path / f"v1/failures/{A}.json"
    path.write_text(path.read_text().replace("BuildError", name))
    assert Cache(tmp_path).build_once(A, maker()).size == 9


@pytest.mark.parametrize("retry", [False, True])
def test_those_who_wait_for_a_build_that_fails_get_its_error(retry: bool, tmp_path: Path) -> None:
    inside, go_on = Event(), Event()
    if retry:  # what failed before they asked is no answer to them
        with pytest.raises(BuildError, match="earlier"):
            Cache(tmp_path).build_once(A, failing(BuildError("earlier")))

    def fails(work: Path) -> Packed:
        inside.set()
        go_on.wait()
        raise SolveError("no")

    def first() -> None:
        with pytest.raises(SolveError):
            Cache(tmp_path).build_once(A, fails, retry=retry)

    with children() as start:
        a = start(first)
        inside.wait()
        with pytest.raises(SolveError, match=r"no\nthis happened"):
            Cache(tmp_path).build_once(A, never, retry=retry, on_wait=go_on.set)
        assert a.wait() == 0
    assert Cache(tmp_path).build_once(A, maker(), retry=True).size == 9


# Reading everything again


def real(root: Path, spec_hash: str, work: Path) -> Entry:
    """An environment in layers, really packed."""
    made = work / f"prefix-{spec_hash[0]}"
    prefix = prefixes.make_prefix(made)

    def make(directory: Path) -> Packed:
        return pack(
            prefix, spec=prefixes.NOTHING, lock=prefixes.NOTHING, store=Cache(root).layers,
            output=directory / "env.tar.gz", runtime=prefixes.RUNTIME,
        )  # fmt: skip

    elsewhere(lambda: Cache(root).build_once(spec_hash, make))
    found = [each for each in scan(Cache(root)) if each.spec_hash == spec_hash]
    assert found[0].tarball is not None
    return Entry(
        spec_hash=spec_hash, tarball=found[0].tarball, identity=found[0].identity, size=found[0].size, python=None,
        glibc=None, platform="linux-64",
    )  # fmt: skip


def test_verify_finds_a_flipped_bit_anywhere(tmp_path: Path) -> None:
    root = tmp_path / "c"
    entry = real(root, A, tmp_path)
    cache = Cache(root)
    assert verify(cache, scan(cache)) == []
    content = entry.tarball.read_bytes()
    step = max(1, len(content) // 60)
    for at in [*range(0, len(content), step), len(content) - 1]:
        damaged = bytearray(content)
        damaged[at] ^= 0x10
        entry.tarball.write_bytes(damaged)
        (found,) = verify(cache, scan(cache))
        assert (found.kind, found.path) == ("tarball", entry.tarball), at
    entry.tarball.write_bytes(content)
    assert verify(cache, scan(cache)) == []


def test_verify_and_mend_layers_and_downloads(tmp_path: Path) -> None:
    root = tmp_path / "c"
    real(root, A, tmp_path)
    one, two, *_ = sorted((root / "v1/layers").iterdir())
    one.write_bytes(one.read_bytes()[:-9])
    intact = two.read_bytes()
    two.write_bytes(intact + b"x")
    other = root / f"v1/layers/{'f' * 64}.gz"
    other.write_bytes(intact)
    store = root / "data/http"
    store.mkdir(parents=True)
    (store / ("0" * 64)).write_text("not that")
    cache = Cache(root)
    found = verify(cache, scan(cache))
    assert {(each.kind, each.path) for each in found} == {
        ("layer", one), ("layer", two), ("layer", other), ("download", store / ("0" * 64)),
    }  # fmt: skip
    assert mend(cache, found) == []
    assert verify(cache, scan(cache)) == []
    assert here(root) == {"a"}, "its tarball has a copy of its own"


def test_mend_withdraws_a_damaged_environment_that_is_in_use(tmp_path: Path) -> None:
    root = tmp_path / "c"
    entry = real(root, A, tmp_path)
    other = real(root, B, tmp_path)
    for each in (entry, other):
        content = bytearray(each.tarball.read_bytes())
        content[-20] ^= 1
        each.tarball.write_bytes(content)
    cache = Cache(root)
    assert cache.lookup(A) is not None
    found = verify(cache, scan(cache))
    assert [each.entry.spec_hash[0] for each in mend(cache, found) if each.entry] == ["a"]
    assert entry.tarball.exists(), "somebody has its path"
    assert not other.tarball.exists()
    assert cache.lookup(A) is None, "but nobody else gets it"


def test_what_the_cache_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("UV_CACHE_DIR", "RATTLER_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    put(tmp_path, A, b"x" * 10_000, "1")
    (tmp_path / "uv/wheels").mkdir(parents=True)
    (tmp_path / "uv/wheels/one").write_bytes(b"x" * 5000)
    os.link(tmp_path / "uv/wheels/one", tmp_path / "uv/wheels/two")
    (tmp_path / "data/git/repository").mkdir(parents=True)
    found = {area.name: area for area in areas(Cache(tmp_path))}
    assert {"environments", "layers", "uv", "git", "locks"} <= set(found)
    assert "http" not in found
    assert (found["uv"].files, found["git"].files) == (3, 2)
    assert found["environments"].size >= 10_000
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv/wheels"))
    assert {area.name: area.files for area in areas(Cache(tmp_path))}["uv"] == 2


@pytest.mark.parametrize("rm", ["rm", "none", "does not start", "does nothing"])
def test_many_are_removed_from_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rm: str) -> None:
    for spec_hash in (A, B, C, D):
        put(tmp_path, spec_hash)
    monkeypatch.setattr(removing, "_MANY", 2)
    if rm != "rm":
        found = {"none": None, "does not start": "/nowhere/rm", "does nothing": shutil.which("false")}[rm]
        monkeypatch.setattr(shutil, "which", lambda name: found)
    assert len(collect(Cache(tmp_path), max_size=0).evicted) == 4
    assert here(tmp_path) == set()
    left = {path.name for path in (tmp_path / "v1/tmp").iterdir()} - {".lock"}
    if rm == "does nothing":
        assert len(left) >= 2, "rm was not asked"
        assert all(name.startswith("dead-") for name in left)
        assert collect(Cache(tmp_path)).leftovers == len(left)
        left = {path.name for path in (tmp_path / "v1/tmp").iterdir()} - {".lock"}
    assert left == set()


def test_what_rm_is_given_is_its_own_and_the_rest_is_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(removing, "_MANY", 2)
    directories = [tmp_path / f"v1/tmp/dead-{number}" for number in range(9)]
    for directory in directories:
        (directory / "deep/er").mkdir(parents=True)
    with inuse.Claims(tmp_path / "v1") as claims, Remover(tmp_path / "v1", claims, 0, dry_run=False) as remover:
        remover._doomed += [(str(directory), "") for directory in directories]
        remover._share()
        assert len(remover._doomed) == 6
    assert list((tmp_path / "v1/tmp").iterdir()) == []


def test_an_entry_that_holds_more_or_less_than_it_should_goes_too(tmp_path: Path) -> None:
    more, less, odd, linked = (put(tmp_path / "c", spec_hash) for spec_hash in (A, B, C, D))
    (more / "note").write_text("x")
    (next(more.glob("*/*.tar.gz")).parent / "deep/er").mkdir(parents=True)
    (less / "used").unlink()
    facts = json.loads((odd / "entry.json").read_text())
    (odd / "entry.json").write_text(json.dumps({**facts, "tarball": f"./{facts['tarball']}"}))
    generation = next(linked.glob("*/*.tar.gz")).parent
    generation.rename(tmp_path / "elsewhere")
    generation.symlink_to(tmp_path / "elsewhere")
    assert all(each.path is not None for each in scan(Cache(tmp_path / "c")))
    assert len(collect(Cache(tmp_path / "c"), max_size=0).evicted) == 4
    assert list((tmp_path / "c/v1/environments").iterdir()) == []
    assert list((tmp_path / "c/v1/tmp").glob("*/")) == []
    assert [path.name for path in (tmp_path / "elsewhere").glob("*.tar.gz")], "what a link leads to is not ours"


def test_a_file_system_that_does_not_count_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, A, b"old")
    put(tmp_path, A, b"newer")
    put(tmp_path, B)
    before = scan(Cache(tmp_path))
    assert sorted(len(each.superseded) for each in before) == [0, 1]
    monkeypatch.setattr(listing, "_is_alone", lambda path, generation: False)
    assert scan(Cache(tmp_path)) == before


@pytest.mark.parametrize("layers", [[1], [["x"]], [{}], {"x": 1}, "x", None, [""], ["x", None]])
def test_layers_that_are_none(layers: object, tmp_path: Path) -> None:
    directory = put(tmp_path, A, b"x", "1")
    facts = json.loads((directory / "entry.json").read_text())
    (directory / "entry.json").write_text(json.dumps({**facts, "layers": layers}))
    assert scan(Cache(tmp_path))[0].path is not None
    assert collect(Cache(tmp_path)).layers == 1
    assert here(tmp_path) == {"a"}


@pytest.mark.parametrize("size", [65535, 65536, 65537, 131072, 200_000])
def test_an_entry_with_much_to_say(size: int, tmp_path: Path) -> None:
    directory = put(tmp_path, A)
    facts = (directory / "entry.json").read_text()
    (directory / "entry.json").write_text(" " * (size - len(facts)) + facts)
    assert scan(Cache(tmp_path))[0].path is not None


def test_all_claims_end_at_once_and_nobody_elses(tmp_path: Path) -> None:
    (tmp_path / "v1").mkdir()
    with inuse.Claims(tmp_path / "v1") as mine, inuse.Claims(tmp_path / "v1") as other:
        ours = [0, 5, inuse.hash_byte(A), inuse.LAYERS, inuse.COLLECTOR]
        assert all(mine.claim(byte) for byte in ours)
        assert other.claim(6)
        assert not any(other.claim(byte) for byte in ours)
        mine.let_go_of_all()
        assert all(other.claim(byte) for byte in ours)
        mine.let_go_of_all()
        assert not any(mine.claim(byte) for byte in (*ours, 6))


NAMES = st.lists(st.sampled_from([digit * 64 for digit in "01234"]), max_size=4)
ENTRIES = st.lists(
    st.tuples(NAMES, NAMES, st.sampled_from(COMPRESSIONS), st.integers(0, 3), st.booleans(), st.booleans()), max_size=6
)


@given(entries=ENTRIES, there=st.sets(st.tuples(st.sampled_from("01234"), st.sampled_from(sorted(LAYER_SUFFIXES)))))
def test_the_books_agree_with_counting_again(
    entries: list[tuple[list[str], list[str], Compression, int, bool, bool]], there: set[tuple[str, str]]
) -> None:
    """Whatever goes or stays: what is left is what the files of the others come to."""
    sizes = {digit * 64 + ending: 100 + int(digit) for digit, ending in there}
    made = [
        Listed(
            spec_hash=str(position), path="tarball" if whole else None, identity="", size=10 ** inode, used=0.0,
            python=None, platform="", layers=tuple(layers), inode=(0, inode), superseded=(), superseded_size=0,
            in_use=False, compression=form, superseded_layers=tuple(name + ".zst" for name in old),
        )
        for position, (layers, old, form, inode, whole, _) in enumerate(entries)
    ]  # fmt: skip

    def layers_of(left: list[Listed]) -> set[str]:
        return {
            name
            for each in left
            for name in (
                *(digest + form_of(each.compression).layer_suffix for digest in each.layers),
                *each.superseded_layers,
            )
        }

    def total(left: list[Listed]) -> int:
        tarballs = {each.inode: each.size for each in left if each.path is not None}
        return sum(tarballs.values()) + sum(sizes.get(name, 0) for name in layers_of(left))

    books, left = Books(made, sizes), list(made)
    assert books.total == total(left)
    for position, (entry, (*_, goes)) in enumerate(zip(made, entries, strict=True)):
        if goes:
            before = {each.inode for each in left if each.path is not None}
            left.remove(entry)
            gone = before - {each.inode for each in left if each.path is not None}
            assert books.without(position, entry) == (entry.size if gone else 0)
        else:
            books.keep(entry)
        assert books.total == total(left)
    assert set(books.unnamed()) == set(sizes) - layers_of(left)


@pytest.mark.parametrize(
    ("entry", "generation"),
    [
        (None, None),
        ({}, None),
        ({"tarball": None}, None),
        ({"tarball": 3}, None),
        ({"tarball": "None/x.tar.gz"}, None),
        ({"tarball": f"{'0a' * 8}/x.tar.gz"}, "0a" * 8),
    ],
)
def test_the_current_generation_is_none_where_no_entry_names_one(
    tmp_path: Path, entry: object, generation: str | None
) -> None:
    if entry is not None:
        (tmp_path / "entry.json").write_text(json.dumps(entry))
    assert listing.current_generation(str(tmp_path)) == generation
