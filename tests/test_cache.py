"""The cache: one build per hash, nothing half-made is ever used, and whoever dies leaves only what others clean up."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import pickle
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from poncho_wq import scratch
from poncho_wq.cache import Cache, Entry, default_root
from poncho_wq.errors import BuildError, CacheError, LockTimeout
from poncho_wq.pack import Packed
from poncho_wq.prepare import environment, lock_environment
from tests.processes import Child, Event, at_step, children, die, fail

HASH = "ab" * 32
OTHER = "cd" * 32


def maker(content: bytes = b"a tarball", *, log: Path | None = None) -> Callable[[Path], Packed]:
    """What `build_once` calls: writes `content`, and a line to `log` for each build."""

    def make(work: Path) -> Packed:
        assert list(work.iterdir()) == []
        (work / "prefix/lib").mkdir(parents=True)
        (work / "prefix/lib/x").write_bytes(b"x")
        (work / "env.tar.gz").write_bytes(content)
        if log is not None:
            with log.open("a") as stream:
                stream.write(f"{os.getpid()}\n")
        return packed(work / "env.tar.gz", content)

    return make


def packed(path: Path, content: bytes) -> Packed:
    identity = content.hex().ljust(64, "0")[:64]
    return Packed(
        path=path,
        identity=identity,
        size=len(content),
        python="3.11.7",
        glibc=None,
        platform="linux-64",
        layers=(),
    )


def never(work: Path) -> Packed:
    raise AssertionError("built again")


def builds(log: Path) -> int:
    return len(log.read_text().splitlines()) if log.exists() else 0


def leftovers(root: Path) -> list[str]:
    """All that lies in the cache besides locks, entries and the tarballs that entries name."""
    home = root / "v1"
    right = {home / "tmp/.lock"}
    for entry in home.glob("environments/*/entry.json"):
        facts = json.loads(entry.read_text())
        right |= {entry, entry.parent / "used"}
        right |= {path for name in facts["generations"] for path in (entry.parent / name).iterdir()}
    right |= {*home.glob("locks/*.lock"), *home.glob("failures/*.json"), home / "in-use"}
    return [str(path) for path in home.rglob("*") if path.is_file() and path not in right] + [
        str(path) for path in (home / "tmp").glob("*/")
    ]


# One process


def test_miss_then_hit_are_the_same_path(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    assert cache.lookup(HASH) is None
    assert not (tmp_path / "cache").exists(), "looking must not make anything"
    built = cache.build_once(HASH, maker(b"content"))
    assert built == Entry(
        spec_hash=HASH,
        tarball=built.tarball,
        identity=built.identity,
        size=7,
        python="3.11.7",
        glibc=None,
        platform="linux-64",
    )
    assert built.tarball.name == f"poncho-env-{built.identity[:16]}.tar.gz"
    assert built.tarball.read_bytes() == b"content"
    assert cache.lookup(HASH) == built == Cache(tmp_path / "cache").build_once(HASH, never)
    assert cache.lookup(OTHER) is None
    assert leftovers(tmp_path / "cache") == []
    for directory in [cache.root, *cache.root.glob("**/")]:
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700, directory


def test_private_under_any_umask(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        Cache(tmp_path / "deep" / "cache").build_once(HASH, maker())
    finally:
        os.umask(old)
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o700 for path in (tmp_path / "deep/cache").glob("v1/**/"))


def test_a_hit_reads_nothing_of_the_tarball_and_waits_for_nobody(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    entry = cache.build_once(HASH, maker())

    def hit() -> None:
        opened: list[str] = []

        def note(event: str, args: tuple[object, ...]) -> None:
            if event in ("open", "fcntl.flock") or (event == "fcntl.fcntl" and args[1] == fcntl.F_OFD_SETLKW):
                opened.append(f"{event} {args[0]}")

        sys.addaudithook(note)
        assert Cache(tmp_path).lookup(HASH) == entry
        assert Cache(tmp_path).build_once(HASH, never) == entry
        below = [line for line in opened if str(tmp_path) in line or "fcntl" in line]
        assert {Path(line.split(" ", 1)[1]).name for line in below} <= {"entry.json", "used"}, below

    assert Child(hit).wait() == 0


def test_a_hit_is_remembered_for_eviction(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    entry = cache.build_once(HASH, maker())
    used = entry.tarball.parent.parent / "used"
    os.utime(used, (1, 1))
    cache.lookup(HASH)
    assert used.stat().st_mtime > 1


def test_refresh_builds_again_and_leaves_the_old_file_to_those_who_use_it(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    old = cache.build_once(HASH, maker(b"old"))
    new = cache.build_once(HASH, maker(b"newer"), refresh=True)
    assert new.tarball != old.tarball
    assert (old.tarball.read_bytes(), new.tarball.read_bytes()) == (b"old", b"newer")
    assert cache.lookup(HASH) == new
    assert leftovers(tmp_path) == []


def test_a_refresh_that_finds_nothing_new_keeps_the_path(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    log = tmp_path / "log"
    old = cache.build_once(HASH, maker(log=log))
    assert cache.build_once(HASH, maker(log=log), refresh=True) == old
    assert builds(log) == 2
    # The same identity in other bytes is a damaged file, or another compressor's: refresh mends that.
    old.tarball.write_bytes(b"a tarbalk")
    new = cache.build_once(HASH, maker(log=log), refresh=True)
    assert new.tarball != old.tarball
    assert new.tarball.read_bytes() == b"a tarball"


def test_a_failed_build_caches_nothing(tmp_path: Path) -> None:
    cache = Cache(tmp_path)

    def fails(work: Path) -> Packed:
        (work / "half").write_text("x")
        raise BuildError("no such package")

    with pytest.raises(BuildError, match="no such package"):
        cache.build_once(HASH, fails)
    assert cache.lookup(HASH) is None
    assert leftovers(tmp_path) == []
    with pytest.raises(KeyboardInterrupt):
        cache.build_once(HASH, lambda work: (_ for _ in ()).throw(KeyboardInterrupt()), retry=True)
    assert leftovers(tmp_path) == []
    assert cache.build_once(HASH, maker(), retry=True).tarball.exists()


def test_a_tarball_that_is_not_as_announced_is_not_cached(tmp_path: Path) -> None:
    def lies(work: Path) -> Packed:
        (work / "x").write_bytes(b"short")
        return packed(work / "x", b"much longer")

    with pytest.raises(CacheError, match="is 5 bytes long and was said to be 11"):
        Cache(tmp_path).build_once(HASH, lies)
    with pytest.raises(CacheError, match="could not keep the tarball: No such file"):
        Cache(tmp_path).build_once(HASH, lambda work: packed(work / "x", b"nothing"))
    assert Cache(tmp_path).lookup(HASH) is None
    assert leftovers(tmp_path) == []


# Damage


@pytest.mark.parametrize(
    "damage",
    [
        lambda tarball: tarball.write_bytes(b"a tar"),
        lambda tarball: tarball.write_bytes(b"a tarball and more"),
        lambda tarball: tarball.write_bytes(b""),
        lambda tarball: tarball.unlink(),
        lambda tarball: shutil.rmtree(tarball.parent),
        lambda tarball: (tarball.unlink(), tarball.mkdir()),
        lambda tarball: (tarball.unlink(), tarball.symlink_to("/etc/passwd")),
        lambda tarball: (tarball.parent.parent / "entry.json").unlink(),
        lambda tarball: (tarball.parent.parent / "entry.json").write_bytes(b""),
        lambda tarball: (tarball.parent.parent / "entry.json").write_bytes(b'{"size": 9}'),
        lambda tarball: (tarball.parent.parent / "entry.json").write_bytes(b"[1]"),
        lambda tarball: (tarball.parent.parent / "entry.json").write_bytes(b"\xff\0"),
        lambda tarball: shutil.rmtree(tarball.parent.parent),
    ],
)
def test_what_is_damaged_is_built_again_and_never_served(damage: Callable[[Path], object], tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    old = cache.build_once(HASH, maker())
    damage(old.tarball)
    assert cache.lookup(HASH) is None
    new = cache.build_once(HASH, maker())
    assert new.tarball != old.tarball, "a path that was handed out must never hold other bytes"
    assert new.tarball.read_bytes() == b"a tarball"
    assert cache.lookup(HASH) == new
    assert leftovers(tmp_path) == []
    assert len(list(new.tarball.parent.parent.glob("*/"))) == 1, "the damaged one is of no use to anybody"


def test_an_entry_that_was_copied_from_another_hash_is_not_served(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    entry = cache.build_once(HASH, maker())
    home = entry.tarball.parent.parent
    shutil.copytree(home, home.with_name(OTHER))
    assert cache.lookup(OTHER) is None


def test_only_a_hash_is_a_name(tmp_path: Path) -> None:
    for name in ("", "..", "../" * 20 + "x", HASH.upper(), HASH + "\n", "a" * 63):
        with pytest.raises(ValueError, match="not the hash"):
            Cache(tmp_path).lookup(name)


# The story: A, B, C and D


def test_b_waits_for_a_and_is_served(tmp_path: Path) -> None:
    inside, go_on = Event(), Event()
    log = tmp_path / "log"

    def slow(work: Path) -> Packed:
        inside.set()
        go_on.wait()
        return maker(log=log)(work)

    with children() as start:
        a = start(lambda: Cache(tmp_path / "c").build_once(HASH, slow))
        inside.wait()
        # C, who asks for something else, is not held up.
        other = Cache(tmp_path / "c").build_once(OTHER, maker(b"other", log=log), on_wait=lambda: pytest.fail("waited"))
        # B waits from when it has said so until A is done.
        waits: list[str] = []

        def waiting() -> None:
            waits.append("once")
            assert Cache(tmp_path / "c").lookup(HASH) is None
            go_on.set()

        b = Cache(tmp_path / "c").build_once(HASH, never, on_wait=waiting)
        assert a.wait() == 0
    assert waits == ["once"]
    assert builds(log) == 2
    assert Cache(tmp_path / "c").lookup(HASH) == b
    assert Cache(tmp_path / "c").lookup(OTHER) == other
    assert leftovers(tmp_path / "c") == []


def test_b_builds_when_a_is_killed(tmp_path: Path) -> None:
    inside = Event()

    def hangs(work: Path) -> Packed:
        (work / "half").write_bytes(b"x" * 100_000)
        inside.set()
        signal.pause()
        raise AssertionError

    with children() as start:
        a = start(lambda: Cache(tmp_path).build_once(HASH, hangs))
        inside.wait()
        assert leftovers(tmp_path) != []
        killed: list[int] = []
        b = Cache(tmp_path).build_once(HASH, maker(), on_wait=lambda: killed.append(a.kill()))
    assert killed == [-signal.SIGKILL]
    assert b.tarball.read_bytes() == b"a tarball"
    assert leftovers(tmp_path) == []


def test_b_gives_up_on_a_stopped_a_when_told_to(tmp_path: Path) -> None:
    inside = Event()

    def stops(work: Path) -> Packed:
        inside.set()
        os.kill(os.getpid(), signal.SIGSTOP)
        return maker()(work)

    with children() as start:
        a = start(lambda: Cache(tmp_path).build_once(HASH, stops))
        inside.wait()
        os.waitpid(a.pid, os.WUNTRACED)
        with pytest.raises(LockTimeout) as caught:
            Cache(tmp_path).build_once(HASH, never, timeout=0.1)
        assert "more than 0.1 seconds" in str(caught.value)
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
        os.kill(a.pid, signal.SIGCONT)
        assert a.wait() == 0
    assert Cache(tmp_path).build_once(HASH, never).size == 9


@pytest.mark.parametrize("threads", [False, True], ids=["processes", "threads"])
def test_sixteen_at_once_build_once(threads: bool, tmp_path: Path) -> None:
    waiting = Event()
    log = tmp_path / "log"
    paths = tmp_path / "paths"

    def contended(work: Path) -> Packed:
        waiting.wait(15)  # all the others have met the lock
        return maker(log=log)(work)

    def ask() -> None:
        entry = Cache(tmp_path / "c").build_once(HASH, contended, on_wait=waiting.set)
        with paths.open("a") as stream:
            stream.write(f"{entry.tarball} {entry.tarball.read_bytes().decode()}\n")

    if threads:
        workers = [threading.Thread(target=ask) for _ in range(16)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    else:
        with children() as start:
            assert [child.wait() for child in [start(ask) for _ in range(16)]] == [0] * 16
    assert builds(log) == 1
    lines = paths.read_text().splitlines()
    assert len(lines) == 16
    assert len(set(lines)) == 1
    assert leftovers(tmp_path / "c") == []


def test_those_who_refresh_together_build_once(tmp_path: Path) -> None:
    waiting = Event()
    log = tmp_path / "log"
    old = Cache(tmp_path / "c").build_once(HASH, maker(b"old"))

    def contended(work: Path) -> Packed:
        waiting.wait(3)
        return maker(b"new", log=log)(work)

    def ask() -> None:
        entry = Cache(tmp_path / "c").build_once(HASH, contended, refresh=True, on_wait=waiting.set)
        assert entry.tarball.read_bytes() == b"new"

    with children() as start:
        assert [child.wait() for child in [start(ask) for _ in range(4)]] == [0] * 4
    assert builds(log) == 1
    assert old.tarball.read_bytes() == b"old"


# Killed at every step


def steps_of(work: Callable[[], object], below: Path) -> int:
    """How many steps on the file system `work` takes, counted in a child."""
    read, write = os.pipe()

    def count() -> None:
        counted = at_step(0, below, die)
        work()
        os.write(write, str(counted()).encode())

    assert Child(count).wait() == 0
    return int(os.read(read, 100))


def after_a_death(root: Path) -> None:
    """What somebody's death must have left in order, and what the next builder must have cleaned up."""
    entry = Cache(root).lookup(HASH)
    if entry is not None:
        assert entry.tarball.read_bytes() in (b"old", b"new")
    new = Cache(root).build_once(HASH, maker(b"after"), refresh=True)
    assert new.tarball.read_bytes() == b"after"
    assert leftovers(root) == []
    # Nobody's tarball but those that an entry has named.
    assert {path.read_bytes() for path in root.rglob("poncho-env-*")} <= {b"old", b"new", b"after"}


