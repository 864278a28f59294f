"""The cache: a specification's hash → the tarball that was built for it, built once however many ask.

::

    ROOT/v1/                                            mode 0700, ours or root's
        environments/HASH/entry.json                    the pointer: which tarball is current, its size and identity
        environments/HASH/GENERATION/poncho-env-ID.tar.gz, and beside it poncho.lock, what it was built from;
                                                        of another form it is poncho-env-ID.tar.zst or poncho-env-ID.tar
        environments/HASH/used                          its time is when the entry was last served
        layers/, recipes/                               see layers.py
        locks/HASH.lock                                 held while HASH is built; who does it is in HASH.lock.who
        in-use                                          whose bytes are locked by who uses what; see inuse.py
        failures/HASH.json                              why HASH could not be built just now; see failures.py
        tmp/                                            working directories of the living; see scratch.py

**Story.**  A, B, C and D want the same environment.

A finds no ``entry.json``, takes ``locks/HASH.lock``, looks again (somebody may have been quicker), sweeps what the
dead left, and builds in a working directory of its own.  The finished tarball is renamed, with the directory it lies
in, to ``environments/HASH/GENERATION``: a name nobody has seen before.  Only then is ``entry.json`` replaced, by a
rename.  Whoever reads it, at any moment, reads the old one or the new one, whole, and what it points at is complete
and on disk.

B comes while A builds: no entry yet, the lock is held, B waits for it, as long as A lives, and looks again: a hit.

C comes later, reads ``entry.json``, notes in the kernel that it uses that tarball (once; it costs microseconds and
waits for nobody), compares the file's length, and is done.  Nothing is written but the time of ``used``, and not even
that matters: a read-only cache serves too.  What C was handed is not evicted while C lives (inuse.py has that story).

D is A, killed.  Before the rename of the directory: there is only rubbish in ``tmp/``, its owner's lock is free, the
next builder removes it.  Between the two renames: there is a generation that no entry has ever named; the next one to
build HASH removes it.  After the second: the entry is there and right.  In any case the kernel has released D's
locks, so B gets its turn, looks again, and either has its hit or builds.

If A's build fails, B does not try the same: it gets A's error, and so does whoever asks in the next ten minutes, but
for those who ask to ``retry``; of these, again, one at a time builds, and the others who waited get what came of it.

A path, once handed out, never holds other bytes: not after ``refresh``, which adds a generation and leaves those that
running managers may still send to workers; not after damage, since what is rebuilt is a new generation too.
"""

from __future__ import annotations

import contextlib
import filecmp
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poncho_wq.caching import inuse
from poncho_wq.caching.failures import Failures
from poncho_wq.errors import CacheError
from poncho_wq.holders import holder, signed
from poncho_wq.packing.compression import Compression, form_of
from poncho_wq.packing.layers import LayerStore, sync_directory
from poncho_wq.scratch import disk_error, held, sweep, work_directory

if TYPE_CHECKING:
    from poncho_wq.pack import Packed

# Another layout gets another directory: an older poncho_wq that shares the root never meets it.
_LAYOUT = "v1"
_HASH = re.compile(r"[0-9a-f]{64}\Z")
ENTRY_NAME = "entry.json"
USED_NAME = "used"
LOCK_NAME = "poncho.lock"
_ELSEWHERE = "set PONCHO_CACHE_DIR, or --cache-dir, to a directory of your own"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """An environment in the cache: the file ``tarball``, ``size`` bytes long, and what its manifest says of it."""

    spec_hash: str
    tarball: Path
    identity: str
    size: int
    python: str | None
    glibc: str | None
    platform: str
    compression: Compression = "gzip"


def default_root() -> Path:
    """``$PONCHO_CACHE_DIR``, else ``$XDG_CACHE_HOME/poncho_wq``, else ``~/.cache/poncho_wq``."""
    named = os.environ.get("PONCHO_CACHE_DIR")
    if named:
        return Path(os.path.expanduser(named)).absolute()
    import platformdirs

    return Path(platformdirs.user_cache_dir("poncho_wq", appauthor=False))


