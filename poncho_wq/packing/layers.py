"""Layers: some files of a prefix → a tar fragment → a gzip member (or another form of it), made once and kept.

A layer's name is the sha256 of its uncompressed fragment.  Its *recipe* is a digest of what goes in: path, mode and
content (or link target) of every entry, and the compiler of its ``.pyc`` files.  The store maps recipes to layers, so
that a package that did not change is neither compiled nor compressed again: its files are hashed, and that is all.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from poncho_wq.errors import PackError
from poncho_wq.packing import tarfragment
from poncho_wq.packing.bytecode import Slice
from poncho_wq.packing.compression import COMPRESSIONS, Compression, Damaged, Form, form_of
from poncho_wq.packing.known import Absent, NotAsKnown
from poncho_wq.scratch import disk_error, work_directory

# Changes whenever the same entries would give other content: what old recipes say is then not used.
_RECIPE_VERSION = "poncho-layer 1 gzip"
# The compressor is always fed pieces of this size: with other pieces it may give other bytes.
_PIECE = 1 << 20


@dataclass(frozen=True, kw_only=True)
class OnDisk:
    """The content of a file of the prefix, as it was before it was hashed."""

    path: str
    size: int
    mtime_ns: int


@dataclass(frozen=True, kw_only=True)
class WithHead:
    """The content of ``file``, beginning with the bytes that ``head()`` gives instead of as many of its own."""

    file: OnDisk
    head: Callable[[], bytes]

    @property
    def size(self) -> int:
        """Bytes of content."""
        return self.file.size


Content = OnDisk | WithHead | Slice | Absent | bytes


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One entry of a layer.

    ``path`` is relative to the prefix.  ``mode`` is 0o644 or 0o755.  ``target`` is a symbolic link's text, or the
    path of the file that a hard link is another name of.  ``digest`` (sha256) and ``content`` are a file's.
    """

    path: str
    kind: Literal["file", "symlink", "hardlink", "directory"]
    mode: int = 0o644
    target: str = ""
    digest: str = ""
    content: Content = b""

    @property
    def size(self) -> int:
        """Bytes of content."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.size


@dataclass(frozen=True, kw_only=True)
class Layer:
    """What is known of a finished layer.

    ``path`` is its member in the store, ``length`` the bytes of that, ``unpacked`` those of the tar fragment inside,
    ``crc`` what the member's end vouches with (gzip: the fragment's CRC-32), ``content`` the bytes of all its files
    together and ``files`` the number of its entries.
    """

    path: Path
    digest: str
    length: int
    unpacked: int
    crc: int
    content: int
    files: int


def recipe(entries: Iterable[Entry], compiler: str = "") -> str:
    """The digest of what a layer is made from.

    ``entries`` are sorted by path; ``compiler`` is ``Compiler.identity`` where some of them are compiled.
    """
    text = hashlib.sha256(f"{_RECIPE_VERSION}\0{compiler}\0".encode())
    for entry in entries:
        line = f"{entry.kind}\0{entry.mode:o}\0{entry.digest}\0{entry.target}\0{entry.path}\0"
        text.update(os.fsencode(line))
    return text.hexdigest()


class LayerStore:
    """Layers and recipes under one directory.  Processes may share it; making one touches nothing.

    ``layers/DIGEST.gz`` is a gzip member, never written in place.  ``recipes/RECIPE`` says which one it is and how
    long. ``tmp/`` holds the work of the living.  Other forms lie beside it: ``DIGEST.zst`` with ``RECIPE.zst``, and
    ``DIGEST.tar``; a store finds and makes those of its ``compression``.
    """

    def __init__(self, root: Path, compression: Compression = "gzip") -> None:
        self.root = root = root.absolute()
        self.compression = compression
        self._form = form_of(compression)
        self._layers = root / "layers"
        self._recipes = root / "recipes"
        self._tmp = root / "tmp"

    def compressed(self, compression: Compression) -> LayerStore:
        """The same store for layers of another form."""
        return LayerStore(self.root, compression)

    @contextlib.contextmanager
    def work_directory(self) -> Iterator[Path]:
        """A directory for unfinished layers, on the store's own disk.  Raises ``CacheError``."""
        for directory in (self._layers, self._recipes, self._tmp):
            try:
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                raise disk_error(error, directory, "could not make the directory") from error
        with work_directory(self._tmp) as directory:
            yield directory

    def find(self, key: str) -> Layer | None:
        """The layer of a recipe; None when there is none, or what there is is not whole."""
        try:
            facts = json.loads((self._recipes / recipe_name(key, self._form)).read_bytes())
            layer = Layer(path=self._layers / f"{facts['digest']}{self._form.layer_suffix}", **facts)
            # What a power cut left short has another length; what is something else has another end.
            return layer if self._matches(layer) else None
        except (OSError, ValueError, KeyError, TypeError, struct.error):
            return None

    def find_other(self, key: str) -> tuple[Layer, Form] | None:
        """The layer of a recipe in a form that is not this store's, and that can be read here."""
        for compression in COMPRESSIONS:
            if compression != self.compression and (found := self.compressed(compression).find(key)) is not None:
                with contextlib.suppress(PackError):
                    form_of(compression).require()
                    return found, form_of(compression)
        return None

    def make(self, key: str, entries: Iterable[Entry], work: Path) -> Layer:
        """Write the layer of a recipe and keep it.  ``work`` is a ``work_directory()``.

        Raises ``PackError`` when a file cannot be read or was changed, ``CacheError`` when the store cannot be written.
        """

        def fill(fragment: _Fragment) -> None:
            for entry in entries:
                fragment.add(entry)

        return self._make(key, fill, work)

    def copy(self, key: str, pieces: Iterable[bytes], work: Path, *, content: int, files: int) -> Layer:
        """Write the layer of a recipe from what is in it in another form, and keep it.

        ``content`` and ``files`` are as in ``Layer``.  Raises what ``pieces`` raise, and ``CacheError``.
        """

        def fill(fragment: _Fragment) -> None:
            for piece in pieces:
                fragment.write(piece)
            fragment.content, fragment.files = content, files

        return self._make(key, fill, work)

    def convert(self, key: str, layer: Layer, form: Form, work: Path) -> Layer:
        """Write the layer of a recipe from the one that there is in another form, and keep it.

        Raises ``PackError`` when that one is damaged or was removed, ``CacheError`` when the store cannot be written.
        """
        try:
            with layer.path.open("rb") as stream:
                pieces = form.content(stream, layer.length)
                made = self.copy(key, pieces, work, content=layer.content, files=layer.files)
        except FileNotFoundError:
            problem = "was removed while it was needed"
        except Damaged as error:
            problem = str(error)
        else:
            if made.digest == layer.digest:
                return made
            problem = f"holds the sha256 {made.digest}"
        raise PackError(f"{layer.path}: {problem}", advice="poncho-wq cache verify --remove, and then run it again")

    def _make(self, key: str, fill: Callable[[_Fragment], None], work: Path) -> Layer:
        unfinished = work / f"{key}{self._form.layer_suffix}"
        try:
            with unfinished.open("xb") as stream:
                fragment = _Fragment(stream, self._form)
                fill(fragment)
                fragment.finish()
                stream.flush()
                os.fsync(stream.fileno())
            layer = self._publish(unfinished, fragment)
            self._remember(key, layer, work)
        except OSError as error:
            raise disk_error(error, self.root, "could not store a layer") from error
        return layer

    def _publish(self, unfinished: Path, fragment: _Fragment) -> Layer:
        def layer(path: Path) -> Layer:
            return Layer(
                path=path,
                digest=fragment.digest.hexdigest(),
                length=path.stat().st_size,
                unpacked=fragment.length,
                crc=fragment.writer.checksum,
                content=fragment.content,
                files=fragment.files,
            )

        final = self._layers / f"{fragment.digest.hexdigest()}{self._form.layer_suffix}"
        # Another recipe, or another process, may have made the same fragment.  Its bytes may differ (another release of
        # the compressor), and tarballs know its length: a whole one stays.
        with contextlib.suppress(OSError):
            if self._matches(there := layer(final)):
                unfinished.unlink()
                return there
        unfinished.replace(final)
        sync_directory(self._layers)
        return layer(final)

    def _remember(self, key: str, layer: Layer, work: Path) -> None:
        facts = asdict(layer)
        del facts["path"]
        draft = work / f"{key}.json"
        draft.write_text(json.dumps(facts, sort_keys=True), encoding="ascii")
        draft.replace(self._recipes / recipe_name(key, self._form))

    def _matches(self, layer: Layer) -> bool:
        """Whether the file is as long as it should be and ends in the right way."""
        with layer.path.open("rb") as stream:
            if os.fstat(stream.fileno()).st_size != layer.length:
                return False
            stream.seek(-min(self._form.tail, layer.length), os.SEEK_END)
            return self._form.ends_right(stream.read(), layer.crc, layer.unpacked)


