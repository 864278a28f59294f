"""`poncho-wq cache`: what people and programs read, and how it ends."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from poncho_wq.cache import Cache
from poncho_wq.cli.main import main
from tests.test_cache_admin import A, B, here, maker, put

AB = f"{A[:8]}{B[:56]}"  # begins as A does


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs the command on the cache `tmp_path`: exit status, stdout, stderr."""

    def run(name: str, *words: str) -> tuple[int, str, str]:
        try:
            status = main(["cache", name, "--cache-dir", str(tmp_path), *words])
        except SystemExit as end:
            status = int(str(end.code))
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


Run = Callable[..., tuple[int, str, str]]


def parsed(result: tuple[int, str, str], status: int = 0) -> Any:
    assert result[0] == status, result
    return json.loads(result[1])


def test_list(run: Run, tmp_path: Path) -> None:
    assert run("list") == (0, "", f"no environments in {tmp_path}\n")
    assert parsed(run("list", "--json")) == []
    put(tmp_path, B, b"x" * 1500, used=2)
    put(tmp_path, A, b"y", used=1)
    Cache(tmp_path).build_once(AB, maker())
    status, out, err = run("list")
    assert (status, err) == (0, "")
    head, first, second, third = out.splitlines()
    assert head.split()[:2] == ["HASH", "SIZE"]
    assert first.startswith("a" * 12)
    assert second.startswith("b" * 12 + "    1.5 kB")
    assert third.endswith("in use")
    table = parsed(run("list", "--json"))
    assert [(each["hash"], each["size"], each["in_use"]) for each in table] == [
        (A, 1, False), (B, 1500, False), (AB, 9, True),
    ]  # fmt: skip
    assert Path(table[0]["tarball"]).read_bytes() == b"y"


def test_info(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, A, b"x" * 100, "1")
    monkeypatch.setenv("PONCHO_CACHE_SIZE", "20G")
    facts = parsed(run("info", "--json"))
    assert (facts["root"], facts["limit"], facts["environments"]) == (str(tmp_path), 20 * 10**9, 1)
    assert facts["files"] == sum(area["files"] for area in facts["areas"])
    assert facts["size"] == sum(area["size"] for area in facts["areas"]) > 0
    out = run("info")[1]
    assert "20.0 GB of tarballs and layers" in out
    assert "environments  1, 0 in use" in out
    one = parsed(run("info", A[:6], "--json"))
    assert (one["hash"], one["layers"]) == (A, ["1" * 64])
    assert "poncho-wq env show" in run("info", A[:6])[1]
    monkeypatch.setenv("PONCHO_CACHE_SIZE", "much")
    status, out, err = run("info")
    assert (status, out) == (1, "")
    assert "export PONCHO_CACHE_SIZE=20G" in err


def test_rm(run: Run, tmp_path: Path) -> None:
    put(tmp_path, A, b"one")
    put(tmp_path, B, b"two")
    put(tmp_path, AB, b"three")
    status, _, err = run("rm", A[:8])
    assert status == 2
    assert "may be any of 2: aaaaaaaabbbbbbbb" in err or "aaaaaaaaaaaaaaaa" in err
    assert "give more of the hash" in err
    status, _, err = run("rm", B[:4], "cafe")
    assert status == 2
    assert "cafe: no such environment" in err
    assert here(tmp_path) == {"a", "b"}, "nothing is removed when a word means nothing"
    assert run("rm", A[:9], parsed(run("list", "--json"))[1]["tarball"].split("/")[-1])[0] == 0
    assert len(parsed(run("list", "--json"))) == 1
    Cache(tmp_path).build_once(B, maker(b"mine"))
    status, out, err = run("rm", B[:4])
    assert (status, out) == (1, "")
    assert "a running process uses it" in err
    assert parsed(run("rm", B[:4], "--json"), 1)["in_use"][0]["hash"] == B


def test_gc(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, A, b"x" * 1000, used=1)
    put(tmp_path, B, b"x" * 1000)
    os.utime(tmp_path / "v1/environments" / B / "used")
    status, out, err = run("gc", "--older-than", "30d", "--dry-run")
    assert (status, out[:12]) == (0, A[:12])
    assert "1.0 kB would be freed, 1.0 kB left: 1 environments" in err
    assert here(tmp_path) == {"a", "b"}
    assert parsed(run("gc", "--json"))["evicted"] == []
    monkeypatch.setenv("PONCHO_CACHE_SIZE", "1500")
    done = parsed(run("gc", "--json"))
    assert ([each["hash"] for each in done["evicted"]], done["freed"], done["left"]) == ([A], 1000, 1000)
    assert run("gc", "--max-size", "none")[0] == 0
    assert here(tmp_path) == {"b"}
    assert run("gc", "--max-size", "0")[0] == 0
    assert here(tmp_path) == set()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["gc", "--max-size", "lots"], "expected a size such as 20G"),
        (["gc", "--older-than", "30"], "such as 30d"),
        (["gc", "--older-than", "-1d"], "--older-than"),
        (["rm"], "ENV"),
        (["frob"], "invalid choice"),
        (["info", "zz"], "no such environment"),
    ],
)
def test_bad_usage(words: list[str], said: str, run: Run) -> None:
    status, out, err = run(*words)
    assert (status, out) == (2, "")
    assert said in err


def test_verify(run: Run, tmp_path: Path) -> None:
    assert run("verify")[0] == 0
    put(tmp_path, A)  # no tarball of ours, as it happens
    status, out, err = run("verify")
    assert status == 1
    assert "is no tarball of poncho_wq" in out
    assert "poncho-wq cache verify --remove" in err
    assert parsed(run("verify", "--json"), 1)[0]["hash"] == A
    assert run("verify", "--remove")[0] == 0
    assert here(tmp_path) == set()
    assert run("verify") == (0, "", "0 environments, 0 damaged files\n")
