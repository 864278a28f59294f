"""A tarball as byte ranges of few files: what it comes to, and what is said of ranges and files that are wrong."""

from __future__ import annotations

import dataclasses
import itertools
import random
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.wrapper import tarballs
from tests.wrapper.conftest import Samples, Tree, World, tree
from tests.wrapper.killing import VICTIMS, counts, killed_while_others_come


@dataclass
class Spread:
    """A tarball that lies in several files: ``ranges`` are (number of the file from 1, offset, length)."""

    files: list[Path]
    ranges: list[tuple[int, int, int]]

    @property
    def words(self) -> list[object]:
        text = ",".join(":".join(map(str, each)) for each in self.ranges)
        return [*(word for path in self.files for word in ("-e", path)), "--ranges", text]


def spread(tarball: tarballs.Tarball, directory: Path) -> Spread:
    """As an engine does it: what is new in a file of its own, the rest among other things in two that were there."""
    data = tarball.path.read_bytes()
    directory.mkdir(parents=True, exist_ok=True)
    ends = [offset + length for offset, length in tarball.spans]
    assert len(ends) >= 3
    places = [0, tarball.member, ends[0], ends[1], ends[-1], len(data)]
    manifest, first, second, rest, end = (data[start:stop] for start, stop in itertools.pairwise(places))
    noise = random.Random(1)
    before, between, behind = (noise.randbytes(length) for length in (70_001, 33, 5_000))
    contents = [manifest + second + end, before + first + between, rest + behind]
    files = [directory / name for name in ("delta", "carrier one", "carrier-two")]
    for path, content in zip(files, contents, strict=True):
        path.write_bytes(content)
    ranges = [
        (1, 0, len(manifest)), (2, len(before), len(first)), (1, len(manifest), len(second)), (3, 0, len(rest)),
        (1, len(manifest) + len(second), len(end)),
    ]  # fmt: skip
    return Spread(files, ranges)


@pytest.fixture
def found(samples: Samples, tmp_path: Path) -> Spread:
    return spread(samples.ours, tmp_path / "ranges")


@pytest.mark.parametrize("cores", ["1", "4"])
def test_ranges_unpack_to_what_one_file_unpacks_to(
    world: World, samples: Samples, room: Path, found: Spread, unpacked: Tree, cores: str
) -> None:
    words = [*found.words, "--id", samples.ours.identity, "-d", room / "env"]
    env = {"CORES": cores, "PONCHO_STATS": str(room.parent / "stats")}
    done = world.run(*words, "--debug", "which-one", env=env)
    assert (done.returncode, done.stdout) == (0, "one\n")
    # what fails side by side is tried again in one stream, and would hide that the wrong bytes were read
    assert "once more" not in done.stderr
    assert ("streams" in done.stderr) == (cores == "4")
    assert tree(room / "env") == unpacked
    for path in found.files:
        path.unlink()
    done = world.run(*words, "which-one", env=env)
    assert (done.returncode, done.stdout, done.stderr) == (0, "one\n", ""), "a warm run needs none of them"
    assert [line.split()[-1] for line in (room.parent / "stats").read_text().splitlines()] == ["parts=3"] * 2


def test_ranges_without_a_directory_to_keep(world: World, found: Spread) -> None:
    done = world.run(*found.words, "which-one")
    assert (done.returncode, done.stdout, done.stderr) == (0, "one\n", "")


def test_ranges_in_the_node_s_cache(world: World, samples: Samples, room: Path, found: Spread) -> None:
    env = {"PONCHO_NODE_CACHE": str(room / "cache")}
    done = world.run(*found.words, "--node-cache", "which-one", env=env)
    assert (done.returncode, "--node-cache needs --id" in done.stderr) == (125, True)
    for _ in range(2):
        done = world.run(*found.words, "--node-cache", "--id", samples.ours.identity, "which-one", env=env)
        assert (done.returncode, done.stdout, done.stderr) == (0, "one\n", "")


