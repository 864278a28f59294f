"""Paths of this machine go, everything else stays where it was."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poncho_wq.build.neutral import Neutral, replace_file

PREFIX, HOME = Path("/home/alice/.pyenv/versions/3.12.1"), Path("/home/alice")
neutral = Neutral([PREFIX, Path("/sw")], home=HOME)


@pytest.mark.parametrize(
    "text",
    [
        "/home/alice/.pyenv/versions/3.12.1",
        "/home/alice/.pyenv/versions/3.12.1/lib/python3.12",
        "-L/home/alice/.pyenv/versions/3.12.1/lib -Wl,-rpath,/home/alice/x",
        "--prefix=/home/alice",
        "./home/alice/x",
        "/nfs/home/alice/x",
    ],
)
def test_paths_go_and_lengths_stay(text: str) -> None:
    cleaned = neutral.clean(b"\0" + text.encode() + b"\0")
    assert len(cleaned) == len(text) + 2
    assert b"alice" not in cleaned


@pytest.mark.parametrize("text", ["/home/alicexyz/a", "/home/alice-2", "/sw/lib", "/usr/lib", "/root/a"])
def test_other_paths_stay(text: str) -> None:
    assert neutral.clean(text.encode()) == text.encode()


def test_the_end_of_a_constant_stays_as_another_may_share_it() -> None:
    """Linkers merge a constant with the end of another: here the version with the prefix, as in CPython 3.12.1."""
    data = b"\0" + bytes(PREFIX) + b"\0"
    version_at = data.index(b"3.12.1")
    cleaned = neutral.clean(data)
    assert cleaned[version_at : version_at + 7] == b"3.12.1\0"
    assert cleaned != data


def test_places_that_all_machines_have_are_no_secret() -> None:
    everywhere = Neutral([Path("/usr"), Path("/usr/local"), Path("/")], home=Path("/root"))
    assert everywhere.clean(b"/usr/lib /usr/local/lib /root/x") == b"/usr/lib /usr/local/lib /root/x"


def test_text_takes_the_replacement_as_it_is() -> None:
    assert Neutral([PREFIX]).replace(f"-L{PREFIX}/lib {PREFIX}", r"{prefix}\1") == r"-L{prefix}\1/lib {prefix}\1"


@given(st.binary(), st.binary())
def test_what_names_nothing_is_untouched_and_cleaning_is_done_once(before: bytes, after: bytes) -> None:
    data = before + b" " + bytes(HOME) + b"\0" + after
    cleaned = neutral.clean(data)
    assert len(cleaned) == len(data)
    assert bytes(HOME) + b"\0" not in cleaned
    assert neutral.clean(cleaned) == cleaned
    if bytes(HOME) not in before:
        assert cleaned.startswith(before)


def test_replacing_a_file_keeps_its_mode_and_leaves_other_links(tmp_path: Path) -> None:
    old, link = tmp_path / "old", tmp_path / "link"
    old.write_bytes(b"shared")
    old.chmod(0o750)
    os.link(old, link)
    replace_file(link, b"new")
    assert (old.read_bytes(), link.read_bytes(), link.stat().st_mode & 0o7777) == (b"shared", b"new", 0o750)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["link", "old"]
