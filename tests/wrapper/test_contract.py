"""What design.md promises of the run wrapper, one promise a test, in every shell that it must run under."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.wrapper import tarballs
from tests.wrapper.conftest import WRAPPER, Samples, World, path_without, tree

TEMPLATES = ("activate", "conda-unpack", "run_in_env")
POSITIONAL = WRAPPER.parent / "python_package_run"

AWKWARD = [
    "a b",
    'it\'s "x"',
    "new\nline\n",
    "co:lon",
    "$(touch x)`touch x`",
    "-rf",
    "--",
    "*[!a]?",
    "back\\slash",
    "a&b;c|d",
    "=",
    "(",
    "naïve",
    "x" * 200,
]


# ---- options -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        ["-e", "{T}", "-u", "{D}"],
        ["-e", "{T}", "-d", "{D}"],
        ["--environment", "{T}", "--unpack-to", "{D}"],
        ["--environment={T}", "--unpack-to={D}"],
        ["--unpack-to={D}", "-w", "7", "--wait-for-lock=8", "--id={ID}", "-e", "{T}"],
        ["-d", "{D}", "--id", "{ID}", "-e", "{T}", "--"],
        ["-w", "0.5", "-e", "{T}", "-d", "{D}", "--"],
    ],
)
def test_options(world: World, samples: Samples, room: Path, options: list[str]) -> None:
    words = [
        word.replace("{T}", str(samples.ours.path)).replace("{D}", f"{room}/env").replace("{ID}", samples.ours.identity)
        for word in options
    ]
    done = world.run(*words, "which-one")
    assert (done.returncode, done.stdout, done.stderr) == (0, "one\n", "")
    assert (room / "env/bin/which-one").exists()


def test_d_before_another_option_means_debug(world: World, samples: Samples, room: Path) -> None:
    done = world.run("-d", "-u", room / "env", "-e", samples.ours.path, "which-one")
    assert (done.returncode, done.stdout) == (0, "one\n")
    assert "unpack" in done.stderr
    warm = world.run("-u", room / "env", "-e", samples.ours.path, "-d", "--", "which-one")
    assert (warm.returncode, warm.stdout) == (0, "one\n")
    assert warm.stderr.startswith("poncho_package_run: ")


def test_several_environments_are_the_parts_of_one(world: World, samples: Samples, room: Path, tmp_path: Path) -> None:
    data = samples.ours.path.read_bytes()
    (start, length), *_ = samples.ours.spans
    parts = []
    for number, piece in enumerate((data[:100], data[100 : start + length], data[start + length :])):
        parts += ["-e", tmp_path / f"part {number}"]
        (tmp_path / f"part {number}").write_bytes(piece)
    for _ in ("cold", "warm"):
        done = world.run(*parts, "-d", room / "env", "which-one", env={"CORES": "3"})
        assert (done.returncode, done.stdout, done.stderr) == (0, "one\n", "")
    assert world.run(*parts, "--id", samples.ours.identity, "-d", room / "env").returncode == 0
    assert world.run("-e", samples.other.path, "-d", room / "env").returncode == 125
    (tmp_path / "part 1").unlink()
    done = world.run(*parts, "-d", room / "new", "which-one")
    assert (done.returncode, done.stdout) == (125, "")
    assert "part 1" in done.stderr


def test_the_name_chooses_the_positional_form(world: World, samples: Samples, room: Path) -> None:
    assert POSITIONAL.is_symlink()
    assert os.readlink(POSITIONAL) == "poncho_package_run"
    for words in (
        [samples.ours.path, "which-one"],
        [samples.ours.path, "--", "which-one"],
        ["--unpack-to", room / "env", samples.ours.path, "which-one"],
        ["-d", room / "env", "--", samples.ours.path, "which-one"],
        ["-e", samples.ours.path, "which-one"],
        ["--environment", room / "env", "which-one"],
        [room / "env", "which-one"],
    ):
        done = world.run(*words, name=POSITIONAL)
        assert (done.returncode, done.stdout, done.stderr) == (0, "one\n", ""), words
    assert world.run(samples.ours.path, "which-one").returncode == 125


def test_a_renamed_copy_works(world: World, samples: Samples, tmp_path: Path) -> None:
    copy = tmp_path / "poncho_package_run-0123456789ab"
    shutil.copy(WRAPPER, copy)
    done = world.run("-e", samples.ours.path, "which-one", name=copy)
    assert (done.returncode, done.stdout) == (0, "one\n")


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["which-one"],
        ["-e"],
        ["-e", ""],
        ["--environment="],
        ["-e", "/no/such/file", "true"],
        ["-e", "{T}", "-w"],
        ["-e", "{T}", "-w", "soon", "true"],
        ["-e", "{T}", "-w", "-5", "true"],
        ["-e", "{T}", "--frobnicate", "true"],
        ["-e", "{T}", "-x", "true"],
        ["-e", "{T}", "--debug=yes", "true"],
        ["-e", "{T}", "-u"],
        ["-e", "{T}", "--unpack-to=", "true"],
        ["-e", "{T}", "--id", "0" * 64, "true"],
        ["-e", "{T}", "-e", "/no", "true"],
        ["-e", "{T}", "-u", "/dev/null", "true"],
        ["-e", "{T}", "-u", "/dev/null/x", "true"],
        ["-e", "/dev/null", "true"],
        ["-e", "/etc/passwd", "true"],
        ["-e", "{T}", "-u", "/", "--id", "x", "-w"],
    ],
)
def test_wrong_usage_is_125_and_says_so_on_stderr(world: World, samples: Samples, words: list[str]) -> None:
    done = world.run(*[word.replace("{T}", str(samples.ours.path)) for word in words])
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr.startswith("poncho_package_run: ")
    assert done.stderr.count("\n") == 1


def test_help_is_the_one_thing_on_stdout(world: World) -> None:
    for word in ("-h", "--help"):
        done = world.run(word)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("usage: poncho_package_run")
        for option in ("--environment", "--unpack-to", "--wait-for-lock", "--id", "--debug"):
            assert option in done.stdout


def test_without_a_command_the_environment_is_prepared(world: World, samples: Samples, room: Path) -> None:
    for _ in ("cold", "warm"):
        done = world.run("-e", samples.ours.path, "-d", room / "env")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (room / "env/lib/name").read_text() == "one"
    assert world.run("-e", samples.ours.path, "--").returncode == 0


# ---- where it is unpacked -------------------------------------------------------------------------


def test_parents_are_made_and_nothing_but_a_lock_remains(
    world: World, samples: Samples, room: Path, unpacked: dict[str, tuple[str, bytes]]
) -> None:
    done = world.run("-e", samples.ours.path, "-d", room / "a/b/env", "which-one")
    assert (done.returncode, done.stdout, done.stderr) == (0, "one\n", "")
    assert tree(room / "a/b/env") == unpacked
    assert [path.name for path in room.iterdir()] == ["a"]
    assert {path.name for path in (room / "a/b").iterdir()} - {"env"} <= {".poncho-lock.env"}


def test_the_current_directory_is_left_alone(world: World, samples: Samples, room: Path, tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    here.chmod(0o555)
    done = world.run("-e", samples.ours.path, "-d", room / "env", "sh", "-c", "pwd; which-one", cwd=here)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{here}\none\n", "")
    done = world.run("-e", samples.ours.path, "sh", "-c", "pwd; which-one", cwd=here)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{here}\none\n", "")
    assert list(here.iterdir()) == []


def test_relative_names(world: World, samples: Samples, room: Path) -> None:
    shutil.copy(samples.ours.path, room / "t.tar.gz")
    for directory in ("env", "./env", "deep/er/../env", "env/", "deep/./env//"):
        done = world.run("-e", "t.tar.gz", "-d", directory, "sh", "-c", "which-one; pwd", cwd=room)
        assert (done.returncode, done.stdout, done.stderr) == (0, f"one\n{room}\n", ""), directory


def test_a_warm_run_needs_no_tarball_and_writes_nothing(world: World, samples: Samples, room: Path) -> None:
    options = ["--id", samples.ours.identity, "-d", room / "env"]
    assert world.run("-e", samples.ours.path, *options).returncode == 0
    before = {path: path.stat().st_mtime_ns for path in room.rglob("*")}
    for lock in room.glob(".poncho-lock*"):
        lock.unlink()
    done = world.run("-e", "/no/such/tarball", *options, "which-one")
    assert (done.returncode, done.stdout, done.stderr) == (0, "one\n", "")
    after = {path: path.stat().st_mtime_ns for path in room.rglob("*")}
    assert after == {path: time for path, time in before.items() if not path.name.startswith(".poncho-lock")}


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize("how", ["id", "no id", "foreign, no id"])
def test_a_warm_run_starts_no_process(world: World, samples: Samples, room: Path, tmp_path: Path, how: str) -> None:
    tarball = (samples.conda if how.startswith("foreign") else samples.ours).path
    if how.startswith("foreign"):  # a hard link to it must be possible
        shutil.copy(tarball, room / "t.tar.gz")
        tarball = room / "t.tar.gz"
        os.utime(tarball, (1e9, 1e9))
    options = ["-e", tarball, "-d", room / "env", *(["--id", samples.ours.identity] if how == "id" else [])]
    assert world.run(*options).returncode == 0
    trace = tmp_path / "trace"
    subprocess.run(
        [str(shutil.which("strace")), "-f", "-o", trace, "-e", "trace=process", *world.argv(*options, "/bin/true")],
        check=True,
        env=world.environ(),
        stderr=subprocess.DEVNULL,
    )
    calls = trace.read_text()
    assert [word for word in ("fork(", "clone(", "clone3(") if word in calls] == []
    assert calls.count("execve(") == 2  # the shell and the command


def test_a_ready_directory_takes_no_lock(world: World, samples: Samples, room: Path) -> None:
    assert world.run("-e", samples.ours.path, "-d", room / "env").returncode == 0
    with open(room / ".poncho-lock.env", "a") as lock:
        import fcntl

        fcntl.flock(lock, fcntl.LOCK_EX)
        done = world.run("-e", samples.ours.path, "-d", room / "env", "-w", "0", "which-one")
        assert (done.returncode, done.stdout) == (0, "one\n")


def test_a_populated_directory_of_somebody_else_is_used_as_it_is(world: World, samples: Samples, room: Path) -> None:
    theirs = room / "theirs"
    (theirs / "bin").mkdir(parents=True)
    (theirs / "bin/which-one").write_text("#!/bin/sh\necho theirs\n")
    (theirs / "bin/which-one").chmod(0o755)
    before = sorted(theirs.rglob("*"))
    done = world.run("-e", samples.ours.path, "-d", theirs, "sh", "-c", 'which-one; echo "$PONCHO_PREFIX"')
    assert (done.returncode, done.stdout, done.stderr) == (0, f"theirs\n{theirs}\n", "")
    assert sorted(theirs.rglob("*")) == before
    # not even a hidden file alone is ours to unpack over
    (room / "hidden").mkdir()
    (room / "hidden/.profile").write_text("")
    assert world.run("-e", samples.ours.path, "-d", room / "hidden", "which-one").returncode == 127
    assert [path.name for path in (room / "hidden").iterdir()] == [".profile"]


def test_an_environment_unpacked_by_hand_is_somebody_elses(world: World, samples: Samples, room: Path) -> None:
    for tarball, name in ((samples.ours, "one"), (samples.conda, "conda")):
        (room / name).mkdir()
        subprocess.run(["tar", "-xzf", tarball.path, "-C", room / name], check=True)
        done = world.run(
            "-e",
            tarball.path,
            "-d",
            room / name,
            "sh",
            "-c",
            'which-one; echo "$PONCHO_TEST_DATA$PONCHO_TEST_LIST"',
            env={"PONCHO_TEST_LIST": "/mine"},
        )
        value = f"{room}/one/poncho/data/PONCHO_TEST_DATA/mine" if name == "one" else f"{room}/conda/lib:/mine"
        assert (done.returncode, done.stdout, done.stderr) == (0, f"{name}\n{value}\n", "")
        assert not (room / name / "poncho/ready").exists()


def test_a_directory_of_another_environment_is_refused(world: World, samples: Samples, room: Path) -> None:
    one, two = samples.ours, samples.other
    assert world.run("-e", one.path, "-d", room / "env").returncode == 0
    for words in (
        ["-e", two.path],
        ["-e", two.path, "--id", two.identity],
        ["-e", one.path, "--id", two.identity],
        ["-e", samples.venv.path],
        ["-e", samples.conda.path, "--id", "whatever"],
    ):
        done = world.run(*words, "-d", room / "env", "which-one")
        assert (done.returncode, done.stdout) == (125, "")
        assert "another environment" in done.stderr
    assert world.run("-e", room / "env", "--id", two.identity, "which-one").returncode == 125
    assert world.run("-e", one.path, "-d", room / "env", "which-one").stdout == "one\n"


def test_the_identity_is_compared_when_unpacking(world: World, samples: Samples, room: Path) -> None:
    done = world.run("-e", samples.ours.path, "--id", samples.other.identity, "-d", room / "env", "true")
    assert done.returncode == 125
    assert samples.ours.identity in done.stderr
    assert samples.other.identity in done.stderr
    assert not (room / "env").exists()


def test_the_identity_given_with_a_foreign_tarball_is_recorded(world: World, samples: Samples, room: Path) -> None:
    options = ["-e", samples.venv.path, "-d", room / "env"]
    assert world.run(*options, "--id", "it's mine", "which-one").stdout == "venv\n"
    assert world.run(*options, "--id", "it's mine", "which-one").stdout == "venv\n"
    assert world.run(*options, "--id", "another", "which-one").returncode == 125
    # without an identity the tarball is its own
    assert world.run(*options, "which-one").stdout == "venv\n"
    assert world.run("-e", samples.conda.path, "-d", room / "env", "which-one").returncode == 125
    # unpacked without one, an identity is believed only if the tarball is the same
    options = ["-d", room / "env2", "which-one"]
    assert world.run("-e", samples.venv.path, *options).stdout == "venv\n"
    assert world.run("-e", samples.venv.path, "--id", "x", *options).stdout == "venv\n"
    assert world.run("-e", samples.conda.path, "--id", "x", *options).returncode == 125


@pytest.mark.parametrize("which", ["ours", "venv"])
def test_without_identity_a_tarball_with_the_same_content_will_do(
    world: World, samples: Samples, room: Path, which: str
) -> None:
    one, two = getattr(samples, which).path, samples.other.path
    tarball = room / "t.tar.gz"
    shutil.copy(one, tarball)
    options = ["-e", tarball, "-d", room / "env", "sh", "-c", "cat $PONCHO_PREFIX/lib/name"]
    name = world.run(*options).stdout
    assert name in ("one", "venv")
    os.utime(tarball, (1e9, 1e9))
    assert world.run(*options).stdout == name
    tarball.unlink()
    shutil.copy(one, tarball)
    assert world.run(*options).stdout == name
    # another one in its place: renamed, or written over it with the time that the first one had
    times = tarball.stat().st_atime_ns, tarball.stat().st_mtime_ns
    shutil.copy(two, room / "new")
    os.utime(room / "new", ns=times)
    os.rename(room / "new", tarball)
    assert world.run(*options).returncode == 125
    shutil.copy(one, tarball)
    assert world.run(*options).stdout == name
    with open(tarball, "r+b") as stream:
        stream.write(two.read_bytes())
        stream.truncate()
    os.utime(tarball, (9e8, 9e8))
    assert world.run(*options).returncode == 125


def test_a_foreign_tarball_that_was_written_over(world: World, samples: Samples, room: Path) -> None:
    """The same file as far as names and inodes say; only the time of its last change is another, and an older one."""
    tarball = room / "t.tar.gz"
    shutil.copy(samples.venv.path, tarball)
    os.utime(tarball, (1e9, 1e9))
    options = ["-e", tarball, "-d", room / "env", "which-one"]
    for _ in ("cold", "warm"):
        assert world.run(*options).stdout == "venv\n"
    assert os.path.samefile(tarball, room / "env/poncho/source")
    for seconds in (9e8, 1.1e9):
        tarball.write_bytes(samples.conda.path.read_bytes())
        os.utime(tarball, (seconds, seconds))
        assert os.path.samefile(tarball, room / "env/poncho/source")
        assert world.run(*options).returncode == 125


def test_an_empty_directory_is_filled_and_keeps_its_mode(world: World, samples: Samples, room: Path) -> None:
    directory = room / "env"
    directory.mkdir(mode=0o750)
    directory.chmod(0o2750)
    done = world.run("-e", samples.ours.path, "-d", directory, "which-one")
    assert (done.returncode, done.stdout, done.stderr) == (0, "one\n", "")
    assert directory.stat().st_mode & 0o7777 == 0o2750
    # and it is still there after a failure
    (room / "two").mkdir(mode=0o711)
    (room / "bad.tar.gz").write_bytes(samples.ours.path.read_bytes()[:-20])
    assert world.run("-e", room / "bad.tar.gz", "-d", room / "two").returncode == 125
    assert (room / "two").stat().st_mode & 0o7777 == 0o711
    assert list((room / "two").iterdir()) == []


def test_through_symlinks(world: World, samples: Samples, room: Path) -> None:
    (room / "real").mkdir()
    (room / "real/env").mkdir()
    (room / "link").symlink_to("real")
    (room / "direct").symlink_to("real/env")
    for directory in ("link/env", "direct", "link/new", "direct/"):
        done = world.run("-e", samples.ours.path, "-d", room / directory, "where")
        expected = os.path.realpath(room / directory)
        assert (done.returncode, done.stdout, done.stderr) == (0, f"{expected}\n", "")
    assert (room / "direct").is_symlink()
    # Scratch space that was purged, say; and it is what a link to an empty directory is while another run fills it.
    (room / "nowhere").symlink_to("gone")
    assert world.run("-e", samples.ours.path, "-d", room / "nowhere", "where").stdout == f"{room}/gone\n"


def test_a_moved_directory(world: World, samples: Samples, room: Path) -> None:
    for tarball, name in ((samples.ours, "ours"), (samples.conda, "conda")):
        assert world.run("-e", tarball.path, "-d", room / name).returncode == 0
        (room / name).rename(room / f"{name} moved")
    done = world.run("-e", samples.ours.path, "-d", room / "ours moved", "sh", "-c", 'where; echo "$PONCHO_TEST_DATA"')
    place = f"{room}/ours moved"
    assert (done.returncode, done.stdout) == (0, f"{place}\n{place}/poncho/data/PONCHO_TEST_DATA\n")
    # files that hold the old place cannot be mended: nothing may look as if it worked
    done = world.run("-e", samples.conda.path, "-d", room / "conda moved", "tool")
    assert (done.returncode, done.stdout) == (125, "")
    assert "remove it" in done.stderr


def test_a_directory_as_environment(world: World, samples: Samples, room: Path) -> None:
    assert world.run("-e", samples.conda.path, "-d", room / "env").returncode == 0
    for more in ([], ["--unpack-to", room / "ignored"]):
        done = world.run("-e", room / "env", *more, "sh", "-c", "which-one; echo $PONCHO_TEST_LIST")
        assert (done.returncode, done.stdout, done.stderr) == (0, f"conda\n{room}/env/lib:\n", "")
    assert not (room / "ignored").exists()
    assert world.run("-e", room / "env").returncode == 0


# ---- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", AWKWARD)
def test_awkward_names(world: World, samples: Samples, room: Path, name: str) -> None:
    for kind in ("ours", "conda"):
        tarball = room / kind / name
        tarball.parent.mkdir()
        shutil.copy(getattr(samples, kind).path, tarball)
        # relative for one kind is enough
        for directory in (room / kind / f"{name} d" / name, Path(kind, f"{name} d", name))[kind == "conda" :]:
            for word in ("cold", "warm"):
                done = world.run(
                    f"--environment={tarball}",
                    f"--unpack-to={directory}",
                    "sh",
                    "-c",
                    '"$PONCHO_PREFIX/bin/which-one"',
                    cwd=room,
                )
                assert (done.returncode, done.stdout) == (0, "one\n" if kind == "ours" else "conda\n"), (word, done)
                assert ("colon" in done.stderr) if ":" in name and word == "cold" else done.stderr == ""
            if kind == "conda":
                text = (room / kind / f"{name} d" / name / "bin/tool").read_text()
                assert f"{room}/conda/{name} d/{name}\n" in text
            done = world.run("-e", directory, "where", cwd=room)
            assert done.stdout == f"{room}/{kind}/{name} d/{name}\n"
            shutil.rmtree(room / kind / f"{name} d")
    assert not list(room.rglob("x"))


def test_awkward_relative_names(world: World, samples: Samples, room: Path) -> None:
    for name in ("-rf", "--", "=", "(", "!", "co:lon", "*"):
        shutil.copy(samples.ours.path, room / name)
        done = world.run("-e", name, "-u", f"{name}d", "--", "which-one", cwd=room)
        assert (done.returncode, done.stdout) == (0, "one\n"), name
        done = world.run("-e", name, "--", "which-one", cwd=room)
        assert (done.returncode, done.stdout) == (0, "one\n"), name


def test_awkward_words_reach_the_command(world: World, samples: Samples, room: Path) -> None:
    words = [*AWKWARD, "", " ", "-d", "-e", "--debug", "--id=1", "\t"]
    program = ["python3", "-c", "import sys; print(repr(sys.argv[1:]))", *words]
    for more in (["-d", room / "env"], ["-d", room / "env"], []):
        done = world.run("-e", samples.ours.path, *more, "--", *program)
        assert (done.returncode, done.stdout, done.stderr) == (0, f"{words!r}\n", "")


def test_a_command_named_like_an_option(world: World, samples: Samples, room: Path) -> None:
    assert world.run("-e", samples.ours.path, "-d", room / "env").returncode == 0
    (room / "env/bin/-rf").symlink_to("which-one")
    assert world.run("-e", samples.ours.path, "-d", room / "env", "--", "-rf").stdout == "one\n"
    assert world.run("-e", samples.ours.path, "-d", room / "env", "--", "-c").returncode == 127


def test_a_temporary_directory_with_an_awkward_name(world: World, samples: Samples, room: Path) -> None:
    for name in ("a b", 'it\'s "x"', "new\nline\n", "co:lon", "$(touch x)`touch x`", "-rf", "*[!a]?"):
        (room / name).mkdir()
        done = world.run("-e", samples.conda.path, "where", env={"TMPDIR": str(room / name)})
        assert done.returncode == 0, done
        assert done.stdout.startswith(f"{room}/{name}/")
        assert list((room / name).iterdir()) == []


# ---- the command ----------------------------------------------------------------------------------


def test_the_command_replaces_the_wrapper(world: World, samples: Samples, room: Path) -> None:
    for _ in ("cold", "warm"):
        process = world.start("-e", samples.ours.path, "-d", room / "env", "sh", "-c", "echo $$ $PPID")
        out, err = process.communicate(timeout=60)
        assert (out, err) == (f"{process.pid} {os.getpid()}\n", "")


# A worker, as far as the wrapper looks: a parent with that name.  It starts its words, as the leader of
# a group or in its own, and says who they were and how they ended.
WORKER = """
import os, subprocess, sys
open("/proc/self/comm", "w").write(sys.argv[1])
task = subprocess.Popen(sys.argv[3:], start_new_session=sys.argv[2] == "leads", stdout=subprocess.PIPE, text=True)
print(os.getpgrp(), task.pid, *task.communicate()[0].split(), task.returncode)
"""


@pytest.mark.parametrize("form", ["kept", "temporary"])
@pytest.mark.parametrize(
    ("parent", "group", "leads"),
    [
        ("work_queue_worker", "its parent's", True),
        ("vine_worker", "its parent's", True),
        ("work_queue_worker", "leads", True),
        ("a (shell) x", "its parent's", False),
    ],
)
def test_a_workers_task_leads_a_group(
    world: World, samples: Samples, room: Path, form: str, parent: str, group: str, leads: bool
) -> None:
    """Workers kill groups, and are at times too slow to make their tasks the leaders of one."""
    where = ["-d", room / "env"] if form == "kept" else []
    command = [sys.executable, "-c", "import os, sys; print(os.getpgrp(), *sys.argv[1:]); sys.exit(7)", "a", "b"]
    done = subprocess.run(
        [sys.executable, "-c", WORKER, parent, group, *world.argv("-e", samples.ours.path, *where, *command)],
        env=world.environ({"TMPDIR": str(room)}), capture_output=True, text=True, check=True,
    )  # fmt: skip
    parents, task, of_the_command, *rest = done.stdout.split()
    assert of_the_command == (task if leads else parents)
    assert (rest, done.stderr) == (["a", "b", "7"], "")


def test_a_workers_task_where_there_is_no_setsid(samples: Samples, dash: World, room: Path) -> None:
    path = path_without(room.parent / "no-setsid", "setsid")
    done = subprocess.run(
        [sys.executable, "-c", WORKER, "work_queue_worker", "", *dash.argv("-e", samples.ours.path, "true")],
        env={"PATH": path}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split()[2:] == ["0"]


def test_streams_belong_to_the_command(world: World, samples: Samples, room: Path) -> None:
    for more in (["-d", room / "env"], ["-d", room / "env"], []):
        done = world.run("-e", samples.ours.path, *more, "sh", "-c", "cat; echo err >&2", given="in\nput")
        assert (done.returncode, done.stdout, done.stderr) == (0, "in\nput", "err\n")


@pytest.mark.parametrize("form", ["persistent", "temporary"])
def test_closed_streams(world: World, samples: Samples, room: Path, form: str) -> None:
    more = f"-d '{room}/env'" if form == "persistent" else ""
    script = " ".join([*world.shell, f"'{WRAPPER}' -e '{samples.ours.path}' {more}"])
    for _ in ("cold", "warm"):
        for closed in ("<&-", ">&-", "2>&-", "<&- >&-", "<&- >&- 2>&-"):
            done = subprocess.run(
                ["/bin/bash", "-c", f"{script} sh -c 'exit 7' {closed}"],
                env=world.environ(),
                capture_output=True,
                text=True,
            )
            assert done.returncode == 7, (closed, done)


def test_inherited_descriptors_are_kept_and_none_is_added(world: World, samples: Samples, room: Path) -> None:
    program = ["python3", "-c", "import os; print([n for n in range(999) if os.path.exists(f'/proc/self/fd/{n}')])"]
    kept = [os.memfd_create(f"kept {number}", 0) for number in range(12)]
    try:
        wanted = sorted([0, 1, 2, *kept])
        for more in (["-d", room / "env"], ["-d", room / "env"], []):
            done = subprocess.run(
                world.argv("-e", samples.conda.path, *more, *program),
                env=world.environ(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                pass_fds=kept,
            )
            assert done.stdout == f"{wanted}\n", (more, done)
        for more in (["-d", room / "env"], []):
            done = world.run("-e", samples.conda.path, *more, *program)
            assert done.stdout == "[0, 1, 2]\n"
    finally:
        for number in kept:
            os.close(number)


@pytest.mark.parametrize("form", ["persistent", "temporary"])
def test_every_exit_status_comes_through(world: World, samples: Samples, room: Path, form: str) -> None:
    if form == "temporary":  # unpacking each time is slow, a directory of somebody else's is not
        statuses = [0, 1, 2, 9, 77, 124, 125, 126, 127, 128, 129, 137, 143, 200, 254, 255]
        options = ["-e", samples.ours.path]
    else:
        statuses = list(range(256))
        options = ["-e", samples.ours.path, "-d", room / "env"]
    temporary = room / "tmp"
    temporary.mkdir()
    for status in statuses:
        done = world.run(*options, "sh", "-c", f"exit {status}", env={"TMPDIR": str(temporary)})
        assert (done.returncode, done.stdout, done.stderr) == (status, "", "")
        assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("form", ["persistent", "temporary"])
def test_every_signal_comes_through(world: World, samples: Samples, room: Path, form: str) -> None:
    options = ["-e", samples.ours.path, *(["-d", room / "env"] if form == "persistent" else [])]
    temporary = room / "tmp"
    temporary.mkdir()
    deadly = [
        number
        for number in signal.Signals
        if number
        not in (
            signal.SIGCHLD,
            signal.SIGCONT,
            signal.SIGSTOP,
            signal.SIGTSTP,
            signal.SIGTTIN,
            signal.SIGTTOU,
            signal.SIGURG,
            signal.SIGWINCH,
        )
    ]
    if form == "temporary":
        deadly = [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGSEGV, signal.SIGABRT, signal.SIGUSR1]
    for number in deadly:
        program = f"import os, signal; signal.signal({int(number)}, 0) if {int(number)} not in (9, 19) else 0"
        program += f"; os.kill(os.getpid(), {int(number)})"
        done = world.run(*options, "python3", "-c", program, env={"TMPDIR": str(temporary)})
        expected = -int(number) if form == "persistent" else 128 + number
        assert done.returncode == expected, (number, done)
        assert list(temporary.iterdir()) == []


def test_not_found_and_not_executable(world: World, samples: Samples, room: Path) -> None:
    (room / "text").write_text("#!/bin/sh\n")
    (room / "directory").mkdir()
    for more in (["-d", room / "env"], ["-d", room / "env"], []):
        options = ["-e", samples.ours.path, *more, "--"]
        for word, status in (
            ("no-such-command", 127),
            ("./no/such", 127),
            ("", 127),
            (str(room / "text"), 126),
            (str(room / "directory"), 126),
            ("-x", 127),
        ):
            done = world.run(*options, word, "argument")
            assert (done.returncode, done.stdout) == (status, ""), (word, done)
            assert done.stderr


def test_a_script_without_interpreter_line_runs(world: World, samples: Samples, room: Path) -> None:
    (room / "plain").write_text("which-one")
    (room / "plain").chmod(0o755)
    done = world.run("-e", samples.ours.path, "-d", room / "env", room / "plain")
    assert (done.returncode, done.stdout) == (0, "one\n")


# ---- what the command sees --------------------------------------------------------------------------


def environment_of(world: World, *options: object, env: dict[str, str]) -> dict[str, str]:
    program = [sys.executable, "-I", "-c", "import os; print(repr(dict(os.environb)))"]
    done = world.run(*options, "--", *program, env=env)
    assert (done.returncode, done.stderr) == (0, "")
    pairs: dict[bytes, bytes] = eval(done.stdout)
    return {os.fsdecode(key): os.fsdecode(value) for key, value in pairs.items()}


def bare(world: World, env: dict[str, str]) -> dict[str, str]:
    """What the shell itself does to an environment: busybox counts SHLVL, bash sets `_`."""
    program = [sys.executable, "-I", "-c", "import os; print(repr(dict(os.environb)))"]
    words = [*world.shell, "-c", 'exec "$@"', "sh", *program]
    pairs: dict[bytes, bytes] = eval(subprocess.check_output(words, env=world.environ(env)))
    found = {os.fsdecode(key): os.fsdecode(value) for key, value in pairs.items()}
    found["_"] = str(shutil.which(world.shell[0])) if "_" in found else ""
    return found


def test_nothing_leaks_into_the_environment(world: World, samples: Samples, room: Path) -> None:
    names = set()
    for word in WRAPPER.read_text().replace("$", " ").replace("{", " ").replace("(", " ").split():
        name = word.split("=")[0].strip('"')
        if "=" in word and name.isidentifier() and name.isascii() and not name.startswith("_poncho_"):
            names.add(name)
    # a variable of the task that has the name of one of ours keeps its value
    mine = {name: f"my {name}" for name in sorted(names)}
    for name in ("IFS", "PATH", "LC_ALL", "TMPDIR", "PONCHO_PREFIX", "CONDA_PREFIX", "HOME", "ENV", "CDPATH"):
        mine.pop(name, None)
    assert "stage" in mine
    mine |= {
        "PYTHONPATH": "/leak",
        "PYTHONHOME": "/leak",
        "CONDA_PREFIX": "/theirs",
        "PONCHO_PREFIX": "/theirs",
        "OLDPWD": "/",
        "EMPTY": "",
        "LINES_": "a\nb\n",
        "QUOTES": 'it\'s "x" $(touch x) \\',
        "LANG": "C.UTF-8",
        "CDPATH": "/tmp",
    }
    expected = bare(world, mine)
    for key in ("PYTHONPATH", "PYTHONHOME", "_"):
        expected.pop(key, None)
    for form in (["-d", room / "env"], ["-d", room / "env"], []):
        found = environment_of(world, "-e", samples.ours.path, *form, env=mine)
        found.pop("_", None)
        prefix = found["PONCHO_PREFIX"]
        assert prefix == str(room / "env") or not form
        expected |= {
            "PONCHO_PREFIX": prefix,
            "CONDA_PREFIX": prefix,
            "PATH": f"{prefix}/bin:{world.path}",
            "PONCHO_TEST_WORD": 'it\'s $(touch x) "quoted"',
            "PONCHO_TEST_DATA": f"{prefix}/poncho/data/PONCHO_TEST_DATA",
        }
        if not form:  # the command is in a subshell: bash counts these, SHLVL is its affair
            expected.pop("SHLVL", None)
            found.pop("SHLVL", None)
        assert found == expected
    assert not list(room.rglob("x"))


def test_activation_is_recorded_relative_to_what_the_task_has(world: World, samples: Samples, room: Path) -> None:
    options = ["-e", samples.conda.path, "-d", room / "env"]
    prefix = str(room / "env")
    for mine, expected in (
        (
            {},
            {
                "PONCHO_TEST_LIST": f"{prefix}/lib:",
                "PONCHO_TEST_TAIL": f"{prefix}/tail",
                "PONCHO_TEST_DEFAULT": "default",
            },
        ),
        (
            {
                "PONCHO_TEST_LIST": "/a:/b",
                "PONCHO_TEST_TAIL": "/c d",
                "PONCHO_TEST_DEFAULT": "mine",
                "PONCHO_TEST_SHARE": "m",
            },
            {
                "PONCHO_TEST_LIST": f"{prefix}/lib:/a:/b",
                "PONCHO_TEST_TAIL": f"/c d:{prefix}/tail",
                "PONCHO_TEST_DEFAULT": "mine",
            },
        ),
    ):
        found = environment_of(world, *options, env=mine)
        wanted = expected | {
            "PONCHO_TEST_SHARE": f"{prefix}/share",
            "PONCHO_TEST_LINES": "one\n  two' $(touch x)",
            "PATH": f"{prefix}/extra:{prefix}/bin:{world.path}",
        }
        assert {key: found.get(key) for key in wanted} == wanted
        assert "PONCHO_TEST_NOT_EXPORTED" not in found
    # what the worker that unpacked had set is not what the next one gets
    assert "PONCHO_TEST_LIST=/a" not in (room / "env/poncho/ready").read_text()


def test_activation_runs_in_a_clean_environment(world: World, room: Path) -> None:
    entries = tarballs.fake_prefix()
    entries["etc/conda/activate.d/spy.sh"] = tarballs.text(
        'export PONCHO_TEST_SEEN="$SECRET,$PYTHONPATH"\nexit 3\nexport PONCHO_TEST_AFTER=1\n'
    )
    tarball = tarballs.plain(room / "t.tar.gz", entries)
    found = environment_of(
        world, "-e", tarball.path, "-d", room / "env", env={"SECRET": "secret", "PYTHONPATH": "/leak"}
    )
    assert found["PONCHO_TEST_SEEN"] == ","
    assert "PONCHO_TEST_AFTER" not in found


# ---- tarballs of others ------------------------------------------------------------------------------


def test_conda_pack(world: World, samples: Samples, room: Path) -> None:
    for _ in ("cold", "warm"):
        done = world.run("-e", samples.conda.path, "-d", room / "env", "tool")
        assert (done.returncode, done.stdout, done.stderr) == (0, f"{room}/env\n", "")
    library = (room / "env/lib/library.so").read_bytes()
    assert library.startswith(b"\x7fELF\0" + bytes(room / "env") + b"\0")
    assert library.endswith(b"\0\0tail")
    assert len(library) == len(samples.conda.entries["lib/library.so"].data or b"")


@pytest.mark.parametrize("activate", [False, True])
def test_a_conda_unpack_that_can_only_be_run(world: World, room: Path, activate: bool) -> None:
    tarball = tarballs.conda_pack(room / "t.tar.gz", activate=activate, unpack=tarballs.STRANGE_CONDA_UNPACK)
    for _ in ("cold", "warm"):
        done = world.run("-e", tarball.path, "-d", room / "env", "tool")
        assert (done.returncode, done.stdout, done.stderr) == (0, f"{room}/env\n", "")
    (room / "empty").mkdir()
    assert world.run("-e", tarball.path, "-d", room / "empty", "tool").stdout == f"{room}/empty\n"
    done = world.run("-e", tarball.path, "tool")
    assert done.returncode == 0
    assert not Path(done.stdout.strip()).exists()


@pytest.mark.parametrize(
    "unpack",
    [
        "#!/bin/sh\necho on stdout\necho cannot >&2\nexit 3\n",
        "#!/usr/bin/env python\n_prefix_records = []\nraise IOError('cannot')\n",
    ],
)
def test_a_conda_unpack_that_fails(world: World, room: Path, unpack: str) -> None:
    tarball = tarballs.conda_pack(room / "t.tar.gz", unpack=unpack)
    for _ in range(2):
        done = world.run("-e", tarball.path, "-d", room / "env", "which-one")
        assert (done.returncode, done.stdout) == (125, "")
        assert "cannot" in done.stderr


def test_venv_pack(world: World, samples: Samples, room: Path) -> None:
    for more in (["-d", room / "env"], ["-d", room / "env"], []):
        done = world.run("-e", samples.venv.path, *more, "python3", "-c", "import sys; print(sys.prefix)")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == f"{room}/env\n" or not more


@pytest.mark.parametrize("kind", ["", "gz", "bz2", "xz"])
def test_other_compressions(world: World, room: Path, kind: str) -> None:
    tarball = tarballs.plain(room / "anything", tarballs.fake_prefix(), compress=kind)
    program = {"": "cat", "gz": "gzip", "bz2": "bzip2", "xz": "xz"}[kind]
    if shutil.which(program, path=world.path) is None:
        pytest.skip(f"{program} is not installed")
    done = world.run("-e", tarball.path, "-d", room / "env", "which-one")
    assert (done.returncode, done.stdout, done.stderr) == (0, "one\n", "")


def test_zstd(dash: World, room: Path) -> None:
    if shutil.which("zstd") is None:
        pytest.skip("zstd is not installed")
    tarballs.plain(room / "t.tar", tarballs.fake_prefix(), compress="")
    subprocess.run(["zstd", "-q", room / "t.tar", "-o", room / "t.zst"], check=True)
    done = dash.run("-e", room / "t.zst", "-d", room / "env", "which-one")
    assert (done.returncode, done.stdout, done.stderr) == (0, "one\n", "")
    done = dash.run("-e", room / "t.zst", "which-one", env={"PATH": only(room, "zstd", without=True)})
    assert done.returncode == 125
    assert "zstd" in done.stderr


def only(directory: Path, *names: str, without: bool = False) -> str:
    """A PATH that has what /usr/bin has, but for `names` (or nothing but these)."""
    links = directory / "bin"
    links.mkdir()
    for path in [*Path("/usr/bin").iterdir(), *Path("/bin").iterdir()]:
        if (path.name in names) != without and not (links / path.name).exists():
            (links / path.name).symlink_to(path)
    return str(links)


# ---- the manifest ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("cores", ["1", "2", "3", "40", "", "many"])
def test_cores(world: World, samples: Samples, room: Path, cores: str, unpacked: dict[str, tuple[str, bytes]]) -> None:
    done = world.run("-e", samples.ours.path, "-d", room / "env", "which-one", env={"CORES": cores})
    assert (done.returncode, done.stdout, done.stderr) == (0, "one\n", "")
    assert tree(room / "env") == unpacked
    assert (room / "env/poncho/manifest").read_text().startswith("poncho-manifest 1\n")


def test_a_long_manifest(world: World, room: Path) -> None:
    tarball = tarballs.ours(room / "t.tar.gz", manifest_padding=150_000)
    assert tarball.member > 65536
    for _ in ("cold", "warm"):
        done = world.run("-e", tarball.path, "-d", room / "env", "which-one")
        assert (done.returncode, done.stdout, done.stderr) == (0, "one\n", "")
    done = world.run("-e", tarball.path, "--id", tarball.identity, "-d", room / "env", "which-one")
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("replace", "complaint"),
    [
        ({"platform": "linux-vax"}, "linux-vax"),
        ({"glibc": "99.1"}, "99.1"),
        ({"glibc": "2.999"}, "2.999"),
        ({"unpacked": "900000000000000"}, "free"),
        ({"size": "1"}, "damaged"),
        ({"size": "010"}, "damaged"),
        ({"unpacked": "many"}, "damaged"),
        ({"files": "9" * 30}, "damaged"),
        ({"identity": "../../x"}, "damaged"),
        ({"glibc": "poncho-manifest 1"}, "damaged"),
        ({"glibc": "2.x"}, "damaged"),
        ({"glibc": f"2.{'9' * 30}"}, "damaged"),
    ],
)
def test_what_the_manifest_rules_out(world: World, room: Path, replace: dict[str, str], complaint: str) -> None:
    if "glibc" in replace and shutil.which("getconf", path=world.path) is None:
        pytest.skip("without getconf the wrapper cannot tell")
    tarball = tarballs.ours(room / "t.tar.gz", replace={key: value for key, value in replace.items() if key != "size"})
    if "size" in replace:
        data = tarball.path.read_bytes()
        old = f"size {len(data)}\n".encode()
        tarball.path.write_bytes(
            data.replace(old, f"size {replace['size']}".encode().ljust(len(old) - 1, b"0") + b"\n")
        )
    done = world.run("-e", tarball.path, "-d", room / "env", "which-one")
    assert (done.returncode, done.stdout) == (125, "")
    assert complaint in done.stderr
    assert not (room / "env").exists()


def test_a_newer_format_is_refused_by_name(world: World, samples: Samples, room: Path) -> None:
    entries = {"poncho/manifest": tarballs.text("poncho-manifest 2\nunknown\nend\n")}
    (room / "t.tar.gz").write_bytes(
        tarballs.member(tarballs.tar_fragment(entries)) + samples.ours.path.read_bytes()[samples.ours.member :]
    )
    done = world.run("-e", room / "t.tar.gz", "-d", room / "env", "true")
    assert done.returncode == 125
    assert "newer" in done.stderr


def test_packed_again_from_an_unpacked_one(world: World, samples: Samples, room: Path) -> None:
    """A tarball that somebody made of DIR: its manifest and its `ready` are another's."""
    assert world.run("-e", samples.ours.path, "-d", room / "env").returncode == 0
    subprocess.run(["tar", "-C", room / "env", "-czf", room / "again.tar.gz", "."], check=True)
    done = world.run("-e", room / "again.tar.gz", "-d", room / "env2", "where")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{room}/env2\n", "")
    done = world.run("-e", samples.ours.path, "-d", room / "env2", "where")
    assert done.returncode == 125


