"""pip's configuration becomes uv's, and never overrides what uv was told."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from poncho_wq.build.index import config_files, pip_settings, uv_arguments, uv_variables, wants_no_index

INDEX = "https://me:secret@host.example/simple"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """An environment whose home, machine and virtual environment configuration files are all in `tmp_path`."""
    monkeypatch.setattr("sys.prefix", str(tmp_path / "venv"))
    monkeypatch.setattr("poncho_wq.build.index.MACHINE_WIDE", tmp_path / "etc" / "pip.conf")
    return {"HOME": str(tmp_path / "home"), "XDG_CONFIG_DIRS": str(tmp_path / "xdg")}


def _configure(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("pip", "uv"),
    [
        ({"PIP_INDEX_URL": INDEX}, {"UV_DEFAULT_INDEX": INDEX}),
        (
            {"PIP_EXTRA_INDEX_URL": f"{INDEX}\n https://b.example/ "},
            {"UV_INDEX": f"{INDEX} https://b.example/", "UV_INDEX_STRATEGY": "unsafe-best-match"},
        ),
        ({"PIP_FIND_LINKS": "/a  https://b.example/links"}, {"UV_FIND_LINKS": "/a,https://b.example/links"}),
        ({"PIP_TRUSTED_HOST": "a.example b.example:8080"}, {"UV_INSECURE_HOST": "a.example b.example:8080"}),
        ({"PIP_CERT": "/etc/cert.pem"}, {"SSL_CERT_FILE": "/etc/cert.pem"}),
        ({"PIP_PROXY": "http://proxy.example:3128"}, {"ALL_PROXY": "http://proxy.example:3128"}),
        ({"PIP_DEFAULT_TIMEOUT": "180"}, {"UV_HTTP_TIMEOUT": "180"}),
        ({"PIP_TIMEOUT": "18"}, {"UV_HTTP_TIMEOUT": "18"}),
        ({"PIP_RETRIES": "0"}, {"UV_HTTP_RETRIES": "0"}),
        ({"PIP_CONSTRAINT": "/c.txt"}, {"UV_CONSTRAINT": "/c.txt"}),
        ({"PIP_INDEX_URL": "", "PIP_NO_COLOR": "1", "PIP_CONFIG_FILE": os.devnull}, {}),
        ({}, {}),
    ],
)
def test_variables(home: dict[str, str], pip: dict[str, str], uv: dict[str, str]) -> None:
    assert uv_variables(home | pip) == uv


@pytest.mark.parametrize("decided", ["UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_INDEX", "UV_EXTRA_INDEX_URL"])
def test_an_index_that_uv_was_told_replaces_all_of_pips(home: dict[str, str], decided: str) -> None:
    pip = {"PIP_INDEX_URL": INDEX, "PIP_EXTRA_INDEX_URL": INDEX, "PIP_FIND_LINKS": "/a", "PIP_TIMEOUT": "3"}
    assert uv_variables(home | pip | {decided: "https://mine.example"}) == {"UV_HTTP_TIMEOUT": "3"}


def test_a_strategy_that_the_user_chose_stays(home: dict[str, str]) -> None:
    chosen = {"PIP_EXTRA_INDEX_URL": INDEX, "UV_INDEX_STRATEGY": "first-index"}
    assert uv_variables(home | chosen) == {"UV_INDEX": INDEX}


@pytest.mark.parametrize(("value", "answer"), [("1", True), ("true", True), ("Yes", True), ("0", False), ("", False)])
def test_no_index(home: dict[str, str], value: str, answer: bool) -> None:
    assert wants_no_index(home | {"PIP_NO_INDEX": value}) is answer
    assert not wants_no_index(home | {"PIP_NO_INDEX": value, "UV_INDEX": INDEX})


def test_wheels_or_source(home: dict[str, str]) -> None:
    told = {"PIP_NO_BINARY": "mpi4py,h5py", "PIP_ONLY_BINARY": "numpy scipy", "PIP_NO_INDEX": "1"}
    assert uv_arguments(home) == []
    assert uv_arguments(home | told) == [
        "--no-index",
        "--no-binary",
        "mpi4py",
        "--no-binary",
        "h5py",
        "--only-binary",
        "numpy",
        "--only-binary",
        "scipy",
    ]
    assert uv_arguments(home | {"PIP_NO_BINARY": ":all:"}) == ["--no-binary", ":all:"]


def test_files_in_order_of_strength(home: dict[str, str], tmp_path: Path) -> None:
    weakest_first = [
        tmp_path / "xdg" / "pip" / "pip.conf",
        tmp_path / "etc" / "pip.conf",
        tmp_path / "home" / ".pip" / "pip.conf",
        tmp_path / "home" / ".config" / "pip" / "pip.conf",
        tmp_path / "venv" / "pip.conf",
    ]
    assert config_files(home) == weakest_first
    for number, path in enumerate(weakest_first):
        _configure(path, f"[global]\nindex-url = https://{number}.example\nindex_url{number} = x\n")
        assert pip_settings(home)["index-url"] == f"https://{number}.example"
    assert {f"index-url{number}" for number in range(5)} < set(pip_settings(home))
    assert pip_settings(home | {"PIP_INDEX_URL": INDEX})["index-url"] == INDEX


def test_a_file_of_ones_own_replaces_the_users(home: dict[str, str], tmp_path: Path) -> None:
    _configure(tmp_path / "home" / ".config" / "pip" / "pip.conf", "[global]\ntimeout = 1\nretries = 1\n")
    _configure(tmp_path / "etc" / "pip.conf", "[global]\nproxy = p\n")
    own = _configure(tmp_path / "own.conf", "[global]\ntimeout = 2\n[install]\ntimeout = 3\n[download]\ntimeout = 4\n")
    assert pip_settings(home | {"PIP_CONFIG_FILE": str(own)}) == {"proxy": "p", "timeout": "3"}
    assert pip_settings(home | {"PIP_CONFIG_FILE": os.devnull}) == {}


def test_lists_over_several_lines(home: dict[str, str], tmp_path: Path) -> None:
    _configure(
        tmp_path / "etc" / "pip.conf", "[global]\nextra-index-url =\n    https://a.example\n    https://b.example\n"
    )
    assert uv_variables(home)["UV_INDEX"] == "https://a.example https://b.example"


@pytest.mark.parametrize("content", [b"no section\n", b"[global\n", b"\xff\xfe", b"[global]\na\n", b"[a]\n[a]\n"])
def test_a_broken_file_says_nothing(home: dict[str, str], tmp_path: Path, content: bytes) -> None:
    _configure(tmp_path / "etc" / "pip.conf", "")
    (tmp_path / "etc" / "pip.conf").write_bytes(content)
    assert uv_variables(home) == {}


def test_percent_signs_are_not_interpolated(home: dict[str, str], tmp_path: Path) -> None:
    _configure(tmp_path / "etc" / "pip.conf", "[global]\nindex-url = https://me:p%40ss%25@host.example/simple\n")
    assert uv_variables(home) == {"UV_DEFAULT_INDEX": "https://me:p%40ss%25@host.example/simple"}


@pytest.mark.parametrize(
    "toml",
    ['[[index]]\nurl = "https://a.example"\n', 'index-url = "https://a.example"\n', "[pip]\nextra-index-url = []\n"],
)
@pytest.mark.parametrize("place", ["home/.config/uv/uv.toml", "xdg/uv/uv.toml", "etc/uv/uv.toml"])
def test_an_index_in_uvs_own_file_replaces_pips(home: dict[str, str], tmp_path: Path, toml: str, place: str) -> None:
    assert "UV_DEFAULT_INDEX" in uv_variables(home | {"PIP_INDEX_URL": INDEX})
    _configure(tmp_path / place, toml)
    assert uv_variables(home | {"PIP_INDEX_URL": INDEX, "PIP_RETRIES": "1"}) == {"UV_HTTP_RETRIES": "1"}


def test_a_file_of_uvs_that_names_no_index_changes_nothing(home: dict[str, str], tmp_path: Path) -> None:
    _configure(tmp_path / "home/.config/uv/uv.toml", 'python-downloads = "never"\n')
    assert "UV_DEFAULT_INDEX" in uv_variables(home | {"PIP_INDEX_URL": INDEX})
