"""The scripts that every tarball of ours carries: bin/activate, bin/run_in_env, bin/conda-unpack."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.wrapper import tarballs
from tests.wrapper.conftest import ROOT, WRAPPER, World, tree

FILES = ROOT / "poncho_wq" / "prefix_files"
UPSTREAM = Path("/usr/bin/python_package_run")


@pytest.fixture(scope="session")
def complete(tmp_path_factory: pytest.TempPathFactory) -> tarballs.Tarball:
    """A tarball with all that pack puts in."""
    entries = tarballs.fake_prefix()
    for name in ("run_in_env", "conda-unpack"):
        entries[f"bin/{name}"] = tarballs.script((FILES / name).read_text())
    entries["bin/activate"] = tarballs.text((FILES / "activate").read_text())
    entries["bin/poncho_package_run"] = tarballs.script(WRAPPER.read_text())
    entries["poncho/spec.json"] = tarballs.text("{}\n")
    return tarballs.ours(tmp_path_factory.mktemp("complete") / "package.tar.gz", entries)


@pytest.fixture
def prefix(complete: tarballs.Tarball, tmp_path: Path) -> Path:
    """Unpacked as TaskVine does it, and renamed to where tasks see it."""
    shutil.copy(complete.path, tmp_path / "package.tar.gz")
    line = "mkdir output && tar xf package.tar.gz -C output && output/bin/run_in_env"
    before = subprocess.run(["sh", "-c", line], cwd=tmp_path, capture_output=True, text=True)
    assert (before.returncode, before.stdout, before.stderr) == (0, "", "")
    assert tree(tmp_path / "output").keys() >= {"bin/activate", "lib/name"}
    (tmp_path / "output").rename(tmp_path / "cache of it")
    (tmp_path / "cache of it").rename(tmp_path / "it's here")
    return tmp_path / "it's here"


# ---- run_in_env ---------------------------------------------------------------------------------


def test_without_arguments_it_only_looks(prefix: Path) -> None:
    before = {path: path.lstat().st_mtime_ns for path in prefix.rglob("*")}
    assert subprocess.run([prefix / "bin/run_in_env"]).returncode == 0
    assert {path: path.lstat().st_mtime_ns for path in prefix.rglob("*")} == before


@pytest.mark.parametrize("missing", ["bin/activate", "bin/poncho_package_run", "poncho/spec.json"])
def test_what_is_not_whole_is_refused(prefix: Path, missing: str) -> None:
    (prefix / missing).unlink()
    done = subprocess.run([prefix / "bin/run_in_env"], capture_output=True, text=True)
    assert done.returncode == 125
    assert missing in done.stderr


def test_an_interpreter_that_does_not_run_is_refused(prefix: Path) -> None:
    (prefix / "bin/python3").write_text("#!/no/such/interpreter\n")
    done = subprocess.run([prefix / "bin/run_in_env"], capture_output=True, text=True)
    assert done.returncode == 125
    assert "interpreter" in done.stderr


def test_the_command_runs_in_the_environment(prefix: Path, tmp_path: Path) -> None:
    (tmp_path / "__vine_env_1").symlink_to(prefix)
    (tmp_path / "run").symlink_to("it's here/bin/run_in_env")
    program = ["sh", "-c", 'which-one; echo "$PONCHO_PREFIX|$CONDA_PREFIX|$PONCHO_TEST_DATA|$PYTHONPATH"; pwd']
    expected = f"one\n{prefix}|{prefix}|{prefix}/poncho/data/PONCHO_TEST_DATA|\n{tmp_path}\n"
    for name in ("__vine_env_1/bin/run_in_env", "./it's here/bin/run_in_env", str(prefix / "bin/run_in_env"), "./run"):
        done = subprocess.run(
            [name, *program], cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": "/leak"}
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, expected, ""), name
    env = {**os.environ, "PATH": f"{prefix}/bin:{os.environ['PATH']}"}
    done = subprocess.run(["sh", "-c", "run_in_env which-one"], capture_output=True, text=True, env=env)
    assert done.stdout == "one\n"
    assert subprocess.run([prefix / "bin/run_in_env", "sh", "-c", "exit 37"]).returncode == 37
    assert subprocess.run([prefix / "bin/run_in_env", "no-such"], capture_output=True).returncode == 127


def test_process_parent_and_descriptors_are_kept(prefix: Path) -> None:
    """A library of TaskVine's ends when its parent changes, and talks through descriptors."""
    reading, writing = os.pipe()
    try:
        process = subprocess.Popen(
            [prefix / "bin/run_in_env", "sh", "-c", f'echo "$$ $PPID" >/proc/self/fd/{writing}'], pass_fds=[writing]
        )
        assert process.wait() == 0
        assert os.read(reading, 100) == f"{process.pid} {os.getpid()}\n".encode()
    finally:
        os.close(reading)
        os.close(writing)


