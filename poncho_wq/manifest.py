"""The manifest: what a tarball says of itself, as a frozen value, as text and as the tarball's first member.

This module decides what a manifest may hold and how it is written, byte for byte; it knows nothing of prefixes, layers
on disk or the cache.  The layout is described for readers of other languages in ``docs/formats/tarball.md``.

Both the manifest's member and the end of the archive are *stored*, in whichever form the tarball has.  Nothing is
compressed, so their bytes and lengths follow from the text alone, on any machine and with any version of any
compressor, and the first member can state its own length.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

from poncho_wq.build import Relocation
from poncho_wq.errors import CorruptTarball
from poncho_wq.packing.compression import Compression, Damaged, form_of, form_that_begins
from poncho_wq.packing.tarfragment import file_header, padding

FORMAT_VERSION = 1
"""Version of the tarball format.  Part of every specification's hash: a new version builds everything anew."""

MANIFEST_PATH = "poncho/manifest"

_HEX64 = re.compile(r"[0-9a-f]{64}\Z")
_NUMBER = re.compile(r"(0|[1-9][0-9]{0,18})\Z")
_WORD = re.compile(r"[A-Za-z0-9._+-]{1,128}\Z")
# A tar block is 512 bytes; two blocks of zeros end an archive (POSIX.1-1988 ustar).
_END_OF_ARCHIVE = b"\0" * 1024


@dataclass(frozen=True, kw_only=True)
class LayerRef:
    """One layer: ``length`` bytes at ``offset`` from the end of the manifest's member.

    ``unpacked`` is the length of the tar fragment inside and ``digest`` the sha256 of that fragment (64 hexadecimal
    digits), so that neither depends on the compressor.  ``name`` is one word for people.
    """

    offset: int
    length: int
    unpacked: int
    digest: str
    name: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """All that a tarball says of itself.

    ``layers`` are in file order and without gaps; ``platform`` is conda's word (``linux-64``), ``python`` the full
    version or None, ``glibc`` the oldest C library that it runs with or None.  ``unpacked`` counts the bytes of all
    files and ``files`` the entries (files, links, empty directories), both without the manifest.
    ``placeholder`` is the text that ``relocations`` replace; None when there are none.  ``compression`` is the form of
    the tarball, which its first bytes tell and the text does not; only lengths depend on it.

    ``identity``, ``member`` and ``size`` follow from the rest.
    Raises ``ValueError`` when a value cannot be written so that it reads back as itself.
    """

    platform: str
    python: str | None
    glibc: str | None
    unpacked: int
    files: int
    layers: tuple[LayerRef, ...]
    placeholder: str | None = None
    relocations: tuple[Relocation, ...] = ()
    compression: Compression = "gzip"
    member: int = field(init=False)
    size: int = field(init=False)
    identity: str = field(init=False)

    def __post_init__(self) -> None:
        _check(self)
        object.__setattr__(self, "identity", identity_of(layer.digest for layer in self.layers))
        object.__setattr__(self, "member", 0)
        object.__setattr__(self, "size", 0)
        form = form_of(self.compression)
        body = sum(layer.length for layer in self.layers) + form.stored_length(len(_END_OF_ARCHIVE))
        # The member's length depends on its text, and the text holds that length.  A longer number can only make the
        # member longer, so going up from the shortest reaches the first length that agrees with itself.
        while (length := form.stored_length(len(self._fragment()))) != self.member:
            object.__setattr__(self, "member", length)
            object.__setattr__(self, "size", length + body)

    def render(self) -> str:
        """The text of ``poncho/manifest``.  ``parse(render())`` is the same manifest."""
        return "".join(f"{line}\n" for line in self._lines())

    def first_member(self) -> bytes:
        """The member that opens the tarball: ``member`` bytes, a tar fragment with the one file."""
        return form_of(self.compression).stored(self._fragment())

    def members(self) -> tuple[tuple[str, int], ...]:
        """All of the tarball in order, the manifest, the layers and the end of the archive: of each the sha256 of what
        it holds, or of itself where it is stored (64 hexadecimal digits), and its length in bytes.

        Those of equal digest, length and compression are interchangeable, whichever compressor made them.
        """
        layers = ((layer.digest, layer.length) for layer in self.layers)
        # Not compressed, and so the same whoever writes them.
        ends = (self.first_member(), end_member(self.compression))
        first, last = ((hashlib.sha256(member).hexdigest(), len(member)) for member in ends)
        return first, *layers, last

    def _fragment(self) -> bytes:
        text = self.render().encode("utf-8", "surrogateescape")
        return file_header(MANIFEST_PATH, size=len(text), mode=0o644) + text + padding(len(text))

    def _lines(self) -> Iterator[str]:
        yield f"poncho-manifest {FORMAT_VERSION}"
        yield f"member {self.member}"
        yield f"size {self.size}"
        yield f"identity {self.identity}"
        yield f"platform {self.platform}"
        if self.python is not None:
            yield f"python {self.python}"
        if self.glibc is not None:
            yield f"glibc {self.glibc}"
        yield f"unpacked {self.unpacked}"
        yield f"files {self.files}"
        yield f"layers {len(self.layers)}"
        for layer in self.layers:
            yield f"layer {layer.offset} {layer.length} {layer.unpacked} {layer.digest} {layer.name}"
        if self.placeholder is not None:
            yield f"placeholder {self.placeholder}"
        for entry in self.relocations:
            if entry.kind == "text":
                places = [str(offset) for offset, _ in entry.places]
            else:
                places = [f"{offset}:{length}" for offset, length in entry.places]
            yield f"relocate {entry.kind} {','.join(places)} {entry.path}"
        yield "end"


