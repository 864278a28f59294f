"""Copies of interpreters in the cache: the same as a fresh copy, and nothing stale or damaged is ever used."""

from __future__ import annotations

import dataclasses
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from poncho_wq.build import interpreters
from poncho_wq.build.interpreter import Interpreter
from poncho_wq.build.interpreters import Interpreters
from poncho_wq.build.stdlib import certificates_of, copy_interpreter
from poncho_wq.errors import BuildError


def tree(root: Path) -> dict[str, tuple[str, int, bytes]]:
    """Everything below ``root``: what it is, its mode, and its content."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.is_symlink():
            found[name] = ("link", 0, os.fsencode(os.readlink(path)))
        elif path.is_dir():
            found[name] = ("directory", 0, b"")
        else:
            found[name] = ("file", path.stat().st_mode & 0o777, path.read_bytes())
    return found


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Interpreter:
    """An interpreter whose standard library is the tests' to change, smaller than it should be."""
    running = Interpreter.running()
    stdlib = tmp_path_factory.mktemp("installed") / running.library
    left_out = ("test", "site-packages", "__pycache__", "idlelib", "config-*", "pydoc_data", "ensurepip", "lib2to3")
    shutil.copytree(running.stdlib, stdlib, ignore=shutil.ignore_patterns(*left_out))
    return dataclasses.replace(running, stdlib=stdlib, platstdlib=stdlib)


