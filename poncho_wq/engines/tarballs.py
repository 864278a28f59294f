"""What is in a tarball that the user made, looked at before an engine gets it.

An engine finds out on a worker, late and badly: TaskVine takes no notice when the environment cannot be unpacked, runs
the task all the same and calls it a success with exit status 127.  Tarballs that poncho_wq built are known to be right.
"""

from __future__ import annotations

import posixpath
import re
import tarfile
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from poncho_wq.errors import CorruptTarball, EngineError

if TYPE_CHECKING:
    from poncho_wq.prepare import Environment

_INTERPRETER = re.compile(r"bin/python(3\.[0-9]+)\Z")
_STANDARD_LIBRARY = re.compile(r"lib/python(3\.[0-9]+)/")
_ADVICE = (
    "give poncho_wq what the tarball was made from (a specification, a virtual environment, a conda prefix): it makes "
    "tarballs that TaskVine can run, as does TaskVine's own poncho_package_create"
)


def validated(environment: Environment) -> Environment:
    """``environment``, fit for TaskVine, with the Python minor version that was found in it.

    Raises ``EngineError`` when the tarball lacks what TaskVine calls on a worker, ``CorruptTarball`` when it cannot be
    read to its end.
    """
    # One with a manifest is ours, wherever it lies now; tarfile, reading a stream, ends where its first member does.
    if environment.spec_hash is not None or environment.platform is not None:
        return environment
    facts = environment.tarball.stat()
    python = _inspect(environment.tarball, facts.st_size, facts.st_mtime_ns)
    return environment if environment.python is not None else replace(environment, python=python)


@lru_cache(maxsize=64)
def _inspect(tarball: Path, size: int, mtime: int) -> str | None:
    """The minor version of the Python in a tarball.  ``size`` and ``mtime`` are part of the cache's key only."""
    links: dict[str, str] = {}
    libraries: set[str] = set()
    try:
        with tarfile.open(tarball, "r|*") as archive:
            for member in archive:
                path = posixpath.normpath(member.name)
                if path.startswith("bin/"):
                    links[path] = posixpath.join("bin", member.linkname) if member.issym() else ""
                elif found := _STANDARD_LIBRARY.match(path):
                    libraries.add(found[1])
    except (tarfile.TarError, EOFError, OSError) as error:
        raise CorruptTarball(
            f"{tarball}: cannot be read to its end: {error}", tarball=tarball, advice="make the tarball again"
        ) from error
    missing = [name for name in ("bin/run_in_env", "bin/activate") if name not in links]
    if "bin/python3" not in links and "bin/python" not in links:
        missing.append("bin/python3")
    if missing:
        raise EngineError(f"{tarball}: lacks {', '.join(missing)}, which TaskVine needs", advice=_ADVICE)
    return _version(links) or (libraries.pop() if len(libraries) == 1 else None)


def _version(links: dict[str, str]) -> str | None:
    """The version in the name of the program that ``bin/python3`` ends at."""
    path = "bin/python3" if "bin/python3" in links else "bin/python"
    for _ in range(8):
        found = _INTERPRETER.search(path)
        if found:
            return found[1]
        path = posixpath.normpath(links.get(path) or ".")
    return None
