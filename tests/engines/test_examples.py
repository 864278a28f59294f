"""The examples of futures, Parsl and Dask do what they say, and leave nothing in the current directory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.engines.opened_engines import needed


def _run(name: str, cache: Path, place: Path, *arguments: str) -> list[str]:
    environ = {**os.environ, "PONCHO_CACHE_DIR": str(cache), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), *arguments], env=environ, cwd=place, capture_output=True,
        text=True, timeout=250,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert list(place.iterdir()) == []
    return done.stdout.splitlines()


def test_futures_map(shared_cache: Path, tmp_path: Path) -> None:
    pytest.importorskip("numpy", reason="the example uses NumPy")
    # Today's Work Queue begins with a warning of its own.
    assert _run("futures_map.py", shared_cache, tmp_path, "50000")[-2:] == [
        "pi is about 3.14", "and 4 calls of their own: [0, 1, 2, 3]",
    ]  # fmt: skip


@pytest.mark.slow
def test_parsl_app(shared_cache: Path, tmp_path: Path) -> None:
    needed("work_queue")
    pytest.importorskip("parsl", reason="the example uses Parsl")
    assert _run("parsl_app.py", shared_cache, tmp_path) == ["means: [1.5, 4.0]", "words: 6"]


def test_dask_vine(shared_cache: Path, tmp_path: Path) -> None:
    needed("taskvine")
    pytest.importorskip("dask", reason="the example uses Dask")
    assert _run("dask_vine.py", shared_cache, tmp_path) == ["sum: 499500", "mean of squares: 332833.5"]
