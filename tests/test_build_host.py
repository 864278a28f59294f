"""Prefixes of the host builder run anywhere, need nothing of the machine that built them, and do not name it."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from poncho_wq.build import Prefix, builder_for, elf
from poncho_wq.build.host import HostBuilder, check_glibc, group_files, highest_glibc, list_files
from poncho_wq.build.interpreter import Interpreter
from poncho_wq.build.libraries import stays_behind
from poncho_wq.errors import BuildError, SpecError
from poncho_wq.progress import Progress, silent
from poncho_wq.spec import EnvSpec

from .wheelhouse import greeter, needy, write_sdist

RUNNING = Interpreter.running()
# Modules whose extension or library is a shared library beyond the C library, on most interpreters.
WITH_LIBRARIES = ("ssl", "sqlite3", "ctypes", "zlib", "lzma", "bz2", "readline", "hashlib", "curses", "uuid")
AVAILABLE = tuple(
    name
    for name in WITH_LIBRARIES
    if not subprocess.run([sys.executable, "-c", f"import {name}"], capture_output=True).returncode
)
NUMPY = "import numpy; assert (numpy.eye(3) @ numpy.ones(3)).sum() == 3"


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wheels")
    greeter(directory)
    needy(directory)
    return directory


@contextmanager
def _only(wheels: Path) -> Iterator[pytest.MonkeyPatch]:
    """uv sees the wheels made here and no index."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("UV_", "PIP_"))]:
            patch.delenv(name)
        patch.setenv("PIP_CONFIG_FILE", os.devnull)
        patch.setenv("PIP_NO_INDEX", "1")
        patch.setenv("PIP_FIND_LINKS", str(wheels))
        yield patch


@pytest.fixture
def only_wheels(wheels: Path) -> Iterator[None]:
    with _only(wheels):
        yield


def _build(path: Path, cache: Path, *pip: str, python: Interpreter | None = None, **more: object) -> Prefix:
    builder = HostBuilder(cache_root=cache, python=python)
    spec = EnvSpec.from_dict({"pip": list(pip), **more})
    return builder.build(spec, builder.lock(spec, silent), path, silent)


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory, wheels: Path) -> Prefix:
    """A prefix with two small packages, built where it is not left."""
    directory = tmp_path_factory.mktemp("small")
    with _only(wheels):
        built = _build(directory / "built", directory / "cache", "needy")
    moved = directory / "moved to" / "another place"
    moved.parent.mkdir()
    built.path.rename(moved)
    return Prefix(**{**vars(built), "path": moved})


@pytest.fixture(scope="session")
def with_numpy(shared_cache: Path) -> Iterator[Path]:
    """A prefix with numpy, moved, where every user can read it."""
    directory = Path(tempfile.mkdtemp(prefix="poncho-host-"))
    try:
        directory.chmod(0o755)
        _build(directory / "built", shared_cache, "numpy")
        (directory / "moved").mkdir()
        (directory / "built").rename(directory / "moved" / "to here")
        subprocess.run(["chmod", "-R", "go+rX", directory / "moved"], check=True)
        yield directory / "moved" / "to here"
    finally:
        shutil.rmtree(directory)


def _python(prefix: Path, code: str, **options: object) -> str:
    argv = [*options.pop("before", []), str(prefix / "bin" / "python3"), "-B", "-c", code]  # type: ignore[misc]
    environment = {"PATH": "/usr/bin:/bin"} | options.pop("environment", {})  # type: ignore[operator]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stderr
    return str(done.stdout.strip())


def _files(prefix: Path) -> list[Path]:
    return [path for path in sorted(prefix.rglob("*")) if path.is_file() and not path.is_symlink()]


def test_is_the_managers_interpreter(small: Prefix) -> None:
    said = json.loads(
        _python(small.path, "import sys, json; print(json.dumps([sys.version, sys.prefix, sys.flags.isolated]))")
    )
    assert said == [sys.version, str(small.path), 0]
    assert small.python == RUNNING.version
    for name in ("python", "python3", RUNNING.program):
        assert os.access(small.path / "bin" / name, os.X_OK)


