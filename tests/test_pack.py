"""Packing: the same bytes everywhere, read by every tar, each layer made once, and errors that leave nothing behind."""

from __future__ import annotations

import dataclasses
import errno
import gzip
import hashlib
import importlib.util
import io
import json
import marshal
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from poncho_wq import pack
from poncho_wq.build import Prefix
from poncho_wq.errors import CacheError, PackError
from poncho_wq.manifest import read_manifest
from poncho_wq.pack import Packed
from poncho_wq.packing import layers, planning
from poncho_wq.packing.bytecode import Compiler
from poncho_wq.packing.layers import Entry, LayerStore
from poncho_wq.progress import Progress, silent
from poncho_wq.spec import EnvSpec
from tests import prefixes
from tests.prefixes import LIB, NOTHING, RUNTIME, SITE, VERSION

BUSYBOX = shutil.which("busybox")


def packed(where: Path, *, root: Path | None = None, store: Path | None = None, **more: object) -> Packed:
    """Pack the prefix `where/prefix` (made when it is not there) into `where/env.tar.gz`."""
    there = root or where / "prefix"
    prefix = prefixes.make_prefix(there)
    return pack.pack(
        prefix,
        spec=NOTHING,
        lock=NOTHING,
        store=LayerStore(store or where / "store"),
        output=where / "env.tar.gz",
        runtime=RUNTIME,
        **more,  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def tarball(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    return packed(tmp_path_factory.mktemp("once"))


def contents(root: Path) -> dict[str, tuple[str, int, bytes]]:
    """Everything below `root` but directories that are not empty: path → kind, mode, content or link text."""
    found = {}
    for folder, folders, files in os.walk(root):
        for name in files + folders:
            path = Path(folder, name)
            key = str(path.relative_to(root))
            if path.is_symlink():
                found[key] = ("link", 0, os.fsencode(path.readlink()))
            elif path.is_file():
                found[key] = ("file", path.stat().st_mode & 0o7777, path.read_bytes())
            elif not any(path.iterdir()):
                found[key] = ("directory", 0, b"")
    return found


def expected(root: Path) -> dict[str, tuple[str, int, bytes]]:
    """What a tarball of the prefix at `root` unpacks to, apart from what packing adds."""
    right = {}
    for path, (kind, mode, content) in contents(root).items():
        if "__pycache__" not in path:
            right[path] = (kind, (0o755 if mode & 0o100 else 0o644) if kind == "file" else 0, content)
    return right


# The same bytes

PACK_IN_A_PROCESS = """
import sys
from pathlib import Path
from tests.test_pack import packed
print(packed(Path(sys.argv[1]), root=Path(sys.argv[2]), threads=int(sys.argv[3])).identity)
"""


def test_same_bytes_whatever_the_folder_umask_time_zone_hash_seed_and_threads(tmp_path: Path) -> None:
    digests = set()
    for number, (umask, zone, seed, threads) in enumerate(
        [(0o022, "UTC", "0", 1), (0o077, "Asia/Tokyo", "1", 2), (0o000, "America/New_York", "random", 3)]
    ):
        where = tmp_path / f"{'x' * number * 20}{number}"
        where.mkdir()
        environment = {**os.environ, "TZ": zone, "PYTHONHASHSEED": seed, "LC_ALL": "C" if number else "C.UTF-8"}
        command = [sys.executable, "-c", PACK_IN_A_PROCESS, where, where / "deeper" / "prefix", str(threads)]
        subprocess.run(command, check=True, env=environment, umask=umask, stdout=subprocess.DEVNULL)
        digests.add(hashlib.sha256((where / "env.tar.gz").read_bytes()).hexdigest())
    assert len(digests) == 1


def test_times_and_the_order_of_groups_do_not_matter(tmp_path: Path, tarball: Packed) -> None:
    prefix = prefixes.make_prefix(tmp_path / "prefix")
    for path in (tmp_path / "prefix").rglob("*.py"):
        os.utime(path, (1, 1))
    again = pack.pack(
        prefixes.prefix(prefix.path, *reversed(prefix.groups)),
        spec=NOTHING,
        lock=NOTHING,
        store=LayerStore(tmp_path / "store"),
        output=tmp_path / "again.tar.gz",
        runtime=RUNTIME,
    )
    assert again.path.read_bytes() == tarball.path.read_bytes()


def test_nothing_in_it_names_the_machine(tarball: Packed) -> None:
    whole = gzip.decompress(tarball.path.read_bytes())
    launcher = f"bin/python{VERSION}"  # the made-up interpreter is a script that names the real one
    own = (tarball.path.parent / "prefix" / launcher).read_bytes()
    assert own in whole
    assert os.fsencode(tarball.path.parent) not in whole.replace(own, b"")
    with tarfile.open(tarball.path) as tar:
        for member in tar:
            assert (member.uid, member.gid, member.uname, member.gname) == (0, 0, "root", "root")
            assert (member.mtime, member.pax_headers) == (315532800, {})


def golden_prefix(root: Path) -> Prefix:
    """The same in every Python: the golden tarball was made of it."""
    prefixes.put(root, "bin/tool", b"#!/bin/sh\necho hello\n", mode=0o755)
    prefixes.put(root, "lib/python3.11/site-packages/alpha/__init__.py", "value = 1\n")
    prefixes.put(root, f"lib/{'d' * 120}/{'f' * 120}", "long")
    prefixes.put(root, "poncho/data/DATA/table.csv", "a,b\n1,2\n")
    (root / "bin/link").symlink_to("tool")
    (root / "share/hollow").mkdir(parents=True)
    os.link(root / "bin/tool", root / "bin/tool-2")
    return prefixes.prefix(
        root,
        prefixes.group("alpha", ("lib/python3.11/site-packages/alpha/__init__.py",)),
        prefixes.group(
            "rest",
            ("bin/link", "bin/tool", "bin/tool-2", f"lib/{'d' * 120}/{'f' * 120}", "share/hollow/"),
            kind="other",
        ),
        prefixes.group("DATA", ("poncho/data/DATA/table.csv",), kind="data", version=None),
        python=None,
        platform="linux-64",
        glibc="2.17",
    )


def test_golden_tarball(tmp_path: Path) -> None:
    golden = Path(__file__).parent / "golden" / "tarball" / "format-1.tar.gz"
    before = read_manifest(golden)
    done = pack.pack(
        golden_prefix(tmp_path / "prefix"),
        spec=NOTHING,
        lock=NOTHING,
        store=LayerStore(tmp_path / "store"),
        output=tmp_path / "env.tar.gz",
        runtime=RUNTIME,
    )
    after = read_manifest(done.path)
    assert before is not None
    assert after is not None
    # The compressor's next release may give other lengths; what the layers hold, and are called, is frozen.
    assert [(layer.digest, layer.unpacked, layer.name) for layer in after.layers] == [
        (layer.digest, layer.unpacked, layer.name) for layer in before.layers
    ]
    assert (after.identity, after.files, after.unpacked) == (before.identity, before.files, before.unpacked)
    assert gzip.decompress(golden.read_bytes())[-1024:] == b"\0" * 1024


# Every tar reads it


def by_gnu_tar(tarball: Packed, into: Path) -> None:
    subprocess.run(["tar", "-xf", tarball.path, "-C", into], check=True)


def by_busybox(tarball: Packed, into: Path) -> None:
    subprocess.run(["busybox", "tar", "-xzf", tarball.path, "-C", into], check=True)


def by_python(tarball: Packed, into: Path) -> None:
    with tarfile.open(tarball.path) as tar:
        tar.extractall(into, filter="fully_trusted")


def layers_by(*tar: str) -> Callable[[Packed, Path], None]:
    """Unpack layer by layer, all at the same time, as the wrapper does."""

    def unpack(tarball: Packed, into: Path) -> None:
        manifest = read_manifest(tarball.path)
        assert manifest is not None
        commands = []
        for layer in manifest.layers:
            start = manifest.member + layer.offset + 1
            script = f'tail -c +{start} "$1" | head -c {layer.length} | gzip -dc | {" ".join(tar)} -xf - -C "$2"'
            commands.append(["sh", "-c", script, "sh", str(tarball.path), str(into)])
        running = [subprocess.Popen(command) for command in commands]
        failed = [command for command, process in zip(commands, running, strict=True) if process.wait() != 0]
        # GNU tar gives up when somebody else makes a directory just when it is about to; the wrapper tries again, too.
        for command in failed:
            subprocess.run(command, check=True)
        (into / "poncho/manifest").write_text(manifest.render())
        (into / "poncho/manifest").chmod(0o644)

    return unpack


READERS = {
    "GNU tar": by_gnu_tar,
    "Python": by_python,
    "layers, GNU tar": layers_by("tar"),
    "busybox": by_busybox,
    "layers, busybox": layers_by("busybox", "tar"),
}


@pytest.mark.parametrize("reader", READERS)
def test_unpacks_to_the_prefix(reader: str, tarball: Packed, tmp_path: Path) -> None:
    if "busybox" in reader and BUSYBOX is None:
        pytest.skip("busybox is not installed")
    READERS[reader](tarball, tmp_path)
    got = contents(tmp_path)
    added = {path for path in got if "__pycache__" in path} | {"poncho/manifest", *RUNTIME}
    assert {path: value for path, value in got.items() if path not in added} == expected(tarball.path.parent / "prefix")
    for path, (mode, content) in RUNTIME.items():
        assert got[path] == ("file", mode, content)
    assert (tmp_path / "share/hardlink").samefile(tmp_path / "share/block")
    assert (tmp_path / "share/hardlink-far").stat().st_nlink == 2


def test_unpacks_under_a_strict_umask_as_an_ordinary_user(tarball: Packed, tmp_path: Path) -> None:
    # No directory entries: tar makes the parents, with the user's own umask, and can go on writing into them.
    command = ["tar", "-xzf", str(tarball.path), "-C", str(tmp_path)]
    subprocess.run(command, check=True, umask=0o077)
    assert (tmp_path / LIB).stat().st_mode & 0o7777 == 0o700
    assert (tmp_path / f"bin/python{VERSION}").stat().st_mode & 0o100


# What the manifest says


def test_the_manifest_is_right(tarball: Packed) -> None:
    whole = tarball.path.read_bytes()
    manifest = read_manifest(tarball.path)
    assert manifest is not None
    assert manifest.size == len(whole) == tarball.size
    assert manifest.identity == tarball.identity
    assert (manifest.python, manifest.glibc) == (prefixes.FULL_VERSION, "2.17")
    files = content = 0
    for layer in manifest.layers:
        start = manifest.member + layer.offset
        fragment = gzip.decompress(whole[start : start + layer.length])
        assert (len(fragment), hashlib.sha256(fragment).hexdigest()) == (layer.unpacked, layer.digest)
        with tarfile.open(fileobj=io.BytesIO(fragment + b"\0" * 1024)) as tar:
            members = tar.getmembers()
        assert [member.name for member in members] == sorted((m.name for m in members), key=os.fsencode)
        files += len(members)
        content += sum(member.size for member in members if member.isreg())
    assert (manifest.files, manifest.unpacked) == (files, content)
    names = [layer.name for layer in manifest.layers]
    assert names[0] == "gamma-1.0"
    assert names[-1] == "runtime"
    assert {"interpreter", "other", "data-DATA"} < set(names)


def test_what_upstream_reads_first_is_the_manifest(tarball: Packed) -> None:
    script = 'head -c 65536 "$1" | gzip -dc 2>/dev/null | tar -xO -f - poncho/manifest 2>/dev/null | head -n 1'
    shown = subprocess.run(["sh", "-c", script, "sh", tarball.path], check=True, capture_output=True)
    assert shown.stdout == b"poncho-manifest 1\n"


# Bytecode


def test_bytecode_is_made_for_what_compiles_and_never_checked(tarball: Packed, tmp_path: Path) -> None:
    by_python(tarball, tmp_path)
    tag = sys.implementation.cache_tag
    have = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.pyc")}
    assert f"{SITE}/beta/__pycache__/module_69.{tag}.pyc" in have
    assert f"{LIB}/__pycache__/latin.{tag}.pyc" in have
    assert f"{LIB}/__pycache__/empty_module.{tag}.pyc" in have
    # Nothing for what does not compile, lies elsewhere or is a test; and nothing that another interpreter left.
    assert not {
        path for path in have if "broken" in path or path.startswith("share") or "stale" in path or "tests" in path
    }
    for name in have:
        data = (tmp_path / name).read_bytes()
        source = tmp_path / importlib.util.source_from_cache(name)
        assert data[:4] == importlib.util.MAGIC_NUMBER
        assert data[4:8] == b"\1\0\0\0"  # PEP 552: by hash, not to be checked
        assert data[8:16] == importlib.util.source_hash(source.read_bytes())
        assert marshal.loads(data[16:]).co_filename == str(source.relative_to(tmp_path))
    # The import system takes the bytecode and never looks whether the source still fits it.
    (tmp_path / f"{SITE}/alpha/__init__.py").write_text("value = 'something else'\n")
    code = "import alpha; print(alpha.value, alpha.__file__)"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / SITE)}
    shown = subprocess.run([sys.executable, "-c", code], check=True, env=environment, capture_output=True, text=True)
    assert shown.stdout.split() == ["alpha", str(tmp_path / f"{SITE}/alpha/__init__.py")]