@pytest.fixture
def _unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill loses nothing that a process has written, and hundreds of syncs take a while."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.mark.usefixtures("_unsynced")
@pytest.mark.parametrize("refresh", [False, True], ids=["first build", "refresh"])
def test_killed_at_every_step(refresh: bool, tmp_path: Path) -> None:
    def root_with_history(name: str) -> Path:
        root = tmp_path / name
        if refresh:
            Cache(root).build_once(HASH, maker(b"old"))
        # What somebody left who died before: the sweep that removes it can be killed as well.
        (root / "v1/tmp/dead0/build").mkdir(parents=True)
        (root / "v1/tmp/dead0/build/x").write_text("x")
        return root

    def build(root: Path) -> Entry:
        return Cache(root).build_once(HASH, maker(b"new"), refresh=refresh)

    counting = root_with_history("count")
    total = steps_of(lambda: build(counting), counting)
    assert total > 25
    survived = 0
    for step in range(1, total + 1):
        root = root_with_history(str(step))

        def work(root: Path = root, step: int = step) -> None:
            at_step(step, root, die)
            build(root)

        assert Child(work).wait() == -signal.SIGKILL
        entry = Cache(root).lookup(HASH)
        if entry is None:
            assert not refresh, "the old entry must be served until the new one is"
        else:
            survived += entry.tarball.read_bytes() == b"new"
        after_a_death(root)
        shutil.rmtree(root)
    assert survived > 0, "the last steps come after the entry is there"


