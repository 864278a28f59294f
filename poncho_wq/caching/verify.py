"""Reading everything in a cache again, and comparing it with the digests that it goes by.

A lookup compares a file's length and no more.  Disks lose bits all the same; this reads every byte: of tarballs, layer
by layer against the manifest, of layers and of downloads against their names.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from poncho_wq.cache import ENTRY_NAME, Cache
from poncho_wq.caching import inuse
from poncho_wq.caching.admin import remove
from poncho_wq.caching.listing import Listed
from poncho_wq.digests import sha256_of
from poncho_wq.errors import CorruptTarball
from poncho_wq.manifest import end_member, read_manifest
from poncho_wq.packing.compression import LAYER_SUFFIXES, Damaged, Form, form_of
from poncho_wq.progress import OnProgress, Progress, silent

_PIECE = 1 << 20
_HEX = frozenset("0123456789abcdef")


@dataclass(frozen=True, kw_only=True)
class Damage:
    """Something that is not what it should be.  ``entry`` is the environment that a tarball belongs to."""

    kind: Literal["tarball", "layer", "download"]
    path: Path
    problem: str
    entry: Listed | None = None


def verify(cache: Cache, entries: Sequence[Listed], *, on_progress: OnProgress = silent) -> list[Damage]:
    """What is damaged: tarballs of ``entries``, all layers, all downloads.  Nothing is changed.

    Raises ``CacheError`` when the cache is somebody else's, ``PackError`` when a library to decompress with is missing.
    """
    if not cache.exists():
        return []
    work: list[tuple[Path, Callable[[], Damage | None]]] = []
    for entry in entries:
        path = entry.tarball or cache.home / "environments" / entry.spec_hash
        work.append((path, lambda entry=entry, path=path: _tarball(entry, path)))  # type: ignore[misc]
    for suffix, form in LAYER_SUFFIXES.items():
        for path in _named_by_digest(cache.home / "layers", suffix):
            work.append((path, lambda path=path, form=form: _layer(path, form)))  # type: ignore[misc]
    for path in _named_by_digest(cache.root / "data/http", ""):
        work.append((path, lambda path=path: _download(path)))  # type: ignore[misc]
    found = []
    for done, (path, check) in enumerate(work):
        on_progress(Progress(stage="verify", detail=path.name, done=done, total=len(work), unit="files"))
        # What is removed while we look is no longer in the cache.
        with contextlib.suppress(FileNotFoundError):
            damage = check()
            if damage is not None:
                found.append(damage)
    return found


def mend(cache: Cache, damages: Sequence[Damage]) -> list[Damage]:
    """Remove what is damaged, so that it is made or fetched again; those that are in use and had to stay.

    An environment that is in use is not handed out any more; the file itself goes when nobody uses it.
    """
    stay = []
    with inuse.Claims(cache.home) as claims:
        for damage in damages:
            if damage.entry is not None:
                if remove(cache, [damage.entry])[1]:
                    _withdraw(cache, damage.entry, claims)
                    stay.append(damage)
            elif damage.kind == "download":
                damage.path.unlink(missing_ok=True)
            elif claims.claim(inuse.LAYERS):
                damage.path.unlink(missing_ok=True)
                claims.let_go(inuse.LAYERS)
            else:
                stay.append(damage)
    return stay


def check_tarball(path: Path) -> None:
    """Read a tarball to its end.  Raises ``CorruptTarball`` when it is not what its manifest says, ``OSError``."""
    manifest = read_manifest(path)
    if manifest is None:
        raise CorruptTarball(f"{path}: is no tarball of poncho_wq", tarball=path)
    form = form_of(manifest.compression)
    with path.open("rb", buffering=0) as stream:
        for layer in manifest.layers:
            stream.seek(manifest.member + layer.offset)
            problem = _problem(form, stream, layer.length, layer.digest)
            if problem is not None:
                raise CorruptTarball(f"{path}: layer {layer.name}: {problem}", tarball=path)
        stream.seek(manifest.size - len(end_member(form.name)))
        if stream.read(_PIECE) != end_member(form.name):
            raise CorruptTarball(f"{path}: its end is damaged", tarball=path)


def _withdraw(cache: Cache, entry: Listed, claims: inuse.Claims) -> None:
    """Have an entry handed out no more.  If somebody builds it at this moment, what is built replaces it anyway."""
    byte = inuse.hash_byte(entry.spec_hash)
    if claims.claim(byte):
        (cache.home / "environments" / entry.spec_hash / ENTRY_NAME).unlink(missing_ok=True)
        claims.let_go(byte)


def _tarball(entry: Listed, path: Path) -> Damage | None:
    if entry.tarball is None:
        return Damage(kind="tarball", path=path, problem="the tarball is missing or cut short", entry=entry)
    try:
        check_tarball(path)
    except CorruptTarball as error:
        return Damage(kind="tarball", path=path, problem=error.message.removeprefix(f"{path}: "), entry=entry)
    except FileNotFoundError:
        raise
    except OSError as error:
        return Damage(kind="tarball", path=path, problem=f"cannot be read: {error.strerror}", entry=entry)
    return None


def _layer(path: Path, form: Form) -> Damage | None:
    try:
        with path.open("rb", buffering=0) as stream:
            problem = _problem(form, stream, path.stat().st_size, path.name.removesuffix(form.layer_suffix))
    except FileNotFoundError:
        raise
    except OSError as error:
        problem = f"cannot be read: {error.strerror}"
    return None if problem is None else Damage(kind="layer", path=path, problem=problem)


def _download(path: Path) -> Damage | None:
    try:
        digest = sha256_of(path)
    except FileNotFoundError:
        raise
    except OSError as error:
        return Damage(kind="download", path=path, problem=f"cannot be read: {error.strerror}")
    if digest == path.name:
        return None
    return Damage(kind="download", path=path, problem=f"has the sha256 {digest}")


def _problem(form: Form, stream: BinaryIO, length: int, digest: str) -> str | None:
    """What is wrong with the member of ``length`` bytes that begins here, and should hold ``digest``."""
    content = hashlib.sha256()
    try:
        for piece in form.content(stream, length):
            content.update(piece)
    except Damaged as error:
        return str(error)
    return None if content.hexdigest() == digest else f"holds the sha256 {content.hexdigest()} instead of {digest}"


def _named_by_digest(directory: Path, suffix: str) -> Iterator[Path]:
    with contextlib.suppress(FileNotFoundError):
        for path in sorted(directory.iterdir()):
            name = path.name.removesuffix(suffix)
            if path.name == name + suffix and len(name) == 64 and _HEX.issuperset(name):
                yield path
