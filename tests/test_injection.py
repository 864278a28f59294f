"""A user's string that some program would take for an option, a second line or a command is refused when it is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from poncho_wq.errors import SpecError
from poncho_wq.importers import read_source
from poncho_wq.spec import EnvSpec

SHA = "0" * 64


def http(url: str, **more: str) -> dict[str, Any]:
    return {"http": {"X": {"url": url, "type": "file", **more}}}


@pytest.mark.parametrize(
    "spec",
    [
        # lines of a requirements file of uv's
        {"pip": ["a\n--index-url http://evil/"]},
        {"pip": ["a; os_name == 'x\n--index-url http://evil/'"]},
        {"pip": ["a @ https://host/a-1-py3-none-any.whl\n-r /etc/passwd"]},
        {"pip": ["a\u2028--index-url http://evil/"]},
        {"pip": ["a\x0b-r /etc/passwd"]},
        {"pip": ["a\0b"]},
        {"pip": ["-r /etc/passwd"]},
        {"pip": ["--index-url=http://evil/"]},
        {"pip": ["-e ."]},
        {"pip": ["a --hash=sha256:0"]},
        {"conda": {"dependencies": [{"pip": ["a\n-r x"]}]}},
        # arguments of git and ssh
        {"git": {"X": {"remote": "--upload-pack=touch x"}}},
        {"git": {"X": {"remote": "ext::sh -c touch% x"}}},
        {"git": {"X": {"remote": "ssh://-oProxyCommand=touch x/y"}}},
        {"git": {"X": {"remote": "ssh://-oProxyCommand=x/y"}}},
        {"git": {"X": {"remote": "-oProxyCommand=x:y"}}},
        {"git": {"X": {"remote": "git@-oProxyCommand=x:y"}}},
        {"git": {"X": {"remote": "https://host/x\n--upload-pack=y"}}},
        {"git": {"X": {"remote": "https://host/x", "tag": "--upload-pack=y"}}},
        {"git": {"X": {"remote": "https://host/x", "tag": "v1\n--x"}}},
        {"git": {"X": {"remote": "https://host/x", "tag": "a:refs/heads/b"}}},
        # what ends up in poncho/set_env, and in places of the prefix
        {"env": {"A\nB": "x"}},
        {"env": {"A;touch x": "x"}},
        {"env": {"A": "x\0y"}},
        {"git": {"../X": {"remote": "https://host/x"}}},
        {"http": {"X/../../Y": {"url": "https://host/x", "type": "file"}}},
        # downloads and conda
        http("-x"),
        http("file:///etc/passwd"),
        http("https://host/x\r\nHost: other"),
        http("https://host/x", sha256=f"{SHA}\n"),
        http("https://host/x", compression="gzip -c"),
        {"conda": {"channels": ["-c x"], "packages": ["a"]}},
        {"conda": {"channels": ["x\ny"], "packages": ["a"]}},
        {"conda": {"channels": ["x"], "packages": ["--help"]}},
        {"conda": {"channels": ["x"], "packages": ["a\n- b"]}},
        {"python": "3.11 --x"},
        {"python": "3.11\n"},
        {"glibc": "2.28\n"},
        {"pinned": {"conda": {"-x": "1"}}},
    ],
)
def test_a_specification(spec: dict[str, Any]) -> None:
    with pytest.raises(SpecError):
        EnvSpec.from_dict(spec)


@pytest.mark.parametrize(
    "text",
    [
        'channels: [x]\ndependencies: ["a\\n--help"]\n',
        'dependencies:\n- pip: ["a\\n--index-url http://evil/"]\n',
        'channels: ["-c"]\ndependencies: [a]\n',
        'variables: {"A B": c}\n',
    ],
)
def test_an_environment_file(text: str, tmp_path: Path) -> None:
    (tmp_path / "environment.yml").write_text(text)
    with pytest.raises(SpecError):
        read_source(tmp_path / "environment.yml")


@pytest.mark.parametrize(
    "text", ["--config-settings x\n", "--global-option=x\n", "--proxy http://x\n", "a --install-option=--x\n"]
)
def test_options_that_would_run_something(text: str, tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text(text)
    with pytest.raises(SpecError):
        read_source(tmp_path / "requirements.txt")