@pytest.mark.usefixtures("_unsynced")
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES, errno.ENOLCK, errno.EDQUOT])
def test_an_error_at_every_step_is_a_cache_error_and_leaves_nothing(number: int, tmp_path: Path) -> None:
    def build(root: Path) -> Entry:
        return Cache(root).build_once(HASH, maker(b"new"))

    total = steps_of(lambda: build(tmp_path / "count"), tmp_path / "count")
    for step in range(1, total + 1):
        root = tmp_path / f"{step}"

        def work(root: Path = root, step: int = step) -> None:
            inside_make = False

            def injected() -> None:
                nonlocal inside_make
                frame = sys._getframe()
                while frame is not None:
                    inside_make |= frame.f_code.co_name == "make"
                    frame = frame.f_back  # type: ignore[assignment]
                fail(number)()

            at_step(step, root, injected)
            problem: Exception | None = None
            try:
                assert build(root).tarball.read_bytes() == b"new"
            except (CacheError, OSError) as error:
                problem = error
            if isinstance(problem, CacheError):
                assert os.strerror(number) in str(problem)
                assert "PONCHO_CACHE_DIR" in str(problem.advice)
            elif problem is not None:
                assert inside_make, f"only errors of the builder's own are its own to explain: {problem!r}"

        assert Child(work).wait() == 0, f"step {step} of {total}"
        served = Cache(root).lookup(HASH)
        assert served is None or served.tarball.read_bytes() == b"new"
        assert Cache(root).build_once(HASH, maker(b"new")).tarball.read_bytes() == b"new"
        shutil.rmtree(root)


