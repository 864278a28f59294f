"""Inputs that the job's runner unpacks: artifacts come from URLs, and must not reach beyond the job's home."""

from __future__ import annotations

import bz2
import os
import zipfile
from pathlib import Path

import pytest

from poncho_wq.batch import job_runner
from tests.fuzz.archives import Member, archive


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "outside").mkdir()
    return tmp_path / "home"


def unpack(home: Path, *members: Member) -> None:
    packed = home.parent / "archive.tar"
    packed.write_bytes(archive(list(members), str(home.parent / "outside")))
    job_runner._unpack(str(packed), str(home))


def test_an_ordinary_one(home: Path) -> None:
    unpack(
        home, Member("./", kind=b"5"), Member("bin/x", mode=0o755, data=b"x"), Member("./a//b", data=b"old"),
        Member("a/b", data=b"new"), Member("link", kind=b"2", target="a/b"), Member("out", kind=b"2",
        target="/nonexistent/y"), Member("hard", kind=b"1", target="a/b"), Member("empty", kind=b"5"),
    )  # fmt: skip
    assert (home / "a/b").read_bytes() == (home / "link").read_bytes() == (home / "hard").read_bytes() == b"new"
    assert os.access(home / "bin/x", os.X_OK)
    assert os.readlink(home / "out") == "/nonexistent/y"
    assert list((home / "empty").iterdir()) == []


@pytest.mark.parametrize(
    ("members", "why"),
    [
        ([Member("../outside/x", data=b"x")], "leaves the directory"),
        ([Member("a/../../outside/x", data=b"x")], "leaves the directory"),
        ([Member("OUTSIDE/x", data=b"x")], "leaves the directory"),
        ([Member("l", kind=b"2", target="OUTSIDE"), Member("l/x", data=b"x")], "goes through a link"),
        ([Member("l", kind=b"2", target="../outside"), Member("l/d/x", kind=b"5")], "goes through a link"),
        ([Member("h", kind=b"1", target="../outside/secret")], "leaves the directory"),
        ([Member("l", kind=b"2", target="OUTSIDE/secret"), Member("h", kind=b"1", target="l")], "no file of it"),
        ([Member("n", kind=b"3")], "is a device"),
        ([Member("n", kind=b"4")], "is a device"),
        ([Member("n", kind=b"6")], "a pipe"),
    ],
)
def test_members_that_are_refused(home: Path, members: list[Member], why: str) -> None:
    (home.parent / "outside/secret").write_text("secret")
    with pytest.raises(ValueError, match=why):
        unpack(home, *members)
    assert [path.name for path in (home.parent / "outside").iterdir()] == ["secret"]


def test_a_file_takes_the_place_of_a_link_and_is_not_written_through_it(home: Path) -> None:
    unpack(home, Member("l", kind=b"2", target="OUTSIDE/x"), Member("l", data=b"x"))
    assert not (home / "l").is_symlink()
    assert list((home.parent / "outside").iterdir()) == []


def test_nobody_gets_a_setuid_program(home: Path) -> None:
    unpack(home, Member("su", mode=0o6755, data=b"x"))
    assert (home / "su").stat().st_mode & 0o7777 == 0o755


def test_zip_archives(home: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        packed.writestr("d/f", "x")
        packed.writestr("e/", "")
    job_runner._unpack(str(tmp_path / "a.zip"), str(home))
    assert (home / "d/f").read_text() == "x"
    assert (home / "e").is_dir()
    (home / "l").symlink_to(tmp_path / "outside")
    for name in ("../outside/x", "l/x", "/abs"):
        with zipfile.ZipFile(tmp_path / "b.zip", "w") as packed:
            packed.writestr(name, "x")
        with pytest.raises(ValueError):
            job_runner._unpack(str(tmp_path / "b.zip"), str(home))
    assert list((tmp_path / "outside").iterdir()) == []


@pytest.mark.parametrize("whole", [True, False])
def test_a_bomb_is_stopped_before_the_disk_is_full(home: Path, monkeypatch: pytest.MonkeyPatch, whole: bool) -> None:
    free = os.statvfs(home.parent)

    class Small:
        f_bavail, f_frsize = 1_000_000 // free.f_frsize, free.f_frsize

    monkeypatch.setattr(job_runner.os, "statvfs", lambda _: Small)
    plain = archive([Member("f", data=b"x" * 5_000_000)], "", compressed=False) if whole else b"x" * 5_000_000
    packed = home.parent / "bomb"
    packed.write_bytes(bz2.compress(plain))
    with pytest.raises(ValueError, match="more than there is room for"):
        job_runner._unpack(str(packed), str(home))


def test_an_input_is_not_put_through_a_link_that_an_archive_brought(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "first").write_bytes(archive([Member("data", kind=b"2", target=str(outside))], ""))
    (tmp_path / "second").write_text("x")
    monkeypatch.chdir(tmp_path)
    inputs = [{"file": "first", "name": ".", "unpack": True}, {"file": "second", "name": "data/x"}]
    with pytest.raises(job_runner.Problem, match="goes through a link"):
        job_runner._prepare(job_runner.Running({"inputs": inputs}))
    assert list(outside.iterdir()) == []


@pytest.mark.parametrize(
    ("member", "name"),
    [
        (Member("lib", data=b"x"), "lib"),
        (Member("lib", data=b"x"), "lib/deep"),
        (Member("lib", kind=b"2", target="../outside"), "lib/deep"),
        (Member("lib", kind=b"2", target="nowhere"), "lib"),
    ],
)
def test_a_directory_whose_place_an_archive_has_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, member: Member, name: str
) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "first").write_bytes(archive([member], ""))
    monkeypatch.chdir(tmp_path)
    inputs = [{"file": "first", "name": ".", "unpack": True}]
    with pytest.raises(job_runner.Problem, match=f"the directory {name} could not be made"):
        job_runner._prepare(job_runner.Running({"inputs": inputs, "directories": [name]}))
    assert list((tmp_path / "outside").iterdir()) == []
