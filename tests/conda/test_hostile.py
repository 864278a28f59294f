"""Packages of a channel that would write elsewhere: py-rattler unpacks them, and this holds it to what we rely on.

What a package's own scripts do is another matter: no post-link script is run, and all else runs in tasks.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from rattler.package_streaming import extract

from tests.conda.channel import SUBDIR
from tests.conda.packages import Link, Package


def unpack(tmp_path: Path, files: dict[str, bytes | Path | Link]) -> Path:
    package = Package(name="hostile", version="1.0", subdir=SUBDIR, files=files).write(tmp_path / "channel")
    target = tmp_path / "a" / "b" / "c" / "package"
    try:
        extract(package, target)
    except Exception as refused:
        print(refused)
    return target


def test_an_ordinary_one(tmp_path: Path) -> None:
    """So that the others show something."""
    target = unpack(tmp_path, {"share/fine": b"x", "share/link": Link("fine")})
    assert (target / "share/link").read_bytes() == b"x"


@pytest.mark.parametrize("name", ["../escaped", "../../escaped", "../../../escaped", "a/../../escaped", "ABSOLUTE"])
def test_a_name_that_leaves_the_package(tmp_path: Path, name: str) -> None:
    target = unpack(tmp_path, {"share/fine": b"x", name.replace("ABSOLUTE", str(tmp_path / "escaped")): b"escaped"})
    assert [path for path in tmp_path.rglob("escaped") if not path.is_relative_to(target)] == []


@pytest.mark.parametrize("link", ["OUTSIDE", "../../../../../outside"])
def test_a_file_through_a_link_of_the_package(tmp_path: Path, link: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    unpack(tmp_path, {"lib/l": Link(link.replace("OUTSIDE", str(outside))), "lib/l/x": b"escaped"})
    assert list(outside.iterdir()) == []