def identity_of(digests: Iterable[str]) -> str:
    """The identity of an environment: sha256 over its layers' digests, a line each, in order."""
    return hashlib.sha256("".join(f"{digest}\n" for digest in digests).encode()).hexdigest()


def end_member(compression: Compression = "gzip") -> bytes:
    """The member that closes every tarball of a form: the two zero blocks that end a tar archive."""
    return form_of(compression).stored(_END_OF_ARCHIVE)


def parse(text: str, *, source: str | PathLike[str] | None = None, compression: Compression = "gzip") -> Manifest:
    """Read the text of a manifest.  ``source``, the tarball's path, is named in errors.

    Only what ``Manifest.render`` writes for this ``compression`` is accepted.  Raises ``CorruptTarball`` with the line
    that is wrong.
    """
    return _Reader(text, source, compression).manifest()


def read_manifest(tarball: str | PathLike[str], *, check_size: bool = True) -> Manifest | None:
    """The manifest of a tarball; None when the file is no tarball of ours (conda-pack's, venv-pack's, a plain tar).

    Only the first member is read.  Raises ``CorruptTarball`` when the file is ours but not whole (``check_size=False``
    leaves out the comparison with the file's length), ``OSError`` when it cannot be read.
    """
    path = Path(tarball)
    with path.open("rb") as stream:
        # What every first member of ours starts with; it ends inside the name field of the tar header.
        form = form_that_begins(stream.read(64), MANIFEST_PATH.encode() + b"\0")
        if form is None:
            return None
        stream.seek(0)
        try:
            fragment = form.first(stream)
        except Damaged as error:
            message = f"{path}: its manifest is damaged ({error})"
            raise CorruptTarball(message, tarball=path, advice=_AGAIN) from error
        if fragment is None:
            raise CorruptTarball(f"{path}: cut short inside its manifest", tarball=path, advice=_AGAIN)
        actual = stream.seek(0, 2)
    digits = _OCTAL.match(fragment, 124)
    length = int(digits[0], 8) if digits else -1
    if not 0 <= length <= len(fragment) - 512:
        raise CorruptTarball(f"{path}: the tar header of its manifest is damaged", tarball=path, advice=_AGAIN)
    text = fragment[512 : 512 + length].decode("utf-8", "surrogateescape")
    manifest = parse(text, source=path, compression=form.name)
    if check_size and actual != manifest.size:
        raise CorruptTarball(
            f"{path}: is {actual} bytes long, and its manifest says {manifest.size}", tarball=path, advice=_AGAIN
        )
    return manifest


