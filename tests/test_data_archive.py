"""Archives: what is good is there afterwards, what would reach outside is refused by name, damage is noticed."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import os
import random
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from poncho_wq import zstd_library
from poncho_wq.build import archive
from poncho_wq.build.archive import decompress, unpack
from poncho_wq.build.data import fetch_data, place_data
from poncho_wq.build.datastore import DataStore
from poncho_wq.errors import BuildError, FetchError, PonchoError
from poncho_wq.locked_data import LockedData
from poncho_wq.progress import Progress
from poncho_wq.spec import EnvSpec
from tests.data_server import faulty_server


def member(name: str, content: bytes = b"", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, content


def tar(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as file:
        for info, content in members:
            file.addfile(info, io.BytesIO(content))
    return out.getvalue()


def unpacked(data: bytes, tmp_path: Path, compression: str | None = None) -> Path:
    source, target = tmp_path / "data", tmp_path / "out" / "VAR"
    source.write_bytes(data)
    target.parent.mkdir(exist_ok=True)
    unpack(source, target, compression, what="http.VAR", on_progress=lambda _: None)
    return target


def zstd(data: bytes) -> bytes:
    if shutil.which("zstd") is None:
        pytest.skip("needs the program zstd")
    return subprocess.run(["zstd", "-q", "-c"], input=data, capture_output=True, check=True).stdout


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": zstd,
}


@pytest.mark.parametrize("compression", COMPRESSORS)
@pytest.mark.parametrize("said", [True, False])
def test_every_compression_of_an_archive(tmp_path: Path, compression: str, said: bool) -> None:
    data = COMPRESSORS[compression](tar(member("d/a", b"content", mode=0o600), member("d/run", b"#!", mode=0o700)))
    directory = unpacked(data, tmp_path, compression if said else None)
    assert (directory / "d/a").read_bytes() == b"content"
    assert (directory / "d/a").stat().st_mode & 0o777 == 0o644
    assert (directory / "d/run").stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("compression", COMPRESSORS)
def test_every_compression_of_a_file(tmp_path: Path, compression: str) -> None:
    content = random.Random(0).randbytes(400_000)
    (tmp_path / "packed").write_bytes(COMPRESSORS[compression](content))
    decompress(tmp_path / "packed", tmp_path / "plain", compression, what="http.VAR", on_progress=lambda _: None)
    assert (tmp_path / "plain").read_bytes() == content


@pytest.mark.parametrize("compression", COMPRESSORS)
def test_a_file_that_was_cut_short(tmp_path: Path, compression: str) -> None:
    data = COMPRESSORS[compression](random.Random(0).randbytes(100_000))
    (tmp_path / "packed").write_bytes(data[:-20])
    with pytest.raises(BuildError, match=r"http\.VAR"):
        decompress(tmp_path / "packed", tmp_path / "plain", compression, what="http.VAR", on_progress=lambda _: None)


def test_an_archive_with_a_wrong_checksum_at_its_very_end(tmp_path: Path) -> None:
    # With more behind the end of the archive than tarfile reads by itself.
    data = bytearray(gzip.compress(tar(member("a", b"x" * 10_000)) + bytes(1_000_000)))
    data[-8] ^= 1
    with pytest.raises(BuildError, match="damaged"):
        unpacked(bytes(data), tmp_path)


def test_a_wrong_compression_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        BuildError, match='said to be gzip, and the file is compressed with xz\nwrite "compression": "xz"'
    ):
        unpacked(lzma.compress(tar(member("a"))), tmp_path, "gzip")
    with pytest.raises(BuildError, match='not compressed with it\nleave out "compression"'):
        unpacked(tar(member("a")), tmp_path / "..", "gzip")


OUTSIDE = "leaves the directory"


@pytest.mark.parametrize(
    ("members", "why"),
    [
        ([member("../x", b"x")], OUTSIDE),
        ([member("/etc/x", b"x")], OUTSIDE),
        ([member("a/../../x", b"x")], OUTSIDE),
        ([member("a/..", type=tarfile.DIRTYPE)], OUTSIDE),
        ([member("l", type=tarfile.SYMTYPE, linkname="..")], "leads out"),
        ([member("l", type=tarfile.SYMTYPE, linkname="/etc")], "leads out"),
        ([member("l", type=tarfile.SYMTYPE, linkname="/etc"), member("l/x", b"x")], "goes through the link 'l'"),
        ([member("l", type=tarfile.SYMTYPE, linkname="."), member("l/x", b"x")], "goes through the link"),
        (
            [
                member("d/e", type=tarfile.DIRTYPE),
                member("i", type=tarfile.SYMTYPE, linkname="d/e"),
                member("o", type=tarfile.SYMTYPE, linkname="i/../../.."),
            ],
            "leads out",
        ),
        (
            # By its letters the second link stays inside; by way of the first it does not.
            [
                member("d", type=tarfile.SYMTYPE, linkname="."),
                member("o", type=tarfile.SYMTYPE, linkname="d/d/../../x"),
            ],
            "leads out",
        ),
        ([member("h", type=tarfile.LNKTYPE, linkname="../../data")], OUTSIDE),
        ([member("h", type=tarfile.LNKTYPE, linkname="/etc/passwd")], OUTSIDE),
        ([member("h", type=tarfile.LNKTYPE, linkname="nowhere")], "no file of the archive"),
        (
            [
                member("s", type=tarfile.SYMTYPE, linkname="../../data"),
                member("h", type=tarfile.LNKTYPE, linkname="s"),
            ],
            "no file of the archive",
        ),
        ([member("null", type=tarfile.CHRTYPE, devmajor=1, devminor=3)], "is a device"),
        ([member("disk", type=tarfile.BLKTYPE)], "is a device"),
        ([member("pipe", type=tarfile.FIFOTYPE)], "a pipe"),
        ([member("su", b"x", mode=0o4755)], "setuid"),
        ([member("sg", b"x", mode=0o2755)], "setuid"),
        ([member("f", b"x"), member("f/g", b"x")], "which is a file"),
        ([member("d/f", b"x"), member("d", b"x")], "has the name of a directory"),
    ],
)
def test_members_that_are_refused(tmp_path: Path, members: list[tuple[tarfile.TarInfo, bytes]], why: str) -> None:
    work = tmp_path / "work"
    work.mkdir()
    with pytest.raises(BuildError, match=why):
        unpacked(tar(*members), work)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["work"]
    assert sorted(path.name for path in work.iterdir()) == ["data", "out"]
    assert [path.name for path in (work / "out").iterdir()] == ["VAR"]


def test_what_is_fine(tmp_path: Path) -> None:
    directory = unpacked(
        tar(
            member("./", type=tarfile.DIRTYPE, mode=0o2775),
            member("./d//f", b"old", mode=0o644),
            member("d/f", b"new"),
            member("d/hard", type=tarfile.LNKTYPE, linkname="d/f"),
            member("soft", type=tarfile.SYMTYPE, linkname="d/f"),
            member("up/soft", type=tarfile.SYMTYPE, linkname="../d"),
            member("dangling", type=tarfile.SYMTYPE, linkname="not/there"),
            member("empty", type=tarfile.DIRTYPE, mode=0o000),
        ),
        tmp_path,
    )
    assert (directory / "d/f").read_bytes() == (directory / "soft").read_bytes() == b"new"
    assert (directory / "d/f").samefile(directory / "d/hard")
    assert (directory / "up/soft/f").read_bytes() == b"new"
    assert list((directory / "empty").iterdir()) == []


def test_an_archive_larger_than_the_disk_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(archive.shutil, "disk_usage", lambda _: usage._replace(free=1_000_000))
    with pytest.raises(BuildError, match="more than the 1000000 bytes that are free"):
        unpacked(gzip.compress(tar(member("bomb", bytes(5_000_000)))), tmp_path)
    assert not (tmp_path / "out/VAR/bomb").exists()


def test_a_name_that_would_fill_the_memory(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="a header of 5000000 bytes"):
        unpacked(gzip.compress(tar(member("x", bytes(5_000_000), type=tarfile.XHDTYPE))), tmp_path)


@pytest.mark.parametrize("compress", [bz2.compress, lzma.compress, zstd])
def test_an_archive_that_unpacks_to_far_more_than_it_is_a_bomb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compress: Callable[[bytes], bytes]
) -> None:
    monkeypatch.setattr(archive, "_SMALL", 1_000_000)
    bomb = compress(tar(member("fine", b"x"), member("bomb", bytes(5_000_000))))
    assert len(bomb) * archive._RATIO < 5_000_000
    with pytest.raises(BuildError, match="PONCHO_MAX_UNPACKED=500G"):
        unpacked(bomb, tmp_path)
    assert not (tmp_path / "out/VAR/bomb").exists()
    shutil.rmtree(tmp_path / "out")
    monkeypatch.setenv("PONCHO_MAX_UNPACKED", "6M")
    assert (unpacked(bomb, tmp_path) / "bomb").stat().st_size == 5_000_000


def test_the_user_may_say_how_much_an_archive_unpacks_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PONCHO_MAX_UNPACKED", "1K")
    with pytest.raises(BuildError, match="more than 1024 bytes"):
        unpacked(gzip.compress(tar(member("f", random.Random(1).randbytes(2000)))), tmp_path)
    monkeypatch.setenv("PONCHO_MAX_UNPACKED", "lots")
    (tmp_path / "other").mkdir()
    with pytest.raises(BuildError, match="expected a number of bytes"):
        unpacked(gzip.compress(tar(member("f"))), tmp_path / "other")


def test_a_zstd_bomb_is_not_written_to_the_disk_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program decompresses into a pipe, and ends when nobody reads any more."""
    bomb = zstd(bytes(50_000_000))
    monkeypatch.setattr(zstd_library, "find", lambda: None)
    monkeypatch.setattr(archive, "_SMALL", 1_000_000)
    (tmp_path / "bomb.zst").write_bytes(bomb)
    with pytest.raises(BuildError, match="nobody means"):
        decompress(tmp_path / "bomb.zst", tmp_path / "plain", "zstd", what="http.X", on_progress=lambda _: None)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 5_000_000
    (tmp_path / "cut.zst").write_bytes(bomb[: len(bomb) // 2])
    monkeypatch.setenv("PONCHO_MAX_UNPACKED", "1G")
    with pytest.raises(BuildError, match=r"could not decompress http\.X: zstd exited with"):
        decompress(tmp_path / "cut.zst", tmp_path / "cut", "zstd", what="http.X", on_progress=lambda _: None)


def test_zstd_without_a_module_or_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = zstd(tar(member("a")))
    monkeypatch.setattr(zstd_library, "find", lambda: None)
    monkeypatch.setattr(archive.shutil, "which", lambda _: None)
    with pytest.raises(BuildError, match=re.escape(zstd_library.ADVICE)):
        unpacked(data, tmp_path)


_NAMES = st.sampled_from(["a", "b", "a/b", "a/b/c", "../x", "a/../../x", "/abs", "./a", "l", "l/x", "l/l", "..", "."])
_TYPES = st.sampled_from([tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(_NAMES, _TYPES, _NAMES), max_size=6))
def test_no_archive_reaches_outside(tmp_path: Path, entries: list[tuple[str, bytes, str]]) -> None:
    work = tmp_path / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    members = [
        member(name, b"x" if kind == tarfile.REGTYPE else b"", type=kind, linkname=target if kind in b"12" else "")
        for name, kind, target in entries
    ]
    try:
        directory = unpacked(tar(*members), work)
    except BuildError:
        pass
    else:
        root = os.path.realpath(directory)
        for path in directory.rglob("*"):
            assert os.path.realpath(path).startswith(root)
    assert [path.name for path in tmp_path.iterdir()] == ["work"]
    assert sorted(path.name for path in work.iterdir()) == ["data", "out"]
    assert (work / "data").stat().st_nlink == 1


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10_000), st.integers(0, 255), st.sampled_from(["gzip", "bzip2", "xz", None]))
def test_any_damage_is_an_error_of_ours_or_harmless(
    tmp_path: Path, at: int, value: int, compression: str | None
) -> None:
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    plain = tar(member("d/a", b"content" * 99), member("l", type=tarfile.SYMTYPE, linkname="d/a"))
    data = bytearray(COMPRESSORS[compression](plain) if compression else plain)
    data[at % len(data)] = value
    try:
        unpacked(bytes(data), tmp_path, compression)
    except PonchoError:
        pass