def test_several_at_once(prefix: Path) -> None:
    running = [
        subprocess.Popen([prefix / "bin/run_in_env", "where"], stdout=subprocess.PIPE, text=True) for _ in range(12)
    ]
    assert [process.communicate()[0] for process in running] == [f"{prefix}\n"] * 12


def test_an_environment_of_conda_packages_is_relocated_first(prefix: Path, tmp_path: Path) -> None:
    (prefix / "conda-meta").mkdir()
    (prefix / "bin/conda-unpack").write_text('#!/bin/sh\necho "$0" >>"$(dirname "$0")/../unpacked"\n')
    assert subprocess.run([prefix / "bin/run_in_env"]).returncode == 0
    assert not (prefix / "unpacked").exists()
    done = subprocess.run([prefix / "bin/run_in_env", "which-one"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "one\n")
    assert (prefix / "unpacked").read_text().count("\n") == 1
    (prefix / "bin/conda-unpack").write_text("#!/bin/sh\nexit 1\n")
    assert subprocess.run([prefix / "bin/run_in_env", "which-one"], capture_output=True).returncode == 125


# ---- activate --------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", ["", ' ""', " a b"])
def test_activate_in_every_shell(world: World, prefix: Path, tmp_path: Path, arguments: str) -> None:
    if arguments == " a b" and world.name != "bash":
        pytest.skip("only bash gives arguments to a sourced file")
    (prefix / "etc/conda/activate.d").mkdir(parents=True)
    (prefix / "etc/conda/activate.d/x.sh").write_text('export PONCHO_TEST_LIST="$CONDA_PREFIX/x"\n')
    report = (
        'which-one; echo "$PONCHO_PREFIX|$CONDA_PREFIX|$PONCHO_TEST_LIST|$PONCHO_TEST_DATA|${PYTHONHOME-none}|$#|$1"'
    )
    expected = f"one\n{prefix}|{prefix}|{prefix}/x|{prefix}/poncho/data/PONCHO_TEST_DATA|none|2|first\n"
    (tmp_path / "link").symlink_to(prefix)
    env = world.environ({"PYTHONHOME": "/leak"})
    for name in ("./it's here/bin/activate", str(prefix / "bin/activate"), "./link/bin/activate"):
        for script in (f'. "{name}"{arguments}; {report}', f'(. "{name}"{arguments}; {report})'):
            done = subprocess.run(
                [*world.shell, "-c", script, "sh", "first", "second"],
                cwd=tmp_path,
                env=env,
                capture_output=True,
                text=True,
            )
            assert (done.returncode, done.stdout, done.stderr) == (0, expected, ""), (name, script)
    script = '. "./link/bin/activate"; set | grep "^_poncho"'
    done = subprocess.run([*world.shell, "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.stdout == ""


# ---- under upstream's own wrapper -------------------------------------------------------------------


@pytest.mark.skipif(not UPSTREAM.exists(), reason="Debian's coop-computing-tools are not installed")
def test_ours_runs_under_debians_wrapper(complete: tarballs.Tarball, tmp_path: Path) -> None:
    for _ in ("cold", "warm"):
        done = subprocess.run(
            [UPSTREAM, "-e", complete.path, "-u", tmp_path / "env", "sh", "-c", 'which-one; echo "$CONDA_PREFIX"'],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stdout) == (0, f"one\n{tmp_path}/env\n")


def test_a_directory_that_debians_wrapper_filled(world: World, complete: tarballs.Tarball, tmp_path: Path) -> None:
    if not UPSTREAM.exists():
        pytest.skip("Debian's coop-computing-tools are not installed")
    subprocess.run([UPSTREAM, "-e", complete.path, "-u", tmp_path / "env", "true"], cwd=tmp_path, check=True)
    done = world.run("-e", complete.path, "-d", tmp_path / "env", "where")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{tmp_path}/env\n", "")
