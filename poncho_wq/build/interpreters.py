"""Copies of interpreters in the cache: made and tried once, and linked into each prefix that wants the same.

    interpreters/KEY/prefix/        as ``copy_interpreter`` made it
    interpreters/KEY/facts.json     what is in it, which shared libraries were found for it, and what it says of itself

KEY is a digest of all that a copy is made from but shared libraries: every file's content, where the interpreter is
installed (which the copy does not name), and the code that makes the copy.  Which libraries the loader finds, and what
is in them, is asked each time.

**Story.**  A finds no copy, makes one in its prefix, links its files into a working directory and renames that to KEY.
B did the same meanwhile and puts its own in the place of A's: they are equal.  C finds KEY and reads every file of it:
a copy that was damaged, or written to through a link of some prefix, is not used, and what C makes replaces it.  D has
read all and links it when B takes it away: a link fails, and D makes its own.  A is killed: it leaves a working
directory of the dead, which the next that keeps something removes.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from poncho_wq.build import elf, interpreter, libraries, neutral, stdlib
from poncho_wq.build.interpreter import Interpreter
from poncho_wq.build.libraries import Loader, find_patchelf, stays_behind
from poncho_wq.build.neutral import home_directory
from poncho_wq.build.stdlib import certificates_of, copy_interpreter, loader_of, sources_of
from poncho_wq.digests import in_batches, sha256_of
from poncho_wq.errors import BuildError, CacheError
from poncho_wq.scratch import sweep, work_directory

_FORMAT = "poncho-interpreter 1"
_FACTS, _PREFIX = "facts.json", "prefix"
# An interpreter that was updated is not wanted again; one that nothing was built with for so long can be copied anew.
_KEPT = 30 * 24 * 3600


@dataclass(frozen=True, kw_only=True)
class _Kept:
    """A copy that is whole.

    ``files`` are path → (mode, sha256), ``links`` path → target of a symbolic link, ``empty`` directories without
    anything in them.
    """

    prefix: Path
    files: Mapping[str, tuple[int, str]]
    links: Mapping[str, str]
    empty: Sequence[str]
    certificates: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Sought:
    """What was looked for, and what was found: None when there is no copy that may be used."""

    key: str
    kept: _Kept | None


class Interpreters:
    """Copies under ``<cache root>/interpreters``.  Processes may share them; making one touches nothing."""

    def __init__(self, cache_root: Path) -> None:
        self._root = cache_root.absolute() / "interpreters"

    def seek(self, python: Interpreter, environment: Mapping[str, str]) -> Sought:
        """The copy of ``python`` as it is now.  ``environment`` is what the loader sees.

        Raises ``OSError`` and ``BuildError`` for an interpreter that cannot be read.
        """
        key = _key(python)
        try:
            return Sought(key=key, kept=self._whole(self._root / key, python, environment))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return Sought(key=key, kept=None)

    def place(
        self, python: Interpreter, prefix: Path, environment: Mapping[str, str], sought: Sought | None = None
    ) -> tuple[str, ...]:
        """Put a copy of ``python`` into the new directory ``prefix``, as ``copy_interpreter`` does.

        ``sought`` is what ``seek`` has just said.  Returns the paths where its OpenSSL looks for certificates.  The
        files of the prefix may be links into the cache: none is ever written to.  Raises ``BuildError``, ``OSError``.
        """
        sought = sought or self.seek(python, environment)
        if sought.kept is not None:
            try:
                _link(sought.kept, prefix)
            except OSError:  # taken away just now; a full disk is met again below
                shutil.rmtree(prefix, ignore_errors=True)
            else:
                return sought.kept.certificates
        loader = copy_interpreter(python, prefix, environment)
        certificates = certificates_of(python, prefix)
        with contextlib.suppress(OSError, BuildError, CacheError):  # the prefix is complete without
            if _key(python) == sought.key:  # else it was changed under our hands
                self._keep(sought.key, prefix, loader, certificates)
        return certificates

    def _whole(self, directory: Path, python: Interpreter, environment: Mapping[str, str]) -> _Kept | None:
        facts = json.loads((directory / _FACTS).read_bytes())
        kept = _Kept(
            prefix=directory / _PREFIX,
            files={path: (int(mode), str(digest)) for path, (mode, digest) in facts["files"].items()},
            links=dict(facts["links"]),
            empty=list(facts["empty"]),
            certificates=tuple(facts["certificates"]),
        )
        there = _digests([f"{kept.prefix}/{path}" for path in kept.files])
        if there != [digest for _mode, digest in kept.files.values()]:
            return None
        loader = loader_of(python, environment)
        with _pool() as pool:
            list(pool.map(loader.resolve, map(Path, facts["libraries"])))
        if _found(loader) != facts["libraries"]:
            return None
        with contextlib.suppress(OSError):
            os.utime(directory / _FACTS)
        return kept

    def _keep(self, key: str, prefix: Path, loader: Loader, certificates: tuple[str, ...]) -> None:
        tmp = self._root / "tmp"
        tmp.mkdir(mode=0o700, parents=True, exist_ok=True)
        sweep(tmp)
        with work_directory(tmp) as work:
            kept = _listed(prefix, certificates)
            new = work / "new"
            new.mkdir()
            _link(kept, new / _PREFIX)
            facts = {
                "files": kept.files,
                "links": kept.links,
                "empty": kept.empty,
                "libraries": _found(loader),
                "certificates": certificates,
            }
            (new / _FACTS).write_text(json.dumps(facts), encoding="ascii")
            for other in self._root.iterdir():
                if other.name == key or (other != tmp and _is_old(other)):
                    with contextlib.suppress(OSError):
                        other.rename(work / other.name)
            new.rename(self._root / key)


def _key(python: Interpreter) -> str:
    """The digest of all that a copy of ``python`` is made from, but for shared libraries."""
    places = [python.prefix, python.exec_prefix, *filter(None, [home_directory()])]
    facts = [_FORMAT, _code(), *_digests([str(find_patchelf())])]
    facts += [f"{name} {value}" for name, value in sorted(vars(python).items())]
    facts += [f"{os.path.abspath(place)} {os.path.realpath(place)}" for place in places]
    names, files = zip(*sources_of(python), strict=True)
    facts += [f"{digest} {name}" for name, digest in zip(names, _digests(files), strict=True)]
    return hashlib.sha256("\0".join(facts).encode("utf-8", "surrogateescape")).hexdigest()


@functools.cache
def _code() -> str:
    """The digest of the code that decides what a copy looks like."""
    modules = (elf, interpreter, libraries, neutral, stdlib)
    return hashlib.sha256(b"\0".join(Path(str(each.__file__)).read_bytes() for each in modules)).hexdigest()


def _found(loader: Loader) -> dict[str, Any]:
    """What the loader has said, by file: soname → [file, sha256] of the libraries that travel."""
    asked = {
        str(file): {name: str(path) for name, path in found.items() if not stays_behind(name)}
        for file, found in loader.asked.items()
    }
    paths = sorted({path for found in asked.values() for path in found.values()})
    digests = dict(zip(paths, _digests(paths), strict=True))
    return {file: {name: [path, digests[path]] for name, path in found.items()} for file, found in asked.items()}


def _listed(prefix: Path, certificates: tuple[str, ...]) -> _Kept:
    """What is in ``prefix``, a fresh copy."""
    root = os.fspath(prefix)
    files, links, empty = [], {}, []
    for directory, subdirectories, names in os.walk(root):
        base = f"{directory[len(root) :].lstrip('/')}/".lstrip("/")
        for name in (*subdirectories, *names):
            if os.path.islink(f"{directory}/{name}"):
                links[base + name] = os.readlink(f"{directory}/{name}")
            elif name in names:
                files.append(base + name)
        if not subdirectories and not names:
            empty.append(base)
    digests = _digests([f"{root}/{path}" for path in files])
    modes = [os.stat(f"{root}/{path}").st_mode & 0o777 for path in files]
    return _Kept(
        prefix=prefix,
        files={path: (mode, digest) for path, mode, digest in zip(files, modes, digests, strict=True)},
        links=links,
        empty=empty,
        certificates=certificates,
    )


def _link(kept: _Kept, target: Path) -> None:
    """Make ``target``, which does not exist, the same as ``kept``."""
    source, root = os.fspath(kept.prefix), os.fspath(target)
    for directory in sorted({os.path.dirname(path) for path in (*kept.files, *kept.links, *kept.empty)}):
        os.makedirs(f"{root}/{directory}", exist_ok=True)
    for path, (mode, _digest) in kept.files.items():
        # Programs are copied: who writes a script of that name may write through its link.
        if path.startswith("bin/") or not _linked(f"{source}/{path}", f"{root}/{path}"):
            shutil.copyfile(f"{source}/{path}", f"{root}/{path}")
            os.chmod(f"{root}/{path}", mode)
    for path, text in kept.links.items():
        os.symlink(text, f"{root}/{path}")


def _linked(source: str, target: str) -> bool:
    try:
        os.link(source, target, follow_symlinks=False)
    except FileNotFoundError:
        raise
    except OSError:  # another file system, or one without links
        return False
    return True


def _is_old(directory: Path) -> bool:
    try:
        return (directory / _FACTS).stat().st_mtime < time.time() - _KEPT
    except OSError:
        return False


def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(len(os.sched_getaffinity(0)), thread_name_prefix="poncho-hash")


def _digests(files: Sequence[str]) -> list[str]:
    """sha256 of each.  Raises ``OSError``."""
    with _pool() as pool:
        return in_batches(sha256_of, files, pool)