# Through the whole of it


def prepared(spec: dict[str, Any], tmp_path: Path) -> tuple[Path, tuple[LockedData, ...], list[Progress]]:
    seen: list[Progress] = []
    groups, locked = fetch_data(EnvSpec.from_dict(spec), tmp_path / "cache", tmp_path / "prefix", seen.append)
    listed = [file for group in groups for file in group.files]
    root = tmp_path / "prefix"
    there = {
        path.relative_to(root).as_posix() + ("/" if path.is_dir() and not path.is_symlink() else "")
        for path in root.rglob("*")
        if path.is_symlink() or not path.is_dir() or not any(path.iterdir())
    }
    assert set(listed) == there, "every file is in exactly one group"
    assert len(listed) == len(there)
    return root / "poncho" / "data", locked, seen


def test_the_seeds_two_entries(tmp_path: Path) -> None:
    archived = gzip.compress(tar(member("train/x", b"x"), member("empty", type=tarfile.DIRTYPE)))
    with faulty_server() as server:
        spec = {
            "http": {
                "REFERENCE_DB": {"type": "file", "url": server.add("/example.dat", b"data")},
                "TRAINING_DATASET": {
                    "type": "tar",
                    "compression": "gzip",
                    "url": server.add("/dataset.tar.gz", archived),
                    "sha256": hashlib.sha256(archived).hexdigest(),
                },
            }
        }
        root, locked, seen = prepared(spec, tmp_path)
    assert (root / "REFERENCE_DB").read_bytes() == b"data"
    assert (root / "TRAINING_DATASET/train/x").read_bytes() == b"x"
    assert [each.sha256 for each in locked] == [hashlib.sha256(d).hexdigest() for d in (b"data", archived)]
    notes = [each.detail for each in seen if each.stage == "note"]
    assert len(notes) == 1
    assert notes[0].startswith("http.REFERENCE_DB: the file may change")


