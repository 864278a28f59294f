"""The interpreter's part of a prefix: program, standard library, and the shared libraries that these need."""

from __future__ import annotations

import ast
import json
import os
import platform
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from poncho_wq.build import elf
from poncho_wq.build.interpreter import Interpreter
from poncho_wq.build.libraries import Loader, set_loader, set_run_path, stays_behind, take_libraries
from poncho_wq.build.neutral import Neutral, home_directory
from poncho_wq.command import run
from poncho_wq.errors import BuildError

# Directories of the standard library that stay behind: test suites, what only compiling against Python needs, Tk (whose
# libraries belong to a desktop), compiled files (packing makes its own), and other packages.
_NOT_TAKEN = frozenset(
    {"test", "tests", "idle_test", "tkinter", "idlelib", "turtledemo", "__phello__"}
    | {"__pycache__", "site-packages", "dist-packages"}
)
# Files: distributions' own settings (sitecustomize is the machine's, not Python's) and descriptions of the build.
_FILE_NOT_TAKEN = re.compile(
    r"EXTERNALLY-MANAGED|(site|user)customize\.py|turtle\.py|build-details\.json|_sysconfig_vars_.*\.json|__phello__.*|"
    r".*\.(pyc|a|o)|(_tkinter|_test\w*|_ctypes_test|_xxtestfuzz|xxlimited\w*|xxsubtype)\..*so"
)
_STANDARD_LOADER = {"x86_64": "/lib64/ld-linux-x86-64.so.2", "aarch64": "/lib/ld-linux-aarch64.so.1"}


def copy_interpreter(python: Interpreter, prefix: Path, environment: Mapping[str, str]) -> Loader:
    """Put ``python``, without its packages, into the new directory ``prefix``, so that it runs wherever that is moved.

    ``environment`` is what the loader sees when it looks for shared libraries (``LD_LIBRARY_PATH`` of a module).
    Returns the loader that was asked for these.  Raises ``BuildError`` and ``OSError``.
    """
    target = prefix / "lib" / python.library
    _copy_program(python, prefix)
    _copy_library(python, target)
    neutral = Neutral([python.prefix, python.exec_prefix], home=home_directory())
    for data in sorted(target.glob("_sysconfigdata*.py")):
        _rewrite_sysconfig(data, python)
    loader = loader_of(python, environment)
    _bring_libraries(python, prefix, loader)
    for path, _facts in elf.scan(prefix):
        neutral.rewrite(path)
    _check(python, prefix)
    _offer_site_packages(python, prefix)
    return loader


def sources_of(python: Interpreter) -> Iterator[tuple[str, str]]:
    """What is copied, but for shared libraries that the loader finds: (a name, the file).  Always in the same order."""
    yield "program", str(python.executable)
    for name, root in (("stdlib", python.stdlib), ("platstdlib", python.platstdlib)):
        if name == "stdlib" or (root.is_dir() and root.resolve() != python.stdlib.resolve()):
            for source, relative in _taken(root):
                yield f"{name}/{relative}", source


def loader_of(python: Interpreter, environment: Mapping[str, str]) -> Loader:
    """The loader of ``python``.  Raises ``BuildError`` for one whose libraries cannot be brought along."""
    program = elf.read(python.executable)
    if program.loader is None or "musl" in program.loader:
        raise BuildError(
            f"{python.executable.name} is linked {'statically' if program.loader is None else 'with musl'}: "
            "an environment can carry an interpreter for the GNU C library only",
            advice="run the manager with another python3, or give the specification a conda section",
        )
    return Loader(python.executable, program, environment)


def _copy_program(python: Interpreter, prefix: Path) -> None:
    directory = prefix / "bin"
    directory.mkdir(parents=True)
    program = directory / python.program
    shutil.copyfile(python.executable, program)
    program.chmod(0o755)
    for name in ("python3", "python"):
        (directory / name).symlink_to(python.program)


def _copy_library(python: Interpreter, target: Path) -> None:
    for source, relative in _taken(python.stdlib):
        _copy_file(source, target / relative)
    if python.platstdlib.is_dir() and python.platstdlib.resolve() != python.stdlib.resolve():
        for source, relative in _taken(python.platstdlib):
            if not (target / relative).exists():
                _copy_file(source, target / relative)
    if not (target / "lib-dynload").is_dir():
        (target / "lib-dynload").mkdir()  # Python looks for it to know where it is
    (target / "site-packages").mkdir()
    if python.platlibdir != "lib":
        (target.parent.parent / python.platlibdir).symlink_to("lib")


def _copy_file(source: str, target: Path) -> None:
    # Always the contents: distributions have symlinks that lead elsewhere on the machine.
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    if elf.is_elf(target):
        target.chmod(0o755)


def _taken(root: Path) -> Iterator[tuple[str, str]]:
    """(file, path relative to ``root``) of the files to take along."""
    top = os.fspath(root)
    for directory, subdirectories, files in os.walk(top):
        here = directory[len(top) :].lstrip("/")
        subdirectories[:] = sorted(
            name for name in subdirectories if name not in _NOT_TAKEN and not name.startswith("config-")
        )
        for name in sorted(files):
            if not _FILE_NOT_TAKEN.fullmatch(name) and os.path.isfile(f"{directory}/{name}"):
                yield f"{directory}/{name}", f"{here}/{name}" if here else name