# Working directories


def test_the_living_keep_their_directories_and_the_dead_lose_them(tmp_path: Path) -> None:
    ready = Event()

    def hold() -> None:
        with scratch.work_directory(tmp_path) as directory:
            (directory / "work").mkdir()
            ready.set()
            signal.pause()

    with children() as start:
        child = start(hold)
        ready.wait()
        (living,) = tmp_path.glob("*/")
        scratch.sweep(tmp_path)
        assert (living / "work").is_dir()
        child.kill()
        scratch.sweep(tmp_path)
        assert list(tmp_path.glob("*/")) == []


def test_directories_of_one_process_do_not_meet(tmp_path: Path) -> None:
    with scratch.work_directory(tmp_path) as one, scratch.work_directory(tmp_path) as two:
        assert one != two
        scratch.sweep(tmp_path)
        assert one.is_dir()
        assert two.is_dir()
    assert list(tmp_path.glob("*/")) == []


def test_what_cannot_be_removed_is_left_for_the_next_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dead/x").mkdir(parents=True)
    with monkeypatch.context() as patch:
        patch.setattr(shutil.os, "rmdir", lambda *args, **more: fail(errno.EBUSY)())
        scratch.sweep(tmp_path)
    scratch.sweep(tmp_path)
    assert list(tmp_path.glob("*/")) == []


