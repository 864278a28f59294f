"""Tasks in an environment of each form, on real Work Queue and on this machine: one after the other on one worker."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from poncho_wq import PonchoTask, environment, zstd_library
from poncho_wq.packing.compression import COMPRESSIONS
from tests.engines.conftest import Engine
from tests.wheelhouse import write_wheel


@pytest.mark.skipif(shutil.which("zstd") is None, reason="zstd is not installed")
@pytest.mark.skipif(zstd_library.find() is None, reason=f"no zstd library: {zstd_library.ADVICE}")
def test_tasks_in_each_form(
    engine: Engine, tmp_path: Path, shared_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in list(os.environ):
        if name.startswith(("PIP_", "UV_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    write_wheel(tmp_path, "of_some_form", "1.0", {"of_some_form.py": "WORD = 'there'\n"})

    def word() -> str:
        import of_some_form  # type: ignore[import-not-found]

        return str(of_some_form.WORD)

    made = {
        name: environment({"pip": ["of_some_form==1.0"]}, cache_dir=shared_cache, compression=name)
        for name in COMPRESSIONS
    }
    assert len({each.identity for each in made.values()}) == 1
    assert len({each.tarball for each in made.values()}) == len(made)
    tasks = [PonchoTask(word, environment=made[name]) for name in ("zstd", "none", "gzip")]
    for task in tasks:
        task.specify_cores(1)
    engine.run(*tasks)
    assert [task.output for task in tasks] == ["there"] * len(made)
    for task in tasks:
        # What one form was unpacked to serves for all: it is the same environment.
        assert task.environment.identity == made["gzip"].identity
