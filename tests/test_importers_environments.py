"""Environments that exist: virtual environments by three tools, and conda prefixes, read without being touched."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from poncho_wq.build.host import HostBuilder
from poncho_wq.build.interpreter import Interpreter
from poncho_wq.build.uv import find_uv
from poncho_wq.errors import SpecError
from poncho_wq.importers import Options, read_source
from poncho_wq.importing.conda_prefix import find_environment
from poncho_wq.pack import pack
from poncho_wq.packing.layers import LayerStore
from poncho_wq.wrapper import wrapper_path
from tests.wheelhouse import write_wheel

MINOR = f"{sys.version_info.major}.{sys.version_info.minor}"

# A build backend of its own, so that installing a project needs neither a network nor setuptools.
BACKEND = """
import base64, hashlib, os, zipfile
def _wheel(directory, files):
    name = "local_project-0.1-py3-none-any.whl"
    info = "local_project-0.1.dist-info"
    files = dict(files)
    files[info + "/METADATA"] = "Metadata-Version: 2.1\\nName: local-project\\nVersion: 0.1\\n"
    files[info + "/WHEEL"] = "Wheel-Version: 1.0\\nGenerator: t\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n"
    rows = [f"{path},," for path in files] + [info + "/RECORD,,"]
    with zipfile.ZipFile(os.path.join(directory, name), "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
        archive.writestr(info + "/RECORD", "\\n".join(rows) + "\\n")
    return name
def build_wheel(directory, config_settings=None, metadata_directory=None):
    return _wheel(directory, {"local_project.py": open("local_project.py").read()})
def build_editable(directory, config_settings=None, metadata_directory=None):
    return _wheel(directory, {"_local_project.pth": os.getcwd() + "\\n"})
"""


def run(*argv: str | os.PathLike[str], **env: str) -> str:
    # Without what would make pip or uv look anywhere but into the folder that a test names.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "UV_"))}
    clean = {**inherited, "PIP_CONFIG_FILE": os.devnull, "UV_NO_CONFIG": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env={**clean, **env})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wheels")
    write_wheel(directory, "greet", "1.5", {"greet.py": "def main():\n    print('hello')\n"}, requires=("helper",),
                scripts={"greet": "greet:main"})  # fmt: skip
    for version in ("1.0", "2.0"):
        write_wheel(directory, "helper", version, {"helper.py": f"VERSION = {version!r}\n"})
    return directory


@pytest.fixture
def project(tmp_path: Path) -> Path:
    directory = tmp_path / "project"
    directory.mkdir()
    (directory / "local_project.py").write_text("X = 1\n")
    (directory / "backend.py").write_text(BACKEND)
    (directory / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        '[project]\nname = "local-project"\nversion = "0.1"\n'
    )
    return directory


def by_venv(directory: Path, *options: str) -> None:
    run(Interpreter.running().executable, "-m", "venv", *options, directory)


def by_uv(directory: Path, *options: str) -> None:
    run(find_uv(), "venv", "-q", "--no-project", "--python", Interpreter.running().executable, *options, directory)


def install(venv: Path, *what: str | os.PathLike[str], wheels: Path, cache: Path) -> None:
    argv = [find_uv(), "pip", "install", "-q", "--offline", "--no-index", "--find-links", wheels, "--python", venv]
    run(*argv, *what, UV_CACHE_DIR=str(cache))


MAKERS: dict[str, Callable[..., None]] = {"venv": by_venv, "uv": by_uv}


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory, wheels: Path) -> dict[str, Path]:
    """A virtual environment by each tool: made once, since `venv` takes seconds, and copied for each test."""
    made = {}
    for name, make in MAKERS.items():
        made[name] = tmp_path_factory.mktemp("template") / name
        make(made[name])
        install(made[name], "greet", "helper==1.0", wheels=wheels, cache=made[name].parent / "cache")
    return made


@pytest.fixture(params=list(MAKERS))
def venv(request: pytest.FixtureRequest, tmp_path: Path, templates: dict[str, Path]) -> Path:
    directory = tmp_path / "a venv"
    shutil.copytree(templates[request.param], directory, symlinks=True)
    return directory


def state(directory: Path) -> dict[str, tuple[int, int, int]]:
    facts = {path: path.lstat() for path in directory.rglob("*")}
    return {str(path): (each.st_mtime_ns, each.st_size, each.st_mode) for path, each in facts.items()}


def test_a_venvs_packages_are_exact_and_its_installers_left_out(venv: Path) -> None:
    before = state(venv)
    imported = read_source(venv)
    assert imported.spec.pip == ("greet==1.5", "helper==1.0")
    assert imported.spec.python == MINOR
    assert imported.notes == ()
    assert imported.interpreter is not None
    assert Interpreter.of(imported.interpreter).identity == Interpreter.running().identity
    assert state(venv) == before


def test_a_venvs_interpreter_is_not_run(venv: Path) -> None:
    for program in (venv / "bin").glob("python*"):
        program.unlink()
    (venv / "bin/python").write_text("#!/bin/sh\ntouch trapped\n")
    assert read_source(venv).spec.pip == ("greet==1.5", "helper==1.0")
    assert not Path("trapped").exists()


def test_an_installer_that_a_package_needs_comes_along(venv: Path, tmp_path: Path) -> None:
    wheels = tmp_path / "more"
    write_wheel(wheels, "pip", "99.0", {"pip.py": ""})
    write_wheel(wheels, "needy", "1.0", {"needy.py": ""}, requires=("pip",))
    install(venv, "pip==99", "needy", wheels=wheels, cache=tmp_path / "cache")
    assert read_source(venv).spec.pip == ("greet==1.5", "helper==1.0", "needy==1.0", "pip==99.0")


def test_a_wheel_from_a_folder_is_named_by_its_place(venv: Path, wheels: Path, tmp_path: Path) -> None:
    wheel = wheels / "helper-2.0-py3-none-any.whl"
    install(venv, wheel, wheels=wheels, cache=tmp_path / "cache")
    assert any(text.startswith(f"helper @ file://{wheel}") for text in read_source(venv).spec.pip)


@pytest.mark.parametrize("form", ["editable", "folder"])
def test_local_code_is_refused_all_at_once_or_left_out(
    venv: Path, project: Path, wheels: Path, tmp_path: Path, form: str
) -> None:
    install(venv, *(["-e"] if form == "editable" else []), project, wheels=wheels, cache=tmp_path / "cache")
    site = venv / "lib" / f"python{MINOR}" / "site-packages"
    (site / "older-project.egg-link").write_text("/home/me/older\n.\n")
    with pytest.raises(SpecError) as caught:
        read_source(venv)
    said = str(caught.value)
    assert said.startswith(f"{venv}: no index has the code of these packages:\n")
    what = "an editable install of" if form == "editable" else "installed from the folder"
    assert f"  local-project 0.1 ({what} {project})\n" in said
    assert "  older-project (an editable install of /home/me/older)\n" in said
    assert "--ignore-editable-packages" in said
    imported = read_source(venv, Options(ignore_editable=True))
    assert imported.spec.pip == ("greet==1.5", "helper==1.0")
    assert any("local-project 0.1" in note for note in imported.notes)


def test_what_no_package_lists_is_told(venv: Path) -> None:
    (venv / "lib" / f"python{MINOR}" / "site-packages" / "copied.py").write_text("")
    (note,) = read_source(venv).notes
    assert "copied.py" in note


def settings(directory: Path, **changes: str | None) -> None:
    """Change ``pyvenv.cfg``; None removes a key."""
    path = directory / "pyvenv.cfg"
    pairs = dict(line.split(" = ", 1) for line in path.read_text().splitlines())
    for key, value in changes.items():
        pairs[key.replace("_", "-") if key != "version_info" else key] = value  # type: ignore[assignment]
    path.write_text("".join(f"{key} = {value}\n" for key, value in pairs.items() if value is not None))


def base_tree(root: Path, distributions: Mapping[str, str]) -> Path:
    """A module's Python tree, as far as a reader looks: distributions name-version → INSTALLER."""
    (root / "bin").mkdir(parents=True)
    (root / "bin" / f"python{MINOR}").symlink_to(Interpreter.running().executable)
    for name, installer in distributions.items():
        info = root / "lib" / f"python{MINOR}" / "site-packages" / f"{name}.dist-info"
        info.mkdir(parents=True)
        stem, _, version = name.partition("-")
        requires = "Requires-Dist: wanted\n" if stem == "scipy" else ""
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {stem}\nVersion: {version}\n{requires}\n")
        (info / "RECORD").write_text("")
        if installer:
            (info / "INSTALLER").write_text(f"{installer}\n")
    return root


def test_system_site_packages_belong_to_it(venv: Path, tmp_path: Path) -> None:
    base = base_tree(
        tmp_path / "module/python/3.x",
        {
            "numpy-1.26.4": "pip",
            "scipy-1.11": "pip",
            "helper-9.9": "pip",
            "apt-2.6": "",
            "wanted-1.0": "rpm",
            "pip-23.0": "pip",
        },
    )
    settings(venv, home=str(base / "bin"), executable=None)
    assert "numpy==1.26.4" not in read_source(venv).spec.pip
    settings(venv, include_system_site_packages="true")
    imported = read_source(venv)
    # The venv's own comes first; the system's packages only where others need them.
    assert imported.spec.pip == ("greet==1.5", "helper==1.0", "numpy==1.26.4", "scipy==1.11", "wanted==1.0")
    assert any("operating system" in note for note in imported.notes)
    assert imported.interpreter == base / "bin" / f"python{MINOR}"


def test_a_venv_whose_module_is_not_loaded(venv: Path, tmp_path: Path) -> None:
    settings(venv, home=str(tmp_path / "gone/bin"), executable=str(tmp_path / "gone/bin/python3"))
    with pytest.raises(SpecError, match=r"its interpreter is gone: (.|\n)*load the module"):
        read_source(venv)


def test_virtualenvs_own_keys(tmp_path: Path) -> None:
    # As virtualenv 20 and 21 write it.
    directory = tmp_path / "v"
    (directory / "lib" / f"python{MINOR}" / "site-packages").mkdir(parents=True)
    python = Interpreter.running().executable
    (directory / "pyvenv.cfg").write_text(
        f"home = {python.parent}\nimplementation = CPython\nversion_info = {MINOR}.1.final.0\nvirtualenv = 21.0\n"
        f"include-system-site-packages = false\nbase-prefix = {python.parent.parent}\nbase-executable = {python}\n"
    )
    imported = read_source(directory)
    assert (imported.spec.python, imported.interpreter) == (MINOR, python)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"implementation": "PyPy"}, "virtual environment of PyPy"),
        ({"version": None, "version_info": None}, "does not say which Python it is for"),
        ({"version": "3.7.1", "version_info": "3.7.1"}, "has no lib/python3.7/site-packages"),
    ],
)
def test_venvs_that_are_refused(venv: Path, changes: dict[str, Any], words: str) -> None:
    settings(venv, **changes)
    with pytest.raises(SpecError) as caught:
        read_source(venv)
    assert words in str(caught.value)


