"""Small tarballs for the wrapper's tests, made without poncho_wq.

What the wrapper promises about the format must not rest on the code that writes it, so this module
writes format 1 a second time, from its description, and the foreign kinds that the wrapper meets.
(The one thing taken from there is a checksum, which zstd itself checks.)
"""

from __future__ import annotations

import gzip
import hashlib
import io
import platform
import subprocess
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

from poncho_wq.packing.xxhash64 import xxhash64

PLATFORM = {"x86_64": "linux-64", "aarch64": "linux-aarch64"}[platform.machine()]

# A stand-in for an interpreter: it runs the real one, and says where it was found.
PYTHON = """#!/bin/sh
PONCHO_TEST_PYTHON=$0
export PONCHO_TEST_PYTHON
exec /usr/bin/env -S python3 "$@"
"""

SET_ENV = """export PONCHO_TEST_WORD='it'"'"'s $(touch x) "quoted"'
export PONCHO_TEST_DATA="$1/poncho/data/PONCHO_TEST_DATA"
"""


@dataclass
class Entry:
    """One member of a layer: a file's bytes, a link's target, or a directory when both are None."""

    data: bytes | None = None
    mode: int = 0o644
    link: str | None = None


@dataclass
class Tarball:
    """What was written, so that tests know where its parts lie."""

    path: Path
    identity: str = ""
    member: int = 0
    spans: list[tuple[int, int]] = field(default_factory=list)  # offset and length of each layer
    entries: dict[str, Entry] = field(default_factory=dict)


def script(text: str) -> Entry:
    return Entry(text.encode(), 0o755)


def text(content: str) -> Entry:
    return Entry(content.encode())


