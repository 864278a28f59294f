"""Locks: what is written, what they build again, and what they refuse."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poncho_wq.build.conda import CondaBuilder
from poncho_wq.cli.create import main as create
from poncho_wq.cli.env import main as env
from poncho_wq.errors import BuildError, PonchoError, SpecError
from poncho_wq.lock import Lock
from poncho_wq.lockfile import LockFile, read_lockfile
from poncho_wq.packing.conda_package import CondaPackage
from poncho_wq.prepare import environment, lock_environment
from poncho_wq.spec import EnvSpec
from tests.conda.channel import FOREIGN, FULL
from tests.conda.conftest import Channels
from tests.conda.packages import Package, index


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def spec_file(channels: Channels, tmp_path: Path) -> Path:
    path = tmp_path / "spec.json"
    path.write_text(channels.spec("prefixed", "activated", pip=["packaging"]).to_json())
    return path


def test_built_twice_on_clean_caches_to_the_same_bytes(
    spec_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert env(["lock", str(spec_file), "--cache-dir", str(tmp_path / "one"), "-q"]) == 0
    text = capsys.readouterr().out
    lock = tmp_path / "poncho.lock"
    lock.write_text(text)
    for cache in ("one", "two"):
        words = ["--locked", str(lock), "--require-locked", str(tmp_path / f"{cache}.tar.gz")]
        assert create([*words, "-q", "--cache-dir", str(tmp_path / cache)]) == 0
    assert sha256(tmp_path / "one.tar.gz") == sha256(tmp_path / "two.tar.gz")
    assert env(["lock", str(spec_file), "--cache-dir", str(tmp_path / "three"), "-q"]) == 0
    assert capsys.readouterr().out == text, "a lock depends on no cache"


def test_a_lock_outlives_newer_versions(channels: Channels, channel_of_one: Path, conda_root: Path) -> None:
    Package(name="mine", version="1", files={"share/mine": b"one"}).write(channel_of_one)
    spec = channels.spec(f"{index(channel_of_one)}::mine")
    locked = lock_environment(spec, cache_dir=conda_root)
    before = environment(spec, cache_dir=conda_root, locked=locked)
    Package(name="mine", version="2", files={"share/mine": b"two"}).write(channel_of_one)
    index(channel_of_one)
    newer = environment(spec, cache_dir=conda_root)
    again = environment(spec, cache_dir=conda_root, locked=locked, refresh=True)
    assert before.identity == again.identity != newer.identity
    assert before.spec_hash == newer.spec_hash
    assert environment(spec, cache_dir=conda_root, locked=locked).cached


def test_every_build_keeps_its_lock_beside_the_tarball(channels: Channels, conda_root: Path) -> None:
    spec = channels.spec("prefixed")
    made = environment(spec, cache_dir=conda_root)
    kept = read_lockfile(made.tarball.with_name("poncho.lock"))
    assert kept.spec == spec
    assert environment(spec, cache_dir=conda_root, locked=kept).identity == made.identity


def test_what_a_lock_says_of_a_package(channels: Channels, conda_root: Path) -> None:
    lock = lock_environment(channels.spec("tiny"), cache_dir=conda_root).lock
    tiny = json.loads(lock.to_json())["conda"][1]
    file = channels.root / "main" / "noarch" / "tiny-1.1-py_1.conda"
    assert {key: tiny[key] for key in ("name", "version", "build", "channel", "subdir", "file", "sha256")} == {
        "name": "tiny", "version": "1.1", "build": "py_1", "channel": channels.main, "subdir": "noarch",
        "file": file.name, "sha256": sha256(file),
    }  # fmt: skip
    assert lock.python == FULL
    assert "indexed_timestamp" not in lock.to_json()


def test_it_says_nothing_of_this_machine(channels: Channels, conda_root: Path) -> None:
    text = lock_environment(channels.spec("tiny", pip=["packaging"]), cache_dir=conda_root).to_json()
    assert str(conda_root) not in text.replace(channels.main, "").replace(channels.other, "")


def test_of_another_specification(channels: Channels, conda_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    locked = lock_environment(channels.spec("tiny"), cache_dir=conda_root)
    with pytest.raises(BuildError, match="another specification"):
        environment(channels.spec("choice"), cache_dir=conda_root, locked=locked)


def test_of_the_same_specification_in_another_order(channels: Channels, conda_root: Path) -> None:
    locked = lock_environment(channels.spec("tiny", "activated"), cache_dir=conda_root)
    environment(channels.spec("activated", "tiny"), cache_dir=conda_root, locked=locked)


def test_required_and_not_given(spec_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert create([str(spec_file), str(tmp_path / "out.tar.gz"), "--require-locked", "-q"]) == 1
    assert "poncho-wq env lock" in capsys.readouterr().err
    assert not (tmp_path / "out.tar.gz").exists()


def test_required_and_incomplete(channels: Channels, conda_root: Path) -> None:
    locked = lock_environment(channels.spec("tiny"), cache_dir=conda_root)
    conda = tuple(replace(each, sha256=None) if each.name == "tiny" else each for each in locked.lock.conda)
    partly = replace(locked, lock=replace(locked.lock, conda=conda))
    with pytest.raises(BuildError, match="no digest for tiny"):
        environment(channels.spec("tiny"), cache_dir=conda_root, locked=partly, require_locked=True)


def test_offline_says_what_is_missing(channels: Channels, conda_root: Path, tmp_path: Path) -> None:
    """The same packages, from a channel that is not on this machine."""
    lock = CondaBuilder(cache_root=conda_root).lock(channels.spec("tiny"), lambda _: None)
    conda = tuple(replace(each, channel="https://conda.example.org/main") for each in lock.conda)
    spec = EnvSpec.from_dict({"conda": {"channels": ["https://conda.example.org/main"], "packages": ["tiny"]}})
    locked = LockFile(spec=spec, lock=replace(lock, conda=conda))
    with pytest.raises(PonchoError, match=r"not in the cache.*tiny-1\.1-py_1\.conda"):
        environment(spec, cache_dir=tmp_path, locked=locked, offline=True)


def test_offline_from_the_package_cache(channels: Channels, conda_root: Path, tmp_path: Path) -> None:
    """What was downloaded once is enough, also when the channel is out of reach."""
    own = tmp_path / "own"
    shutil.copytree(channels.root / "main", own, copy_function=os.link)
    spec = EnvSpec.from_dict({"conda": {"channels": [own.as_uri()], "packages": ["tiny"]}})
    locked = lock_environment(spec, cache_dir=conda_root)
    first = environment(spec, cache_dir=conda_root, locked=locked)
    own.rename(tmp_path / "hidden")
    again = environment(spec, cache_dir=conda_root, locked=locked, offline=True, refresh=True)
    assert again.identity == first.identity


def test_for_another_platform(channels: Channels, conda_root: Path) -> None:
    locked = lock_environment(channels.spec("tiny"), cache_dir=conda_root, platform=FOREIGN)
    made = environment(channels.spec("tiny"), cache_dir=conda_root, locked=locked, platform=FOREIGN)
    assert made.platform == FOREIGN
    with pytest.raises(BuildError, match=f"--platform {FOREIGN}"):
        environment(channels.spec("tiny"), cache_dir=conda_root, locked=locked)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"poncho-lock": 2}', '{"poncho-lock": 1, "spec": {"pip": 3}}'])
def test_files_that_are_no_lock(text: str) -> None:
    with pytest.raises(SpecError):
        LockFile.from_json(text, source="poncho.lock")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="cannot be read"):
        read_lockfile(tmp_path / "none")


words = st.text(st.sampled_from("abz019._-"), min_size=1, max_size=8)
json_values = st.recursive(st.none() | st.booleans() | st.integers() | words, lambda inner: st.lists(inner, max_size=3))
packages = st.builds(
    CondaPackage,
    name=words, version=words, build=words, channel=words, subdir=st.sampled_from(["noarch", "linux-64"]),
    file=words.map(lambda word: f"{word}.conda"), sha256=st.none() | st.just("0f" * 32),
    record=st.dictionaries(words, json_values, max_size=3).map(lambda record: json.dumps(record, sort_keys=True)),
)  # fmt: skip
locks = st.builds(
    Lock, python=words, interpreter=st.none() | words, platform=words, packages=st.just(()),
    conda=st.lists(packages, max_size=3).map(tuple),
)  # fmt: skip


@given(lock=locks)
def test_reading_gives_back_what_was_written(lock: Lock) -> None:
    assert Lock.from_json(lock.to_json()) == lock


@given(document=st.recursive(json_values, lambda inner: st.dictionaries(words, inner, max_size=4)), key=words)
def test_anything_else_is_an_error_of_ours(document: object, key: str) -> None:
    for wrong in (document, {"name": document}, {"record": {}, key: document}):
        with pytest.raises(BuildError):
            CondaPackage.from_dict(wrong, "lock: conda[0]")


@pytest.mark.parametrize("file", ["../x.conda", "a/b.conda", ".."])
def test_a_file_name_that_leads_elsewhere(file: str) -> None:
    good = CondaPackage(
        name="a", version="1", build="0", channel="c", subdir="noarch", file="a.conda", sha256=None, record="{}"
    )
    with pytest.raises(BuildError, match="is not the name of a file"):
        CondaPackage.from_dict({**good.to_dict(), "file": file}, "lock: conda[0]")
