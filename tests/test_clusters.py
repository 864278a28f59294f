"""A cluster's ways: Pythons that a module loads, pip kept to virtual environments, a home with a quota.

The interpreter here starts only once its module is loaded: neither its own library nor libffi is on any run path.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from poncho_wq.build.interpreter import Interpreter
from poncho_wq.build.libraries import find_patchelf
from poncho_wq.build.uv import find_uv
from poncho_wq.errors import BuildError
from poncho_wq.prepare import environment
from poncho_wq.wrapper import wrapper_path
from tests.wheelhouse import write_wheel

MINOR = f"{sys.version_info.major}.{sys.version_info.minor}"
LIBRARY = str(sysconfig.get_config_var("INSTSONAME"))
WORKER = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent"}
# Nobody else's: a machine may have a libpython and a libffi of its own, and finding those would prove nothing.
OWN_PYTHON, OWN_FFI = "libpython-of-the-module.so.1", "libffi-of-the-module.so.8"


def patchelf(*argv: str | Path) -> str:
    return subprocess.run([find_patchelf(), *argv], check=True, capture_output=True, text=True).stdout.strip()


@dataclass(frozen=True)
class Modules:
    """A tree of environment modules, and what `module load python` sets."""

    root: Path

    @property
    def python(self) -> Path:
        return self.root / "python" / MINOR / "bin" / f"python{MINOR}"

    @property
    def loaded(self) -> dict[str, str]:
        folders = (self.python.parent.parent / "lib", self.root / "libffi/lib")
        return {"LD_LIBRARY_PATH": ":".join(map(str, folders)), "PIP_REQUIRE_VIRTUALENV": "true"}


def _make_modules(root: Path) -> Modules:
    """Copy the running interpreter to where nothing but ``LD_LIBRARY_PATH`` finds its libraries."""
    python = Interpreter.running()
    modules = Modules(root)
    tree = modules.python.parent.parent
    shutil.copytree(
        python.stdlib, tree / "lib" / python.library,
        ignore=shutil.ignore_patterns("test", "site-packages", "__pycache__", "config-*", "idlelib", "tkinter"),
    )  # fmt: skip
    (tree / "lib" / python.library / "site-packages").mkdir()
    modules.python.parent.mkdir()
    shutil.copy2(python.executable, modules.python)
    (modules.python.parent / "python3").symlink_to(modules.python.name)
    library = tree / "lib" / OWN_PYTHON
    shutil.copy2(Path(str(sysconfig.get_config_var("LIBDIR"))) / LIBRARY, library)
    library.chmod(0o755)
    patchelf("--set-soname", OWN_PYTHON, library)
    patchelf("--replace-needed", LIBRARY, OWN_PYTHON, modules.python)
    dynload = tree / "lib" / python.library / "lib-dynload"
    patchelf("--remove-rpath", modules.python, library, *dynload.glob("*.so"))
    _bring_ffi(modules, next(dynload.glob("_ctypes.*.so")))
    return modules


def _bring_ffi(modules: Modules, extension: Path) -> None:
    listed = subprocess.run(["ldd", extension], check=True, capture_output=True, text=True).stdout
    (line,) = [each for each in listed.splitlines() if "libffi" in each]
    name, _, path = line.strip().partition(" => ")
    own = modules.root / "libffi/lib" / OWN_FFI
    own.parent.mkdir(parents=True)
    shutil.copyfile(path.partition(" (")[0], own)
    own.chmod(0o755)
    patchelf("--set-soname", OWN_FFI, own)
    patchelf("--replace-needed", name, OWN_FFI, extension)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Modules:
    if not sysconfig.get_config_var("Py_ENABLE_SHARED"):
        pytest.skip("this Python holds its library itself: there is no shared one to load from a module")
    return _make_modules(tmp_path_factory.mktemp("module tree") / "apps")


@pytest.fixture
def modules(template: Modules, tmp_path: Path) -> Iterator[Modules]:
    """One that a test may delete."""
    made = Modules(tmp_path / "apps")
    shutil.copytree(template.root, made.root, symlinks=True)
    yield made
    shutil.rmtree(made.root, ignore_errors=True)


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch, modules: Modules) -> Modules:
    """The module, loaded into this process as into a login shell, with no other setting of pip's or uv's."""
    for name in list(os.environ):
        if name.startswith(("PIP_", "UV_", "LD_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    for name, value in modules.loaded.items():
        monkeypatch.setenv(name, value)
    return modules


def make_venv(modules: Modules, directory: Path, *, quota: Path) -> Path:
    """A virtual environment on the module's Python, with a package in it."""
    wheels = quota / "wheels"
    write_wheel(wheels, "orbit", "1.2", {"orbit.py": "def main():\n    print('closed')\n"}, requires=("kepler",),
                scripts={"orbit": "orbit:main"})  # fmt: skip
    write_wheel(wheels, "kepler", "3.0", {"kepler.py": "LAW = 3\n"})
    (quota / "pip.conf").write_text(f"[global]\nno-index = true\nfind-links = {wheels}\n")
    subprocess.run([modules.python, "-m", "venv", "--without-pip", directory], check=True)
    argv: list[str | Path] = [
        find_uv(),
        "pip",
        "install",
        "-q",
        "--no-index",
        "--find-links",
        wheels,
        "--python",
        directory,
    ]
    subprocess.run([*argv, "orbit"], check=True, env={**os.environ, "UV_CACHE_DIR": str(quota / "uv")})
    return directory


