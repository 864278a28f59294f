"""Faults made on purpose: kills, damage, races, full disks. Each test counts what it tried and what went wrong."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.wrapper import tarballs
from tests.wrapper.conftest import Samples, Tree, World, make_world, path_without, tree
from tests.wrapper.killing import (
    Verdict,
    all_ended,
    beside,
    counts,
    how_long,
    killed_groups,
    processes,
    slowed,
    wait_until,
)  # fmt: skip

# ---- kills ---------------------------------------------------------------------------------------------


@counts
def test_the_group_is_killed(faulty: World, large: tarballs.Tarball, large_tree: Tree, room: Path, count: int) -> None:
    world = slowed(faulty, room.parent)
    assert killed_groups(world, faulty, ["-e", large.path], large_tree, room, count) > count / 3


@counts
@pytest.mark.parametrize("victims", ["the wrapper", "all shells", "one of all"])
def test_the_shell_alone_is_killed(
    faulty: World, large: tarballs.Tarball, large_tree: Tree, room: Path, victims: str, count: int
) -> None:
    world = slowed(faulty, room.parent)
    took = how_long(world, ["-e", large.path], room / "env")
    verdict, in_time = Verdict(), 0
    for number in range(count):
        chance = random.Random(number)
        directory = room / f"env {number}"
        process = world.start("-e", large.path, "-d", directory, "where")
        time.sleep(chance.uniform(0, took))
        alive = processes(process.pid)
        shells = [pid for pid, words in alive.items() if any("poncho_package_run" in word for word in words)]
        if victims == "the wrapper":
            chosen = [process.pid]
        elif victims == "all shells":
            chosen = shells
        else:
            chosen = chance.sample(sorted(alive), 1) if alive else []
        for pid in chosen:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        in_time += bool(set(chosen) & set(alive))
        # at once, while what was not killed goes on
        verdict.served(number, faulty, ["-e", large.path], directory, large_tree)
        process.communicate()
        all_ended(process.pid)
        verdict.check(number, tree(directory) == large_tree, "what went on has changed DIR")
        if beside(directory) != [directory.name]:  # what went on may have died of it, after the sweep
            moved = directory.with_name("aside")
            directory.rename(moved)
            verdict.served(number, faulty, ["-e", large.path], directory, large_tree)
            verdict.check(number, beside(directory) == ["aside", directory.name], beside(directory))
            shutil.rmtree(moved)
        shutil.rmtree(directory)
    print(f"{faulty.name}: {victims} killed: {count}, in time: {in_time}, wrong: {len(verdict.wrong)}")
    assert verdict.wrong == []
    assert in_time > count / 3


@counts
def test_killed_while_filling_a_directory_that_must_stay(
    faulty: World, large: tarballs.Tarball, large_tree: Tree, public: Path, count: int
) -> None:
    """Inside mode: DIR cannot be replaced, since its parent is read-only for this user."""
    tarball = Path(shutil.copy(large.path, public / "t.tar.gz"))
    user = ordinary(faulty, public)
    world = slowed(user, public)
    (public / "mine").mkdir()
    os.chown(public / "mine", NOBODY, NOBODY)
    took = how_long(world, ["-e", tarball], public / "mine/env")
    verdict, in_time, late = Verdict(), 0, 0
    for number in range(count):
        parent = public / f"parent {number}"
        directory = parent / "env"
        directory.mkdir(parents=True)
        os.chown(directory, NOBODY, NOBODY)
        process = world.start("-e", tarball, "-d", directory, "where")
        time.sleep(random.Random(number).uniform(0, took))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        in_time += process.returncode == -signal.SIGKILL
        done = user.run("-e", tarball, "-d", directory, "where")
        verdict.check(number, (done.returncode, done.stdout, done.stderr) == (0, f"{directory}\n", ""), done)
        if left := list(directory.glob(".poncho-new*")):
            # On a busy machine the killed may die after the sweep; the next that unpacks here sweeps again.
            late += 1
            for path in set(directory.iterdir()) - set(left):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        verdict.served(number, user, ["-e", tarball], directory, large_tree)
        verdict.check(number, [path.name for path in parent.iterdir()] == ["env"], "something lies beside DIR")
        shutil.rmtree(parent)
    print(
        f"{faulty.name}: killed inside DIR: {count}, in time: {in_time}, swept late: {late}, "
        f"wrong: {len(verdict.wrong)}"
    )
    assert verdict.wrong == []
    assert in_time > count / 3


NOBODY = 65534


def ordinary(world: World, public: Path) -> World:
    """The same world as seen by a user who is not root, who finds all that he needs in `public`."""
    if os.getuid() != 0:
        pytest.skip("only root can make directories for another user")
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv is not installed")
    shutil.copy(world.wrapper, public / "poncho_package_run")
    copied = make_world("busybox", public) if world.name == "busybox" else world
    path = path_without(public / "bin", "flock") if "no-flock" in world.path else copied.path
    setpriv = [str(shutil.which("setpriv")), f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    return dataclasses.replace(
        copied, shell=[*setpriv, *copied.shell], path=path, wrapper=public / "poncho_package_run"
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT])
@pytest.mark.parametrize("form", ["persistent", "temporary"])
def test_a_signal_while_unpacking_leaves_nothing(
    either: World, large: tarballs.Tarball, room: Path, number: int, form: str
) -> None:
    directory = room / "env"
    where = ["-d", directory] if form == "persistent" else []
    wrong: list[object] = []
    for delay in (0.03, 0.15):
        process = slowed(either, room.parent).start(
            "-e", large.path, *where, "sh", "-c", "echo ran; exec sleep 9", env={"TMPDIR": str(room)}
        )
        time.sleep(delay)
        early = not list(room.iterdir())
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
        all_ended(process.pid)
        if out == "ran\n" or (directory / "poncho/ready").exists():  # it was too late
            shutil.rmtree(directory, ignore_errors=True)
        elif not early and (process.returncode not in (-number, 128 + number) or out or err):
            wrong.append((delay, process.returncode, out, err))
        wrong += [path for path in room.iterdir() if "lock" not in path.name]
    assert wrong == []


# ---- damage --------------------------------------------------------------------------------------------------


def damaged_run(world: World, tarball: Path, directory: Path, expected: Tree) -> tuple[bool, bool]:
    """Unpack it; whether it was refused, and whether that or the result is right."""
    done = world.run("-e", tarball, "-d", directory, env={"CORES": "2"})
    if done.returncode == 125:
        return True, not directory.exists() and done.stderr.startswith("poncho_package_run: ")
    right = done.returncode == 0 and tree(directory) == expected
    shutil.rmtree(directory, ignore_errors=True)
    return False, right


KINDS = ["ours", "conda-pack", "venv-pack", "plain tar", "several members"]


@pytest.fixture(scope="session")
def kinds(samples: Samples, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Tree]]:
    """A tarball of each kind and what it comes to. Whatever relocates is left out: places differ."""
    directory = tmp_path_factory.mktemp("kinds")
    entries = {name: entry for name, entry in tarballs.fake_prefix().items() if name != "poncho/set_env"}
    files = {
        "ours": samples.ours.path,
        "conda-pack": tarballs.conda_pack(directory / "conda", unpack="#!/bin/sh\nexit 0\n").path,
        "venv-pack": samples.venv.path,
        "plain tar": tarballs.plain(directory / "plain", entries, compress="").path,
    }
    pieces = [tarballs.tar_fragment({name: entry}) for name, entry in entries.items()]
    files["several members"] = directory / "members"
    files["several members"].write_bytes(b"".join(gzip.compress(piece) for piece in [*pieces, bytes(10240)]))
    found = {}
    for name, path in files.items():
        where = directory / f"{name} tree"
        where.mkdir()
        subprocess.run(["tar", "-xf", path, "-C", where], check=True)
        found[name] = (path, tree(where))
    return found


@counts
@pytest.mark.parametrize("kind", KINDS)
def test_truncated(either: World, kinds: dict[str, tuple[Path, Tree]], room: Path, kind: str, count: int) -> None:
    path, expected = kinds[kind]
    data = path.read_bytes()
    chance = random.Random(kind)
    offsets = {0, 512, len(data) - 1, len(data) - 8}
    offsets |= {chance.randrange(len(data)) for _ in range(count)}
    if kind == "plain tar":  # also where an entry ends
        offsets |= {512 * chance.randrange(len(data) // 512) for _ in range(count)}
    wrong = refused = 0
    for offset in sorted(offset for offset in offsets if 0 <= offset < len(data)):
        (room / "cut").write_bytes(data[:offset])
        was_refused, right = damaged_run(either, room / "cut", room / "env", expected)
        refused += was_refused
        wrong += not right
    print(f"{either.name}: {kind}: truncations: {len(offsets)}, refused: {refused}, wrong: {wrong}")
    assert wrong == 0
    assert refused > len(offsets) * 0.7


def test_truncated_between_members(
    either: World, kinds: dict[str, tuple[Path, Tree]], samples: Samples, room: Path
) -> None:
    """tar itself exits 0 for each of these."""
    tried = wrong = 0
    several = kinds["several members"][0]
    for path, starts in (
        (samples.ours.path, [samples.ours.member, *(start + length for start, length in samples.ours.spans)]),
        (several, member_starts(several.read_bytes())[::4]),
    ):
        data = path.read_bytes()
        for start in starts:
            (room / "cut").write_bytes(data[:start])
            refused, right = damaged_run(either, room / "cut", room / "env", {})
            tried += 1
            wrong += not refused or not right
    print(f"{either.name}: cut between members: {tried}, wrong: {wrong}")
    assert tried > 8
    assert wrong == 0


def member_starts(data: bytes) -> list[int]:
    import zlib

    starts, rest = [], data
    while rest:
        decoder = zlib.decompressobj(31)
        decoder.decompress(rest)
        rest = decoder.unused_data
        starts.append(len(data) - len(rest))
    return starts[:-1]


@counts
@pytest.mark.parametrize("kind", ["ours", "conda-pack", "several members"])
@pytest.mark.parametrize("cores", ["1", "2"])
def test_flipped(
    either: World, kinds: dict[str, tuple[Path, Tree]], samples: Samples, room: Path, kind: str, cores: str, count: int
) -> None:
    path, expected = kinds[kind]
    data = path.read_bytes()
    chance = random.Random(kind + cores)
    places = [(chance.randrange(len(data)), 1 << chance.randrange(8)) for _ in range(count)]
    if kind == "ours":  # the first bytes of each member are what tells it from garbage at the end
        places += [(start, 1) for start, _ in samples.ours.spans]
    if kind == "several members":
        places += [(start, 1) for start in member_starts(data)[::5]]
    wrong = refused = 0
    for offset, bit in places:
        changed = bytearray(data)
        changed[offset] ^= bit
        (room / "flipped").write_bytes(changed)
        done = either.run("-e", room / "flipped", "-d", room / "env", env={"CORES": cores})
        if done.returncode == 125:
            refused += 1
            wrong += (room / "env").exists()
        else:
            same = tree(room / "env") == expected
            wrong += done.returncode != 0 or not same
            shutil.rmtree(room / "env")
    print(f"{either.name}: {kind} on {cores} cores: flips: {len(places)}, refused: {refused}, wrong: {wrong}")
    assert wrong == 0
    assert refused > len(places) / 3


def test_a_failure_is_not_remembered(either: World, samples: Samples, room: Path) -> None:
    (room / "bad").write_bytes(samples.ours.path.read_bytes()[:-30])
    assert either.run("-e", room / "bad", "-d", room / "env").returncode == 125
    done = either.run("-e", samples.ours.path, "-d", room / "env", "which-one")
    assert (done.returncode, done.stdout, done.stderr) == (0, "one\n", "")


def test_a_fast_decompressor_that_is_broken_is_not_needed(dash: World, samples: Samples, room: Path) -> None:
    (room / "bin").mkdir()
    for body in (
        "exit 1",
        "cat >/dev/null",
        "exec gzip -dc | head -c 5000",
        "kill -9 $$",
        "gzip -dc | sed 's/echo one/echo two/'; exit 1",
    ):
        (room / "bin/igzip").write_text(f"#!/bin/sh\n{body}\n")
        (room / "bin/igzip").chmod(0o755)
        for cores in ("1", "2"):
            done = dash.run(
                "-e",
                samples.ours.path,
                "-d",
                room / "env",
                "which-one",
                env={"PATH": f"{room}/bin:{dash.path}", "CORES": cores},
            )
            assert (done.returncode, done.stdout, done.stderr) == (0, "one\n", "")
            shutil.rmtree(room / "env")


@pytest.mark.parametrize("program", ["tail", "head", "awk", "sort", "igzip", "gzip", "sed", "od", "tr"])
def test_one_program_dies_before_it_has_said_anything(
    dash: World, samples: Samples, unpacked: Tree, room: Path, program: str
) -> None:
    """Whatever is missing for that is noticed: a layer of which nothing came, a record of activation cut short."""
    (room / "bin").mkdir()
    real = shutil.which(program, path=dash.path) or shutil.which("gzip", path=dash.path)
    copy = Path(shutil.copy(samples.ours.path, room / "copy"))  # the identity is all that tells that it is the same
    wrong = tried = 0
    for number in range(1, 7):
        for cores in ("3",):
            (room / "count").write_text("")
            (room / "bin" / program).write_text(
                f"#!/bin/sh\necho >>'{room}/count'\n"
                f"[ $(wc -l <'{room}/count') != {number} ] || kill -9 $$\nexec {real} \"$@\"\n"
            )
            (room / "bin" / program).chmod(0o755)
            env = {"PATH": f"{room}/bin:{dash.path}", "CORES": cores}
            done = dash.run("-e", samples.ours.path, "-d", room / "env", "sh", "-c", "echo $PONCHO_TEST_WORD", env=env)
            tried += 1
            if done.returncode == 125:
                wrong += (room / "env").exists()
            else:
                again = dash.run("-e", copy, "-d", room / "env", "sh", "-c", "echo $PONCHO_TEST_WORD")
                good = dash.run("-e", samples.ours.path, "sh", "-c", "echo $PONCHO_TEST_WORD").stdout
                wrong += (again.stdout, tree(room / "env")) != (good, unpacked)
                shutil.rmtree(room / "env")
    print(f"{program} killed at once: {tried}, wrong: {wrong}")
    assert wrong == 0


# ---- races ----------------------------------------------------------------------------------------------------


def stats(path: Path) -> list[dict[str, str]]:
    return [dict(word.split("=", 1) for word in line.split()[2:]) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("count", [16, pytest.param(64, marks=pytest.mark.slow)])
def test_simultaneous_first_runs(
    faulty: World, large: tarballs.Tarball, large_tree: Tree, room: Path, count: int
) -> None:
    directory, lines = room / "deep/env", room / "stats"
    running = [
        faulty.start("-e", large.path, "-d", directory, "where", env={"PONCHO_STATS": str(lines)}) for _ in range(count)
    ]
    wrong = 0
    for process in running:
        out, err = process.communicate(timeout=120)
        wrong += (process.returncode, out, err) != (0, f"{directory}\n", "")
    unpackings = sum(int(row["unpacked"]) for row in stats(lines))
    print(f"{faulty.name}: first runs at once: {count}, unpacked: {unpackings}, wrong: {wrong}")
    assert wrong == 0
    assert (len(stats(lines)), unpackings) == (count, 1)
    assert tree(directory) == large_tree
    assert beside(directory) == ["env"]


@counts
def test_everything_is_removed_while_it_is_unpacked(
    faulty: World, large: tarballs.Tarball, large_tree: Tree, room: Path, count: int
) -> None:
    """Debian's worker removes what is in its workspace before it ends its tasks, when it loses its manager."""
    world = slowed(faulty, room.parent)
    took = how_long(world, ["-e", large.path], room / "env")
    verdict, refused = Verdict(), 0
    for number in range(count):
        directory = room / f"env {number}"
        process = world.start("-e", large.path, "-d", directory, "where")
        time.sleep(random.Random(number).uniform(0, took))
        there = list(room.iterdir())
        for path in there:
            shutil.rmtree(path, ignore_errors=True)
        out, err = process.communicate(timeout=120)
        refused += process.returncode == 125
        if process.returncode == 0 and directory.exists():
            verdict.check(number, tree(directory) == large_tree, "published without what was removed")
        elif process.returncode != 0:
            # What was there already may have gone just before the command began.
            right = process.returncode == 125 or (process.returncode in (126, 127) and directory in there)
            verdict.check(number, right and err.count("\n") >= 1, (process.returncode, out, err))
        if directory.exists():
            shutil.rmtree(directory)
        verdict.served(number, faulty, ["-e", large.path], directory, large_tree)
        shutil.rmtree(directory)
    print(f"{faulty.name}: removed while unpacking: {count}, refused: {refused}, wrong: {len(verdict.wrong)}")
    assert verdict.wrong == []
    assert refused > count / 3