def recipe_name(key: str, form: Form) -> str:
    """The name of a recipe's file: those of gzip layers have no suffix, since they are older than the other forms."""
    return key if form.name == "gzip" else f"{key}{form.layer_suffix}"


def sync_directory(directory: Path) -> None:
    """Have a rename in ``directory`` survive a power cut, on file systems that can sync a directory."""
    with contextlib.suppress(OSError):
        handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


class _Fragment:
    """Writes entries as a tar fragment, compressed, into a stream."""

    def __init__(self, stream: BinaryIO, form: Form) -> None:
        self._stream = stream
        self.writer = form.writer()
        self._pending = bytearray()
        self.digest = hashlib.sha256()
        self.length = self.content = self.files = 0
        stream.write(self.writer.begin())

    def add(self, entry: Entry) -> None:
        self.files += 1
        if entry.kind == "file":
            size = entry.size
            self.content += size
            self.write(tarfragment.file_header(entry.path, size=size, mode=entry.mode))
            for piece in _read(entry):
                self.write(piece)
            self.write(tarfragment.padding(size))
        elif entry.kind == "hardlink":
            self.write(tarfragment.hardlink_header(entry.path, entry.target, mode=entry.mode))
        elif entry.kind == "symlink":
            self.write(tarfragment.symlink_header(entry.path, entry.target))
        else:
            self.write(tarfragment.directory_header(entry.path))

    def finish(self) -> None:
        self._compress(self._pending)
        self._stream.write(self.writer.end())

    def write(self, data: bytes) -> None:
        self._pending += data
        while len(self._pending) >= _PIECE:
            piece = self._pending[:_PIECE]
            del self._pending[:_PIECE]
            self._compress(piece)

    def _compress(self, piece: bytearray) -> None:
        self.length += len(piece)
        self.digest.update(piece)
        self._stream.write(self.writer.add(piece))