@pytest.fixture(scope="module")
def made(python: Interpreter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with one copy in it."""
    directory = tmp_path_factory.mktemp("made")
    store = Interpreters(directory / "cache")
    assert store.seek(python, os.environ).kept is None
    store.place(python, directory / "first", os.environ)
    assert store.seek(python, os.environ).kept is not None
    return directory / "cache"


@pytest.fixture(scope="module")
def fresh(python: Interpreter, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, int, bytes]]:
    directory = tmp_path_factory.mktemp("fresh")
    copy_interpreter(python, directory / "prefix", os.environ)
    return tree(directory / "prefix")


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Interpreters:
    """With one copy in it, the test's own."""
    shutil.copytree(made, tmp_path / "cache", symlinks=True)
    return Interpreters(tmp_path / "cache")


@pytest.fixture
def no_copying(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def refused(*_arguments: object) -> None:
        raise AssertionError("it was copied again")

    with monkeypatch.context() as patch:
        patch.setattr(interpreters, "copy_interpreter", refused)
        yield


def test_a_copy_from_the_cache_is_the_same_as_a_fresh_one(
    python: Interpreter, store: Interpreters, fresh: object, no_copying: None, tmp_path: Path
) -> None:
    said = store.place(python, tmp_path / "second", os.environ)
    assert tree(tmp_path / "second") == fresh
    assert said == certificates_of(python, tmp_path / "second")


def test_a_program_that_is_written_to_in_place_is_the_prefix_s_own(
    python: Interpreter, store: Interpreters, fresh: object, no_copying: None, tmp_path: Path
) -> None:
    store.place(python, tmp_path / "second", os.environ)
    (tmp_path / "second/bin/python").write_bytes(b"")  # through its symbolic link
    store.place(python, tmp_path / "third", os.environ)
    assert tree(tmp_path / "third") == fresh


def test_a_file_that_was_written_to_through_a_prefix_is_not_used(
    python: Interpreter, store: Interpreters, fresh: object, tmp_path: Path
) -> None:
    store.place(python, tmp_path / "first", os.environ)
    with (tmp_path / "first/lib" / python.library / "os.py").open("r+b") as stream:
        stream.write(b"#")
    assert store.seek(python, os.environ).kept is None
    store.place(python, tmp_path / "second", os.environ)
    assert tree(tmp_path / "second") == fresh
    # What is right has replaced it.
    assert store.seek(python, os.environ).kept is not None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"files": {"os.py": 1}}', '{"files": []}', "\0"])
def test_facts_that_are_damaged_are_no_error(
    text: str, python: Interpreter, tmp_path: Path, store: Interpreters
) -> None:
    (facts,) = (tmp_path / "cache/interpreters").glob("*/facts.json")
    facts.write_text(text)
    assert store.seek(python, os.environ).kept is None


def test_an_interpreter_that_changes_in_place_is_another_one(
    python: Interpreter, store: Interpreters, tmp_path: Path
) -> None:
    """An update may keep the size, and tools set the time."""
    file = python.stdlib / "this.py"
    before, facts = file.read_bytes(), file.stat()
    try:
        file.write_bytes(before.replace(b"s", b"t"))
        os.utime(file, ns=(facts.st_atime_ns, facts.st_mtime_ns))
        store.place(python, tmp_path / "second", os.environ)
        assert (tmp_path / "second/lib" / python.library / "this.py").read_bytes() == file.read_bytes() != before
    finally:
        file.write_bytes(before)
    (python.stdlib / "new.py").write_text("")
    try:
        assert store.seek(python, os.environ).kept is None
    finally:
        (python.stdlib / "new.py").unlink()
    assert store.seek(python, os.environ).kept is not None
    assert store.seek(dataclasses.replace(python, prefix=tmp_path), os.environ).kept is None


def test_libraries_that_the_loader_finds_elsewhere_or_changed_are_others(python: Interpreter, tmp_path: Path) -> None:
    copy_interpreter(python, tmp_path / "plain", os.environ)
    library = next((tmp_path / "plain/lib").glob("lib[!p]*.so*"))  # not Python's own
    (tmp_path / "module").mkdir()
    there = tmp_path / "module" / library.name
    shutil.copyfile(library, there)
    environment = {**os.environ, "LD_LIBRARY_PATH": str(there.parent)}
    store = Interpreters(tmp_path / "cache")
    store.place(python, tmp_path / "first", environment)
    assert store.seek(python, environment).kept is not None
    assert store.seek(python, os.environ).kept is None
    with there.open("ab") as stream:
        stream.write(b"more")
    assert store.seek(python, environment).kept is None


def test_a_copy_that_is_taken_away_just_now_is_made_again(
    python: Interpreter, store: Interpreters, fresh: object, tmp_path: Path
) -> None:
    sought = store.seek(python, os.environ)
    assert sought.kept is not None
    (sought.kept.prefix / "lib" / python.library / "string.py").unlink()
    store.place(python, tmp_path / "second", os.environ, sought)
    assert tree(tmp_path / "second") == fresh


def test_an_interpreter_that_changes_while_it_is_copied_is_not_kept(
    python: Interpreter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def copied(python: Interpreter, prefix: Path, environment: object) -> object:
        loader = copy_interpreter(python, prefix, os.environ)
        (python.stdlib / "new.py").write_text("")
        return loader

    monkeypatch.setattr(interpreters, "copy_interpreter", copied)
    store = Interpreters(tmp_path / "cache")
    try:
        store.place(python, tmp_path / "first", os.environ)
    finally:
        (python.stdlib / "new.py").unlink()
    assert store.seek(python, os.environ).kept is None


@pytest.mark.parametrize("error", [OSError("no room"), BuildError("nothing")])
def test_what_cannot_be_kept_is_built_all_the_same(
    error: Exception, python: Interpreter, fresh: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_arguments: object) -> None:
        raise error

    monkeypatch.setattr(interpreters, "_link", failing)
    store = Interpreters(tmp_path / "cache")
    store.place(python, tmp_path / "first", os.environ)
    assert tree(tmp_path / "first") == fresh
    assert [each.name for each in (tmp_path / "cache/interpreters").iterdir()] == ["tmp"]
    assert [each.name for each in (tmp_path / "cache/interpreters/tmp").iterdir()] == [".lock"]


def test_what_nothing_was_built_with_for_a_month_goes(python: Interpreter, store: Interpreters, tmp_path: Path) -> None:
    old, young = (tmp_path / "cache/interpreters" / name for name in ("old", "young"))
    for directory, days in ((old, 31), (young, 29)):
        directory.mkdir()
        (directory / "facts.json").write_text("{}")
        os.utime(directory / "facts.json", times=(0, time.time() - days * 24 * 3600))
    store.place(dataclasses.replace(python, exec_prefix=tmp_path), tmp_path / "second", os.environ)
    assert not old.exists()
    assert young.exists()
    assert store.seek(python, os.environ).kept is not None