# `mv` for a world in which somebody is removing what lies in the workspace: at the rename to DIR he has come as far as
# to have removed one file of the environment. Many remove in the order in which a directory is read, and some what is
# in its directories first.
REMOVING_MV = f"""#!{sys.executable} -IS
import os, sys
order, real, words = sys.argv[1], sys.argv[2], sys.argv[3:]


def remove(directory, inside=False):
    entries = list(os.scandir(directory))
    if order == "directories first":
        entries.sort(key=lambda entry: not entry.is_dir(follow_symlinks=False))
    for entry in entries:
        inside_entry = inside or entry.path == words[-2]
        if not entry.is_dir(follow_symlinks=False):
            os.unlink(entry.path)
            if inside_entry:
                return True
        elif remove(entry.path, inside_entry):
            return True
    return False


if "/.poncho-env." in words[-2] and "/.poncho-env." not in words[-1]:
    assert remove(os.path.dirname(words[-2])), "nothing was removed"
os.execv(real, [real, *words])
"""


@pytest.mark.parametrize("kind", ["ours", "conda"])
@pytest.mark.parametrize("order", ["as it is read", "directories first"])
@pytest.mark.parametrize("file_system", ["of the tests", "tmpfs"])
def test_removal_has_come_to_the_environment_when_it_is_published(
    either: World, samples: Samples, room: Path, kind: str, order: str, file_system: str
) -> None:
    """Whoever removes a file of the environment has been at a mark before, wherever the directory has its entries."""
    tarball = getattr(samples, kind)
    programs = room.parent / "removing"
    programs.mkdir()
    real = shutil.which("mv", path=either.path)
    (programs / "removing.py").write_text(REMOVING_MV)
    (programs / "mv").write_text(
        f"#!/bin/sh\nexec {sys.executable} -IS {programs}/removing.py '{order}' {real} \"$@\"\n"
    )
    (programs / "mv").chmod(0o755)
    world = dataclasses.replace(either, path=f"{programs}:{either.path}")
    with contextlib.ExitStack() as stack:
        if file_system == "tmpfs":
            if not os.access("/dev/shm", os.W_OK):
                pytest.skip("no /dev/shm")
            room = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm")))
        for number in range(4):
            directory = room / f"env {number}"
            done = world.run("-e", tarball.path, "-d", directory, "true")
            assert done.returncode == 125
            assert "files were removed from" in done.stderr
            assert not (directory / "poncho/ready").exists()
            again = either.run("-e", tarball.path, "-d", directory, "true")
            assert (again.returncode, again.stderr) == (0, "")
        for path in room.iterdir():
            assert not path.name.startswith(".poncho-new"), path


