"""What builds have given, so that the next one installs and reads only what its lock changes.

    builds/NAME.json        of which interpreter, installer and settings a build was, and what was installed
    builds/NAME.files       every file that it gave, with its digest, and where its shared libraries were found

A build can begin with an earlier one where only packages without binaries differ: then no other package's files do.
(What a binary is linked with may come from other packages, and from the machine.)  Of the packages that are the same,
most are not even installed: their layers are in the cache, under the digests of their files.  Small ones that share a
layer with what has changed are installed, settled and read as ever, and have to be what they were.

What is relied upon: a file that is installed follows from the digests in the lock, the installer and what it is told,
and the code that settles it, all of which are in ``key_of``; the machine's libraries are looked at each time.

**Story.**  A, B and C build variants at the same time.  Each reads whatever is there, and adds a pair of files: first
the large one, then the one that names it with its digest, each by a rename.  Who is killed in between leaves a large
one that nothing names; the next removes it once it is old.  D chose a build that E removes now (there are more than
``_MOST``): it finds no large file, and builds in full.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from poncho_wq.build import FileGroup, elf
from poncho_wq.build.libraries import Loader, starts_at_origin, stays_behind
from poncho_wq.build.packages import Binaries
from poncho_wq.build.records import Distribution
from poncho_wq.digests import sha256_of
from poncho_wq.packing import planning
from poncho_wq.packing.known import Absent
from poncho_wq.packing.layers import Entry

_FORMAT = "poncho-builds 1"
# Variants that are worked on side by side; each file has a megabyte or two.
_MOST = 8
_OLD = 3600
# The loader takes a list of these, and what has no such name is no library (see ``without_binaries``).
_SONAME = re.compile(r"[\w.+-]*\.so[\w.+-]*")


@dataclass(frozen=True, kw_only=True)
class Earlier:
    """A build that was.

    ``lines`` are digests of what was installed, by package.  ``groups`` have in ``known`` all that they gave.
    ``binaries`` are the packages that have any.  ``sonames`` are what these need and no package has; ``libraries``,
    which files of the machine that were, with their digests; ``places``, where else they look, in vain.
    """

    lines: Mapping[str, str]
    groups: tuple[FileGroup, ...]
    glibc: str | None
    binaries: frozenset[str]
    sonames: tuple[str, ...]
    places: tuple[str, ...]
    libraries: Mapping[str, list[str]]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a build will be remembered as, once its files are read."""

    builds: Builds
    key: str
    earlier: Earlier

    def remember(self, entries: Mapping[str, Entry]) -> None:
        """Keep it for later builds.  ``entries`` are the files of the prefix with their digests."""
        groups = []
        for group in self.earlier.groups:
            found = [entries[path] for path in (name.rstrip("/") for name in group.files) if path in entries]
            if any(entry.kind == "hardlink" for entry in found):
                return
            groups.append(replace(group, known=tuple(found), there=True))
        with contextlib.suppress(OSError):
            self.builds.keep(self.key, replace(self.earlier, groups=tuple(groups)))


class Builds:
    """Builds under ``<cache root>/builds``.  Processes may share them; making one touches nothing."""

    def __init__(self, cache_root: Path) -> None:
        self._root = cache_root.absolute() / "builds"

    def nearest(self, key: str, lines: Mapping[str, str]) -> Earlier | None:
        """Of the builds with that key, the one with the fewest packages that differ from ``lines``."""
        found: list[tuple[int, str, str]] = []
        with contextlib.suppress(OSError):
            for path in self._root.glob("*.json"):
                with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
                    facts = json.loads(path.read_bytes())
                    if facts["key"] == key:
                        found.append((len(set(facts["lines"].items()) ^ set(lines.items())), path.stem, facts["files"]))
        for _differ, name, digest in sorted(found):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
                text = (self._root / f"{name}.files").read_bytes()
                if hashlib.sha256(text).hexdigest() == digest:
                    with contextlib.suppress(OSError):
                        os.utime(self._root / f"{name}.json")
                    return _read(json.loads(text))
        return None

    def keep(self, key: str, build: Earlier) -> None:
        """Remember ``build``, instead of any other of the same packages.  Raises ``OSError``."""
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        lines = json.dumps(sorted(build.lines.items()))
        name = hashlib.sha256(f"{key}\0{lines}".encode()).hexdigest()
        text = json.dumps(_written(build)).encode("ascii")
        facts = {"key": key, "lines": dict(build.lines), "files": hashlib.sha256(text).hexdigest()}
        self._write(f"{name}.files", text)
        self._write(f"{name}.json", json.dumps(facts).encode("ascii"))
        self._tidy()

    def _write(self, name: str, content: bytes) -> None:
        draft = self._root / f"{secrets.token_hex(8)}.draft"
        try:
            draft.write_bytes(content)
            draft.replace(self._root / name)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise

    def _tidy(self) -> None:
        """Remove the builds that were of use longest ago, and what the killed have left."""
        times = {}
        for path in self._root.iterdir():
            with contextlib.suppress(OSError):
                times[path] = path.stat().st_mtime
        named = sorted((path for path in times if path.suffix == ".json"), key=lambda path: -times[path])
        stay = {path.stem for path in named[:_MOST]}
        for path in named[_MOST:]:
            path.unlink(missing_ok=True)
        for path, written in times.items():
            if path.suffix != ".json" and path.stem not in stay and written < time.time() - _OLD:
                path.unlink(missing_ok=True)


