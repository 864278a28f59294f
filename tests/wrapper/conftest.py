"""The worlds that the wrapper is tried in, and the tarballs that it is given."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.wrapper import tarballs

Tree = dict[str, tuple[str, bytes]]

ROOT = Path(__file__).resolve().parents[2]
WRAPPER = Path(os.environ.get("PONCHO_TEST_WRAPPER", ROOT / "worker_wrapper" / "poncho_package_run"))

WORLDS = {
    "dash": ["dash"],
    "bash": ["bash"],
    "posix-bash": ["bash", "--posix"],
    "busybox": ["busybox", "sh"],
}


@dataclass
class World:
    """A shell, and the programs that it finds."""

    name: str
    shell: list[str]
    path: str
    wrapper: Path = WRAPPER
    extra: dict[str, str] = field(default_factory=dict)

    def environ(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        return {"PATH": self.path, "HOME": "/nonexistent", **self.extra, **(more or {})}

    def argv(self, *words: object, name: Path | None = None) -> list[str]:
        return [*self.shell, str(name or self.wrapper), *map(str, words)]

    def run(
        self,
        *words: object,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        given: str = "",
        name: Path | None = None,
        timeout: float = 60,
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.argv(*words, name=name),
            env=self.environ(env),
            cwd=cwd,
            input=given,
            text=True,
            capture_output=True,
            timeout=timeout,
        )

    def start(
        self, *words: object, env: Mapping[str, str] | None = None, cwd: Path | None = None, **more: object
    ) -> subprocess.Popen[str]:
        options: dict[str, object] = {
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            **more,
        }
        return subprocess.Popen(  # type: ignore[call-overload, no-any-return]
            self.argv(*words), env=self.environ(env), cwd=cwd, text=True, start_new_session=True, **options
        )


def make_world(name: str, directory: Path) -> World:
    shell = WORLDS[name]
    if shutil.which(shell[0]) is None:
        pytest.skip(f"{shell[0]} is not installed")
    path = "/usr/bin:/bin"
    if name == "busybox":  # a machine that has nothing else: no bash, no flock, no getconf, no GNU tar
        links = directory / "busybox-bin"
        if not links.is_dir():
            links.mkdir()
            busybox = shutil.which("busybox")
            for applet in subprocess.check_output(["busybox", "--list"], text=True).split():
                if "/" not in applet and applet != "flock":
                    os.symlink(str(busybox), links / applet)
        path = str(links)
        shell = [str(links / "sh")]
    return World(name, shell, path)


# bash --posix differs from bash in so little that not every run of the tests need show it
@pytest.fixture(params=["dash", "bash", pytest.param("posix-bash", marks=pytest.mark.slow), "busybox"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(request.param, tmp_path_factory.getbasetemp())


@pytest.fixture
def dash(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world("dash", tmp_path_factory.getbasetemp())


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that every user may enter: pytest's own are for the user who runs the tests."""
    with tempfile.TemporaryDirectory(prefix="poncho-test-") as name:
        os.chmod(name, 0o755)
        yield Path(name)


@dataclass
class Samples:
    """Tarballs that every test may read and none may change."""

    ours: tarballs.Tarball
    other: tarballs.Tarball  # of another environment
    conda: tarballs.Tarball
    venv: tarballs.Tarball


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Samples:
    directory = tmp_path_factory.mktemp("samples")
    directory.chmod(0o755)
    return Samples(
        ours=tarballs.ours(directory / "ours.tar.gz"),
        other=tarballs.ours(directory / "other.tar.gz", tarballs.fake_prefix(name="two")),
        conda=tarballs.conda_pack(directory / "conda.tar.gz"),
        venv=tarballs.venv_pack(directory / "venv.tar.gz"),
    )


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Path]:
    """A directory to unpack in, beside nothing else; what the wrapper leaves there is checked at the end."""
    directory = tmp_path / "room"
    directory.mkdir()
    yield directory
    for path in directory.rglob("*"):
        assert not path.name.startswith((".poncho-new", ".poncho-unpacking")), f"left behind: {path}"


def tree(directory: Path) -> dict[str, tuple[str, bytes]]:
    """Every file of a prefix with its kind and mode, and bytes; without what the wrapper adds."""
    found: dict[str, tuple[str, bytes]] = {}
    for path in sorted(directory.rglob("*")):
        name = str(path.relative_to(directory))
        if name in ("poncho", "poncho/ready", "poncho/source", "poncho/source-time", "poncho/manifest"):
            continue
        if name.startswith(".poncho-lock"):
            continue
        if path.is_symlink():
            found[name] = ("link", os.readlink(path).encode())
        elif path.is_file():
            found[name] = (oct(path.stat().st_mode & 0o111), path.read_bytes())
        else:
            found[name] = ("directory", b"")
    return found


@pytest.fixture(scope="session")
def unpacked(samples: Samples, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, bytes]]:
    """What `samples.ours` must always come to."""
    directory = tmp_path_factory.mktemp("unpacked")
    subprocess.run(["tar", "-xzf", samples.ours.path, "-C", directory], check=True)
    return tree(directory)


@pytest.fixture(params=["dash", "busybox", "no flock"])
def faulty(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    """dash with flock, busybox (which has none), and dash without."""
    base = tmp_path_factory.getbasetemp()
    if request.param != "no flock":
        return make_world(request.param, base)
    world = make_world("dash", base)
    world.path = path_without(base / "no-flock", "flock")
    return world


@pytest.fixture(params=["dash", "busybox"])
def either(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    """For what has nothing to do with locks: GNU's programs, and busybox's."""
    return make_world(request.param, tmp_path_factory.getbasetemp())


def path_without(links: Path, *names: str) -> str:
    """A PATH that has all programs of this machine but `names`."""
    if not links.is_dir():
        links.mkdir(mode=0o755)
        for path in [*Path("/usr/bin").iterdir(), *Path("/bin").iterdir()]:
            if path.name not in names and not (links / path.name).is_symlink():
                (links / path.name).symlink_to(path)
    return str(links)


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory) -> tarballs.Tarball:
    """An environment that takes long enough to unpack to be killed in the middle."""
    path = tmp_path_factory.mktemp("large") / "large.tar.gz"
    return tarballs.ours(path, tarballs.fake_prefix(name="large", files=700, size=3_000), layers=9)


@pytest.fixture(scope="session")
def large_tree(large: tarballs.Tarball, tmp_path_factory: pytest.TempPathFactory) -> Tree:
    directory = tmp_path_factory.mktemp("large-tree")
    subprocess.run(["tar", "-xzf", large.path, "-C", directory], check=True)
    return tree(directory)
