"""The .pyc files that packages bring: taken over when they fit their source, and only then."""

from __future__ import annotations

import importlib.util
import py_compile
import struct
from pathlib import Path

import pytest

from poncho_wq.packing.layers import Entry, OnDisk, WithHead
from poncho_wq.packing.planning import Plan
from poncho_wq.packing.shipped_bytecode import adopt, magic
from tests.conda.channel import FULL, MINOR

TAG = f"cpython-{MINOR.replace('.', '')}"
SOURCE = f"lib/python{MINOR}/site-packages/mod.py"
CACHED = f"lib/python{MINOR}/site-packages/__pycache__/mod.{TAG}.pyc"


def entry(root: Path, path: str) -> Entry:
    facts = (root / path).stat()
    content = OnDisk(path=str(root / path), size=facts.st_size, mtime_ns=facts.st_mtime_ns)
    return Entry(path=path, kind="file", content=content, digest="ab" * 32)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / CACHED).parent.mkdir(parents=True)
    (tmp_path / SOURCE).write_text("VALUE = 42\n")
    return tmp_path


def compiled(root: Path, mode: py_compile.PycInvalidationMode = py_compile.PycInvalidationMode.TIMESTAMP) -> bytes:
    py_compile.compile(str(root / SOURCE), cfile=str(root / CACHED), invalidation_mode=mode)
    return (root / CACHED).read_bytes()


def adopted(
    root: Path, *, edited: frozenset[str] = frozenset(), python: str = FULL
) -> tuple[list[Entry], frozenset[str]]:
    plan = Plan(name="mod", entries=(entry(root, CACHED), entry(root, SOURCE)))
    plans, done = adopt([plan], python, edited)
    return [each for each in plans[0].entries if each.path == CACHED], done


def test_our_table_knows_this_python() -> None:
    assert magic(MINOR) == importlib.util.MAGIC_NUMBER


@pytest.mark.parametrize("mode", list(py_compile.PycInvalidationMode))
def test_it_becomes_what_the_interpreter_takes_without_looking_at_the_source(
    root: Path, mode: py_compile.PycInvalidationMode
) -> None:
    before = compiled(root, mode)
    (kept,), done = adopted(root)
    assert done == {SOURCE}
    assert kept.digest.endswith(" unchecked"), "the layer's recipe differs from that of the file as it was"
    assert isinstance(kept.content, WithHead)
    head = kept.content.head()
    expected = compiled(root, py_compile.PycInvalidationMode.UNCHECKED_HASH)
    assert head + before[16:] == expected


def test_of_another_source(root: Path) -> None:
    compiled(root)
    (root / SOURCE).write_text("VALUE = 421\n")
    assert adopted(root) == ([], frozenset())


def test_with_the_hash_of_another_source(root: Path) -> None:
    compiled(root, py_compile.PycInvalidationMode.CHECKED_HASH)
    (root / SOURCE).write_text("VALUE = 43\n")
    assert adopted(root) == ([], frozenset())


def test_of_another_release(root: Path) -> None:
    data = compiled(root)
    (root / CACHED).write_bytes(struct.pack("<H", 1) + data[2:])
    assert adopted(root) == ([], frozenset())


def test_of_a_source_that_is_edited_after_unpacking(root: Path) -> None:
    compiled(root)
    assert adopted(root, edited=frozenset({SOURCE})) == ([], frozenset())


@pytest.mark.parametrize("length", [0, 3, 15])
def test_cut_short(root: Path, length: int) -> None:
    (root / CACHED).write_bytes(compiled(root)[:length])
    assert adopted(root) == ([], frozenset())


def test_without_a_source(root: Path) -> None:
    compiled(root)
    plans, done = adopt([Plan(name="mod", entries=(entry(root, CACHED),))], FULL, frozenset())
    assert plans[0].entries == ()
    assert not done


def test_for_a_release_that_we_do_not_know(root: Path) -> None:
    compiled(root)
    assert adopted(root, python="3.99.1") == ([], frozenset())


def test_plans_without_any_stay_as_they_are(root: Path) -> None:
    plan = Plan(name="mod", entries=(entry(root, SOURCE),))
    assert adopt([plan], FULL, frozenset()) == ([plan], frozenset())
