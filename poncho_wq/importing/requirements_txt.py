"""``requirements.txt`` as pip, uv, poetry and pdm write it, and as people do.

The format is pip's: https://pip.pypa.io/en/stable/reference/requirements-file-format/.  What describes packages becomes
the specification; options that say where to download from become ``IndexOptions``, hashes and constraints
``Conditions``.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from packaging.requirements import Requirement
from packaging.utils import (
    InvalidSdistFilename,
    InvalidWheelFilename,
    canonicalize_name,
    parse_sdist_filename,
    parse_wheel_filename,
)

from poncho_wq.errors import SpecError, redact
from poncho_wq.importing.model import Conditions, Imported, IndexOptions
from poncho_wq.importing.text import read_text
from poncho_wq.spec import EnvSpec
from poncho_wq.specs import requirement
from poncho_wq.specs.urls import ARCHIVES

_COMMENT = re.compile(r"(?:^|\s+)#.*$")
_VARIABLE = re.compile(r"\$\{([A-Z0-9_]+)\}")  # pip's form; any other stays as it is
_SHA256 = re.compile(r"sha256:([0-9a-fA-F]{64})")
_DEEPEST = 50  # files that include each other

_LOCAL_ADVICE = (
    "local code travels with a function task by itself; for the tools, build a wheel (`pip wheel .`) and list "
    "name @ file:///path/to/that.whl"
)
_FREEZE_ADVICE = (
    "`pip freeze` writes such paths in a conda environment; name the environment itself, "
    "or use `pip list --format=freeze`"
)

# Short options → long ones; an option's value follows it, after a blank or an equals sign.
_SHORT = {"-i": "--index-url", "-f": "--find-links", "-r": "--requirement", "-c": "--constraint", "-e": "--editable"}
_OF_FILES = (*_SHORT.values(), "--pypi-url", "--extra-index-url", "--trusted-host", "--no-binary", "--only-binary")
_OF_REQUIREMENTS = ("--hash", "--config-settings", "--config-setting", "--global-option", "--install-option")
_WITH_VALUE = frozenset((*_OF_FILES, *_OF_REQUIREMENTS, "--use-feature"))
_FLAGS = frozenset(("--no-index", "--pre", "--prefer-binary", "--require-hashes"))


def read_requirements(path: Path, *, environment: Mapping[str, str] | None = None) -> Imported:
    """The requirements file ``path``, with the files that it includes.

    ``environment`` gives the values of ``${VARIABLE}`` (default: that of the process).
    Raises ``SpecError`` whose text begins with ``FILE:LINE:``.
    """
    reader = _Reader(os.environ if environment is None else environment)
    reader.read(path)
    return reader.finish(str(path))


def read_requirement_lines(
    lines: Iterable[tuple[str, str]], *, folder: Path, environment: Mapping[str, str] | None = None
) -> Imported:
    """The same for single lines, each with its place: the ``pip`` list inside an ``environment.yml``.

    Paths in them are relative to ``folder``.
    """
    reader = _Reader(os.environ if environment is None else environment)
    for place, line in lines:
        reader.line(_Line(text=_COMMENT.sub("", line).strip(), place=place, folder=folder), constraint=False)
    return reader.finish("pip")


@dataclass(frozen=True)
class _Line:
    """One logical line: its text as written, where it stands, and the directory that its paths are relative to."""

    text: str
    place: str
    folder: Path

    def fail(self, message: str, *, advice: str | None = None) -> NoReturn:
        raise SpecError(message, source=self.place, advice=advice)

    def refuse(self, advice: str = _LOCAL_ADVICE) -> NoReturn:
        # Quotes as people write them around what they typed; never a credential.
        self.fail(f"'{redact(self.text)}' is not a package specification", advice=advice)


def logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """(number of its first line, text) of each line that says something: continued lines joined, comments removed."""
    begun: list[str] = []
    first = 0
    lines = text.splitlines()
    for number, line in enumerate(lines, 1):
        if not begun:
            first = number
        is_comment = _COMMENT.match(line) is not None
        if line.endswith("\\") and not is_comment and number < len(lines):
            begun.append(line[:-1])
            continue
        # A comment ends a continuation, and is told from a fragment (`#egg=`) by the blank before it.
        joined = "".join((*begun, f" {line}" if is_comment else line.removesuffix("\\")))
        begun = []
        joined = _COMMENT.sub("", joined).strip()
        if joined:
            yield first, joined


@dataclass
class _Reader:
    """Collects what the lines of all files say."""

    environment: Mapping[str, str]
    requirements: list[tuple[str, str]] = field(default_factory=list)  # (requirement, place)
    constraints: list[tuple[str, str]] = field(default_factory=list)
    constraint_files: list[Path] = field(default_factory=list)
    hashes: dict[str, set[str]] = field(default_factory=dict)
    hashes_required: bool = False
    index_url: str | None = None
    extra_index_urls: list[str] = field(default_factory=list)
    find_links: list[str] = field(default_factory=list)
    no_index: bool = False
    trusted_hosts: list[str] = field(default_factory=list)
    pre: bool = False
    no_binary: list[str] = field(default_factory=list)
    only_binary: list[str] = field(default_factory=list)
    _open: list[Path] = field(default_factory=list)
    _done: set[tuple[Path, bool]] = field(default_factory=set)

    def read(self, path: Path, *, constraint: bool = False, by: _Line | None = None) -> None:
        real = Path(os.path.realpath(path))
        if by is not None and real in self._open:
            by.fail(f"'{by.text}' includes a file that includes this one")
        if by is not None and len(self._open) >= _DEEPEST:
            by.fail(f"'{by.text}' is included {_DEEPEST} files deep")
        if (real, constraint) in self._done:  # the same lines again would say the same
            return
        try:
            text = read_text(path)
        except SpecError as error:
            if by is None:
                raise
            by.fail(f"'{redact(by.text)}': {error.source}: {error.message}", advice=error.advice)
        self._open.append(real)
        for number, line in logical_lines(text):
            self.line(_Line(text=line, place=f"{path}:{number}", folder=path.parent), constraint=constraint)
        self._open.pop()
        self._done.add((real, constraint))

    def line(self, line: _Line, *, constraint: bool) -> None:
        if not line.text:
            return
        # As pip does: the first word that begins with a dash, and all after it, are options.
        words = line.text.split(" ")
        cut = next((at for at, word in enumerate(words) if word.startswith("-")), len(words))
        subject, options = " ".join(words[:cut]).strip(), _options(line, " ".join(words[cut:]))
        if subject:
            self._requirement(line, subject, options, constraint=constraint)
        else:
            for option, value in options:
                self._option(line, option, value, constraint=constraint)

    def finish(self, source: str) -> Imported:
        spec_items = _merge(self.requirements, self.constraints)
        try:
            spec = EnvSpec.from_dict({"pip": [text for text, _ in spec_items]}, source=source)
        except SpecError as error:
            at = re.fullmatch(r"pip\[(\d+)\]", error.path or "")
            place = spec_items[int(at[1])][1] if at else source
            raise SpecError(_without_paths(error.message, spec_items), source=place, advice=error.advice) from None
        names = {canonicalize_name(Requirement(text).name) for text, _ in self.requirements}
        elsewhere = [text for text, _ in self.constraints if canonicalize_name(Requirement(text).name) not in names]
        return Imported(
            spec=spec,
            index=IndexOptions(
                index_url=self.index_url,
                extra_index_urls=tuple(dict.fromkeys(self.extra_index_urls)),
                find_links=tuple(dict.fromkeys(self.find_links)),
                no_index=self.no_index,
                trusted_hosts=tuple(dict.fromkeys(self.trusted_hosts)),
                pre=self.pre,
                no_binary=tuple(dict.fromkeys(self.no_binary)),
                only_binary=tuple(dict.fromkeys(self.only_binary)),
            ),
            conditions=Conditions(
                hashes=tuple(sorted((name, tuple(sorted(digests))) for name, digests in self.hashes.items())),
                hashes_required=self.hashes_required or bool(self.hashes),
                constraints=tuple(sorted(set(elsewhere))),
                constraint_files=tuple(dict.fromkeys(self.constraint_files)) if elsewhere else (),
            ),
        )

    def _requirement(self, line: _Line, subject: str, options: list[tuple[str, str]], *, constraint: bool) -> None:
        text = self._tidy(line, subject)
        name = canonicalize_name(Requirement(text).name)
        (self.constraints if constraint else self.requirements).append((text, line.place))
        given = [value for option, value in options if option == "--hash"]
        for option, _ in options:
            if option != "--hash":
                line.fail(f"'{option}' changes how a package is built, which an environment cannot repeat")
        digests = {match[1].lower() for value in given if (match := _SHA256.fullmatch(value))}
        if given and not digests:
            line.fail(f"'--hash={given[0]}' is not a sha256", advice="write --hash=sha256:<64 hexadecimal digits>")
        if digests:
            self.hashes.setdefault(name, set()).update(digests)

    def _tidy(self, line: _Line, subject: str) -> str:
        text = named(self._expand(subject), line.folder)
        if text is None:
            line.refuse()
        try:
            return requirement.tidy(text)
        except SpecError as error:
            advice = _FREEZE_ADVICE if re.search(r"/croot/|feedstock_root|/work/ci_py", text) else error.advice
            message = error.message if "${" not in subject else f"'{redact(line.text)}' is not a package specification"
            line.fail(message, advice=advice)

    def _expand(self, text: str) -> str:
        return _VARIABLE.sub(lambda match: self.environment.get(match[1]) or match[0], text)

    def _option(self, line: _Line, option: str, written: str, *, constraint: bool) -> None:
        value = self._expand(written)
        if option == "--editable":
            line.refuse()
        elif option in ("--requirement", "--constraint"):
            self._include(line, value, constraint=constraint or option == "--constraint")
        elif option in ("--index-url", "--pypi-url"):
            self.index_url = self.index_url or _set(line, value, written)
        elif option == "--extra-index-url":
            self.extra_index_urls.append(_set(line, value, written))
        elif option == "--find-links":
            beside = line.folder / value
            self.find_links.append(os.path.abspath(beside) if "://" not in value and os.path.exists(beside) else value)
        elif option == "--no-index":
            self.no_index = True
        elif option == "--trusted-host":
            self.trusted_hosts.append(value)
        elif option == "--pre":
            self.pre = True
        elif option in ("--no-binary", "--only-binary"):
            wanted = self.no_binary if option == "--no-binary" else self.only_binary
            if value == ":none:":
                wanted.clear()
            else:
                wanted += [each.strip() for each in value.split(",") if each.strip()]
        elif option == "--require-hashes":
            self.hashes_required = True
        elif option not in ("--prefer-binary", "--use-feature"):
            line.fail(f"'{option}' belongs behind a requirement")

    def _include(self, line: _Line, value: str, *, constraint: bool) -> None:
        if "\0" in value:
            line.fail("a file name cannot hold a NUL character")
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", value) and not value.startswith("file://"):
            line.fail(f"'{redact(line.text)}' is on the network", advice="download that file, and include the copy")
        path = line.folder / value.removeprefix("file://")
        self.read(path, constraint=constraint, by=line)
        if constraint:
            self.constraint_files.append(Path(os.path.abspath(path)))


def _options(line: _Line, text: str) -> list[tuple[str, str]]:
    """The options of a line with their values, by their long names.  Fails for one that pip does not have there."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        line.fail(f"'{redact(line.text)}': {str(error).lower()}")
    found: list[tuple[str, str]] = []
    while words:
        option, equals, value = words.pop(0).partition("=")
        if not option.startswith("--") and option[:2] in _SHORT:
            value = option[2:] + equals + value
            option, equals = _SHORT[option[:2]], value
        if option in _FLAGS and not equals:
            found.append((option, ""))
        elif option in _WITH_VALUE:
            if not equals and not words:
                line.fail(f"'{option}' lacks its value")
            found.append((option, value if equals else words.pop(0)))
        else:
            line.fail(f"'{redact(option)}' is not an option of a requirements file")
    return found


