"""What is in a cache: its environments, as they are at this moment.  Nothing is locked or written.

What is listed may be gone, or in use, an instant later: whoever acts on it looks again (see removing.py).  Plain
strings and system calls where ``Path`` would be nicer: there may be ten thousand, and the listing is to take no second.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from poncho_wq.cache import ENTRY_NAME, USED_NAME, Cache, is_hash
from poncho_wq.caching import inuse
from poncho_wq.errors import CorruptTarball
from poncho_wq.manifest import read_manifest
from poncho_wq.packing.compression import COMPRESSIONS, Compression, form_of
from poncho_wq.scratch import disk_error

_GENERATION = re.compile(r"[0-9a-f]{16}\Z")
_PIECE = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Listed:
    """One environment in the cache.

    ``path`` is the tarball, None when the entry is not whole.  ``size`` is the tarball's in bytes, ``used`` when it was
    last handed out (seconds since 1970), ``in_use`` whether a living process has it, as far as the locks tell.
    ``superseded`` are generations (bytes in ``superseded_size``) that a refresh has replaced; ``layers`` are digests,
    ``superseded_layers`` are the files of the layers of superseded generations in use: who uses one may yet send them.
    ``compression`` says in which form the layers and the tarball are.
    """

    spec_hash: str
    path: str | None
    identity: str
    size: int
    used: float
    python: str | None
    platform: str
    layers: tuple[str, ...]
    inode: tuple[int, int]
    superseded: tuple[str, ...]
    superseded_size: int
    in_use: bool
    superseded_layers: tuple[str, ...] = ()
    compression: Compression = "gzip"

    @property
    def tarball(self) -> Path | None:
        """The tarball; None when the entry is not whole."""
        return None if self.path is None else Path(self.path)


def scan(cache: Cache) -> list[Listed]:
    """All environments, least recently used first.  Nothing is locked or written.

    Raises ``CacheError`` when the cache is somebody else's or cannot be read.
    """
    if not cache.exists():
        return []
    with inuse.Claims(cache.home, writable=False) as claims:
        return scan_with(cache, claims)


def find(entries: Sequence[Listed], word: str) -> list[Listed]:
    """The entries whose hash, or identity, begins with ``word``, or whose tarball is so called or lies there."""
    text = word.lower()
    if re.fullmatch(r"[0-9a-f]{4,64}", text):
        return [each for each in entries if each.spec_hash.startswith(text) or each.identity.startswith(text)]
    if "/" in word:
        return [each for each in entries if each.tarball == Path(word).absolute()]
    return [each for each in entries if each.tarball is not None and word == each.tarball.name]


def scan_with(cache: Cache, claims: inuse.Claims) -> list[Listed]:
    """``scan`` for who has opened the cache's claims already.  Raises ``CacheError`` when it cannot be read."""
    try:
        with os.scandir(cache.home / "environments") as found:
            names = [each.name for each in found if is_hash(each.name)]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise disk_error(error, cache.home, "cannot be read") from error
    root = f"{cache.home}/environments/"
    digests: dict[str, str] = {}
    listed = [each for name in names if (each := _listed(root + name, name, claims, digests)) is not None]
    return sorted(listed, key=lambda each: each.used)