def _rewrite_sysconfig(path: Path, python: Interpreter) -> None:
    """Make the file that ``sysconfig`` reads say where Python is, not where it was compiled and installed."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        (values,) = (
            ast.literal_eval(node.value)
            for node in tree.body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "build_time_vars"
        )
    except (SyntaxError, ValueError) as error:
        raise BuildError(f"{path.name} of Python {python.version} is not as expected: {error}") from error
    here = Neutral([python.prefix, python.exec_prefix])
    # Where it was compiled.  A relative path says nothing, and a short one is not worth the risk.
    compiled_in = {str(values.get(name, "")) for name in ("abs_builddir", "abs_srcdir", "srcdir")}
    elsewhere = Neutral(
        [Path(text) for text in compiled_in if text.startswith("/") and text.count("/") > 1], home=home_directory()
    )
    lines = []
    for name, value in sorted(values.items()):
        if isinstance(value, str):
            # Debian's /usr is no secret, and is no prefix of what lies elsewhere either.
            own = value if name not in ("prefix", "exec_prefix") else "{prefix}"
            value = elsewhere.replace(here.replace(own, "{prefix}"), "/build")
        lines.append(f"    {name!r}: {value!r},\n")
    path.write_text(
        "# The interpreter's configuration, with its prefix filled in where it runs.\n"
        "import sys\n\n"
        "build_time_vars = {\n" + "".join(lines) + "}\n\n"
        "for _name, _value in build_time_vars.items():\n"
        "    if isinstance(_value, str):\n"
        '        build_time_vars[_name] = _value.replace("{prefix}", sys.base_prefix)\n',
        encoding="utf-8",
    )


def _bring_libraries(python: Interpreter, prefix: Path, loader: Loader) -> None:
    """Copy the shared libraries of the program and its extension modules, and make them all find each other."""
    copied = prefix / "bin" / python.program
    library, dynload = prefix / "lib", prefix / "lib" / python.library / "lib-dynload"
    sources = {copied: python.executable}
    for directory in (python.stdlib / "lib-dynload", python.platstdlib / "lib-dynload"):
        sources |= {dynload / path.name: path for path in directory.glob("*.so") if (dynload / path.name).exists()}
    modules = []
    for path, source in sorted(sources.items()):
        facts = elf.read(source)
        wanted = [name for name in facts.needed if not stays_behind(name)]
        if any(not (library / name).exists() for name in wanted):
            take_libraries(loader.resolve(source), library)
        path.write_bytes(elf.strip(path.read_bytes()))
        if path != copied and (wanted or facts.rpath or facts.runpath):
            modules.append(path)
    set_run_path(modules, "$ORIGIN/" + os.path.relpath(library, dynload))
    # The program always: through its run path the libraries of packages find what lies in lib/, too.
    set_run_path([copied], "$ORIGIN/../lib")
    standard = _STANDARD_LOADER.get(platform.machine())
    if standard and elf.read(python.executable).loader != standard:
        set_loader(copied, standard)


def _check(python: Interpreter, prefix: Path) -> None:
    """Start the copy once, without any help from the environment."""
    said = run_copy(python, prefix, "import json, sys; print(json.dumps([sys.version, sys.prefix, sys.base_prefix]))")
    version, *places = json.loads(said)
    if version != python.build or {os.path.realpath(each) for each in places} != {os.path.realpath(prefix)}:
        raise BuildError(
            f"the copy of Python {python.version} is not what it was, or does not find its library", log=said
        )


def run_copy(python: Interpreter, prefix: Path, code: str) -> str:
    """What ``code`` prints in the copied interpreter, which sees no variables of ours.  Raises ``BuildError``."""
    argv = [str(prefix / "bin" / python.program), "-I", "-B", "-c", code]
    return run(argv, env={"PATH": os.defpath}, what=f"run the copy of Python {python.version}").stdout.strip()


def certificates_of(python: Interpreter, prefix: Path) -> tuple[str, ...]:
    """Where the OpenSSL of the copied interpreter looks for certificates: fixed when it was compiled."""
    code = (
        "try:\n    import ssl\nexcept ImportError:\n    raise SystemExit\n"
        "paths = ssl.get_default_verify_paths()\nprint(paths.openssl_cafile, paths.openssl_capath, sep='\\n')"
    )
    return tuple(run_copy(python, prefix, code).splitlines())


def _offer_site_packages(python: Interpreter, prefix: Path) -> None:
    """Make the interpreter look into ``lib/pythonX.Y/site-packages``, where everybody's tools put packages.

    Debian's looks into ``dist-packages`` instead.  A symlink of that name makes it one and the same place, for
    ``.pth`` files too.
    """
    listed = run_copy(
        python, prefix, "import os, site; print(*map(os.path.abspath, site.getsitepackages()), sep='\\n')"
    ).splitlines()
    packages = Path(os.path.abspath(prefix)) / "lib" / python.library / "site-packages"
    if str(packages) in listed or any(os.path.exists(each) and os.path.samefile(each, packages) for each in listed):
        return
    for each in map(Path, listed):
        if each.parent == packages.parent and not each.exists():
            each.symlink_to("site-packages")
            return
    raise BuildError(
        f"Python {python.version} at {python.executable} looks for packages in none of its own directories",
        log="\n".join(listed),
        advice="run the manager with another python3, or give the specification a conda section",
    )