def _set(line: _Line, value: str, written: str) -> str:
    missing = _VARIABLE.search(value)
    if missing:
        line.fail(f"'{redact(written)}': the variable {missing[1]} is not set", advice=f"export {missing[1]}=…")
    return value


def named(text: str, folder: Path) -> str | None:
    """``text`` with the name of its package before a bare path or URL; None for what is no package: folders, options.

    A wheel, a source distribution and a git URL with ``#egg=`` say their names.
    """
    if text.startswith("-"):
        return None
    head, marker_mark, marker = text.partition(" ;")
    split = re.fullmatch(r"(?P<where>[^\[\]]+?)(?P<extras>\[[^\]]*\])?", head.strip())
    where, extras = (split["where"], split["extras"] or "") if split else (head.strip(), "")
    if not re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", where):
        if "@" in where or not (where.startswith((".", "/", "~")) or "/" in where or where.lower().endswith(ARCHIVES)):
            return text
        if not where.lower().endswith(ARCHIVES):
            return None
        where = Path(os.path.abspath(folder / os.path.expanduser(where))).as_uri()
    name = _name_of(where)
    where = re.sub(r"(?<=[#&])egg=[^&]*&?", "", where).rstrip("#&")  # it said the name, and says nothing else
    return None if name is None else f"{name}{extras} @ {where}" + (f" ;{marker}" if marker_mark else "")