def test_a_compressed_file(tmp_path: Path) -> None:
    with faulty_server() as server:
        url = server.add("/x.xz", lzma.compress(b"plain"))
        root, _, _ = prepared({"http": {"X": {"type": "file", "compression": "xz", "url": url}}}, tmp_path)
    assert (root / "X").read_bytes() == b"plain"


def test_a_lock_is_repeated_exactly_or_refused(tmp_path: Path) -> None:
    with faulty_server() as server:
        spec = EnvSpec.from_dict({"http": {"X": {"type": "file", "url": server.add("/x", b"one")}}})
        _, locked = fetch_data(spec, tmp_path / "cache", tmp_path / "p1", lambda _: None)
        server.files["/x"] = b"two"
        place_data(spec, locked, DataStore(tmp_path / "cache"), tmp_path / "p2", lambda _: None)
        assert (tmp_path / "p2/poncho/data/X").read_bytes() == b"one"
        with pytest.raises(FetchError, match="expected"):
            place_data(spec, locked, DataStore(tmp_path / "elsewhere"), tmp_path / "p3", lambda _: None)


def test_a_lock_without_the_entry(tmp_path: Path) -> None:
    spec = EnvSpec.from_dict({"http": {"X": {"type": "file", "url": "http://127.0.0.1/x"}}})
    with pytest.raises(BuildError, match="does not have X"):
        place_data(spec, (), DataStore(tmp_path), tmp_path / "p", lambda _: None)


