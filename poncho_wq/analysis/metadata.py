"""What is known of one installed distribution: the `.dist-info` or `.egg-info` beside its files, read as needed."""

from __future__ import annotations

import ast
import csv
import email.parser
import functools
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from poncho_wq.errors import redact

_DIRECTORY = re.compile(r"(?P<name>.+?)-(?P<version>[^-]+)(?:-.*)?")
_MODULE_SUFFIXES = (".py", ".so", ".pyd")
_MAPPING = re.compile(r"^MAPPING\b[^=\n]*=\s*(\{.*\})\s*$", re.MULTILINE)


def module_file(directory: Path, dotted: str) -> Path | None:
    """The file of a regular module or package below `directory`, whatever its kind; None when there is none."""
    base = directory.joinpath(*dotted.split("."))
    for candidate in (base / "__init__.py", base.with_name(base.name + ".py")):
        if os.path.isfile(candidate):
            return candidate
    try:
        names = sorted(os.listdir(base.parent))
    except OSError:
        return None
    for name in names:
        if name.startswith(base.name + ".") and name.endswith((".so", ".pyd")):
            return base.parent / name
    return None


def read_metadata(directory: Path) -> Iterator[Metadata]:
    """The distributions whose metadata lies in `directory`, by name."""
    try:
        names = sorted(os.listdir(directory))
    except OSError:
        return
    for name in names:
        stem, dot, kind = name.rpartition(".")
        if kind not in ("dist-info", "egg-info") or not dot:
            continue
        parts = _DIRECTORY.fullmatch(stem)
        if parts is None and kind == "dist-info":
            continue  # what pip leaves of an interrupted uninstall, among others
        yield Metadata(path=directory / name, egg=kind == "egg-info", stem_name=parts["name"] if parts else stem)


