"""The package's `analyze` is a function, whatever was imported before, and importing it costs nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import ROOT


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    "first",
    [
        "import poncho_wq",
        "from poncho_wq import analyze",
        "import poncho_wq.analyze",
        "from poncho_wq.analyze import reach",
        "import poncho_wq.prepare",
        "import poncho_wq.cli.analyze, poncho_wq.analyze",
        "import importlib, poncho_wq; importlib.import_module('poncho_wq.analyze')",
    ],
)
def test_the_name_of_the_package_is_the_function(first: str) -> None:
    code = f"{first}; import poncho_wq; print(type(poncho_wq.analyze).__name__, poncho_wq.analyze(len).pip)"
    assert python(code) == "function ()"


def test_importing_it_loads_nothing_heavy() -> None:
    code = "import sys, poncho_wq.analyze; print([m for m in ('ast', 'dis', 'json', 'importlib.metadata', 'packaging', "
    code += "'poncho_wq.distributions', 'poncho_wq.spec') if m in sys.modules])"
    assert python(code) == "[]"