def _name_of(url: str) -> str | None:
    address, _, fragment = url.partition("#")
    egg = re.search(r"(?:^|&)egg=([A-Za-z0-9._-]+(?:\[[^\]]*\])?)", fragment)
    if egg:
        return egg[1]
    file = address.partition("?")[0].rstrip("/").rpartition("/")[2]
    try:
        if file.endswith(".whl"):
            return str(parse_wheel_filename(file)[0])
        if not url.startswith("git+"):
            return str(parse_sdist_filename(file)[0])
    except (InvalidWheelFilename, InvalidSdistFilename):
        pass
    return None


def _merge(requirements: list[tuple[str, str]], constraints: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The requirements with the constraints on them: together they are what the packages must satisfy."""
    merged: list[tuple[str, str]] = []
    for text, place in requirements:
        wanted = Requirement(text)
        for other_text, other_place in constraints:
            other = Requirement(other_text)
            if canonicalize_name(other.name) != canonicalize_name(wanted.name):
                continue
            if other.url is None and wanted.url is None and str(other.marker) in ("None", str(wanted.marker)):
                wanted.specifier &= other.specifier
            else:
                merged.append((other_text, other_place))
        merged.append((requirement.tidy(str(wanted)), place))
    return merged


def _without_paths(message: str, items: list[tuple[str, str]]) -> str:
    """``message`` with file and line for the positions that it names."""
    return re.sub(r"pip\[(\d+)\]", lambda match: items[int(match[1])][1], message)
