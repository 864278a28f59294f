"""Wheels and source distributions made by hand, so that builder tests need neither a network nor a build tool."""

from __future__ import annotations

import base64
import hashlib
import io
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

GREET = 'def main():\n    import sys\n    print("hello", *sys.argv[1:])\n'
HELP = """#!python
'''Usage: greet-help'''
from __future__ import annotations
import sys
print(__doc__, sys.argv[1:])
"""


def write_wheel(
    directory: Path,
    name: str,
    version: str,
    files: Mapping[str, str],
    *,
    tag: str = "py3-none-any",
    requires: tuple[str, ...] = (),
    scripts: Mapping[str, str] | None = None,
) -> Path:
    """A wheel of ``files`` (path in the wheel → text), with console ``scripts`` (name → ``module:function``)."""
    info = f"{name}-{version}.dist-info"
    members = dict(files)
    members[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n" + "".join(
        f"Requires-Dist: {each}\n" for each in requires
    )
    members[f"{info}/WHEEL"] = f"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: {tag}\n"
    if scripts:
        lines = "".join(f"{command} = {target}\n" for command, target in scripts.items())
        members[f"{info}/entry_points.txt"] = f"[console_scripts]\n{lines}"
    record = "".join(f"{path},sha256={_digest(text)},{len(text.encode())}\n" for path, text in members.items())
    members[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n"
    directory.mkdir(parents=True, exist_ok=True)
    wheel = directory / f"{name}-{version}-{tag}.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in members.items():
            archive.writestr(zipfile.ZipInfo(path, (2020, 1, 1, 0, 0, 0)), text)
    return wheel


def _digest(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()


def write_sdist(directory: Path, name: str, version: str, files: Mapping[str, str]) -> Path:
    """A source distribution of ``files``; it brings its own build backend, so that nothing is downloaded for it."""
    directory.mkdir(parents=True, exist_ok=True)
    members = {"PKG-INFO": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", **files}
    path = directory / f"{name}-{version}.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for member, text in members.items():
            entry = tarfile.TarInfo(f"{name}-{version}/{member}")
            entry.size = len(text.encode())
            archive.addfile(entry, io.BytesIO(text.encode()))
    return path


def greeter(directory: Path, version: str = "1.0") -> Path:
    """A package with a module, data, a console script, and a script of its own that prints its docstring."""
    return write_wheel(
        directory,
        "greeter",
        version,
        {
            "greeter/__init__.py": GREET + f'VERSION = "{version}"\n',
            "greeter/words.txt": "good morning\n",
            f"greeter-{version}.data/scripts/greet-help": HELP,
            f"greeter-{version}.data/data/share/greeter/card.txt": "a card\n",
            "greeter.pth": "import sys; sys.greeter_was_here = True\n",
        },
        scripts={"greet": "greeter:main"},
    )


def needy(directory: Path, version: str = "1.0", needs: str = "greeter>=1") -> Path:
    """A package that needs ``greeter``."""
    return write_wheel(directory, "needy", version, {"needy.py": "import greeter\n"}, requires=(needs,))