def test_a_packed_venv_runs_when_the_original_is_gone(venv: Path, wheels: Path, tmp_path: Path) -> None:
    imported = read_source(venv)
    assert imported.interpreter is not None
    builder = HostBuilder(cache_root=tmp_path / "cache", python=Interpreter.of(imported.interpreter))
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(("PIP_", "UV_")):
                patch.delenv(name)
        patch.setenv("PIP_CONFIG_FILE", os.devnull)
        patch.setenv("PIP_NO_INDEX", "1")
        patch.setenv("PIP_FIND_LINKS", str(wheels))
        patch.setenv("PIP_REQUIRE_VIRTUALENV", "1")
        lock = builder.lock(imported.spec, lambda _: None)
        built = builder.build(imported.spec, lock, tmp_path / "prefix", lambda _: None)
    packed = pack(
        built, spec=imported.spec, lock=lock, store=LayerStore(tmp_path / "store"), output=tmp_path / "env.tar.gz"
    )
    shutil.rmtree(venv)
    shutil.rmtree(tmp_path / "prefix")
    wrapper = ["sh", str(wrapper_path()), "-e", str(packed.path), "--"]
    worker = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent"}
    code = "import greet, helper, sys; print(helper.VERSION, sys.version_info[:2])"
    said = subprocess.run([*wrapper, "python", "-c", code], env=worker, capture_output=True, text=True, check=True)
    assert said.stdout == f"1.0 {sys.version_info[:2]}\n"
    said = subprocess.run([*wrapper, "greet"], env=worker, capture_output=True, text=True, check=True)
    assert said.stdout == "hello\n"