# ---- the temporary form ------------------------------------------------------------------------------------


def test_the_temporary_directory_is_private_and_goes(world: World, samples: Samples, room: Path) -> None:
    done = world.run(
        "-e",
        samples.ours.path,
        "sh",
        "-c",
        'cd "$PONCHO_PREFIX/.." && pwd && ls -ld . | cut -c 1-10',
        env={"TMPDIR": str(room)},
    )
    place, mode = done.stdout.splitlines()
    assert mode == "drwx------"
    assert Path(place).parent == room
    assert list(room.iterdir()) == []


def test_what_the_command_write_protected_goes_too(world: World, samples: Samples, room: Path) -> None:
    done = world.run(
        "-e",
        samples.ours.path,
        "sh",
        "-c",
        'mkdir "$PONCHO_PREFIX/x" && : >"$PONCHO_PREFIX/x/y" && chmod 500 "$PONCHO_PREFIX/x"',
        env={"TMPDIR": str(room)},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert list(room.iterdir()) == []


def test_a_temporary_directory_that_is_none(world: World, samples: Samples, room: Path) -> None:
    for value in ("/no/such/directory", "/dev/null"):
        done = world.run("-e", samples.ours.path, "which-one", env={"TMPDIR": value})
        assert (done.returncode, done.stdout, done.stderr) == (0, "one\n", "")


@pytest.mark.parametrize(
    ("sent", "seen"), [("TERM", "TERM"), ("HUP", "HUP"), ("INT", "TERM"), ("QUIT", "TERM"), ("USR1", "USR1")]
)
def test_signals_are_forwarded_and_the_environment_outlives_the_command(
    world: World, samples: Samples, room: Path, sent: str, seen: str
) -> None:
    program = (
        "import os, signal, sys\n"
        "def caught(number, frame):\n"
        "    assert os.path.exists(os.environ['PONCHO_PREFIX'] + '/lib/name')\n"
        "    os.write(1, signal.Signals(number).name.encode() + b'\\n')\n"
        "    sys.exit(23)\n"
        f"signal.signal(signal.SIG{seen}, caught)\n"
        "print('here', flush=True)\n"
        "while True: signal.pause()\n"
    )
    process = world.start("-e", samples.ours.path, "python3", "-c", program, env={"TMPDIR": str(room)})
    assert process.stdout is not None
    assert process.stdout.readline() == "here\n"
    process.send_signal(signal.Signals[f"SIG{sent}"])
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (23, f"SIG{seen}\n", "")
    assert list(room.iterdir()) == []


# Says of each signal that it came, so that none comes while it ends: bash 5.2 can lose the status of who does so then.
UNMOVED = """
import os, signal, sys
signal.signal(signal.SIGTERM, lambda *_: os.write(1, b"told\\n"))
os.write(1, b"here\\n")
os.write(1, os.read(0, 9))
sys.exit(9)
"""


def test_a_command_that_ignores_the_signal_is_waited_for(world: World, samples: Samples, room: Path) -> None:
    command = [sys.executable, "-c", UNMOVED]
    process = world.start("-e", samples.ours.path, *command, env={"TMPDIR": str(room)}, stdin=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == "here\n"
    for _ in range(3):
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "told\n"
    out, _ = process.communicate("more", timeout=30)
    assert (process.returncode, out) == (9, "more")
    assert list(room.iterdir()) == []


def test_a_killed_wrapper_is_cleaned_up_after_by_the_next(world: World, samples: Samples, room: Path) -> None:
    env = {"TMPDIR": str(room)}
    process = world.start("-e", samples.ours.path, "sh", "-c", "echo here; cat", env=env, stdin=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == "here\n"
    process.kill()
    process.wait()
    assert len(list(room.iterdir())) == 1
    # the command is still at work: its environment stays
    assert world.run("-e", samples.ours.path, "true", env=env).returncode == 0
    assert len(list(room.iterdir())) == 1
    process.stdin.close()
    assert process.stdout.read() == ""
    assert world.run("-e", samples.ours.path, "true", env=env).returncode == 0
    assert list(room.iterdir()) == []


# ---- statistics ---------------------------------------------------------------------------------------------


def test_statistics(world: World, samples: Samples, room: Path) -> None:
    env = {"PONCHO_STATS": "stats file"}
    for _ in ("cold", "warm"):
        done = world.run("-e", samples.ours.path, "-d", room / "env", "which-one", env=env, cwd=room)
        assert (done.returncode, done.stdout, done.stderr) == (0, "one\n", "")
    assert world.run("-e", samples.ours.path, "true", env=env, cwd=room).returncode == 0
    assert world.run("-e", room / "env", "true", env=env, cwd=room).returncode == 0
    lines = (room / "stats file").read_text().splitlines()
    rows = []
    for line in lines:
        first, version, *words = line.split(" ")
        assert (first, version) == ("poncho-stats", "1")
        rows.append(dict(word.split("=", 1) for word in words))
    assert [row["unpacked"] for row in rows] == ["1", "0", "1", "0"]
    for row in rows:
        assert row["identity"] == samples.ours.identity
        assert row["host"] == os.uname().nodename
        assert int(row["total"]) >= 0
        assert int(row["waited"]) == 0
        assert row["evicted"] == "0"


@pytest.mark.skipif(shutil.which("flock") is None, reason="needs flock (util-linux)")
def test_statistics_count_a_wait_for_the_lock(dash: World, samples: Samples, room: Path) -> None:
    env = {"PONCHO_STATS": str(room / "stats")}
    with (room / ".poncho-lock.env").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = dash.start("-e", samples.ours.path, "-d", room / "env", "--debug", "true", env=env)
        assert process.stderr is not None
        while "waiting for the run" not in (line := process.stderr.readline()):
            assert line, "it did not wait"
        time.sleep(0.2)
    assert process.wait(60) == 0
    process.stderr.close()
    waited = re.search(r" waited=(\d+) ", (room / "stats").read_text())
    assert waited is not None
    assert int(waited[1]) > 0


def test_statistics_that_cannot_be_written_do_no_harm(world: World, samples: Samples, room: Path) -> None:
    for _ in ("cold", "warm"):
        done = world.run(
            "-e", samples.ours.path, "-d", room / "env", "which-one", env={"PONCHO_STATS": "/no/such/directory/file"}
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "one\n", "")


# ---- the file itself ------------------------------------------------------------------------------------------


def test_a_copy_that_was_cut_short_does_nothing_and_says_so(world: World, samples: Samples, tmp_path: Path) -> None:
    text = WRAPPER.read_bytes()
    start = text.index(b"EXIT\n") + 5
    wrong = 0
    cuts = [*range(start, len(text) - 2, 701), len(text) - 3]
    for cut in cuts:
        copy = tmp_path / "copy"
        copy.write_bytes(text[:cut])
        done = world.run("-e", samples.ours.path, "-d", tmp_path / "env", "touch", tmp_path / "ran", name=copy)
        wrong += done.returncode not in (2, 125) or done.stdout != "" or (tmp_path / "ran").exists()
    print(f"copies cut short: {len(cuts)}, wrong: {wrong}")
    assert wrong == 0


def test_shellcheck() -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    files = [WRAPPER, *(WRAPPER.parents[1] / "poncho_wq/prefix_files" / name for name in TEMPLATES)]
    subprocess.run(["shellcheck", "-s", "sh", "-x", *files], check=True)