def test_simultaneous_first_runs_by_a_link(
    faulty: World, large: tarballs.Tarball, large_tree: Tree, room: Path
) -> None:
    """Who unpacks takes the user's empty directory away: to the others the link leads nowhere until it is done."""
    (room / "deep/real").mkdir(parents=True)
    (room / "a link").symlink_to("deep/on")
    (room / "deep/on").symlink_to(room / "deep/real")
    world = slowed(faulty, room.parent)
    running = []
    for _ in range(6):
        running.append(world.start("-e", large.path, "-d", room / "a link", "where"))
        time.sleep(0.04)
    ended = [(*process.communicate(timeout=120), process.returncode) for process in running]
    assert ended == [(f"{room}/deep/real\n", "", 0)] * 6
    assert tree(room / "deep/real") == large_tree
    assert beside(room / "deep/real") == ["on", "real"]


def test_a_link_that_leads_nowhere(dash: World, samples: Samples, room: Path) -> None:
    (room / "link").symlink_to("purged\n/env\n")
    done = dash.run("-e", samples.ours.path, "-d", room / "link", "where")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{room}/purged\n/env\n\n", "")
    (room / "loop").symlink_to("loop")
    done = dash.run("-e", samples.ours.path, "-d", room / "loop", "where")
    assert (done.returncode, done.stderr) == (125, f"poncho_package_run: {room}/loop is not a directory\n")


