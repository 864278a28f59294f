"""The linked prefix: complete, the same everywhere, and silent about where it was made."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from poncho_wq.build import Prefix
from poncho_wq.build.conda import CondaBuilder
from poncho_wq.build.host import list_files
from poncho_wq.build.relocation import PLACEHOLDER
from poncho_wq.errors import BuildError, FetchError, SolveError
from poncho_wq.lock import Lock
from poncho_wq.progress import Progress
from tests.conda.channel import FOREIGN, FULL, MINOR
from tests.conda.conftest import EVERYTHING, Channels
from tests.conda.packages import OLD_PLACEHOLDER, Package, index
from tests.conda.packages import PLACEHOLDER as LONG


def quiet(_: object) -> None:
    pass


def build(builder: CondaBuilder, channels: Channels, prefix: Path, *packages: str, **more: object) -> Prefix:
    spec = channels.spec(*packages, **more)
    return builder.build(spec, builder.lock(spec, quiet), prefix, quiet)


@pytest.fixture(scope="module")
def prefix(channels: Channels, conda_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Prefix:
    where = tmp_path_factory.mktemp("where") / "it-is-built"
    return build(CondaBuilder(cache_root=conda_root), channels, where, *EVERYTHING, "oldprefix")


def test_every_file_is_in_one_group(prefix: Prefix) -> None:
    grouped = [path for group in prefix.groups for path in group.files]
    assert sorted(grouped) == sorted(set(grouped)) == list_files(prefix.path)
    names = {group.name: group for group in prefix.groups}
    assert f"lib/python{MINOR}/site-packages/numpy/__init__.py" in names["numpy"].files
    assert f"bin/python{MINOR}" in names["python"].files
    assert f"lib/python{MINOR}/site-packages/tiny.py" in names["tiny"].files
    assert "bin/tiny" in names["tiny"].files
    assert {group.kind for group in prefix.groups} == {"conda", "other"}


def test_what_it_says_of_itself(prefix: Prefix) -> None:
    assert prefix.python == FULL
    assert prefix.glibc is not None
    assert prefix.placeholder == PLACEHOLDER


def test_nothing_names_this_machine(prefix: Prefix, conda_root: Path) -> None:
    needles = [os.fsencode(part) for part in (prefix.path, conda_root)]
    for name in list_files(prefix.path):
        path = prefix.path / name
        if path.is_file() and not path.is_symlink():
            data = path.read_bytes()
            assert not any(needle in data for needle in needles), name


def test_documents_of_conda_stay_useful(prefix: Prefix) -> None:
    document = json.loads((prefix.path / "conda-meta" / "tiny-1.1-py_1.json").read_text())
    assert document["name"] == "tiny"
    assert document["url"] == "file:///main/noarch/tiny-1.1-py_1.conda"
    assert f"lib/python{MINOR}/site-packages/tiny.py" in document["files"]
    assert (prefix.path / "conda-meta" / "history").exists()


def test_every_placeholder_is_known(prefix: Prefix) -> None:
    known = {each.path: each for each in prefix.relocations}
    for name in list_files(prefix.path):
        path = prefix.path / name
        # conda's documents tell what the packages had
        if path.is_file() and not path.is_symlink() and path.parent.name != "conda-meta":
            data = path.read_bytes()
            assert LONG.encode() not in data
            assert OLD_PLACEHOLDER.encode() not in data
            count = data.count(PLACEHOLDER.encode())
            if name in known and known[name].kind == "text":
                assert len(known[name].places) == count
            else:
                assert bool(count) == (name in known), name
    assert known["share/prefixed/data.bin"].kind == "binary"
    assert known["share/prefixed/data.bin"].places[0] == (5, len(LONG) + len("/lib/one"))
    assert len(known["share/prefixed/data.bin"].places) == 4, "the third text has two"


def test_packages_that_were_built_for_short_prefixes_are_named(
    prefix: Prefix, builder: CondaBuilder, channels: Channels, tmp_path: Path
) -> None:
    said: list[Progress] = []
    spec = channels.spec("oldprefix", "prefixed")
    builder.build(spec, builder.lock(spec, quiet), tmp_path / "p", said.append)
    notes = [each.detail for each in said if each.stage == "note"]
    assert len(notes) == 1
    assert notes[0].startswith("oldprefix can be unpacked into directories of at most 32 characters only")


def test_the_same_wherever_it_is_linked(
    prefix: Prefix, builder: CondaBuilder, channels: Channels, tmp_path: Path
) -> None:
    again = build(builder, channels, tmp_path / "another place", *EVERYTHING, "oldprefix")
    assert (again.groups, again.relocations) == (prefix.groups, prefix.relocations)
    for name in list_files(prefix.path):
        one, two = prefix.path / name, again.path / name
        assert one.is_symlink() == two.is_symlink()
        if one.is_symlink():
            assert one.readlink() == two.readlink()
        elif one.is_file():
            assert one.read_bytes() == two.read_bytes(), name
            assert one.stat().st_mode & 0o100 == two.stat().st_mode & 0o100, name


def test_its_python_runs_before_it_is_relocated(prefix: Prefix) -> None:
    code = "import numpy, sys; print(sys.prefix, numpy.arange(3).sum())"
    argv = [prefix.path / "bin" / "python3", "-I", "-B", "-c", code]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(prefix.path), "3"]


# pip beside conda


def test_what_pip_adds(builder: CondaBuilder, channels: Channels, tmp_path: Path) -> None:
    made = build(builder, channels, tmp_path / "p", "numpy", "tiny", pip=["packaging", "tiny>=1.0", "numpy"])
    pip = {group.name: group for group in made.groups if group.kind == "pip"}
    assert list(pip) == ["packaging"], "numpy and tiny are there"
    grouped = [path for group in made.groups for path in group.files]
    assert sorted(grouped) == sorted(set(grouped)) == list_files(made.path)
    argv = [made.path / "bin" / "python3", "-I", "-B", "-c", "import packaging, numpy; print(packaging.__file__)"]
    assert str(made.path) in subprocess.run(argv, capture_output=True, text=True, check=True).stdout


def test_pip_may_not_replace_what_conda_brings(builder: CondaBuilder, channels: Channels) -> None:
    with pytest.raises(SolveError, match=r"conda section brings six 1\.15\.0, which pip may not replace"):
        builder.lock(channels.spec("six", pip=["six>=1.16"]), quiet)


def test_a_file_that_both_have(
    builder: CondaBuilder, channels: Channels, channel_of_one: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A conda package with a module and no metadata that pip could see."""
    site = f"lib/python{MINOR}/site-packages"
    Package(name="hidden", version="1", files={f"{site}/packaging/__init__.py": b""}).write(channel_of_one)
    spec = channels.spec("tiny", f"{index(channel_of_one)}::hidden", pip=["packaging"])
    lock = builder.lock(spec, quiet)
    with pytest.raises(BuildError, match=r"replaced .*packaging/__init__\.py, a file of the conda package hidden"):
        builder.build(spec, lock, tmp_path / "p", quiet)


