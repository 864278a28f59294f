"""Every kind of thing that describes an environment, through ``poncho_package_create`` and ``environment()``."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from poncho_wq.build.interpreter import Interpreter
from poncho_wq.build.uv import find_uv
from poncho_wq.cli.create import main as create
from poncho_wq.errors import SpecError
from poncho_wq.importers import Options
from poncho_wq.prepare import environment, lock_environment
from poncho_wq.wrapper import wrapper_path
from tests.wheelhouse import write_wheel

MINOR = f"{sys.version_info.major}.{sys.version_info.minor}"


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two packages in two versions, which pip's own configuration points to."""
    for name in list(os.environ):
        if name.startswith(("PIP_", "UV_")):
            monkeypatch.delenv(name)
    directory = tmp_path / "wheels"
    for version in ("1.0", "2.0"):
        for name in ("thing", "optional_thing"):
            write_wheel(directory, name, version, {f"{name}.py": f"V = {version!r}\n"})
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(directory))
    return directory


def said_by(tarball: Path, code: str) -> str:
    argv = ["sh", str(wrapper_path()), "-e", str(tarball), "--", "python", "-c", code]
    worker = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent"}
    return subprocess.run(argv, env=worker, capture_output=True, text=True, check=True).stdout.strip()


def requirements(where: Path, wheels: Path) -> Path:
    path = where / "requirements.txt"
    path.write_text("# by hand\nthing==1.0\n")
    return path


def environment_yml(where: Path, wheels: Path) -> Path:
    path = where / "environment.yml"
    path.write_text("name: lab\nchannels: []\ndependencies:\n  - pip:\n    - thing<2\nvariables:\n  LAB: rat\n")
    return path


def pyproject(where: Path, wheels: Path) -> Path:
    path = where / "pyproject.toml"
    path.write_text('[project]\nname = "fit"\nversion = "0"\ndependencies = ["thing ==1.*"]\n')
    return path


def pylock(where: Path, wheels: Path) -> Path:
    wheel = wheels / "thing-1.0-py3-none-any.whl"
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    path = where / "pylock.toml"
    path.write_text(
        'lock-version = "1.0"\ncreated-by = "hand"\n[[packages]]\nname = "thing"\nversion = "1.0"\n'
        f'wheels = [{{name = "{wheel.name}", path = "wheels/{wheel.name}", hashes = {{sha256 = "{digest}"}}}}]\n'
    )
    return path


def venv(where: Path, wheels: Path) -> Path:
    uv, python = find_uv(), Interpreter.running().executable
    subprocess.run([uv, "venv", "-q", "--no-project", "--python", python, where / "venv"], check=True)
    argv: list[str | Path] = [
        uv,
        "pip",
        "install",
        "-q",
        "--no-index",
        "--find-links",
        wheels,
        "--python",
        where / "venv",
        "thing==1.0",
    ]
    subprocess.run(argv, check=True, env={**os.environ, "UV_CACHE_DIR": str(where / "uv")})
    return where / "venv"


def specification(where: Path, wheels: Path) -> Path:
    path = where / "spec.json"
    path.write_text(json.dumps({"pip": ["thing==1.0"]}))
    return path


@pytest.mark.parametrize("make", [requirements, environment_yml, pyproject, pylock, venv, specification])
def test_each_kind_becomes_a_tarball(
    make: Callable[[Path, Path], Path], wheels: Path, tmp_path: Path, shared_cache: Path
) -> None:
    source, out = make(tmp_path, wheels), tmp_path / "out.tar.gz"
    assert create(["-q", "--cache-dir", str(shared_cache), str(source), str(out)]) == 0
    assert said_by(out, "import thing; print(thing.V)") == "1.0"
    again = environment(source, cache_dir=shared_cache)
    assert again.cached
    assert again.tarball.read_bytes() == out.read_bytes()


def test_a_specification_on_standard_input(wheels: Path, tmp_path: Path, shared_cache: Path, programs: Path) -> None:
    out = tmp_path / "out.tar.gz"
    argv = [str(programs / "poncho_package_create"), "--cache-dir", str(shared_cache), "-", str(out)]
    subprocess.run(argv, input=b'{"pip": ["thing==1.0"]}', check=True, capture_output=True)
    assert said_by(out, "import thing; print(thing.V)") == "1.0"


def test_extras_and_groups_of_a_project(wheels: Path, tmp_path: Path, shared_cache: Path) -> None:
    path = pyproject(tmp_path, wheels)
    path.write_text(
        path.read_text() + '[project.optional-dependencies]\nplot = ["optional-thing==2.0"]\n'
        '[dependency-groups]\ntest = ["optional-thing==1.0"]\n'
    )
    for option, version in (("--extra=plot", "2.0"), ("--group=test", "1.0")):
        out = tmp_path / f"{version}.tar.gz"
        assert create(["-q", "--cache-dir", str(shared_cache), option, str(path), str(out)]) == 0
        assert said_by(out, "import thing, optional_thing as o; print(o.V)") == version
    locked = lock_environment(path, cache_dir=shared_cache, options=Options(extras=["plot"]))
    assert [(each.name, each.version) for each in locked.lock.packages] == [("optional-thing", "2.0"), ("thing", "1.0")]


def test_editable_packages_are_refused_or_left_out(
    wheels: Path, tmp_path: Path, shared_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = venv(tmp_path, wheels)
    site = directory / "lib" / f"python{MINOR}" / "site-packages"
    (site / "mine.egg-link").write_text(f"{tmp_path}/mine\n.\n")
    with pytest.raises(SpecError, match="mine"):
        environment(directory, cache_dir=shared_cache)
    out = tmp_path / "out.tar.gz"
    argv = ["--cache-dir", str(shared_cache), str(directory), str(out)]
    assert create(argv) == 2
    assert not out.exists()
    capsys.readouterr()
    assert create(["--ignore-editable-packages", *argv]) == 0
    assert "mine" in capsys.readouterr().err
    assert said_by(out, "import thing; print(thing.V)") == "1.0"
