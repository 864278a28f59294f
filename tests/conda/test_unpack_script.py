"""bin/conda-unpack of conda builds: any place after any other, killed or not, and never half."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poncho_wq.build.relocation import PLACEHOLDER, relocations

SCRIPT = Path(__file__).parents[2] / "poncho_wq" / "prefix_files" / "conda-unpack-relocating"
P = PLACEHOLDER.encode()
ROOM = 255

# What a prefix may be called: other prefixes' beginnings, blanks, quotes, what a shell or a regular expression reads.
names = st.lists(st.sampled_from([*"ab", " ", "$", '"', "'", "\\", "(", "ü", "lib", "bin"]), min_size=1, max_size=8)
prefixes = names.map(lambda parts: os.fsencode("/" + "".join(parts).strip()))
pieces = st.lists(st.sampled_from([b"/", b"/lib", b":", b"a", b"\n", b"b c", "ü".encode(), P]), max_size=12)
SHEBANGS = (b"", b"#!" + P + b"/bin/python3 -s\n", b"#!" + P + b"/bin/perl -w\n", b"#!" + P + b"/bin/sh\n")


class Prefix:
    """A small prefix with a manifest, as it is after unpacking."""

    def __init__(self, root: Path, files: dict[str, tuple[str, bytes]]) -> None:
        self.root = root
        (root / "bin").mkdir(parents=True)
        (root / "poncho").mkdir()
        rows = []
        for name, (kind, data) in files.items():
            (root / name).parent.mkdir(exist_ok=True)
            (root / name).write_bytes(data)
            rows.append({"_path": name, "prefix_placeholder": "x" * ROOM, "file_mode": kind})
        lines = [f"placeholder {PLACEHOLDER}"] if files else []
        for each in relocations(root, [{"paths_data": {"paths": rows}}]):
            places = ",".join(str(a) if each.kind == "text" else f"{a}:{b}" for a, b in each.places)
            lines.append(f"relocate {each.kind} {places} {each.path}")
        (root / "poncho" / "manifest").write_text("\n".join(["poncho-manifest 1", *lines, "end", ""]))

    def read(self, name: str) -> bytes:
        return (self.root / name).read_bytes()


def script() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(SCRIPT), run_name="conda_unpack"))


def binary(*texts: bytes) -> bytes:
    """Texts with the room that a 255-character placeholder leaves, as py-rattler writes them."""
    out = b"\x7fBIN\0"
    for text in texts:
        out += text + bytes(1 + text.count(P) * (ROOM - len(P)))
    return out + b"\0end"


@settings(deadline=None, max_examples=60)
@given(head=st.sampled_from(SHEBANGS), body=pieces, places=st.lists(prefixes, min_size=1, max_size=4))
def test_text_from_place_to_place(
    tmp_path_factory: pytest.TempPathFactory, head: bytes, body: list[bytes], places: list[bytes]
) -> None:
    text = head + b"".join(body)
    prefix = Prefix(tmp_path_factory.mktemp("prefix"), {"bin/tool": ("text", text)})
    for place in places:
        script().relocate(str(prefix.root), place)
        said = prefix.read("bin/tool")
        usual = text.replace(P, place)
        if said != usual:  # only the first line, and only where the kernel would not take it
            assert len(usual.partition(b"\n")[0]) > 127 or b" " in place, said
            assert said.endswith(b"".join(body).replace(P, place))
            assert said.startswith((b"#!/bin/sh\n", b"#!/usr/bin/env "))


@settings(deadline=None, max_examples=60)
@given(texts=st.lists(pieces, max_size=3), places=st.lists(prefixes, min_size=1, max_size=4))
def test_binaries_from_place_to_place(
    tmp_path_factory: pytest.TempPathFactory, texts: list[list[bytes]], places: list[bytes]
) -> None:
    parts = [b"".join(piece for piece in text if piece != b"\0") for text in texts]
    data = binary(*parts)
    prefix = Prefix(tmp_path_factory.mktemp("prefix"), {"lib/it.so": ("binary", data)})
    for place in places:
        script().relocate(str(prefix.root), place)
        said = prefix.read("lib/it.so")
        assert len(said) == len(data)
        assert said.endswith(b"\0end")
        assert [part for part in said[5:-4].split(b"\0") if part] == [part.replace(P, place) for part in parts if part]


def run(prefix: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environ = {"PATH": "/usr/bin:/bin", "PYTHONHOME": "/nonexistent"}
    argv = ["/bin/sh", str(prefix / "bin" / "conda-unpack"), *words]
    return subprocess.run(argv, capture_output=True, text=True, env=environ, check=False)


@pytest.fixture
def prefix(tmp_path: Path) -> Prefix:
    files = {
        "bin/tool": ("text", b"#!" + P + b"/bin/python3\nroot = '" + P + b"'\n"),
        "lib/module.py": ("text", b"ROOT = '" + P + b"'\n"),
        "lib/it.so": ("binary", binary(P + b"/lib", P + b":" + P)),
    }
    made = Prefix(tmp_path / "a b", files)
    (made.root / "bin" / "tool").chmod(0o755)
    (made.root / "bin" / "python3").symlink_to(sys.executable)
    shutil.copy(SCRIPT, made.root / "bin" / "conda-unpack")
    return made


def test_where_it_stands(prefix: Prefix) -> None:
    done = run(prefix.root)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert prefix.read("lib/module.py") == b"ROOT = '" + bytes(prefix.root) + b"'\n"
    assert (prefix.root / "bin" / "tool").stat().st_mode & 0o777 == 0o755
    assert subprocess.run([prefix.root / "bin" / "tool"], check=False).returncode == 0, "a prefix with a blank"


def test_where_it_will_be(prefix: Prefix) -> None:
    assert run(prefix.root, "--prefix", "/final/place").returncode == 0
    assert prefix.read("lib/module.py") == b"ROOT = '/final/place'\n"


def test_again_at_another_place(prefix: Prefix, tmp_path: Path) -> None:
    run(prefix.root)
    moved = tmp_path / "elsewhere"
    prefix.root.rename(moved)
    assert run(moved).returncode == 0
    assert (moved / "lib" / "module.py").read_bytes() == b"ROOT = '" + bytes(moved) + b"'\n"
    assert (moved / "bin" / "tool").read_bytes().startswith(b"#!" + bytes(moved) + b"/bin/python3\n")


def test_again_at_the_same_place_starts_no_python_and_writes_nothing(prefix: Prefix) -> None:
    run(prefix.root)
    (prefix.root / "bin" / "python3").unlink()
    before = {path: path.lstat().st_mtime_ns for path in prefix.root.rglob("*")}
    assert run(prefix.root).returncode == 0
    assert {path: path.lstat().st_mtime_ns for path in prefix.root.rglob("*")} == before


def test_compiled_files_of_what_changes_are_removed(prefix: Prefix) -> None:
    cache = prefix.root / "lib" / "__pycache__"
    cache.mkdir()
    for name in ("module.cpython-311.pyc", "modules.cpython-311.pyc"):
        (cache / name).touch()
    run(prefix.root)
    assert [path.name for path in cache.iterdir()] == ["modules.cpython-311.pyc"]


@pytest.mark.parametrize("survives", range(8))
def test_killed_and_run_again_elsewhere(prefix: Prefix, survives: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before its Nth rename, at one place; then run at a second; then at a third."""
    root = str(prefix.root)
    real = os.replace
    count = 0

    class Killed(BaseException):
        pass

    def replace(*args: Any) -> None:
        nonlocal count
        if count == survives:
            raise Killed
        count += 1
        real(*args)

    monkeypatch.setattr(os, "replace", replace)
    try:
        script().relocate(root, b"/one")
    except Killed:
        state = prefix.root / "poncho" / "relocated"
        assert not state.exists() or not state.read_bytes().startswith(b"at ")
    monkeypatch.setattr(os, "replace", real)
    for place in (b"/second/place", b"/3"):
        script().relocate(root, place)
        assert prefix.read("lib/module.py") == b"ROOT = '" + place + b"'\n"
        assert prefix.read("bin/tool") == b"#!" + place + b"/bin/python3\nroot = '" + place + b"'\n"
        assert place + b"/lib\0" in prefix.read("lib/it.so")
        assert b"\0" + place + b":" + place + b"\0" in prefix.read("lib/it.so")


