"""Layers: what every tar reads, the same bytes for the same entries, and a store that keeps only what is whole."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poncho_wq.errors import CacheError, PackError
from poncho_wq.packing import layers, tarfragment
from poncho_wq.packing.bytecode import Slice, chunks
from poncho_wq.packing.layers import Entry, LayerStore, OnDisk, recipe

GOLDEN = Path(__file__).parent / "golden" / "tarball"


def file(path: str, content: bytes = b"", mode: int = 0o644) -> Entry:
    return Entry(path=path, kind="file", mode=mode, content=content, digest=hashlib.sha256(content).hexdigest())


def make(store: LayerStore, entries: Sequence[Entry], key: str | None = None) -> layers.Layer:
    with store.work_directory() as work:
        return store.make(key or recipe(entries), entries, work)


def fragment_of(layer: layers.Layer) -> bytes:
    return gzip.decompress(layer.path.read_bytes())


EVERYTHING = [
    Entry(path="bin/hollow", kind="directory", mode=0o755),
    file("bin/tool", b"#!/bin/sh\n", 0o755),
    Entry(path="bin/tool-2", kind="hardlink", mode=0o755, target="bin/tool"),
    Entry(path="bin/tool-3", kind="symlink", mode=0o777, target="tool"),
    file(f"share/{'d' * 60}/{'e' * 60}/fits-the-prefix-field", b"x" * 1000),
    file(f"share/{'f' * 180}", b"needs a long-name entry"),
    Entry(path=f"share/{'g' * 180}", kind="symlink", mode=0o777, target="h" * 150),
    Entry(path=f"share/{'i' * 180}", kind="hardlink", mode=0o644, target=f"share/{'f' * 180}"),
    file("share/ü \n'", b""),
]

# What tar can name: parts of up to 255 bytes, paths of some kilobytes.
parts = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=60).filter(
    lambda part: part not in (".", "..")
)
paths = st.lists(parts, min_size=1, max_size=9).map("/".join)


@given(paths, paths, st.integers(0, 1 << 50))
def test_headers_say_what_they_should_to_tarfile(path: str, target: str, size: int) -> None:
    def read(block: bytes) -> tarfile.TarInfo:
        with tarfile.open(fileobj=io.BytesIO(block + b"\0" * 1024), ignore_zeros=False) as tar:
            member = tar.next()
        assert member is not None
        return member

    found = read(tarfragment.file_header(path, size=0, mode=0o644))
    assert (found.name, found.mode, found.size, found.isreg()) == (path, 0o644, 0, True)
    # A size beyond 8 GiB cannot be followed by its content here; the last block is the file's own header.
    header = tarfragment.file_header(path, size=size, mode=0o755)[-512:]
    assert tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape").size == size
    found = read(tarfragment.symlink_header(path, target))
    assert (found.name, found.linkname, found.issym()) == (path, target, True)
    found = read(tarfragment.hardlink_header(path, target, mode=0o755))
    assert (found.name, found.linkname, found.islnk(), found.mode) == (path, target, True, 0o755)
    found = read(tarfragment.directory_header(path))
    assert (found.name, found.isdir()) == (path, True)
    assert (found.uid, found.gid, found.mtime) == (0, 0, 315532800)


@pytest.mark.parametrize(
    ("path", "blocks"),
    [
        ("f" * 100, 1),
        ("f" * 101, 3),
        ("d" * 155 + "/" + "f" * 100, 1),
        ("d" * 156 + "/" + "f" * 100, 3),
        ("d" * 155 + "/" + "f" * 101, 3),
        ("d" * 120 + "/" + "e" * 34 + "/" + "f" * 99, 1),
        ("f" * 511, 3),
        ("f" * 512, 4),
    ],
)
def test_long_names_cost_blocks_only_where_they_must(path: str, blocks: int) -> None:
    assert len(tarfragment.file_header(path, size=0, mode=0o644)) == 512 * blocks


def names_at_every_length() -> list[str]:
    """Paths around the lengths where tar's way of writing them changes."""
    lengths = [99, 100, 101, 154, 155, 156, 157, 254, 255, 256, 257, 300, 1000]
    straight = ["/".join(["d" * 30] * (n // 31)) + "/" + "f" * (n - n // 31 * 31) for n in lengths if n % 31]
    flat = ["f" * n for n in lengths if n <= 255]
    late = ["d" * (n - 3) + "/ff" for n in lengths if n - 3 <= 255]
    wide = [f"{'d' * 150}/{'f' * (n - 151)}" for n in lengths if 151 < n <= 400]
    return straight + flat + late + wide


@pytest.mark.parametrize("tar", ["tar", "busybox tar"])
def test_names_and_targets_of_every_length_are_read_by(tar: str, tmp_path: Path) -> None:
    if shutil.which(tar.split()[0]) is None:
        pytest.skip(f"{tar} is not installed")
    names = sorted(set(names_at_every_length()))
    entries = [file(f"{number}/{name}", name.encode()) for number, name in enumerate(names)]
    entries += [Entry(path=f"l{n}/{name}", kind="symlink", mode=0o777, target=name) for n, name in enumerate(names)]
    entries += [
        Entry(path=f"h{n}/{name}", kind="hardlink", mode=0o644, target=f"{n}/{name}") for n, name in enumerate(names)
    ]
    layer = make(LayerStore(tmp_path / "store"), entries)
    (tmp_path / "out").mkdir()
    subprocess.run([*tar.split(), "-xf", "-", "-C", tmp_path / "out"], input=fragment_of(layer), check=True)
    for number, name in enumerate(names):
        assert (tmp_path / f"out/{number}/{name}").read_text() == name
        assert os.readlink(tmp_path / f"out/l{number}/{name}") == name
        assert (tmp_path / f"out/h{number}/{name}").samefile(tmp_path / f"out/{number}/{name}")


def test_a_name_that_is_not_utf8_survives(tmp_path: Path) -> None:
    layer = make(LayerStore(tmp_path / "store"), [file("share/\udcff\udcfe", b"x")])
    (tmp_path / "out").mkdir()
    subprocess.run(["tar", "-xf", "-", "-C", tmp_path / "out"], input=fragment_of(layer), check=True)
    assert os.listdir(os.fsencode(tmp_path / "out/share")) == [b"\xff\xfe"]


def test_a_layer_says_what_it_is(tmp_path: Path) -> None:
    layer = make(LayerStore(tmp_path), EVERYTHING)
    fragment = fragment_of(layer)
    assert layer.path == tmp_path / "layers" / f"{hashlib.sha256(fragment).hexdigest()}.gz"
    assert layer.digest == hashlib.sha256(fragment).hexdigest()
    assert (layer.unpacked, layer.length) == (len(fragment), layer.path.stat().st_size)
    assert (layer.files, layer.content) == (len(EVERYTHING), sum(entry.size for entry in EVERYTHING))
    header = layer.path.read_bytes()[:10]
    assert header == b"\x1f\x8b\x08" + b"\0" * 6 + b"\xff"  # no time, no name, no system


def test_large_and_odd_sizes_survive(tmp_path: Path) -> None:
    sizes = [0, 1, 511, 512, 513, (1 << 20) - 512, 1 << 20, (1 << 20) + 1, 3 << 20]
    content = [os.urandom(size) for size in sizes]
    layer = make(LayerStore(tmp_path), [file(f"{n:02}", data) for n, data in enumerate(content)])
    with tarfile.open(fileobj=io.BytesIO(fragment_of(layer) + b"\0" * 1024)) as tar:
        got = [tar.extractfile(member).read() for member in tar]  # type: ignore[union-attr]
    assert got == content


def test_content_may_come_from_a_file_or_a_part_of_one(tmp_path: Path) -> None:
    blob = tmp_path / "blob"
    blob.write_bytes(b"0123456789" * 300_000)
    facts = blob.stat()
    whole = OnDisk(path=str(blob), size=facts.st_size, mtime_ns=facts.st_mtime_ns)
    entries = [
        Entry(path="a", kind="file", content=whole, digest="a"),
        Entry(path="b", kind="file", content=Slice(path=blob, offset=5, size=2_000_003), digest="b"),
    ]
    in_memory = [file("a", blob.read_bytes()), file("b", blob.read_bytes()[5:][:2_000_003])]
    one = make(LayerStore(tmp_path / "one"), entries)
    two = make(LayerStore(tmp_path / "two"), in_memory)
    assert one.path.read_bytes() == two.path.read_bytes()
    shorter = replace(entries[1], content=Slice(path=blob, offset=2_999_990, size=11))
    with pytest.raises(PackError, match="b: was changed"):
        make(LayerStore(tmp_path / "three"), [shorter])
    gone = replace(entries[0], content=replace(whole, path=str(tmp_path / "gone")))
    with pytest.raises(PackError, match="a: cannot be read: No such file"):
        make(LayerStore(tmp_path / "three"), [gone])


# Recipes


def test_a_recipe_changes_with_everything_that_changes_the_layer() -> None:
    base = [file("a", b"1"), Entry(path="b", kind="symlink", mode=0o777, target="a")]
    others = [
        [],
        base[:1],
        [file("a", b"2"), base[1]],
        [file("A", b"1"), base[1]],
        [file("a", b"1", 0o755), base[1]],
        [base[0], replace(base[1], target="c")],
        [base[0], replace(base[1], kind="hardlink")],
        [*base, Entry(path="c", kind="directory", mode=0o755)],
    ]
    found = [recipe(entries) for entries in [base, *others]] + [recipe(base, "compiler")]
    assert len(set(found)) == len(found)
    assert recipe(list(base)) == recipe(base)


@given(st.lists(st.tuples(paths, st.binary(max_size=3)), max_size=4), st.lists(st.tuples(paths, st.binary(max_size=3))))
def test_no_two_lists_of_entries_have_one_recipe(one: list[tuple[str, bytes]], two: list[tuple[str, bytes]]) -> None:
    same = recipe([file(*item) for item in one]) == recipe([file(*item) for item in two])
    assert same == (one == two)


# The store


def test_the_store_finds_what_it_made(tmp_path: Path) -> None:
    store = LayerStore(tmp_path)
    assert store.find(recipe(EVERYTHING)) is None
    layer = make(store, EVERYTHING)
    assert store.find(recipe(EVERYTHING)) == layer
    assert LayerStore(tmp_path).find(recipe(EVERYTHING)) == layer
    assert [path.name for path in (tmp_path / "tmp").iterdir()] == [".lock"]
    for directory in ("layers", "recipes", "tmp"):
        assert (tmp_path / directory).stat().st_mode & 0o7777 == 0o700


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 30, -1])
def test_a_layer_that_was_cut_short_is_not_served_but_made_again(keep: int, tmp_path: Path) -> None:
    store = LayerStore(tmp_path)
    layer = make(store, EVERYTHING)
    good = layer.path.read_bytes()
    layer.path.write_bytes(good[:keep])
    assert store.find(recipe(EVERYTHING)) is None
    assert make(store, EVERYTHING) == layer
    assert layer.path.read_bytes() == good


def test_a_layer_with_another_end_is_not_served_but_made_again(tmp_path: Path) -> None:
    store = LayerStore(tmp_path)
    layer = make(store, EVERYTHING)
    good = layer.path.read_bytes()
    layer.path.write_bytes(good[:-9] + b"\0" * 9)  # as a power cut leaves a file whose blocks were never written
    assert store.find(recipe(EVERYTHING)) is None
    assert make(store, EVERYTHING) == layer
    assert layer.path.read_bytes() == good


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"digest": "x"}', '{"digest": 5, "more": 1}'])
def test_a_damaged_recipe_is_not_an_error(text: str, tmp_path: Path) -> None:
    store = LayerStore(tmp_path)
    layer = make(store, EVERYTHING)
    (tmp_path / "recipes" / recipe(EVERYTHING)).write_text(text)
    assert store.find(recipe(EVERYTHING)) is None
    assert make(store, EVERYTHING) == layer


