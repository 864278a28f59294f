"""Tarballs as the run wrapper opens them: it provides an environment or says why not, and nothing else happens.

What is in an environment is run by whoever uses it; unpacking one must still do nothing but fill its own directory.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import tarfile
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import strategies as st

from tests.fuzz.archives import Member, archive, members
from tests.fuzz.campaign import Campaign
from tests.fuzz.strategies import NASTY, damaged
from tests.fuzz.test_archives import MANIFEST_WORDS
from tests.wrapper import tarballs
from tests.wrapper.conftest import World, make_world

# Two shells, each with damaged members, bytes, manifests and ranges: together one target.
SHARE = 8
# What a shell says when it trips over a value, instead of the wrapper saying what is wrong.
_TRIPPED = re.compile(
    r"poncho_package_run: (line )?\d+:|syntax error|[Ii]llegal number|bad number|integer expression|unbound"
)


def unpack(world: World, tarball: Path, room: Path, *more: str) -> int:
    """Provide the environment, without a command; returns the exit status."""
    shutil.rmtree(room, ignore_errors=True)
    room.mkdir()
    argv = world.argv("-e", tarball, *more, "--unpack-to", room / "env")
    done = subprocess.run(
        argv, env=world.environ({"CORES": "2", "TMPDIR": str(room)}), cwd=room, stdin=subprocess.DEVNULL,
        capture_output=True, encoding="utf-8", errors="replace", timeout=120,
    )  # fmt: skip
    assert done.returncode in (0, 125), done
    assert not _TRIPPED.search(done.stderr), done.stderr
    assert done.stdout == ""
    # busybox tar ends with a segmentation fault at a link to nowhere, and the shell says so before we do
    assert done.returncode == 0 or "\nponcho_package_run: " in f"\n{done.stderr}", done.stderr
    left = {path.name for path in room.iterdir() if not path.name.startswith(".poncho-lock")}
    assert left <= ({"env"} if done.returncode == 0 else set()), left
    if done.returncode == 0:
        check(room / "env")
    return done.returncode


def check(root: Path) -> None:
    """No device, and no program that would run as another user."""
    assert (root / "poncho" / "ready").is_file()
    assert not (root / "poncho").is_symlink()
    for place, directories, files in os.walk(root):
        for name in (*directories, *files):
            facts = os.lstat(os.path.join(place, name))
            assert not stat.S_ISCHR(facts.st_mode), name
            assert not stat.S_ISBLK(facts.st_mode), name
            assert not (stat.S_ISREG(facts.st_mode) and facts.st_mode & (stat.S_ISUID | stat.S_ISGID)), name


@pytest.fixture(scope="module", params=["dash", "busybox"])
def shell(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(request.param, tmp_path_factory.getbasetemp())


def test_members(campaign: Campaign, shell: World) -> None:
    tarball, room = campaign.directory / "env.tar.gz", campaign.directory / "room"
    outside = str(campaign.directory.parent / "outside")
    ordinary = [Member("bin/activate"), Member("lib/a", data=b"x")]

    def case(every: list[Member], compressed: bool, whole: bool) -> None:
        tarball.write_bytes(archive([*ordinary, *every], outside, compressed=compressed, whole=whole))
        if unpack(shell, tarball, room) != 0:
            campaign.counts["(125)"] += 1
        assert os.listdir(outside) == []

    campaign.run(
        f"wrapper, {shell.name}: members",
        case,
        programs=True,
        share=SHARE,
        every=members,
        compressed=st.booleans(),
        whole=st.booleans(),
    )


def test_bytes(campaign: Campaign, shell: World, tmp_path_factory: pytest.TempPathFactory) -> None:
    made = tmp_path_factory.mktemp("good")
    ours = tarballs.ours(made / "ours.tar.gz").path.read_bytes()
    venv = tarballs.venv_pack(made / "venv.tar.gz").path.read_bytes()
    with tarfile.open(made / "plain.tar", "w") as tar:
        tar.add(made / "venv.tar.gz", "bin/activate")
    plain = (made / "plain.tar").read_bytes()
    tarball, room = campaign.directory / "env.tar.gz", campaign.directory / "room"
    outside = campaign.directory.parent / "outside"

    def case(data: bytes) -> None:
        tarball.write_bytes(data)
        if unpack(shell, tarball, room) != 0:
            campaign.counts["(125)"] += 1
        assert os.listdir(outside) == []

    campaign.run(
        f"wrapper, {shell.name}: bytes",
        case,
        programs=True,
        share=SHARE,
        data=damaged((ours, ours, venv, plain), MANIFEST_WORDS),
    )


def test_manifests(campaign: Campaign, shell: World, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Ours, whole as gzip and tar, with something else in the manifest."""
    made = tarballs.ours(tmp_path_factory.mktemp("good") / "ours.tar.gz")
    data = made.path.read_bytes()
    text = data[data.index(b"poncho-manifest") :].partition(b"\nend\n")[0] + b"\nend\n"
    rest = data[made.member :]
    tarball, room = campaign.directory / "env.tar.gz", campaign.directory / "room"
    outside = campaign.directory.parent / "outside"

    def case(manifest: bytes) -> None:
        header = tarballs.tar_fragment({"poncho/manifest": tarballs.Entry(manifest)})
        first = tarballs.member(header, 0)
        # the numbers that would give it away at once
        fixed = re.sub(rb"(?m)^size \d+$", b"size %d" % (len(first) + len(rest)), manifest)
        first = tarballs.member(tarballs.tar_fragment({"poncho/manifest": tarballs.Entry(fixed)}), 0)
        tarball.write_bytes(first + rest)
        if unpack(shell, tarball, room) != 0:
            campaign.counts["(125)"] += 1
        assert os.listdir(outside) == []

    campaign.run(
        f"wrapper, {shell.name}: manifest", case, programs=True, share=SHARE, manifest=damaged((text,), MANIFEST_WORDS)
    )


