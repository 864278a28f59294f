"""ELF files: what programs and shared libraries ask of the loader, and what of them is never loaded.

Reads what the loader reads (program headers and the dynamic section; sections may be missing), after the ELF
specification and ld.so(8).  Workers are x86_64 or aarch64, so 64-bit little-endian is all there is.
"""

from __future__ import annotations

import mmap
import os
import platform
import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from poncho_wq.errors import BuildError

_MAGIC = b"\x7fELF\x02\x01"
_MACHINES = {"x86_64": 62, "aarch64": 183}  # EM_X86_64, EM_AARCH64
_GLIBC = re.compile(r"GLIBC_(\d+(?:\.\d+)+)")
# A binary with DT_RELR relocations asks for this name, which the loader has since 2.36 (glibc's NEWS).
_RELR, _RELR_VERSION = "GLIBC_ABI_DT_RELR", (2, 36)
# Opening every file only to see that it is text would take longer than all the rest.
_NEVER_ELF = frozenset(
    {
        ".py",
        ".pyi",
        ".pyx",
        ".pxd",
        ".pyc",
        ".txt",
        ".h",
        ".hpp",
        ".c",
        ".json",
        ".md",
        ".rst",
        ".toml",
        ".typed",
        ".csv",
    }
    | {".html", ".js", ".css", ".png", ".svg", ".xml", ".yaml"}
)
# Segment types and dynamic tags.
_PT_LOAD, _PT_DYNAMIC, _PT_INTERP = 1, 2, 3
_DT_NEEDED, _DT_STRTAB, _DT_RPATH, _DT_RUNPATH, _DT_VERNEED, _DT_VERNEEDNUM = 1, 5, 15, 29, 0x6FFFFFFE, 0x6FFFFFFF
_SHF_ALLOC, _SHF_INFO_LINK, _SHT_NOBITS, _SHT_STRTAB = 2, 0x40, 8, 3
_SECTION = struct.Struct("<IIQQQQIIQQ")
# What a damaged file ends in.
_UNREADABLE = (OSError, struct.error, ValueError, IndexError, OverflowError)


@dataclass(frozen=True, kw_only=True)
class Elf:
    """What a program or library says to the loader.

    ``needed`` are sonames; ``rpath`` and ``runpath`` the directories of the tags of those names, ``$ORIGIN`` as
    written; ``loader`` the program interpreter, None for a library; ``glibc`` the highest ``GLIBC_x.y`` it asks for;
    ``machine`` the processor by the number in its header.
    """

    needed: tuple[str, ...] = ()
    rpath: tuple[str, ...] = ()
    runpath: tuple[str, ...] = ()
    loader: str | None = None
    glibc: tuple[int, ...] | None = None
    machine: int = 0

    @property
    def for_this_machine(self) -> bool:
        """False for binaries of other processors, which packages bring along as test data."""
        return self.machine == _MACHINES.get(platform.machine())


def is_elf(path: Path) -> bool:
    """Whether ``path`` is a 64-bit little-endian ELF file."""
    try:
        with path.open("rb") as file:
            return file.read(6) == _MAGIC
    except OSError:
        return False


