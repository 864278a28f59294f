"""What is installed is what counts: a wheel, in a virtual environment that has never seen the checkout."""

from __future__ import annotations

import filecmp
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    source = tmp_path_factory.mktemp("source") / "poncho_wq"
    subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], check=True, capture_output=True)
    names = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], check=True, capture_output=True).stdout
    # Only what is committed or added: a file that git does not know must not make a wheel complete by chance.
    for name in filter(None, os.fsdecode(names).split("\0")):
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_symlink():
            target.symlink_to((ROOT / name).readlink())
        elif (ROOT / name).exists():
            target.write_bytes((ROOT / name).read_bytes())
            target.chmod((ROOT / name).stat().st_mode)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(out), str(source)], check=True, cwd=out
    )
    (made,) = out.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin directory of a virtual environment with the wheel and its dependencies, and nothing else."""
    venv = tmp_path_factory.mktemp("clean") / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    subprocess.run([str(venv / "bin/python"), "-m", "pip", "install", "--quiet", str(wheel)], check=True, cwd=venv)
    return venv / "bin"


def test_the_wheel_holds_the_wrapper_and_the_prefix_files(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert "poncho_wq/worker_wrapper/poncho_package_run" in names
    assert {f"poncho_wq/prefix_files/{n}" for n in ("activate", "conda-unpack", "run_in_env")} <= names
    assert "poncho_wq/py.typed" in names
    ours = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "poncho_wq"], check=True, capture_output=True, text=True
    ).stdout.split()
    assert {name for name in ours if name.endswith(".py")} <= names
    assert not [n for n in names if n.startswith(("tests/", "benchmarks/", "examples/"))]


def test_the_installed_scripts_are_the_wrapper_itself(installed: Path) -> None:
    for name in ("poncho_package_run", "python_package_run"):
        assert filecmp.cmp(installed / name, ROOT / "worker_wrapper/poncho_package_run", shallow=False)
        assert os.access(installed / name, os.X_OK)


def test_the_installed_package_finds_its_wrapper_and_makes_an_environment(
    installed: Path, shared_cache: Path, tmp_path: Path
) -> None:
    code = (
        "import poncho_wq, poncho_wq.wrapper as w;"
        "p = w.wrapper_path(); assert 'site-packages' in str(p), p;"
        f"e = poncho_wq.environment({{'pip': ['packaging']}}, cache_dir={str(shared_cache)!r}); print(e.tarball)"
    )
    tarball = subprocess.run(
        [str(installed / "python"), "-c", code], check=True, capture_output=True, text=True, cwd=tmp_path
    ).stdout.strip()
    command = ["python3", "-c", "import packaging; print(packaging.__name__)"]
    said = subprocess.run(
        [str(installed / "poncho_package_run"), "-e", tarball, "--", *command],
        check=True, capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert said.stdout == "packaging\n"
