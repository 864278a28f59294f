"""Import name → the installed distribution that provides it, from metadata alone.

Nothing is imported: what a distribution holds is read from its RECORD, and where there is none (Debian's packages,
old eggs) from `top_level.txt` and the files beside the metadata. What no distribution claims is looked for where Python
would find it, to be told apart: local code, which a function task ships, and code that is simply missing.
"""

from __future__ import annotations

import functools
import os
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from packaging.utils import canonicalize_name

from poncho_wq.analysis.conda_records import CondaRecords
from poncho_wq.analysis.metadata import Metadata, module_file, read_metadata
from poncho_wq.analysis.model import LocalModule

_SITE_NAMES = ("site-packages", "dist-packages")


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """An installed package, or one that the user named.

    `requirement` is what a specification says of it: a PEP 508 requirement, or a MatchSpec where `kind` is "conda".
    `version` is None where nothing is installed. `folder` is the project that it was installed from, and then no
    specification can name it; `editable` says whether its code still lies there. `remark` is for the user.
    """

    name: str
    version: str | None
    requirement: str
    kind: Literal["pip", "conda"] = "pip"
    folder: Path | None = None
    editable: bool = False
    remark: str | None = None


@dataclass(frozen=True, kw_only=True)
class Found:
    """What provides a module: `distributions`, or local code, or a file that no package manager knows."""

    distributions: tuple[Distribution, ...] = ()
    local: LocalModule | None = None
    unclaimed: Path | None = None