# conda prefixes


def record(prefix: Path, name: str, version: str, build: str, **fields: Any) -> None:
    """A record as conda writes it."""
    base = "https://channels.example.org/lab"
    document = {
        "arch": "x86_64", "auth": "s3cret", "build": build, "build_number": 0, "channel": f"{base}/linux-64",
        "constrains": [], "depends": [], "extracted_package_dir": "/home/someone/.conda/pkgs/x", "files": [],
        "fn": f"{name}-{version}-{build}.conda", "license": "MIT", "link": {"source": "/home/someone", "type": 1},
        "md5": "0" * 32, "name": name, "package_tarball_full_path": "/home/someone/x.conda",
        "paths_data": {"paths": [], "paths_version": 1}, "platform": "linux", "requested_spec": name,
        "sha256": "1" * 64, "size": 1, "subdir": "linux-64", "timestamp": 1,
        "url": f"{base}/linux-64/{name}-{version}-{build}.conda",
        "version": version, **fields,
    }  # fmt: skip
    (prefix / "conda-meta").mkdir(parents=True, exist_ok=True)
    (prefix / "conda-meta" / f"{name}-{version}-{build}.json").write_text(json.dumps(document, indent=2))


@pytest.fixture
def conda(tmp_path: Path) -> Path:
    prefix = tmp_path / "miniforge3/envs/climate"
    site = f"lib/python{MINOR}/site-packages"
    info = f"{site}/numpy-1.26.4.dist-info"
    record(prefix, "python", f"{MINOR}.8", "hab00c5b_0_cpython")
    record(prefix, "numpy", "1.26.4", "py311h64a7726_0", files=[f"{site}/numpy.py", f"{info}/METADATA"])
    record(prefix, "tzdata", "2024a", "h0c530f3_0", channel="https://me:pw@channels.example.org/t/s3cret/other/noarch")
    for directory, name, version in ((info, "numpy", "1.26.4"), (f"{site}/extra-2.0.dist-info", "extra", "2.0")):
        (prefix / directory).mkdir(parents=True)
        (prefix / directory / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (prefix / directory / "RECORD").write_text("")
        (prefix / directory / "INSTALLER").write_text("pip")
    (prefix / "conda-meta/history").write_text("")
    return prefix


def test_a_conda_prefix_with_what_pip_added(conda: Path) -> None:
    before = state(conda)
    imported = read_source(conda)
    assert imported.spec.conda is not None
    assert imported.spec.conda.packages == (
        "https://channels.example.org/lab::numpy=1.26.4=py311h64a7726_0",
        f"https://channels.example.org/lab::python={MINOR}.8=hab00c5b_0_cpython",
        "https://channels.example.org/other::tzdata=2024a=h0c530f3_0",
    )
    assert imported.spec.pip == ("extra==2.0",)
    assert imported.prefix is not None
    assert imported.prefix.path == conda
    assert state(conda) == before
    everything = imported.spec.to_json() + repr(imported) + "".join(p.package.record for p in imported.prefix.packages)
    for secret in ("s3cret", "pw", "someone"):
        assert secret not in everything


def test_a_prefix_is_told_apart_by_what_is_in_it(conda: Path) -> None:
    def digest() -> str | None:
        return read_source(conda).digest

    before = digest()
    assert before == digest() is not None
    (conda / "__pycache__").mkdir()
    (conda / "__pycache__/x.pyc").touch()
    (conda / "pkgs").mkdir()
    (conda / "pkgs/big").touch()
    assert digest() == before
    (conda / "by-hand").write_text("x")
    assert digest() != before


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"name": "x"}', "null"])
def test_a_record_that_is_none(conda: Path, text: str) -> None:
    (conda / "conda-meta/broken-1-0.json").write_text(text)
    with pytest.raises(SpecError, match=r"conda-meta/broken-1-0\.json: is not a record of conda"):
        read_source(conda)