def test_a_tarball_inside_one_file(world: World, samples: Samples, room: Path, tmp_path: Path, unpacked: Tree) -> None:
    data = samples.ours.path.read_bytes()
    path = tmp_path / "file"
    path.write_bytes(b"x" * 999 + data + b"y" * 99)
    done = world.run("-e", path, f"--ranges=1:999:{len(data)}", "-d", room / "env", env={"CORES": "2"})
    assert (done.returncode, done.stderr) == (0, "")
    assert tree(room / "env") == unpacked


def test_files_of_any_name(world: World, room: Path, found: Spread, unpacked: Tree) -> None:
    for number, name in enumerate(("new\nline 5", "$(touch x)", "7 'x'")):
        found.files[number] = found.files[number].rename(found.files[number].with_name(name))
    done = world.run(*found.words, "-d", room / "env", env={"CORES": "2"})
    assert (done.returncode, done.stderr) == (0, "")
    assert tree(room / "env") == unpacked


def test_more_than_nine_files_and_ranges_stay_in_order(dash: World, room: Path, tmp_path: Path) -> None:
    entries = {f"lib/{name}/name": tarballs.text(name * 5000) for name in "abcdefghijklmnopqrstuvwxyz"}
    made = tarballs.ours(tmp_path / "many.tar.gz", {**tarballs.fake_prefix(), **entries}, layers=24)
    data = made.path.read_bytes()
    places = [0, made.member, *(offset + length for offset, length in made.spans), len(data)]
    pieces = list(itertools.pairwise(places))
    files, ranges = [tmp_path / f"file {number}" for number in range(12)], []
    contents = [b""] * len(files)
    for number, (start, stop) in enumerate(pieces):
        file = number * 5 % len(files)
        ranges.append((file + 1, len(contents[file]), stop - start))
        contents[file] += data[start:stop]
    for path, content in zip(files, contents, strict=True):
        path.write_bytes(content)
    done = dash.run(*Spread(files, ranges).words, "--debug", "-d", room / "env", env={"CORES": "2"})
    assert done.returncode == 0, done.stderr
    assert "in 2 streams" in done.stderr
    assert "once more" not in done.stderr
    unpacked = tree(room / "env")
    assert all(unpacked[name] == ("0o0", entry.data) for name, entry in entries.items())


MALFORMED = [
    "1", "1:2", "1:2:3:4", ":", "::", "1::3", ":0:3", "1:0:", ",", "1:0:3,", ",1:0:3", "1:0:3,,1:3:3", "1:0:0",
    "1:-1:3", "1:0:+3", "1: 0:3", "1:0:3 ", "01:0:3", "1:00:3", "1:0:03", "1:0x1:3", "1:0:1e3", "a:0:3",
    "1:0:$(touch x)", "1:a[$(touch x)]:3", "1:0:3;touch x", "1:0:`touch x`", "1:0:3\ntouch x", "*:0:3", "1:0:\u0663",
    "1:0:1234567890123456", "1:0:\u00b2", "0:0:3", "4:0:3", "999999999999999:0:3", "1:0:3," * 1000 + "1:0:3",
]  # fmt: skip


def test_ranges_that_are_none_are_refused(world: World, room: Path, found: Spread) -> None:
    for text in MALFORMED:
        words = found.words[:-1]
        for env in ({}, {"LC_ALL": "C.UTF-8"}):
            done = world.run(*words, text, "-d", room / "env", "which-one", env=env, cwd=room)
            assert (done.returncode, done.stdout) == (125, ""), text
            assert done.stderr.startswith("poncho_package_run: --ranges"), (text, done.stderr)
            assert done.stderr.endswith("(see --help)\n")
            assert len(done.stderr.splitlines()) == 1 + text.count("\n"), (text, done.stderr)
        assert list(room.iterdir()) == [], text
    done = world.run(*found.words[:-1], "", "-d", room / "env", "which-one")
    assert (done.returncode, "--ranges needs a value" in done.stderr) == (125, True)


def test_a_directory_has_no_ranges(world: World, room: Path) -> None:
    done = world.run("-e", room, "--ranges", "1:0:3", "true")
    assert (done.returncode, "has no --ranges" in done.stderr) == (125, True)


