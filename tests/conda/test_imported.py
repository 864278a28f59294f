"""conda's side of what users have: the ``pip`` list of an environment.yml with options of its own."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from poncho_wq.errors import SolveError
from poncho_wq.prepare import environment
from poncho_wq.wrapper import wrapper_path
from tests.conda.channel import MINOR
from tests.conda.conftest import Channels
from tests.wheelhouse import write_wheel

WORKER = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent"}


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("PIP_", "UV_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)


def in_it(tarball: Path, *command: str) -> str:
    argv = ["sh", str(wrapper_path()), "-e", str(tarball), "--", *command]
    done = subprocess.run(argv, env=WORKER, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_options_in_the_pip_list_reach_the_builder(channels: Channels, conda_root: Path, tmp_path: Path) -> None:
    for version in ("1.0", "2.0", "3.0a1"):
        write_wheel(tmp_path / "wheels", "thing", version, {"thing.py": f"V = {version!r}\n"})
    (tmp_path / "limits.txt").write_text("thing<2\n")
    file = tmp_path / "environment.yml"

    def run_with(*options: str) -> str:
        lines = "".join(f"    - '{line}'\n" for line in ("--no-index", "--find-links wheels", *options))
        file.write_text(
            f"name: lab\nchannels:\n  - {channels.main}\n  - nodefaults\ndependencies:\n  - python={MINOR}\n  - tiny\n"
            f"  - pip:\n{lines}    - thing\nvariables:\n  LAB: rat\n"
        )
        made = environment(file, cache_dir=conda_root)
        names = subprocess.run(["tar", "-xzOf", made.tarball, "poncho/spec.json", "poncho/lock.json"],
                               capture_output=True, text=True, check=True).stdout  # fmt: skip
        assert str(tmp_path) not in names
        return in_it(made.tarball, "python", "-c", "import tiny, thing, os; print(thing.V, os.environ['LAB'])")

    assert run_with() == "2.0 rat"
    assert run_with("-c limits.txt") == "1.0 rat"
    assert run_with("--pre") == "3.0a1 rat"
    with pytest.raises(SolveError, match="thing"):
        run_with("--only-binary :all:", "-c limits.txt", "thing>=2")