@pytest.mark.parametrize("existing", [False, True])
def test_simultaneous_first_runs_where_locks_do_nothing(
    dash: World, large: tarballs.Tarball, large_tree: Tree, room: Path, existing: bool
) -> None:
    """As on a file system whose locks always succeed: more is unpacked than need be, and nothing is wrong."""
    (room / "bin").mkdir()
    (room / "bin/flock").write_text("#!/bin/sh\nexit 0\n")
    (room / "bin/flock").chmod(0o755)
    directory, lines = room / "deep/env", room / "stats"
    if existing:
        directory.mkdir(parents=True)
    env = {"PATH": f"{room}/bin:{dash.path}", "PONCHO_STATS": str(lines)}
    running = [dash.start("-e", large.path, "-d", directory, "where", env=env) for _ in range(8)]
    ended = [(*process.communicate(timeout=120), process.returncode) for process in running]
    print(f"first runs at once without locks: 8, unpacked: {sum(int(row['unpacked']) for row in stats(lines))}")
    assert ended == [(f"{directory}\n", "", 0)] * 8
    assert tree(directory) == large_tree
    assert beside(directory) == ["env"]


def test_a_mv_that_moves_into_what_is_there(dash: World, samples: Samples, unpacked: Tree, room: Path) -> None:
    """POSIX's mv has no -T. Several come to the rename at the same time, each having found no DIR before."""
    (room / "bin").mkdir()
    (room / "bin/flock").write_text("#!/bin/sh\nexit 0\n")
    slow = 'case $1 in -T) exit 1 ;; *.poncho-new.*) sleep 0.5 ;; esac\nexec /bin/mv "$@"\n'
    (room / "bin/mv").write_text(f"#!/bin/sh\n{slow}")
    for name in ("flock", "mv"):
        (room / "bin" / name).chmod(0o755)
    env = {"PATH": f"{room}/bin:{dash.path}"}
    running = [dash.start("-e", samples.ours.path, "-d", room / "env", "which-one", env=env) for _ in range(2)]
    ended = [(*process.communicate(timeout=60), process.returncode) for process in running]
    assert ended == [("one\n", "", 0)] * 2
    assert tree(room / "env") == unpacked
    assert beside(room / "env") == ["bin", "env"]