@dataclass(eq=False)
class Metadata:
    """One distribution's metadata directory (or, of the oldest kind, file), which lies beside what it describes."""

    path: Path
    egg: bool
    stem_name: str
    developed: bool = False  # beside a project's own source, as `setup.py develop` leaves it

    @functools.cached_property
    def canonical(self) -> str:
        """The name as PEP 503 spells it; from the directory's name, so that no file is opened for it."""
        return canonicalize_name(self.stem_name)

    @property
    def label(self) -> str:
        """`name version`, for people."""
        return f"{self.name} {self.version}" if self.version else self.name

    # -- what the metadata says

    @functools.cached_property
    def _headers(self) -> Any:
        file = self.path
        if os.path.isdir(file):
            file /= "PKG-INFO" if self.egg else "METADATA"
        try:
            text = file.read_text(encoding="utf-8", errors="replace")
        except OSError:
            text = ""
        return email.parser.HeaderParser().parsestr(text.partition("\n\n")[0])

    @property
    def name(self) -> str:
        """The name as its author spells it."""
        return str(self._headers["Name"] or self.stem_name)

    @property
    def version(self) -> str | None:
        """The installed version, as it is written."""
        version = self._headers["Version"]
        if version is None and (parts := _DIRECTORY.fullmatch(self.path.stem)) is not None:
            version = parts["version"]
        return None if version is None else str(version).strip()

    def _read(self, name: str) -> str | None:
        try:
            return (self.path / name).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None

    # -- where it came from (PEP 610)

    @functools.cached_property
    def _origin(self) -> dict[str, Any]:
        try:
            origin = json.loads(self._read("direct_url.json") or "{}")
        except ValueError:
            origin = {}
        return origin if isinstance(origin, dict) else {}

    @property
    def editable(self) -> bool:
        """Whether its code lies in a project folder rather than beside the metadata."""
        return self.developed or bool((self._origin.get("dir_info") or {}).get("editable"))

    @functools.cached_property
    def folder(self) -> Path | None:
        """The project folder that it was installed from, if it was."""
        if self.developed:
            return self.path.parent
        if "dir_info" not in self._origin:
            return None
        return Path(unquote(urlsplit(str(self._origin.get("url", ""))).path))

    def requirement(self) -> tuple[str, str | None]:
        """What to write in a specification, and what to tell the user about it."""
        reference, remark = self._reference()
        if reference is not None:
            return f"{self.name} @ {reference}", remark
        try:
            return f"{self.name}=={Version(self.version or '')}", remark
        except InvalidVersion:
            return self.name, f"{self.name}: its version, {self.version!r}, is none that pip knows; left open"

    def _reference(self) -> tuple[str | None, str | None]:
        origin = self._origin
        url = redact(str(origin.get("url", ""))).replace("***@", "")
        if "vcs_info" in origin:
            vcs = origin["vcs_info"]
            reference = f"{vcs.get('vcs', 'git')}+{url}@{vcs.get('commit_id') or vcs.get('requested_revision')}"
            below = origin.get("subdirectory")
            return (f"{reference}#subdirectory={quote(below)}" if below else reference), None
        if "archive_info" not in origin:
            return None, None
        path = unquote(urlsplit(url).path)
        if url.startswith("file:") and not os.path.isfile(path):
            return None, f"{self.name}: installed from {path}, which is gone; pinned to its version instead"
        archive = origin["archive_info"] or {}
        digest = (archive.get("hashes") or {}).get("sha256")
        if digest is None and str(archive.get("hash", "")).startswith("sha256="):
            digest = archive["hash"].partition("=")[2]
        fragments = [f"sha256={digest}"] if digest else []
        if origin.get("subdirectory"):
            fragments.append(f"subdirectory={quote(origin['subdirectory'])}")
        return "#".join(filter(None, (url, "&".join(fragments)))), None

    # -- what it holds

    @functools.cached_property
    def _files(self) -> list[str] | None:
        """The Python files of the distribution, relative to where it is installed; None when nothing lists them."""
        record = self._read("RECORD")
        if record:
            paths = [
                next(csv.reader([line]), [""])[0] if line.startswith('"') else line.partition(",")[0]
                for line in record.splitlines()
            ]
        elif (listed := self._read("installed-files.txt")) is not None:  # relative to the metadata
            paths = [line.removeprefix("../") for line in listed.splitlines()]
        else:
            return None
        return [path for path in paths if path.endswith(_MODULE_SUFFIXES) and not path.startswith(("../", "/"))]

    @functools.cached_property
    def guesses(self) -> tuple[str, ...]:
        """Top-level names where no list of files gives them."""
        listed = (self._read("top_level.txt") or "").split()
        return tuple(listed) or (self.canonical.replace("-", "_"), self.stem_name)

    @functools.cached_property
    def tops(self) -> frozenset[str]:
        """The top-level import names of what is installed beside the metadata; none of an editable install."""
        if self.editable:
            return frozenset()
        if self._files is None:
            beside = self.path.parent
            return frozenset(name for name in self.guesses if module_file(beside, name) or os.path.isdir(beside / name))
        firsts = {path.partition("/")[0] for path in self._files}
        return frozenset(name for first in firsts if (name := first.partition(".")[0]).isidentifier())

    @functools.cached_property
    def _modules(self) -> frozenset[str]:
        names = set()
        for path in self._files or ():
            folder, _, file = path.rpartition("/")
            stem = file.partition(".")[0]
            names.add(f"{folder}/{stem}".strip("/").replace("/", "."))
        return frozenset(names)

    def holds(self, dotted: str) -> bool:
        """Whether a module or regular package of that name is part of it."""
        if self._files is not None:
            return dotted in self._modules or self.is_package(dotted)
        if module_file(self.path.parent, dotted) is None:
            return False
        # Several share a name and nothing lists their files: the one that is called like the module holds it.
        return "." not in dotted or "-" not in self.canonical or _is_called(self.canonical, dotted)

    def is_package(self, dotted: str) -> bool:
        """Whether that is a regular package (with an `__init__`) of it."""
        if self._files is not None:
            return f"{dotted}.__init__" in self._modules
        found = module_file(self.path.parent, dotted)
        return found is not None and found.stem == "__init__"

    def has_below(self, dotted: str) -> bool:
        """Whether it has any module below that name."""
        if self._files is not None:
            return any(name.startswith(dotted + ".") for name in self._modules)
        return os.path.isdir(self.path.parent.joinpath(*dotted.split(".")))

    @functools.cached_property
    def editable_modules(self) -> dict[str, Path]:
        """Top-level name → file, of an editable install that setuptools maps by a finder of its own."""
        found: dict[str, Path] = {}
        pattern = f"__editable___{self.stem_name.replace('-', '_').replace('.', '_')}_*_finder.py"
        for finder in self.path.parent.glob(pattern):
            match = _MAPPING.search(finder.read_text(encoding="utf-8", errors="replace"))
            try:
                mapping = ast.literal_eval(match[1]) if match else {}
            except (ValueError, SyntaxError):
                continue
            for name, place in mapping.items():
                file = module_file(Path(place).parent, Path(place).name.removesuffix(".py"))
                if file is not None and "." not in name:
                    found[name] = file
        return found


def _is_called(canonical: str, dotted: str) -> bool:
    parts = dotted.split(".")
    return any(canonicalize_name("-".join(parts[:n])) == canonical for n in range(2, len(parts) + 1))
