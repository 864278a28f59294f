"""The three forms of a tarball: a row of gzip members, a row of zstd frames, or the bare tar.

All hold the same fragments in the same order, so that digests, and with them the identity, do not depend on the form.
In all of them the manifest and the end of the archive are *stored*, not compressed: their bytes follow from the text
alone, on any machine and with any version of any compressor, the manifest can state its own length, and a shell's
``read`` finds the identity.  The layout is described for readers of other languages in ``docs/formats/tarball.md``.
"""

from __future__ import annotations

import contextlib
import struct
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol

from poncho_wq import zstd_library
from poncho_wq.errors import PackError
from poncho_wq.packing.xxhash64 import xxhash64

Compression = Literal["gzip", "zstd", "none"]

GZIP_HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
"""RFC 1952: magic, deflate, no flags, no time, no extra flags, unknown system."""

# RFC 1951 §3.2.4: a stored block has a 16-bit length.
_STORED_MAX = 65535
# Level 2 of isal: measured 560 MB/s a core, 10 % larger than zlib's level 4 at 60 MB/s. Level 3 would be 3 % smaller
# and a third slower, but gives other bytes with AVX-512 than without (1 and 2 give the same; seen with valgrind).
_GZIP_LEVEL = 2

# RFC 8878 §3.1.1: magic; a descriptor that says "checksum at the end" and nothing else; a window of 16 KiB, which no
# block may exceed. Small blocks, since a decoder that is given half a block may keep it to itself.
_ZSTD_HEADER = b"\x28\xb5\x2f\xfd\x04\x20"
_ZSTD_BLOCK = 16384
# Level 3: half as fast as our gzip, and a fifth smaller. Level 9 would be an eighth smaller still, at a fifth of it.
_ZSTD_LEVEL = 3

_PIECE = 1 << 20
_COMPRESSED_PIECE = 1 << 16
# A first member is read whole into memory; one line for each of a million relocated files stays below this.
_LONGEST = 1 << 28


class Damaged(ValueError):
    """What is read is not what was written; the text says in which way."""


class Writer(Protocol):
    """Makes one member.  ``checksum`` is what its end vouches with, once ``end`` was called."""

    checksum: int

    def begin(self) -> bytes:
        """What precedes the content."""

    def add(self, piece: bytes | bytearray) -> bytes:
        """As much of the member as can be written after this piece of content."""

    def end(self) -> bytes:
        """The rest."""


class Form(ABC):
    """One of the three.

    ``suffix`` is that of a tarball's name, ``layer_suffix`` of a layer's.  ``shortest`` are the fewest bytes of a
    member.  ``header`` are the first bytes of a tarball, and at ``content_at`` its content begins.  ``tail`` bytes at
    the end of a member are what ``ends_right`` judges.
    """

    name: Compression
    suffix: str
    layer_suffix: str
    shortest: int
    header: bytes
    content_at: int
    tail: int

    @abstractmethod
    def stored(self, data: bytes) -> bytes:
        """``data`` (not empty) as one member of stored blocks."""

    @abstractmethod
    def stored_length(self, size: int) -> int:
        """How long ``stored`` is for so many bytes."""

    @abstractmethod
    def first(self, stream: BinaryIO) -> bytes | None:
        """The content of the stored member at the start of a tarball; None when it does not end.

        Raises ``Damaged``.
        """

    @abstractmethod
    def writer(self) -> Writer:
        """For one layer.  Raises ``PackError`` when a library is missing."""

    @abstractmethod
    def ends_right(self, tail: bytes, checksum: int, size: int) -> bool:
        """Whether this is the end of the member of a writer's checksum, for ``size`` bytes of content."""

    @abstractmethod
    def content(self, stream: BinaryIO, length: int) -> Iterator[bytes]:
        """What the member holds that begins here and is ``length`` bytes long, in pieces.

        Raises ``Damaged`` when it is not exactly that long, or does not agree with its own checksum (the bare tar has
        none), ``PackError`` when a library is missing.
        """

    def require(self) -> None:  # noqa: B027  # most forms need nothing
        """Raises ``PackError``, with the command that mends it, when what writes and reads this form is missing."""


def _decoded(stream: BinaryIO, length: int, decoder: Any, error: type[Exception]) -> Iterator[bytes]:
    """What ``decoder``, an object like ``zlib.decompressobj()`` that raises ``error``, makes of ``length`` bytes."""
    left = length
    # Little at a time: what a piece unpacks to is held in memory, and may be a thousand times as much.
    while left and not decoder.eof and (piece := stream.read(min(left, _COMPRESSED_PIECE))):
        left -= len(piece)
        try:
            content = decoder.decompress(piece)
        except error as damage:
            raise Damaged(f"cannot be decompressed ({damage})") from damage
        yield content
    if left or not decoder.eof or decoder.unused_data:
        raise Damaged("is cut short, or has something after its end")


