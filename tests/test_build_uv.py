"""What uv says becomes an error that says what to do; what the user configured reaches it, passwords reach nobody."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from poncho_wq.build import host
from poncho_wq.build.host import HostBuilder, requirement_line
from poncho_wq.build.interpreter import Interpreter, installed_versions
from poncho_wq.build.uv import Uv, explain, manylinux
from poncho_wq.errors import BuildError, FetchError, PonchoError, SolveError
from poncho_wq.lock import Lock, LockedPackage
from poncho_wq.progress import silent
from poncho_wq.spec import EnvSpec

from .wheelhouse import greeter, needy, write_wheel


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of wheels that is all that uv may look into; temporary files go below `tmp_path`."""
    for name in [name for name in os.environ if name.startswith(("UV_", "PIP_"))]:
        monkeypatch.delenv(name)
    directory = tmp_path / "wheels"
    directory.mkdir()
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(directory))
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    return directory


@pytest.fixture
def builder(tmp_path: Path) -> HostBuilder:
    return HostBuilder(cache_root=tmp_path / "cache")


def _spec(*pip: str, **more: str) -> EnvSpec:
    return EnvSpec.from_dict({"pip": list(pip), **more})


def _solve_fails(builder: HostBuilder, *pip: str, **more: str) -> PonchoError:
    with pytest.raises(PonchoError) as caught:
        builder.lock(_spec(*pip, **more), silent)
    return caught.value


def _closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_locks_everything_that_is_needed(wheels: Path, builder: HostBuilder, tmp_path: Path) -> None:
    greeter(wheels)
    needy(wheels)
    lock = builder.lock(_spec("Needy"), silent)
    assert [(package.name, package.version, len(package.sha256)) for package in lock.packages] == [
        ("greeter", "1.0", 1),
        ("needy", "1.0", 1),
    ]
    assert lock.python == Interpreter.running().version
    assert lock.interpreter == builder.interpreter()
    assert str(tmp_path) not in lock.to_json()
    assert list((tmp_path / "tmp").iterdir()) == []


def test_nothing_to_install_needs_no_resolver(builder: HostBuilder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "Uv", None)
    assert builder.lock(EnvSpec.from_dict({}), silent).packages == ()


@pytest.mark.parametrize(
    ("installed", "wanted", "chosen"),
    [
        ({}, "greeter", "3.0"),
        ({"greeter": "2.0"}, "greeter", "2.0"),
        ({"greeter": "2.0"}, "greeter>2", "3.0"),
        ({"greeter": "2.5"}, "greeter", "3.0"),
        ({"greeter": "2.0", "absent": "1"}, "greeter==1.0", "1.0"),
    ],
)
def test_the_managers_versions_are_preferred_but_not_required(
    wheels: Path,
    builder: HostBuilder,
    monkeypatch: pytest.MonkeyPatch,
    installed: dict[str, str],
    wanted: str,
    chosen: str,
) -> None:
    for version in ("1.0", "2.0", "3.0"):
        greeter(wheels, version)
    monkeypatch.setattr(host, "installed_versions", lambda: installed)
    assert [package.version for package in builder.lock(_spec(wanted), silent).packages] == [chosen]


def test_a_package_that_does_not_exist(wheels: Path, builder: HostBuilder, tmp_path: Path) -> None:
    error = _solve_fails(builder, "no-such-package")
    assert isinstance(error, SolveError)
    assert "no-such-package was not found" in str(error)
    assert f"asked: {wheels}" in str(error)
    assert len(str(error).splitlines()) <= 3
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_conflict_is_told_in_the_resolvers_words(wheels: Path, builder: HostBuilder) -> None:
    greeter(wheels)
    greeter(wheels, "2.0")
    needy(wheels, needs="greeter<2")
    error = _solve_fails(builder, "needy", "greeter>=2")
    assert isinstance(error, SolveError)
    assert "greeter<2" in str(error)
    assert "greeter>=2" in str(error)
    assert error.command
    assert "No solution found" in error.log


def test_a_version_that_does_not_exist(wheels: Path, builder: HostBuilder) -> None:
    greeter(wheels)
    assert "greeter==9" in str(_solve_fails(builder, "greeter==9"))


@pytest.mark.parametrize("variable", ["PIP_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_EXTRA_INDEX_URL"])
def test_an_index_that_does_not_answer_is_named_without_credentials(
    wheels: Path, builder: HostBuilder, monkeypatch: pytest.MonkeyPatch, variable: str, tmp_path: Path
) -> None:
    port = _closed_port()
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv(variable, f"http://alice:s3cret@127.0.0.1:{port}/simple")
    error = _solve_fails(builder, "greeter")
    assert isinstance(error, FetchError)
    assert f"127.0.0.1:{port}/simple" in error.message
    assert "refused" in error.message
    assert error.url == f"http://127.0.0.1:{port}/simple/greeter/"
    for text in (str(error), error.log, " ".join(error.command)):
        assert "s3cret" not in text
        assert "alice" not in text
    assert list((tmp_path / "tmp").iterdir()) == []


