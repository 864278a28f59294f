"""A virtual environment, made by ``venv``, ``virtualenv`` or ``uv``: its packages, exactly, and its interpreter.

Everything is read from ``pyvenv.cfg`` (PEP 405) and the metadata of what is installed; its Python is not asked.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from poncho_wq.errors import SpecError
from poncho_wq.importing.installed import read_packages, unlisted
from poncho_wq.importing.model import Imported
from poncho_wq.importing.text import read_text
from poncho_wq.spec import EnvSpec

# Who installs packages of the operating system.  Debian's have no INSTALLER at all; no index serves most of them.
_AGAIN = "make the virtual environment again: python3 -m venv DIR"
_SYSTEM_INSTALLERS = frozenset(("", "debian", "rpm", "dnf", "portage", "apk"))


def read_venv(directory: Path, *, ignore_editable: bool = False) -> Imported:
    """The virtual environment ``directory``.

    Its interpreter is the one to copy, whichever runs the manager.  With ``--system-site-packages`` the packages that
    pip installed beside that interpreter belong to it too; those of the operating system do not.
    ``ignore_editable`` leaves out packages whose code no index has, instead of refusing them.
    Raises ``SpecError``.
    """
    source = str(directory)
    settings = _settings(directory / "pyvenv.cfg")
    if settings.get("implementation", "CPython").lower() != "cpython":
        raise SpecError(
            f"is a virtual environment of {settings['implementation']}, and an environment can carry CPython only",
            source=source,
            advice="make it with CPython: python3 -m venv DIR",
        )
    minor = _minor(settings, directory)
    python = f"python{minor[0]}.{minor[1]}"
    places = _existing(directory / lib / python / "site-packages" for lib in ("lib", "lib64"))
    if not places:
        raise SpecError(f"has no lib/{python}/site-packages", source=source, advice=_AGAIN)
    notes = []
    for place in places:
        if loose := unlisted(place):
            more = f" and {len(loose) - 5} more" if len(loose) > 5 else ""
            notes.append(f"{place}: left out, since no package lists them: {', '.join(loose[:5])}{more}")
    of_the_system: set[Path] = set()
    if settings.get("include-system-site-packages", "false").lower() == "true":
        beyond = _system_places(settings, python)
        of_the_system = _of_the_system(beyond)
        places += beyond
    if of_the_system:
        notes.append(f"{source}: packages of the operating system come along only where others require them")
    packages = read_packages(places, python=minor, only_if_needed=of_the_system)
    packages.settle_local(source, ignore_editable=ignore_editable)
    spec = EnvSpec.from_dict({"pip": packages.requirements, "python": f"{minor[0]}.{minor[1]}"}, source=source)
    return Imported(spec=spec, notes=(*notes, *packages.notes), interpreter=_interpreter(settings, directory, python))


def _settings(path: Path) -> dict[str, str]:
    """``pyvenv.cfg``: lines of ``key = value``, keys in any case (PEP 405, and the ``site`` module that reads it)."""
    found = {}
    for line in read_text(path).splitlines():
        key, equals, value = line.partition("=")
        if equals:
            found[key.strip().lower()] = value.strip()
    return found


def _minor(settings: dict[str, str], directory: Path) -> tuple[int, int]:
    for key in ("version", "version_info"):  # venv's, uv's and virtualenv's
        match = re.match(r"(\d+)\.(\d+)", settings.get(key, ""))
        if match:
            return int(match[1]), int(match[2])
    raise SpecError("does not say which Python it is for", source=str(directory / "pyvenv.cfg"))


def _existing(places: Iterable[Path]) -> list[Path]:
    """Those of ``places`` that are directories, each once: ``lib64`` is a link to ``lib`` on some systems."""
    found: dict[str, Path] = {}
    for each in places:
        if each.is_dir():
            found.setdefault(os.path.realpath(each), each)
    return list(found.values())


def _system_places(settings: dict[str, str], python: str) -> list[Path]:
    home = Path(settings.get("home", ""))
    prefix = Path(settings.get("base-prefix") or home.parent)
    above = [prefix / "local", prefix] if str(prefix) == "/usr" else [prefix]
    return _existing(
        place / lib / version / name
        for place in above
        for lib in ("lib", "lib64")
        for version, name in ((python, "site-packages"), (python, "dist-packages"), ("python3", "dist-packages"))
    )


def _of_the_system(places: list[Path]) -> set[Path]:
    """The metadata directories that an operating system's packages brought."""
    found = set()
    for place in places:
        for info in (*place.glob("*.dist-info"), *place.glob("*.egg-info")):
            try:
                installer = (info / "INSTALLER").read_text(encoding="utf-8", errors="replace").strip()
            except OSError:
                installer = ""
            if installer in _SYSTEM_INSTALLERS:
                found.add(info)
    return found


def _interpreter(settings: dict[str, str], directory: Path, python: str) -> Path:
    """The program that the virtual environment was made from."""
    home = settings.get("home", "")
    named = [settings.get("base-executable"), settings.get("executable")]
    for candidate in [*named, *(f"{home}/{name}" for name in (python, "python3", "python"))]:
        # virtualenv writes the venv's own program into `executable` in some versions.
        if candidate and os.access(candidate, os.X_OK) and not Path(candidate).is_relative_to(directory.absolute()):
            return Path(candidate)
    raise SpecError(
        f"its interpreter is gone: there is no {python} in {home}",
        source=str(directory),
        advice="load the module that it was made with, or make the virtual environment again",
    )
