"""Builds that begin with what earlier ones gave: the very bytes of a complete build, whatever was there before."""

from __future__ import annotations

import dataclasses
import filecmp
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from poncho_wq import environment
from poncho_wq.build import FileGroup, builds, elf, host
from poncho_wq.build.builds import Builds, Earlier, Outcome
from poncho_wq.build.host import HostBuilder
from poncho_wq.build.interpreter import Interpreter
from poncho_wq.build.libraries import Loader
from poncho_wq.build.packages import Binaries
from poncho_wq.build.stdlib import loader_of
from poncho_wq.errors import BuildError
from poncho_wq.packing import planning
from poncho_wq.packing.known import Absent
from poncho_wq.packing.layers import Entry
from poncho_wq.prepare import Environment
from tests import wheelhouse
from tests.data_server import faulty_server

LARGE = 20_000
"""What counts as large here, in bytes."""


PYPROJECT = """
[project]
name = "sourced"
version = "1.0"
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
"""
BACKEND = """
import os, zipfile

def build_wheel(directory, config_settings=None, metadata_directory=None):
    members = {
        "sourced.py": "",
        "sourced-1.0.dist-info/METADATA": "Metadata-Version: 2.1\\nName: sourced\\nVersion: 1.0\\n",
        "sourced-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\\nGenerator: t\\nTag: py3-none-any\\n",
    }
    record = "sourced-1.0.dist-info/RECORD"
    members[record] = "".join(f"{name},,\\n" for name in [*members, record])
    with zipfile.ZipFile(os.path.join(directory, "sourced-1.0-py3-none-any.whl"), "w") as wheel:
        for name, text in members.items():
            wheel.writestr(name, text)
    return "sourced-1.0-py3-none-any.whl"
"""