# What must not be


def test_a_package_that_is_not_the_locked_one(
    channels: Channels, channel_of_one: Path, tmp_path: Path, conda_root: Path
) -> None:
    Package(name="mine", version="1", files={"share/mine": b"one"}).write(channel_of_one)
    spec = channels.spec(f"{index(channel_of_one)}::mine")
    lock = CondaBuilder(cache_root=conda_root).lock(spec, quiet)
    Package(name="mine", version="1", files={"share/mine": b"two"}).write(channel_of_one)
    fresh = CondaBuilder(cache_root=tmp_path / "cache")
    with pytest.raises(BuildError, match="is not the package that was locked"):
        fresh.build(spec, lock, tmp_path / "p", quiet)


def test_a_package_that_is_gone(channels: Channels, channel_of_one: Path, tmp_path: Path) -> None:
    file = Package(name="mine", version="1", files={"share/mine": b"one"}).write(channel_of_one)
    spec = channels.spec(f"{index(channel_of_one)}::mine")
    builder = CondaBuilder(cache_root=tmp_path / "cache")
    lock = builder.lock(spec, quiet)
    file.unlink()
    with pytest.raises(FetchError, match="mine-1-0"):
        builder.build(spec, lock, tmp_path / "p", quiet)


def test_another_version_with_the_same_name_in_the_cache(
    channels: Channels, channel_of_one: Path, tmp_path: Path
) -> None:
    """A rebuilt package under the same file name: the cache must not serve the old one."""
    builder = CondaBuilder(cache_root=tmp_path / "cache")
    for content in (b"one", b"two"):
        Package(name="mine", version="1", files={"share/mine": content}).write(channel_of_one)
        made = build(builder, channels, tmp_path / content.decode(), f"{index(channel_of_one)}::mine")
        assert (made.path / "share" / "mine").read_bytes() == content


