"""Conda prefixes that exist: packed as they are, never written to, and run elsewhere when they are gone."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poncho_wq.build.rattler import Conda
from poncho_wq.build.relocation import PLACEHOLDER
from poncho_wq.build.unlinking import unlink
from poncho_wq.build.uv import find_uv
from poncho_wq.errors import BuildError, SpecError
from poncho_wq.importers import Options
from poncho_wq.prepare import environment, lock_environment
from tests.conda.channel import FOREIGN, MINOR, SUBDIR
from tests.conda.conftest import Channels
from tests.conda.packages import PLACEHOLDER as LONG
from tests.conda.test_imported import in_it
from tests.wheelhouse import write_wheel

SITE = f"lib/python{MINOR}/site-packages"


def state(directory: Path) -> dict[str, tuple[int, ...]]:
    """What any change to a file or directory would change, hard links included."""
    facts = {str(path): path.lstat() for path in (directory, *directory.rglob("*"))}
    return {path: (each.st_mtime_ns, each.st_ctime_ns, each.st_size, each.st_mode) for path, each in facts.items()}


@pytest.fixture(autouse=True)
def _no_conda(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("PIP_", "UV_", "CONDA", "MAMBA")):
            monkeypatch.delenv(name)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home whose ``.conda`` was moved to the project's storage for its quota, as OzSTAR tells its users to do."""
    directory = tmp_path / "home/someone"
    directory.mkdir(parents=True)
    (tmp_path / "fred/oz000/someone/.conda/envs").mkdir(parents=True)
    (directory / ".conda").symlink_to(tmp_path / "fred/oz000/someone/.conda")
    monkeypatch.setenv("HOME", str(directory))
    return directory


def install(channels: Channels, conda: Conda, prefix: Path, *packages: str) -> Path:
    """Make ``prefix`` as conda does: its own path, as it was asked for, stands in the files."""
    sources = [channels.main, channels.other]
    records = conda.solve([f"python={MINOR}", *packages], channels=sources, platform=SUBDIR, glibc=None)
    conda.install(records, prefix, placeholder=str(prefix), platform=SUBDIR, on_progress=lambda _: None)
    return prefix


def pip_install(prefix: Path, wheels: Path) -> None:
    """By uv, as pip does it: a script that begins with the interpreter's path."""
    write_wheel(wheels, "extra", "2.0", {"extra.py": "def main():\n    print('extra ran')\n"},
                scripts={"extra": "extra:main"})  # fmt: skip
    argv: list[str | Path] = [
        find_uv(),
        "pip",
        "install",
        "-q",
        "--offline",
        "--no-index",
        "--find-links",
        wheels,
        "extra",
        "--python",
    ]
    env = {"PATH": os.defpath, "UV_CACHE_DIR": str(wheels / "uv"), "HOME": str(wheels)}
    subprocess.run([*argv, prefix / "bin/python"], check=True, env=env)