class Installed:
    """What is importable from a module search path, and which distributions it comes from.

    `path` is as `sys.path` (which is the default); `prefix` is where `conda-meta` may lie, by default `sys.prefix`.
    """

    def __init__(self, path: Sequence[str] | None = None, *, prefix: str | os.PathLike[str] | None = None) -> None:
        self.prefix = Path(sys.prefix if prefix is None else prefix)
        self.conda = CondaRecords.beside(self.prefix)
        self.entries = tuple(_entries(sys.path if path is None else path))
        self.metadata = _first_of_each(self.entries)
        self._distributions: dict[int, Distribution] = {}
        self._known: dict[tuple[str, tuple[str, ...], Path | None], Found] = {}

    @classmethod
    def here(cls) -> Installed:
        """What this interpreter sees now; read again only after something was installed or `sys.path` changed."""
        state = tuple((entry, _changed(entry)) for entry in sys.path)
        return _remembered(state, sys.prefix)

    def find(self, module: str, names: Iterable[str] = (), *, beside: Path | None = None) -> Found | None:
        """What provides `module`, and those of `names` (dotted, relative to it) that are modules themselves.

        `beside` is the directory that comes first, where the importing script lies. None when nothing provides it.
        """
        key = (module, tuple(names), beside)
        known = self._known.get(key)
        if known is None:
            known = self._look(module, key[1], beside)
            if known is not None and known.distributions:  # local files come and go
                self._known[key] = known
        return known

    def _look(self, module: str, names: tuple[str, ...], beside: Path | None) -> Found | None:
        top = module.partition(".")[0]
        for entry in self._order(beside):
            if not entry.site:
                file = module_file(entry.directory, top)
                if file is not None:
                    return Found(local=self._local(top, file, entry.directory))
            elif top in self._tops:
                return self._claimed(module, names) or self._namespace(module, names, beside)
            elif (file := module_file(entry.directory, top)) is not None:
                return self._unclaimed(top, file, entry.directory)
        return self._editable(top) or self._namespace(module, names, beside)

    def at(self, module: str, file: Path) -> Found | None:
        """What provides a module that was imported from `file` already."""
        root = _root_of(module, file)
        top = module.partition(".")[0]
        if root is None:
            return None
        for entry in self.entries:
            if entry.site and entry.directory == root:
                if top in self._tops:
                    return self._claimed(module, ()) or Found(unclaimed=file)
                return self._unclaimed(top, file, root)
        return Found(local=self._local(top, root / top if module != top or file.stem == "__init__" else file, root))

    def named(self, name: str) -> Distribution | None:
        """The installed package of that name; None when there is none. Any spelling that PEP 503 calls equal."""
        wanted = canonicalize_name(name)
        record = self.conda.named(name) if self.conda else None
        if record is not None:
            return Distribution(name=record.name, version=record.version, requirement=record.matchspec, kind="conda")
        for each in self.metadata:
            if each.canonical == wanted:
                return self._distribution(each)
        return None

    def owners(self, top: str) -> tuple[Distribution, ...]:
        """The installed distributions with something below that top-level name."""
        return tuple(self._distribution(each) for each in self._tops.get(top, ()))

    def copy_of(self, module: str, owner: Distribution) -> LocalModule | None:
        """The installed copy of a package that came from a folder, to be shipped: no index has it."""
        top = module.partition(".")[0]
        for entry in self.entries:
            file = module_file(entry.directory, top) if entry.site else None
            if file is not None:
                path = file.parent if file.stem == "__init__" else file
                label = f"{owner.name} {owner.version}"
                return LocalModule(name=top, path=path, root=entry.directory, distribution=label)
        return None

    # -- how

    def _order(self, beside: Path | None) -> Iterator[Entry]:
        if beside is not None and all(entry.directory != beside for entry in self.entries if entry.site):
            yield Entry(beside, False)
        yield from self.entries

    @functools.cached_property
    def _tops(self) -> dict[str, list[Metadata]]:
        """Top-level import name → the distributions with something in it."""
        tops: dict[str, list[Metadata]] = {}
        for each in self.metadata:
            for top in each.tops:
                tops.setdefault(top, []).append(each)
        return tops

    def _claimed(self, module: str, names: tuple[str, ...]) -> Found | None:
        candidates = self._tops[module.partition(".")[0]]
        chosen: dict[int, Metadata] = {}
        for name in names or ("",):
            for each in _providers(candidates, module, name):
                chosen.setdefault(id(each), each)
        if not chosen:
            return None
        return Found(distributions=tuple(self._distribution(each) for each in chosen.values()))

    def _unclaimed(self, top: str, file: Path, root: Path) -> Found:
        record = self.conda.owner(file) if self.conda else None
        if record is not None:
            found = Distribution(name=record.name, version=record.version, requirement=record.matchspec, kind="conda")
            return Found(distributions=(found,))
        return self._editable(top) or Found(unclaimed=file)

    def _editable(self, top: str) -> Found | None:
        """An editable install whose finder, not `sys.path`, says where its modules are."""
        for each in self.metadata:
            if not each.editable:
                continue
            file = each.editable_modules.get(top)
            if file is None and top in each.guesses and each.folder is not None:
                places = [each.folder, each.folder / "src"]
                file = next((found for place in places if (found := module_file(place, top))), None)
            if file is not None:
                path = file.parent if file.stem == "__init__" else file
                return Found(local=LocalModule(name=top, path=path, root=path.parent, distribution=each.label))
        return None

    def _namespace(self, module: str, names: tuple[str, ...], beside: Path | None) -> Found | None:
        """A package directory without `__init__`: the last thing that Python tries."""
        top, _, rest = module.partition(".")
        wanted = [f"{rest}.{name}".strip(".") for name in names] + [rest]
        for entry in self._order(beside):
            directory = entry.directory / top
            if entry.site or not top or not os.path.isdir(directory):
                continue
            if any(module_file(directory, name) for name in wanted if name):
                return Found(local=self._local(top, directory, entry.directory))
        return None

    def _local(self, top: str, file: Path, root: Path) -> LocalModule:
        path = file.parent if file.stem == "__init__" else file
        owner = next(
            (each.label for each in self.metadata if each.folder is not None and path.is_relative_to(each.folder)), None
        )
        return LocalModule(name=top, path=path, root=root, distribution=owner)

    def _distribution(self, metadata: Metadata) -> Distribution:
        known = self._distributions.get(id(metadata))
        if known is None:
            known = self._distributions[id(metadata)] = self._describe(metadata)
        return known

    def _describe(self, metadata: Metadata) -> Distribution:
        record = self.conda.owner(metadata.path) if self.conda else None
        if record is not None:
            return Distribution(name=record.name, version=record.version, requirement=record.matchspec, kind="conda")
        requirement, remark = metadata.requirement()
        return Distribution(
            name=metadata.name,
            version=metadata.version,
            requirement=requirement,
            folder=metadata.folder,
            editable=metadata.editable,
            remark=remark,
        )