class _Gzip(Form):
    name: Compression = "gzip"
    suffix, layer_suffix = ".tar.gz", ".gz"
    shortest = 20
    header = GZIP_HEADER
    content_at = len(GZIP_HEADER) + 5
    tail = 8

    def stored(self, data: bytes) -> bytes:
        parts = [GZIP_HEADER]
        for start in range(0, len(data), _STORED_MAX):
            block = data[start : start + _STORED_MAX]
            last = start + _STORED_MAX >= len(data)
            parts += [struct.pack("<BHH", last, len(block), len(block) ^ 0xFFFF), block]
        parts.append(_gzip_trailer(zlib.crc32(data), len(data)))
        return b"".join(parts)

    def stored_length(self, size: int) -> int:
        return len(GZIP_HEADER) + 5 * -(-size // _STORED_MAX) + size + 8

    def first(self, stream: BinaryIO) -> bytes | None:
        unzip = zlib.decompressobj(wbits=31)
        pieces: list[bytes] = []
        try:
            while not unzip.eof and len(pieces) * 65536 < _LONGEST and (chunk := stream.read(65536)):
                pieces.append(unzip.decompress(chunk, 2 * 65536))
                if unzip.unconsumed_tail:
                    # Ours is stored; another could be gigabytes of nothing.
                    raise Damaged("it is compressed")
        except zlib.error as error:
            raise Damaged(str(error)) from error
        return b"".join(pieces) if unzip.eof else None

    def writer(self) -> Writer:
        return _GzipWriter()

    def ends_right(self, tail: bytes, checksum: int, size: int) -> bool:
        return tail == _gzip_trailer(checksum, size)

    def content(self, stream: BinaryIO, length: int) -> Iterator[bytes]:
        from isal import isal_zlib

        damaged: Any = isal_zlib.error  # whose type its stubs have wrong
        return _decoded(stream, length, isal_zlib.decompressobj(31), damaged)


def _gzip_trailer(crc: int, size: int) -> bytes:
    return struct.pack("<II", crc, size & 0xFFFFFFFF)


class _GzipWriter:
    def __init__(self) -> None:
        from isal import isal_zlib

        self._crc32 = isal_zlib.crc32
        self._deflate = isal_zlib.compressobj(_GZIP_LEVEL, isal_zlib.DEFLATED, -15)
        self.checksum = self._size = 0

    def begin(self) -> bytes:
        return GZIP_HEADER

    def add(self, piece: bytes | bytearray) -> bytes:
        self._size += len(piece)
        self.checksum = self._crc32(piece, self.checksum)
        return self._deflate.compress(piece)

    def end(self) -> bytes:
        return self._deflate.flush() + _gzip_trailer(self.checksum, self._size)


class _Zstd(Form):
    name: Compression = "zstd"
    suffix, layer_suffix = ".tar.zst", ".zst"
    # Magic, descriptor, one byte of window or size, a block's header and its shortest content, checksum.
    shortest = 14
    header = _ZSTD_HEADER
    content_at = len(_ZSTD_HEADER) + 3
    tail = 4

    def stored(self, data: bytes) -> bytes:
        parts = [_ZSTD_HEADER]
        for start in range(0, len(data), _ZSTD_BLOCK):
            block = data[start : start + _ZSTD_BLOCK]
            last = start + _ZSTD_BLOCK >= len(data)
            # RFC 8878 §3.1.1.2: one bit "last", two bits of kind (0 is raw), 21 bits of length.
            parts += [(len(block) << 3 | last).to_bytes(3, "little"), block]
        parts.append(_zstd_checksum(data))
        return b"".join(parts)

    def stored_length(self, size: int) -> int:
        return len(_ZSTD_HEADER) + 3 * -(-size // _ZSTD_BLOCK) + size + 4

    def first(self, stream: BinaryIO) -> bytes | None:
        if stream.read(len(_ZSTD_HEADER)) != _ZSTD_HEADER:
            raise Damaged("an unknown frame header")
        pieces: list[bytes] = []
        last = 0
        while not last:
            head = stream.read(3)
            if len(head) < 3 or len(pieces) * _ZSTD_BLOCK > _LONGEST:
                return None
            number = int.from_bytes(head, "little")
            last, kind, length = number & 1, number >> 1 & 3, number >> 3
            if kind or length > _ZSTD_BLOCK:
                raise Damaged("a block that is not stored")
            block = stream.read(length)
            if len(block) < length:
                return None
            pieces.append(block)
        data = b"".join(pieces)
        checksum = stream.read(4)
        if len(checksum) < 4:
            return None
        if checksum != _zstd_checksum(data):
            raise Damaged("incorrect checksum")
        return data

    def writer(self) -> Writer:
        return _ZstdWriter(self._library())

    def ends_right(self, tail: bytes, checksum: int, size: int) -> bool:
        return tail == struct.pack("<I", checksum)

    def require(self) -> None:
        self._library()

    def _library(self) -> Any:
        found = zstd_library.find()
        if found is None:
            raise PackError(
                "zstd: no library for it is installed in this Python",
                advice=f"{zstd_library.ADVICE}, or use --compression gzip",
            )
        return found

    def content(self, stream: BinaryIO, length: int) -> Iterator[bytes]:
        library = self._library()
        decoder = library.ZstdDecompressor()
        if library.__name__ == "zstandard":
            decoder = decoder.decompressobj()
        return _decoded(stream, length, decoder, library.ZstdError)


def _zstd_checksum(data: bytes) -> bytes:
    """RFC 8878 §3.1.1: the low four bytes of XXH64."""
    return struct.pack("<I", xxhash64(data) & 0xFFFFFFFF)


class _ZstdWriter:
    """One frame, made by one thread: with more, its bytes would depend on how many."""

    def __init__(self, library: Any) -> None:
        if library.__name__ == "zstandard":
            compressor = library.ZstdCompressor(level=_ZSTD_LEVEL, write_checksum=True, write_content_size=False)
            self._zstd = compressor.compressobj()
        else:
            parameter = library.CompressionParameter
            options = {parameter.compression_level: _ZSTD_LEVEL, parameter.checksum_flag: 1}
            self._zstd = library.ZstdCompressor(options=options)
        self.checksum = 0

    def begin(self) -> bytes:
        return b""

    def add(self, piece: bytes | bytearray) -> bytes:
        written: bytes = self._zstd.compress(piece)
        return written

    def end(self) -> bytes:
        # What remains of a frame is at least its checksum.
        rest: bytes = self._zstd.flush()
        self.checksum = int.from_bytes(rest[-4:], "little")
        return rest


class _Plain(Form):
    """Nothing around the tar: the fastest to unpack, and what a flipped bit in a file's content does goes unseen."""

    name: Compression = "none"
    suffix, layer_suffix = ".tar", ".tar"
    shortest = 512
    header = b""
    content_at = 0
    tail = 512

    def stored(self, data: bytes) -> bytes:
        return data

    def stored_length(self, size: int) -> int:
        return size

    def first(self, stream: BinaryIO) -> bytes | None:
        head = stream.read(512)
        try:
            size = int(head[124:135], 8)  # of the one file, as its tar header says
        except ValueError:
            raise Damaged("its tar header cannot be read") from None
        if not 0 <= size <= _LONGEST:
            raise Damaged("its tar header cannot be right")
        blocks = -(-size // 512) * 512
        content = stream.read(blocks)
        return head + content if len(head) == 512 and len(content) == blocks else None

    def writer(self) -> Writer:
        return _PlainWriter()

    def ends_right(self, tail: bytes, checksum: int, size: int) -> bool:
        return zlib.crc32(tail) == checksum

    def content(self, stream: BinaryIO, length: int) -> Iterator[bytes]:
        left = length
        while left and (piece := stream.read(min(left, _PIECE))):
            left -= len(piece)
            yield piece
        if left:
            raise Damaged("is cut short")


class _PlainWriter:
    """The checksum is that of the last block alone: enough to tell a layer from what a power cut left."""

    def __init__(self) -> None:
        self.checksum = 0
        self._last = b""

    def begin(self) -> bytes:
        return b""

    def add(self, piece: bytes | bytearray) -> bytes:
        written = bytes(piece)
        self._last = (self._last + written)[-512:]
        return written

    def end(self) -> bytes:
        self.checksum = zlib.crc32(self._last)
        return b""


_FORMS: dict[Compression, Form] = {form.name: form for form in (_Gzip(), _Zstd(), _Plain())}
COMPRESSIONS: tuple[Compression, ...] = tuple(_FORMS)
LAYER_SUFFIXES = {form.layer_suffix: form for form in _FORMS.values()}
"""The forms by what the names of their layers end in."""


def form_of(compression: Compression) -> Form:
    """The form of a compression."""
    return _FORMS[compression]


def form_that_begins(head: bytes, content: bytes) -> Form | None:
    """The form of a tarball that begins with ``head``, when its content begins with ``content``; else None."""
    for form in _FORMS.values():
        if head.startswith(form.header) and head[form.content_at :].startswith(content):
            return form
    return None


def suffix_of(tarball: Path) -> str:
    """How the name of a tarball should end, by what it begins with; ``.tar.gz`` when that says nothing."""
    head = b""
    with contextlib.suppress(OSError), tarball.open("rb") as stream:
        head = stream.read(512)
    for form in (_FORMS["gzip"], _FORMS["zstd"]):
        if head[:4] == form.header[:4]:
            return form.suffix
    return ".tar" if head[257:262] == b"ustar" else ".tar.gz"