def test_flock_that_fails_is_replaced(dash: World, samples: Samples, room: Path) -> None:
    (room / "bin").mkdir()
    (room / "bin/flock").write_text("#!/bin/sh\necho flock: No locks available >&2\nexit 71\n")
    (room / "bin/flock").chmod(0o755)
    lines = room / "stats"
    env = {"PATH": f"{room}/bin:{dash.path}", "PONCHO_STATS": str(lines)}
    running = [dash.start("-e", samples.ours.path, "-d", room / "env", "which-one", env=env) for _ in range(8)]
    ended = [(*process.communicate(timeout=60), process.returncode) for process in running]
    assert ended == [("one\n", "", 0)] * 8
    assert sum(int(row["unpacked"]) for row in stats(lines)) == 1


def test_two_environments_want_one_directory(faulty: World, samples: Samples, room: Path) -> None:
    wrong = 0
    for number in range(2):
        directory = room / f"env {number}"
        both = [(samples.ours, "one\n"), (samples.other, "two\n")] * 4
        running = [(faulty.start("-e", tarball.path, "-d", directory, "which-one"), word) for tarball, word in both]
        ended = [(*process.communicate(timeout=60), process.returncode, word) for process, word in running]
        served = {out for out, err, status, word in ended if status == 0}
        wrong += len(served) != 1
        for out, err, status, word in ended:
            if word in served:
                wrong += (out, status) != (word, 0)
            else:
                wrong += (out, status) != ("", 125) or "another environment" not in err
    print(f"{faulty.name}: two environments for one directory: 2 × 8 runs, wrong: {wrong}")
    assert wrong == 0


@pytest.mark.parametrize("then", ["it is emptied", "it is gone", "it is being filled again", "nothing"])
@pytest.mark.parametrize("locked", [True, False])
def test_what_the_dead_left_is_emptied_while_somebody_looks(
    faulty: World, samples: Samples, unpacked: Tree, room: Path, then: str, locked: bool
) -> None:
    """Seen populated before it is emptied, unmarked after: half-made, and not somebody else's."""
    text = faulty.wrapper.read_text()
    test = '! _poncho_marked "$_poncho_dir" || return 1'
    assert text.count(test) == 1
    (room / "poncho_package_run").write_text(text.replace(test, f"command . ./hook\n{test}"))
    actions = {
        "it is emptied": "rm -rf env/lib env/.poncho-unpacking",
        "it is gone": "rm -rf env",
        "it is being filled again": "rm -rf env/lib env/.poncho-unpacking; : >env/another",
        "nothing": "",
    }
    (room / "hook").write_text(f"[ ! -e env/lib ] || {{ {actions[then] or ':'}; }}\n")
    (room / "env/lib").mkdir(parents=True)
    (room / "env/.poncho-unpacking").write_text(dead_owner())
    if locked:
        (room / ".poncho-lock.env").write_text("")
    world = dataclasses.replace(faulty, wrapper=room / "poncho_package_run")
    done = world.run("-e", samples.ours.path, "-d", "env", "sh", "-c", "which-one; echo $PONCHO_PREFIX", cwd=room)
    assert (done.returncode, done.stderr) == (0, "") or then == "it is being filled again"
    if then == "it is being filled again":
        # by somebody else, who has put a file of his own there: his it is, and was not touched
        assert [path.name for path in (room / "env").iterdir() if "lock" not in path.name] == ["another"]
        return
    assert done.stdout == f"one\n{room}/env\n"
    assert tree(room / "env") == unpacked


