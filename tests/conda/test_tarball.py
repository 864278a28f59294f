"""Tarballs of conda environments: under our wrapper, Debian's, and conda's own tools."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from poncho_wq.manifest import read_manifest
from poncho_wq.prepare import Environment
from poncho_wq.wrapper import wrapper_path
from tests.conda.channel import FULL, MINOR

SHELLS = [shell for shell in ("dash", "bash", "busybox") if shutil.which(shell)]
ENVIRON = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent"}

LOOK = """
import json, os, subprocess, sys
import numpy, packaging, prefixed, tiny
strings = prefixed.binary_strings()
print(json.dumps({
    "prefix": sys.prefix, "version": sys.version.split()[0], "numpy": int(numpy.arange(4).sum()), "text": prefixed.TEXT,
    "strings": strings, "data": os.environ.get("ACTIVATED_DATA"), "greeting": os.environ.get("GREETING"),
    "tiny": subprocess.check_output(["tiny"], text=True), "tool": subprocess.check_output(["prefixed-tool"], text=True),
    "origin": tiny.ORIGIN,
}))
"""


def expected(prefix: Path) -> dict[str, object]:
    p = str(prefix)
    return {
        "prefix": p, "version": FULL, "numpy": 6, "text": f"{p}/share/prefixed",
        "strings": [f"{p}/lib/one", f"-L{p}/lib", f"{p}/lib:{p}/lib64", f"a:{p}"],
        "data": f"{p}/share/activated", "greeting": "it's $HOME", "tiny": "tiny 1.1 main\n", "tool": f"{p}\n",
        "origin": "main",
    }  # fmt: skip


def look(argv: list[str | Path]) -> dict[str, object]:
    import json

    done = subprocess.run([*argv, "python", "-c", LOOK], capture_output=True, text=True, env=ENVIRON, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("name", ["env", "a b $(touch x)"])
def test_our_wrapper(built: Environment, tmp_path: Path, shell: str, name: str) -> None:
    target = tmp_path / name
    sh = [shell, "sh"] if shell == "busybox" else [shell]
    argv: list[str | Path] = [*sh, wrapper_path(), "-e", built.tarball, "--id", built.identity, "-u", target, "--"]
    for _ in ("cold", "warm"):
        assert look(argv) == expected(target)


def test_our_wrapper_from_a_temporary_directory(built: Environment, tmp_path: Path) -> None:
    found = look(["/bin/sh", wrapper_path(), "-e", built.tarball, "--"])
    assert found == expected(Path(str(found["prefix"])))
    assert not Path(str(found["prefix"])).exists()


def test_debians_wrapper(built: Environment, tmp_path: Path) -> None:
    upstream = shutil.which("python_package_run", path="/usr/bin")
    if upstream is None:
        pytest.skip("Debian's coop-computing-tools are not installed")
    target = tmp_path / "env"
    found = look([upstream, "-e", built.tarball, "--unpack-to", target])
    assert found == expected(target)


def test_by_hand(built: Environment, tmp_path: Path) -> None:
    """As conda-pack's documentation has it: tar, source bin/activate, conda-unpack."""
    target = tmp_path / "by hand"
    target.mkdir()
    script = '. "$1/bin/activate" && conda-unpack && shift && exec "$@"'
    subprocess.run(["tar", "-xzf", built.tarball, "-C", target], check=True)
    assert look(["/bin/bash", "-c", script, "bash", target]) == expected(target)


def test_taskvines_way(built: Environment, tmp_path: Path) -> None:
    """Unpacked under one name, called without arguments, renamed, called with a command through a symbolic link."""
    output, cached, mounted = tmp_path / "output", tmp_path / "cached", tmp_path / "mounted"
    output.mkdir()
    subprocess.run(["tar", "-xzf", built.tarball, "-C", output], check=True)
    subprocess.run([output / "bin" / "run_in_env"], check=True, env=ENVIRON)
    output.rename(cached)
    mounted.symlink_to(cached)
    found = look([mounted / "bin" / "run_in_env"])
    assert found["strings"] == expected(cached)["strings"]
    assert found["text"] == f"{cached}/share/prefixed"


def test_what_is_in_it(built: Environment) -> None:
    with tarfile.open(built.tarball) as tar:
        members = {member.name: member for member in tar.getmembers()}
        link = members["share/oddities/link"]
        assert (link.issym(), link.linkname) == (True, "a b $(touch x)")
        assert members["share/oddities/run"].mode == 0o755
        assert members["share/oddities/a b $(touch x)"].mode == 0o644
        assert "share/oddities/ümläut" in members
        assert {"bin/conda-unpack", "conda-meta/history", "poncho/lock.json", "poncho/manifest"} <= members.keys()
        cached = f"lib/python{MINOR}/site-packages/__pycache__"
        tag = f"cpython-{MINOR.replace('.', '')}"
        assert f"{cached}/tiny.{tag}.pyc" in members, "compiled by us"
        assert f"{cached}/prefixed.{tag}.pyc" not in members, "it is edited after unpacking"
        pyc = tar.extractfile(f"lib/python{MINOR}/site-packages/numpy/__pycache__/__init__.{tag}.pyc")
        assert pyc is not None
        assert pyc.read(8)[4:] == b"\1\0\0\0", "taken over from the package"
        names = [member.name for member in tar.getmembers() if member.name.endswith(".pyc")]
        assert len(names) == len(set(names))


def test_the_manifest(built: Environment) -> None:
    manifest = read_manifest(built.tarball)
    assert manifest is not None
    kinds = {each.path: each.kind for each in manifest.relocations}
    assert kinds["bin/tiny"] == "text"
    assert kinds["share/prefixed/data.bin"] == "binary"
    assert manifest.python == FULL


def test_modules_need_no_compiling_on_the_worker(built: Environment, tmp_path: Path) -> None:
    target = tmp_path / "env"
    argv: list[str | Path] = ["/bin/sh", wrapper_path(), "-e", built.tarball, "-u", target, "--"]
    code = "import json, email.message, numpy.linalg, tiny, prefixed"
    before = set(target.rglob("*.pyc"))
    subprocess.run(argv, check=True, env=ENVIRON)
    before = set(target.rglob("*.pyc"))
    subprocess.run([*argv, "python", "-c", code], check=True, env=ENVIRON)
    new = {path.name.partition(".")[0] for path in set(target.rglob("*.pyc")) - before}
    assert new == {"prefixed"}


def test_conda_pack_packs_what_was_unpacked(built: Environment, tmp_path: Path) -> None:
    """conda's tools find their way in it: conda-pack reads conda-meta."""
    pytest.importorskip("conda_pack")
    target, again = tmp_path / "env", tmp_path / "again.tar.gz"
    target.mkdir()
    subprocess.run(["tar", "-xzf", built.tarball, "-C", target], check=True)
    subprocess.run([target / "bin" / "conda-unpack"], check=True)
    command = [sys.executable, "-m", "conda_pack.cli", "-p", target, "-o", again, "-q", "--ignore-missing-files"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    second = tmp_path / "second"
    argv: list[str | Path] = ["/bin/sh", wrapper_path(), "-e", again, "-u", second, "--", "python", "-c"]
    code = "import numpy, sys; print(sys.prefix)"
    done = subprocess.run([*argv, code], capture_output=True, text=True, env=ENVIRON, check=False)
    assert done.stdout.strip() == str(second), done.stderr
