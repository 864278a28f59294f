"""A conda prefix: what conda's own records in ``conda-meta`` say is in it.  The prefix is never written to.

The records are conda's (one JSON file a package, as ``conda``, ``mamba``, ``micromamba`` and ``pixi`` write them).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from poncho_wq.analysis.conda_records import _channel as channel_of
from poncho_wq.errors import SpecError
from poncho_wq.importing.installed import read_packages
from poncho_wq.importing.model import Imported
from poncho_wq.importing.text import read_bytes, read_text
from poncho_wq.packing.conda_package import CondaPackage
from poncho_wq.spec import EnvSpec

# What lies in a root prefix beside its packages: other environments, downloads, and what shells made.
_NOT_PACKED = frozenset(("pkgs", "envs", "conda-bld", ".cph_tmp"))
# What a record says of the machine that it was written on.
_OF_THIS_MACHINE = frozenset(
    ("auth", "extracted_package_dir", "link", "package_tarball_full_path", "requested_spec", "requested_specs")
)
_ROOTS = ("miniforge3", "miniconda3", "mambaforge", "anaconda3", "micromamba", ".local/share/mamba", ".conda")


@dataclass(frozen=True, kw_only=True)
class InstalledPackage:
    """One record: the ``package`` as a lock has it, and its ``files`` as POSIX paths relative to the prefix, sorted.

    ``record`` is the name of the JSON file in ``conda-meta``.
    """

    package: CondaPackage
    record: str
    files: tuple[str, ...] = field(repr=False)

    @property
    def matchspec(self) -> str:
        """``channel::name=version=build``."""
        exact = f"{self.package.name}={self.package.version}={self.package.build}"
        return f"{self.package.channel}::{exact}" if self.package.channel else exact


@dataclass(frozen=True, kw_only=True)
class CondaPrefix:
    """A prefix and its records, sorted by name.

    ``path`` is absolute, symbolic links resolved; ``given`` the absolute path that it was named by.
    """

    path: Path
    packages: tuple[InstalledPackage, ...]
    given: Path

    def files(self) -> Iterator[str]:
        """All that belongs to it, recorded or not, relative to ``path``, in a fixed order; but nothing compiled."""
        return (path for path, _ in _walk(self.path))

    def fingerprint(self) -> str:
        """The sha256 of what the prefix holds, told by paths, sizes and times: it changes when a file does.

        A prefix is packed as it is, with what its records do not know of, so its records alone do not identify it.
        """
        digest = hashlib.sha256()
        for path, facts in _walk(self.path):
            line = f"{path}\0{facts.st_mode:o} {facts.st_size} {facts.st_mtime_ns}\n"
            digest.update(line.encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


def read_conda_prefix(directory: Path, *, ignore_editable: bool = False) -> Imported:
    """The conda prefix ``directory``: its packages with versions and builds, and what pip installed into it.

    Raises ``SpecError`` where a record cannot be read or there is none.
    """
    source = str(directory)
    prefix, given = Path(os.path.realpath(directory)), Path(os.path.abspath(directory))
    packages = tuple(sorted(_records(prefix), key=lambda each: each.package.name))
    if not packages:
        raise SpecError("has no packages (conda-meta holds no records)", source=source)
    # Where a record does not say its channel, the package was installed from a file or folder.
    channels = dict.fromkeys(each.package.channel for each in packages if each.package.channel)
    python = next((each.package for each in packages if each.package.name == "python"), None)
    pip, notes = _pip_packages(prefix, python, packages, source, ignore_editable=ignore_editable)
    spec = EnvSpec.from_dict(
        {"conda": {"channels": list(channels), "packages": [each.matchspec for each in packages]}, "pip": pip},
        source=source,
    )
    return Imported(spec=spec, notes=tuple(notes), prefix=CondaPrefix(path=prefix, packages=packages, given=given))


def _pip_packages(
    prefix: Path,
    python: CondaPackage | None,
    packages: tuple[InstalledPackage, ...],
    source: str,
    *,
    ignore_editable: bool,
) -> tuple[list[str], list[str]]:
    if python is None:
        return [], []
    major, minor = (int(part) for part in python.version.split(".")[:2])
    site = prefix / "lib" / f"python{major}.{minor}" / "site-packages"
    owned = {prefix / Path(path).parent for each in packages for path in each.files if "-info/" in path}
    owned |= {prefix / path for each in packages for path in each.files if path.endswith(".egg-info")}
    found = read_packages([site], python=(major, minor), not_taken=owned)
    found.settle_local(source, ignore_editable=ignore_editable)
    return found.requirements, found.notes


def _records(prefix: Path) -> Iterator[InstalledPackage]:
    for file in sorted((prefix / "conda-meta").glob("*.json")):
        try:
            document = json.loads(read_bytes(file, limit=256 * 1024 * 1024))
            yield _record(document, file.name)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise SpecError(f"is not a record of conda: {error!r}", source=str(file)) from None


def _record(document: Mapping[str, Any], file: str) -> InstalledPackage:
    kept = {key: value for key, value in document.items() if key not in _OF_THIS_MACHINE}
    kept["build"] = document.get("build") or document["build_string"]
    kept.setdefault("fn", f"{file.removesuffix('.json')}.conda")
    kept["subdir"] = document.get("subdir") or str(document["url"]).split("/")[-2]
    return InstalledPackage(
        package=CondaPackage.from_record(kept, channel=channel_of(document) or ""),
        record=file,
        files=tuple(sorted(str(path) for path in document.get("files", ()))),
    )


def _walk(prefix: Path) -> Iterator[tuple[str, os.stat_result]]:
    """(path relative to ``prefix``, facts) of all that is packed, in a fixed order.  Compiled files say nothing."""
    for directory, subdirectories, files in os.walk(prefix):
        if directory == str(prefix):
            subdirectories[:] = [name for name in subdirectories if name not in _NOT_PACKED]
        subdirectories[:] = sorted(name for name in subdirectories if name != "__pycache__")
        for name in sorted((*files, *subdirectories)):
            path = os.path.join(directory, name)
            facts = os.lstat(path)
            if name in files or os.path.islink(path):
                yield os.path.relpath(path, prefix), facts


# Environments by name


def find_environment(name: str, environment: Mapping[str, str] | None = None) -> Path | None:
    """The prefix of the conda environment called ``name`` (``base``: the installation itself); None if there is none.

    Looks where conda, mamba and micromamba look, without running them.
    """
    given = os.environ if environment is None else environment
    if not re.fullmatch(r"[^/\s~.][^/]*", name):
        return None
    roots = list(_roots(given))
    if name == "base":
        candidates = roots
    else:
        candidates = [place / name for place in _environment_folders(given, roots)]
        candidates += [path for path in _known_environments(given) if path.name == name]
    return next((path for path in candidates if os.path.isdir(path / "conda-meta")), None)


def _home(given: Mapping[str, str]) -> Path:
    return Path(given.get("HOME") or Path.home())


def _roots(given: Mapping[str, str]) -> Iterator[Path]:
    for variable in ("CONDA_EXE", "MAMBA_EXE", "_CE_CONDA_EXE"):
        if given.get(variable):
            yield Path(given[variable]).parent.parent
    for variable in ("MAMBA_ROOT_PREFIX", "CONDA_ROOT", "_CONDA_ROOT"):
        if given.get(variable):
            yield Path(given[variable])
    active = given.get("CONDA_PREFIX")
    if active:
        path = Path(active)
        yield path.parent.parent if path.parent.name == "envs" else path
    for name in _ROOTS:
        yield _home(given) / name


def _environment_folders(given: Mapping[str, str], roots: list[Path]) -> Iterator[Path]:
    for variable in ("CONDA_ENVS_DIRS", "CONDA_ENVS_PATH"):
        yield from (Path(os.path.expanduser(part)) for part in given.get(variable, "").split(os.pathsep) if part)
    home = _home(given)
    files = [Path(given["CONDARC"])] if given.get("CONDARC") else []
    files += [home / ".condarc", home / ".conda" / ".condarc", home / ".config" / "conda" / ".condarc"]
    files += [home / ".mambarc", *(root / ".condarc" for root in roots)]
    for file in files:
        yield from _configured(file, home)
    yield home / ".conda" / "envs"
    yield from (root / "envs" for root in roots)


def _configured(file: Path, home: Path) -> Iterator[Path]:
    from poncho_wq.importing.yaml_text import load_yaml

    if not file.is_file():
        return
    try:
        document = load_yaml(read_text(file), source=str(file))
    except SpecError:  # conda's own settings: not ours to complain about
        return
    listed = document.get("envs_dirs") if isinstance(document, Mapping) else None
    for each in listed if isinstance(listed, list) else []:
        if isinstance(each, str):
            yield Path(each.replace("~", str(home), 1) if each.startswith("~/") else each)


def _known_environments(given: Mapping[str, str]) -> list[Path]:
    """conda keeps a list of the prefixes that it has ever made."""
    try:
        text = read_text(_home(given) / ".conda" / "environments.txt")
    except SpecError:
        return []
    return [Path(line.strip()) for line in text.splitlines() if line.strip()]
