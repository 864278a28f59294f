"""A tarball in parts: unpacked as safely and as parallel as from one file, and what is damaged is named."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from pathlib import Path

import pytest

from tests.wrapper import tarballs
from tests.wrapper.conftest import Samples, Tree, World, tree
from tests.wrapper.killing import VICTIMS, counts, killed_while_others_come


def cut(tarball: tarballs.Tarball, directory: Path, *, groups: int = 3) -> list[Path]:
    """The tarball as manifest, ``groups`` parts of some layers each, and the end of the archive."""
    data = tarball.path.read_bytes()
    directory.mkdir(parents=True, exist_ok=True)
    ends = [offset + length for offset, length in tarball.spans]
    step = max(1, len(ends) // groups)
    places = [0, tarball.member, *ends[step - 1 : -1 : step][: groups - 1], ends[-1], len(data)]
    found = []
    for number, (start, stop) in enumerate(itertools.pairwise(places)):
        part = directory / f"part {number}"  # with a blank
        part.write_bytes(data[start:stop])
        found.append(part)
    return found


def options(parts: list[Path]) -> list[object]:
    return [word for part in parts for word in ("-e", part)]


@pytest.mark.parametrize("cores", ["1", "4"])
def test_parts_unpack_to_what_one_file_unpacks_to(
    world: World, samples: Samples, room: Path, tmp_path: Path, unpacked: Tree, cores: str
) -> None:
    parts = cut(samples.ours, tmp_path / "parts")
    assert len(parts) == 5
    done = world.run(
        *options(parts), "--id", samples.ours.identity, "-d", room / "env", "which-one", env={"CORES": cores}
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "one\n", "")
    assert tree(room / "env") == unpacked
    for part in parts:
        part.unlink()
    done = world.run(*options(parts), "--id", samples.ours.identity, "-d", room / "env", "which-one")
    assert (done.returncode, done.stdout, done.stderr) == (0, "one\n", ""), "a warm run needs none of them"


def test_parts_of_any_name(world: World, samples: Samples, room: Path, tmp_path: Path, unpacked: Tree) -> None:
    parts = cut(samples.ours, tmp_path / "parts")
    for number, name in enumerate(("-rf", "a b", "new\nline 5", "$(touch x)", "7 'x'")):
        parts[number] = parts[number].rename(parts[number].with_name(name))
    done = world.run(*options(parts), "-d", room / "env", env={"CORES": "2"})
    assert (done.returncode, done.stderr) == (0, "")
    assert tree(room / "env") == unpacked


def test_more_than_nine_parts_stay_in_order(dash: World, room: Path, tmp_path: Path) -> None:
    entries = {f"lib/{name}/name": tarballs.text(name * 5000) for name in "abcdefghijklmnopqrstuvwxyz"}
    made = tarballs.ours(tmp_path / "many.tar.gz", {**tarballs.fake_prefix(), **entries}, layers=24)
    parts = cut(made, tmp_path / "parts", groups=len(made.spans))
    assert len(parts) > 12
    done = dash.run(*options(parts), "--debug", "-d", room / "env", env={"CORES": "2"})
    assert done.returncode == 0
    # what fails side by side is tried again in one stream, and would hide that the wrong bytes were read
    assert "in 2 streams" in done.stderr
    assert "once more" not in done.stderr
    found = tree(room / "env")
    assert all(found[name] == ("0o0", entry.data) for name, entry in entries.items())


@pytest.mark.parametrize("which", range(5))
@pytest.mark.parametrize("cores", ["1", "4"])
def test_a_part_that_is_cut_short_is_named(
    world: World, samples: Samples, room: Path, tmp_path: Path, which: int, cores: str
) -> None:
    parts = cut(samples.ours, tmp_path / "parts")
    data = parts[which].read_bytes()
    for length in (0, 1, len(data) // 2, len(data) - 1):
        parts[which].write_bytes(data[:length])
        done = world.run(*options(parts), "-d", room / "env", "which-one", env={"CORES": cores})
        assert (done.returncode, done.stdout) == (125, "")
        if which == 0 and length == 1:  # which makes it no gzip file at all
            assert f"part {which}" in done.stderr
        else:
            assert f"part {which} is damaged" in done.stderr, length
        assert not (room / "env").exists()


@pytest.mark.parametrize("which", range(1, 5))
def test_a_part_with_a_flipped_bit_is_named(
    either: World, samples: Samples, room: Path, tmp_path: Path, which: int
) -> None:
    parts = cut(samples.ours, tmp_path / "parts")
    data = bytearray(parts[which].read_bytes())
    data[-6] ^= 0x10  # of the checksum: whatever decompresses must see it
    parts[which].write_bytes(data)
    for cores in ("1", "4"):
        done = either.run(*options(parts), "-d", room / "env", "which-one", env={"CORES": cores})
        if which == 4 and done.returncode == 0:
            # the end of the archive, of which tar needs nothing: what was unpacked is whole all the same
            shutil.rmtree(room / "env")
            continue
        assert (done.returncode, done.stdout) == (125, "")
        assert "could not unpack" in done.stderr
        assert f"part {which}" in done.stderr
        assert not (room / "env").exists()


def test_a_missing_part_is_named(world: World, samples: Samples, room: Path, tmp_path: Path) -> None:
    parts = cut(samples.ours, tmp_path / "parts")
    parts[2].unlink()
    done = world.run(*options(parts), "-d", room / "env", "which-one")
    assert (done.returncode, done.stdout) == (125, "")
    assert "part 2" in done.stderr
    without = [part for part in parts if part != parts[2]]
    done = world.run(*options(without), "-d", room / "env", "which-one")
    assert (done.returncode, done.stdout) == (125, "")
    assert "damaged" in done.stderr


@pytest.mark.parametrize("cores", ["1", "2"])
def test_a_part_that_goes_away_while_it_is_read(
    dash: World, samples: Samples, room: Path, tmp_path: Path, cores: str
) -> None:
    """What is left of the tarball is one that tar takes for whole."""
    parts = cut(samples.ours, tmp_path / "parts")
    programs = tmp_path / "programs"
    programs.mkdir()
    # Only unpacking comes after the manifest was looked at, which reads the first of many parts and no more.
    (programs / "tar").write_text(f"#!/bin/sh\nrm -f '{parts[2]}'\nsleep 0.2\nexec /usr/bin/tar \"$@\"\n")
    (programs / "cat").write_text('#!/bin/sh\ncase $# in 0 | 1) ;; *) sleep 1 ;; esac\nexec /usr/bin/cat "$@"\n')
    for program in programs.iterdir():
        program.chmod(0o755)
    world = dataclasses.replace(dash, path=f"{programs}:{dash.path}")
    done = world.run(*options(parts), "-d", room / "env", "which-one", env={"CORES": cores})
    assert (done.returncode, done.stdout) == (125, "")
    assert "part 2" in done.stderr
    assert not (room / "env").exists()


def test_a_part_of_another_environment_is_refused(world: World, samples: Samples, room: Path, tmp_path: Path) -> None:
    parts = cut(samples.ours, tmp_path / "parts")
    others = cut(samples.other, tmp_path / "others")
    done = world.run(*options([others[0], *parts[1:]]), "--id", samples.ours.identity, "-d", room / "env", "true")
    assert done.returncode == 125
    assert not (room / "env").exists()


@counts
@VICTIMS
def test_killed_while_unpacking_parts(
    faulty: World, large: tarballs.Tarball, large_tree: Tree, room: Path, tmp_path: Path, victims: str, count: int
) -> None:
    parts = options(cut(large, tmp_path / "parts", groups=4))
    assert killed_while_others_come(faulty, parts, large_tree, room, count, victims) > count / 3
