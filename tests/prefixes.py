"""Small made-up prefixes that pack like real ones, for the tests of packing."""

from __future__ import annotations

import os
import random
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from poncho_wq.build import FileGroup, Prefix
from poncho_wq.platforms import host_platform

VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
FULL_VERSION = ".".join(map(str, sys.version_info[:3]))
LIB = f"lib/python{VERSION}"
SITE = f"{LIB}/site-packages"

RUNTIME = {"bin/activate": (0o644, b"# nothing\n"), "bin/run_in_env": (0o755, b"#!/bin/sh\n")}
"""Stands in for the files that `pack` adds by itself."""

NOTHING: Any = None
"""Stands in for the specification and the lock, which matter only for the files that `pack` adds by itself."""


def put(root: Path, path: str, content: bytes | str = b"", *, mode: int = 0o644) -> None:
    there = root / path
    there.parent.mkdir(parents=True, exist_ok=True)
    there.write_bytes(content.encode() if isinstance(content, str) else content)
    there.chmod(mode)


def put_interpreter(root: Path) -> tuple[str, ...]:
    """A `bin/pythonX.Y` that is the interpreter of the tests."""
    base = getattr(sys, "_base_executable", sys.executable)
    put(root, f"bin/python{VERSION}", f'#!/bin/sh\nexec {shlex.quote(base)} "$@"\n', mode=0o755)
    put(root, f"{LIB}/this.py", "import os\n\n\ndef zen():\n    return {'beautiful', 'ugly', None, os.sep}\n")
    (root / "bin/python3").symlink_to(f"python{VERSION}")
    (root / "bin/python").symlink_to("python3")
    return ("bin/python", "bin/python3", f"bin/python{VERSION}", f"{LIB}/this.py")


def module(number: int, *, lines: int = 20) -> str:
    """Source whose compiled form shows what its compiler remembers: names, and constants in strings and sets."""
    names = "".join(f"    name_{(number * 7 + i) % 50} = 'value_{(number * 3 + i) % 40}'\n" for i in range(lines))
    head = f'"""Module {number}."""\nimport sys\n\ndef f{number}(self, x):\n'
    return f'{head}{names}    return x in {{"a", "b", "c", {number}}}\n'


def put_package(root: Path, name: str, *, modules: int = 3, payload: int = 0) -> tuple[str, ...]:
    """An installed package: modules, and `payload` bytes that do not compress away."""
    files = [f"{SITE}/{name}/__init__.py", f"{SITE}/{name}-1.0.dist-info/METADATA"]
    put(root, files[0], f"value = {name!r}\n")
    put(root, files[1], f"Name: {name}\nVersion: 1.0\n")
    for number in range(modules):
        files.append(f"{SITE}/{name}/module_{number}.py")
        put(root, files[-1], module(number + len(name)))
    if payload:
        files.append(f"{SITE}/{name}/data.bin")
        put(root, files[-1], random.Random(payload).randbytes(payload))
    return tuple(sorted(files))


def group(name: str, files: tuple[str, ...], *, kind: Any = "pip", version: str | None = "1.0") -> FileGroup:
    return FileGroup(name=name, version=version, kind=kind, files=tuple(sorted(files)))


def prefix(root: Path, *groups: FileGroup, python: str | None = FULL_VERSION, **more: Any) -> Prefix:
    facts: dict[str, Any] = {"platform": host_platform(), "glibc": "2.17", **more}
    return Prefix(path=root, python=python, groups=groups, **facts)


def make_prefix(root: Path) -> Prefix:
    """A prefix with something of everything."""
    interpreter = put_interpreter(root)
    odd = put_odd_files(root)
    return prefix(
        root,
        group("python", interpreter, kind="interpreter", version=FULL_VERSION),
        group("alpha", put_package(root, "alpha")),
        group("beta", put_package(root, "beta", modules=70)),
        group("gamma", put_package(root, "gamma", payload=1 << 21)),
        group("odd", odd, kind="other", version=None),
        group("DATA", put_data(root), kind="data", version=None),
    )


def put_data(root: Path) -> tuple[str, ...]:
    put(root, "poncho/data/DATA/table.csv", "a,b\n1,2\n")
    (root / "poncho/data/DATA/empty").mkdir()
    return ("poncho/data/DATA/empty/", "poncho/data/DATA/table.csv")


def put_odd_files(root: Path) -> tuple[str, ...]:
    """Every kind of entry and name that tar has ways of its own for."""
    deep = "share/" + "/".join(["d" * 40] * 4)
    files: Mapping[str, tuple[bytes, int]] = {
        "share/empty.txt": (b"", 0o600),
        "share/a b.txt": (b"blank", 0o644),
        'share/it\'s "$(touch x)" `y`': (b"quotes", 0o644),
        "share/new\nline": (b"newline", 0o640),
        "share/-rf": (b"dash", 0o644),
        "share/h:x": (b"colon", 0o644),
        "share/ünïcode-日本": (b"unicode", 0o644),
        "share/block": (b"x" * 512, 0o644),
        "share/tool": (b"#!/bin/sh\n", 0o711),
        f"share/{'n' * 95}": (b"101 bytes of path", 0o644),
        f"{deep}/prefix-field": (b"fits ustar's prefix", 0o644),
        f"{deep}/{'l' * 120}": (b"does not", 0o755),
        "share/bad.py": (b"def (:\n", 0o644),
        f"{LIB}/broken.py": (b"def (:\n", 0o644),
        f"{LIB}/latin.py": ("# -*- coding: latin-1 -*-\nx = 'é'\n".encode("latin-1"), 0o644),
        f"{LIB}/empty_module.py": (b"", 0o644),
        f"{LIB}/__pycache__/stale.cpython-39.pyc": (b"made elsewhere", 0o644),
        f"{LIB}/odd/tests/test_odd.py": (b"x = 1\n", 0o644),
    }
    for path, (content, mode) in files.items():
        put(root, path, content, mode=mode)
    (root / "share/link").symlink_to("a b.txt")
    (root / "share/dangling").symlink_to(f"{'t' * 130}")
    (root / "share/up").symlink_to("../bin/python3")
    (root / "share/dir").symlink_to("../share")
    (root / "share/hollow").mkdir()
    os.link(root / "share/block", root / "share/hardlink")
    os.link(root / f"{deep}/{'l' * 120}", root / "share/hardlink-far")
    links = ("share/link", "share/dangling", "share/up", "share/dir", "share/hardlink", "share/hardlink-far")
    return (*files, *links, "share/hollow/")
