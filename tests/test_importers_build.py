"""From what a user has to a tarball: what the source says of indexes, hashes and interpreters reaches the builder."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

import pytest

from poncho_wq.build.interpreter import Interpreter
from poncho_wq.build.uv import find_uv
from poncho_wq.errors import SolveError
from poncho_wq.prepare import Environment, environment
from poncho_wq.wrapper import wrapper_path
from tests.wheelhouse import write_wheel


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("PIP_", "UV_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)


def in_it(made: Environment, code: str) -> str:
    argv = ["sh", str(wrapper_path()), "-e", str(made.tarball), "--", "python", "-c", code]
    worker = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent"}
    return subprocess.run(argv, env=worker, capture_output=True, text=True, check=True).stdout.strip()


def wheels(directory: Path) -> dict[str, str]:
    """Two versions of a package, and the digest of each."""
    made = {v: write_wheel(directory, "thing", v, {"thing.py": f"V = {v!r}\n"}) for v in ("1.0", "2.0")}
    return {version: hashlib.sha256(path.read_bytes()).hexdigest() for version, path in made.items()}


def test_a_requirements_file_with_its_own_index_hashes_and_constraints(tmp_path: Path) -> None:
    digests = wheels(tmp_path / "wheels")
    file, limits = tmp_path / "requirements.txt", tmp_path / "limits.txt"
    options = "--no-index\n--find-links wheels\n"
    file.write_text(f"{options}thing\n")
    newest = environment(file, cache_dir=tmp_path / "cache")
    assert in_it(newest, "import thing; print(thing.V)") == "2.0"
    assert environment(file, cache_dir=tmp_path / "cache").cached

    limits.write_text("thing<2\n")
    file.write_text(f"{options}-c limits.txt\nthing\n")
    limited = environment(file, cache_dir=tmp_path / "cache")
    assert in_it(limited, "import thing; print(thing.V)") == "1.0"

    file.write_text(f"{options}thing==1.0 --hash=sha256:{digests['1.0']}\n")
    assert environment(file, cache_dir=tmp_path / "cache").tarball != limited.tarball
    # A wrong hash must not be answered from what the cache has for the same requirement.
    file.write_text(f"{options}thing==1.0 --hash=sha256:{digests['2.0']}\n")
    with pytest.raises(SolveError, match=r"thing 1\.0"):
        environment(file, cache_dir=tmp_path / "cache")
    names = subprocess.run(["tar", "-xzOf", limited.tarball, "poncho/spec.json", "poncho/lock.json"],
                           capture_output=True, text=True, check=True)  # fmt: skip
    assert str(tmp_path) not in names.stdout


def test_a_venv_of_another_interpreter_takes_that_one_along(tmp_path: Path) -> None:
    other = Path("/usr/bin/python3")
    if not other.exists() or Interpreter.of(other).identity == Interpreter.running().identity:
        pytest.skip("needs a second Python at /usr/bin/python3")
    subprocess.run([find_uv(), "venv", "-q", "--no-project", "--python", other, tmp_path / "venv"], check=True)
    made = environment(tmp_path / "venv", cache_dir=tmp_path / "cache")
    assert made.python == Interpreter.of(other).version
    assert in_it(made, "import platform; print(platform.python_version())") == made.python
