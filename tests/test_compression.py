"""The forms of a tarball: the same environment in each, made once, the same bytes every time, and damage is noticed."""

from __future__ import annotations

import gzip
import hashlib
import importlib
import io
import json
import os
import random
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poncho_wq import zstd_library
from poncho_wq.cache import Cache
from poncho_wq.caching.admin import collect, remove
from poncho_wq.caching.listing import Listed, scan
from poncho_wq.caching.verify import check_tarball, verify
from poncho_wq.cli.create import main as create
from poncho_wq.errors import CorruptTarball, PackError, SpecError
from poncho_wq.manifest import Manifest, end_member, read_manifest
from poncho_wq.pack import Packed, pack
from poncho_wq.packing import compression
from poncho_wq.packing.compression import COMPRESSIONS, Compression, Damaged, form_of, suffix_of
from poncho_wq.packing.layers import LayerStore, recipe
from poncho_wq.packing.repack import repack
from poncho_wq.packing.xxhash64 import xxhash64
from poncho_wq.prepare import environment
from tests import prefixes
from tests.test_layers import EVERYTHING
from tests.test_manifest import RELOCATED, SIMPLE, manifests
from tests.test_pack import golden_prefix
from tests.wheelhouse import write_wheel

GOLDEN = Path(__file__).parent / "golden" / "tarball"
ZSTD = shutil.which("zstd")
forms = pytest.mark.parametrize("name", COMPRESSIONS)
new_forms = pytest.mark.parametrize("name", ["zstd", "none"])

library = zstd_library.find()
pytestmark = pytest.mark.skipif(library is None, reason=f"no zstd library: {zstd_library.ADVICE}")


def layer_of(name: Compression, data: bytes, piece: int = 1 << 20) -> tuple[bytes, int]:
    """A layer that holds `data`, and its checksum."""
    writer = form_of(name).writer()
    written = writer.begin()
    for start in range(0, len(data), piece):
        written += writer.add(data[start : start + piece])
    return written + writer.end(), writer.checksum


def content_of(name: Compression, packed: bytes) -> bytes:
    return b"".join(form_of(name).content(io.BytesIO(packed), len(packed)))


def blocks(number: int, count: int = 40) -> bytes:
    """Tar blocks, half of which do not compress."""
    chance = random.Random(number)
    return b"".join(chance.randbytes(512) if n % 2 else bytes([n]) * 512 for n in range(count))


# What is stored


