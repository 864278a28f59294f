"""Credentials in URLs: not in errors or their attributes, not in what is remembered, not in any file that stays."""

from __future__ import annotations

import os
import pickle
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from poncho_wq.batch.prominence.translation import translate
from poncho_wq.batch.spool import Spool
from poncho_wq.batch.tasks import keep_inputs
from poncho_wq.errors import PonchoError
from poncho_wq.prepare import environment

SECRET = "s3cret-Passw0rd"
# Nobody listens on port 1.
INDEX = f"http://me:{SECRET}@127.0.0.1:1/simple"


def said(error: BaseException) -> str:
    """All that anybody could print of it."""
    facts = "".join(repr(value) for value in vars(error).values())
    return "".join(traceback.format_exception(error)) + repr(error) + facts + repr(pickle.dumps(error))


def fail(work: Callable[[], object]) -> str:
    with pytest.raises(PonchoError) as caught:
        work()
    return said(caught.value)


def holding(directory: Path) -> list[Path]:
    """Files that hold the secret."""
    return [path for path in directory.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]


@pytest.mark.parametrize(
    "variable", ["PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "UV_INDEX", "UV_DEFAULT_INDEX"]
)
def test_of_an_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    for name in [name for name in os.environ if name.startswith(("PIP_", "UV_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    monkeypatch.setenv(variable, INDEX)
    if variable not in ("PIP_INDEX_URL", "UV_DEFAULT_INDEX"):
        monkeypatch.setenv(
            "UV_DEFAULT_INDEX" if variable.startswith("UV") else "PIP_INDEX_URL", "http://127.0.0.1:1/other"
        )
    spec = {"pip": ["no-such-package-anywhere==1.0"]}
    assert SECRET not in fail(lambda: environment(spec, cache_dir=tmp_path))
    assert SECRET not in fail(lambda: environment(spec, cache_dir=tmp_path))  # what was remembered of the first time
    assert holding(tmp_path) == []


def test_in_a_requirements_file(tmp_path: Path) -> None:
    file = tmp_path / "own" / "requirements.txt"
    file.parent.mkdir()
    file.write_text(f"--index-url {INDEX}\nno-such-package-anywhere==1.0\n")
    assert SECRET not in fail(lambda: environment(file, cache_dir=tmp_path / "cache"))
    assert holding(tmp_path / "cache") == []


@pytest.mark.parametrize(
    "url", [f"http://me:{SECRET}@127.0.0.1:1/x.tar.gz", f"http://127.0.0.1:1/x.tar.gz?token={SECRET}"]
)
def test_of_an_artifact(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import poncho_wq.build.download as downloading

    monkeypatch.setattr(downloading.time, "sleep", lambda _: None)
    document = {"tasks": [{"cmd": "x"}], "artifacts": [{"url": url}]}
    batch = translate(document, directory=tmp_path).batch
    spool = Spool(tmp_path / "save").make()
    assert SECRET not in fail(lambda: keep_inputs(batch, spool))
    assert holding(tmp_path) == []


@pytest.mark.parametrize(
    "spec",
    [
        {"http": {"X": {"url": f"https://me:{SECRET}@host/x", "type": "file"}}},
        {"git": {"X": {"remote": f"https://me:{SECRET}@host/x.git"}}},
        {"pip": [f"a @ https://me:{SECRET}@host/a-1-py3-none-any.whl"]},
        {"conda": {"channels": [f"https://me:{SECRET}@host/c"], "packages": ["a"]}},
        {"conda": {"channels": [f"https://host/t/{SECRET}/c"], "packages": ["a"]}},
    ],
)
def test_in_a_specification_they_are_refused_and_not_repeated(spec: dict[str, object], tmp_path: Path) -> None:
    text = fail(lambda: environment(spec, cache_dir=tmp_path))
    assert SECRET not in text
    assert "credentials" in text
    assert holding(tmp_path) == []