def test_the_stored_file_does_not_change_with_the_prefix(tmp_path: Path) -> None:
    with faulty_server() as server:
        spec = {"http": {"X": {"type": "file", "url": server.add("/x", b"one")}}}
        root, (locked,), _ = prepared(spec, tmp_path)
        (root / "X").write_bytes(b"edited")
        assert DataStore(tmp_path / "cache").path(str(locked.sha256)).read_bytes() == b"one"


@pytest.mark.parametrize(
    "entry",
    [
        [],
        {},
        {"variable": "X", "url": "u"},
        {"variable": "X", "url": "u", "commit": "a" * 40, "sha256": "b" * 64},
        {"variable": "X", "url": "u", "sha256": "B" * 64},
        {"variable": "X", "url": 1, "sha256": "b" * 64},
        {"variable": "X", "url": "u", "sha256": "b" * 64, "more": "x"},
    ],
)
def test_locked_data_that_is_none(entry: object) -> None:
    with pytest.raises(BuildError, match=r"lock: data\[0\]"):
        LockedData.from_dict(entry, "lock: data[0]")


def test_locked_data_comes_back() -> None:
    for each in (
        LockedData(variable="X", url="https://example.org/x", sha256="b" * 64),
        LockedData(variable="X", url="file:x", commit="b" * 40),
    ):
        assert LockedData.from_dict(each.to_dict(), "x") == each
