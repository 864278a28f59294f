"""The channels of the tests: what is in them.

``main`` has a Python made from the running one, numpy from this installation, and small packages that each have one
property that conda packages can have.  ``other`` has other versions of some, to see which channel wins.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import Distribution, distribution
from pathlib import Path

from poncho_wq.build.interpreter import Interpreter
from poncho_wq.build.stdlib import copy_interpreter
from tests.conda.packages import BUILT_AT, OLD_PLACEHOLDER, PLACEHOLDER, Link, Package, index

MINOR = f"{sys.version_info.major}.{sys.version_info.minor}"
FULL = platform.python_version()
SUBDIR = {"x86_64": "linux-64", "aarch64": "linux-aarch64"}[platform.machine()]
FOREIGN = {"linux-64": "linux-aarch64", "linux-aarch64": "linux-64"}[SUBDIR]
NEEDS_PYTHON = (f"python >={MINOR},<{MINOR}.99",)


def make_channels(root: Path) -> None:
    """Make ``root/main`` and ``root/other``."""
    main, other = root / "main", root / "other"
    for package in [
        python_package(root / "work"),
        from_distribution(distribution("numpy"), root / "work", ()),
        *small_packages(),
    ]:
        package.write(main)
    for package in foreign_packages():
        package.write(main)
    _module("choice", "9.0", origin="other").write(other)
    index(main)
    index(other)


def python_package(work: Path, *, whole: bool = False) -> Package:
    """The running interpreter as a conda package: program, libraries, standard library with its ``.pyc``.

    ``whole`` adds the modules that the copy leaves out (tests of the standard library), for size.
    """
    prefix = work / "python"
    python = Interpreter.running()
    copy_interpreter(python, prefix, os.environ)
    if whole:
        import shutil

        for name in ("test", "idlelib", "tkinter", "lib2to3", "turtledemo"):
            if (python.stdlib / name).is_dir():
                shutil.copytree(
                    python.stdlib / name, prefix / "lib" / python.library / name, dirs_exist_ok=True,
                    ignore=shutil.ignore_patterns("__pycache__", "*.so"),
                )  # fmt: skip
    compile_all(prefix / "lib" / python.library, work)
    files = tree(prefix)
    text = (
        f"prefix={PLACEHOLDER}\nlibdir=${{prefix}}/lib\n\nName: Python\nVersion: {MINOR}\nLibs: -L{PLACEHOLDER}/lib\n"
    )
    script = f"#!{PLACEHOLDER}/bin/python{MINOR}\nimport pydoc\npydoc.cli()\n"
    files |= {f"lib/pkgconfig/python-{MINOR}.pc": text.encode(), f"bin/pydoc{MINOR}": script.encode()}
    return Package(
        name="python", version=FULL, build="h0_0", subdir=SUBDIR, files=files,
        constrains=(f"python_abi {MINOR}.*",),
        prefixed={f"lib/pkgconfig/python-{MINOR}.pc": "text", f"bin/pydoc{MINOR}": "text"},
        executable=frozenset({f"bin/pydoc{MINOR}"}),
    )  # fmt: skip


def compile_all(directory: Path, work: Path) -> None:
    """Compile every module as a package's build does: ``.pyc`` that name their source's time and size."""
    for path in directory.rglob("*.py"):
        os.utime(path, (BUILT_AT, BUILT_AT))
    command = [
        sys.executable,
        "-m",
        "compileall",
        "-q",
        "-j",
        "2",
        "-s",
        str(directory),
        "-p",
        "/build/lib",
        str(directory),
    ]
    done = subprocess.run([*command, "--invalidation-mode", "timestamp"], capture_output=True, check=False, cwd=work)
    # Some modules of test suites are not meant to compile.
    assert done.returncode in (0, 1), done.stderr


def tree(prefix: Path) -> dict[str, bytes | Path | Link]:
    """Every file below ``prefix``."""
    found: dict[str, bytes | Path | Link] = {}
    for path in sorted(prefix.rglob("*")):
        name = path.relative_to(prefix).as_posix()
        if path.is_symlink():
            found[name] = Link(os.readlink(path))
        elif path.is_file():
            found[name] = path
    return found


def from_distribution(dist: Distribution, work: Path, depends: tuple[str, ...], *, compiled: bool = True) -> Package:
    """An installed Python package as the platform package that a recipe of it gives, with ``.pyc``."""
    import shutil

    name, version = dist.metadata["Name"].lower().replace("_", "-"), dist.version
    root = work / f"dist-{name}"
    site = root / "lib" / f"python{MINOR}" / "site-packages"
    for file in dist.files or ():
        relative = file.as_posix()
        if relative.startswith("..") or "__pycache__" in relative:
            continue
        target = site / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(str(file.locate()), target)
    if compiled:
        compile_all(site, work)
    return Package(
        name=name, version=version, build=f"py{MINOR.replace('.', '')}h0_0", subdir=SUBDIR,
        depends=(*NEEDS_PYTHON, *depends), files=tree(root),
    )  # fmt: skip


def _module(
    name: str, version: str, *, depends: tuple[str, ...] = (), origin: str = "main", build: str = "py_0"
) -> Package:
    """A noarch Python package of one module."""
    code = f'VERSION = "{version}"\nORIGIN = "{origin}"\n\n\ndef main():\n    print("{name}", VERSION, ORIGIN)\n'
    info = f"site-packages/{name}-{version}.dist-info"
    files: dict[str, bytes | Path | Link] = {
        f"site-packages/{name}.py": code.encode(),
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{info}/INSTALLER": b"conda",
        f"{info}/RECORD": "".join(
            f"{path},,\n" for path in (f"{name}.py", f"{name}-{version}.dist-info/METADATA")
        ).encode(),
    }
    return Package(
        name=name, version=version, build=build, noarch="python", depends=("python", *depends),
        entry_points=(f"{name} = {name}:main",), files=files,
    )  # fmt: skip


def small_packages() -> list[Package]:
    """One package for each thing that a conda package can be."""
    site = f"lib/python{MINOR}/site-packages"
    p, old = PLACEHOLDER, OLD_PLACEHOLDER
    prefixed_module = (
        "from pathlib import Path\n"
        f"TEXT = {p + '/share/prefixed'!r}\n"
        "def binary_strings():\n"
        "    data = Path(TEXT, 'data.bin').read_bytes()\n"
        "    return [part.decode() for part in data.split(b'\\0') if part.startswith((b'/', b'-L', b'a:'))]\n"
    )
    binary = (
        b"\x7fBIN\0" + f"{p}/lib/one\0-L{p}/lib\0{p}/lib:{p}/lib64\0a:{p}\0".encode() + bytes(range(256)) + b"\0end"
    )
    return [
        _module("choice", "1.0"),
        _module("choice", "2.0"),
        _module("tiny", "1.0"),
        _module("tiny", "1.1", build="py_1"),
        _module("common", "1.0"),
        _module("common", "2.0"),
        _module("left", "1.0", depends=("common <2",)),
        _module("right", "1.0", depends=("common >=2",)),
        _module("six", "1.15.0"),
        _module("newglibc", "1.0", depends=("__glibc >=99.0",)),
        _module("oldglibc", "1.0", depends=("__glibc >=2.17",)),
        _module("gpu", "1.0", depends=("__cuda >=11",)),
        Package(
            name="activated", version="1.0", subdir=SUBDIR,
            files={
                "etc/conda/activate.d/activated.sh": b'export ACTIVATED_DATA="$CONDA_PREFIX/share/activated"\n',
                "etc/conda/deactivate.d/activated.sh": b"unset ACTIVATED_DATA\n",
                "share/activated/value": b"42\n",
            },
        ),
        Package(
            name="prefixed", version="1.0", build="py_0", subdir=SUBDIR, depends=NEEDS_PYTHON,
            files={
                f"{site}/prefixed.py": prefixed_module.encode(),
                "share/prefixed/data.bin": binary,
                "share/prefixed/config": f"a={p}/a\nno end {p}".encode(),
                "bin/prefixed-tool": f"#!{p}/bin/python{MINOR} -s\nimport sys; print(sys.prefix)\n".encode(),
            },
            prefixed={
                f"{site}/prefixed.py": "text", "share/prefixed/data.bin": "binary",
                "share/prefixed/config": "text", "bin/prefixed-tool": "text",
            },
            executable=frozenset({"bin/prefixed-tool"}),
        ),
        Package(
            name="oldprefix", version="1.0", subdir=SUBDIR, placeholder=old,
            files={"share/oldprefix.bin": f"\0{old}/x\0rest\0".encode(), "share/oldprefix.txt": f"{old}\n".encode()},
            prefixed={"share/oldprefix.bin": "binary", "share/oldprefix.txt": "text"},
        ),
        Package(
            name="oddities", version="1.0", subdir=SUBDIR,
            files={
                "share/oddities/a b $(touch x)": b"blank\n",
                "share/oddities/-rf": b"dash\n",
                "share/oddities/link": Link("a b $(touch x)"),
                "share/oddities/run": b"#!/bin/sh\necho ran\n",
                "share/oddities/\u00fcml\u00e4ut": b"utf-8\n",
            },
            executable=frozenset({"share/oddities/run"}),
        ),
    ]  # fmt: skip


def foreign_packages() -> list[Package]:
    """A Python for the platform that this machine is not; nothing of it can run here."""
    files: dict[str, bytes | Path | Link] = {
        f"bin/python{MINOR}": b"\x7fELF not really\n",
        "bin/python3": Link(f"python{MINOR}"),
        "bin/python": Link(f"python{MINOR}"),
        f"lib/python{MINOR}/os.py": b"# foreign\n",
    }
    return [
        Package(
            name="python",
            version=FULL,
            build="h0_0",
            subdir=FOREIGN,
            files=files,
            executable=frozenset({f"bin/python{MINOR}"}),
        )
    ]


def make_large_channel(root: Path, names: tuple[str, ...] = ("numpy", "scipy", "pandas")) -> str:
    """A channel of some 330 MB: Python, ``names`` from the index and what they need; returns its URL."""
    from importlib.metadata import distributions

    from packaging.requirements import Requirement

    from poncho_wq.build.uv import Uv, find_uv
    from poncho_wq.command import run

    work = root / "work"
    (work / "site").mkdir(parents=True)
    environment = Uv(cache=root / "uv")._environment
    run([find_uv(), "pip", "install", "--target", work / "site", "--python", sys.executable, *names], env=environment)
    python_package(work).write(root / "large")
    for dist in distributions(path=[str(work / "site")]):
        needs = [Requirement(text) for text in dist.requires or ()]
        depends = tuple(each.name for each in needs if each.marker is None or each.marker.evaluate({"extra": ""}))
        from_distribution(dist, work, depends).write(root / "large")
    return index(root / "large")
