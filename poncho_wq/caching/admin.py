"""Looking after a cache: what is in it, what may go, and removing that while others build and look up.

Deciding and removing are apart: ``scan`` (cache_listing.py) reads, ``_Books`` counts, ``collect`` chooses, ``_Remover``
removes.  What is removed, in this order:

1. What is of no use to anybody: working directories of the dead, entries that are not whole, the generations that a
   ``refresh`` has superseded, failures that are not remembered any more.
2. Entries that were not used for longer than asked, and then, while there is more than the limit, whichever was not
   used for longest.
3. Layers that no entry names, and the recipes of layers that are gone.

Never what a living process uses.  How that is known, and what several collectors, builders and lookups see of each
other, is the story in inuse.py: nothing here depends on what ``scan`` saw still being so, each removal looks again with
the locks in its hands.

A tarball or layer that several entries name is one file, counted once, and gone only with the last of them.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from poncho_wq.cache import USED_NAME, Cache
from poncho_wq.caching import inuse
from poncho_wq.caching.failures import Failures
from poncho_wq.caching.listing import Listed, current_generation, generations_in, scan_with, size_of
from poncho_wq.errors import CacheError
from poncho_wq.packing.compression import LAYER_SUFFIXES
from poncho_wq.scratch import DEAD, disk_error, sweep

SIZE_VARIABLE = "PONCHO_CACHE_SIZE"

_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(?:([kmgt])(i?))?b?\s*\Z", re.IGNORECASE)
_MANY = 1000
_LAYER = re.compile(rf"[0-9a-f]{{64}}({'|'.join(map(re.escape, LAYER_SUFFIXES))})\Z")


@dataclass(frozen=True, kw_only=True)
class Collected:
    """What ``collect`` did, or with ``dry_run`` would have done.

    ``evicted`` are the entries removed, ``superseded``, ``layers`` and ``leftovers`` counts, ``freed`` and ``left``
    bytes (of tarballs and layers), ``in_use`` the entries that would have gone if nobody used them.
    """

    evicted: tuple[Listed, ...]
    in_use: tuple[Listed, ...]
    superseded: int
    layers: int
    leftovers: int
    freed: int
    left: int


def parse_size(text: str) -> int | None:
    """Bytes of ``"20G"``, ``"500 MB"`` (powers of 1000), ``"20GiB"`` (of 1024); None for ``"none"``, no limit.

    Raises ``ValueError``.
    """
    if text.strip().lower() in ("none", "unlimited"):
        return None
    found = _SIZE.match(text)
    if found is None:
        raise ValueError(f"expected a size such as 20G, 500MB or 20GiB, or none, got {text!r}")
    number, unit, binary = found.groups()
    power = "kmgt".index(unit.lower()) + 1 if unit else 0
    return int(float(number) * (1024 if binary else 1000) ** power)


def limit() -> int | None:
    """``$PONCHO_CACHE_SIZE`` in bytes; None when it is not set or says ``none``.  Raises ``CacheError``.

    There is no limit unless the user sets one: what is evicted may not be had again where it is wanted (no network on
    a compute node), and would be resolved anew, perhaps to other versions.  Garbage is collected in any case.
    """
    text = os.environ.get(SIZE_VARIABLE, "")
    try:
        return parse_size(text) if text.strip() else None
    except ValueError as error:
        raise CacheError(f"${SIZE_VARIABLE}: {error}", advice=f"export {SIZE_VARIABLE}=20G, or unset it") from None


def tidy(cache: Cache, most: int | None) -> None:
    """What follows a build: collect garbage, and evict what is more than ``most`` bytes.

    One process at a time; who finds another at it leaves it to that.  A cache that cannot be tidied works all the same.
    """
    with contextlib.suppress(CacheError, OSError):
        if not cache.exists():
            return
        with inuse.Claims(cache.home) as claims:
            if claims.claim(inuse.COLLECTOR):
                collect(cache, max_size=most)


def collect(
    cache: Cache, *, max_size: int | None = None, older_than: float | None = None, dry_run: bool = False
) -> Collected:
    """Remove garbage, what was not used for ``older_than`` seconds, and the rest until ``max_size`` bytes are left.

    None is no limit.  Raises ``CacheError`` when the cache is somebody else's or read-only.
    """
    nothing = Collected(evicted=(), in_use=(), superseded=0, layers=0, leftovers=0, freed=0, left=0)
    if not cache.exists():
        return nothing
    leftovers = 0
    if not dry_run:
        leftovers = _sweep(cache)
        Failures(cache.home).remove_old()
    now = time.time()
    evicted: list[Listed] = []
    kept: list[Listed] = []
    superseded = freed = 0
    with contextlib.ExitStack() as stack:
        claims = stack.enter_context(inuse.Claims(cache.home, writable=not dry_run))
        remover = stack.enter_context(_Remover(cache.home, claims, now, dry_run=dry_run))
        entries = scan_with(cache, claims)
        books = _Books(entries, _layer_sizes(cache.home))
        for entry in entries:
            if entry.superseded:
                count, size = remover.remove_superseded(entry)
                superseded, freed = superseded + count, freed + size
            too_old = older_than is not None and entry.used < now - older_than
            too_much = max_size is not None and books.total > max_size
            if not (entry.path is None or too_old or too_much):
                continue
            if remover.remove_entry(entry):
                evicted.append(entry)
                freed += books.without(entry)
            else:
                kept.append(entry)
        layers = remover.remove_layers(books.unnamed())
    return Collected(
        evicted=tuple(evicted),
        in_use=tuple(kept),
        superseded=superseded,
        layers=len(layers),
        leftovers=leftovers,
        freed=freed + sum(books.layer_sizes[each] for each in layers),
        left=books.total,
    )


def remove(cache: Cache, entries: Iterable[Listed]) -> tuple[list[Listed], list[Listed]]:
    """Remove these entries, and the layers that only they name: those that are gone, and those that are in use."""
    gone: list[Listed] = []
    stay: list[Listed] = []
    if not cache.exists():
        return gone, stay
    # Asked for by name: on a file system without locks the user knows best.
    anyway = float("inf")
    with inuse.Claims(cache.home) as claims, _Remover(cache.home, claims, anyway, dry_run=False) as remover:
        for entry in entries:
            (gone if remover.remove_entry(entry) else stay).append(entry)
        books = _Books(scan_with(cache, claims), _layer_sizes(cache.home))
        remover.remove_layers(books.unnamed())
    return gone, stay


class _Books:
    """What the files of some entries come to, each counted once."""

    def __init__(self, entries: Iterable[Listed], layer_sizes: dict[str, int]) -> None:
        self.layer_sizes = layer_sizes
        self._layers: Counter[str] = Counter()
        self._tarballs: Counter[tuple[int, int]] = Counter()
        self.total = 0
        for entry in entries:
            if entry.path is not None:
                self.total += 0 if self._tarballs[entry.inode] else entry.size
                self._tarballs[entry.inode] += 1
            self._layers.update(entry.layer_files)
        self.total += sum(layer_sizes.get(name, 0) for name in self._layers)

    def without(self, entry: Listed) -> int:
        """Take an entry out; the bytes of tarballs that go with it.  Its layers are unnamed, and go later."""
        freed = 0
        if entry.path is not None:
            self._tarballs[entry.inode] -= 1
            freed = 0 if self._tarballs[entry.inode] else entry.size
        self.total -= freed
        for name in entry.layer_files:
            self._layers[name] -= 1
            if not self._layers[name]:
                self.total -= self.layer_sizes.get(name, 0)
        return freed

    def unnamed(self) -> list[str]:
        """The files of layers that are there and that no entry names."""
        return [name for name in self.layer_sizes if not self._layers[name]]


class _Remover:
    """Removes one thing after another, each with its locks held; says no where something is in use.

    ``now`` is for file systems without locks, where the last use must have been ``inuse.GRACE`` seconds before it.
    What is removed is out of sight at once, and off the disk when the ``with`` block has ended.
    """

    def __init__(self, home: Path, claims: inuse.Claims, now: float, *, dry_run: bool) -> None:
        self._home = home
        self._claims = claims
        self._now = now
        self._dry_run = dry_run
        self._doomed: list[str] = []
        self._at_work: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> _Remover:
        return self

    def __exit__(self, *_: object) -> None:
        for path in self._doomed:
            _remove_tree(path)
        for process in self._at_work:
            process.wait()

    def _dispose(self, path: str) -> None:
        """Have a directory removed that is out of sight: a few by ourselves, many by ``rm``, while we go on choosing.

        Removing 10,000 takes ``rm`` half of the time that it takes Python, and that on another core.
        """
        if path:
            self._doomed.append(path)
        if len(self._doomed) >= _MANY and (program := shutil.which("rm")):
            # What it cannot remove is left for the next sweep, as everything here.
            self._at_work.append(subprocess.Popen([program, "-rf", "--", *self._doomed], stderr=subprocess.DEVNULL))
            self._doomed = []

    def remove_entry(self, entry: Listed) -> bool:
        """Whether it is gone."""
        path = f"{self._home}/environments/{entry.spec_hash}"
        with self._claimed([inuse.hash_byte(entry.spec_hash)]) as unused:
            # Somebody may have had it, and ended, since it was listed.
            if not unused or not self._rested(path, entry.used):
                return False
            bytes_ = [inuse.generation_byte(name) for name in generations_in(path)]
            with self._claimed(bytes_) as unused:
                if not unused:
                    return False
                doomed = self._out_of_sight(path)
        self._dispose(doomed)
        return True

    def remove_superseded(self, entry: Listed) -> tuple[int, int]:
        """Remove generations that are not the entry's current one: how many, and bytes."""
        count = size = 0
        for name in entry.superseded:
            with self._claimed([inuse.hash_byte(entry.spec_hash), inuse.generation_byte(name)]) as unused:
                path = f"{self._home}/environments/{entry.spec_hash}"
                if not unused or not self._rested(path, entry.used) or current_generation(path) == name:
                    continue
                bytes_ = size_of(f"{path}/{name}")
                doomed = self._out_of_sight(f"{path}/{name}")
            self._dispose(doomed)
            count, size = count + 1, size + bytes_
        return count, size

    def remove_layers(self, names: Sequence[str]) -> Sequence[str]:
        """Remove layers that no entry names, and recipes of what is gone; those removed.  None while anybody builds."""
        if not names:
            return ()
        with self._claimed([inuse.LAYERS]) as unused:
            if not unused or (not self._claims.locks and not self._dry_run):
                return ()
            if not self._dry_run:
                for name in names:
                    _unlink(f"{self._home}/layers/{name}")
                _remove_recipes(str(self._home))
        return names

    @contextlib.contextmanager
    def _claimed(self, bytes_: Sequence[int]) -> Iterator[bool]:
        """Whether these bytes are ours alone, all of them, for the block; a dry run only asks."""
        if self._dry_run:
            yield not any(self._claims.is_used(byte) for byte in bytes_)
            return
        ours: list[int] = []
        try:
            for byte in bytes_:
                if not self._claims.claim(byte):
                    yield False
                    return
                ours.append(byte)
            yield True
        finally:
            for byte in ours:
                self._claims.let_go(byte)

    def _rested(self, path: str, used: float) -> bool:
        """Whether the entry was not used since it was listed, nor, where there are no locks, lately."""
        if not self._claims.locks and used > self._now - inuse.GRACE:
            return False
        with contextlib.suppress(OSError):
            return os.stat(f"{path}/{USED_NAME}").st_mtime <= used
        return True

    def _out_of_sight(self, path: str) -> str:
        """Rename a directory to what belongs to nobody, in one step."""
        if self._dry_run:
            return ""
        doomed = f"{self._home}/tmp/{DEAD}{secrets.token_hex(8)}"
        try:
            os.rename(path, doomed)
        except FileNotFoundError:
            return ""  # somebody else's work
        except OSError as error:
            raise disk_error(error, Path(path), "could not be removed") from error
        return doomed