def test_somebody_elses_directory_beside_a_lock_is_decided_under_it(
    faulty: World, samples: Samples, room: Path
) -> None:
    """As where an environment of ours was, and somebody has put something else there since."""
    assert faulty.run("-e", samples.ours.path, "-d", room / "env").returncode == 0
    shutil.rmtree(room / "env")
    (room / "env/bin").mkdir(parents=True)
    (room / "env/bin/which-one").write_text("#!/bin/sh\necho theirs\n")
    (room / "env/bin/which-one").chmod(0o755)
    before = sorted((room / "env").rglob("*"))
    lines = room / "stats"
    for _ in range(2):
        done = faulty.run("-e", samples.ours.path, "-d", room / "env", "which-one", env={"PONCHO_STATS": str(lines)})
        assert (done.returncode, done.stdout, done.stderr) == (0, "theirs\n", "")
    assert sorted((room / "env").rglob("*")) == before
    assert len(stats(lines)) == 2


def test_a_stopped_holder_is_waited_for_so_long_and_no_longer(
    faulty: World, large: tarballs.Tarball, room: Path
) -> None:
    directory = room / "env"
    process = slowed(faulty, room.parent).start("-e", large.path, "-d", directory, "where")
    wait_until(lambda: list(room.glob(".poncho-new.*/.poncho-env.*")), "it does not begin")
    os.killpg(process.pid, signal.SIGSTOP)
    done = faulty.run("-e", large.path, "-d", directory, "-w", "0", "where")
    assert (done.returncode, done.stdout) == (124, "")
    started = time.monotonic()
    done = faulty.run("-e", large.path, "-d", directory, "-w", "2", "where")
    assert (done.returncode, done.stdout) == (124, "")
    assert "waited 2 s" in done.stderr
    assert time.monotonic() - started >= 1.5
    waiting = faulty.start("-e", large.path, "-d", directory, "where")
    os.killpg(process.pid, signal.SIGCONT)
    for run in (process, waiting):
        out, err = run.communicate(timeout=60)
        assert (run.returncode, out, err) == (0, f"{directory}\n", "")


def test_a_waiting_run_can_be_ended(faulty: World, large: tarballs.Tarball, room: Path) -> None:
    process = slowed(faulty, room.parent).start("-e", large.path, "-d", room / "env", "where")
    wait_until(lambda: list(room.glob(".poncho-new.*/.poncho-env.*")), "it does not begin")
    os.killpg(process.pid, signal.SIGSTOP)
    waiting = faulty.start("-e", large.path, "-d", room / "env", "where")
    wait_until(lambda: len(processes(waiting.pid)) >= 3, "it does not wait")
    waiting.terminate()
    out, err = waiting.communicate(timeout=10)
    assert (waiting.returncode, out, err) == (-signal.SIGTERM, "", "")
    all_ended(waiting.pid)
    os.killpg(process.pid, signal.SIGCONT)
    assert process.communicate(timeout=60)[0] == f"{room}/env\n"


def test_the_tarball_is_replaced_while_it_is_unpacked(
    either: World, large: tarballs.Tarball, large_tree: Tree, samples: Samples, room: Path
) -> None:
    tarball = room / "t.tar.gz"
    for number in range(2):
        shutil.copy(large.path, tarball)
        shutil.copy(samples.other.path, room / "other")
        directory = room / f"env {number}"
        process = slowed(either, room.parent).start("-e", tarball, "-d", directory, "where", env={"CORES": "2"})
        wait_until(lambda: list(room.glob(".poncho-new.*/.poncho-env.*/*")), "it does not begin")
        os.rename(room / "other", tarball)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out, err) == (0, f"{directory}\n", "")
        assert tree(directory) == large_tree
        assert either.run("-e", tarball, "-d", directory, "where").returncode == 125


def test_the_tarball_is_written_over_while_it_is_unpacked(dash: World, room: Path, samples: Samples) -> None:
    """A foreign one, so that no checksum of ours tells: read whole before the change, checked after it."""
    tarball = room / "t.tar.gz"
    shutil.copy(samples.venv.path, tarball)
    (room / "bin").mkdir()
    (room / "bin/cksum").write_text(f"#!/bin/sh\n/usr/bin/cksum\ncat {samples.other.path} >{tarball}\n")
    (room / "bin/cksum").chmod(0o755)
    done = dash.run("-e", tarball, "-d", room / "env", "true", env={"PATH": f"{room}/bin:{dash.path}"})
    assert done.returncode == 125
    assert "changed" in done.stderr
    assert not (room / "env").exists()


# ---- what deaths leave behind -----------------------------------------------------------------------------------


def boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def dead_owner(**change: str) -> str:
    """A signature of somebody who is no more: this process number is in use, but began at another time."""
    parts = {
        "host": os.uname().nodename,
        "boot": boot(),
        "space": os.readlink("/proc/self/ns/pid"),
        "pid": str(os.getpid()),
        "start": "1",
    }
    return " ".join({**parts, **change}.values()) + "\n"


def living_owner(**change: str) -> str:
    start = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
    return dead_owner(start=start, **change)