def key_of(*facts: str) -> str:
    """What builds of the same interpreter, installer, settings and machine have in common."""
    machine = (os.uname().machine, os.confstr("CS_GNU_LIBC_VERSION") or "")
    return hashlib.sha256(json.dumps([_FORMAT, _code(), *machine, *facts]).encode()).hexdigest()


def _code() -> str:
    """The digest of the code that decides what installed packages become."""
    names = ("builds", "elf", "host", "launchers", "index", "libraries", "neutral", "packages", "records", "uv")
    texts = [Path(__file__).with_name(f"{name}.py").read_bytes() for name in names]
    return hashlib.sha256(b"\0".join(texts)).hexdigest()


# Beginning with an earlier build


def earlier(
    lines: Mapping[str, str], groups: tuple[FileGroup, ...], binaries: Binaries, loader: Loader, root: Path,
    glibc: str | None,
) -> Earlier | None:  # fmt: skip
    """What a complete build in ``root`` gave; None when something is odd, and later ones cannot rely on it.

    Raises ``OSError`` and ``BuildError`` where the machine's libraries cannot be told.
    """
    packages = {group.name for group in groups if group.kind == "pip"}
    sonames, places = sonames_of(binaries), places_of(binaries)
    if packages != set(lines) or sonames is None or places is None or not are_apart(groups):
        return None
    libraries = libraries_of(loader, sonames)
    brought = {name for group in groups if group.kind == "other" for name in group.files}
    if not brought <= {f"lib/{soname}" for soname in libraries}:
        return None
    # Asked for by name the machine has to give what it gave to the binary that needs it.
    if any(
        libraries.get(name, [""])[0] != str(path) for name, path in binaries.found.items() if f"lib/{name}" in brought
    ):
        return None
    return Earlier(
        lines=lines,
        groups=groups,
        glibc=glibc,
        binaries=frozenset(g.name for g in groups if g.kind == "pip" and not without_binaries(root, g.files)),
        sonames=sonames,
        places=places,
        libraries=libraries,
    )


def applies(earlier: Earlier, lines: Mapping[str, str], loader: Loader) -> bool:
    """Whether what is the same in ``lines`` is what it was: no package with binaries goes, nor does a library.

    Raises as ``earlier``.
    """
    differ = {name for name, line in earlier.lines.items() if lines.get(name) != line}
    if differ & earlier.binaries or any(map(os.path.exists, earlier.places)):
        return False
    return libraries_of(loader, earlier.sonames) == earlier.libraries


def to_install(earlier: Earlier, lines: Mapping[str, str]) -> frozenset[str]:
    """The packages that have to be there: those that are new, and those that share a layer with what comes or goes."""
    differ = {name for name in {*lines, *earlier.lines} if lines.get(name) != earlier.lines.get(name)}
    buckets = set(map(planning.bucket_of, differ))
    sizes = {group.name: sum(entry.size for entry in group.known) for group in earlier.groups}

    def shares(name: str) -> bool:
        return planning.bucket_of(name) in buckets and sizes[name] < planning.OWN_LAYER

    return frozenset(name for name in lines if name in differ or shares(name))


