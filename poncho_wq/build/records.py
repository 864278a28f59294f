"""Installed distributions and their RECORD: the list of a distribution's files, kept true when we change them.

The format is that of the packaging specifications ("Recording installed projects").
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import os
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from pathlib import Path

from packaging.utils import canonicalize_name

from poncho_wq.build.neutral import replace_file


class Distribution:
    """One installed distribution of the prefix, and its RECORD.

    ``name`` is normalised.  ``built_here``: uv built it from source on this machine, rather than took a wheel as
    published.  ``files`` are its files as paths relative to the prefix, sorted.
    """

    def __init__(self, info: Path, prefix: Path) -> None:
        self.name, self.version = named(info)
        self.info = info
        self.prefix = prefix
        self._root = os.fspath(prefix)
        self._base = os.path.relpath(info.parent, prefix)
        self._rows = {self._relative(row[0]): row[1:] for row in _read(info / "RECORD") if row}
        self._changed = False
        # Seen now, since settling removes what says so.
        self.built_here = (info / "uv_build.json").exists()

    def _relative(self, recorded: str) -> str:
        # Nearly all are plain, and there are ten thousand: resolving each would take longer than installing them.
        if _is_plain(recorded):
            return f"{self._base}/{recorded}"
        return os.path.relpath(os.path.join(self.info.parent, recorded), self.prefix)

    def _recorded(self, name: str) -> str:
        """The other way round."""
        base = f"{self._base}/"
        if name.startswith(base):
            return name[len(base) :]
        return os.path.relpath(os.path.join(self.prefix, name), self.info.parent)

    @property
    def files(self) -> list[str]:
        return sorted(name for name in self._rows if not name.startswith("..") and self._exists(name))

    def among(self, names: AbstractSet[str]) -> set[str]:
        """Which of ``names``, files that exist, are files of this distribution."""
        return {name for name in self._rows if name in names}

    def _exists(self, name: str) -> bool:
        return os.path.lexists(f"{self._root}/{name}")

    def changed(self, path: Path) -> None:
        """Record the new contents of ``path``, one of its files."""
        data = path.read_bytes()
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        self._rows[os.path.relpath(path, self.prefix)] = [f"sha256={digest}", str(len(data))]
        self._changed = True

    def remove(self, names: Iterable[str]) -> None:
        """Delete files of its metadata and forget them."""
        for name in names:
            path = self.info / name
            if path.exists():
                path.unlink()
                self._rows.pop(os.path.relpath(path, self.prefix), None)
                self._changed = True

    def forget_missing(self) -> None:
        """Drop the rows of files that are gone."""
        gone = [name for name in self._rows if not self._exists(name)]
        for name in gone:
            del self._rows[name]
            self._changed = True

    def save(self) -> None:
        """Write RECORD if anything changed."""
        if not self._changed:
            return
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        for name, row in sorted(self._rows.items()):
            writer.writerow([self._recorded(name), *row])
        replace_file(self.info / "RECORD", text.getvalue().encode("utf-8"))
        self._changed = False


def _is_plain(recorded: str) -> bool:
    """Whether a recorded path is one below the directory that it is relative to, written in the one usual way."""
    return not (
        recorded.startswith("/") or "//" in recorded or "./" in recorded or recorded.endswith(("/", "/.", "/.."))
        or recorded in ("", ".", "..")
    )  # fmt: skip


def named(info: Path) -> tuple[str, str]:
    """(normalised name, version) of a ``.dist-info`` directory."""
    name, _, version = info.name.removesuffix(".dist-info").partition("-")
    return canonicalize_name(name), version


def distributions(site_packages: Path, prefix: Path) -> list[Distribution]:
    """The distributions installed in ``site_packages``, sorted by name."""
    found = (Distribution(info, prefix) for info in site_packages.glob("*.dist-info") if (info / "RECORD").is_file())
    return sorted(found, key=lambda each: (each.name, each.version))


def _read(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))
