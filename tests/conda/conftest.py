"""Channels on disk, made once for a test run, and the environment that most tests look at."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import filelock
import pytest

from poncho_wq.build.conda import CondaBuilder
from poncho_wq.build.rattler import Conda
from poncho_wq.prepare import Environment, environment
from poncho_wq.spec import EnvSpec
from tests.conda.channel import make_channels


@dataclass(frozen=True)
class Channels:
    """The channels' URLs and directories."""

    root: Path

    @property
    def main(self) -> str:
        return (self.root / "main").as_uri()

    @property
    def other(self) -> str:
        return (self.root / "other").as_uri()

    def spec(self, *packages: str, **more: object) -> EnvSpec:
        """A specification of conda packages from ``main`` and then ``other``."""
        return EnvSpec.from_dict({"conda": {"channels": [self.main, self.other], "packages": list(packages)}, **more})


@pytest.fixture(scope="session")
def channels(run_directory: Path) -> Channels:
    """Made by the first process that asks; the others wait for it."""
    root = run_directory / "channels"
    with filelock.FileLock(f"{root}.lock"):
        if not (root / "complete").exists():
            make_channels(root)
            (root / "complete").touch()
    return Channels(root)


@pytest.fixture(scope="session")
def conda_root(run_directory: Path) -> Path:
    """Where builders keep packages: unpacked once for all tests, as users have it."""
    root = run_directory / "conda-root"
    root.mkdir(exist_ok=True)
    return root


@pytest.fixture
def conda(conda_root: Path) -> Conda:
    return Conda(cache=conda_root / "conda")


@pytest.fixture
def builder(conda_root: Path) -> CondaBuilder:
    return CondaBuilder(cache_root=conda_root)


EVERYTHING = ("numpy", "prefixed", "oddities", "activated", "left", "tiny")


@pytest.fixture(scope="session")
def built(channels: Channels, conda_root: Path) -> Environment:
    """An environment with every kind of package."""
    spec = channels.spec(*EVERYTHING, pip=["packaging"], env={"GREETING": "it's $HOME"})
    return environment(spec, cache_dir=conda_root)


@pytest.fixture
def channel_of_one(tmp_path: Path) -> Path:
    """The directory of a channel of the test's own; to be indexed after packages were written."""
    return tmp_path / "own"