def _listed(path: str, spec_hash: str, claims: inuse.Claims, digests: dict[str, str]) -> Listed | None:
    """One entry; None when it has just been removed.  ``digests``: each that was met so far, once."""
    facts = _facts(path)
    current, size, inode = _whole(path, spec_hash, facts)
    try:
        used = _time(f"{path}/{USED_NAME}") or _time(path)
        if not used:
            return None
        generations = [current] if current and _is_alone(path, current) else generations_in(path)
    except OSError:
        return None
    superseded = tuple(each for each in generations if each != current) if current else ()
    return Listed(
        spec_hash=spec_hash,
        path=f"{path}/{facts['tarball']}" if current else None,
        identity=str(facts.get("identity", "")),
        size=size,
        used=used,
        python=facts.get("python"),
        platform=str(facts.get("platform", "")),
        layers=_digests(facts.get("layers"), digests) if current else (),
        inode=inode,
        superseded=superseded,
        superseded_size=sum(size_of(f"{path}/{each}") for each in superseded) if superseded else 0,
        in_use=claims.any_used and any(claims.is_used(inuse.generation_byte(each)) for each in generations),
        # Older entries do not say; what says something that is not known here is another version's.
        compression=named if (named := facts.get("compression")) in COMPRESSIONS else "gzip",
        superseded_layers=tuple(
            layer
            for each in superseded
            if claims.any_used and claims.is_used(inuse.generation_byte(each))
            for layer in _layers_of(f"{path}/{each}")
        ),
    )


def _is_alone(path: str, generation: str) -> bool:
    """Whether a generation that is there is the only directory of its entry; False may mean that nobody can tell.

    A directory has two names of its own and one in each directory within, on most file systems; to ask is half of the
    work of looking.
    """
    return os.stat(path).st_nlink == 3 and is_generation(generation)


def _digests(found: object, known: dict[str, str]) -> tuple[str, ...]:
    """The digests that an ``entry.json`` names.

    Equal ones become one string: most entries share most of their layers, and 10,000 of 40 would be 45 MB.
    """
    try:
        return tuple(map(known.setdefault, found, found)) if isinstance(found, list) and "".join(found) else ()
    except TypeError:
        return ()  # they are no texts


def _layers_of(generation: str) -> Iterator[str]:
    """The files of the layers of a generation that no ``entry.json`` names any more, as its tarball says."""
    with contextlib.suppress(OSError, CorruptTarball):
        for tarball in Path(generation).glob("poncho-env-*.tar*"):
            manifest = read_manifest(tarball)
            if manifest is not None:
                suffix = form_of(manifest.compression).layer_suffix
                yield from (layer.digest + suffix for layer in manifest.layers)


def _whole(path: str, spec_hash: str, facts: dict[str, Any]) -> tuple[str, int, tuple[int, int]]:
    """The current generation, its tarball's size and which file that is; nothing when that is not whole."""
    name = facts.get("tarball")
    if facts.get("spec_hash") == spec_hash and isinstance(name, str):
        try:
            found = os.lstat(f"{path}/{name}")
        except (OSError, ValueError):
            return "", 0, (0, 0)
        if stat.S_ISREG(found.st_mode) and found.st_size == facts.get("size"):
            return name.partition("/")[0], found.st_size, (found.st_dev, found.st_ino)
    return "", 0, (0, 0)


def is_generation(name: str) -> bool:
    """Whether a directory of an entry is so called: 16 hexadecimal digits in lower case."""
    return _GENERATION.match(name) is not None


def generations_in(path: str) -> list[str]:
    """The generations in an entry's directory."""
    try:
        return [name for name in os.listdir(path) if is_generation(name)]
    except FileNotFoundError:
        return []


def _facts(path: str) -> dict[str, Any]:
    try:
        handle = os.open(f"{path}/{ENTRY_NAME}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            text = os.read(handle, _PIECE)
            while len(text) % _PIECE == 0 and (more := os.read(handle, _PIECE)):
                text += more
        finally:
            os.close(handle)
        facts = json.loads(str(text, "utf-8"))
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


def current_generation(path: str) -> str | None:
    """The generation that ``entry.json`` in an entry's directory names; None when it names none, or is not there."""
    name = _facts(path).get("tarball")
    found = name.partition("/")[0] if isinstance(name, str) else ""
    return found if is_generation(found) else None


def _time(path: str) -> float:
    try:
        return os.stat(path).st_mtime
    except FileNotFoundError:
        return 0.0


def size_of(directory: str) -> int:
    """Bytes of the files in a directory."""
    with contextlib.suppress(OSError), os.scandir(directory) as found:
        return sum(each.stat(follow_symlinks=False).st_size for each in found)
    return 0
