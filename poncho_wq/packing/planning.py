"""Which files go into which layer.

A layer is what is compressed, stored, sent and unpacked as a piece.  So packages that change on their own get layers
of their own, as long as that is worth a gzip member; and nothing that a change elsewhere leaves alone moves to
another layer.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from poncho_wq.errors import PackError
from poncho_wq.manifest import is_inside
from poncho_wq.packing.layers import Entry, OnDisk
from poncho_wq.packing.shipped_bytecode import is_bytecode

if TYPE_CHECKING:
    from poncho_wq.build import FileGroup, Prefix

# Part of the tarball's bytes: a change here changes tarballs (not their validity).
OWN_LAYER = 1 << 20
"""Packages of at least so many bytes get a layer of their own; the others share buckets."""
BUCKETS = 8
"""How many layers the small packages share."""
LARGEST = 64 << 20
"""A layer of more bytes is cut, so that a worker with many cores has something for each."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A layer to be: its name (one word) and its entries, sorted by path."""

    name: str
    entries: tuple[Entry, ...]

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(entry.size for entry in self.entries)


@dataclass(frozen=True, kw_only=True)
class Found:
    """A package's files as they lie in the prefix.

    ``inodes`` has, by path, the device and inode of the files that have more than one name.
    """

    group: FileGroup
    entries: tuple[Entry, ...]
    inodes: dict[str, tuple[int, int]]


def scan(prefix: Prefix, *, hidden: frozenset[str] = frozenset()) -> list[Found]:
    """Look at every file that the prefix's groups name, except those whose paths are in ``hidden``.

    ``__pycache__`` is left out: what is in it was made by some interpreter at some time at some place, and is made
    anew.  Only what a conda package brings is kept: that was made with the package (see ``shipped_bytecode``).

    Raises ``PackError`` for what cannot be in a tarball: a file that is missing or named twice, a device, a socket, a
    link that is absolute or leads out of the prefix.
    """
    owner: dict[str, str] = {}
    links: set[str] = set()
    everything = []
    root = str(prefix.path.absolute())
    for group in prefix.groups:
        entries, inodes = [], {}
        known = {} if group.there else {entry.path: entry for entry in group.known}
        for name in group.files:
            path = name.rstrip("/")
            if path in hidden or (group.kind != "conda" and is_bytecode(path)):
                continue
            if path in owner:
                raise PackError(f"{path}: belongs to {owner[path]} and to {group.name}")
            owner[path] = group.name
            entry, inode = _look(root, name, group) if group.there else (known[path], None)
            entries.append(entry)
            if inode is not None:
                inodes[path] = inode
            if entry.kind == "symlink":
                links.add(path)
        everything.append(Found(group=group, entries=tuple(entries), inodes=inodes))
    for folder in {posixpath.dirname(path) for path in owner}:
        while folder:
            # Layers are unpacked in any order and side by side: the link may come after the file that lies behind it.
            if folder in links:
                raise PackError(f"{folder}: is a symbolic link, and files are said to lie below it")
            folder = posixpath.dirname(folder)
    return everything


def _look(root: str, name: str, group: FileGroup) -> tuple[Entry, tuple[int, int] | None]:
    """The entry of one path, and its inode when that has several names."""
    path = name.rstrip("/")
    there = f"{root}/{path}"
    where = f"{path} (of {group.name})"
    if not is_inside(path):
        raise PackError(f"{where}: is not a path inside the prefix")
    try:
        facts = os.lstat(there)
        if stat.S_ISLNK(facts.st_mode) and not name.endswith("/"):
            return _symlink(path, os.readlink(there), where), None
    except FileNotFoundError:
        raise PackError(f"{where}: is missing from {root}") from None
    except OSError as error:
        raise PackError(f"{where}: cannot be read: {error.strerror or error}") from error
    if name.endswith("/"):
        if not stat.S_ISDIR(facts.st_mode):
            raise PackError(f"{where}: is not a directory")
        return Entry(path=path, kind="directory", mode=0o755), None
    if not stat.S_ISREG(facts.st_mode):
        raise PackError(f"{where}: is neither a file nor a link")
    content = OnDisk(path=there, size=facts.st_size, mtime_ns=facts.st_mtime_ns)
    mode = 0o755 if facts.st_mode & 0o100 else 0o644
    inode = (facts.st_dev, facts.st_ino) if facts.st_nlink > 1 else None
    return Entry(path=path, kind="file", mode=mode, content=content), inode