def read(path: Path) -> Elf:
    """The facts of the ELF file ``path``.  Raises ``BuildError`` where it is none, or damaged."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if data[:6] != _MAGIC:
                raise BuildError(f"{path.name} is not a 64-bit ELF file")
            return _facts(data)
    except _UNREADABLE as error:
        raise BuildError(f"cannot read the binary {path.name}: {error}") from error


def scan(root: Path) -> Iterator[tuple[Path, Elf]]:
    """The ELF files below ``root`` with their facts, in order of their paths, without those that are damaged."""
    for directory, subdirectories, files in os.walk(root):
        subdirectories.sort()
        for name, facts in among(directory, sorted(files)):
            yield Path(directory, name), facts


def among(root: str | Path, names: Iterable[str]) -> Iterator[tuple[str, Elf]]:
    """Those of ``names``, files in ``root``, that are ELF files, with their facts, without those that are damaged.

    Symbolic links are not followed.  Files are told by their names first, since most are text.
    """
    for name in names:
        # No Path, and one open: ten thousand of those, and looking twice, take longer than reading the binaries.
        if os.path.splitext(name)[1] in _NEVER_ELF:
            continue
        facts = _facts_of(f"{root}/{name}")
        if facts is not None:
            yield name, facts


def _facts_of(path: str) -> Elf | None:
    """None where it is no ELF file, a link, or damaged (a package's test data: no loader will be asked to load it)."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        if os.read(file, len(_MAGIC)) != _MAGIC:
            return None
        with mmap.mmap(file, 0, access=mmap.ACCESS_READ) as data:
            return _facts(data)
    except _UNREADABLE:
        return None
    finally:
        os.close(file)


def parse_glibc(symbol: str) -> tuple[int, ...] | None:
    """``"GLIBC_2.17"`` → ``(2, 17)``; None for names of other kinds (``GLIBC_PRIVATE``)."""
    match = _GLIBC.fullmatch(symbol)
    return tuple(map(int, match[1].split("."))) if match else None


def _facts(data: mmap.mmap) -> Elf:
    segments = _segments(data)
    loader = None
    dynamic: list[tuple[int, int]] = []
    for kind, offset, _address, length in segments:
        if kind == _PT_INTERP:
            loader = data[offset : offset + length].rstrip(b"\0").decode()
        elif kind == _PT_DYNAMIC:
            dynamic = list(_dynamic(data, offset, length))
    last = dict(dynamic)
    strings = _file_offset(segments, last[_DT_STRTAB]) if _DT_STRTAB in last else 0

    def directories(tag: int) -> tuple[str, ...]:
        text = _text(data, strings + last[tag]) if tag in last else ""
        return tuple(part for part in text.split(":") if part)

    glibc = None
    if _DT_VERNEED in last:
        versions = list(
            _versions(data, _file_offset(segments, last[_DT_VERNEED]), last.get(_DT_VERNEEDNUM, 0), strings)
        )
        glibc = max((version for version in versions if version), default=None)
    return Elf(
        needed=tuple(_text(data, strings + value) for tag, value in dynamic if tag == _DT_NEEDED),
        rpath=directories(_DT_RPATH),
        runpath=directories(_DT_RUNPATH),
        loader=loader,
        glibc=glibc,
        machine=struct.unpack_from("<H", data, 18)[0],
    )


def _segments(data: mmap.mmap | bytes) -> list[tuple[int, int, int, int]]:
    """(type, file offset, address, length in the file) of each program header."""
    (start,) = struct.unpack_from("<Q", data, 0x20)
    size, count = struct.unpack_from("<HH", data, 0x36)
    found = []
    for i in range(count):
        kind, _flags, offset, address, _physical, length = struct.unpack_from("<IIQQQQ", data, start + i * size)
        found.append((kind, offset, address, length))
    return found


def _dynamic(data: mmap.mmap, offset: int, length: int) -> Iterator[tuple[int, int]]:
    for at in range(offset, offset + length, 16):
        tag, value = struct.unpack_from("<qQ", data, at)
        if tag == 0:
            return
        yield tag, value


def _versions(data: mmap.mmap, at: int, libraries: int, strings: int) -> Iterator[tuple[int, ...] | None]:
    """The glibc versions in the table of needed versions (gABI "Symbol Versioning": Verneed and Vernaux)."""
    for _ in range(libraries):
        _version, count, _file, first, following = struct.unpack_from("<HHIII", data, at)
        entry = at + first
        for _ in range(count):
            _hash, flags, _other, name_at, next_entry = struct.unpack_from("<IHHII", data, entry)
            if not flags & 2:  # VER_FLG_WEAK: the loader only warns when it is missing
                name = _text(data, strings + name_at)
                yield _RELR_VERSION if name == _RELR else parse_glibc(name)
            entry += next_entry
            if not next_entry:
                break
        at += following
        if not following:
            break


def _file_offset(segments: list[tuple[int, int, int, int]], address: int) -> int:
    for kind, offset, start, length in segments:
        if kind == _PT_LOAD and start <= address < start + length:
            return offset + address - start
    raise ValueError(f"nothing is loaded at {address:#x}")


def _text(data: mmap.mmap, at: int) -> str:
    end = data.find(b"\0", at)
    if end < 0:
        raise ValueError(f"the text at {at:#x} has no end")
    return os.fsdecode(data[at:end])


def strip(data: bytes) -> bytes:
    """``data``, an ELF file, without what is not loaded: debugging information and the symbol table beside it.

    Returned as it is where its layout is not the usual one (sections that are loaded come first).  The debugging
    information of an interpreter is larger than itself and names the directory it was compiled in.
    """
    (start,) = struct.unpack_from("<Q", data, 0x28)
    size, count, names_index = struct.unpack_from("<HHH", data, 0x3A)
    if size != _SECTION.size or not 0 < names_index < count < 0xFF00 or start + size * count > len(data):
        return data
    sections = [_Section(*_SECTION.unpack_from(data, start + i * size)) for i in range(count)]
    kept = [section for section in sections[1:] if section.flags & _SHF_ALLOC]
    if len(kept) == count - 1 or kept != sections[1 : len(kept) + 1]:
        return data
    if any(s.link > len(kept) or (s.flags & _SHF_INFO_LINK and s.info > len(kept)) for s in kept):
        return data
    table, names = bytearray(_SECTION.size), bytearray(b"\0")
    for section in kept:
        name_at = sections[names_index].offset + section.name
        table += section.packed(name=len(names))
        names += data[name_at : data.index(b"\0", name_at) + 1]
    end = max([_loaded_end(data), *(s.offset + s.size for s in kept if s.type != _SHT_NOBITS)])
    table += _SECTION.pack(len(names), _SHT_STRTAB, 0, 0, end, len(names) + 10, 0, 0, 1, 0)
    names += b".shstrtab\0"
    out = bytearray(data[:end]) + names
    out += bytes(-len(out) % 8)
    struct.pack_into("<Q", out, 0x28, len(out))
    struct.pack_into("<HH", out, 0x3C, len(kept) + 2, len(kept) + 1)
    return bytes(out + table)


@dataclass(frozen=True)
class _Section:
    """A section header, its fields in the order of the file."""

    name: int
    type: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    info: int
    align: int
    entry: int

    def packed(self, *, name: int) -> bytes:
        rest = (
            self.type,
            self.flags,
            self.address,
            self.offset,
            self.size,
            self.link,
            self.info,
            self.align,
            self.entry,
        )
        return _SECTION.pack(name, *rest)


def _loaded_end(data: bytes) -> int:
    """Where the last segment, or the table of segments, ends in the file."""
    (start,) = struct.unpack_from("<Q", data, 0x20)
    size, count = struct.unpack_from("<HH", data, 0x36)
    ends = [offset + length for _kind, offset, _address, length in _segments(data)]
    return max(int(start) + int(size) * int(count), *ends)