def test_finds_its_packages_and_nobody_elses(small: Prefix) -> None:
    code = "import sys, json, greeter, needy; print(json.dumps([greeter.__file__, sys.path, sys.greeter_was_here]))"
    file, path, pth_ran = json.loads(_python(small.path, code))
    assert file.startswith(str(small.path))
    assert all(each.startswith(str(small.path)) for each in path if each)
    assert pth_ran


def test_standard_library_is_complete_but_for_tests(small: Prefix) -> None:
    """Every module that the manager's interpreter has can be found, except the ones that are left out on purpose."""
    code = """if True:
        import importlib.util, json, sys
        print(json.dumps([n for n in sorted(sys.stdlib_module_names) if importlib.util.find_spec(n)]))
    """
    here = set(json.loads(subprocess.check_output([str(RUNNING.executable), "-I", "-c", code])))
    there = set(json.loads(_python(small.path, code)))
    left_out = {"tkinter", "_tkinter", "idlelib", "turtle", "turtledemo", "sitecustomize", "usercustomize"}
    assert here - there <= left_out | {
        name for name in here if name.startswith(("_test", "_xxtest", "xx", "_ctypes_test"))
    }
    assert not list(small.path.rglob("test_*.py"))


@pytest.mark.parametrize("module", AVAILABLE)
def test_modules_with_shared_libraries(small: Prefix, module: str) -> None:
    assert _python(small.path, f"import {module}; print(1)") == "1"


def test_loads_only_the_c_library_of_the_machine(with_numpy: Path) -> None:
    code = f"import {', '.join(AVAILABLE)}\n{NUMPY}\nprint(open('/proc/self/maps').read())"
    mapped = {line.split(maxsplit=5)[5] for line in _python(with_numpy, code).splitlines() if line.count("/")}
    outside = {Path(name).name for name in mapped if ".so" in name and not name.startswith(str(with_numpy))}
    assert outside
    assert all(map(stays_behind, outside)), outside


def _masked(places: list[Path], argv: list[str], **options: object) -> subprocess.CompletedProcess[str]:
    """Run `argv` where `places` are empty: mounts of a namespace of its own."""
    script = 'set -e; n=$1; shift; while [ "$n" -gt 0 ]; do'
    script += ' if [ -d "$1" ]; then mount -t tmpfs none "$1"; else mount --bind /dev/null "$1"; fi;'
    script += ' shift; n=$((n-1)); done; exec "$@"'
    command = [
        "unshare",
        "--mount",
        "--propagation",
        "private",
        "sh",
        "-c",
        script,
        "sh",
        str(len(places)),
        *map(str, places),
    ]
    return subprocess.run([*command, *argv], capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload,no-any-return]


def test_runs_where_the_interpreter_and_virtual_environment_are_gone(with_numpy: Path) -> None:
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("masking a directory needs root and unshare")
    if _masked([], ["true"]).returncode != 0:
        pytest.skip("this machine does not allow mount namespaces")
    places = [Path(sys.prefix), RUNNING.executable, RUNNING.stdlib, RUNNING.platstdlib]
    if str(RUNNING.prefix) not in ("/usr", "/usr/local", "/"):
        places = [Path(sys.prefix), RUNNING.prefix]
    places = [each for each in dict.fromkeys(places) if not with_numpy.is_relative_to(each)]
    gone = _masked(places, [str(RUNNING.executable), "-c", "import os"])
    assert gone.returncode != 0, "the interpreter still runs: nothing was masked"
    code = f"import {', '.join(AVAILABLE)}\n{NUMPY}\nprint('ran')"
    done = _masked(places, [str(with_numpy / "bin" / "python3"), "-B", "-c", code], env={})
    assert (done.returncode, done.stdout) == (0, "ran\n"), done.stderr