@dataclass(frozen=True)
class Entry:
    """A directory of the search path; `site`: one that packages are installed into."""

    directory: Path
    site: bool
    metadata: tuple[Metadata, ...] = ()


def _entries(path: Iterable[str]) -> Iterator[Entry]:
    """The directories of a search path, with those that `.pth` files in them add, each once."""
    outside = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "scripts")}
    outside |= {f"{sysconfig.get_path('platstdlib')}/lib-dynload"}
    pending = [os.path.abspath(each or ".") for each in path if isinstance(each, str)]
    seen: set[str] = set()
    while pending:
        name = pending.pop(0)
        directory = Path(name)
        if name in seen or name in outside or not os.path.isdir(directory):
            continue
        seen.add(name)
        metadata = tuple(read_metadata(directory))
        site = directory.name in _SITE_NAMES or any(not each.egg for each in metadata)
        for each in metadata:
            each.developed = not site
        yield Entry(directory, site, metadata)
        if site:
            pending = [each for each in _pth_lines(directory) if each not in pending] + pending


def _pth_lines(directory: Path) -> list[str]:
    """The directories that `.pth` files add to the path, as `site` reads them; lines with code are not run."""
    found: list[str] = []
    for file in sorted(directory.glob("*.pth")):
        try:
            lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            continue
        for line in lines:
            if line.strip() and not line.startswith(("#", "import ", "import\t")):
                found.append(os.path.abspath(directory / line.rstrip()))
    return found


def _first_of_each(entries: Iterable[Entry]) -> tuple[Metadata, ...]:
    """Each distribution once: of two versions on the path, Python sees the first."""
    found: dict[str, Metadata] = {}
    for entry in entries:
        for each in entry.metadata:
            found.setdefault(each.canonical, each)
    return tuple(found.values())


def _providers(candidates: Sequence[Metadata], module: str, name: str) -> list[Metadata]:
    """Those of `candidates` that hold `module` or, where it is a module too, `module.name`.

    That is the longest part of the dotted name that anyone holds, and whoever holds the packages above it, since they
    are imported first. A namespace that nobody fills further is held by all who share it.
    """
    full = [*module.split("."), *(name.split(".") if name else ())]
    least = module.count(".") + 1
    for length in range(len(full), 0, -1):
        dotted = ".".join(full[:length])
        holders = [each for each in candidates if each.holds(dotted)]
        if holders:
            above = [".".join(full[:n]) for n in range(1, length)]
            return [*holders, *(each for each in candidates if any(each.is_package(a) for a in above))]
    if name:
        return []
    return [each for each in candidates if each.has_below(".".join(full[:least]))]


def _root_of(module: str, file: Path) -> Path | None:
    """The directory that `module` was found from, given its file; None when it cannot be found by that name."""
    stem = file.name.partition(".")[0]
    parts = (*module.split("."), "__init__") if stem == "__init__" else tuple(module.split("."))
    if (*file.parts[:-1], stem)[-len(parts) :] != parts or len(file.parents) < len(parts):
        return None
    return file.parents[len(parts) - 1]


def _changed(entry: str) -> int:
    try:
        return os.stat(entry or ".").st_mtime_ns
    except OSError:
        return 0


@functools.lru_cache(maxsize=2)
def _remembered(state: tuple[tuple[str, int], ...], prefix: str) -> Installed:
    return Installed([entry for entry, _ in state], prefix=prefix)