# Places that do not do


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL])
def test_a_file_system_without_locks_is_refused(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda *args: fail(number)())
    with pytest.raises(CacheError) as caught:
        Cache(tmp_path).build_once(HASH, never)
    assert "cannot lock files" in str(caught.value)
    assert "local disk" in str(caught.value)
    assert "PONCHO_CACHE_DIR" in str(caught.value)


def test_a_root_that_is_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert Cache(tmp_path / "file").lookup(HASH) is None
    with pytest.raises(CacheError, match="file: could not make the directory: File exists"):
        Cache(tmp_path / "file").build_once(HASH, never)


def test_a_cache_that_everybody_can_write_to_is_refused(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.build_once(HASH, maker())
    (tmp_path / "v1").chmod(0o777)
    with pytest.raises(CacheError, match=r"everybody can write to it(?s:.)*chmod o-w"):
        cache.lookup(HASH)
    with pytest.raises(CacheError, match="everybody can write to it"):
        cache.build_once(HASH, never)
    (tmp_path / "v1").chmod(0o755)
    tmp_path.chmod(0o777)  # then anybody could put another v1 there, and what lies beside it
    with pytest.raises(CacheError, match="everybody can write to it"):
        cache.lookup(HASH)
    with pytest.raises(CacheError, match="everybody can write to it"):
        environment({"pip": []}, cache_dir=tmp_path)
    with pytest.raises(CacheError, match="everybody can write to it"):
        lock_environment({"pip": []}, cache_dir=tmp_path)


def as_user(uid: int, work: Callable[[], object]) -> int:
    def change() -> None:
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)
        work()

    return Child(change).wait()


@pytest.fixture
def open_directory() -> object:
    """A directory that other users reach, which pytest's own are not."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as other users")
def test_somebody_elses_cache_is_refused_and_roots_is_served_read_only(open_directory: Path) -> None:
    entry = Cache(open_directory / "roots").build_once(HASH, maker())
    subprocess.run(["chmod", "-R", "go+rX", open_directory / "roots"], check=True)
    Cache(open_directory / "theirs").build_once(HASH, maker())
    subprocess.run(["chmod", "-R", "go+rX", open_directory / "theirs"], check=True)
    subprocess.run(["chown", "-R", "12345", open_directory / "theirs"], check=True)

    def other() -> None:
        assert Cache(open_directory / "roots").lookup(HASH) == entry
        assert Cache(open_directory / "roots").build_once(HASH, never) == entry
        with pytest.raises(CacheError, match=r"could not make .*Permission denied(?s:.)*PONCHO_CACHE_DIR"):
            Cache(open_directory / "roots").build_once(OTHER, never)
        for ask in (lambda cache: cache.lookup(HASH), lambda cache: cache.build_once(HASH, never)):
            with pytest.raises(CacheError, match="belongs to user 12345, and you are 54321"):
                ask(Cache(open_directory / "theirs"))

    assert as_user(54321, other) == 0
    assert Cache(open_directory / "theirs").lookup(HASH) is not None, "root may use what a container mounts"


# The default


def test_default_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PONCHO_CACHE_DIR", str(tmp_path / "here"))
    assert default_root() == tmp_path / "here"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PONCHO_CACHE_DIR", "~/there")
    assert default_root() == tmp_path / "there"
    monkeypatch.setenv("PONCHO_CACHE_DIR", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_root() == tmp_path / "xdg/poncho_wq"