def test_bytecode_lies_in_the_layer_of_its_source(tarball: Packed) -> None:
    manifest = read_manifest(tarball.path)
    assert manifest is not None
    whole = tarball.path.read_bytes()
    for layer in manifest.layers:
        start = manifest.member + layer.offset
        fragment = gzip.decompress(whole[start : start + layer.length])
        with tarfile.open(fileobj=io.BytesIO(fragment + b"\0" * 1024)) as tar:
            names = set(tar.getnames())
        assert all(importlib.util.source_from_cache(name) in names for name in names if name.endswith(".pyc"))


def test_the_users_environment_does_not_reach_the_compiler(
    tmp_path: Path, tarball: Packed, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Every interpreter imports this one first, also without `site`.
    (tmp_path / "encodings.py").write_text("raise SystemExit('was imported')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PYTHONOPTIMIZE", "2")
    monkeypatch.setenv("PYTHONHASHSEED", "12345")
    again = packed(tmp_path)
    assert again.identity == tarball.identity


def test_an_environment_without_python_has_no_bytecode(tmp_path: Path) -> None:
    files = prefixes.put_package(tmp_path / "prefix", "alpha")
    prefix = prefixes.prefix(tmp_path / "prefix", prefixes.group("alpha", files), python=None, glibc=None)
    done = pack.pack(
        prefix, spec=NOTHING, lock=NOTHING, store=LayerStore(tmp_path), output=tmp_path / "env", runtime=RUNTIME
    )
    with tarfile.open(done.path) as tar:
        assert not [name for name in tar.getnames() if name.endswith(".pyc")]
    assert (done.python, done.glibc) == (None, None)


# Each layer once


def test_known_layers_are_neither_compiled_nor_compressed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = packed(tmp_path)
    shutil.rmtree(tmp_path / "prefix")

    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("a known layer was made again")

    monkeypatch.setattr(Compiler, "compile", never)
    monkeypatch.setattr(LayerStore, "make", never)
    bytes_of_first = first.path.read_bytes()
    second = packed(tmp_path)
    assert second.path.read_bytes() == bytes_of_first
    assert second.identity == first.identity


def test_a_changed_package_changes_its_layer_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prefix = prefixes.make_prefix(tmp_path / "prefix")
    made: list[str] = []
    make = LayerStore.make

    def counted(store: LayerStore, key: str, *rest: object) -> layers.Layer:
        made.append(key)
        return make(store, key, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(LayerStore, "make", counted)

    def go() -> Packed:
        return pack.pack(
            prefix, spec=NOTHING, lock=NOTHING, store=LayerStore(tmp_path), output=tmp_path / "env", runtime=RUNTIME
        )

    before = go()
    first = len(made)
    prefixes.put(tmp_path / "prefix", f"{SITE}/gamma/module_0.py", "changed = True\n")
    after = go()
    assert len(made) == first + 1
    changed = [a.name for a, b in zip(before.layers, after.layers, strict=True) if a.digest != b.digest]
    assert changed == ["gamma-1.0"]


def test_another_interpreter_gives_other_layers(tmp_path: Path) -> None:
    prefix = prefixes.make_prefix(tmp_path / "prefix")
    plans = [planning.Plan(name="x", entries=found.entries) for found in planning.scan(prefix)]

    def identity() -> str:
        digests = {
            entry.path: hashlib.sha256(Path(entry.content.path).read_bytes()).hexdigest()
            for plan in plans
            for entry in plan.entries
            if isinstance(entry.content, layers.OnDisk)
        }
        return pack.compiler_for(prefix.path, prefixes.FULL_VERSION, digests).identity

    before = identity()
    assert identity() == before
    launcher = tmp_path / f"prefix/bin/python{VERSION}"
    launcher.write_text(launcher.read_text() + "# another build of the same version\n")
    assert identity() != before


def test_progress_counts_bytes_up_to_the_total(tmp_path: Path) -> None:
    seen: list[Progress] = []
    packed(tmp_path, on_progress=seen.append)
    assert {step.stage for step in seen} == {"pack"}
    counts = [step.done or 0 for step in seen]
    assert counts == sorted(counts)
    assert counts[-1] == seen[-1].total
    assert seen[-1].unit == "bytes"
    seen.clear()
    shutil.rmtree(tmp_path / "prefix")
    packed(tmp_path, on_progress=seen.append)
    assert [step.done for step in seen] == [seen[0].total]


# Planning


def plan_names(tmp_path: Path, *groups: object) -> dict[str, str]:
    found = planning.scan(prefixes.prefix(tmp_path, *groups))  # type: ignore[arg-type]
    return {entry.path: plan.name for plan in planning.plan_layers(found) for entry in plan.entries}


def test_a_small_package_stays_in_its_bucket_when_its_version_changes(tmp_path: Path) -> None:
    files = prefixes.put_package(tmp_path, "alpha")
    layers_of = {
        plan_names(tmp_path, prefixes.group(name, files, version=version))[files[0]]
        for name, version in [("some.package", "1.0"), ("Some_Package", "2.0rc1"), ("some-package", None)]
    }
    assert len(layers_of) == 1
    assert next(iter(layers_of)).startswith("small-")


def test_a_large_package_has_its_own_layer_named_after_it(tmp_path: Path) -> None:
    files = prefixes.put_package(tmp_path, "gamma", payload=planning.OWN_LAYER)
    assert set(plan_names(tmp_path, prefixes.group("Gamma Ray!", files)).values()) == {"Gamma_Ray_-1.0"}


def test_a_huge_layer_is_cut_and_hard_links_stay_with_their_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "LARGEST", 1000)
    for number in range(9):
        prefixes.put(tmp_path, f"share/{number}", b"x" * 400)
    os.link(tmp_path / "share/0", tmp_path / "share/9")
    files = tuple(f"share/{number}" for number in range(10))
    found = planning.scan(prefixes.prefix(tmp_path, prefixes.group("wide", files, kind="other")))
    plans = {plan.name: plan for plan in planning.plan_layers(found)}
    assert sorted(plans) == [f"other.{number}" for number in range(1, 6)]
    assert all(plan.size <= 1000 for plan in plans.values())
    last = plans["other.1"].entries[-1]
    assert (last.path, last.kind, last.target, last.size) == ("share/9", "hardlink", "share/0", 0)


def test_a_hard_link_between_packages_becomes_a_file_in_each(tmp_path: Path) -> None:
    prefixes.put(tmp_path, "share/a", b"x" * 2_000_000)
    os.link(tmp_path / "share/a", tmp_path / "share/b")
    found = planning.scan(
        prefixes.prefix(tmp_path, prefixes.group("a", ("share/a",)), prefixes.group("b", ("share/b",)))
    )
    assert [entry.kind for plan in planning.plan_layers(found) for entry in plan.entries] == ["file", "file"]


# What cannot be packed


def test_refuses_what_no_worker_could_use(tmp_path: Path) -> None:
    def refusal(path: str, make: Callable[[Path], object], *more: str) -> str:
        root = tmp_path / str(len(list(tmp_path.iterdir())))
        (root / "share").mkdir(parents=True)
        make(root / path.rstrip("/"))
        with pytest.raises(PackError) as caught:
            planning.scan(prefixes.prefix(root, prefixes.group("pkg", (path, *more))))
        assert path.rstrip("/") in str(caught.value)
        assert "pkg" in str(caught.value)
        return str(caught.value)

    assert "a worker need not have" in refusal("share/x", lambda path: path.symlink_to("/etc/passwd"))
    assert "out of the prefix" in refusal("share/x", lambda path: path.symlink_to("../../x"))
    assert "out of the prefix" in refusal("share/x", lambda path: path.symlink_to("a/../../../x"))
    assert "missing" in refusal("share/x", lambda path: None)
    assert "neither a file nor a link" in refusal("share/x", os.mkfifo)
    assert "neither a file nor a link" in refusal("share/x", lambda path: path.mkdir())
    assert "not a directory" in refusal("share/x/", lambda path: path.write_text("x"))
    assert "not a directory" in refusal("share/x/", lambda path: path.symlink_to("."))
    assert "not a path inside" in refusal("share/../x", lambda path: None)


def test_refuses_a_file_of_two_packages_and_a_file_behind_a_link(tmp_path: Path) -> None:
    prefixes.put(tmp_path, "lib/x")
    (tmp_path / "lib64").symlink_to("lib")
    two = prefixes.prefix(tmp_path, prefixes.group("a", ("lib/x",)), prefixes.group("b", ("lib/x",)))
    with pytest.raises(PackError, match="lib/x: belongs to a and to b"):
        planning.scan(two)
    behind = prefixes.prefix(tmp_path, prefixes.group("a", ("lib64", "lib64/x")))
    with pytest.raises(PackError, match="lib64: is a symbolic link"):
        planning.scan(behind)


def test_refuses_a_prefix_whose_interpreter_is_missing(tmp_path: Path) -> None:
    files = prefixes.put_package(tmp_path, "alpha")
    with pytest.raises(PackError, match=rf"no bin/python{VERSION}"):
        pack.pack(
            prefixes.prefix(tmp_path, prefixes.group("alpha", files)),
            spec=NOTHING,
            lock=NOTHING,
            store=LayerStore(tmp_path / "store"),
            output=tmp_path / "env",
            runtime=RUNTIME,
        )


def test_an_interpreter_that_fails_is_an_error_with_its_words(tmp_path: Path) -> None:
    interpreter = prefixes.put_interpreter(tmp_path / "prefix")
    prefixes.put(
        tmp_path / "prefix", f"bin/python{VERSION}", "#!/bin/sh\necho libfoo is missing >&2\nexit 127\n", mode=0o755
    )
    with pytest.raises(PackError) as caught:
        pack.pack(
            prefixes.prefix(tmp_path / "prefix", prefixes.group("python", interpreter, kind="interpreter")),
            spec=NOTHING,
            lock=NOTHING,
            store=LayerStore(tmp_path / "store"),
            output=tmp_path / "env",
            runtime=RUNTIME,
        )
    assert "libfoo is missing" in caught.value.log
    assert list((tmp_path / "store/tmp").iterdir()) == [tmp_path / "store/tmp/.lock"]
    assert not (tmp_path / "env").exists()


@pytest.mark.parametrize("change", ["grow", "shrink", "touch"])
def test_a_file_that_changes_while_it_is_packed_never_gets_into_the_store(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = tmp_path / "prefix" / SITE / "gamma/data.bin"
    make = LayerStore.make

    def meanwhile(*args: object) -> layers.Layer:
        if change == "touch":
            os.utime(victim, (1, 1))
        else:
            victim.write_bytes(b"y" * ((1 << 21) + 4096 * (1 if change == "grow" else -1)))
        return make(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(LayerStore, "make", meanwhile)
    with pytest.raises(PackError, match=r"gamma/data\.bin: was changed while"):
        packed(tmp_path, threads=1)


# Where it is written


def test_the_output_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "env.tar.gz").write_text("what was there")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(pack.os, "copy_file_range", lambda *args: full(0))  # "not supported": falls back to reading
        packed(tmp_path)
    good = (tmp_path / "env.tar.gz").read_bytes()
    shutil.rmtree(tmp_path / "prefix")
    with monkeypatch.context() as patch:
        patch.setattr(pack.os, "fsync", full)
        with pytest.raises(PackError) as caught:
            packed(tmp_path)
    assert "No space left" in str(caught.value)
    assert "are needed" in str(caught.value)
    assert "are free" in str(caught.value)
    assert (tmp_path / "env.tar.gz").read_bytes() == good
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".part")]