def test_two_packages_with_one_file(
    channels: Channels, channel_of_one: Path, builder: CondaBuilder, tmp_path: Path
) -> None:
    for name in ("first", "second"):
        Package(name=name, version="1", files={"share/same": name.encode()}).write(channel_of_one)
    url = index(channel_of_one)
    made = build(builder, channels, tmp_path / "p", f"{url}::first", f"{url}::second")
    grouped = [path for group in made.groups for path in group.files]
    assert sorted(grouped) == sorted(set(grouped)) == list_files(made.path)


def test_scripts_of_packages_are_not_run(
    channels: Channels, channel_of_one: Path, builder: CondaBuilder, tmp_path: Path
) -> None:
    script = b"#!/bin/sh\ntouch $PREFIX/ran\n"
    package = Package(
        name="linker", version="1", files={"bin/.linker-post-link.sh": script},
        executable=frozenset({"bin/.linker-post-link.sh"}),
    )  # fmt: skip
    package.write(channel_of_one)
    made = build(builder, channels, tmp_path / "p", f"{index(channel_of_one)}::linker")
    assert not (made.path / "ran").exists()


def test_the_lock_of_another_specification(builder: CondaBuilder, channels: Channels, tmp_path: Path) -> None:
    other = Lock(python=FULL, interpreter=None, platform="linux-64", packages=())
    with pytest.raises(BuildError, match="no conda packages"):
        builder.build(channels.spec("tiny"), other, tmp_path / "p", quiet)


def test_the_lock_of_another_platform(builder: CondaBuilder, channels: Channels, tmp_path: Path) -> None:
    spec = channels.spec("tiny")
    lock = replace(builder.lock(spec, quiet), platform=FOREIGN)
    with pytest.raises(BuildError, match=f"--platform {FOREIGN}"):
        builder.build(spec, lock, tmp_path / "p", quiet)


def test_for_another_platform(channels: Channels, conda_root: Path, tmp_path: Path) -> None:
    made = build(CondaBuilder(cache_root=conda_root, platform=FOREIGN), channels, tmp_path / "p", "tiny")
    assert made.platform == FOREIGN
    assert (made.path / "bin" / f"python{MINOR}").read_bytes() == b"\x7fELF not really\n"
    assert (made.path / "lib" / f"python{MINOR}" / "site-packages" / "tiny.py").exists()


def test_a_full_disk_is_our_error(
    builder: CondaBuilder, channels: Channels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = channels.spec("tiny")
    lock = builder.lock(spec, quiet)
    (tmp_path / "file").touch()
    with pytest.raises(BuildError):
        builder.build(spec, lock, tmp_path / "file" / "p", quiet)


def test_offline_from_what_is_there(channels: Channels, conda_root: Path, tmp_path: Path) -> None:
    offline = CondaBuilder(cache_root=conda_root, offline=True)
    made = build(offline, channels, tmp_path / "p", "tiny")
    assert (made.path / "bin" / "tiny").exists()
    shutil.rmtree(made.path)