def _symlink(path: str, target: str, where: str) -> Entry:
    if target.startswith("/"):
        raise PackError(f"{where}: is a link to {target}, which a worker need not have")
    if posixpath.normpath(posixpath.join(posixpath.dirname(path), target)).split("/")[0] == "..":
        raise PackError(f"{where}: is a link that leads out of the prefix, to {target}")
    return Entry(path=path, kind="symlink", mode=0o777, target=target)


def plan_layers(found: Iterable[Found]) -> list[Plan]:
    """Share the files out among layers, the largest layer first.

    A worker that hands layers to its cores in this order keeps them all busy to the end.
    """
    shares: dict[str, list[Found]] = {}
    for package in found:
        shares.setdefault(_layer_of(package), []).append(package)
    plans = [plan for name, packages in shares.items() for plan in _cut(name, packages)]
    return sorted(plans, key=lambda plan: (-plan.size, plan.name))


def _layer_of(package: Found) -> str:
    group = package.group
    if group.kind in ("interpreter", "other"):
        return group.kind
    if group.kind == "data":
        return _word(f"data-{group.name}")
    if sum(entry.size for entry in package.entries) >= OWN_LAYER:
        return _word(group.name if group.version is None else f"{group.name}-{group.version}")
    return _bucket(group.name)


def layers_of(package: str, version: str | None, layers: Iterable[str]) -> list[str]:
    """Which of ``layers``, an environment's, hold a package: those of its own, or else the one that it shares."""
    own = _same(_word(package if version is None else f"{package}-{version}"))
    found = [each for each in layers if _same(each) == own or re.fullmatch(re.escape(own) + r"-\d+", _same(each))]
    return found or [_bucket(package)]


def bucket_of(package: str) -> int:
    """The bucket, below ``BUCKETS``, of a package that shares one."""
    # By the name alone: another version of the package stays where it was.
    return int.from_bytes(hashlib.sha256(_same(package).encode()).digest()[:4], "big") % BUCKETS


def shared_bucket(layer: str) -> int | None:
    """Which of the buckets that the smallest packages share the layer of this name is; None for another layer."""
    found = _SHARED.match(layer)
    return None if found is None else int(found[1])


_SHARED = re.compile(rf"small-([0-{BUCKETS - 1}])(?:\.[0-9]+)?\Z")


def _same(name: str) -> str:
    """PEP 503 makes spellings equal."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _bucket(package: str) -> str:
    return f"small-{bucket_of(package)}"


def _word(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._+-]", "_", text)[:100]


def by_path(entry: Entry) -> bytes:
    """The order of entries in a layer: that of the bytes of their paths, whatever the locale."""
    return os.fsencode(entry.path)


def _cut(name: str, packages: Sequence[Found]) -> Iterator[Plan]:
    entries = sorted((entry for package in packages for entry in package.entries), key=by_path)
    inodes = {path: inode for package in packages for path, inode in package.inodes.items()}
    parts: list[list[Entry]] = [[]]
    size = 0
    first: dict[tuple[int, int], tuple[int, str]] = {}  # inode → its part, and the path that is stored as a file
    for entry in entries:
        inode = inodes.get(entry.path)
        if inode is not None and inode in first:
            # A hard link needs its file in the same layer: every layer is unpacked by a tar of its own.
            part, target = first[inode]
            parts[part].append(replace(entry, kind="hardlink", target=target, content=b""))
            continue
        if parts[-1] and size + entry.size > LARGEST:
            parts.append([])
            size = 0
        parts[-1].append(entry)
        size += entry.size
        if inode is not None:
            first[inode] = (len(parts) - 1, entry.path)
    for number, members in enumerate(parts, 1):
        if members:
            yield Plan(name=name if len(parts) == 1 else f"{name}.{number}", entries=tuple(members))