@forms
@given(st.integers(1, 200_000), st.integers(0, 255))
@settings(max_examples=30, deadline=None)
def test_stored_members_are_what_every_reader_reads(name: Compression, size: int, byte: int) -> None:
    form, data = form_of(name), (bytes([byte]) + b"ab") * (size // 3 + 1)
    stored = form.stored(data)
    assert len(stored) == form.stored_length(len(data))
    assert content_of(name, stored) == data
    if name != "none":
        assert form.first(io.BytesIO(stored + b"more")) == data


@pytest.mark.skipif(ZSTD is None, reason="zstd is not installed")
@pytest.mark.parametrize("size", [1, 512, 16383, 16384, 16385, 300_000])
def test_the_program_reads_what_is_stored(size: int) -> None:
    data = b"x\n" * (size // 2) + b"y" * (size % 2)
    shown = subprocess.run([str(ZSTD), "-dc"], input=form_of("zstd").stored(data), stdout=subprocess.PIPE, check=True)
    assert shown.stdout == data


@pytest.mark.parametrize(
    ("text", "digest"),
    # From the specification of xxHash and its test vectors.
    [(b"", 0xEF46DB3751D8E999), (b"a", 0xD24EC4F1A98C6E5B), (b"abc", 0x44BC2CF5AD770999)],
)
def test_xxhash64(text: bytes, digest: int) -> None:
    assert xxhash64(text) == digest


@given(st.binary(max_size=300))
def test_xxhash64_is_what_the_library_computes(data: bytes) -> None:
    """A frame's last four bytes, for any length: the library has no function for it."""
    frame, checksum = layer_of("zstd", data)
    assert frame[-4:] == checksum.to_bytes(4, "little")
    assert checksum == xxhash64(data) & 0xFFFFFFFF


# The manifest


@given(manifests(), st.sampled_from(COMPRESSIONS))
@settings(max_examples=60, deadline=None)
def test_the_first_member_states_its_own_length(manifest: Manifest, name: Compression) -> None:
    manifest = in_form(manifest, name)
    first = manifest.first_member()
    assert len(first) == manifest.member
    assert manifest.size == len(first) + sum(layer.length for layer in manifest.layers) + len(end_member(name))
    assert manifest.identity == replace(manifest, compression="gzip").identity


def written(path: Path, manifest: Manifest) -> Path:
    body = b"".join(b"?" * layer.length for layer in manifest.layers)
    path.write_bytes(manifest.first_member() + body + end_member(manifest.compression))
    return path


def in_form(manifest: Manifest, name: Compression) -> Manifest:
    offset, layers = 0, []
    for layer in manifest.layers:
        length = layer.unpacked if name == "none" else layer.length
        layers.append(replace(layer, offset=offset, length=length))
        offset += length
    return replace(manifest, layers=tuple(layers), compression=name)


@forms
@pytest.mark.parametrize("manifest", [SIMPLE, RELOCATED], ids=["simple", "relocated"])
def test_a_manifest_is_read_from_each_form(tmp_path: Path, name: Compression, manifest: Manifest) -> None:
    """Without a library: what is stored needs none."""
    manifest = in_form(manifest, name)
    assert read_manifest(written(tmp_path / "x", manifest)) == manifest
    data = (tmp_path / "x").read_bytes()
    for cut in range(80, manifest.member, 7):
        (tmp_path / "cut").write_bytes(data[:cut])
        with pytest.raises(CorruptTarball):
            read_manifest(tmp_path / "cut")
    for cut in (manifest.member, len(data) - 1):
        (tmp_path / "cut").write_bytes(data[:cut])
        with pytest.raises(CorruptTarball, match="bytes long"):
            read_manifest(tmp_path / "cut")


@new_forms
def test_a_flipped_manifest_is_noticed(tmp_path: Path, name: Compression) -> None:
    """A bare tar has no checksum: there some facts may be others (the platform, which the wrapper compares)."""
    manifest = in_form(RELOCATED, name)
    data = written(tmp_path / "x", manifest).read_bytes()
    unnoticed = 0
    for at in range(manifest.member):
        changed = bytearray(data)
        changed[at] ^= 1 << at % 8
        (tmp_path / "x").write_bytes(changed)
        try:
            found = read_manifest(tmp_path / "x")
        except CorruptTarball:
            continue
        unnoticed += found is not None and found != manifest
        if found is not None:
            assert (found.identity, found.size) == (manifest.identity, manifest.size)
    assert name == "none" or unnoticed == 0


def test_golden_stored_members() -> None:
    zstd, none = in_form(RELOCATED, "zstd"), in_form(RELOCATED, "none")
    assert zstd.first_member() == (GOLDEN / "first-frame.zst").read_bytes()
    assert end_member("zstd") == (GOLDEN / "end-frame.zst").read_bytes()
    assert none.first_member() == (GOLDEN / "first-entry.tar").read_bytes()
    assert end_member("none") == bytes(1024)
    assert len(end_member("zstd")) == 1037


# Layers


@forms
@pytest.mark.parametrize("piece", [1, 1000, 1 << 20])
def test_a_layer_holds_what_was_written(name: Compression, piece: int) -> None:
    data = blocks(1)
    packed, checksum = layer_of(name, data, piece)
    form = form_of(name)
    assert content_of(name, packed) == data
    assert form.ends_right(packed[-form.tail :], checksum, len(data))
    assert not form.ends_right(packed[-form.tail : -1] + b"?", checksum, len(data))
    assert len(packed) >= form.shortest


@forms
def test_a_damaged_layer_is_noticed(name: Compression) -> None:
    data = blocks(2)
    packed, _ = layer_of(name, data)
    for cut in range(len(packed)):
        with pytest.raises(Damaged):
            list(form_of(name).content(io.BytesIO(packed[:cut]), len(packed)))
        if name != "none":
            with pytest.raises(Damaged):
                content_of(name, packed[:cut])
    if name == "none":
        return
    for more in (b"x", b"\0" * 600, packed):
        with pytest.raises(Damaged):
            content_of(name, packed + more)
    chance = random.Random(name)
    for at in range(len(packed)):
        changed = bytearray(packed)
        changed[at] ^= 1 << chance.randrange(8)
        try:
            assert content_of(name, bytes(changed)) == data
        except Damaged:
            pass


def test_every_zstd_layer_is_one_frame_with_a_checksum() -> None:
    for size in (0, 1, 512, 3 << 20):
        packed, _ = layer_of("zstd", bytes(size))
        assert packed[:4] == bytes.fromhex("28b52ffd")
        assert packed[4] & 0x04, "RFC 8878 §3.1.1.1.1: the checksum flag"
        assert packed.count(bytes.fromhex("28b52ffd")) == 1


def test_each_library_reads_what_the_other_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    other = pytest.importorskip("zstandard")
    data = blocks(3)
    by_one, _ = layer_of("zstd", data)
    monkeypatch.setattr(zstd_library, "find", lambda: other)
    by_other, checksum = layer_of("zstd", data)
    assert content_of("zstd", by_one) == content_of("zstd", by_other) == data
    assert by_other[-4:] == by_one[-4:] == checksum.to_bytes(4, "little")
    with pytest.raises(Damaged):
        content_of("zstd", by_one[:-1])
    with pytest.raises(Damaged):
        content_of("zstd", by_one + b"x")


@new_forms
def test_golden_fragment(tmp_path: Path, name: Compression) -> None:
    """What is in a layer, and what it is called, is the same in every form."""
    store = LayerStore(tmp_path, name)
    with store.work_directory() as work:
        layer = store.make(recipe(EVERYTHING), EVERYTHING, work)
    fragment = gzip.decompress((GOLDEN / "fragment.tar.gz").read_bytes())
    assert content_of(name, layer.path.read_bytes()) == fragment
    assert layer.path == tmp_path / f"layers/{hashlib.sha256(fragment).hexdigest()}{form_of(name).layer_suffix}"
    assert content_of("zstd", (GOLDEN / "fragment.tar.zst").read_bytes()) == fragment


@forms
def test_what_a_power_cut_left_is_no_layer(tmp_path: Path, name: Compression) -> None:
    store = LayerStore(tmp_path, name)
    key = recipe(EVERYTHING)
    with store.work_directory() as work:
        layer = store.make(key, EVERYTHING, work)
    assert store.find(key) == layer
    whole = layer.path.read_bytes()
    for damaged in (whole[:-1], whole[:-10] + bytes(9) + b"?", b""):
        layer.path.write_bytes(damaged)
        assert store.find(key) is None
    layer.path.write_bytes(whole)
    assert store.find(key) == layer


# Tarballs


def packed(where: Path, name: Compression, store: Path | None = None, **more: Any) -> Packed:
    where.mkdir(exist_ok=True)
    return pack(
        prefixes.make_prefix(where / "prefix"), spec=prefixes.NOTHING, lock=prefixes.NOTHING,
        store=LayerStore(store or where / "store", name), output=where / f"env{form_of(name).suffix}",
        runtime=prefixes.RUNTIME, **more,
    )  # fmt: skip


def unpacked(tarball: Path, into: Path) -> dict[str, bytes | str]:
    into.mkdir()
    subprocess.run(["tar", "-xf", tarball, "-C", into], check=True)
    (into / "poncho/manifest").unlink()
    return {
        str(path.relative_to(into)): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in into.rglob("*")
        if path.is_symlink() or path.is_file()
    }


@pytest.mark.skipif(ZSTD is None, reason="zstd is not installed")
def test_all_forms_hold_the_same(tmp_path: Path) -> None:
    made = {name: packed(tmp_path / name, name) for name in COMPRESSIONS}
    assert len({each.identity for each in made.values()}) == 1
    for name, each in made.items():
        check_tarball(each.path)
        assert (each.compression, suffix_of(each.path)) == (name, form_of(name).suffix)
        assert each.path.stat().st_size == each.size
    trees = [unpacked(each.path, tmp_path / f"{name} tree") for name, each in made.items()]
    assert trees[0] == trees[1] == trees[2]


@new_forms
def test_the_same_bytes_whoever_packs(tmp_path: Path, name: Compression, monkeypatch: pytest.MonkeyPatch) -> None:
    one = packed(tmp_path / "one", name, threads=1)
    monkeypatch.setenv("ZSTD_CLEVEL", "19")
    monkeypatch.setenv("ZSTD_NBTHREADS", "4")
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    two = packed(tmp_path / "a b", name, threads=4)
    assert one.path.read_bytes() == two.path.read_bytes()
    # from another form of it: by what the store has, and by the tarball
    first = packed(tmp_path / "first", "gzip")
    again = packed(tmp_path / "again", name, store=tmp_path / "first/store")
    assert again.path.read_bytes() == one.path.read_bytes()
    store = LayerStore(tmp_path / "third", name)
    third = repack(first.path, store=store, output=tmp_path / "third.tar")
    assert third == replace(one, path=third.path)
    assert third.path.read_bytes() == one.path.read_bytes()
    back = repack(third.path, store=LayerStore(tmp_path / "back"), output=tmp_path / "back.tar.gz")
    assert back.path.read_bytes() == first.path.read_bytes()


@new_forms
def test_a_layer_of_another_form_is_not_compiled_again(
    tmp_path: Path, name: Compression, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = packed(tmp_path / "one", "gzip")
    from poncho_wq.packing.bytecode import Compiler

    monkeypatch.setattr(Compiler, "compile", lambda *_: pytest.fail("compiled again"))
    after = packed(tmp_path / "two", name, store=tmp_path / "one/store")
    assert after.identity == before.identity
    check_tarball(after.path)


def test_a_damaged_layer_is_not_taken_over(tmp_path: Path) -> None:
    packed(tmp_path / "one", "gzip")
    for path in (tmp_path / "one/store/layers").iterdir():
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    with pytest.raises(PackError, match="cache verify --remove"):
        packed(tmp_path / "two", "zstd", store=tmp_path / "one/store")
    assert list((tmp_path / "one/store/layers").glob("*.zst")) == []


@forms
def test_a_damaged_tarball_is_not_packed_again(tmp_path: Path, name: Compression) -> None:
    made = packed(tmp_path / "one", name)
    content = bytearray(made.path.read_bytes())
    content[len(content) // 2] ^= 1
    made.path.write_bytes(content)
    target: Compression = "gzip" if name == "zstd" else "zstd"
    with pytest.raises(CorruptTarball):
        repack(made.path, store=LayerStore(tmp_path / "store", target), output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@new_forms
def test_golden_tarball(tmp_path: Path, name: Compression) -> None:
    form = form_of(name)
    golden = GOLDEN / f"format-1{form.suffix}"
    before, gzipped = read_manifest(golden), read_manifest(GOLDEN / "format-1.tar.gz")
    done = pack(
        golden_prefix(tmp_path / "prefix"), spec=prefixes.NOTHING, lock=prefixes.NOTHING,
        store=LayerStore(tmp_path / "store", name), output=tmp_path / "env", runtime=prefixes.RUNTIME,
    )  # fmt: skip
    after = read_manifest(done.path)
    assert before is not None
    assert after is not None
    assert gzipped is not None
    assert before.compression == name
    # The compressor's next release may give other lengths; what the layers hold, and are called, is frozen.
    assert [(layer.digest, layer.unpacked, layer.name) for layer in after.layers] == [
        (layer.digest, layer.unpacked, layer.name) for layer in gzipped.layers
    ]
    assert after.identity == before.identity == gzipped.identity
    check_tarball(golden)
    if name == "none":
        assert golden.read_bytes() == done.path.read_bytes()


# The cache


def put(root: Path, name: Compression, work: Path) -> str:
    """An environment that nobody uses, in this form; its hash."""
    from tests.test_cache_admin import elsewhere

    spec_hash = hashlib.sha256(name.encode()).hexdigest()
    prefix = prefixes.make_prefix(work / f"prefix-{name}")

    def make(directory: Path) -> Packed:
        store, output = Cache(root).layers.compressed(name), directory / f"env{form_of(name).suffix}"
        nothing = prefixes.NOTHING
        return pack(prefix, spec=nothing, lock=nothing, store=store, output=output, runtime=prefixes.RUNTIME)

    elsewhere(lambda: Cache(root).build_once(spec_hash, make))
    return spec_hash


def layer_files(entry: Listed) -> set[str]:
    return {digest + form_of(entry.compression).layer_suffix for digest in entry.layers}


def files_in(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def test_the_cache_knows_each_form(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    hashes = {name: put(root, name, tmp_path) for name in COMPRESSIONS}
    cache = Cache(root)
    layers, recipes = root / "v1/layers", root / "v1/recipes"
    listed = {each.spec_hash: each for each in scan(cache)}
    for name, spec_hash in hashes.items():
        entry = listed[spec_hash]
        assert entry.compression == name
        assert entry.tarball is not None
        assert entry.tarball.name == f"poncho-env-{entry.identity[:16]}{form_of(name).suffix}"
        assert layer_files(entry) <= files_in(layers)
    assert files_in(layers) == {name for each in listed.values() for name in layer_files(each)}
    assert len({each.identity for each in listed.values()}) == 1
    assert verify(cache, list(listed.values())) == []
    # one goes, with its own layers and recipes, and nothing of the others
    for name in COMPRESSIONS:
        gone, stay = remove(cache, [listed.pop(hashes[name])])
        assert (len(gone), stay) == (1, [])
        assert files_in(layers) == {name for each in listed.values() for name in layer_files(each)}
        assert len(files_in(recipes)) == len(files_in(layers))
        left = {json.loads((recipes / each).read_text())["digest"] for each in files_in(recipes)}
        assert left == {digest for each in listed.values() for digest in each.layers}
    assert collect(cache).left == 0


@new_forms
def test_collect_counts_and_removes_layers_of_each_form(tmp_path: Path, name: Compression) -> None:
    root = tmp_path / "cache"
    put(root, name, tmp_path)
    cache = Cache(root)
    (entry,) = scan(cache)
    assert entry.tarball is not None
    layers = sum((root / "v1/layers" / each).stat().st_size for each in layer_files(entry))
    assert collect(cache).left == layers + entry.tarball.stat().st_size
    stray = root / f"v1/layers/{'0' * 64}{form_of(name).layer_suffix}"
    stray.write_bytes(b"x")
    assert collect(cache).layers == 1
    assert not stray.exists()
    done = collect(cache, max_size=0)
    assert (len(done.evicted), done.layers, done.left) == (1, len(layer_files(entry)), 0)
    assert files_in(root / "v1/layers") == set()


@new_forms
def test_verify_reads_each_form(tmp_path: Path, name: Compression) -> None:
    root = tmp_path / "cache"
    put(root, name, tmp_path)
    cache = Cache(root)
    (entry,) = scan(cache)
    assert entry.tarball is not None
    content = entry.tarball.read_bytes()
    manifest = read_manifest(entry.tarball)
    assert manifest is not None
    for at in [*range(manifest.member, len(content), max(1, len(content) // 40)), len(content) - 1]:
        damaged = bytearray(content)
        damaged[at] ^= 0x10
        entry.tarball.write_bytes(damaged)
        assert [each.kind for each in verify(cache, [entry])] == ["tarball"], at
    entry.tarball.write_bytes(content)
    layer = root / "v1/layers" / sorted(layer_files(entry))[0]
    whole = bytearray(layer.read_bytes())
    whole[len(whole) // 2] ^= 1
    layer.write_bytes(whole)
    assert [(each.kind, each.path) for each in verify(cache, scan(cache))] == [("layer", layer)]


# From a specification


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    for name in list(os.environ):
        if name.startswith(("PIP_", "UV_", "PONCHO_COMPRESSION")):
            monkeypatch.delenv(name)
    for version in ("1.0", "2.0"):
        write_wheel(tmp_path / "wheels", "thing", version, {"thing.py": f"V = {version!r}\n"})
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    return {"pip": ["thing"]}


@pytest.mark.skipif(ZSTD is None, reason="zstd is not installed")
def test_one_environment_in_each_form(
    spec: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "cache"
    first = environment(spec, cache_dir=cache)
    write_wheel(tmp_path / "wheels", "thing", "3.0", {"thing.py": "V = '3.0'\n"})
    made = {"gzip": first}
    for name in ("zstd", "none"):
        made[name] = environment(spec, cache_dir=cache, compression=name)  # type: ignore[arg-type]
        each = made[name]
        # the same packages, although there is a newer one now
        assert (each.identity, each.spec_hash, each.cached) == (first.identity, first.spec_hash, False)
        assert each.tarball.with_name("poncho.lock").read_bytes() == first.tarball.with_name("poncho.lock").read_bytes()
        assert environment(spec, cache_dir=cache, compression=name).cached  # type: ignore[arg-type]
        # what exists stays as it is, unless another form is asked for
        for there in (each, each.tarball):
            assert environment(there, cache_dir=cache).tarball == each.tarball
            assert environment(there, cache_dir=cache, compression=name).tarball == each.tarball  # type: ignore[arg-type]
        other = environment(each.tarball, cache_dir=cache, compression="gzip")
        assert other.tarball.read_bytes() == first.tarball.read_bytes()
        assert environment(each, cache_dir=cache, compression="gzip").tarball == other.tarball
    assert len({each.tarball.name for each in made.values()}) == 3

    monkeypatch.setenv("PONCHO_COMPRESSION", "zstd")
    assert environment(spec, cache_dir=cache).tarball == made["zstd"].tarball
    assert environment(first.tarball, cache_dir=cache).tarball == first.tarball
    assert environment(spec, cache_dir=cache, compression="gzip").tarball == first.tarball
    monkeypatch.setenv("PONCHO_COMPRESSION", "lzma")
    with pytest.raises(SpecError, match=r"PONCHO_COMPRESSION.*gzip, zstd, none"):
        environment(spec, cache_dir=cache)
    monkeypatch.delenv("PONCHO_COMPRESSION")
    with pytest.raises(SpecError, match="gzip, zstd, none"):
        environment(spec, cache_dir=cache, compression="bzip2")  # type: ignore[arg-type]

    spec_json, out = tmp_path / "spec.json", tmp_path / "out"
    spec_json.write_text(json.dumps(spec))
    for source in (spec_json, first.tarball):
        assert create(["-q", "--cache-dir", str(cache), "--compression", "zstd", str(source), str(out)]) == 0
        assert out.read_bytes() == made["zstd"].tarball.read_bytes()
    assert create(["-q", "--cache-dir", str(cache), str(spec_json), str(out)]) == 0
    assert out.read_bytes() == first.tarball.read_bytes()
    with pytest.raises(SystemExit) as ended:
        create(["--compression", "xz", str(spec_json), str(out)])
    assert ended.value.code == 2
    capsys.readouterr()

    refreshed = environment(spec, cache_dir=cache, compression="zstd", refresh=True)
    assert refreshed.identity != first.identity, "resolved again"
    check_tarball(refreshed.tarball)


def test_another_tools_tarball_is_used_as_it_is_or_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "theirs.tar.gz", "w:gz") as archive:
        archive.add(__file__, "bin/activate")
    assert environment(tmp_path / "theirs.tar.gz").size
    with pytest.raises(PackError, match="leave out --compression"):
        environment(tmp_path / "theirs.tar.gz", cache_dir=tmp_path / "cache", compression="zstd")


def test_without_a_library(spec: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused before anything is built; what is there is served, and other forms need none."""
    cache = tmp_path / "cache"
    there = environment({"pip": ["thing==1.0"]}, cache_dir=cache, compression="zstd")
    importing: Callable[..., object] = importlib.import_module

    def missing(name: str, *more: Any) -> object:
        if "zst" in name:
            raise ImportError(name)
        return importing(name, *more)

    monkeypatch.setattr(zstd_library.importlib, "import_module", missing)
    calls: list[object] = []
    with pytest.raises(PackError, match=r"pip install 'poncho_wq\[zstd\]'"):
        environment(spec, cache_dir=cache, compression="zstd", on_progress=calls.append)
    assert [each for each in calls if getattr(each, "stage", "") not in ("note", "ready")] == []
    assert environment({"pip": ["thing==1.0"]}, cache_dir=cache, compression="zstd").tarball == there.tarball
    assert environment(there.tarball).identity == there.identity
    # The zstd form of it cannot be read here, and so it is built.
    assert environment({"pip": ["thing==1.0"]}, cache_dir=cache).identity == there.identity
    assert environment(spec, cache_dir=cache, compression="none").size
    with pytest.raises(PackError, match=r"pip install 'poncho_wq\[zstd\]'"):
        check_tarball(there.tarball)


def test_names_by_what_is_inside(tmp_path: Path) -> None:
    path = tmp_path / "x"
    for content, suffix in ((b"", ".tar.gz"), (b"BZh9", ".tar.gz"), (bytes.fromhex("28b52ffd0458"), ".tar.zst")):
        path.write_bytes(content)
        assert suffix_of(path) == suffix
    with tarfile.open(path, "w") as archive:
        archive.add(__file__, "x")
    assert suffix_of(path) == ".tar"
    assert suffix_of(tmp_path / "none") == ".tar.gz"
    assert compression.form_that_begins(path.read_bytes(), b"poncho/manifest\0") is None
