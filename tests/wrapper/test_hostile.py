"""Tarballs that would have the wrapper write elsewhere, or leave behind what root alone can make."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from tests.fuzz.archives import Member, archive
from tests.wrapper.conftest import World

ORDINARY = [Member("bin/activate"), Member("lib/a", data=b"x")]


def test_a_link_in_the_place_of_our_own_directory_is_refused(world: World, tmp_path: Path, room: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "ready").write_text("somebody's own")
    tarball = tmp_path / "env.tar.gz"
    tarball.write_bytes(archive([*ORDINARY, Member("poncho", kind=b"2", target=str(elsewhere))], ""))
    done = world.run("-e", tarball, "--unpack-to", room / "env")
    assert done.returncode == 125
    assert "has a link in the place of its directory poncho" in done.stderr
    assert {path.name: path.read_text() for path in elsewhere.iterdir()} == {"ready": "somebody's own"}
    assert not (room / "env").exists()


def test_members_that_leave_the_directory_arrive_nowhere_else(world: World, tmp_path: Path, room: Path) -> None:
    for name in ("../escaped", "a/../../escaped", str(tmp_path / "escaped")):
        tarball = tmp_path / "env.tar.gz"
        tarball.write_bytes(archive([*ORDINARY, Member(name, data=b"x")], ""))
        assert world.run("-e", tarball, "--unpack-to", room / "env").returncode in (0, 125)
        assert not (tmp_path / "escaped").exists()
        assert not (room / "escaped").exists()


def test_nothing_is_written_through_a_link_of_the_archive(world: World, tmp_path: Path, room: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    tarball = tmp_path / "env.tar.gz"
    for target in (str(elsewhere), "../../elsewhere"):
        members = [*ORDINARY, Member("lib/out", kind=b"2", target=target), Member("lib/out/x", data=b"x")]
        tarball.write_bytes(archive(members, ""))
        assert world.run("-e", tarball, "--unpack-to", room / "env").returncode in (0, 125)
        assert list(elsewhere.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's tar makes devices and keeps setuid bits")
def test_roots_environment_holds_no_device_and_no_setuid_program(world: World, tmp_path: Path, room: Path) -> None:
    tarball = tmp_path / "env.tar.gz"
    members = [
        Member("bin/mine", mode=0o4755, data=b"x"), Member("bin/group", mode=0o2755, data=b"x"),
        Member("lib/null", kind=b"3", mode=0o666), Member("lib/block", kind=b"4", mode=0o666),
    ]  # fmt: skip
    tarball.write_bytes(archive([*ORDINARY, *members], ""))
    done = world.run("-e", tarball, "--unpack-to", room / "env")
    assert done.returncode == 0, done.stderr
    for name in ("bin/mine", "bin/group"):
        mode = (room / "env" / name).stat().st_mode
        assert not mode & (stat.S_ISUID | stat.S_ISGID)
        assert mode & 0o111
    assert not (room / "env/lib/null").exists()
    assert not (room / "env/lib/block").exists()