def test_no_room_is_said_and_changes_nothing_for_good(prefix: Prefix) -> None:
    long = "/" + "x" * 300
    done = run(prefix.root, "--prefix", long)
    assert done.returncode == 1
    assert "at most 255 characters" in done.stderr
    assert run(prefix.root, "--prefix", "/short").returncode == 0
    assert prefix.read("lib/module.py") == b"ROOT = '/short'\n"


def test_a_file_that_somebody_changed(prefix: Prefix) -> None:
    run(prefix.root)
    with (prefix.root / "lib" / "module.py").open("ab") as stream:
        stream.write(b"# mine\n")
    done = run(prefix.root, "--prefix", "/other")
    assert done.returncode == 1
    assert "lib/module.py was changed" in done.stderr


def test_a_long_first_line(prefix: Prefix) -> None:
    long = "/" + "y" * 150
    run(prefix.root, "--prefix", long)
    first = prefix.read("bin/tool").split(b"\n")
    assert first[:2] == [b"#!/bin/sh", b"'''exec' \"" + long.encode() + b'/bin/python3" "$0" "$@"']
    run(prefix.root, "--prefix", "/z")
    assert prefix.read("bin/tool").startswith(b"#!/z/bin/python3\n")


@pytest.mark.parametrize("place", ["relative", "/a\nb", ""])
def test_places_that_cannot_be(prefix: Prefix, place: str) -> None:
    assert run(prefix.root, "--prefix", place).returncode == 1


def test_the_record_is_json(prefix: Prefix) -> None:
    run(prefix.root)
    headline, _, rest = (prefix.root / "poncho" / "relocated").read_text().partition("\n")
    assert headline == f"at {prefix.root}"
    assert json.loads(rest)["at"] == [str(prefix.root)]


@pytest.mark.parametrize("shell", ["dash", "bash", "busybox"])
def test_shells(prefix: Prefix, shell: str) -> None:
    found = shutil.which(shell)
    if found is None:
        pytest.skip(f"{shell} is not installed")
    words = [found, *(["sh"] if shell == "busybox" else []), str(prefix.root / "bin" / "conda-unpack")]
    assert subprocess.run(words, check=False).returncode == 0
    assert subprocess.run(words, check=False).returncode == 0