@pytest.mark.parametrize("which", range(3))
@pytest.mark.parametrize("cores", ["1", "4"])
def test_a_file_that_is_too_short_is_named(world: World, room: Path, found: Spread, which: int, cores: str) -> None:
    path = found.files[which]
    data = path.read_bytes()
    needed = max(offset + length for file, offset, length in found.ranges if file == which + 1)
    for length in (0, 1, needed // 2, needed - 1):
        path.write_bytes(data[:length])
        done = world.run(*found.words, "-d", room / "env", "which-one", env={"CORES": cores})
        assert (done.returncode, done.stdout) == (125, "")
        if length:
            assert f"{path} is damaged: it has {length} bytes, and --ranges needs " in done.stderr
        else:
            assert f"{path} is damaged: it is empty" in done.stderr
        assert not (room / "env").exists()
    path.write_bytes(data[:needed])  # behind what is wanted anything may be
    assert world.run(*found.words, "-d", room / "env", "which-one").stdout == "one\n"


@pytest.mark.parametrize("which", range(3))
def test_a_file_that_is_missing_is_named(world: World, room: Path, found: Spread, which: int) -> None:
    found.files[which].unlink()
    done = world.run(*found.words, "-d", room / "env", "which-one")
    assert (done.returncode, done.stdout) == (125, "")
    assert f"there is no {found.files[which]}" in done.stderr


@pytest.mark.parametrize("which", [1, 2, 3])
@pytest.mark.parametrize("cores", ["1", "4"])
def test_a_carrier_with_a_flipped_bit_is_named(
    either: World, room: Path, found: Spread, which: int, cores: str
) -> None:
    file, offset, length = found.ranges[which]
    path = found.files[file - 1]
    data = bytearray(path.read_bytes())
    data[offset + length - 6] ^= 0x10  # of the checksum: whatever decompresses must see it
    path.write_bytes(data)
    done = either.run(*found.words, "-d", room / "env", "which-one", env={"CORES": cores})
    assert (done.returncode, done.stdout) == (125, "")
    assert f"could not unpack {path}: " in done.stderr
    assert not (room / "env").exists()


def test_what_is_damaged_beside_the_ranges_does_not_matter(either: World, room: Path, found: Spread) -> None:
    data = found.files[1].read_bytes()
    found.files[1].write_bytes(bytes(70_001) + data[70_001:])
    done = either.run(*found.words, "-d", room / "env", "which-one", env={"CORES": "2"})
    assert (done.returncode, done.stdout, done.stderr) == (0, "one\n", "")


def test_ranges_of_the_wrong_bytes_are_refused(world: World, samples: Samples, room: Path, found: Spread) -> None:
    right = found.ranges
    file, offset, length = right[1]
    wrong = {
        "in another order": [right[0], right[3], right[2], right[1], right[4]],
        "without the manifest": right[1:],
        "without the end": right[:-1],
        "without a layer": [*right[:2], *right[3:]],
        "a layer twice": [*right[:2], right[1], *right[2:]],
        "a byte early": [right[0], (file, offset - 1, length), *right[2:]],
        "a byte more": [right[0], (file, offset, length + 1), *right[2:]],
        "a byte given to the next": [
            (right[0]), (file, offset, length - 1), (1, right[2][1] - 1, right[2][2] + 1), *right[3:]
        ],
    }  # fmt: skip
    for what, ranges in wrong.items():
        words = Spread(found.files, ranges).words
        for cores in ("1", "4"):
            done = world.run(
                *words, "--id", samples.ours.identity, "-d", room / "env", "which-one", env={"CORES": cores}
            )
            assert (done.returncode, done.stdout) == (125, ""), what
            assert "--ranges is wrong" in done.stderr or "could not unpack" in done.stderr, (what, done.stderr)
            assert any(str(path) in done.stderr for path in found.files), (what, done.stderr)
            assert not (room / "env").exists()


def test_a_carrier_is_not_taken_for_the_environment(world: World, samples: Samples, room: Path, found: Spread) -> None:
    """Its first file begins with the manifest of another environment, which is the one that DIR has."""
    shutil.copyfile(samples.other.path, room.parent / "other")
    assert world.run("-e", room.parent / "other", "-d", room / "env", "which-one").stdout == "two\n"
    words = Spread([room.parent / "other", *found.files], [(file + 1, *rest) for file, *rest in found.ranges]).words
    done = world.run(*words, "-d", room / "env", "which-one")
    assert (done.returncode, done.stdout) == (125, "")
    assert "was unpacked from another environment" in done.stderr
    done = world.run(*words, "-d", room / "ours", "which-one")
    assert (done.returncode, done.stdout, done.stderr) == (0, "one\n", "")
    done = world.run(*words, "-d", room / "ours", "which-one")
    assert (done.returncode, done.stdout, done.stderr) == (0, "one\n", ""), "the same, by the manifest in the ranges"


@pytest.mark.parametrize("cores", ["1", "2"])
def test_a_carrier_that_goes_away_while_it_is_read(
    dash: World, room: Path, tmp_path: Path, found: Spread, cores: str
) -> None:
    """What is left of the tarball is one that tar takes for whole."""
    programs = tmp_path / "programs"
    programs.mkdir()
    # Only unpacking comes after the manifest was looked at, which reads the first range and no more.
    (programs / "tar").write_text(f"#!/bin/sh\nrm -f '{found.files[1]}'\nexec /usr/bin/tar \"$@\"\n")
    (programs / "head").write_text('#!/bin/sh\n/usr/bin/head "$@"\nstatus=$?\nsleep 0.3\nexit $status\n')
    for program in programs.iterdir():
        program.chmod(0o755)
    world = dataclasses.replace(dash, path=f"{programs}:{dash.path}")
    done = world.run(*found.words, "-d", room / "env", "which-one", env={"CORES": cores})
    assert (done.returncode, done.stdout) == (125, "")
    assert str(found.files[1]) in done.stderr
    assert not (room / "env").exists()


@counts
@pytest.mark.parametrize("program", ["dd", "head"])
def test_what_reads_a_range_is_killed(
    either: World, large: tarballs.Tarball, large_tree: Tree, room: Path, tmp_path: Path, program: str, count: int
) -> None:
    """Before it has read a byte, at each place: a missing range in the middle must not look like a smaller archive."""
    found = spread(large, tmp_path / "ranges")
    programs = tmp_path / "programs"
    programs.mkdir()
    real = shutil.which(program, path=either.path)
    (programs / program).write_text(
        f"#!/bin/sh\n: >'{tmp_path}/calls/'$$\nset -- \"$@\"\nfor call in '{tmp_path}'/calls/*; do n=$((n + 1)); done\n"
        f'[ "$n" != "$VICTIM" ] || kill -9 $$\nexec {real} "$@"\n'
    )
    (programs / program).chmod(0o755)
    world = dataclasses.replace(either, path=f"{programs}:{either.path}")
    killed = 0
    for victim in range(1, min(count, 40) + 1):
        shutil.rmtree(tmp_path / "calls", ignore_errors=True)
        (tmp_path / "calls").mkdir()
        cores = str(1 + victim % 2)
        done = world.run(*found.words, "-d", room / "env", "where", env={"CORES": cores, "VICTIM": str(victim)})
        killed += len(list((tmp_path / "calls").iterdir())) >= victim
        if done.returncode == 0:
            assert tree(room / "env") == large_tree, (victim, cores)
            shutil.rmtree(room / "env")
        else:
            assert done.returncode == 125
            assert not (room / "env").exists()
    assert killed > 2


@counts
@VICTIMS
def test_killed_while_unpacking_ranges(
    faulty: World, large: tarballs.Tarball, large_tree: Tree, room: Path, tmp_path: Path, victims: str, count: int
) -> None:
    words = spread(large, tmp_path / "ranges").words
    assert killed_while_others_come(faulty, words, large_tree, room, count, victims) > count / 3
