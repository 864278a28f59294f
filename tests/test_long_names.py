"""Names that no file can have: an error that says so, from whatever takes the name of one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from poncho_wq.analyze import analyze, explain
from poncho_wq.batch.distribute import parse
from poncho_wq.batch.prominence.translation import translate
from poncho_wq.cache import default_root
from poncho_wq.described import describe
from poncho_wq.errors import PonchoError
from poncho_wq.importers import read_source
from poncho_wq.importing.requirements_txt import read_requirements
from poncho_wq.prepare import environment

LONG = "x" * 5000


@pytest.mark.parametrize("name", [LONG, f"{LONG}.yml", f"dir/{LONG}", "a\0b", "~nobody-of-this-name/x"])
@pytest.mark.parametrize("use", [environment, read_source, describe, analyze, explain])
def test_of_an_environment_or_a_script(use: Callable[[str], object], name: str) -> None:
    with pytest.raises(PonchoError):
        use(name)


@pytest.mark.parametrize("name", [LONG, f"./{LONG}", "~nobody-of-this-name/x.json", "a\0b"])
def test_in_a_batch(name: str, tmp_path: Path) -> None:
    for part in ({"artifacts": [{"url": name}]}, {"tasks": [{"image": f"{name}.json", "cmd": "x"}]}):
        with pytest.raises(PonchoError):
            translate({"tasks": [{"cmd": "x"}], **part}, directory=tmp_path, upload=lambda each: tmp_path / each)
    text = "meta: {batch_name: b, namespace: n}\npython:\n  initialize: {build_file: %s}\n  jobs: []\n"
    with pytest.raises(PonchoError):
        parse(text % name, source="b.yaml", directory=tmp_path)


def test_of_a_module(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(f"import {LONG}\nfrom a.{LONG} import b\nfrom . import {LONG}\n")
    with pytest.raises(PonchoError):
        analyze(tmp_path / "script.py")


def test_in_a_requirements_file(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text(f"--find-links {LONG}\nnumpy\n")
    assert read_requirements(tmp_path / "requirements.txt").index.find_links == (LONG,)


def test_of_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PONCHO_CACHE_DIR", "~nobody-of-this-name/cache")
    assert default_root().name == "cache"