_OCTAL = re.compile(rb"[0-7]{11}")
_AGAIN = "make the tarball again, or copy it again from where it came from"


def _check(manifest: Manifest) -> None:
    """Refuse what cannot be written, or would not be read back as it is."""

    def demand(right: bool, what: str, value: object) -> None:
        if not right:
            raise ValueError(f"{what}: {value!r}")

    demand(bool(_WORD.match(manifest.platform)), "platform must be one word", manifest.platform)
    for what, word in (("python", manifest.python), ("glibc", manifest.glibc)):
        demand(word is None or bool(_WORD.match(word)), f"{what} must be one word", word)
    for what, number in (("unpacked", manifest.unpacked), ("files", manifest.files)):
        demand(number >= 0, f"{what} must not be negative", number)
    shortest = form_of(manifest.compression).shortest
    at = 0
    for layer in manifest.layers:
        demand(layer.offset == at, f"layer {layer.name} must start at {at}", layer.offset)
        demand(layer.length >= shortest, f"layer {layer.name} cannot be so short", layer.length)
        demand(layer.unpacked % 512 == 0 and layer.unpacked > 0, "a tar fragment is whole blocks", layer.unpacked)
        same = manifest.compression != "none" or layer.length == layer.unpacked
        demand(same, f"layer {layer.name} is not compressed, and {layer.unpacked} bytes long", layer.length)
        demand(bool(_HEX64.match(layer.digest)), "a digest is 64 hexadecimal digits", layer.digest)
        demand(bool(_WORD.match(layer.name)), "a layer's name is one word", layer.name)
        at += layer.length
    demand((manifest.placeholder is not None) == bool(manifest.relocations), "placeholder", manifest.placeholder)
    if manifest.placeholder is not None:
        demand(_one_line(manifest.placeholder), "placeholder must be one line", manifest.placeholder)
    text_length = placeholder_length(manifest.placeholder)
    for entry in manifest.relocations:
        demand(entry.kind in ("text", "binary"), "kind of relocation", entry.kind)
        demand(is_inside(entry.path) and _one_line(entry.path), "path to relocate", entry.path)
        demand(bool(entry.places), f"places in {entry.path}", entry.places)
        for offset, length in entry.places:
            demand(offset >= 0, f"offset in {entry.path}", offset)
            right = length == text_length if entry.kind == "text" else length >= text_length
            demand(right, f"length in {entry.path}", length)


def placeholder_length(placeholder: str | None) -> int:
    """How many bytes the placeholder takes in a file."""
    return len((placeholder or "").encode("utf-8", "surrogateescape"))


def is_inside(path: str) -> bool:
    """Whether ``path`` is a plain relative path: no root, no empty part, no ``.`` or ``..``, no NUL."""
    return "\0" not in path and not {"", ".", ".."} & set(path.split("/"))


def _one_line(text: str) -> bool:
    return bool(text) and not {"\n", "\r", "\0"} & set(text)


