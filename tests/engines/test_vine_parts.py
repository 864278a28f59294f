"""Environments in parts, as TaskVine is given them: what is shared, whose files they are, and what the cache keeps."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from poncho_wq import environment
from poncho_wq.cache import Cache
from poncho_wq.caching import admin
from poncho_wq.engines import vine_parts
from poncho_wq.engines.vine_parts import ship_in_parts
from poncho_wq.prepare import Environment


@pytest.fixture
def two(shared_cache: Path) -> tuple[Environment, Environment]:
    """Two environments that differ in a variable alone, which is in the layer that we add."""
    one, other = (environment({"env": {"WORD": word}}, cache_dir=shared_cache) for word in ("one", "two"))
    vine_parts._forget()
    return one, other


def content(files: tuple[tuple[str, str], ...]) -> bytes:
    return b"".join(Path(path).read_bytes() for path, _ in files)


def test_the_parts_are_the_tarball(two: tuple[Environment, Environment]) -> None:
    one, other = two
    first, second = ship_in_parts(one.tarball, one.identity), ship_in_parts(other.tarball, other.identity)
    for env, shipment in ((one, first), (other, second)):
        assert len(shipment.files) > 2
        assert content(shipment.files) == env.tarball.read_bytes()
        assert shipment.size == env.size
    changed = set(second.files) - set(first.files)
    assert len(changed) == 2, "the manifest, and what we add"
    assert first.shared == 0
    assert second.shared == second.size - sum(os.path.getsize(path) for path, _ in changed)
    assert ship_in_parts(one.tarball, one.identity) is first


def test_large_parts_are_the_cache_s_own_files(two: tuple[Environment, Environment], shared_cache: Path) -> None:
    one, _ = two
    layers = {os.stat(path).st_ino for path in (Cache(shared_cache).home / "layers").iterdir()}
    files = [os.stat(path) for path, _ in ship_in_parts(one.tarball, one.identity).files]
    own = sum(each.st_size for each in files if each.st_ino in layers)
    assert own > 0.8 * one.size


def test_a_copy_whose_layers_are_in_no_cache_goes_as_one_file(
    two: tuple[Environment, Environment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PONCHO_CACHE_DIR", str(tmp_path / "empty"))
    copy = tmp_path / "env.tar.gz"
    shutil.copyfile(two[0].tarball, copy)
    ((path, name),) = ship_in_parts(copy, two[0].identity).files
    assert name.startswith("poncho-env-")
    assert os.path.samefile(path, copy)


def test_a_copy_whose_layers_are_in_the_cache_goes_in_parts(
    two: tuple[Environment, Environment], shared_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PONCHO_CACHE_DIR", str(shared_cache))
    copy = tmp_path / "env.tar.gz"
    shutil.copyfile(two[0].tarball, copy)
    assert content(ship_in_parts(copy, two[0].identity).files) == copy.read_bytes()


@pytest.mark.parametrize("damage", ["missing", "short", "other"])
def test_a_layer_that_is_not_what_it_was_is_not_sent(
    two: tuple[Environment, Environment], shared_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    damage: str,
) -> None:  # fmt: skip
    own = tmp_path / "cache"
    monkeypatch.setenv("PONCHO_CACHE_DIR", str(own))
    where = two[0].tarball.relative_to(Cache(shared_cache).home)
    tarball = Cache(own).home / where
    tarball.parent.mkdir(parents=True)
    shutil.copyfile(two[0].tarball, tarball)
    shutil.copytree(Cache(shared_cache).home / "layers", Cache(own).home / "layers")
    env = dataclasses.replace(two[0], tarball=tarball)
    largest = max((Cache(own).home / "layers").iterdir(), key=lambda path: path.stat().st_size)
    data = largest.read_bytes()
    assert len(ship_in_parts(tarball, env.identity).files) > 2
    vine_parts._forget()
    if damage == "missing":
        largest.unlink()
    else:
        largest.unlink()  # not in place: what was shipped is a link to it
        largest.write_bytes(data[:-1] if damage == "short" else data[:-8] + bytes(8))
    assert content(ship_in_parts(tarball, env.identity).files) == tarball.read_bytes()


def test_layers_of_a_superseded_environment_in_use_stay(
    tmp_path: Path, shared_cache: Path, two: tuple[Environment, Environment]
) -> None:
    """Where a part cannot be a hard link it is a symbolic one: its layer must not go while a task may want it."""
    root = tmp_path / "cache"
    first = environment({"env": {"WORD": "one"}}, cache_dir=root)
    cache = Cache(root)
    (listed,) = admin.scan_with(cache, admin.inuse.Claims(cache.home, writable=False))
    changed = tmp_path / "changed.tar.gz"
    shutil.copyfile(two[1].tarball, changed)

    def make(work: Path) -> Any:
        from poncho_wq.manifest import read_manifest
        from poncho_wq.pack import Packed

        manifest = read_manifest(changed)
        assert manifest is not None
        shutil.copyfile(changed, work / "env.tar.gz")
        return Packed(
            path=work / "env.tar.gz", identity=manifest.identity, size=manifest.size, python=manifest.python,
            glibc=manifest.glibc, platform=manifest.platform, layers=manifest.layers,
        )  # fmt: skip

    cache.build_once(listed.spec_hash, make, refresh=True)
    admin.collect(cache)
    assert first.tarball.exists(), "in use by this process"
    assert all((cache.home / "layers" / f"{digest}.gz").exists() for digest in listed.layers)
