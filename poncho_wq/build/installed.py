"""A conda prefix that exists, packed as it is: its packages, what pip added, and what lies there besides.

It is copied and the copy made to run anywhere; the prefix itself is only read.  ``InstalledBuilder.build`` tells the
story.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from poncho_wq.build import FileGroup, Prefix, conda_meta, elf
from poncho_wq.build.host import check_glibc, highest_glibc
from poncho_wq.build.libraries import set_run_path
from poncho_wq.build.neutral import Neutral, replace_file
from poncho_wq.build.packages import settle_metadata
from poncho_wq.build.records import Distribution, distributions
from poncho_wq.build.relocation import PLACEHOLDER, relocations, room_for_prefix
from poncho_wq.build.unlinking import is_text, unlink, unlink_text
from poncho_wq.errors import BuildError, SpecError
from poncho_wq.importing.conda_prefix import CondaPrefix, InstalledPackage
from poncho_wq.lock import Lock, LockedPackage
from poncho_wq.packing.conda_package import CondaPackage
from poncho_wq.platforms import host_platform
from poncho_wq.progress import OnProgress, Progress
from poncho_wq.spec import EnvSpec

_ENOUGH_OF_A_SCRIPT = 1024
_STARTS_PYTHON = re.compile(rb"(?:^#!|^'''exec' \"?)[ \t]*(/[^\n\"]*?)/bin/python[0-9.]*\b", re.MULTILINE)


class InstalledBuilder:
    """Packs ``installed``; ``described`` is the specification that was read from it.

    ``platform`` is the workers'.  Raises ``SpecError`` where that is not the prefix's.
    """

    def __init__(self, installed: CondaPrefix, described: EnvSpec, *, platform: str | None = None) -> None:
        self._installed = installed
        self._described = described
        subdirs = (each.package.subdir for each in installed.packages)
        self._platform = next((name for name in subdirs if name != "noarch"), host_platform())
        if self._platform != (platform or host_platform()):
            raise SpecError(
                f"is for {self._platform}, and {platform or host_platform()} was asked for", source=str(installed.given)
            )

    def interpreter(self) -> None:
        return None  # it is a package like any other

    def lock(self, spec: EnvSpec, on_progress: OnProgress) -> Lock:
        """What is installed.  Raises ``BuildError`` where ``spec`` asks for more than that."""
        more = sorted({*_packages(spec)} - {*_packages(self._described)})
        if more:
            raise BuildError(
                f"{self._installed.given} has no {', '.join(more)}, which the tasks need in their environment",
                advice=f"install it there: conda install -p {self._installed.given} {' '.join(more)}",
            )
        conda = tuple(_with_channel(each.package) for each in self._installed.packages)
        python = next((each.version for each in conda if each.name == "python"), None)
        if python is None:
            raise BuildError(
                f"{self._installed.given} has no Python, which unpacking it elsewhere needs",
                advice=f"install it there: conda install -p {self._installed.given} python",
            )
        pip = []
        for text in spec.pip:
            name, _, version = text.partition("==")
            name, _, url = name.partition(" @ ")
            local = url.startswith("file:")
            pip.append(LockedPackage(
                name=name, version=version or None, url=f"file:{url.rpartition('/')[2]}" if local else url or None,
            ))  # fmt: skip
        return Lock(python=python, interpreter=None, platform=self._platform, packages=tuple(pip), conda=conda)

    def rebuild(self, spec: EnvSpec, lock: Lock, prefix: Path, on_progress: OnProgress) -> None:
        return None

    def build(self, spec: EnvSpec, lock: Lock, prefix: Path, on_progress: OnProgress) -> Prefix:
        try:
            return self._build(spec, lock, prefix, on_progress)
        except OSError as error:  # a full disk, as a rule
            raise BuildError(f"could not copy {self._installed.path} to {prefix}: {error}") from error

    def _build(self, spec: EnvSpec, lock: Lock, prefix: Path, on_progress: OnProgress) -> Prefix:
        installed = self._installed
        on_progress(Progress(stage="install", detail=f"copy of {installed.path}"))
        names = _names(installed)
        _copy(installed, prefix, names)
        recorded = _write_records(installed, lock.conda, prefix)
        of_pip = _pip_distributions(prefix, recorded)
        _unlink_recorded(prefix, recorded.values(), names)
        edited = list(_unlink_others(prefix, recorded, names))

        documents = conda_meta.settle(prefix, lock.conda)
        owned = conda_meta.owned_files(prefix, documents)
        for name, room in room_for_prefix(documents.values()).items():
            note = (
                f"{name} can be unpacked into directories of at most {room} characters only, as it was built for that"
            )
            on_progress(Progress(stage="note", detail=note))
        highest = highest_glibc(prefix)
        check_glibc(spec.glibc, highest, what="a package")
        groups = [
            FileGroup(name=each.name, version=each.version, kind="pip", files=tuple(each.files)) for each in of_pip
        ]
        return Prefix(
            path=prefix,
            python=lock.python,
            platform=lock.platform,
            glibc=None if highest is None else highest[0],
            groups=conda_meta.groups(prefix, lock.conda, owned, groups),
            relocations=relocations(prefix, [*documents.values(), _as_document(edited)]),
            placeholder=PLACEHOLDER,
        )


def _packages(spec: EnvSpec) -> tuple[str, ...]:
    return (*spec.pip, *(spec.conda.packages if spec.conda is not None else ()))


def _with_channel(package: CondaPackage) -> CondaPackage:
    """A package that was installed from a file or folder has no channel, and every record needs one."""
    return package if package.channel else replace(package, channel="file:///local")


def _names(installed: CondaPrefix) -> list[str]:
    """The paths of the prefix that its files may name, the longest first.

    It may be reached through links (a home directory's ``.conda`` that was moved), now or when it was made; its scripts
    say what it was made by.
    """
    names = {str(installed.path), str(installed.given)}
    for script in (installed.path / "bin").glob("*"):
        if script.is_file() and not script.is_symlink():
            with script.open("rb") as file:
                head = file.read(_ENOUGH_OF_A_SCRIPT)
            for match in _STARTS_PYTHON.finditer(head):
                name = os.fsdecode(match[1])
                if name not in names and os.path.realpath(name) == str(installed.path):
                    names.add(name)
    return sorted(names, key=lambda name: (-len(name), name))


def _copy(installed: CondaPrefix, target: Path, names: Sequence[str]) -> None:
    """Copy all files but compiled ones, of which only those that packages brought, and conda's own records."""
    shipped = {
        row["_path"]
        for each in installed.packages
        for row in _rows(_document(installed, each))
        if row["_path"].endswith(".pyc") and row.get("path_type") in ("hardlink", "softlink")
    }
    for path in (*installed.files(), *sorted(shipped)):
        source, copy = installed.path / path, target / path
        if path.startswith(f"{conda_meta.META}/") or not os.path.lexists(source):
            continue
        copy.parent.mkdir(parents=True, exist_ok=True)
        if source.is_symlink():
            copy.symlink_to(_relative(os.readlink(source), path, names))
        elif source.is_file():
            shutil.copyfile(source, copy)
            copy.chmod(source.stat().st_mode & 0o777)


def _relative(link: str, path: str, names: Sequence[str]) -> str:
    """The target ``link`` of ``path``, so that it leads to the same file of the prefix wherever that is."""
    for name in names:
        if link.startswith(f"{name}/"):
            return os.path.relpath(link.removeprefix(f"{name}/"), os.path.dirname(path) or ".")
    return link


def _document(installed: CondaPrefix, package: InstalledPackage) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((installed.path / conda_meta.META / package.record).read_bytes())
    return document


def _rows(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = document.get("paths_data", {}).get("paths", [])
    return rows


def _write_records(installed: CondaPrefix, conda: Sequence[CondaPackage], prefix: Path) -> dict[str, Mapping[str, Any]]:
    """Put the records into the copy, without the user's; returns package → record."""
    (prefix / conda_meta.META).mkdir()
    found: dict[str, Mapping[str, Any]] = {}
    for each, package in zip(installed.packages, conda, strict=True):
        document = _document(installed, each)
        document.pop("auth", None)
        document.setdefault("files", [])
        document.setdefault("paths_data", {"paths": [], "paths_version": 1})
        stem = package.file.removesuffix(".conda").removesuffix(".tar.bz2")
        for row in _rows(document):
            row.pop("sha256_in_prefix", None)  # that of a file which names this machine's prefix
        (prefix / conda_meta.META / f"{stem}.json").write_text(json.dumps(document), encoding="utf-8")
        found[package.name] = document
    return found


def _pip_distributions(prefix: Path, recorded: Mapping[str, Mapping[str, Any]]) -> list[Distribution]:
    """What pip installed beside conda's packages.  Those whose code lies elsewhere are taken out of the copy."""
    owned = {path for document in recorded.values() for path in document["files"]}
    kept = []
    for site in sorted((prefix / "lib").glob("python3*/site-packages")):
        for link in (*site.glob("*.egg-link"), *site.glob("easy-install.pth")):
            link.unlink()
        for each in distributions(site, prefix):
            inside = os.path.relpath(each.info, prefix)
            if f"{inside}/METADATA" in owned or f"{inside}/RECORD" in owned:
                continue
            if _is_of_a_folder(each.info):
                for path in each.files:
                    (prefix / path).unlink()
                shutil.rmtree(each.info, ignore_errors=True)
                continue
            settle_metadata(each)
            each.forget_missing()
            each.save()
            kept.append(each)
    return kept


def _is_of_a_folder(info: Path) -> bool:
    """Whether this was installed from a folder (PEP 610): the user has agreed to leave such packages out."""
    try:
        return "dir_info" in json.loads((info / "direct_url.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def _unlink_recorded(prefix: Path, documents: Iterable[Mapping[str, Any]], names: Sequence[str]) -> None:
    """Undo what linking wrote, as the records say."""
    for document in documents:
        for row in _rows(document):
            file = prefix / row["_path"]
            if not row.get("prefix_placeholder") or file.is_symlink() or not file.is_file():
                continue
            data = file.read_bytes()
            kind, digest = row.get("file_mode") or "text", row.get("sha256")
            new = unlink(data, kind, row["prefix_placeholder"], names, sha256=digest, path=row["_path"])
            if new != data:
                replace_file(file, new)


def _unlink_others(prefix: Path, recorded: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> Iterator[str]:
    """Edit the files that no record tells of: scripts and other texts, run paths; yields the texts edited."""
    known = {row["_path"] for document in recorded.values() for row in _rows(document) if row.get("prefix_placeholder")}
    of_conda = {
        row["_path"] for document in recorded.values() for row in _rows(document) if row.get("path_type") == "hardlink"
    }
    neutral = Neutral([Path(name) for name in names])
    needles = [os.fsencode(name) for name in names]
    for directory, _, files in os.walk(prefix):
        for file in sorted(Path(directory, name) for name in files):
            path = file.relative_to(prefix).as_posix()
            if file.is_symlink() or path in known or path in of_conda or path.startswith(f"{conda_meta.META}/"):
                continue
            data = file.read_bytes()
            if not any(needle in data for needle in needles):
                continue
            if elf.is_elf(file):
                _free_run_path(file, prefix, names)
                neutral.rewrite(file)
            elif is_text(data):
                replace_file(file, unlink_text(data, names))
                yield path


def _free_run_path(file: Path, prefix: Path, names: Sequence[str]) -> None:
    facts = elf.read(file)
    here = os.path.relpath(file, prefix)
    parts = [_relative(part, here, names) for part in (*facts.rpath, *facts.runpath)]
    relative = [part if part.startswith(("$", "/")) else f"$ORIGIN/{part}" for part in parts]
    if relative:
        set_run_path([file], ":".join(relative))


def _as_document(edited: Sequence[str]) -> dict[str, Any]:
    """The texts ``edited`` in the form of a record, so that they are found as those of packages are."""
    rows = [{"_path": path, "prefix_placeholder": PLACEHOLDER, "file_mode": "text"} for path in edited]
    return {"name": "", "paths_data": {"paths": rows}}