@dataclasses.dataclass
class Seen:
    """How often a build began with another (``True``), could not (``False``), and how often the whole was built."""

    begun: list[bool]
    complete: int = 0


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    found = Seen(begun=[])
    rebuild, build = HostBuilder.rebuild, HostBuilder.build

    def rebuilding(self: HostBuilder, *arguments: object) -> object:
        prefix = rebuild(self, *arguments)  # type: ignore[arg-type]
        found.begun.append(prefix is not None)
        return prefix

    def building(self: HostBuilder, *arguments: object) -> object:
        found.complete += 1
        return build(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(HostBuilder, "rebuild", rebuilding)
    monkeypatch.setattr(HostBuilder, "build", building)
    return found


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packages in versions that differ in every way: pure ones, and one with what may be a library."""
    directory = tmp_path_factory.mktemp("wheels")
    text = "".join(f"name_{number} = 'value {number}'\n" for number in range(1500))
    source = {"pyproject.toml": PYPROJECT, "backend.py": BACKEND}
    wheelhouse.write_sdist(directory, "sourced", "1.0", source)
    for version in ("1.0", "2.0", "3.0"):
        wheelhouse.greeter(directory, version)
        thing = {"thing.py": f"VALUE = '{version}'\n"} if version != "2.0" else {"thing/__init__.py": "VALUE = 1\n"}
        wheelhouse.write_wheel(directory, "thing", version, thing)
        large = {"large/__init__.py": text, "large/version.py": f"VALUE = {version}\n"}
        if version == "3.0":
            large["large/data/more.txt"] = text
        wheelhouse.write_wheel(directory, "large", version, large, scripts={"large": "large:main"})
        # The same file in both.
        wheelhouse.write_wheel(directory, "clash", version, {"clash.py": "", "large/version.py": "VALUE = 'clash'\n"})
        wheelhouse.write_wheel(directory, "twin", version, {"thing.py": f"VALUE = '{version}'\n"})
        wheelhouse.write_wheel(directory, "quiet", version, {"quiet.py": text * int(version[0])})
        native = {"native/code.so": f"not really {version}", "native/x.py": text}
        wheelhouse.write_wheel(directory, "native", version, native)
    return directory


def small_scale(wheels: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("UV_FIND_LINKS", str(wheels))
    patch.setenv("UV_NO_INDEX", "1")
    patch.setenv("UV_CACHE_DIR", str(wheels.parent / "uv"))
    patch.setattr(planning, "OWN_LAYER", LARGE)


@pytest.fixture(autouse=True)
def _small_scale(wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_scale(wheels, monkeypatch)


@pytest.fixture(scope="module")
def base(wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache in which ``BASE`` was built, and nothing else."""
    cache = tmp_path_factory.mktemp("base") / "cache"
    with pytest.MonkeyPatch.context() as patch:
        small_scale(wheels, patch)
        made(BASE, cache)
    return cache


@pytest.fixture
def cache(base: Path, tmp_path: Path) -> Path:
    """The same, the test's own."""
    return Path(shutil.copytree(base, tmp_path / "cache", symlinks=True))


def made(pins: Mapping[str, str], cache: Path) -> Environment:
    return environment({"pip": [f"{name}=={version}" for name, version in pins.items()]}, cache_dir=cache)


def complete(pins: Mapping[str, str], work: Path) -> Path:
    """The tarball of a cache that has nothing but a copy of the interpreter."""
    cache = Path(tempfile.mkdtemp(dir=work))
    if (work / "cache/interpreters").exists():
        shutil.copytree(work / "cache/interpreters", cache / "interpreters", symlinks=True)
    return made(pins, cache).tarball


def check(pins: Mapping[str, str], work: Path) -> None:
    assert filecmp.cmp(made(pins, work / "cache").tarball, complete(pins, work), shallow=False)


BASE = {"large": "1.0", "thing": "1.0", "native": "1.0", "greeter": "1.0"}


@pytest.mark.parametrize(
    "pins",
    [
        {**BASE, "thing": "2.0"},  # a module that becomes a package
        {**BASE, "large": "3.0", "greeter": "2.0"},
        {**BASE, "quiet": "1.0"},
        {"native": "1.0"},
    ],
    ids=["module to package", "two", "added", "one left"],
)  # fmt: skip
def test_changes_without_binaries_begin_with_what_was_there(
    pins: dict[str, str], cache: Path, tmp_path: Path, seen: Seen
) -> None:
    made(pins, cache)
    assert (seen.begun, seen.complete) == ([True], 0)
    check(pins, tmp_path)


@pytest.mark.parametrize(
    "pins",
    [
        {**BASE, "native": "2.0"},
        {name: version for name, version in BASE.items() if name != "native"},
        {},
    ],
    ids=["changed", "removed", "nothing left"],
)  # fmt: skip
def test_changes_of_binaries_are_built_in_full(pins: dict[str, str], cache: Path, tmp_path: Path, seen: Seen) -> None:
    made(pins, cache)
    assert (seen.begun, seen.complete) == ([False], 1)
    check(pins, tmp_path)


@pytest.mark.parametrize("name", ["clash", "twin"], ids=["large", "small"])
def test_a_package_that_brings_another_s_file_is_built_in_full(name: str, cache: Path, seen: Seen) -> None:
    made({**BASE, name: "1.0"}, cache)
    assert (seen.begun, seen.complete) == ([False], 1)
    # Nothing is to be learnt from such a build: whose file it is depends on who was installed last.
    made({**BASE, name: "1.0", "greeter": "2.0"}, cache)
    assert (seen.begun, seen.complete) == ([False, False], 2)


def test_what_is_built_from_source_is_built_in_full(cache: Path, seen: Seen) -> None:
    made({**BASE, "sourced": "1.0"}, cache)
    assert (seen.begun, seen.complete) == ([False], 1)
    shutil.rmtree(cache / "builds")
    made({**BASE, "sourced": "1.0", "thing": "2.0"}, cache)
    assert not (cache / "builds").exists()


def test_each_change_begins_with_the_nearest(cache: Path, tmp_path: Path, seen: Seen) -> None:
    pins = dict(BASE)
    for name, version in (("thing", "2.0"), ("greeter", "3.0"), ("large", "2.0"), ("quiet", "2.0"), ("thing", "3.0")):
        pins[name] = version
        made(pins, cache)
    assert (seen.begun, seen.complete) == ([True] * 5, 0)
    check(pins, tmp_path)


def test_data_beside_packages_are_placed_each_time(cache: Path, tmp_path: Path, seen: Seen) -> None:
    with faulty_server() as server:
        data = {"REFERENCE": {"type": "file", "url": server.add("/x.dat", b"42\n" * LARGE)}}
        specs = [{"pip": [f"thing=={version}", "large==1.0"], "http": data} for version in ("1.0", "2.0")]
        for spec in specs:
            tarball = environment(spec, cache_dir=cache).tarball
        assert (seen.begun, seen.complete) == ([False, True], 1)
        other = environment(specs[1], cache_dir=tmp_path / "other").tarball
        assert filecmp.cmp(tarball, other, shallow=False)


# What is not as it was


def test_a_layer_that_is_gone_is_made_from_the_whole(cache: Path, tmp_path: Path, seen: Seen) -> None:
    for name in ("layers", "recipes"):
        shutil.rmtree(tmp_path / "cache/v1" / name)
    made({**BASE, "thing": "2.0"}, cache)
    assert (seen.begun, seen.complete) == ([True], 1)
    check({**BASE, "thing": "2.0"}, tmp_path)


def altered(cache: Path, change: str, by: str) -> None:
    """The builds of ``cache`` say something else, with the right digest."""
    for path in (cache / "builds").glob("*.files"):
        text = path.read_text()
        assert change in text
        path.write_text(text.replace(change, by))
        facts = json.loads(path.with_suffix(".json").read_text())
        facts["files"] = hashlib.sha256(path.read_bytes()).hexdigest()
        path.with_suffix(".json").write_text(json.dumps(facts))


@pytest.mark.parametrize("name", ["thing.py", "os.py"], ids=["of a small package", "of the interpreter"])
def test_what_is_there_has_to_be_what_it_was(name: str, cache: Path, tmp_path: Path, seen: Seen) -> None:
    altered(cache, f'/{name}", "file", 420', f'/{name}", "file", 493')
    made({**BASE, "greeter": "2.0"}, cache)
    assert (seen.begun, seen.complete) == ([True], 1)
    check({**BASE, "greeter": "2.0"}, tmp_path)


@pytest.mark.parametrize("suffix", ["json", "files"])
@pytest.mark.parametrize("content", ["", "{}", "[]", "null", None], ids=str)
def test_notes_that_are_damaged_are_no_error(suffix: str, content: str | None, tmp_path: Path) -> None:
    store = Builds(tmp_path)
    store.keep("key", EARLIER)
    assert store.nearest("key", EARLIER.lines) == EARLIER
    (path,) = (tmp_path / "builds").glob(f"*.{suffix}")
    path.unlink() if content is None else path.write_text(content)
    assert store.nearest("key", EARLIER.lines) is None
    store.keep("key", EARLIER)
    assert store.nearest("key", EARLIER.lines) == EARLIER


def test_notes_that_were_changed_are_not_believed(tmp_path: Path) -> None:
    store = Builds(tmp_path)
    store.keep("key", EARLIER)
    (path,) = (tmp_path / "builds").glob("*.files")
    path.write_text(path.read_text().replace("2.17", "2.18"))
    assert store.nearest("key", EARLIER.lines) is None


def test_notes_with_the_right_digest_and_the_wrong_content_are_no_error(
    cache: Path, tmp_path: Path, seen: Seen
) -> None:
    altered(cache, "glibc", "libc")
    made({**BASE, "thing": "2.0"}, cache)
    assert (seen.begun, seen.complete) == ([False], 1)


def test_other_settings_of_the_installer_are_another_matter(
    cache: Path, tmp_path: Path, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "uv.toml").write_text("")
    monkeypatch.setenv("UV_CONFIG_FILE", str(tmp_path / "uv.toml"))
    made({**BASE, "thing": "2.0"}, cache)
    (tmp_path / "uv.toml").write_text("no-build-isolation = true\n")
    made({**BASE, "thing": "3.0"}, cache)
    monkeypatch.setenv("UV_PRERELEASE", "allow")
    made({**BASE, "greeter": "2.0"}, cache)
    made({**BASE, "greeter": "3.0"}, cache)
    assert (seen.begun, seen.complete) == ([False, False, False, True], 3)


def test_refreshing_builds_the_whole(cache: Path, seen: Seen) -> None:
    environment({"pip": [f"{name}=={version}" for name, version in BASE.items()]}, cache_dir=cache, refresh=True)
    assert (seen.begun, seen.complete) == ([], 1)


# What is relied upon


def package(name: str, *files: str, kind: Any = "pip") -> FileGroup:
    entries = (Entry(path=path, kind="file", digest=name, content=Absent(size=3)) for path in files)
    return FileGroup(name=name, version="1", kind=kind, files=files, known=tuple(entries))


EARLIER = Earlier(
    lines={"a": "1", "b": "2"}, groups=(package("python", "bin/python", kind="interpreter"), package("a", "lib/a.py")),
    glibc="2.17", binaries=frozenset({"b"}), sonames=("libx.so.1",), places=("/nowhere",), libraries={},
)  # fmt: skip


class FakeLoader(Loader):
    """A machine that has these libraries."""

    def __init__(self, found: Mapping[str, Path]) -> None:
        self.found = found

    def by_name(self, sonames: Sequence[str]) -> dict[str, Path]:
        return dict(self.found)


def test_an_earlier_build_applies_as_long_as_the_machine_has_the_same_libraries(tmp_path: Path) -> None:
    for name in ("libx.so.1", "liby.so"):
        (tmp_path / name).write_text(name)
    found = {"libx.so.1": tmp_path / "libx.so.1"}
    there = dataclasses.replace(EARLIER, libraries=builds.libraries_of(FakeLoader(found), EARLIER.sonames))

    def applies(loader: Loader, places: tuple[str, ...] = (), **lines: str) -> bool:
        build = dataclasses.replace(there, places=places)
        return builds.applies(build, {**EARLIER.lines, **lines}, loader)

    assert applies(FakeLoader(found), ("/nowhere/at/all",))
    assert applies(FakeLoader(found), a="changed", c="new")
    assert not applies(FakeLoader(found), b="changed")
    assert not applies(FakeLoader(found), (str(tmp_path),))
    assert not applies(FakeLoader({}))
    assert not applies(FakeLoader({**found, "liby.so": tmp_path / "liby.so"}))
    assert not applies(FakeLoader({"libx.so.1": tmp_path / "liby.so"}))
    (tmp_path / "libx.so.1").write_text("updated")
    assert not applies(FakeLoader(found))
    # The C library is the worker's.
    assert applies(FakeLoader({"libc.so.6": tmp_path / "liby.so"})) == (there.libraries == {})


def test_the_loader_finds_by_name_what_it_finds_for_a_binary() -> None:
    python = Interpreter.running()
    loader = loader_of(python, os.environ)
    (ssl,) = (python.stdlib / "lib-dynload").glob("_ssl.*.so")
    found = loader.resolve(ssl)
    wanted = tuple(sorted(name for name in found if name.startswith(("libssl", "libcrypto"))))
    by_name = loader.by_name((*wanted, "libno-such-thing.so.1"))
    assert {name: by_name.get(name) for name in wanted} == {name: found[name] for name in wanted}
    assert "libno-such-thing.so.1" not in by_name


class NoLoader(Loader):
    """One that fails: a library that it is asked for is for another machine."""

    def __init__(self) -> None:
        pass

    def by_name(self, sonames: Sequence[str]) -> dict[str, Path]:
        raise BuildError("exited with 127")


def test_a_loader_that_fails_costs_the_advantage_and_no_more(
    cache: Path, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    altered(cache, '"sonames": []', '"sonames": ["libx.so.1"]')
    monkeypatch.setattr(host, "loader_of", lambda *_: NoLoader())
    made({**BASE, "thing": "2.0"}, cache)
    for path in (cache / "builds").iterdir():  # the new one needs no library, and may come first
        path.unlink()
    monkeypatch.setattr(builds, "sonames_of", lambda _: ("libx.so.1",))
    made({**BASE, "thing": "3.0"}, cache)
    assert (seen.begun, seen.complete) == ([False, False], 2)


def told(tmp_path: Path, *groups: FileGroup, needed: str = "libx.so.1", run_path: str = "$ORIGIN", **more: Any) -> bool:
    """Whether later builds may begin with one that gave this."""
    (tmp_path / "libx.so.1").write_text("x")
    found = more.get("found", {"libx.so.1": tmp_path / "libx.so.1"})
    binary = elf.Elf(needed=(needed,), runpath=(run_path,))
    binaries = Binaries(facts={"lib/b.so": binary}, missing=frozenset({"libx.so.1"}), found=found)
    loader = FakeLoader(more.get("machine", found))
    everything = (package("python", "bin/python", kind="interpreter"), package("b", "lib/b.so"), *groups)
    return builds.earlier({"b": "2", **more.get("lines", {})}, everything, binaries, loader, tmp_path, None) is not None


def test_a_build_with_something_odd_is_no_beginning(tmp_path: Path) -> None:
    assert told(tmp_path)
    assert told(tmp_path, package("other", "lib/libx.so.1", kind="other"))
    assert told(tmp_path, run_path="/nowhere/at/all")
    assert not told(tmp_path, run_path=str(tmp_path))
    assert not told(tmp_path, run_path="/nowhere/$LIB")
    assert not told(tmp_path, run_path="relative")
    assert not told(tmp_path, needed="libx")
    assert not told(tmp_path, needed="libx.so:1")
    # Files that nobody owns, packages that are not in the lock, and those that are in each other's way.
    assert not told(tmp_path, package("other", "lib/thing.txt", kind="other"))
    assert not told(tmp_path, package("c", "lib/c.py"))
    assert not told(tmp_path, lines={"c": "1"})
    assert not told(tmp_path, package("c", "lib/b.so"), lines={"c": "1"})
    assert not told(tmp_path, package("c", "lib/b.so/file"), lines={"c": "1"})
    assert not told(tmp_path, package("c", "bin"), lines={"c": "1"})
    # The binary found another one than the name alone leads to.
    brought = package("other", "lib/libx.so.1", kind="other")
    (tmp_path / "another").write_text("x")
    assert not told(tmp_path, brought, machine={"libx.so.1": tmp_path / "another"})
    assert not told(tmp_path, brought, machine={})


def test_what_has_two_names_is_not_remembered(tmp_path: Path) -> None:
    outcome = Outcome(builds=Builds(tmp_path), key="key", earlier=EARLIER)
    entries = {path: Entry(path=path, kind="file", content=b"") for path in ("bin/python", "lib/a.py")}
    outcome.remember({**entries, "lib/a.py": Entry(path="lib/a.py", kind="hardlink", target="lib/b.py")})
    assert not (tmp_path / "builds").exists()
    outcome.remember(entries)
    assert Builds(tmp_path).nearest("key", {}) is not None
    assert Builds(tmp_path).nearest("other key", {}) is None


def test_the_builds_of_longest_ago_go_and_so_does_what_the_killed_have_left(tmp_path: Path) -> None:
    store = Builds(tmp_path)
    for number in range(10):
        store.keep("key", dataclasses.replace(EARLIER, lines={"a": str(number)}))
        for path in (tmp_path / "builds").iterdir():
            os.utime(path, times=(0, path.stat().st_mtime - 3000))
    left = {store.nearest("key", {"a": str(number)}).lines["a"] for number in range(10)}  # type: ignore[union-attr]
    assert left == {str(number) for number in range(2, 10)}
    assert len(list((tmp_path / "builds").iterdir())) == 2 * 8
    for name, age in (("old.draft", 7200), ("young.draft", 60), ("old.files", 7200)):
        (tmp_path / "builds" / name).write_text("")
        os.utime(tmp_path / "builds" / name, times=(0, time.time() - age))
    store.keep("key", EARLIER)
    assert [path.name for path in (tmp_path / "builds").iterdir() if len(path.stem) < 64] == ["young.draft"]


# At random, and at the worst moment

locks = st.dictionaries(
    st.sampled_from(["large", "thing", "native", "greeter", "quiet", "clash"]), st.sampled_from(["1.0", "2.0", "3.0"]),
    min_size=1,
)  # fmt: skip
# Without shrinking: one example takes seconds.
_many = settings(
    max_examples=30, deadline=None, phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip


def check_history(history: Sequence[Mapping[str, str]], base: Path) -> None:
    with tempfile.TemporaryDirectory() as work:
        shutil.copytree(base / "interpreters", Path(work, "cache/interpreters"), symlinks=True)
        for pins in history:
            # With both, whose file it is depends on the order in which the installer came to them.
            check({name: pins[name] for name in pins if name != "clash" or "large" not in pins}, Path(work))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@_many
@given(st.lists(locks, min_size=2, max_size=6))
def test_random_changes_give_the_bytes_of_a_complete_build(base: Path, history: list[dict[str, str]]) -> None:
    check_history(history, base)


KILLED = """
import importlib, os, signal, sys
module, name, after, pins, cache, large = sys.argv[1:]
owner = importlib.import_module(module)
*path, last = name.split(".")
for each in path:
    owner = getattr(owner, each)
real = getattr(owner, last)

def killing(*arguments, **more):
    if after == "after":
        real(*arguments, **more)
    os.kill(os.getpid(), signal.SIGKILL)

from poncho_wq import environment
from poncho_wq.packing import planning
planning.OWN_LAYER = int(large)
setattr(owner, last, killing)
environment({"pip": pins.split()}, cache_dir=cache)
"""
STAGES = [
    ("poncho_wq.build.builds", "Builds.nearest", "after"),
    ("poncho_wq.build.interpreters", "_link", "after"),
    ("poncho_wq.build.host", "HostBuilder._install", "after"),
    ("poncho_wq.build.host", "settle_packages", "after"),
    ("poncho_wq.pack", "check", "after"),
    ("poncho_wq.packing.layers", "LayerStore._publish", "before"),
    ("poncho_wq.packing.layers", "LayerStore._publish", "after"),
    ("poncho_wq.packing.layers", "LayerStore._remember", "after"),
    ("poncho_wq.build.builds", "Outcome.remember", "before"),
    ("poncho_wq.build.builds", "Builds._write", "before"),
    ("poncho_wq.build.builds", "Builds._write", "after"),
    ("poncho_wq.build.builds", "Builds._tidy", "before"),
    ("poncho_wq.pack", "write_tarball", "before"),
    ("poncho_wq.pack", "write_tarball", "after"),
    ("poncho_wq.cache", "Cache._publish", "after"),
]


def killed(stage: tuple[str, str, str], cache: Path, tmp_path: Path) -> None:
    pins = {**BASE, "thing": "2.0", "large": "2.0"}
    words = " ".join(f"{name}=={version}" for name, version in pins.items())
    argv = [sys.executable, "-c", KILLED, *stage, words, str(cache), str(LARGE)]
    done = subprocess.run(argv, cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    made(pins, cache)
    # And the next one, whatever was left for it to begin with.
    check({**pins, "greeter": "3.0"}, tmp_path)


def test_a_build_that_was_killed_leaves_nothing_false(cache: Path, tmp_path: Path) -> None:
    killed(("poncho_wq.build.builds", "Builds._write", "after"), cache, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("stage", STAGES, ids=" ".join)
def test_a_build_that_was_killed_at_any_stage_leaves_nothing_false(
    stage: tuple[str, str, str], cache: Path, tmp_path: Path
) -> None:
    killed(stage, cache, tmp_path)
    check({**BASE, "thing": "2.0", "large": "2.0"}, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_variants_that_are_built_side_by_side(cache: Path, tmp_path: Path) -> None:
    variants = [{**BASE, name: version} for name in ("thing", "large", "greeter") for version in ("2.0", "3.0")]
    with ThreadPoolExecutor(3) as pool:
        tarballs = [each.tarball for each in pool.map(lambda pins: made(pins, cache), variants)]
    for pins, tarball in zip(variants, tarballs, strict=True):
        assert filecmp.cmp(tarball, complete(pins, tmp_path), shallow=False)


def test_what_shares_a_layer_with_what_comes_or_goes_is_installed() -> None:
    names = [f"small{number}" for number in range(40)]
    groups = (package("python", "bin/python", kind="interpreter"), *(package(name, f"lib/{name}.py") for name in names))
    large = Entry(path="lib/large.py", kind="file", content=Absent(size=LARGE))
    build = dataclasses.replace(
        EARLIER, lines=dict.fromkeys([*names, "large"], "1"),
        groups=(*groups, dataclasses.replace(package("large", "lib/large.py"), known=(large,))),
    )  # fmt: skip
    assert builds.to_install(build, build.lines) == frozenset()
    lines = {**build.lines, names[0]: "2", "new": "1"}
    del lines[names[1]]
    buckets = {planning.bucket_of(name) for name in (names[0], names[1], "new")}
    shared = {name for name in names if name in lines and planning.bucket_of(name) in buckets}
    assert len(shared) > 3
    assert builds.to_install(build, lines) == shared | {"new"}
    everything = {**build.lines, **dict.fromkeys((f"new{number}" for number in range(100)), "1")}
    assert builds.to_install(build, everything) == set(everything) - {"large"}