def test_folders_and_pages_of_links_that_are_not_there(
    wheels: Path, builder: HostBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("/nonexistent/wheels", f"http://127.0.0.1:{_closed_port()}/links"):
        monkeypatch.setenv("PIP_FIND_LINKS", place)
        error = _solve_fails(builder, "greeter")
        assert isinstance(error, FetchError)
        assert place in error.message


def test_offline_with_an_empty_cache(wheels: Path, builder: HostBuilder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("UV_OFFLINE", "1")
    monkeypatch.setenv("PIP_INDEX_URL", "https://alice:s3cret@index.example/simple")
    error = _solve_fails(builder, "greeter")
    assert isinstance(error, FetchError)
    assert "UV_OFFLINE" in str(error)
    assert "index.example/simple" in str(error)
    assert "s3cret" not in str(error)


def test_a_disk_without_room_is_an_error_of_ours(
    wheels: Path, builder: HostBuilder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "absent"))
    assert isinstance(_solve_fails(builder, "greeter"), BuildError)


def test_relative_paths_are_the_users(wheels: Path, builder: HostBuilder, monkeypatch: pytest.MonkeyPatch) -> None:
    greeter(wheels)
    greeter(wheels, "2.0")
    (wheels.parent / "constraints.txt").write_text("greeter<2\n")
    monkeypatch.chdir(wheels.parent)
    monkeypatch.setenv("PIP_FIND_LINKS", "wheels")
    monkeypatch.setenv("PIP_CONSTRAINT", "constraints.txt")
    assert [package.version for package in builder.lock(_spec("greeter"), silent).packages] == ["1.0"]


def test_a_project_in_the_current_directory_does_not_matter(
    wheels: Path, builder: HostBuilder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    greeter(wheels)
    project = tmp_path / "project"
    project.mkdir()
    (project / "pyproject.toml").write_text(
        '[project]\nname = "x"\nversion = "1"\n[tool.uv]\nconstraint-dependencies = ["greeter<1"]\n'
    )
    monkeypatch.chdir(project)
    assert len(builder.lock(_spec("greeter"), silent).packages) == 1


@pytest.mark.parametrize("with_url", [False, True])
def test_a_file_that_changed_since_it_was_locked_is_refused(
    wheels: Path, builder: HostBuilder, tmp_path: Path, with_url: bool
) -> None:
    wheel = greeter(wheels)
    spec = _spec(f"greeter @ file://{wheel}" if with_url else "greeter")
    lock = builder.lock(spec, silent)
    assert str(tmp_path) not in lock.to_json()
    write_wheel(wheels, "greeter", "1.0", {"greeter/__init__.py": "# another one\n"})
    changed = HostBuilder(cache_root=tmp_path / "another cache")
    with pytest.raises(BuildError, match="not the one that was locked"):
        changed.build(spec, lock, tmp_path / "prefix", silent)


def test_wheels_are_chosen_for_the_c_library_asked_for(
    wheels: Path, builder: HostBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    from poncho_wq.platforms import host_platform

    machine = {"linux-64": "x86_64", "linux-aarch64": "aarch64"}[host_platform()]
    for version, policy in (("1.0", "2_17"), ("2.0", "2_28"), ("3.0", "2_34")):
        write_wheel(wheels, "binary", version, {"binary.py": ""}, tag=f"py3-none-manylinux_{policy}_{machine}")
    chosen = {
        glibc: builder.lock(_spec("binary", glibc=glibc), silent).packages[0].version
        for glibc in ("2.17", "2.30", "2.34")
    }
    assert chosen == {"2.17": "1.0", "2.30": "2.0", "2.34": "3.0"}
    assert isinstance(_solve_fails(builder, "binary==3.0", glibc="2.28"), SolveError)


@pytest.mark.parametrize(
    ("glibc", "name"),
    [("2.17", "manylinux_2_17"), ("2.27", "manylinux_2_17"), ("2.28", "manylinux_2_28"), ("2.99", "manylinux_2_40")],
)
def test_platform_names(glibc: str, name: str) -> None:
    assert manylinux(glibc, "linux-64") == f"x86_64-{name}"


def test_no_platform_is_older_than_what_is_published() -> None:
    with pytest.raises(SolveError, match=r"2\.12"):
        manylinux("2.12", "linux-64")


# What other versions of uv print for the same.
OLD_CONFLICT = """\
  × No solution found when resolving dependencies:
  ╰─▶ Because you require numpy<2 and numpy>=2.4, we can conclude that your
      requirements are unsatisfiable.
"""
OLD_FETCH = """\
error: Request failed after 3 retries
  Caused by: Failed to fetch: `https://index.example/simple/numpy/`
  Caused by: error sending request for url (https://index.example/simple/numpy/)
  Caused by: Connection refused (os error 111)
"""
OLD_BUILD = """\
Resolved 1 package in 3ms
  × Failed to build `thing==1.0`
  ├─▶ The build backend returned an error
  ╰─▶ Call to `setuptools.build_meta.build_wheel` failed (exit status: 1)
"""


@pytest.mark.parametrize(
    ("log", "kind", "words"),
    [
        (
            OLD_CONFLICT,
            SolveError,
            "Because you require numpy<2 and numpy>=2.4, we can conclude that your requirements",
        ),
        (OLD_FETCH, FetchError, "could not download from https://index.example/simple: Connection refused"),
        (OLD_BUILD, BuildError, "Failed to build `thing==1.0` The build backend returned an error"),
        ("", BuildError, "it said nothing"),
        ("error: No space left on device (os error 28)", BuildError, "No space left on device"),
    ],
)
def test_other_words_for_the_same(log: str, kind: type[PonchoError], words: str) -> None:
    failed = BuildError("could not install the packages: uv exited with 1", command=("uv",), log=log)
    error = explain(failed, ["https://index.example/simple"])
    assert type(error) is kind
    assert words in str(error)


def test_a_long_explanation_is_cut() -> None:
    failed = BuildError("no", log="error: No solution found\n  cause: " + "because and so on " * 1000)
    assert len(str(explain(failed, []))) < 800


def test_no_variable_sends_packages_elsewhere(tmp_path: Path) -> None:
    hostile = {"VIRTUAL_ENV": "/v", "UV_PYTHON": "3.8", "UV_NO_VERIFY_HASHES": "1", "PYTHONHOME": "/h", "KEPT": "1"}
    environment = Uv(cache=tmp_path, environment=hostile)._environment
    assert not set(hostile) - {"KEPT"} & set(environment)
    assert environment["KEPT"] == "1"


@pytest.mark.parametrize(("variable", "cache"), [({}, "cache"), ({"UV_CACHE_DIR": "/elsewhere"}, "/elsewhere")])
def test_the_cache_is_uvs_own_where_it_has_one(tmp_path: Path, variable: dict[str, str], cache: str) -> None:
    assert Uv(cache=tmp_path / "cache", environment=variable).cache == tmp_path / cache


@pytest.mark.parametrize(
    ("package", "line"),
    [
        (LockedPackage(name="a", version="1", sha256=("12", "34")), "a==1 --hash=sha256:12 --hash=sha256:34"),
        (
            LockedPackage(name="b-c", version="1", url="file:x.whl", sha256=("12",)),
            "b-c @ file:///w/x.whl --hash=sha256:12",
        ),
        (
            LockedPackage(name="d", version="1", url="git+https://h/d", commit="c0ffee"),
            "d @ git+https://h/d@c0ffee",
        ),
        (
            LockedPackage(name="e", version=None, url="git+ssh://git@h/e", commit="c0ffee"),
            "e @ git+ssh://git@h/e@c0ffee#subdirectory=py",
        ),
        (
            LockedPackage(name="f", version="1", url="https://h/f.whl", sha256=("12",)),
            "f @ https://h/f.whl --hash=sha256:12",
        ),
    ],
)
def test_requirements_lines(package: LockedPackage, line: str) -> None:
    spec = _spec("B.c @ file:///w/x.whl", "d @ git+https://h/d@main", "e @ git+ssh://git@h/e@v1#subdirectory=py", "a")
    assert requirement_line(package, spec) == line


def test_a_lock_of_another_python_is_refused(builder: HostBuilder, tmp_path: Path) -> None:
    lock = Lock(python="3.9.1", interpreter=None, platform="linux-64", packages=())
    with pytest.raises(BuildError, match=r"3\.9\.1"):
        builder.build(EnvSpec.from_dict({}), lock, tmp_path / "prefix", silent)
    assert not (tmp_path / "prefix").exists()


def test_installed_versions_come_from_directory_names(tmp_path: Path) -> None:
    first, second = tmp_path / "1", tmp_path / "2"
    for directory, names in (
        (first, ["Foo_Bar-1.0.dist-info", "bad-x!y.dist-info", "nodash.dist-info", "baz-2.egg-info"]),
        (second, ["foo.bar-2.0.dist-info", "qux-1.0.post1.dist-info"]),
    ):
        for name in names:
            (directory / name).mkdir(parents=True)
    found = installed_versions([str(first), str(tmp_path / "absent"), str(second)])
    assert found == {"foo-bar": "1.0", "qux": "1.0.post1"}
    assert installed_versions()["pytest"] == pytest.__version__
