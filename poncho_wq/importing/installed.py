"""The packages that are installed in a directory, as exact requirements: what a venv and a conda prefix share."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from importlib.metadata import PathDistribution
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from poncho_wq.analysis.metadata import Metadata, read_metadata
from poncho_wq.errors import SpecError

# What `pip freeze` leaves out: installers, not part of what is installed.  Since 3.12 a venv brings pip alone, so that
# the others are there only because somebody wanted them.
_TOOLS_BEFORE_312 = frozenset(("pip", "setuptools", "wheel", "distribute"))
_TOOLS = frozenset(("pip",))


@dataclass(kw_only=True)
class Packages:
    """Distributions, as found.

    ``requirements`` are exact (``name==version``, ``name @ URL``); ``local`` those whose code no index has, as
    (name and version, folder, what it is); ``notes`` are for the user.
    """

    requirements: list[str] = field(default_factory=list)
    local: list[tuple[str, str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def settle_local(self, source: str, *, ignore_editable: bool) -> None:
        """Refuse the local ones, all at once, or make notes of them.  Raises ``SpecError``."""
        if not self.local:
            return
        listed = "\n  ".join(f"{label} ({what} {folder})" for label, folder, what in self.local)
        if not ignore_editable:
            raise SpecError(
                f"no index has the code of these packages:\n  {listed}",
                source=source,
                advice="build a wheel of each and install that (pip wheel --no-deps FOLDER; pip install THE.whl), or "
                "leave them out with --ignore-editable-packages: a function task ships local code by itself",
            )
        self.notes.append(f"{source}: left out, as no index has their code:\n  {listed}")


def read_packages(
    directories: Iterable[Path],
    *,
    python: tuple[int, int],
    only_if_needed: Collection[Path] = (),
    not_taken: Collection[Path] = (),
) -> Packages:
    """The distributions in ``directories``, the first of each name, without the installers that nobody else needs.

    ``python`` is the interpreter's minor version.  ``only_if_needed`` are metadata directories of distributions that
    belong to others (an operating system) and are taken where one of the rest requires them; those of ``not_taken``
    never are.
    """
    found: dict[str, Metadata] = {}
    packages = Packages()
    for directory in directories:
        for each in read_metadata(directory):
            if each.path not in not_taken:
                found.setdefault(each.canonical, each)
        _legacy_editable(directory, packages)
    tools = _TOOLS if python >= (3, 12) else _TOOLS_BEFORE_312
    waiting = {name: each for name, each in found.items() if name in tools or each.path in only_if_needed}
    taken = {name: each for name, each in found.items() if name not in waiting}
    needed = _needed_by(taken.values())
    while wanted := needed.intersection(waiting):
        needed = _needed_by(waiting[name] for name in wanted)
        taken |= {name: waiting.pop(name) for name in wanted}
    for _, each in sorted(taken.items()):
        if each.folder is not None:
            what = "an editable install of" if each.editable else "installed from the folder"
            packages.local.append((each.label, str(each.folder), what))
            continue
        text, remark = each.requirement()
        packages.requirements.append(text)
        if remark:
            packages.notes.append(remark)
    return packages


def _needed_by(distributions: Iterable[Metadata]) -> set[str]:
    """The names that any of ``distributions`` requires here, without extras."""
    needed: set[str] = set()
    for each in distributions:
        for text in PathDistribution(each.path).requires or ():
            try:
                wanted = Requirement(text)
                if wanted.marker is None or wanted.marker.evaluate({"extra": ""}):
                    needed.add(canonicalize_name(wanted.name))
            except (InvalidRequirement, ValueError):
                continue
    return needed


def _legacy_editable(directory: Path, packages: Packages) -> None:
    """``setup.py develop`` of old leaves an ``.egg-link`` whose first line is the project's folder."""
    for link in sorted(directory.glob("*.egg-link")):
        lines = link.read_text(encoding="utf-8", errors="replace").splitlines() or ["?"]
        packages.local.append((link.stem, lines[0].strip(), "an editable install of"))


def unlisted(directory: Path) -> list[str]:
    """The modules in ``directory`` that came with no package: somebody copied them there."""
    known = {"_virtualenv", "_distutils_hack"}.union(*(each.tops for each in read_metadata(directory)))
    return [
        item.name
        for item in sorted(directory.iterdir())
        if item.name.partition(".")[0] not in known
        and item.name != "__pycache__"
        and item.name.partition(".")[0].isidentifier()
        and (item.suffix in (".py", ".so") or (item.is_dir() and "." not in item.name))
    ]
