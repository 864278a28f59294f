"""Conda packages, written to a directory that py-rattler then indexes: a real channel, of whatever a test wants in it.

The format is conda's own (``.conda``: a zip of two zstd-compressed tars).  The tars are stored, not compressed: a zstd
frame of raw blocks is one to every reader, and a channel of 300 MB is made in seconds.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import tarfile
import time
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

PLACEHOLDER = ("/opt/build/_h_env_" + "placehold_" * 30)[:255]
"""What conda-build writes where the prefix goes: 255 characters, so that binaries have room for most prefixes."""

OLD_PLACEHOLDER = "/opt/anaconda1anaconda2anaconda3"
"""What packages of conda's first years have."""


@dataclass(frozen=True)
class Link:
    """A symbolic link in a package."""

    target: str


@dataclass(kw_only=True)
class Package:
    """One package.  ``files`` are what it installs: path → content, a file to copy, or a ``Link``.

    ``prefixed`` names those that hold ``placeholder`` ("text" or "binary"), ``executable`` those that are run.
    ``noarch`` is "python" or "generic"; a python one lists ``site-packages/…`` and ``entry_points``.
    """

    name: str
    version: str
    build: str = "0"
    depends: tuple[str, ...] = ()
    constrains: tuple[str, ...] = ()
    subdir: str = "linux-64"
    noarch: str | None = None
    entry_points: tuple[str, ...] = ()
    placeholder: str = PLACEHOLDER
    files: dict[str, bytes | Path | Link] = field(default_factory=dict)
    prefixed: Mapping[str, str] = field(default_factory=dict)
    executable: frozenset[str] = frozenset()

    @property
    def stem(self) -> str:
        return f"{self.name}-{self.version}-{self.build}"

    def write(self, channel: Path) -> Path:
        """Write the package into ``channel``; returns the file."""
        directory = channel / ("noarch" if self.noarch else self.subdir)
        directory.mkdir(parents=True, exist_ok=True)
        payload, paths = io.BytesIO(), []
        with tarfile.open(fileobj=payload, mode="w", format=tarfile.GNU_FORMAT) as tar:
            for path, content in sorted(self.files.items()):
                paths.append(self._add(tar, path, content))
        info = io.BytesIO()
        with tarfile.open(fileobj=info, mode="w", format=tarfile.GNU_FORMAT) as tar:
            for name, document in self._info(paths).items():
                _add_bytes(
                    tar,
                    f"info/{name}",
                    json.dumps(document).encode() if not isinstance(document, str) else document.encode(),
                )
        target = directory / f"{self.stem}.conda"
        with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
            archive.writestr(zipfile.ZipInfo("metadata.json"), json.dumps({"conda_pkg_format_version": 2}))
            archive.writestr(zipfile.ZipInfo(f"info-{self.stem}.tar.zst"), stored_zstd(info.getvalue()))
            archive.writestr(zipfile.ZipInfo(f"pkg-{self.stem}.tar.zst"), stored_zstd(payload.getvalue()))
        return target

    def _add(self, tar: tarfile.TarFile, path: str, content: bytes | Path | Link) -> dict[str, object]:
        if isinstance(content, Link):
            entry = tarfile.TarInfo(path)
            entry.type, entry.linkname = tarfile.SYMTYPE, content.target
            tar.addfile(entry)
            resolved = hashlib.sha256(b"").hexdigest()
            return {"_path": path, "path_type": "softlink", "sha256": resolved, "size_in_bytes": 0}
        data = content.read_bytes() if isinstance(content, Path) else content
        mode = (
            0o755
            if path in self.executable or (isinstance(content, Path) and content.stat().st_mode & 0o100)
            else 0o644
        )
        # sources and their .pyc carry the time of the build, as real packages do
        _add_bytes(tar, path, data, mode=mode, mtime=BUILT_AT)
        row: dict[str, object] = {
            "_path": path, "path_type": "hardlink", "sha256": hashlib.sha256(data).hexdigest(),
            "size_in_bytes": len(data),
        }  # fmt: skip
        if path in self.prefixed:
            assert self.placeholder.encode() in data, path
            row |= {"prefix_placeholder": self.placeholder, "file_mode": self.prefixed[path]}
        return row

    def _info(self, paths: list[dict[str, object]]) -> dict[str, object]:
        number = int(self.build.rpartition("_")[2])
        index: dict[str, object] = {
            "name": self.name, "version": self.version, "build": self.build, "build_number": number,
            "depends": list(self.depends), "constrains": list(self.constrains), "license": "BSD-3-Clause",
            "subdir": "noarch" if self.noarch else self.subdir, "timestamp": BUILT_AT * 1000,
        }  # fmt: skip
        if self.noarch:
            index["noarch"] = self.noarch
        else:
            index |= {"platform": "linux", "arch": {"linux-64": "x86_64", "linux-aarch64": "aarch64"}[self.subdir]}
        documents: dict[str, object] = {
            "index.json": index,
            "paths.json": {"paths": paths, "paths_version": 1},
            "about.json": {"summary": f"{self.name} for tests"},
            "files": "".join(f"{row['_path']}\n" for row in paths),
        }
        if self.noarch == "python":
            documents["link.json"] = {
                "noarch": {"type": "python", "entry_points": list(self.entry_points)},
                "package_metadata_version": 1,
            }
        return documents


BUILT_AT = 1700000000


def _add_bytes(tar: tarfile.TarFile, path: str, data: bytes, *, mode: int = 0o644, mtime: int = 0) -> None:
    entry = tarfile.TarInfo(path)
    entry.size, entry.mode, entry.mtime = len(data), mode, mtime
    tar.addfile(entry, io.BytesIO(data))


def stored_zstd(data: bytes) -> bytes:
    """``data`` as one zstd frame of raw blocks (RFC 8878, 3.1.1): window of 128 KiB, no checksum."""
    largest = 1 << 17
    parts = [b"\x28\xb5\x2f\xfd\x00\x38"]
    blocks = range(0, len(data), largest) or range(1)
    for start in blocks:
        block = data[start : start + largest]
        last = start + largest >= len(data)
        parts += [(last | len(block) << 3).to_bytes(3, "little"), block]
    return b"".join(parts)


def index(channel: Path) -> str:
    """Index the packages of ``channel`` as a server's owner would; returns its ``file://`` URL."""
    from rattler import Subdir
    from rattler.index import index_fs

    (channel / "noarch").mkdir(parents=True, exist_ok=True)
    # the indexer leaves a directory .tmp behind
    subdirs = [Subdir("noarch"), *(Subdir(path.name) for path in sorted(channel.glob("*-*")) if path.is_dir())]

    async def everything() -> None:
        for subdir in subdirs:
            await index_fs(channel, target_platform=subdir, write_shards=False, force=True)

    asyncio.run(everything())
    time.sleep(0.02)  # py-rattler 0.28: a program that ends at once may crash
    return channel.as_uri()
