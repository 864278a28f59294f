"""Where the files of a linked conda prefix name the prefix: what `bin/conda-unpack` later replaces.

Packages are linked with `PLACEHOLDER` in those places, instead of the directory that they are linked in, so that a
package's files are the same in every environment and on every machine.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from poncho_wq.build import Relocation
from poncho_wq.errors import BuildError

PLACEHOLDER = "/opt/poncho_wq_fills_in_a_prefix"
"""32 characters: no longer than the shortest that packages were ever built with, since a binary's text can only shrink;
and short enough for the first line of a script, which py-rattler would otherwise rewrite for good."""

_NEEDLE = PLACEHOLDER.encode()
# A worker's scratch directory, its sandbox and a name with a digest come to some 120 characters on real clusters.
_ENOUGH = 200


def relocations(prefix: Path, packages: Iterable[Mapping[str, Any]]) -> tuple[Relocation, ...]:
    """Every place of the placeholder in ``prefix``, sorted by path.

    ``packages`` are the documents of ``conda-meta/*.json``: they say which files hold one, how, and how much room their
    binaries have.  Raises ``BuildError`` for a binary that is not as its package says.
    """
    found = {}
    for package in packages:
        for path, kind, room in _candidates(package):
            file = prefix / path
            if path in found or file.is_symlink() or not file.is_file():
                continue
            data = file.read_bytes()
            places = tuple(_in_text(data)) if kind == "text" else tuple(_in_binary(data, room, path))
            if places:
                found[path] = Relocation(path=path, kind="text" if kind == "text" else "binary", places=places)
    return tuple(found[path] for path in sorted(found))


def room_for_prefix(packages: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Package → how long a prefix its binaries have room for, where that is less than a worker's directory may need."""
    found: dict[str, int] = {}
    for package in packages:
        for _, kind, room in _candidates(package):
            if kind == "binary" and room < _ENOUGH:
                found[package["name"]] = min(room, found.get(package["name"], room))
    return found


def _candidates(package: Mapping[str, Any]) -> Iterator[tuple[str, str, int]]:
    """(path, kind, length of the package's own placeholder)."""
    for row in package.get("paths_data", {}).get("paths", ()):
        if row.get("prefix_placeholder"):
            yield row["_path"], row.get("file_mode") or "text", len(row["prefix_placeholder"].encode())
        elif row.get("path_type") == "unix_python_entry_point":  # written when the package was linked
            yield row["_path"], "text", len(_NEEDLE)


def _in_text(data: bytes) -> Iterator[tuple[int, int]]:
    at = data.find(_NEEDLE)
    while at >= 0:
        yield at, len(_NEEDLE)
        at = data.find(_NEEDLE, at + len(_NEEDLE))


def _in_binary(data: bytes, room: int, path: str) -> Iterator[tuple[int, int]]:
    """One place for each zero-terminated text: where its first placeholder is, and all the bytes it may use from there.

    Linking put the shorter placeholder in and filled up with zeros, so the text may grow by as much again.
    """
    at = data.find(_NEEDLE)
    while at >= 0:
        end = data.find(b"\0", at)
        end = len(data) if end < 0 else end
        spare = data.count(_NEEDLE, at, end) * (room - len(_NEEDLE))
        if data[end : end + spare] != bytes(spare):
            raise BuildError(f"{path}: the text at {at} has not the room that its package says")
        yield at, end + spare - at
        at = data.find(_NEEDLE, end)
