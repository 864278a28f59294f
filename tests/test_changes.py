"""One lock after another on one cache: each time the very bytes that a build with nothing cached gives.

A package's layer is taken from the cache where it is known, whatever was built before.  These tests change locks at
random: upgrades, downgrades, what is added and removed, a file that becomes a directory or a link, modes.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from poncho_wq import environment
from poncho_wq.build import FileGroup, Prefix
from poncho_wq.manifest import Manifest, read_manifest
from poncho_wq.pack import Packed, pack
from poncho_wq.packing import parts, planning
from poncho_wq.packing.layers import LayerStore
from poncho_wq.packing.parts import Parts
from tests import prefixes, wheelhouse
from tests.prefixes import NOTHING, SITE

LARGE = 5_000
NAMES = ("alpha", "beta", "gamma", "delta", "six", "joblib", "big-one", "big-two")

# What is installed: version of each package that is.
locks = st.dictionaries(st.sampled_from(NAMES), st.integers(1, 5), max_size=len(NAMES))


def put_version(root: Path, name: str, version: int) -> FileGroup:
    """A package whose files differ from version to version in every way that files can; 5 from 1 by a mode alone."""
    mode = 0o755 if version == 5 else 0o644
    version = 1 if version == 5 else version
    module = name.replace("-", "_")
    base = f"{SITE}/{module}"
    info = f"{SITE}/{module}-{version}.dist-info/METADATA"
    files = [f"{base}/__init__.py", f"{base}/same.py", info]
    prefixes.put(root, files[0], prefixes.module(version + len(name)))
    prefixes.put(root, files[1], prefixes.module(len(name)))
    prefixes.put(root, info, f"Name: {name}\nVersion: {version}\n")
    kind = f"{base}/thing"
    if version == 1:
        prefixes.put(root, kind, "a file", mode=mode)
        files.append(kind)
    elif version == 2:
        prefixes.put(root, kind, "a file", mode=0o755)
        os.link(root / kind, root / base / "other-name")
        files += [kind, f"{base}/other-name"]
    elif version == 3:
        prefixes.put(root, f"{kind}/inside.py", prefixes.module(3))
        (root / kind / "empty").mkdir()
        files += [f"{kind}/inside.py", f"{kind}/empty/"]
    else:
        (root / kind).symlink_to("same.py")
        files.append(kind)
    if name.startswith("big"):
        prefixes.put(root, f"{base}/data.bin", bytes(range(256)) * (LARGE // 128 + version))
        files.append(f"{base}/data.bin")
    return FileGroup(name=name, version=str(version), kind="pip", files=tuple(sorted(files)))


def built(root: Path, lock: Mapping[str, int]) -> Prefix:
    interpreter = prefixes.group("python", prefixes.put_interpreter(root), kind="interpreter")
    return prefixes.prefix(root, interpreter, *(put_version(root, name, lock[name]) for name in sorted(lock)))


def packed(where: Path, lock: Mapping[str, int], store: Path) -> Packed:
    """The tarball of ``lock``, with what tells the lock among the files that we add."""
    where.mkdir()
    runtime = {**prefixes.RUNTIME, "poncho/lock.json": (0o644, repr(sorted(lock.items())).encode())}
    return pack(
        built(where / "prefix", lock), spec=NOTHING, lock=NOTHING, store=LayerStore(store),
        output=where / "env.tar.gz", runtime=runtime,
    )  # fmt: skip


def manifest_of(made: Packed) -> Manifest:
    manifest = read_manifest(made.path)
    assert manifest is not None
    return manifest


def check(history: list[dict[str, int]], work: Path) -> None:
    """Each of ``history`` in turn, with what was made before it and with nothing."""
    before: Manifest | None = None
    installed: dict[str, int] = {}
    for number, lock in enumerate(history):
        warm = packed(work / f"warm {number}", lock, work / "store")
        cold = packed(work / f"cold-{number}", lock, work / f"store {number}")
        assert warm.path.read_bytes() == cold.path.read_bytes()
        after = manifest_of(warm)
        found = Parts.of(after)
        assert found is not None
        data = warm.path.read_bytes()
        assert sum(part.length for part in found.parts) == len(data)
        if before is not None:
            old = Parts.of(before)
            assert old is not None
            changed = {name for name in {*lock, *installed} if lock.get(name) != installed.get(name)}
            buckets = {planning.bucket_of(name) for name in changed}
            for part in found.beyond(old.names()):
                # The first part, the last, a large package that has changed, or a bucket that has lost or got one.
                first = next(iter(part.layers), "")
                assert (
                    part.layers in ((), (parts.OWN,))
                    or (len(part.layers) == 1 and first.rpartition("-")[0] in changed)
                    or parts.layer_bucket(first) in buckets
                )
        before, installed = after, lock


@pytest.fixture
def small_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    """What counts as large, and as worth it, is so for packages of a few kilobytes."""
    monkeypatch.setattr(parts, "WORTH", 0)
    monkeypatch.setattr(parts, "ALONE", LARGE)
    monkeypatch.setattr(planning, "OWN_LAYER", LARGE)


# Without shrinking: one example takes as long as hundreds of those that compute only.
_usual = settings(
    max_examples=4, deadline=None, phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
_many = settings(_usual, max_examples=100)


@_usual
@given(st.lists(locks, min_size=2, max_size=3))
def test_random_changes_give_the_bytes_of_a_complete_build(small_scale: None, history: list[dict[str, int]]) -> None:
    with tempfile.TemporaryDirectory() as work:
        check(history, Path(work))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@_many
@given(st.lists(locks, min_size=2, max_size=5))
def test_many_random_changes(small_scale: None, history: list[dict[str, int]]) -> None:
    with tempfile.TemporaryDirectory() as work:
        check(history, Path(work))


def test_a_file_that_becomes_a_directory_a_link_and_a_program(small_scale: None, tmp_path: Path) -> None:
    """Each kind of change, there and back, with a neighbour in the same bucket that comes and goes."""
    check([{"alpha": n} for n in (1, 5, 3, 4, 2, 1)] + [{"alpha": 1, "big-one": 1}, {"big-one": 2}, {}], tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_changes_by_the_real_installer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wheels, installed by uv around a copied interpreter: a cache that has seen all before, and one that has not."""
    wheels = tmp_path / "wheels"
    for version in ("1.0", "1.1", "2.0"):
        wheelhouse.greeter(wheels, version)
        files = {"thing.py": f"VALUE = '{version}'\n"} if version != "1.1" else {"thing/__init__.py": "VALUE = 1\n"}
        wheelhouse.write_wheel(wheels, "thing", version, files)
    monkeypatch.setenv("UV_FIND_LINKS", str(wheels))
    monkeypatch.setenv("UV_NO_INDEX", "1")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv"))
    history = [
        ["greeter==1.0", "thing==1.0"], ["greeter==1.1", "thing==1.0"], ["greeter==1.1", "thing==1.1"], ["thing==1.1"],
        ["greeter==2.0", "thing==2.0"], ["greeter==1.0", "thing==1.1"], ["greeter==2.0"], [], ["thing==2.0"],
        ["greeter==1.1", "thing==2.0"],
    ]  # fmt: skip
    sent = []
    before = None
    for number, pins in enumerate(history):
        warm = environment({"pip": pins}, cache_dir=tmp_path / "cache")
        if number % 3 == 2 or number == len(history) - 1:
            cold = environment({"pip": pins}, cache_dir=tmp_path / f"empty {number}")
            assert warm.tarball.read_bytes() == cold.tarball.read_bytes()
            shutil.rmtree(tmp_path / f"empty {number}")
        manifest = read_manifest(warm.tarball)
        assert manifest is not None
        found = Parts.of(manifest)
        assert found is not None
        if before is not None:
            sent.append(sum(part.length for part in found.beyond(before.names())) / found.size)
        before = found
    assert max(sent) < 0.03