@pytest.mark.parametrize(
    "leftover",
    [
        "empty ready",
        "short ready",
        "unclosed quote",
        "mark",
        "empty mark",
        "private inside",
        "private beside",
        "unsigned",
        "lock file",
        "empty lock file",
        "another boot",
        "no pid",
    ],
)
def test_leftovers_of_the_dead_are_cleaned(
    faulty: World, samples: Samples, unpacked: Tree, room: Path, leftover: str
) -> None:
    """As after a kill at the worst moment, or a power cut that lost what had been written last."""
    directory = room / "env"
    if leftover in ("empty ready", "short ready", "unclosed quote", "mark", "empty mark", "another boot"):
        assert faulty.run("-e", samples.ours.path, "-d", directory).returncode == 0
        (directory / "lib/name").write_text("")
        (directory / "bin/extra").write_text("x")
        ready = directory / "poncho/ready"
        if leftover == "empty ready":
            ready.write_text("")
        elif leftover == "short ready":
            ready.write_text(ready.read_text().replace("_poncho_found=ready\n", ""))
        elif leftover == "unclosed quote":
            ready.write_text(ready.read_text()[:110])
        else:
            ready.unlink()
            text = {"mark": dead_owner(), "empty mark": "", "another boot": living_owner(boot="another")}[leftover]
            (directory / ".poncho-unpacking").write_text(text)
    elif leftover == "private inside":
        private = directory / ".poncho-new.4194300.0/env/lib"
        private.mkdir(parents=True)
        (private.parents[1] / "owner").write_text(dead_owner())
        (directory / "bin").mkdir()
        (directory / ".poncho-unpacking").write_text(dead_owner())
    elif leftover in ("private beside", "unsigned", "no pid"):
        name = ".poncho-new.env.no pid.0" if leftover == "no pid" else ".poncho-new.env.4194300.0"
        private = room / name / "env/lib"
        private.mkdir(parents=True)
        (private / "file").write_text("x")
        private.chmod(0o500)
        if leftover == "private beside":
            (room / name / "owner").write_text(dead_owner())
    elif leftover == "lock file":
        (room / ".poncho-lock.env.held").write_text(dead_owner())
    else:
        (room / ".poncho-lock.env.held").write_text("")
    done = faulty.run("-e", samples.ours.path, "-d", directory, "-w", "20", "which-one")
    assert (done.returncode, done.stdout, done.stderr) == (0, "one\n", "")
    assert tree(directory) == unpacked
    assert beside(directory) == ["env"]


def test_the_work_of_the_living_is_not_touched(faulty: World, samples: Samples, room: Path) -> None:
    for number, owner in enumerate((living_owner(), dead_owner(host="elsewhere"), dead_owner(space="pid:[1]"))):
        directory = room / f"env {number}"
        directory.mkdir()
        (directory / "bin").mkdir()
        (directory / ".poncho-unpacking").write_text(owner)
        private = room / f".poncho-new.env {number}.1.0"
        private.mkdir()
        (private / "owner").write_text(owner)
        done = faulty.run("-e", samples.ours.path, "-d", directory, "-w", "1", "which-one")
        assert (done.returncode, done.stdout) == (124, "")
        assert private.exists()
        assert sorted(path.name for path in directory.iterdir()) == [".poncho-unpacking", "bin"]
        done = faulty.run("-e", directory, "which-one")
        assert (done.returncode, done.stdout) == (125, "")
        shutil.rmtree(private)
        (directory / ".poncho-unpacking").unlink()


def test_a_lock_of_another_machine_is_not_waited_for_for_ever(dash: World, samples: Samples, room: Path) -> None:
    world = dash
    world.path = path_without(room.parent / "bin", "flock")
    held = room / ".poncho-lock.env.held"
    held.write_text(dead_owner(host="elsewhere"))
    done = world.run("-e", samples.ours.path, "-d", room / "env", "-w", "2", "which-one")
    assert (done.returncode, done.stdout, done.stderr) == (0, "one\n", "")
    # one of this machine, alive, is
    held.write_text(living_owner())
    done = world.run("-e", samples.ours.path, "-d", room / "env2", "-w", "1", "which-one")
    assert done.returncode == 0  # another directory
    held.rename(room / ".poncho-lock.env3.held")
    done = world.run("-e", samples.ours.path, "-d", room / "env3", "-w", "1", "which-one")
    assert done.returncode == 124


def test_a_conda_unpack_that_works_in_place_is_killed(faulty: World, room: Path) -> None:
    """The shells die and conda-unpack does not: the next run must not give it a new DIR to write into."""
    slow = tarballs.STRANGE_CONDA_UNPACK.replace("sed ", f": >'{room}/started'; sleep 1; echo >>\"$prefix/ran\"; sed ")
    tarball = tarballs.conda_pack(room / "t.tar.gz", activate=False, unpack=slow)
    directory = room / "env"
    for victims in ("shells", "group"):
        process = faulty.start("-e", tarball.path, "-d", directory, "tool")
        wait_until(lambda: (room / "started").exists(), "it does not begin")
        shells = [
            pid for pid, words in processes(process.pid).items() if any("poncho_package_run" in word for word in words)
        ]
        for pid in shells:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if victims == "group":
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        done = faulty.run("-e", tarball.path, "-d", directory, "tool")
        assert (done.returncode, done.stdout, done.stderr) == (0, f"{directory}\n", "")
        process.communicate()
        all_ended(process.pid)
        assert (directory / "ran").read_text() == "\n"
        assert faulty.run("-e", tarball.path, "-d", directory, "tool").stdout == f"{directory}\n"
        shutil.rmtree(directory)
        (room / "started").unlink()


