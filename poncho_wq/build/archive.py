"""Archives from elsewhere → files: nothing outside the directory is touched, whatever the archive says.

Written here rather than left to ``tarfile``'s filters: those exist in some Python versions only, and what they let
through has changed.  The rules: a name is relative and has no ``..``; nothing is written through a link; a link leads
to something inside; regular files, directories and links only; no setuid or setgid programs.
"""

from __future__ import annotations

import bz2
import lzma
import os
import re
import shutil
import stat
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from poncho_wq import zstd_library
from poncho_wq.command import piped
from poncho_wq.errors import BuildError, quoted
from poncho_wq.progress import OnProgress, Progress
from poncho_wq.scratch import disk_error

_PIECE = 1 << 20
_MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_EXTENSIONS = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)
_DAMAGED = (EOFError, zlib.error, lzma.LZMAError, tarfile.TarError, ValueError)


def compression_of(path: Path) -> str | None:
    """How the file ``path`` is compressed, by what it begins with; None when it is not, in a way that is known."""
    with path.open("rb") as file:
        head = file.read(6)
    return next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None)


def decompress(source: Path, target: Path, compression: str, *, what: str, on_progress: OnProgress) -> None:
    """Write what ``source`` holds compressed to the new file ``target``.  ``what`` names it to a person.

    Raises ``BuildError`` when it is damaged, compressed otherwise, or larger than the disk, ``CacheError`` when the
    disk cannot be written.
    """
    with _reading(source, compression, target.parent, what) as stream, _writing(target.parent, what):
        room = _Room(target.parent, source.stat().st_size, what, on_progress)
        with target.open("xb") as file:
            while piece := stream.read(_PIECE):
                room.take(len(piece))
                file.write(piece)


def unpack(source: Path, directory: Path, compression: str | None, *, what: str, on_progress: OnProgress) -> None:
    """Unpack the tar archive ``source`` into the new directory ``directory``; ``compression`` None: as it looks.

    Permissions become those that an environment has (0644, 0755 for programs); owners and times are left out.
    Raises ``BuildError`` naming the first member that is refused, and as ``decompress`` does.
    """
    compression = compression or compression_of(source)
    with _reading(source, compression, directory.parent, what) as stream, _writing(directory.parent, what):
        directory.mkdir()
        unpacking = _Unpacking(directory, what, _Room(directory, source.stat().st_size, what, on_progress))
        with tarfile.open(fileobj=stream, mode="r|", tarinfo=_Member) as archive:
            for member in archive:
                unpacking.put(archive, member)
        while stream.read(_PIECE):  # the checksum of what was compressed comes at its end
            pass
    check_links(directory, what)


def check_links(directory: Path, what: str) -> None:
    """Refuse symbolic links in ``directory`` that lead out of it: on a worker they mean nothing, or something else."""
    root = os.path.realpath(directory)
    for place, subdirectories, files in os.walk(directory):
        for name in (*subdirectories, *files):
            path = os.path.join(place, name)
            if not os.path.islink(path):
                continue
            target, real = os.readlink(path), os.path.realpath(path)
            if os.path.isabs(target) or (real != root and not real.startswith(root + os.sep)):
                relative = os.path.relpath(path, directory)
                raise BuildError(f"{what}: the link {relative!r} leads out of the directory, to {target!r}")


class _Member(tarfile.TarInfo):
    """A member whose long name and other extensions are not themselves a bomb: tarfile reads those into memory."""

    # Between the header and what it announces.  Not in `frombuf`, which the tarfile of Python 3.14.10 passes by.
    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in _EXTENSIONS and not 0 <= self.size <= _PIECE:
            raise ValueError(f"a header of {self.size} bytes")
        found: tarfile.TarInfo = super()._proc_member(archive)  # type: ignore[misc] # the type stubs do not know it
        return found


# Beyond this many bytes an archive that unpacks to so many times its size is taken for a bomb: the text of sparse
# tables comes to a fiftieth of its size, gzip goes to a thousandth at most, bzip2 and zstd far beyond.
_SMALL, _RATIO = 1 << 30, 200
_MAX_VARIABLE = "PONCHO_MAX_UNPACKED"
_MAX = re.compile(r"([0-9]{1,15})([KMGT]?)")


def _most() -> int | None:
    """How many bytes an archive may unpack to, if the user says so.  Raises ``BuildError``."""
    given = os.environ.get(_MAX_VARIABLE)
    if not given:
        return None
    match = _MAX.fullmatch(given.strip())
    if match is None:
        raise BuildError(f"{_MAX_VARIABLE}: expected a number of bytes such as 500G, got {quoted(given)}")
    return int(match[1]) << 10 * " KMGT".index(match[2] or " ")


class _Room:
    """Counts what is written, and stops before the disk is full: ``packed`` bytes of archive may unpack to anything."""

    def __init__(self, directory: Path, packed: int, what: str, on_progress: OnProgress) -> None:
        self._what, self._report = what, on_progress
        self._free = shutil.disk_usage(directory).free
        stated = _most()
        self._most = max(_SMALL, packed * _RATIO) if stated is None else stated
        self._done = self._reported = 0

    def take(self, size: int) -> None:
        self._done += size
        if self._done > self._free:
            raise BuildError(
                f"{self._what}: unpacks to more than the {self._free} bytes that are free",
                advice="set PONCHO_CACHE_DIR, or --cache-dir, to a directory on a larger disk",
            )
        if self._done > self._most:
            raise BuildError(
                f"{self._what}: unpacks to more than {self._most} bytes, which for a file of its size nobody means",
                advice=f"if it is right, say how many it may be: {_MAX_VARIABLE}=500G",
            )
        if self._done - self._reported >= 16 * _PIECE:
            self._reported = self._done
            self._report(Progress(stage="unpack", detail=self._what, done=self._done, unit="bytes"))