class _Reader:
    """Reads a manifest line by line; every error knows its line."""

    def __init__(self, text: str, source: str | PathLike[str] | None, compression: Compression) -> None:
        self._source = source
        self._compression = compression
        self._lines = text.split("\n")
        self._at = 0
        self._text = text

    def manifest(self) -> Manifest:
        version = self._take("poncho-manifest")
        if version != str(FORMAT_VERSION):
            if version.isascii() and version.isdigit() and int(version) > FORMAT_VERSION:
                raise CorruptTarball(
                    f"{self._place()}: format {version}; this version of poncho_wq reads format {FORMAT_VERSION}",
                    tarball=self._source,
                    advice="a newer poncho_wq made this tarball: use that one, or build the environment again",
                )
            raise self._wrong(f"format {FORMAT_VERSION}", version)
        member, size = self._number("member"), self._number("size")
        identity = self._match("identity", _HEX64, "64 hexadecimal digits")
        platform = self._match("platform", _WORD, "one word")
        python = self._match("python", _WORD, "one word") if self._next_is("python") else None
        glibc = self._match("glibc", _WORD, "one word") if self._next_is("glibc") else None
        unpacked, files = self._number("unpacked"), self._number("files")
        layers = tuple(self._layer() for _ in range(self._number("layers")))
        placeholder = self._take("placeholder") if self._next_is("placeholder") else None
        relocations = []
        while self._next_is("relocate"):
            relocations.append(self._relocation(placeholder_length(placeholder)))
        last, self._at = self._lines[self._at :], self._at + 1
        if last != ["end", ""]:
            raise self._wrong('"end" as the last line', last[0] if last else "")
        try:
            manifest = Manifest(
                platform=platform,
                python=python,
                glibc=glibc,
                unpacked=unpacked,
                files=files,
                layers=layers,
                placeholder=placeholder,
                relocations=tuple(relocations),
                compression=self._compression,
            )
        except ValueError as error:
            raise self._error(str(error)) from error
        for what, stated, right in (
            ("identity", identity, manifest.identity),
            ("member", member, manifest.member),
            ("size", size, manifest.size),
        ):
            if stated != right:
                raise self._error(f"{what} is {stated}, and the layers give {right}")
        # Numbers such as 007 are refused above; this holds the line for whatever else two spellings could have.
        if manifest.render() != self._text:
            raise self._error("is not written as format 1 demands")
        return manifest

    def _layer(self) -> LayerRef:
        words = self._take("layer").split(" ")
        if len(words) != 5 or not all(map(_NUMBER.match, words[:3])):
            raise self._wrong("layer OFFSET LENGTH UNPACKED DIGEST NAME", " ".join(words))
        offset, length, unpacked = map(int, words[:3])
        return LayerRef(offset=offset, length=length, unpacked=unpacked, digest=words[3], name=words[4])

    def _relocation(self, text_length: int) -> Relocation:
        kind, _, rest = self._take("relocate").partition(" ")
        places, _, path = rest.partition(" ")
        split = [place.split(":") for place in places.split(",")]
        if not all(_NUMBER.match(number) for place in split for number in place):
            raise self._wrong("offsets", places)
        if kind == "text" and all(len(place) == 1 for place in split):
            return Relocation(path=path, kind="text", places=tuple((int(place[0]), text_length) for place in split))
        if kind == "binary" and all(len(place) == 2 for place in split):
            return Relocation(path=path, kind="binary", places=tuple((int(at), int(length)) for at, length in split))
        raise self._wrong("relocate text OFF,… PATH or relocate binary OFF:LEN,… PATH", f"{kind} {rest}")

    def _next_is(self, key: str) -> bool:
        return self._at < len(self._lines) and self._lines[self._at].startswith(f"{key} ")

    def _take(self, key: str) -> str:
        line = self._lines[self._at] if self._at < len(self._lines) else ""
        self._at += 1
        if not line.startswith(f"{key} "):
            raise self._wrong(f'"{key} …"', line)
        return line[len(key) + 1 :]

    def _match(self, key: str, pattern: re.Pattern[str], expected: str) -> str:
        value = self._take(key)
        if not pattern.match(value):
            raise self._wrong(f"{key}: {expected}", value)
        return value

    def _number(self, key: str) -> int:
        value = self._take(key)
        if not _NUMBER.match(value):
            raise self._wrong(f"{key}: a number", value)
        return int(value)

    def _place(self) -> str:
        where = f"{MANIFEST_PATH}: line {self._at}"
        return where if self._source is None else f"{self._source}: {where}"

    def _wrong(self, expected: str, got: str) -> CorruptTarball:
        shown = got if len(got) <= 60 else f"{got[:60]}…"
        return self._error(f"expected {expected}, got {shown!r}")

    def _error(self, message: str) -> CorruptTarball:
        return CorruptTarball(f"{self._place()}: {message}", tarball=self._source, advice=_AGAIN)