# ---- surroundings -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", [0o077, 0o000, 0o027])
def test_umask(either: World, samples: Samples, unpacked: Tree, room: Path, mask: int) -> None:
    old = os.umask(mask)
    try:
        done = either.run("-e", samples.ours.path, "-d", room / "p/env", "sh", "-c", "umask; which-one")
    finally:
        os.umask(old)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{mask:04o}\none\n", "")
    assert tree(room / "p/env") == unpacked
    assert (room / "p").stat().st_mode & 0o777 == 0o777 & ~mask


def test_no_home(either: World, samples: Samples, room: Path) -> None:
    words = [
        "env",
        "-i",
        f"PATH={either.path}",
        *either.argv("-e", samples.conda.path, "-d", room / "env", "which-one"),
    ]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "conda\n", "")
    words = [
        "/usr/bin/env",
        "-i",
        *either.argv("-e", samples.ours.path, "-d", room / "env2", "/bin/sh", "-c", "which-one"),
    ]
    words[2] = shutil.which(words[2], path=either.path) or words[2]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "one\n", "")


def test_an_ordinary_user(faulty: World, samples: Samples, public: Path) -> None:
    user = ordinary(faulty, public)
    mine = public / "mine"
    mine.mkdir()
    os.chown(mine, NOBODY, NOBODY)
    env = {"TMPDIR": str(mine)}
    for kind, word in (("ours", "one\n"), ("conda", "conda\n"), ("venv", "venv\n")):
        tarball = Path(shutil.copy(getattr(samples, kind).path, public / f"{kind}.tar.gz"))
        for _ in ("cold", "warm"):
            done = user.run("-e", tarball, "-d", mine / kind, "which-one")
            assert (done.returncode, done.stdout, done.stderr) == (0, word, "")
        assert {path.lstat().st_uid for path in (mine / kind).rglob("*") if path.name != "source"} == {NOBODY}
        done = user.run("-e", tarball, "which-one", env=env)
        assert (done.returncode, done.stdout, done.stderr) == (0, word, "")
        assert sorted(path.name for path in mine.iterdir() if path.name.startswith("poncho-run")) == []
        # root's directory: ready and readable is enough; not ready, it is not ours to fill
        assert faulty.run("-e", tarball, "-d", public / kind, "which-one").stdout == word
        done = user.run("-e", tarball, "-d", public / kind, "which-one")
        assert (done.returncode, done.stdout, done.stderr) == (0, word, "")
    done = user.run("-e", public / "ours.tar.gz", "-d", public / "not allowed", "which-one")
    assert (done.returncode, done.stdout) == (125, "")
    assert str(public) in done.stderr
    # an empty directory that is the user's, in a parent that is not
    (public / "given").mkdir()
    os.chown(public / "given", NOBODY, NOBODY)
    for _ in ("cold", "warm"):
        done = user.run("-e", public / "conda.tar.gz", "-d", public / "given", "tool")
        assert (done.returncode, done.stdout, done.stderr) == (0, f"{public}/given\n", "")
    assert sorted(path.name for path in (public / "given").glob(".poncho*") if "lock" not in path.name) == []


def test_files_are_not_given_to_the_builders_user(either: World, samples: Samples, room: Path) -> None:
    assert either.run("-e", samples.venv.path, "-d", room / "env").returncode == 0
    assert {path.lstat().st_uid for path in (room / "env").rglob("*") if path.name != "source"} == {os.getuid()}


@contextlib.contextmanager
def small_disk(directory: Path, size: str) -> Iterator[None]:
    directory.mkdir(exist_ok=True)
    if os.getuid() != 0:
        pytest.skip("only root can mount")
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", directory], capture_output=True
    ).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        yield
    finally:
        subprocess.run(["umount", directory], check=True)


def test_a_full_disk(either: World, large: tarballs.Tarball, room: Path) -> None:
    with small_disk(room / "disk", "1m"):
        done = either.run("-e", large.path, "-d", room / "disk/env", "where")
        assert (done.returncode, done.stdout) == (125, "")
        assert "needs" in done.stderr
        assert "free" in done.stderr
        # one that does not say what it needs
        foreign = tarballs.plain(room / "foreign", large.entries)
        for cores in ("1", "2"):
            done = either.run("-e", foreign.path, "-d", room / "disk/env", "where", env={"CORES": cores})
            assert (done.returncode, done.stdout) == (125, "")
            assert "No space" in done.stderr
        assert list((room / "disk").glob(".poncho-new*")) == []
        assert not (room / "disk/env").exists()
    with small_disk(room / "disk", "60m"):
        assert either.run("-e", large.path, "-d", room / "disk/env", "where").returncode == 0


def test_a_directory_that_is_a_mount_point(
    either: World, large: tarballs.Tarball, large_tree: Tree, room: Path
) -> None:
    with small_disk(room / "env", "80m"):
        for _ in ("cold", "warm"):
            done = either.run("-e", large.path, "-d", room / "env", "where")
            assert (done.returncode, done.stdout, done.stderr) == (0, f"{room}/env\n", "")
        assert tree(room / "env") == large_tree
        assert beside(room / "env") == ["env"]