def test_runs_as_another_user(with_numpy: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("becoming another user needs root")
    assert _python(with_numpy, f"{NUMPY}; import os; print(os.geteuid())", user=65534, group=65534, cwd="/") == "65534"


def test_a_hostile_library_path_does_not_matter(with_numpy: Path, tmp_path: Path) -> None:
    for soname in os.listdir(with_numpy / "lib"):
        if ".so" in soname:
            (tmp_path / soname).write_bytes(b"not a library")
    assert len(list(tmp_path.iterdir())) > 3
    code = f"import {', '.join(AVAILABLE)}\n{NUMPY}\nprint('ran')"
    assert _python(with_numpy, code, environment={"LD_LIBRARY_PATH": str(tmp_path)}) == "ran"


def _greet(*argv: str | Path, **environment: str) -> str:
    variables = {"PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"} | environment
    done = subprocess.run(argv, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_console_scripts_work_from_anywhere(small: Prefix, tmp_path: Path) -> None:
    bin_directory = small.path / "bin"
    (tmp_path / "link").symlink_to(bin_directory / "greet")
    assert _greet(bin_directory / "greet", "a b") == "hello a b"
    assert _greet(tmp_path / "link", "x") == "hello x"
    assert _greet("/bin/sh", "-c", "greet from PATH", PATH=f"{bin_directory}:/usr/bin:/bin") == "hello from PATH"
    assert _greet(bin_directory / "greet", PYTHONHOME="/nowhere") == "hello"
    assert _greet(bin_directory / "greet-help", "1").startswith("Usage: greet-help")


def test_data_files_lie_where_the_wheel_puts_them(small: Prefix) -> None:
    assert (small.path / "share" / "greeter" / "card.txt").read_text() == "a card\n"


def test_records_are_true(small: Prefix) -> None:
    records = list(small.path.rglob("*.dist-info/RECORD"))
    assert len(records) == 2
    for record in records:
        for name, digest, size in csv.reader(record.read_text().splitlines()):
            data = (record.parent.parent / name).read_bytes()
            if digest:
                assert (
                    digest == "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
                )
                assert int(size) == len(data), name


def test_every_file_is_in_exactly_one_group(small: Prefix) -> None:
    counted = Counter(name for group in small.groups for name in group.files)
    assert sorted(counted) == list_files(small.path)
    assert set(counted.values()) == {1}
    everything = {
        path.relative_to(small.path).as_posix()
        for path in small.path.rglob("*")
        if not path.is_dir() or path.is_symlink()
    }
    assert everything <= set(counted)
    groups = {group.name: group for group in small.groups}
    assert groups["python"].kind == "interpreter"
    assert groups["python"].version == RUNNING.version
    assert {"bin/python3", f"bin/{RUNNING.program}"} <= set(groups["python"].files)
    assert groups["greeter"].kind == "pip"
    assert groups["greeter"].version == "1.0"
    assert {"bin/greet", "bin/greet-help", "share/greeter/card.txt"} <= set(groups["greeter"].files)
    assert all(list(group.files) == sorted(group.files) for group in small.groups)


def test_names_neither_the_machine_nor_its_user(small: Prefix, wheels: Path) -> None:
    private = {
        RUNNING.prefix,
        RUNNING.exec_prefix,
        Path(sys.prefix),
        wheels,
        small.path,
        small.path.parent.parent,
        Path.home(),
    }
    names = {str(each).encode() for path in private for each in (path, path.resolve())}
    names -= {b"/usr", b"/usr/local", b"/", b"/root"}
    assert names
    for path in _files(small.path):
        data = path.read_bytes()
        assert not [name for name in names if name in data], path
    assert not [path for path in small.path.rglob("*") if path.is_symlink() and os.path.isabs(os.readlink(path))]


def test_sysconfig_says_where_it_is(small: Prefix) -> None:
    said = json.loads(_python(small.path, "import sysconfig, json; print(json.dumps(sysconfig.get_config_vars()))"))
    assert said["prefix"] == str(small.path)
    assert str(small.path) in said["LIBDIR"] or RUNNING.prefix == Path("/usr")
    assert said["SOABI"] == RUNNING.soabi


def test_nothing_compiled_and_nothing_of_uv_is_left(small: Prefix) -> None:
    names = {path.name for path in small.path.rglob("*")}
    assert not names & {"__pycache__", ".lock", "uv_cache.json", "uv_build.json", "EXTERNALLY-MANAGED", "Makefile"}
    assert not [name for name in names if name.endswith((".pyc", ".a", ".new"))]


def test_the_same_lock_gives_the_same_bytes(tmp_path: Path, only_wheels: None) -> None:
    prefixes = []
    for place, umask in (("a", 0o022), ("another/place/much further down", 0o077)):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        before = os.umask(umask)
        try:
            prefixes.append(_build(tmp_path / place, tmp_path / f"cache {umask}", "needy"))
        finally:
            os.umask(before)
    first, second = prefixes
    assert first.groups == second.groups
    for path in _files(first.path):
        assert path.read_bytes() == (second.path / path.relative_to(first.path)).read_bytes(), path


def test_the_c_library_needed_is_the_highest_that_any_binary_asks_for(small: Prefix) -> None:
    asked = [facts.glibc for _path, facts in elf.scan(small.path) if facts.glibc]
    assert small.glibc == ".".join(map(str, max(asked)))


def test_what_was_read_before_is_not_asked_again_and_changes_nothing(small: Prefix) -> None:
    files = list_files(small.path)
    binaries = dict(elf.among(small.path, files))
    everything = highest_glibc(small.path)
    assert everything is not None
    assert highest_glibc(small.path, files, binaries) == highest_glibc(small.path, [], binaries) == everything
    for name in binaries:
        assert highest_glibc(small.path, files, {name: binaries[name]}) == everything


def test_an_interpreter_for_a_newer_c_library_is_refused(tmp_path: Path, only_wheels: None) -> None:
    with pytest.raises(
        BuildError, match=r"Python 3\.\d+.* needs glibc 2\.\d+, and the specification allows 2\.17"
    ) as caught:
        _build(tmp_path / "prefix", tmp_path / "cache", glibc="2.17")
    assert "conda" in str(caught.value)


@pytest.mark.parametrize(
    ("allowed", "needed", "fine"),
    [("2.28", "2.4", True), ("2.17", "2.17", True), ("2.17", "2.2.5", True), ("2.9", "2.17", False)],
)
def test_c_libraries_compare_as_numbers(allowed: str, needed: str, fine: bool) -> None:
    if fine:
        check_glibc(allowed, (needed, "lib/x.so"), what="x")
    else:
        with pytest.raises(BuildError, match=r"lib/x\.so"):
            check_glibc(allowed, (needed, "lib/x.so"), what="x")


@pytest.mark.parametrize("version", [RUNNING.version, RUNNING.minor])
def test_the_managers_own_version_is_accepted(version: str) -> None:
    assert HostBuilder().lock(EnvSpec.from_dict({"python": version}), silent).python == RUNNING.version


@pytest.mark.parametrize("version", ["3.7", f"{RUNNING.minor}.99", f"{RUNNING.minor}9"])
def test_another_version_is_refused_with_advice(version: str) -> None:
    with pytest.raises(SpecError) as caught:
        HostBuilder().lock(EnvSpec.from_dict({"python": version}), silent)
    assert caught.value.path == "python"
    assert RUNNING.version in str(caught.value)
    assert "conda" in str(caught.value)


def test_progress_counts_packages(tmp_path: Path, only_wheels: None) -> None:
    seen: list[Progress] = []
    builder = HostBuilder(cache_root=tmp_path / "cache")
    spec = EnvSpec.from_dict({"pip": ["needy"]})
    builder.build(spec, builder.lock(spec, seen.append), tmp_path / "prefix", seen.append)
    assert [each.stage for each in seen] == ["resolve", "install", "install", "install"]
    assert [(each.done, each.total) for each in seen[2:]] == [(0, 2), (2, 2)]


def test_a_full_disk_is_an_error_of_ours(tmp_path: Path, only_wheels: None) -> None:
    if os.geteuid() != 0 or _masked([], ["true"]).returncode != 0:
        pytest.skip("a small file system needs root and mount namespaces")
    disk = tmp_path / "disk"
    disk.mkdir()
    code = f"""if True:
        from pathlib import Path
        from poncho_wq.build.host import HostBuilder
        from poncho_wq.errors import BuildError
        from poncho_wq.spec import EnvSpec
        spec, builder = EnvSpec.from_dict({{}}), HostBuilder()
        try:
            builder.build(spec, builder.lock(spec, print), Path({str(disk)!r}) / "prefix", lambda progress: None)
        except BuildError as error:
            print(error)
    """
    script = 'mount -t tmpfs -o size=3m none "$1"; shift; exec "$@"'
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", str(disk)]
    done = subprocess.run([*command, sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "No space left on device" in done.stdout, done.stderr
    assert done.returncode == 0


def _other_interpreter(tmp_path: Path) -> Interpreter:
    program = Path("/usr/bin/python3")
    if not program.exists():
        pytest.skip("this machine has no /usr/bin/python3")
    python = Interpreter.of(program)
    if tuple(map(int, python.minor.split("."))) < (3, 10):
        pytest.skip(f"/usr/bin/python3 is {python.version}")
    return python


def test_a_distributions_own_layout_of_packages_works(tmp_path: Path, only_wheels: None) -> None:
    """Debian's interpreter is linked statically with its library and looks for packages elsewhere than others."""
    python = _other_interpreter(tmp_path)
    built = _build(tmp_path / "prefix", tmp_path / "cache", "needy", python=python)
    assert (built.path / "lib" / python.library / "site-packages" / "greeter" / "words.txt").is_file()
    code = "import sys, greeter, importlib.metadata as m; print(sys.prefix, m.version('greeter'), sys.greeter_was_here)"
    assert _python(built.path, code) == f"{built.path} 1.0 True"
    assert _greet(built.path / "bin" / "greet", "x") == "hello x"
    assert not [each for group in built.groups for each in group.files if each.startswith("local/")]


def test_a_virtual_environment_is_seen_through(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    assert Interpreter.of(tmp_path / "venv" / "bin" / "python3") == RUNNING
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", "--copies", tmp_path / "copies"], check=True)
    assert Interpreter.of(tmp_path / "copies" / "bin" / "python3") == RUNNING
    (tmp_path / "script").write_text(f'#!/bin/sh\nexec {RUNNING.executable} "$@"\n')
    (tmp_path / "script").chmod(0o755)
    assert Interpreter.of(tmp_path / "script") == RUNNING


def test_the_interpreters_identity_names_no_path() -> None:
    assert RUNNING.identity.startswith(f"cpython-{RUNNING.version}-")
    assert "/" not in RUNNING.identity
    assert builder_for(EnvSpec.from_dict({})).interpreter() == RUNNING.identity


BACKEND = """
import base64, hashlib, os, subprocess, sysconfig, zipfile
NAME = "compiled-1.0"
TAG = "py3-none-" + sysconfig.get_platform().replace("-", "_").replace(".", "_")

def build_wheel(directory, config_settings=None, metadata_directory=None):
    link = ["-L" + os.environ["PRIVATE"], "-lprivate", "-Wl,--enable-new-dtags,-rpath," + os.environ["PRIVATE"]]
    subprocess.check_call(["cc", "-g", "-shared", "-fPIC", "-o", "code.so", os.path.abspath("code.c"), *link])
    info = NAME + ".dist-info"
    members = {
        "compiled/__init__.py": b"WHERE = %r\\n" % os.environ["PRIVATE"].encode(),
        "compiled/code.so": open("code.so", "rb").read(),
        info + "/METADATA": b"Metadata-Version: 2.1\\nName: compiled\\nVersion: 1.0\\n",
        info + "/WHEEL": b"Wheel-Version: 1.0\\nGenerator: t\\nRoot-Is-Purelib: false\\nTag: %s\\n" % TAG.encode(),
    }
    digest = lambda data: base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
    rows = [f"{name},sha256={digest(data)},{len(data)}" for name, data in members.items()]
    members[info + "/RECORD"] = "\\n".join([*rows, info + "/RECORD,,", ""]).encode()
    with zipfile.ZipFile(os.path.join(directory, f"{NAME}-{TAG}.whl"), "w") as wheel:
        for name, data in members.items():
            wheel.writestr(name, data)
    return f"{NAME}-{TAG}.whl"
"""
PYPROJECT = """
[project]
name = "compiled"
version = "1.0"
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
"""


def test_a_package_compiled_here_runs_elsewhere(
    tmp_path: Path, only_wheels: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its library, found by an absolute run path, comes along; the paths it was compiled in do not."""
    if shutil.which("cc") is None:
        pytest.skip("needs a C compiler")
    private = tmp_path / "private libraries" / "of alice"
    private.mkdir(parents=True)
    (private / "private.c").write_text("int answer(void) { return 42; }\n")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", "libprivate.so", "private.c"], cwd=private, check=True)
    sdists = tmp_path / "sdists"
    code = "int answer(void); const char *file = __FILE__; int ask(void) { return answer(); }\n"
    write_sdist(sdists, "compiled", "1.0", {"pyproject.toml": PYPROJECT, "backend.py": BACKEND, "code.c": code})
    monkeypatch.setenv("PIP_FIND_LINKS", str(sdists))
    monkeypatch.setenv("PRIVATE", str(private))
    cache = tmp_path / "the cache"
    built = _build(tmp_path / "prefix", cache, "compiled")
    private.rename(tmp_path / "gone")

    ask = "import ctypes, compiled, os; print(ctypes.CDLL(os.path.dirname(compiled.__file__) + '/code.so').ask())"
    assert _python(built.path, ask) == "42"
    for path in _files(built.path):
        data = path.read_bytes()
        assert b"of alice" not in data or path.name == "__init__.py", path
        assert str(cache).encode() not in data, path
        assert str(tmp_path).encode() not in data or path.name == "__init__.py", path
    (other,) = [group for group in built.groups if group.kind == "other"]
    assert other.files == ("lib/libprivate.so",)
    (record,) = built.path.rglob("compiled-1.0.dist-info/RECORD")
    rows = {name: digest for name, digest, _size in csv.reader(record.read_text().splitlines())}
    library = built.path / "lib" / RUNNING.library / "site-packages" / "compiled" / "code.so"
    digest = base64.urlsafe_b64encode(hashlib.sha256(library.read_bytes()).digest()).rstrip(b"=").decode()
    assert rows["compiled/code.so"] == f"sha256={digest}"
    assert not any("uv_" in name for name in rows)
    cached = [elf.read(path) for path in cache.rglob("code.so")]
    assert cached, "uv keeps what it built"
    assert all(facts.runpath for facts in cached), "the file in uv's cache, which others share, was changed"


def test_the_interpreter_s_group_is_the_same_with_and_without_packages(tmp_path: Path) -> None:
    """Else the first package would change the largest layer: an empty directory is an entry, and a full one is none."""
    site = f"lib/{RUNNING.library}/site-packages"
    (tmp_path / site).mkdir(parents=True)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python3").write_text("")
    of_interpreter = list_files(tmp_path)
    assert of_interpreter == ["bin/python3", f"{site}/"]
    without = group_files(RUNNING, list_files(tmp_path), of_interpreter, [])
    (tmp_path / site / "x.py").write_text("")
    with_one = group_files(RUNNING, list_files(tmp_path), of_interpreter, [])
    assert [(group.kind, group.files) for group in without] == [
        ("interpreter", ("bin/python3",)), ("other", (f"{site}/",)),
    ]  # fmt: skip
    assert [(group.kind, group.files) for group in with_one] == [
        ("interpreter", ("bin/python3",)), ("other", (f"{site}/x.py",)),
    ]  # fmt: skip