class Cache:
    """Environments by the hash of their specification, under ``root``.  Making one touches nothing."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root).absolute()
        self.home = self.root / _LAYOUT
        self.layers = LayerStore(self.home)
        self._tmp = self.home / "tmp"
        self._failures = Failures(self.home)

    def lookup(self, spec_hash: str) -> Entry | None:
        """The environment of a hash; None when there is none, or what there is is not whole.

        Waits for nobody and reads nothing of the tarball, which is not evicted while this process lives.
        Raises ``CacheError`` when the cache is somebody else's.
        """
        directory = self._directory(spec_hash)
        if not self.exists():
            return None
        entry = self._served(directory, spec_hash)
        if entry is not None:
            _touch(directory)
        return entry

    def builder_of(self, spec_hash: str) -> str:
        """Who is building a hash just now, in words for those who wait."""
        return holder(self._lock(spec_hash))

    def _lock(self, spec_hash: str) -> Path:
        return self.home / "locks" / f"{spec_hash}.lock"

    def build_once(
        self,
        spec_hash: str,
        make: Callable[[Path], Packed],
        *,
        refresh: bool = False,
        retry: bool = False,
        circumstances: str = "",
        on_wait: Callable[[], None] | None = None,
        timeout: float | None = None,
    ) -> Entry:
        """The environment of a hash, built by ``make`` when it is not there.

        ``make`` is given an empty directory, on the cache's disk, for whatever it needs, and returns a ``Packed``
        whose file lies in that directory; a ``poncho.lock`` beside it is kept with it, and the directory is removed
        afterwards.  At most one process and thread at a time builds a hash; the others wait for it, at most ``timeout``
        seconds (None: as long as it lives), after one call of ``on_wait``, and are then given the result.  ``refresh``
        builds even when there is an entry, once for all who ask for it at the same time.

        A build that fails is not tried again for ten minutes, unless ``retry`` or ``refresh`` is given or the
        ``circumstances`` (a digest of what else may decide how it ends) are others: its error is raised again.

        Raises ``CacheError``, ``LockTimeout``, and whatever ``make`` raises.  Nothing is cached then.
        """
        directory = self._directory(spec_hash)
        before = failed = None
        if self.exists():
            before = self._served(directory, spec_hash)
            if before is not None and not refresh:
                return before
            failed = self._failures.recall(spec_hash, circumstances)
            if failed is not None and not (retry or refresh):
                raise failed.error()
        self._prepare()
        with (
            held(self._lock(spec_hash), timeout=timeout, on_wait=on_wait),
            signed(self._lock(spec_hash)),
            inuse.building(self.home, spec_hash),
        ):
            now = self._served(directory, spec_hash)
            # While we waited, somebody may have done what we were about to do, or have failed to.
            if now is not None and (not refresh or now != before):
                return now
            just_now = self._failures.recall(spec_hash, circumstances)
            if just_now is not None and just_now != failed:
                raise just_now.error()
            sweep(self._tmp)
            with work_directory(self._tmp) as work:
                workshop = work / "build"
                try:
                    workshop.mkdir(mode=0o700)
                except OSError as error:
                    raise disk_error(error, self._tmp, "could not make a working directory") from error
                try:
                    packed = make(workshop)
                except Exception as error:
                    self._failures.remember(spec_hash, circumstances, error)
                    raise
                entry = self._publish(spec_hash, packed, work)
                self._failures.forget(spec_hash)
                return entry

    def _served(self, directory: Path, spec_hash: str) -> Entry | None:
        """The entry, if it is whole, in use by this process from now on."""
        named = _named(directory, spec_hash)
        if named is None or not inuse.keep(self.home, named.tarball.parent.name):
            return None
        return named if _is_whole(named) else None

    def _directory(self, spec_hash: str) -> Path:
        if not is_hash(spec_hash):
            raise ValueError(f"not the hash of a specification: {spec_hash!r}")
        return self.home / "environments" / spec_hash

    def exists(self) -> bool:
        """Whether the cache exists.  Raises ``CacheError`` when others could have put into it what we would run."""
        if os.path.isdir(self.root):
            # Who may write to it may put another directory in the place of ours, and downloads and packages lie there.
            self._is_mine(self.root.resolve())
        return self._is_mine(self.home)

    def _is_mine(self, directory: Path) -> bool:
        """Whether it exists.  Raises ``CacheError`` when it is somebody else's."""
        try:
            facts = directory.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise disk_error(error, directory, "cannot be looked at") from error
        me = os.geteuid()
        # Root's own caches may be shared with everybody. Root may use anybody's: in a container, root meets mounted
        # homes of other users, and could be cheated by whoever started the container in simpler ways.
        if facts.st_uid not in (me, 0) and me != 0:
            raise CacheError(
                f"{directory}: belongs to user {facts.st_uid}, and you are {me}: what lies there would run as you",
                advice=_ELSEWHERE,
            )
        if not stat.S_ISDIR(facts.st_mode):
            raise CacheError(f"{directory}: is not a directory", advice=_ELSEWHERE)
        if facts.st_mode & stat.S_IWOTH:
            raise CacheError(
                f"{directory}: everybody can write to it, and what lies there would run as you",
                advice=f"if you trust what is in it: chmod o-w {directory}",
            )
        return True

    def _prepare(self) -> None:
        """Make the directories that a build needs."""
        for directory in (self.root, self.home, *(self.home / name for name in ("environments", "locks", "tmp"))):
            try:
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                raise disk_error(error, directory, "could not make the directory") from error
        self.exists()

    def _publish(self, spec_hash: str, packed: Packed, work: Path) -> Entry:
        directory = self._directory(spec_hash)
        try:
            now = self._served(directory, spec_hash)
            # A refresh that found nothing new. Another path would be sent to every worker again.
            if now is not None and filecmp.cmp(now.tarball, packed.path, shallow=False):
                return now
            known = _generations(directory)
            _remove_unnamed(directory, known)
            name = f"poncho-env-{packed.identity[:16]}{form_of(packed.compression).suffix}"
            generation = secrets.token_hex(8)
            shelf = work / generation
            inuse.keep(self.home, generation)
            shelf.mkdir(mode=0o700)
            packed.path.replace(shelf / name)
            lock = packed.path.with_name(LOCK_NAME)
            if lock.exists():
                lock.replace(shelf / LOCK_NAME)
            if (size := (shelf / name).stat().st_size) != packed.size:
                raise CacheError(f"{packed.path}: is {size} bytes long and was said to be {packed.size}")
            directory.mkdir(mode=0o700, exist_ok=True)
            shelf.rename(directory / generation)
            sync_directory(directory)
            facts = {
                "spec_hash": spec_hash,
                "tarball": f"{generation}/{name}",
                "identity": packed.identity,
                "size": packed.size,
                "python": packed.python,
                "glibc": packed.glibc,
                "platform": packed.platform,
                "compression": packed.compression,
                "layers": [layer.digest for layer in packed.layers],
                # All that an entry has ever named. Any other is what a builder left that died between two renames.
                "generations": [*known, generation],
            }
            draft = work / ENTRY_NAME
            with draft.open("x", encoding="ascii") as stream:
                json.dump(facts, stream, indent=1)
                stream.flush()
                os.fsync(stream.fileno())
            draft.replace(directory / ENTRY_NAME)
        except OSError as error:
            raise disk_error(error, self.home, "could not keep the tarball", needed=packed.size) from error
        sync_directory(directory)
        _touch(directory)
        return _entry(directory, facts)


