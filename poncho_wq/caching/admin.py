"""Looking after a cache: what is in it, what may go, and removing that while others build and look up.

Deciding and removing are apart: ``scan`` (listing.py) reads, ``Books`` (books.py) count, ``collect`` chooses,
``Remover`` (removing.py) removes.  What is removed, in this order:

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
import os
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from poncho_wq.cache import Cache
from poncho_wq.caching import inuse
from poncho_wq.caching.books import Books
from poncho_wq.caching.failures import Failures
from poncho_wq.caching.listing import Listed, scan_with
from poncho_wq.caching.removing import Remover
from poncho_wq.errors import CacheError
from poncho_wq.packing.compression import LAYER_SUFFIXES
from poncho_wq.scratch import sweep

SIZE_VARIABLE = "PONCHO_CACHE_SIZE"

_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(?:([kmgt])(i?))?b?\s*\Z", re.IGNORECASE)
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
        remover = stack.enter_context(Remover(cache.home, claims, now, dry_run=dry_run))
        entries = scan_with(cache, claims)
        books = Books(entries, _layer_sizes(cache.home))
        for position, entry in enumerate(entries):
            if entry.superseded:
                count, size = remover.remove_superseded(entry)
                superseded, freed = superseded + count, freed + size
            too_old = older_than is not None and entry.used < now - older_than
            too_much = max_size is not None and books.total > max_size
            if not (entry.path is None or too_old or too_much):
                books.keep(entry)
            elif remover.remove_entry(entry):
                evicted.append(entry)
                freed += books.without(position, entry)
            else:
                books.keep(entry)
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
    with inuse.Claims(cache.home) as claims, Remover(cache.home, claims, anyway, dry_run=False) as remover:
        for entry in entries:
            (gone if remover.remove_entry(entry) else stay).append(entry)
        stayed = scan_with(cache, claims)
        books = Books(stayed, _layer_sizes(cache.home))
        for entry in stayed:
            books.keep(entry)
        remover.remove_layers(books.unnamed())
    return gone, stay


def _layer_sizes(home: Path) -> dict[str, int]:
    sizes = {}
    with contextlib.suppress(FileNotFoundError), os.scandir(home / "layers") as found:
        for each in found:
            if name := _LAYER.match(each.name):
                with contextlib.suppress(FileNotFoundError):
                    sizes[name[0]] = each.stat(follow_symlinks=False).st_size
    return sizes


def _sweep(cache: Cache) -> int:
    """Remove the working directories of the dead; how many."""
    gone = 0
    for tmp in (cache.home / "tmp", cache.root / "data/tmp", cache.root / "interpreters/tmp"):
        if tmp.is_dir():
            before = len(os.listdir(tmp))
            sweep(tmp)
            gone += before - len(os.listdir(tmp))
    return max(gone, 0)