def test_copying_by_hand_gives_the_same_bytes(tmp_path: Path, tarball: Packed, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*args: object) -> int:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(pack.os, "copy_file_range", unsupported)
    assert packed(tmp_path).path.read_bytes() == tarball.path.read_bytes()


def test_a_missing_output_directory_is_an_error(tmp_path: Path) -> None:
    files = prefixes.put_package(tmp_path / "prefix", "alpha")
    with pytest.raises(PackError, match="could not write the tarball: No such file or directory"):
        pack.pack(
            prefixes.prefix(tmp_path / "prefix", prefixes.group("alpha", files), python=None),
            spec=NOTHING,
            lock=NOTHING,
            store=LayerStore(tmp_path / "store"),
            output=tmp_path / "missing" / "env.tar.gz",
            runtime=RUNTIME,
        )


def test_a_layer_that_vanishes_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lose(*args: object) -> None:
        for path in (tmp_path / "store/layers").iterdir():
            path.unlink()
        write(*args)  # type: ignore[arg-type]

    write = pack.write_tarball
    monkeypatch.setattr(pack, "write_tarball", lose)
    with pytest.raises(PackError, match="was removed while it was needed"):
        packed(tmp_path)
    assert not (tmp_path / "env.tar.gz").exists()


FULL_DISK = """
import os, subprocess, sys
from pathlib import Path
root, size = Path(sys.argv[1]), sys.argv[2]
subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", root], check=True)
from poncho_wq.errors import PonchoError
from tests.test_pack import packed
try:
    packed(root, root=Path(sys.argv[3]), store=root / "store")
except PonchoError as error:
    kept = ("layers", "recipes")
    left = [str(p) for p in root.rglob("*") if p.is_file() and p.name != ".lock" and p.parent.name not in kept]
    print(type(error).__name__, repr(str(error)), left)
"""