def test_a_prefix_without_packages(tmp_path: Path) -> None:
    (tmp_path / "conda-meta").mkdir()
    with pytest.raises(SpecError, match="has no packages"):
        read_source(tmp_path)


def test_environments_by_name(conda: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = {"HOME": str(tmp_path)}
    assert find_environment("climate", home) == conda
    assert find_environment("other", home) is None
    assert find_environment("../climate", home) is None
    record(tmp_path / "miniforge3", "conda", "24.1", "0")
    assert find_environment("base", home) == tmp_path / "miniforge3"
    for name in ("CONDA_PREFIX", "CONDA_EXE", "MAMBA_ROOT_PREFIX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert read_source("climate").spec.pip == ("extra==2.0",)


@pytest.mark.parametrize("how", ["variable", "condarc", "environments.txt", "active", "mamba root", "linked home"])
def test_where_environments_are_looked_for(conda: Path, tmp_path: Path, how: str) -> None:
    home = tmp_path / "home"
    (home / ".conda").mkdir(parents=True)
    given = {"HOME": str(home)}
    if how == "variable":
        given["CONDA_ENVS_DIRS"] = f"/nowhere:{conda.parent}"
    elif how == "condarc":
        (home / ".condarc").write_text(f"channels: [x]\nenvs_dirs:\n  - {conda.parent}\n")
    elif how == "environments.txt":
        (home / ".conda/environments.txt").write_text(f"/elsewhere/other\n{conda}\n")
    elif how == "active":
        given["CONDA_PREFIX"] = str(conda.parent / "another")
    elif how == "mamba root":
        given["MAMBA_ROOT_PREFIX"] = str(conda.parent.parent)
    else:  # as OzSTAR tells its users to do, for their quota
        (home / ".conda").rmdir()
        (tmp_path / "project").mkdir()
        conda.parent.rename(tmp_path / "project/envs")
        (home / ".conda").symlink_to(tmp_path / "project")
    found = find_environment("climate", given)
    assert found is not None
    assert (found / "conda-meta").is_dir()