def _read(entry: Entry) -> Iterator[bytes]:
    """The content of a file, in pieces, exactly as long as announced."""
    if isinstance(entry.content, bytes):
        yield entry.content
        return
    if isinstance(entry.content, Absent):
        raise NotAsKnown(f"{entry.path}: is not there")
    left, head = entry.content.size, b""
    try:
        if isinstance(entry.content, WithHead):
            content: OnDisk | Slice = entry.content.file
            head = entry.content.head()
        else:
            content = entry.content
        with open(content.path, "rb", buffering=0) as stream:
            if isinstance(content, Slice):
                stream.seek(content.offset)
            else:
                facts = os.fstat(stream.fileno())
                # The recipe says what was hashed; something else under that recipe would be served for ever.
                if (facts.st_size, facts.st_mtime_ns) != (content.size, content.mtime_ns):
                    raise _changed(entry.path)
            while left:
                piece = stream.read(min(left, _PIECE))
                if not piece:
                    raise _changed(entry.path)
                left -= len(piece)
                if head:
                    piece, head = head + piece[len(head) :], b""
                yield piece
    except OSError as error:
        raise PackError(f"{entry.path}: cannot be read: {error.strerror or error}") from error


def _changed(path: str) -> PackError:
    return PackError(f"{path}: was changed while it was being packed", advice="run it again when nothing writes there")