def combined(
    earlier: Earlier, lines: Mapping[str, str], there: Iterable[FileGroup], root: Path, packages: str
) -> tuple[FileGroup, ...] | None:
    """The groups of the whole environment: those that are ``there``, in ``root``, and what is known of the others.

    ``packages`` is the directory of packages.  None when the earlier build does not help.
    """
    before = {group.name: group for group in earlier.groups if group.kind == "pip"}
    installed = {group.name: group for group in there if group.kind == "pip"}
    groups = [replace(_of_kind("interpreter", earlier.groups), files=_of_kind("interpreter", there).files)]
    for name, line in sorted(lines.items()):
        if earlier.lines.get(name) != line:
            if name not in installed or not without_binaries(root, installed[name].files):
                return None
            groups.append(installed[name])
        elif name in installed:
            groups.append(replace(before[name], files=installed[name].files))
        else:
            groups.append(replace(before[name], there=False))
    others = [replace(group, there=False) for group in earlier.groups if group.kind == "other"]
    known = {name for group in others for name in group.files}
    left = {name for group in there if group.kind == "other" for name in group.files} - {packages}
    if not left <= known or not are_apart([*groups, *others]):
        return None
    return (*groups, *others)


def _of_kind(kind: str, groups: Iterable[FileGroup]) -> FileGroup:
    return next(group for group in groups if group.kind == kind)


# What may be relied upon


def places_of(binaries: Binaries) -> tuple[str, ...] | None:
    """Where else on the machine ``binaries`` look for libraries: where they were made.  None when that is there."""
    parts = {part for facts in binaries.facts.values() for part in (*facts.rpath, *facts.runpath)}
    places = sorted(part for part in parts if not starts_at_origin(part))
    if any("$" in place or not place.startswith("/") or os.path.exists(place) for place in places):
        return None
    return tuple(places)


def sonames_of(binaries: Binaries) -> tuple[str, ...] | None:
    """What ``binaries`` need of the machine; None when something of that is oddly named."""
    if not all(_SONAME.fullmatch(each) for facts in binaries.facts.values() for each in facts.needed):
        return None
    return tuple(sorted(binaries.missing))


def libraries_of(loader: Loader, sonames: tuple[str, ...]) -> dict[str, list[str]]:
    """soname → file and digest of what the machine has by these names, and of what that needs.

    Raises ``OSError`` and ``BuildError``.
    """
    if not sonames:
        return {}
    found = loader.by_name(sonames)
    return {name: [str(path), sha256_of(path)] for name, path in sorted(found.items()) if not stays_behind(name)}


def without_binaries(root: Path, names: Iterable[str]) -> bool:
    """Whether none of ``names``, files in ``root``, is a binary or could be taken for a library."""
    listed = list(names)
    return not any(".so" in os.path.basename(name) for name in listed) and not any(elf.among(root, listed))


def are_apart(groups: Iterable[FileGroup]) -> bool:
    """Whether no path is in two groups, and none is a directory of another's file: packages can come and go alone."""
    owners: dict[str, str] = {}
    for group in groups:
        for name in group.files:
            if owners.setdefault(name.rstrip("/"), group.name) != group.name:
                return False
    folders: set[str] = set()
    for path in owners:
        while (path := os.path.dirname(path)) and path not in folders:
            folders.add(path)
    return folders.isdisjoint(owners)


def own_files(distributions: Iterable[Distribution], files: Iterable[str]) -> bool:
    """Whether each of ``files`` is recorded by one distribution at most."""
    there = frozenset(files)
    recorded = [distribution.among(there) for distribution in distributions]
    return sum(map(len, recorded)) == len(frozenset().union(*recorded))


# The large file


def _written(build: Earlier) -> dict[str, Any]:
    return {
        "groups": [
            [group.name, group.version, group.kind, group.files, [_row(entry) for entry in group.known]]
            for group in build.groups
        ],
        "lines": dict(build.lines),
        "glibc": build.glibc,
        "binaries": sorted(build.binaries),
        "sonames": build.sonames,
        "places": build.places,
        "libraries": build.libraries,
    }


def _row(entry: Entry) -> list[str | int]:
    return [entry.path, entry.kind, entry.mode, entry.digest, entry.target, entry.size]


def _read(facts: Mapping[str, Any]) -> Earlier:
    return Earlier(
        lines=facts["lines"],
        groups=tuple(
            FileGroup(name=name, version=version, kind=kind, files=tuple(files), known=tuple(map(_entry, rows)))
            for name, version, kind, files, rows in facts["groups"]
        ),
        glibc=facts["glibc"],
        binaries=frozenset(facts["binaries"]),
        sonames=tuple(facts["sonames"]),
        places=tuple(facts["places"]),
        libraries=facts["libraries"],
    )


def _entry(row: tuple[str, Any, int, str, str, int]) -> Entry:
    path, kind, mode, digest, target, size = row
    content = Absent(size=size) if kind == "file" else b""
    return Entry(path=path, kind=kind, mode=mode, digest=digest, target=target, content=content)