class _Unpacking:
    """A directory that is being filled from an archive."""

    def __init__(self, root: Path, what: str, room: _Room) -> None:
        self._root, self._what, self._room = root, what, room
        self._directories: set[tuple[str, ...]] = {()}  # of names: what is known to be a directory, and no link to one

    def put(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        parts = self._parts(member, member.name)
        if not parts:
            return
        path = self._root.joinpath(*parts)
        if member.isdir():
            self._directory(member, parts)
        elif member.isreg():
            if member.mode & (stat.S_ISUID | stat.S_ISGID):
                self._refuse(member, "is a program that would run as another user (setuid)")
            self._clear(member, parts, path)
            self._room.take(member.size)
            self._copy(archive, member, path)
        elif member.issym():
            self._clear(member, parts, path)
            path.symlink_to(member.linkname)  # where it leads is looked at when everything is there
        elif member.islnk():
            target = self._parts(member, member.linkname)
            self._directory(member, target[:-1])
            source = self._root.joinpath(*target)
            if not target or not source.is_file() or source.is_symlink():
                self._refuse(member, f"is a hard link to {member.linkname!r}, which is no file of the archive")
            if source != path:
                self._clear(member, parts, path)
                os.link(source, path)
        else:
            self._refuse(member, "is a device, a pipe or something else that is no file")

    def _parts(self, member: tarfile.TarInfo, name: str) -> tuple[str, ...]:
        parts = tuple(part for part in name.split("/") if part not in ("", "."))
        if name.startswith("/") or ".." in parts:
            self._refuse(member, "leaves the directory")
        return parts

    def _directory(self, member: tarfile.TarInfo, parts: tuple[str, ...]) -> None:
        """Make a directory and those above it, none of which may be a link."""
        for length in range(1, len(parts) + 1):
            known = parts[:length]
            if known in self._directories:
                continue
            path = self._root.joinpath(*known)
            if path.is_symlink():
                self._refuse(member, f"goes through the link {'/'.join(known)!r}")
            if path.exists() and not path.is_dir():
                self._refuse(member, f"needs {'/'.join(known)!r} to be a directory, which is a file")
            path.mkdir(exist_ok=True)
            self._directories.add(known)

    def _clear(self, member: tarfile.TarInfo, parts: tuple[str, ...], path: Path) -> None:
        """Make place for a file: as with tar, the last of several members of one name counts."""
        self._directory(member, parts[:-1])
        if path.is_dir() and not path.is_symlink():
            self._refuse(member, "has the name of a directory")
        path.unlink(missing_ok=True)

    def _copy(self, archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
        content = archive.extractfile(member)
        assert content is not None, "a regular file has content"
        mode = 0o755 if member.mode & 0o111 else 0o644
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
        with open(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)
            shutil.copyfileobj(content, file, _PIECE)

    def _refuse(self, member: tarfile.TarInfo, why: str) -> None:
        raise BuildError(f"{self._what}: the archive's member {member.name!r} {why}")


@contextmanager
def _reading(source: Path, compression: str | None, work: Path, what: str) -> Iterator[IO[bytes]]:
    """The decompressed contents of ``source``.  Raises ``BuildError`` for a file that is not what it is said to be."""
    found = compression_of(source)
    if found != compression:
        raise BuildError(
            f"{what}: the compression is said to be {compression}, and the file is "
            + (f"compressed with {found}" if found else "not compressed with it"),
            advice=f'write "compression": "{found}"' if found else 'leave out "compression"',
        )
    try:
        with _opened(source, compression, work, what) as stream:
            yield stream
    except _DAMAGED as error:
        raise BuildError(f"{what}: the file is damaged: {error or type(error).__name__}") from error
    except OSError as error:
        # What decompressors raise is an OSError without a number; others are the disk's.
        if error.errno is not None:
            raise
        raise BuildError(f"{what}: the file is damaged: {error}") from error


@contextmanager
def _opened(source: Path, compression: str | None, work: Path, what: str) -> Iterator[IO[bytes]]:
    if compression == "zstd":
        with _zstd(source, what) as stream:
            yield stream
        return
    from isal import igzip, igzip_lib  # two to three times as fast as gzip

    openers: dict[str | None, Any] = {"gzip": igzip.open, "bzip2": bz2.open, "xz": lzma.open, None: open}
    try:
        with openers[compression](source, "rb") as stream:
            yield stream
    except igzip_lib.IsalError as error:  # type: ignore[misc]  # isal has no types
        raise ValueError(str(error)) from error


@contextmanager
def _zstd(source: Path, what: str) -> Iterator[IO[bytes]]:
    """Python's own module (since 3.14), else one that is installed, else the program."""
    module = zstd_library.find()
    if module is not None:
        try:
            with module.open(source, "rb") as stream:
                yield stream
        except module.ZstdError as error:
            raise ValueError(str(error)) from error
        return
    program = shutil.which("zstd")
    if program is None:
        raise BuildError(
            f"{what}: nothing here decompresses zstd",
            advice=f"{zstd_library.ADVICE}, or install the program zstd",
        )
    with piped([program, "-d", "-q", "-c", "--", source], what=f"decompress {what}") as stream:
        yield stream


@contextmanager
def _writing(directory: Path, what: str) -> Iterator[None]:
    """Disk errors as ours."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise disk_error(error, directory, f"could not unpack {what}") from error