def fake_prefix(*, name: str = "one", files: int = 8, size: int = 3000) -> dict[str, Entry]:
    """A prefix of a few small files; `name` tells environments apart, `size` is bytes of each file."""
    entries = {
        "bin/python3": script('#!/bin/sh\nexec /usr/bin/python3 "$@"\n'),
        "bin/python": Entry(link="python3"),
        "bin/which-one": script(f"#!/bin/sh\necho {name}\n"),
        "bin/where": script('#!/bin/sh\necho "$PONCHO_PREFIX"\n'),
        "lib/name": text(name),
        "lib/empty": Entry(b""),
        "poncho/set_env": text(SET_ENV),
    }
    for number in range(files):
        seed = hashlib.sha256(f"{name} {number}".encode()).digest()
        entries[f"lib/package{number % 4}/file{number}"] = Entry((seed * (size // 32 + 1))[:size])
    return entries


def tar_fragment(entries: dict[str, Entry]) -> bytes:
    """The members of a tar archive without its end."""
    out = bytearray()
    for name, entry in entries.items():
        info = tarfile.TarInfo(name)
        info.mtime = 1_000_000_000
        info.mode = entry.mode
        if entry.link is not None:
            info.type = tarfile.SYMTYPE
            info.linkname = entry.link
            info.mode = 0o777
        elif entry.data is None:
            info.type = tarfile.DIRTYPE
            info.mode = 0o755
        else:
            info.size = len(entry.data)
        out += info.tobuf(tarfile.GNU_FORMAT)
        data = entry.data or b""
        out += data + bytes(-len(data) % 512)
    return bytes(out)


def member(data: bytes, level: int = 6) -> bytes:
    """One independent gzip member; level 0 gives a length that depends on the length of `data` alone."""
    return gzip.compress(data, level, mtime=0)


def frame(data: bytes) -> bytes:
    """One independent zstd frame, made by the program."""
    return subprocess.run(["zstd", "-q", "-c", "--check"], input=data, stdout=subprocess.PIPE, check=True).stdout


def stored_frame(data: bytes) -> bytes:
    """One zstd frame whose length depends on the length of `data` alone."""
    out = bytearray(bytes.fromhex("28b52ffd 04 20"))
    for start in range(0, len(data), 1 << 14):
        block = data[start : start + (1 << 14)]
        out += (len(block) * 8 + (start + len(block) == len(data))).to_bytes(3, "little") + block
    return bytes(out) + xxhash64(data).to_bytes(8, "little")[:4]


# How each form packs a layer, and what is stored.
FORMS = {
    "gzip": (member, lambda data: member(data, 0)),
    "zstd": (frame, stored_frame),
    "none": (bytes, bytes),
}


def ours(
    path: Path,
    entries: dict[str, Entry] | None = None,
    *,
    compression: str = "gzip",
    layers: int = 4,
    extra: str = "",
    replace: dict[str, str] | None = None,
    manifest_padding: int = 0,
) -> Tarball:
    """Write a format 1 tarball.

    `extra` is put before the manifest's last line, `replace` overrides its values by key, and
    `manifest_padding` adds so many bytes of lines that mean nothing to the wrapper.
    """
    entries = fake_prefix() if entries is None else entries
    shares: list[dict[str, Entry]] = [{} for _ in range(layers)]
    for name, entry in entries.items():
        digest = hashlib.sha256(name.rsplit("/", 1)[0].encode()).digest()
        shares[digest[0] % layers][name] = entry
    fragments = [tar_fragment(share) for share in shares if share]
    digests = [hashlib.sha256(fragment).hexdigest() for fragment in fragments]
    pack, store = FORMS[compression]
    members = [pack(fragment) for fragment in fragments]
    end = pack(bytes(1024)) if compression == "gzip" else store(bytes(1024))
    identity = hashlib.sha256("".join(f"{digest}\n" for digest in digests).encode()).hexdigest()
    unpacked = sum(len(entry.data or b"") for entry in entries.values())

    def head(first: int, total: int) -> str:
        values = {
            "member": str(first),
            "size": str(total),
            "identity": identity,
            "platform": PLATFORM,
            "python": "3.11.7",
            "glibc": "2.17",
            "unpacked": str(unpacked),
            "files": str(len(entries)),
            "layers": str(len(fragments)),
        }
        values.update(replace or {})
        lines = ["poncho-manifest 1", *(f"{key} {value}" for key, value in values.items())]
        offset = 0
        for number, (fragment, packed) in enumerate(zip(fragments, members, strict=True)):
            lines.append(f"layer {offset} {len(packed)} {len(fragment)} {digests[number]} layer{number}")
            offset += len(packed)
        while manifest_padding > 0 and sum(map(len, lines)) < manifest_padding:
            lines.append("remark " + hashlib.sha256(str(len(lines)).encode()).hexdigest())
        return "\n".join([*lines, *extra.splitlines(), "end"]) + "\n"

    def first_member(first: int, total: int) -> bytes:
        raw = tar_fragment({"poncho/manifest": text(head(first, total).ljust(1))})
        return store(raw)

    first, total = 0, 0
    while True:  # the numbers stand in what they count
        packed = first_member(first, total)
        if (len(packed), len(packed) + sum(map(len, members)) + len(end)) == (first, total):
            break
        first = len(packed)
        total = first + sum(map(len, members)) + len(end)
    path.write_bytes(packed + b"".join(members) + end)
    spans = []
    offset = first
    for packed in members:
        spans.append((offset, len(packed)))
        offset += len(packed)
    return Tarball(path, identity, first, spans, entries)


def plain(path: Path, entries: dict[str, Entry], *, compress: str = "gz") -> Tarball:
    """An ordinary tarball: what venv-pack makes, and the rest of what conda-pack makes."""
    with tarfile.open(path, f"w:{compress}", format=tarfile.PAX_FORMAT) as archive:
        for name, entry in entries.items():
            info = tarfile.TarInfo(name)
            info.mode = entry.mode
            info.mtime = 1_000_000_000
            info.uid = info.gid = 54321  # as a builder's, who is nobody here
            if entry.link is not None:
                info.type = tarfile.SYMTYPE
                info.linkname = entry.link
                archive.addfile(info)
            elif entry.data is None:
                info.type = tarfile.DIRTYPE
                archive.addfile(info)
            else:
                info.size = len(entry.data)
                archive.addfile(info, io.BytesIO(entry.data))
    return Tarball(path, entries=entries)


PLACEHOLDER = "/home/builder/a/rather/long/prefix/that/is/no/more/and/never/was/on/this/machine"

# The shape of conda-pack's script: a list, a function, and a main part that works where it stands.
CONDA_UNPACK = f"""#!/usr/bin/env python
from conda_unpack_progress import progressbar

def update_prefix(path, new_prefix, placeholder, mode='text'):
    with open(path, 'rb+') as fh:
        data = fh.read()
        old, new = placeholder.encode(), new_prefix.encode()
        if mode == 'text':
            data = data.replace(old, new)
        else:
            data = data.replace(old, new + b'\\0' * (len(old) - len(new)))
        fh.seek(0)
        fh.write(data)
        fh.truncate()

_prefix_records = [
    ('bin/tool', {PLACEHOLDER!r}, 'text'),
    ('lib/library.so', {PLACEHOLDER!r}, 'binary'),
]

if __name__ == '__main__':
    import os
    prefix = os.path.abspath(os.path.dirname(os.path.dirname(__file__)))
    for path, placeholder, mode in _prefix_records:
        update_prefix(os.path.join(prefix, path), prefix, placeholder, mode=mode)
"""

# One that keeps its secrets: it can only be run, in the place that it shall work for.
STRANGE_CONDA_UNPACK = f"""#!/bin/sh
prefix=$(dirname "$(dirname "$0")")
sed "s|{PLACEHOLDER}|$prefix|" "$prefix/bin/tool" >"$prefix/bin/tool.new"
chmod 755 "$prefix/bin/tool.new"
mv "$prefix/bin/tool.new" "$prefix/bin/tool"
"""

ACTIVATE_D = {
    "etc/conda/activate.d/a-lists.sh": text(
        'export PONCHO_TEST_LIST="$CONDA_PREFIX/lib:$PONCHO_TEST_LIST"\n'
        'export PATH="$CONDA_PREFIX/extra:$PATH"\n'
        'export PONCHO_TEST_TAIL="${PONCHO_TEST_TAIL:+$PONCHO_TEST_TAIL:}$CONDA_PREFIX/tail"\n'
    ),
    "etc/conda/activate.d/b-words.sh": text(
        'if [ -d "$CONDA_PREFIX/lib" ]; then export PONCHO_TEST_SHARE="$CONDA_PREFIX/share"; fi\n'
        'if [ -z "${PONCHO_TEST_DEFAULT:-}" ]; then export PONCHO_TEST_DEFAULT=default; fi\n'
        "export PONCHO_TEST_LINES='one\n  two'\"'\"' $(touch x)'\n"
        "echo this belongs to nobody; echo nor does this >&2\n"
        "PONCHO_TEST_NOT_EXPORTED=1\n"
    ),
}


def conda_pack(path: Path, *, name: str = "conda", activate: bool = True, unpack: str = CONDA_UNPACK) -> Tarball:
    """What conda-pack makes of a conda prefix."""
    entries = {
        "conda-meta/history": text(""),
        **fake_prefix(name=name),
        "bin/tool": script(f"#!/bin/sh\necho {PLACEHOLDER}\n"),
        "lib/library.so": Entry(b"\x7fELF\0" + PLACEHOLDER.encode() + b"\0\0tail"),
        "bin/activate": text("echo activate must not be sourced; exit 99\n"),
        "bin/conda-unpack": script(unpack),
        "bin/conda_unpack_progress.py": text("def progressbar(*a, **k): raise SystemExit(3)\n"),
    }
    del entries["poncho/set_env"]
    if activate:
        entries.update(ACTIVATE_D)
    return plain(path, entries)


def venv_pack(path: Path, *, name: str = "venv") -> Tarball:
    """What venv-pack makes: no conda-unpack, an activate script, a bin/python that leads outside."""
    entries = fake_prefix(name=name)
    del entries["poncho/set_env"]
    entries["bin/activate"] = text("echo activate must not be sourced; exit 99\n")
    entries["bin/python3"] = Entry(link="/usr/bin/python3")
    entries["pyvenv.cfg"] = text("home = /usr/bin\n")
    return plain(path, entries)