def test_an_environment_by_name_behind_a_linked_dot_conda(
    channels: Channels, conda: Conda, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = install(channels, conda, home / ".conda/envs/climate", "tiny", "prefixed", "oddities", "activated")
    pip_install(prefix, tmp_path / "wheels")
    (prefix / "by-hand").write_text(f"root = {prefix}/share\n")
    (prefix / "lib/absolute").symlink_to(prefix / "share/activated/value")
    real = tmp_path / "fred/oz000/someone/.conda"
    before = state(real)
    monkeypatch.chdir(tmp_path)
    made = environment("climate", cache_dir=tmp_path / "cache")
    assert state(real) == before
    assert environment(prefix, cache_dir=tmp_path / "cache").cached
    assert environment(real / "envs/climate", cache_dir=tmp_path / "cache").cached

    content = subprocess.run(["gzip", "-dc", made.tarball], check=True, capture_output=True).stdout
    assert os.fsencode(tmp_path / "home") not in content
    assert os.fsencode(tmp_path / "fred") not in content
    shutil.rmtree(real)
    shutil.rmtree(home)
    code = (
        "import sys, prefixed, tiny, os\n"
        "assert sys.prefix == os.environ['PONCHO_PREFIX'], sys.prefix\n"
        "def say(*texts): print(*(text.replace(sys.prefix, 'P').strip() for text in texts))\n"
        "say(prefixed.TEXT, str(prefixed.binary_strings()))\n"
        "say(open(sys.prefix + '/by-hand').read(), os.environ['ACTIVATED_DATA'][-15:])\n"
        "print(open(sys.prefix + '/lib/absolute').read().strip())\n"
    )
    assert in_it(made.tarball, "python", "-c", code).splitlines() == [
        "P/share/prefixed ['P/lib/one', '-LP/lib', 'P/lib:P/lib64', 'a:P']",
        "root = P/share share/activated",
        "42",
    ]
    for command, said in (("tiny", "tiny 1.1 main"), ("extra", "extra ran")):
        assert in_it(made.tarball, command) == said
    assert in_it(made.tarball, "prefixed-tool") != ""


def test_what_was_changed_by_hand_is_packed_again(channels: Channels, conda: Conda, tmp_path: Path) -> None:
    prefix = install(channels, conda, tmp_path / "lab", "tiny")
    first = environment(prefix, cache_dir=tmp_path / "cache")
    (prefix / SITE / "tiny.py").unlink()  # it is a hard link into the package cache, which other tests share
    (prefix / SITE / "tiny.py").write_text("VERSION = 'mine'\n")
    second = environment(prefix, cache_dir=tmp_path / "cache")
    assert not second.cached
    assert first.spec_hash == second.spec_hash
    assert in_it(second.tarball, "python", "-c", "import tiny; print(tiny.VERSION)") == "mine"
    # The lock is for building elsewhere, from the channels.
    locked = lock_environment(prefix, cache_dir=tmp_path / "cache")
    elsewhere = environment(prefix, cache_dir=tmp_path / "cache", locked=locked)
    assert in_it(elsewhere.tarball, "python", "-c", "import tiny; print(tiny.VERSION)") == "1.1"


def test_it_has_what_it_has(channels: Channels, conda: Conda, tmp_path: Path) -> None:
    prefix = install(channels, conda, tmp_path / "lab", "tiny")
    with pytest.raises(BuildError, match="has no cloudpickle") as caught:
        environment(prefix, cache_dir=tmp_path / "cache", packages=["tiny", "cloudpickle"])
    assert caught.value.advice == f"install it there: conda install -p {prefix} cloudpickle"
    with pytest.raises(SpecError, match=f"is for {SUBDIR}, and {FOREIGN} was asked for"):
        environment(prefix, cache_dir=tmp_path / "cache", platform=FOREIGN)


def test_code_that_lies_elsewhere_is_left_out(channels: Channels, conda: Conda, tmp_path: Path) -> None:
    prefix = install(channels, conda, tmp_path / "lab", "tiny")
    info = prefix / SITE / "mine-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1\n")
    (info / "direct_url.json").write_text(f'{{"url": "file://{tmp_path}/mine", "dir_info": {{"editable": true}}}}')
    (prefix / SITE / "_mine.pth").write_text(f"{tmp_path}/mine\n")
    (info / "RECORD").write_text("_mine.pth,,\nmine-1.dist-info/METADATA,,\nmine-1.dist-info/RECORD,,\n")
    made = environment(prefix, cache_dir=tmp_path / "cache", options=Options(ignore_editable=True))
    names = subprocess.run(["tar", "-tzf", made.tarball], check=True, capture_output=True, text=True).stdout
    assert "tiny.py" in names
    assert "mine" not in names
    assert (prefix / SITE / "_mine.pth").exists()


# Taking a path out again


def _linked(data: bytes, kind: str, old: str, new: str) -> bytes:
    """What conda does, in its own words: texts end at a zero and keep their room."""
    if kind == "text":
        return data.replace(old.encode(), new.encode())
    parts = data.split(b"\0")
    out = []
    for part in parts:
        replaced = part.replace(old.encode(), new.encode())
        out.append(replaced + bytes(len(part) - len(replaced)))
    return b"\0".join(out)


PIECES = st.lists(
    st.sampled_from([b"\0", b"a", b":", b"/lib", b"-L", LONG.encode(), b"\xff", b"/p", b" "]), max_size=12
)
# Shorter and longer than the placeholder, one the beginning of another, one that packages name by themselves.
NAMES = ["/p", "/home/u/.conda/envs/x", "/fred/oz/home/u/.conda/envs/x", "/scratch/" + "long/" * 20 + "x"]


@pytest.mark.parametrize("kind", ["text", "binary"])
@given(pieces=PIECES, name=st.sampled_from(NAMES))
def test_unlinking_undoes_linking(kind: str, pieces: list[bytes], name: str) -> None:
    original = b"".join(pieces) + b"\0" * (kind == "binary")
    digest = hashlib.sha256(original).hexdigest()
    installed = _linked(original, kind, LONG, name)
    names = sorted(NAMES, key=len, reverse=True)
    try:
        found = unlink(installed, kind, LONG, names, sha256=digest, path="x")
    except BuildError:
        # Only where undoing is not unique: the text itself has what the prefix is called.
        assert any(other.encode() in original for other in NAMES)
        return
    if not any(other.encode() in original for other in NAMES):
        assert found == _linked(original, kind, LONG, PLACEHOLDER)


def test_a_changed_text_is_edited_at_whole_names_only() -> None:
    data = b"#!/a/env/bin/python\nx = '/a/env2', '/a/env', '/a/env.d', '-I/a/env/include'. See /a/env.\n"
    found = unlink(data, "text", LONG, ["/a/env"], sha256="0" * 64, path="x").decode()
    assert found == (
        f"#!{PLACEHOLDER}/bin/python\nx = '/a/env2', '{PLACEHOLDER}', '/a/env.d', '-I{PLACEHOLDER}/include'."
        f" See {PLACEHOLDER}.\n"
    )


def test_a_binary_without_room_is_refused() -> None:
    with pytest.raises(BuildError, match="has no room"):
        unlink(b"\0/a/env/lib\0next\0", "binary", "/a/env", ["/a/env"], sha256=None, path="lib/x.so")
