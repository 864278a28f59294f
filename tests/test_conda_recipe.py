"""The conda recipe says what setup.cfg says, and rattler-build makes a package of it that works."""

from __future__ import annotations

import configparser
import subprocess
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from poncho_wq.prepare import environment
from poncho_wq.version import VERSION
from tests.conda.channel import SUBDIR, from_distribution, python_package
from tests.conda.packages import Package, index
from tests.conftest import ROOT
from tests.test_wheel import committed

# What a package is called on conda-forge, where that is another name than on the Python index.
CONDA_NAMES = {"isal": "python-isal"}


@pytest.fixture(scope="module")
def recipe() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((ROOT / "conda/recipe.yaml").read_text())
    return document


def requirements() -> list[Requirement]:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    return [Requirement(line) for line in config["options"]["install_requires"].split("\n") if line.strip()]


def test_the_recipe_says_what_setup_cfg_says(recipe: dict[str, Any]) -> None:
    assert recipe["context"]["version"] == VERSION
    wanted = {
        CONDA_NAMES.get(each.name.lower(), each.name.lower()): frozenset(map(str, each.specifier))
        for each in requirements()
    }
    listed = {
        name: frozenset(versions.split(","))
        for name, _, versions in (text.partition(" ") for text in recipe["requirements"]["run"])
        if name not in ("__linux", "python")
    }
    assert listed == wanted
    assert "python >=3.10" in recipe["requirements"]["run"]


@pytest.fixture(scope="module")
def channel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python, what builds the package, and what it needs: this installation's, as conda packages."""
    root, work = tmp_path_factory.mktemp("channel"), tmp_path_factory.mktemp("work")
    python_package(work).write(root)
    names = [
        "pip",
        "setuptools",
        *(each.name for each in requirements()),
        "typing_extensions",
        "markdown-it-py",
        "mdurl",
        "pygments",
    ]
    for name in names:
        if name == "tomli":  # a part of Python here
            continue
        try:
            made = from_distribution(distribution(name), work, (), compiled=False)
        except ModuleNotFoundError:
            pytest.skip(f"needs {name} to be installed")
        made.name = CONDA_NAMES.get(made.name, made.name)
        made.write(root)
    Package(name="tomli", version="2.0", subdir=SUBDIR).write(root)
    index(root)
    return root


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_package_is_built_and_installed(channel: Path, tmp_path: Path) -> None:
    rattler_build = pytest.importorskip("rattler_build", reason="pip install py-rattler-build")
    source = committed(tmp_path / "source")
    out = tmp_path / "out"
    built = rattler_build.Stage0Recipe.from_file(source / "conda/recipe.yaml").run_build(
        output_dir=out, channels=[channel.as_uri()]
    )
    assert len(built) == 1
    (package,) = (out / "noarch").glob("poncho_wq-*.conda")
    (channel / "noarch").mkdir(exist_ok=True)
    package.rename(channel / "noarch" / package.name)
    index(channel)
    spec = {"conda": {"channels": [channel.as_uri()], "packages": ["poncho_wq"]}}
    tarball = environment(spec, cache_dir=tmp_path / "cache").tarball
    run = [
        str(ROOT / "worker_wrapper/poncho_package_run"),
        "-e",
        str(tarball),
        "--unpack-to",
        str(tmp_path / "env"),
        "--",
    ]

    def said(*words: str) -> str:
        done = subprocess.run(
            [*run, *words], capture_output=True, text=True, cwd=tmp_path, check=False,
            env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert VERSION in said("poncho-wq", "--version")
    assert "--environment" in said("poncho_package_run", "--help")
    assert "--environment" in said("python_package_run", "--help")
    where = said("python", "-c", "import poncho_wq.wrapper; print(poncho_wq.wrapper.wrapper_path())").strip()
    assert where.startswith(str(tmp_path / "env"))