@pytest.mark.parametrize("size", ["64k", "1m", "3m"])
def test_a_full_disk_says_so_and_leaves_nothing(size: str, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    command = [sys.executable, "-c", FULL_DISK, disk, size, tmp_path / "prefix"]
    if os.geteuid() != 0 or subprocess.run(["unshare", "-m", "true"], check=False).returncode != 0:
        pytest.skip("only root can make a small disk")
    shown = subprocess.run(["unshare", "-m", *command], check=False, capture_output=True, text=True)
    if "mount" in shown.stderr:
        pytest.skip("this container cannot mount a file system")
    assert shown.stdout.startswith(("PackError", "CacheError")), shown.stderr
    assert "No space left on device" in shown.stdout
    assert "are free" in shown.stdout
    assert shown.stdout.rstrip().endswith("[]")


# The files of every environment


class _Spec:
    env = (("GREETING", "it's $HOME `x`\n2"), ("LEVEL", "3"))
    git = (("CODE", None),)
    http = (("TABLE", None), ("ARCHIVE", None))

    def canonical_json(self) -> str:
        return json.dumps({"pip": ["x"]})


class _Lock:
    conda = ()

    def to_json(self) -> str:
        return "{}"


def test_set_env_sets_the_variables_in_any_shell(tmp_path: Path) -> None:
    (tmp_path / "set_env").write_text(pack._set_env(_Spec()) + "\n")  # type: ignore[arg-type]
    shells = [shell for shell in ("dash", "bash", "busybox") if shutil.which(shell)]
    for shell in shells:
        argv = [shell, "sh"] if shell == "busybox" else [shell]
        script = (
            'set -- "/a b"; . "$0"; printf "%s|" "$GREETING" "$LEVEL" "$CODE" "$TABLE" "$ARCHIVE"; sh -c "echo $LEVEL"'
        )
        shown = subprocess.run([*argv, "-c", script, tmp_path / "set_env"], check=True, capture_output=True, text=True)
        data = "/a b/poncho/data"
        assert shown.stdout == f"it's $HOME `x`\n2|3|{data}/CODE|{data}/TABLE|{data}/ARCHIVE|3\n"
    assert shells


@pytest.mark.parametrize("shell", ["dash", "bash", "busybox sh"])
def test_set_env_finds_the_certificates_of_another_distribution(tmp_path: Path, shell: str) -> None:
    argv = shell.split()
    if shutil.which(argv[0]) is None:
        pytest.skip(f"no {argv[0]} here")
    bundle, own = tmp_path / "it's a bundle", tmp_path / "own"
    bundle.touch()

    def said(*certificates: Path, **given: str) -> str:
        text = pack._set_env(_Spec(), [str(path) for path in certificates])  # type: ignore[arg-type]
        # The first place that is looked at, moved to where this test may write.
        text = text.replace("/etc/ssl/certs/ca-certificates.crt", f'"{bundle}"')
        (tmp_path / "set_env").write_text(text + "\n")
        script = 'set -eu; set -- /prefix; . "$0"; sh -c "echo \\${SSL_CERT_FILE-none}"; echo "${_poncho_bundle-gone}"'
        shown = subprocess.run([*argv, "-c", script, tmp_path / "set_env"], env={"PATH": os.defpath, **given},
                               check=True, capture_output=True, text=True).stdout.splitlines()  # fmt: skip
        assert shown[1] == "gone"
        return shown[0]

    assert said(own, tmp_path / "none") == str(bundle)
    assert said() == "none"
    assert said(own, SSL_CERT_FILE="/site's") == "/site's"
    assert said(own, SSL_CERT_DIR="/site's") == "none"
    own.touch()
    assert said(own, tmp_path / "none") == "none"


def test_the_files_that_every_environment_gets_replace_a_packages_own(tmp_path: Path) -> None:
    try:
        ours = pack.runtime_files(_Spec(), _Lock())  # type: ignore[arg-type]
    except FileNotFoundError as error:
        pytest.skip(f"not there yet: {error}")
    assert set(ours) == {
        "bin/activate",
        "bin/conda-unpack",
        "bin/poncho_package_run",
        "bin/run_in_env",
        "poncho/lock.json",
        "poncho/set_env",
        "poncho/spec.json",
    }
    assert all(content.endswith(b"\n") for _, content in ours.values())
    prefixes.put(tmp_path / "prefix", "bin/activate", "a virtual environment's own")
    done = pack.pack(
        prefixes.prefix(tmp_path / "prefix", prefixes.group("venv", ("bin/activate",), kind="other"), python=None),
        spec=_Spec(),  # type: ignore[arg-type]
        lock=_Lock(),  # type: ignore[arg-type]
        store=LayerStore(tmp_path / "store"),
        output=tmp_path / "env",
        on_progress=silent,
    )
    with tarfile.open(done.path) as tar:
        assert sorted(tar.getnames()) == sorted([*ours, "poncho/manifest"])
        activate = tar.extractfile("bin/activate")
        assert activate is not None
        assert activate.read() == ours["bin/activate"][1]


def test_equal_specifications_give_equal_tarballs_that_name_no_place() -> None:
    def spec_json(**document: object) -> str:
        files = pack.runtime_files(EnvSpec.from_dict(document), _Lock())  # type: ignore[arg-type]
        text = files["poncho/spec.json"][1].decode()
        EnvSpec.from_json(text)  # what `env show` does
        return text

    assert spec_json(pip=["Rich == 15.0.0", "attrs"]) == spec_json(pip=["attrs", "rich==15.0"])
    for wheel in ("file:///home/me/dist/thing-1.0-py3-none-any.whl", "file:///thing-1.0-py3-none-any.whl"):
        text = spec_json(pip=[f"thing @ {wheel}"])
        assert json.loads(text) == {"pip": ["thing @ file:///thing-1.0-py3-none-any.whl"]}
    for remote in ("/home/me/repo", "file:///home/me/repo"):
        assert "home" not in spec_json(git={"REPO": {"remote": remote, "tag": "v1"}})
    text = spec_json(conda={"channels": ["file:///home/me/channel", "conda-forge"], "packages": ["python=3.11"]})
    assert json.loads(text)["conda"]["channels"] == ["file:///channel", "conda-forge"]
    # what the user sets is set
    assert json.loads(spec_json(env={"WHERE": "/home/me"}))["env"] == {"WHERE": "/home/me"}


def test_an_unwritable_store_is_a_cache_error(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file")
    with pytest.raises(CacheError, match="could not make the directory"):
        packed(tmp_path)


def test_the_prefix_may_go_when_it_was_read(tmp_path: Path) -> None:
    built = prefixes.make_prefix(tmp_path / "prefix")
    output = tmp_path / "env.tar.gz"

    def gone(entries: Mapping[str, Entry]) -> None:
        assert not output.exists()
        assert {path for path, entry in entries.items() if entry.kind == "file" and not entry.digest} == set()
        shutil.rmtree(built.path)

    facts: Any = {
        "spec": NOTHING,
        "lock": NOTHING,
        "store": LayerStore(tmp_path / "store"),
        "runtime": prefixes.RUNTIME,
    }
    made = pack.pack(built, output=output, on_read=gone, **facts)
    prefixes.make_prefix(tmp_path / "again")
    again = pack.pack(dataclasses.replace(built, path=tmp_path / "again"), output=tmp_path / "again.tar.gz", **facts)
    assert not built.path.exists()
    assert made.path.read_bytes() == again.path.read_bytes()