def on_a_worker(tarball: Path, *command: str) -> str:
    argv = ["sh", str(wrapper_path()), "-e", str(tarball), "--", *command]
    done = subprocess.run(argv, env=WORKER, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_module_matters(modules: Modules) -> None:
    """What the other tests rely on: without the module, its interpreter does not start."""
    said = subprocess.run([modules.python, "-c", ""], env=WORKER, capture_output=True, text=True, check=False)
    assert OWN_PYTHON in said.stderr
    assert said.returncode == 127
    loaded = {**WORKER, **modules.loaded}
    subprocess.run([modules.python, "-c", "import ctypes"], env=loaded, check=True)


def test_a_venv_on_a_modules_python_runs_where_there_are_no_modules(
    load: Modules, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    venv = make_venv(load, tmp_path / "venv", quota=tmp_path)
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    made = environment(venv, cache_dir=tmp_path / "cache")
    assert environment(venv, cache_dir=tmp_path / "cache").cached
    shutil.rmtree(load.root)
    shutil.rmtree(venv)
    code = (
        "import ctypes, ssl, kepler, os, sys\n"
        "print(kepler.LAW, sys.version_info[:2])\n"
        "for line in open('/proc/self/maps'):\n"
        "    if line.split()[-1].endswith(('.so', '.1', '.8')) and 'libpython' in line or 'libffi' in line:\n"
        "        print(os.path.relpath(line.split()[-1], sys.prefix))\n"
    )
    first, *libraries = on_a_worker(made.tarball, "python", "-c", code).splitlines()
    assert first == f"3 {sys.version_info[:2]}"
    assert set(libraries) == {f"lib/{OWN_PYTHON}", f"lib/{OWN_FFI}"}
    assert on_a_worker(made.tarball, "orbit") == "closed"
    inside = subprocess.run(f"gzip -dc '{made.tarball}' | grep -ac '{load.root}'", shell=True,
                            capture_output=True, text=True, check=False)  # fmt: skip
    assert inside.stdout.strip() == "0", "the module tree is named in the tarball"


def test_a_module_that_is_not_loaded_is_named_as_what_is_missing(
    load: Modules, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    venv = make_venv(load, tmp_path / "venv", quota=tmp_path)
    monkeypatch.delenv("LD_LIBRARY_PATH")
    with pytest.raises(BuildError, match="does not start") as caught:
        environment(venv, cache_dir=tmp_path / "cache")
    assert OWN_PYTHON in str(caught.value)
    assert "module" in (caught.value.advice or "")


def test_nothing_is_written_to_a_home_with_a_quota(load: Modules, tmp_path: Path, programs: Path) -> None:
    """Everything lies where variables say; the home directory's own time tells even what was made and removed again."""
    home, project = tmp_path / "home", tmp_path / "project"
    home.mkdir()
    project.mkdir()
    venv = make_venv(load, project / "venv", quota=project)
    before = home.stat().st_mtime_ns
    given = {
        **WORKER, **load.loaded, "HOME": str(home), "PIP_CONFIG_FILE": str(project / "pip.conf"),
        "PONCHO_CACHE_DIR": str(project / "cache"), "TMPDIR": str(project),
    }  # fmt: skip
    tarball, wrapper = project / "env.tar.gz", ["sh", wrapper_path()]
    for argv in (
        [programs / "poncho_package_create", venv, tarball],
        [programs / "poncho-wq", "env", "show", tarball],
        [*wrapper, "-e", tarball, "--unpack-to", project / "unpacked", "--", "orbit"],
    ):
        done = subprocess.run([*map(str, argv)], env=given, cwd=project, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{argv}: {done.stderr}"
    assert list(home.iterdir()) == []
    assert home.stat().st_mtime_ns == before
    assert (project / "cache").is_dir()
    assert not [each for each in project.iterdir() if each.name.startswith(("tmp", "poncho-uv"))], "scratch was left"


def test_https_on_a_worker_of_another_distribution(shared_cache: Path, tmp_path: Path) -> None:
    """OpenSSL looks for certificates where its own distribution keeps them, and other distributions keep none there."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("hiding a directory needs root and unshare")
    made = environment({"python": MINOR}, cache_dir=shared_cache)
    code = "import os, ssl; print(len(ssl.create_default_context().get_ca_certs()), 'SSL_CERT_FILE' in os.environ)"
    default = on_a_worker(made.tarball, "python", "-c", code)
    places = on_a_worker(
        made.tarball, "python", "-c", "import ssl; print(*ssl.get_default_verify_paths()[3::2])"
    ).split()
    if default.split() == ["0", "False"] or not all(os.path.exists(place) for place in places):
        pytest.skip("this machine keeps no certificates where OpenSSL looks for them")
    hide = " && ".join(
        f"mount -t tmpfs none '{place}'" for place in sorted({str(Path(each).parent) for each in places})
    )
    script = f'{hide} && exec sh "$0" -e "$1" --unpack-to "$2" -- python -c "$3"'
    argv = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script]
    argv += [str(wrapper_path()), str(made.tarball), str(tmp_path / "unpacked"), code]
    for _ in ("unpacked", "there already"):
        done = subprocess.run(argv, env=WORKER, capture_output=True, text=True, check=False)
        assert done.stdout.split() == [default.split()[0], "True"], done.stderr
