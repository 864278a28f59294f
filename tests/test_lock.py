"""A lock reads back as it was written, refuses what is not one, and shows nothing that is private."""

from __future__ import annotations

import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poncho_wq.errors import BuildError, SpecError
from poncho_wq.lock import Lock, LockedPackage, packages_from_pylock
from poncho_wq.lockfile import LockFile

DIGEST = "ab" * 32
words = st.from_regex(r"[a-z][a-z0-9.-]{0,10}", fullmatch=True)
packages = st.builds(
    LockedPackage,
    name=words,
    version=st.none() | words,
    sha256=st.lists(st.binary(min_size=32, max_size=32).map(bytes.hex), max_size=3).map(tuple),
    url=st.none() | st.text(min_size=1),
    commit=st.none() | words,
)
locks = st.builds(
    Lock,
    python=words,
    interpreter=st.none() | words,
    platform=words,
    packages=st.lists(packages, max_size=4).map(tuple),
)


@given(locks)
def test_what_was_written_reads_back(lock: Lock) -> None:
    assert Lock.from_json(lock.to_json()) == lock


@given(
    st.text()
    | st.recursive(st.none() | st.integers() | st.text(), lambda s: st.lists(s) | st.dictionaries(st.text(), s)).map(
        json.dumps
    )
)
def test_any_text_is_a_lock_or_an_error_of_ours(text: str) -> None:
    with pytest.raises(BuildError):
        Lock.from_json(text)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 2}, "format: expected 1, got 2"),
        ({"python": 3}, "lock.python: expected text, got a number"),
        ({"python": None}, "lock.python: missing"),
        ({"extra": 1}, "unknown key 'extra'"),
        ({"packages": {}}, "packages: expected a list"),
        ({"packages": [3]}, "packages[0]: expected an object"),
        ({"packages": [{"version": "1"}]}, "packages[0].name: missing"),
        ({"packages": [{"name": "a", "sha256": ["zz"]}]}, "packages[0].sha256: expected a list of sha256"),
        ({"packages": [{"name": "a", "sha": []}]}, "packages[0]: unknown key 'sha'"),
    ],
)
def test_errors_name_the_place(change: dict[str, object], words: str) -> None:
    document = json.loads(Lock(python="3.11.7", interpreter="x", platform="linux-64", packages=()).to_json())
    with pytest.raises(BuildError, match=words.replace("[", r"\[").replace("]", r"\]")):
        Lock.from_json(json.dumps(document | change))


def test_packages_of_a_pylock_are_sorted_and_normalised() -> None:
    solved = {
        "packages": [
            {"name": "Zope.Interface", "version": "5", "wheels": [{"hashes": {"sha256": DIGEST}}]},
            {
                "name": "a",
                "version": "1",
                "wheels": [{"hashes": {"sha256": "ff" * 32}}, {"hashes": {"sha256": DIGEST}}],
                "sdist": {"hashes": {"sha256": DIGEST}},
            },
        ]
    }
    assert packages_from_pylock(solved) == (
        LockedPackage(name="a", version="1", sha256=(DIGEST, "ff" * 32)),
        LockedPackage(name="zope-interface", version="5", sha256=(DIGEST,)),
    )


@pytest.mark.parametrize(
    ("entry", "url", "commit"),
    [
        (
            {"archive": {"url": "https://me:secret@host/a.whl", "hashes": {"sha256": DIGEST}}},
            "https://***@host/a.whl",
            None,
        ),
        ({"archive": {"url": "file:///home/me/a.whl", "hashes": {"sha256": DIGEST}}}, "file:a.whl", None),
        ({"archive": {"path": "/home/me/a.whl", "hashes": {"sha256": DIGEST}}}, "file:a.whl", None),
        ({"vcs": {"type": "git", "url": "https://host/a", "commit-id": "c0ffee"}}, "git+https://host/a", "c0ffee"),
        (
            {"vcs": {"type": "git", "url": "https://host/a", "commit-id": "c0ffee", "subdirectory": "py"}},
            "git+https://host/a#subdirectory=py",
            "c0ffee",
        ),
        ({"vcs": {"type": "git", "url": "file:///home/me/repo", "commit-id": "c0ffee"}}, "git+file:repo", "c0ffee"),
    ],
)
def test_references_stay_without_credentials_and_directories(
    entry: dict[str, object], url: str, commit: str | None
) -> None:
    (package,) = packages_from_pylock({"packages": [{"name": "a", "version": "1", **entry}]})
    assert (package.url, package.commit) == (url, commit)
    assert "secret" not in repr(package)
    assert "/home/me" not in repr(package)


def test_a_folder_cannot_be_locked() -> None:
    with pytest.raises(BuildError, match="folder"):
        packages_from_pylock({"packages": [{"name": "a", "directory": {"path": "/home/me/a"}}]})


@pytest.mark.parametrize("document", [{"packages": [{}]}, {"packages": [3]}, {"packages": [{"name": "a", "vcs": {}}]}])
def test_a_result_of_another_shape_is_an_error_of_ours(document: dict[str, object]) -> None:
    with pytest.raises(BuildError, match="not as expected"):
        packages_from_pylock(document)


def test_an_empty_text_is_none() -> None:
    lock = Lock(
        python="3.11.7", interpreter="x", platform="linux-64", packages=(LockedPackage(name="a", version=None),)
    )
    document = json.loads(lock.to_json())
    document["packages"][0] |= {"version": "", "url": "", "commit": ""}
    assert Lock.from_json(json.dumps(document)) == lock


def test_what_is_nested_too_deeply_is_an_error_of_ours() -> None:
    deep = "[" * 100_000
    with pytest.raises(BuildError, match="nested too deeply"):
        Lock.from_json(deep)
    with pytest.raises(SpecError, match=r"poncho\.lock: is not a lock file: nested too deeply"):
        LockFile.from_json(deep, source="poncho.lock")
    # Some that can be read cannot be written again: none may be an error of Python's.
    for depth in range(100, sys.getrecursionlimit() + 100, 10):
        with pytest.raises((BuildError, SpecError)):
            LockFile.from_json(f'{{"poncho-lock": 1, "spec": {{"pip": []}}, "lock": {"[" * depth}{"]" * depth}}}')
