"""Tar archives that nobody's packer writes: names that leave the directory, links that lead out, devices, lies."""

from __future__ import annotations

import gzip
import io
import tarfile
from dataclasses import dataclass

from hypothesis import strategies as st

NAMES = (
    "a", "a/b", "a/b/c", "lib", "lib/x", "lib/x/y", "bin/activate", "bin/python3", "bin/python", "poncho",
    "poncho/ready", "poncho/manifest", "poncho/source", "poncho/in-use", "pyvenv.cfg", ".", "./", "..", "../x",
    "../../x", "a/../../x", "a/..", "/abs", "OUTSIDE/x", "OUTSIDE", "a//b", "./a/./b", "-rf",
    "--checkpoint-action=exec=touch x", "$(touch x)", "a\nb", "a b", "x" * 120, "d/" * 60 + "x", ".poncho-cut",
    ".poncho-unpacking", ".poncho-end.1", ".poncho-lock", "files/stdout.txt", "files", "result.json", "stdout.txt",
    "\udcff", "e\u0301", "A",
)  # fmt: skip
TARGETS = (
    "a",
    "a/b",
    ".",
    "..",
    "../..",
    "/",
    "OUTSIDE",
    "OUTSIDE/x",
    "../../outside",
    "lib",
    "x",
    "",
    "/dev/zero",
    "\udcff",
)
KINDS = (
    tarfile.REGTYPE, tarfile.REGTYPE, tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.SYMTYPE,
    tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.CONTTYPE, tarfile.AREGTYPE, b"Z",
    b"S", b"x", b"L", b"g", b"K",
)  # fmt: skip


@dataclass(frozen=True)
class Member:
    name: str
    kind: bytes = tarfile.REGTYPE
    target: str = ""
    mode: int = 0o644
    data: bytes = b""
    stated: int | None = None  # a size other than that of the data


members = st.lists(
    st.builds(
        Member,
        name=st.sampled_from(NAMES), kind=st.sampled_from(KINDS), target=st.sampled_from(TARGETS),
        mode=st.sampled_from((0o644, 0o755, 0o4755, 0o2755, 0o1777, 0, 0o7777)), data=st.binary(max_size=40),
        stated=st.one_of(st.none(), st.none(), st.none(), st.sampled_from((0, 1, 512, 10_000, 2**33, 8**11 - 1))),
    ),
    min_size=1, max_size=8,
)  # fmt: skip


def fragment(every: list[Member], outside: str) -> bytes:
    """The members as they would lie in an archive, without its end."""
    out = bytearray()
    for each in every:
        info = tarfile.TarInfo(each.name.replace("OUTSIDE", outside))
        info.type, info.mode, info.linkname = each.kind, each.mode, each.target.replace("OUTSIDE", outside)
        info.devmajor, info.devminor = 1, 3
        data = each.data if each.kind not in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE) else b""
        info.size = len(data) if each.stated is None else each.stated
        out += info.tobuf(tarfile.GNU_FORMAT, errors="surrogateescape") + data + bytes(-len(data) % 512)
    return bytes(out)


def archive(every: list[Member], outside: str, *, compressed: bool = True, whole: bool = True) -> bytes:
    """A tar archive of the members, ``whole`` with the end that it should have."""
    data = fragment(every, outside) + (bytes(1024) if whole else b"")
    return gzip.compress(data, 1, mtime=0) if compressed else data


def good(names: dict[str, bytes]) -> bytes:
    """An ordinary one."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as tar:
        for name, data in names.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return made.getvalue()