# What a program can be given as an argument.
_argument = st.one_of(st.sampled_from(NASTY), st.text(max_size=8)).filter(
    lambda text: "\0" not in text and not any("\ud800" <= each <= "\udfff" for each in text)
)


def test_ranges(campaign: Campaign, shell: World, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Right ones, some of them changed, and anything: what is provided is the environment."""
    made = tarballs.ours(tmp_path_factory.mktemp("good") / "ours.tar.gz")
    size = made.path.stat().st_size
    ends = [0, made.member, *(offset + length for offset, length in made.spans), size]
    right = [f"{1 + number % 2}:{start}:{stop - start}" for number, (start, stop) in enumerate(pairwise(ends))]
    room = campaign.directory / "room"

    def case(changes: list[tuple[int, str]], whole: bool) -> None:
        words = list(right)
        for number, word in changes:
            words[number] = word
        text = changes[-1][1] if whole and changes else ",".join(words)
        if unpack(shell, made.path, room, "-e", str(made.path), f"--ranges={text}") != 0:
            campaign.counts["(125)"] += 1
        else:
            assert [entry for entry in made.entries if not os.path.lexists(room / "env" / entry)] == []

    number = st.one_of(st.sampled_from(["0", "1", "2", "3", "01", "", str(size), str(10**15), str(2**63)]), _argument)
    ranges = st.one_of(
        _argument, st.sampled_from(right), st.tuples(number, number, number).map(":".join),
        st.tuples(*map(st.sampled_from, ([1, 2], ends, ends))).map(lambda each: ":".join(map(str, each))),
    )  # fmt: skip
    campaign.run(
        f"wrapper, {shell.name}: ranges", case, programs=True, share=SHARE,
        changes=st.lists(st.tuples(st.integers(0, len(right) - 1), ranges), max_size=3), whole=st.booleans(),
    )  # fmt: skip
