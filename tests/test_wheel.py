"""What is installed is what counts: a wheel and an sdist, in virtual environments that have never seen the checkout.

With every Python that is supported and found here: beside the running one those on PATH and of pyenv, and the
distribution's own, for which alone it has a Work Queue.
"""

from __future__ import annotations

import configparser
import filecmp
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from poncho_wq.build.uv import find_uv
from tests.conftest import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


HERE = f"{sys.version_info.major}.{sys.version_info.minor}"
DISTRIBUTION = "of the distribution"


def committed(target: Path) -> Path:
    """A copy of the checkout as whoever clones it has it."""
    names = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], check=True, capture_output=True).stdout
    # Only what is committed or added: a file that git does not know must not make a wheel complete by chance.
    for name in filter(None, os.fsdecode(names).split("\0")):
        place = target / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_symlink():
            place.symlink_to((ROOT / name).readlink())
        elif (ROOT / name).exists():
            place.write_bytes((ROOT / name).read_bytes())
            place.chmod((ROOT / name).stat().st_mode)
    return target


def _build(kind: str, source: Path, out: Path) -> Path:
    subprocess.run(
        [find_uv(), "build", "--quiet", f"--{kind}", "--out-dir", str(out), str(source)], check=True, cwd=out
    )
    (made,) = [*out.glob("*.whl"), *out.glob("*.tar.gz")]
    return made


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return committed(tmp_path_factory.mktemp("source") / "poncho_wq")


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _build("wheel", source, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sdist(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _build("sdist", source, tmp_path_factory.mktemp("sdist"))


def supported() -> list[str]:
    """The versions that setup.cfg promises."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    return re.findall(r"Python :: (3\.[0-9]+)$", config["metadata"]["classifiers"], re.MULTILINE)


def interpreter(version: str) -> Path | None:
    """A Python of that version that can make virtual environments."""
    if version == HERE:
        return Path(sys.executable)
    if version == DISTRIBUTION:
        system = Path("/usr/bin/python3")
        asks = f"import sys, ensurepip, venv; sys.exit('%d.%d' % sys.version_info[:2] not in {supported()!r})"
        there = system.exists() and subprocess.run([system, "-c", asks], capture_output=True).returncode == 0
        return system if there else None
    found = sorted(Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")).glob(f"versions/{version}.*/bin/python"))
    on_path = shutil.which(f"python{version}")
    places = [*found[-1:], *([Path(on_path)] if on_path else [])]
    works = [
        each
        for each in places
        if subprocess.run([each, "-c", "import ensurepip, venv"], capture_output=True).returncode == 0
    ]
    return works[0] if works else None


def configured_for(version: str) -> dict[str, str]:
    """An index in pip's files may have wheels for the running Python alone, and so hide those that others need."""
    return {} if version == HERE else {"PIP_CONFIG_FILE": os.devnull}


def install(python: Path, package: Path, place: Path, *more: str, environ: dict[str, str] | None = None) -> Path:
    """The bin directory of a new virtual environment with the package and its dependencies, and nothing else."""
    subprocess.run([python, "-m", "venv", str(place)], check=True)
    pip = [str(place / "bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, str(package), *more], check=True, cwd=place, env={**os.environ, **(environ or {})})
    return place / "bin"


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(Path(sys.executable), wheel, tmp_path_factory.mktemp("clean") / "venv")


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


def test_the_sdist_is_enough_to_make_the_same_wheel_and_to_test_it(sdist: Path, wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(sdist) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    assert {"LICENSE", "README.md", "CHANGELOG.md", "conda/recipe.yaml", "examples/quickstart.py"} <= names
    assert {"tests/conftest.py", "tests/wrapper/test_contract.py", "docs/formats/spec.md"} <= names
    again = _build("wheel", sdist, tmp_path)
    with zipfile.ZipFile(wheel) as one, zipfile.ZipFile(again) as other:
        contents = [{n: each.read(n) for n in each.namelist() if not n.endswith("RECORD")} for each in (one, other)]
    assert contents[0] == contents[1]


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


def test_who_uses_the_package_is_told_its_types(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "user.py").write_text("import poncho_wq\nwrong: int = poncho_wq.environment({'pip': []}).tarball\n")
    mypy = [
        sys.executable,
        "-m",
        "mypy",
        "--python-executable",
        str(installed / "python"),
        "--cache-dir",
        str(tmp_path / "c"),
    ]
    done = subprocess.run([*mypy, "user.py"], capture_output=True, text=True, cwd=tmp_path, check=False)
    if "No module named mypy" in done.stderr:
        pytest.skip("needs mypy: pip install -e '.[check]'")
    assert 'expression has type "Path", variable has type "int"' in done.stdout


@pytest.mark.parametrize(
    ("version", "kind"),
    [(HERE, "sdist"), *((version, "wheel") for version in supported()), (DISTRIBUTION, "wheel")],
)
def test_the_quickstart_runs_where_it_was_installed(
    version: str, kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """In an empty directory, with a new cache, on the engine that this Python finds."""
    python = interpreter(version)
    if python is None:
        pytest.skip(f"there is no Python {version} here")
    package: Path = request.getfixturevalue(kind)
    programs = install(python, package, tmp_path / "venv", "pandas", environ=configured_for(version))
    place = tmp_path / "place"
    place.mkdir()
    shutil.copy(ROOT / "examples/quickstart.py", tmp_path / "quickstart.py")
    environ = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))},
        "PATH": f"{programs}:/usr/local/bin:/usr/bin:/bin", "PONCHO_CACHE_DIR": str(tmp_path / "cache"),
        **configured_for(version),
    }  # fmt: skip
    done = subprocess.run(
        [programs / "python", tmp_path / "quickstart.py"],
        cwd=place,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"^station\d +[+-]0\.\d{3} °C a decade$", done.stdout, re.MULTILINE)) == 6, done.stdout
    assert list(place.iterdir()) == []
    print(f"Python {version}, {kind}: {'embedded engine' if 'embedded' in done.stdout else 'Work Queue'}")