def test_a_recipe_of_another_length_is_not_believed(tmp_path: Path) -> None:
    store = LayerStore(tmp_path)
    make(store, EVERYTHING)
    note = tmp_path / "recipes" / recipe(EVERYTHING)
    facts = json.loads(note.read_text())
    note.write_text(json.dumps({**facts, "length": facts["length"] + 1}))
    assert store.find(recipe(EVERYTHING)) is None


def test_two_recipes_for_the_same_bytes_share_one_layer(tmp_path: Path) -> None:
    store = LayerStore(tmp_path)
    first = make(store, EVERYTHING, "1" * 64)
    # As an older release of the compressor left it: other bytes, the same content, a right end.
    stored = gzip.compress(fragment_of(first), compresslevel=0)
    first.path.write_bytes(stored)
    second = make(store, EVERYTHING, "2" * 64)
    assert first.path.read_bytes() == stored, "tarballs that were made of it know its length"
    assert second.length == len(stored)
    assert store.find("2" * 64) == second
    assert store.find("1" * 64) is None


def test_makers_of_the_same_layer_do_not_disturb_each_other(tmp_path: Path) -> None:
    entries = [file("a", os.urandom(3_000_000))]
    made: list[layers.Layer] = []
    together = threading.Barrier(4)

    def go() -> None:
        store = LayerStore(tmp_path)
        with store.work_directory() as work:
            together.wait()
            made.append(store.make(recipe(entries), entries, work))

    threads = [threading.Thread(target=go) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [made[0]] * 4
    assert LayerStore(tmp_path).find(recipe(entries)) == made[0]
    assert len(list((tmp_path / "layers").iterdir())) == 1


def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(layers.os, "fsync", full)
    with pytest.raises(CacheError, match=r"could not store a layer: No space left on device: .* are free"):
        make(LayerStore(tmp_path), EVERYTHING)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"]


# Chunks to compile


@given(st.lists(st.tuples(paths, st.integers(0, 3_000_000)), max_size=300))
def test_chunks_hold_everything_once_and_in_order(sources: list[tuple[str, int]]) -> None:
    found = list(chunks(sources))
    assert [path for chunk in found for path in chunk] == [path for path, _ in sources]
    assert all(1 <= len(chunk) <= 64 for chunk in found)


# Frozen


def test_golden_fragment(tmp_path: Path) -> None:
    # The compressed bytes may change with the compressor; these may not without a new version of the format.
    layer = make(LayerStore(tmp_path), EVERYTHING)
    assert fragment_of(layer) == gzip.decompress((GOLDEN / "fragment.tar.gz").read_bytes())
    assert recipe(EVERYTHING, "compiler") == (GOLDEN / "recipe.txt").read_text().strip()
