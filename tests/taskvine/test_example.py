"""``examples/taskvine_library.py`` does what it says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "taskvine_library.py"


def test_the_example_runs(vine: Any, shared_cache: Path, tmp_path: Path) -> None:
    pytest.importorskip("numpy", reason="the example uses numpy, which is not installed")
    environ = {**os.environ, "PONCHO_CACHE_DIR": str(shared_cache), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), "20"], env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first.startswith("20 calls; the largest prediction is 1.")
    assert second.startswith(f"a worker's Python {sys.version_info.major}.{sys.version_info.minor}.")
    assert list(tmp_path.iterdir()) == [], "nothing is left in the current directory"
