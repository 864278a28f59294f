"""``bin/run_in_env`` as TaskVine calls it, without TaskVine: its command lines, its renames, its pipes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from poncho_wq.prepare import Environment

# The command of TaskVine's mini-task for a poncho package, word for word.
UNPACK = "mkdir output && tar xf package.tar.gz -C output && output/bin/run_in_env"
SHELLS = [shell for shell in (["dash"], ["bash"], ["busybox", "sh"]) if shutil.which(shell[0])]
WHERE = (
    'python3 -c \'import os, sys; print(sys.prefix); print(os.environ["PONCHO_PREFIX"]); print(os.environ["WORD"])\''
)


@pytest.fixture(scope="session")
def environment(environments: Callable[[str], Environment]) -> Environment:
    return environments("it's one")


def sh(command: str, cwd: Path, **options: object) -> subprocess.CompletedProcess[str]:
    environ = {"PATH": "/usr/bin:/bin", "PYTHONPATH": "/nonexistent", "HOME": "/"}
    return subprocess.run(
        ["/bin/sh", "-c", command], cwd=cwd, env=environ, capture_output=True, text=True, check=False, **options
    )  # type: ignore[call-overload]


@pytest.fixture(scope="module")
def unpacked(environment: Environment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A worker's cache entry: unpacked by the mini-task, then renamed twice, as TaskVine does."""
    worker = tmp_path_factory.mktemp("a worker")
    mini = worker / "mini.1"
    mini.mkdir()
    (mini / "package.tar.gz").symlink_to(environment.tarball)
    done = sh(UNPACK, mini)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    (worker / "transfer").mkdir()
    (worker / "cache").mkdir()
    (mini / "output").rename(worker / "transfer" / "task-md5-1")
    (worker / "transfer" / "task-md5-1").rename(worker / "cache" / "task-md5-1")
    return worker / "cache" / "task-md5-1"


@pytest.fixture
def sandbox(unpacked: Path, tmp_path: Path) -> Path:
    """A task's directory, with the environment mounted by a symbolic link."""
    (tmp_path / "__vine_env_task-md5-1").symlink_to(unpacked)
    return tmp_path


RUN = "__vine_env_task-md5-1/bin/run_in_env "


def test_runs_where_it_stands_after_the_renames(sandbox: Path, unpacked: Path) -> None:
    done = sh(RUN + WHERE, sandbox)
    assert done.stdout.splitlines() == [str(unpacked), str(unpacked), "it's one"], done.stderr
    assert done.stderr == ""


def test_carried_to_another_worker_it_runs_there(unpacked: Path, tmp_path: Path) -> None:
    there = tmp_path / "other worker" / "cache" / "task-md5-1"
    shutil.copytree(unpacked, there, symlinks=True)
    done = sh("cache/task-md5-1/bin/run_in_env " + WHERE, tmp_path / "other worker")
    assert done.stdout.splitlines()[0] == str(there), done.stderr


@pytest.mark.parametrize("shell", SHELLS, ids="-".join)
def test_every_shell_runs_it(unpacked: Path, sandbox: Path, shell: list[str]) -> None:
    script = str(sandbox / "__vine_env_task-md5-1" / "bin" / "run_in_env")
    environ = {"PATH": "/usr/bin:/bin"}
    assert subprocess.run([*shell, script], env=environ, cwd=sandbox, check=False).returncode == 0
    done = subprocess.run(
        [*shell, script, "sh", "-c", 'echo "$WORD/$1"; exit 3', "sh", "a  b"],
        env=environ, cwd=sandbox, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.stdout, done.returncode) == ("it's one/a  b\n", 3)


@pytest.mark.parametrize("status", [0, 1, 2, 77, 125, 126, 127, 255])
def test_exit_status_is_the_commands(sandbox: Path, status: int) -> None:
    assert sh(f"{RUN}sh -c 'exit {status}'", sandbox).returncode == status


def test_the_command_replaces_it(sandbox: Path) -> None:
    """Same process and parent, so that a library sees its worker end; nothing in between that could be killed alone."""
    program = f"exec {RUN}python3 -c 'import os; print(os.getpid(), os.getppid())'"
    process = subprocess.Popen(
        ["/bin/sh", "-c", program], cwd=sandbox, env={"PATH": "/usr/bin:/bin"}, stdout=subprocess.PIPE, text=True
    )
    said, _ = process.communicate()
    assert said.split() == [str(process.pid), str(os.getpid())]


def test_inherited_descriptors_stay_open(sandbox: Path) -> None:
    to_library, from_worker = os.pipe()
    to_worker, from_library = os.pipe()
    os.write(from_worker, b"call 1")
    os.close(from_worker)
    program = "import os,sys; a, b = int(sys.argv[2]), int(sys.argv[4]); os.write(b, os.read(a, 99).upper())"
    with (sandbox / "library.py").open("w") as file:
        file.write(program)
    command = f"{RUN}python3 library.py --in-pipe-fd {to_library} --out-pipe-fd {from_library} --function-slots 1"
    done = sh(command, sandbox, pass_fds=(to_library, from_library))
    assert done.returncode == 0, done.stderr
    os.close(from_library)
    assert os.read(to_worker, 99) == b"CALL 1"
    os.close(to_worker)
    os.close(to_library)


def test_nothing_is_written_by_running(sandbox: Path, unpacked: Path) -> None:
    def facts() -> list[tuple[str, int]]:
        return sorted((str(path), path.lstat().st_mtime_ns) for path in unpacked.rglob("*"))

    before = facts()
    running = [subprocess.Popen(["/bin/sh", "-c", RUN + "python3 -c 'import json'"], cwd=sandbox) for _ in range(6)]
    assert [process.wait() for process in running] == [0] * 6
    assert facts() == before


def test_only_the_first_command_of_a_line_is_inside_unless_it_is_whole(sandbox: Path) -> None:
    """What TaskVine does with a shell line, and why ours is one word of ``sh -c``."""
    line = "command -v python3; echo ${WORD-outside}"
    assert sh(f"{RUN}{line}", sandbox).stdout.splitlines()[-1] == "outside"
    done = sh(f"{RUN}/bin/sh -c '{line}'", sandbox)
    assert done.stdout.splitlines()[-1] == "it's one"
    assert done.stdout.startswith(os.path.realpath(sandbox / "__vine_env_task-md5-1"))


def test_an_incomplete_environment_fails_its_check(environment: Environment, tmp_path: Path) -> None:
    assert sh("mkdir output && tar xf " + f"'{environment.tarball}' -C output", tmp_path).returncode == 0
    assert sh("output/bin/run_in_env", tmp_path).returncode == 0
    minor = f"python{sys.version_info.major}.{sys.version_info.minor}"
    (tmp_path / "output" / "lib" / minor / "os.py").unlink()
    shutil.rmtree(tmp_path / "output" / "lib" / minor / "encodings")
    done = sh("output/bin/run_in_env", tmp_path)
    assert done.returncode == 125
    assert "interpreter" in done.stderr