def layers_beside(tarball: Path) -> tuple[Path, ...]:
    """The directory of layers in the cache that ``tarball`` lies in, as far as its path tells; none for others."""
    home = tarball.parents[3] if len(tarball.parents) > 3 else tarball
    return (home / "layers",) if tarball.parents[2:3] == (home / "environments",) else ()


def is_hash(name: str) -> bool:
    """Whether this is the hash of a specification: 64 hexadecimal digits in lower case."""
    return _HASH.match(name) is not None


def _touch(directory: Path) -> None:
    """Note that the entry was of use, for eviction.  Not worth an error: the cache may be read-only, or root's."""
    with contextlib.suppress(OSError):
        (directory / USED_NAME).touch()


def _facts(directory: Path) -> dict[str, Any]:
    """What ``entry.json`` says; nothing when it is missing or damaged."""
    try:
        facts = json.loads((directory / ENTRY_NAME).read_bytes())
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


def _named(directory: Path, spec_hash: str) -> Entry | None:
    """What ``entry.json`` names, whether it is there or not."""
    facts = _facts(directory)
    try:
        # Another hash's: copied there by hand.
        return _entry(directory, facts) if facts["spec_hash"] == spec_hash else None
    except (KeyError, TypeError, ValueError):
        return None


def _is_whole(entry: Entry) -> bool:
    try:
        found = entry.tarball.lstat()
    except (OSError, ValueError):
        return False
    return stat.S_ISREG(found.st_mode) and found.st_size == entry.size


def _entry(directory: Path, facts: dict[str, Any]) -> Entry:
    return Entry(
        spec_hash=facts["spec_hash"],
        tarball=directory / facts["tarball"],
        identity=facts["identity"],
        size=facts["size"],
        python=facts["python"],
        glibc=facts["glibc"],
        platform=facts["platform"],
        compression=facts.get("compression", "gzip"),  # older entries do not say
    )


def _generations(directory: Path) -> list[str]:
    """The generations that the entry has named, as far as they are still there and of use."""
    facts = _facts(directory)
    named = facts.get("generations", [])
    if not isinstance(named, list):
        return []
    # The one that the entry points at and that is not whole is of no use to anybody.
    current = _named(directory, directory.name)
    damaged = None if current is not None and _is_whole(current) else str(facts.get("tarball")).partition("/")[0]
    return [name for name in named if isinstance(name, str) and name != damaged and (directory / name).is_dir()]


def _remove_unnamed(directory: Path, known: list[str]) -> None:
    """Remove damaged generations and those of builders that died before their entry.  The hash's lock is held."""
    if not directory.is_dir():
        return
    for found in directory.iterdir():
        if found.name not in known and found.name not in (ENTRY_NAME, USED_NAME):
            shutil.rmtree(found, ignore_errors=True)
