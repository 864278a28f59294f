"""Tar headers as bytes: the few kinds of entry that a layer holds, always the same bytes for the same entry.

Written here rather than with ``tarfile`` because the bytes are a frozen format (``tarfile`` may choose other fields in
another Python) and because an environment has ten thousand of them.

Names of up to 255 bytes use POSIX ustar's ``prefix`` field; longer ones, and long link targets, GNU's ``L`` and ``K``
entries.  Pax headers would be the standard's way, but busybox tar skips them and unpacks under the short name.
"""

from __future__ import annotations

import os

BLOCK = 512

MTIME = 315532800
"""Time of every entry: 1980-01-01, the oldest that zip files know; GNU tar warns of 1970."""

_NAME, _PREFIX, _LINK = 100, 155, 100
_LARGEST_OCTAL = 0o77777777777


def padding(size: int) -> bytes:
    """The zeros that fill a file of ``size`` bytes up to a whole block."""
    return b"\0" * (-size % BLOCK)


def file_header(path: str, *, size: int, mode: int) -> bytes:
    """What precedes the ``size`` bytes of a regular file."""
    return _entry(path, b"0", size=size, mode=mode)


def symlink_header(path: str, target: str) -> bytes:
    """A symbolic link whose text is ``target``."""
    return _entry(path, b"2", mode=0o777, link=target)


def hardlink_header(path: str, target: str, *, mode: int) -> bytes:
    """Another name of ``target``, the path of a file that was written before."""
    return _entry(path, b"1", mode=mode, link=target)


def directory_header(path: str) -> bytes:
    """An empty directory; ``path`` without the final slash."""
    return _entry(f"{path}/", b"5", mode=0o755)


def _entry(path: str, kind: bytes, *, mode: int, size: int = 0, link: str = "") -> bytes:
    name, target = os.fsencode(path), os.fsencode(link)
    before = b""
    if len(target) > _LINK:
        before += _long(target, b"K")
        target = target[:_LINK]
    prefix, short = _split(name)
    if short is None:
        before += _long(name, b"L")
        prefix, short = b"", name[:_NAME]
    return before + _block(short, prefix, kind, mode=mode, size=size, target=target)


def _split(name: bytes) -> tuple[bytes, bytes | None]:
    """``(prefix, name)`` as ustar wants them; the name is None when it does not fit."""
    if len(name) <= _NAME:
        return b"", name
    # The last slash that leaves at most 155 bytes before it and, not empty, at most 100 behind it.
    slash = name.rfind(b"/", 0, _PREFIX + 1)
    if slash > 0 and 0 < len(name) - slash - 1 <= _NAME:
        return name[:slash], name[slash + 1 :]
    return b"", None


def _long(text: bytes, kind: bytes) -> bytes:
    """GNU's entry that carries the full name (``L``) or link target (``K``) of the entry after it."""
    size = len(text) + 1
    return _block(b"././@LongLink", b"", kind, mode=0o644, size=size, target=b"") + text + b"\0" + padding(size)


def _block(name: bytes, prefix: bytes, kind: bytes, *, mode: int, size: int, target: bytes) -> bytes:
    # Twelve bytes hold a size in octal up to 8 GiB; GNU's base 256, which busybox and Python read too, beyond.
    length = b"%011o\0" % size if size <= _LARGEST_OCTAL else b"\x80" + size.to_bytes(11, "big")
    block = b"".join(
        (
            name.ljust(_NAME, b"\0"),
            b"%07o\0" % mode,
            b"0000000\x000000000\0",  # owner and group 0
            length,
            b"%011o\0" % MTIME,
            b" " * 8,  # the checksum counts itself as blanks
            kind,
            target.ljust(_LINK, b"\0"),
            b"ustar\x0000",
            b"root".ljust(32, b"\0"),
            b"root".ljust(32, b"\0"),
            b"0000000\x000000000\0",  # device numbers
            prefix.ljust(_PREFIX, b"\0"),
            b"\0" * 12,
        )
    )
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]