def _layer_sizes(home: Path) -> dict[str, int]:
    sizes = {}
    with contextlib.suppress(FileNotFoundError), os.scandir(home / "layers") as found:
        for each in found:
            if name := _LAYER.match(each.name):
                with contextlib.suppress(FileNotFoundError):
                    sizes[name[0]] = each.stat(follow_symlinks=False).st_size
    return sizes


# Removing


def _sweep(cache: Cache) -> int:
    """Remove the working directories of the dead; how many."""
    gone = 0
    for tmp in (cache.home / "tmp", cache.root / "data/tmp"):
        if tmp.is_dir():
            before = len(os.listdir(tmp))
            sweep(tmp)
            gone += before - len(os.listdir(tmp))
    return max(gone, 0)


def _remove_recipes(home: str) -> None:
    """Remove recipes whose layer is gone.  One that comes back meanwhile may lose its recipe, and is made once more."""
    with contextlib.suppress(FileNotFoundError), os.scandir(f"{home}/recipes") as found:
        for each in found:
            with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
                with open(each.path, "rb", buffering=0) as stream:
                    digest = json.loads(stream.read())["digest"]
                suffix = os.path.splitext(each.name)[1] or ".gz"  # a gzip layer's recipe has none
                if not os.path.exists(f"{home}/layers/{digest}{suffix}"):
                    os.unlink(each.path)


def _remove_tree(path: str) -> None:
    """Remove a directory that nobody else can be in; what cannot be removed is left for the next ``sweep``.

    By paths, which for 10,000 of them takes a third of the time of ``shutil.rmtree``: that guards against others who
    replace directories by links, and here nobody else may write.
    """
    if not path:
        return
    with contextlib.suppress(OSError):
        with os.scandir(path) as found:
            for each in found:
                if each.is_dir(follow_symlinks=False):
                    _remove_tree(each.path)
                else:
                    _unlink(each.path)
        os.rmdir(path)


def _unlink(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)
