"""Reading a specification: any value becomes an EnvSpec or a `SpecError` that names the place.

One function a section of the format.  What a string may hold is decided elsewhere: `requirement`, `matchspec`, `urls`,
`variables`; those know no place, which `Place.located` adds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, TypeVar, cast

from poncho_wq.errors import quoted
from poncho_wq.spec import CondaSection, EnvSpec, GitSource, HttpSource
from poncho_wq.specs.document import Place, choice_at, items_at, kind, object_at, required_at, string_at, strings_at
from poncho_wq.specs.urls import check_channel, check_download, check_git_ref, check_git_remote
from poncho_wq.specs.variables import check_variable

_T = TypeVar("_T")

MAX_ENV = 131072 - 1  # bytes of VAR=value with its end: Linux's MAX_ARG_STRLEN, beyond which no program starts

_KEYS = ("conda", "pip", "git", "http", "pinned", "python", "env", "glibc")
# `conda env export` adds these two and upstream's analyze passes them on; they say nothing about the environment.
_IGNORED = ("name", "prefix")
# What people write from habit, and what it is called here.
_HINTS = {
    "top": {
        "channels": "conda.channels",
        "packages": "conda.packages",
        "dependencies": "conda.dependencies",
        "requirements": "pip",
        "variables": "env",
        "environment": "env",
        "python_version": "python",
    },
    "git": {"url": "remote", "branch": "tag", "commit": "tag", "rev": "tag"},
    "http": {"checksum": "sha256", "hash": "sha256", "format": "type"},
}
_PYTHON = re.compile(r"3\.(0|[1-9][0-9]{0,2})(?:\.(0|[1-9][0-9]{0,2}))?")
_OLDEST_PYTHON = 7
_GLIBC = re.compile(r"[1-9][0-9]{0,2}\.(?:0|[1-9][0-9]{0,2})")
_CONDA_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_TYPES = ("file", "tar")
_COMPRESSIONS = ("gzip", "bzip2", "xz", "zstd")
_NOT_IN_ENVIRONMENT = re.compile(r"[\x00\ud800-\udfff]")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def parse_spec(document: object, *, source: str | None = None) -> EnvSpec:
    """The EnvSpec that `document` (what JSON gives: dictionaries, lists, strings) describes, or `SpecError`."""
    root = Place(path="", source=None if source is None else str(source))
    top = object_at(root, document, known=_KEYS + _IGNORED, hints=_HINTS["top"])
    for key in _IGNORED:
        if top.get(key) is not None:
            string_at(root.key(key), top[key], printable=False)
    conda, conda_pip = _conda(root.key("conda"), top.get("conda"))
    pip = _pip([*conda_pip, *strings_at(root.key("pip"), top.get("pip"))])
    git = _sources(root.key("git"), top.get("git"), _git)
    http = _sources(root.key("http"), top.get("http"), _http)
    env = _env(root.key("env"), top.get("env"))
    taken: dict[str, str] = {}
    for section, names in (("git", git), ("http", http), ("env", env)):
        for name in names:
            if name in taken:
                root.key(section).key(name).fail(f"the same variable is set by {taken[name]}.{name}")
            taken[name] = section
    python = _python(root.key("python"), top.get("python"))
    if python is not None and conda is not None:
        root.key("python").fail(
            "a specification with a conda section takes its interpreter from conda",
            advice=f'remove "python", and list "python={python}" in conda.packages',
        )
    return EnvSpec(
        conda=conda,
        pip=pip,
        git=tuple(sorted(git.items())),
        http=tuple(sorted(http.items())),
        pinned=_pinned(root.key("pinned"), top.get("pinned")),
        python=python,
        env=tuple(sorted(env.items())),
        glibc=_glibc(root.key("glibc"), top.get("glibc")),
    )


def _conda(place: Place, value: object) -> tuple[CondaSection | None, list[tuple[Place, str]]]:
    """The conda section, and the pip requirements that upstream's form keeps inside `dependencies`."""
    if value is None:
        return None, []
    section = object_at(place, value, known=("channels", "packages", "dependencies"))
    channels: dict[str, None] = {}  # a set that keeps the order: what is listed again adds no priority
    for where, text in strings_at(place.key("channels"), section.get("channels")):
        with where.located():
            channels[check_channel(text)] = None
    names = strings_at(place.key("packages"), section.get("packages"))
    pip: list[tuple[Place, str]] | None = None
    for where, item in items_at(place.key("dependencies"), section.get("dependencies")):
        if not isinstance(item, Mapping):
            names.append((where, string_at(where, item)))
            continue
        if pip is not None:
            where.fail('a second object: one {"pip": […]} holds all requirements')
        pip = strings_at(where.key("pip"), object_at(where, item, known=("pip",)).get("pip"))
    packages = _matchspecs(names)
    conda = CondaSection(channels=tuple(channels), packages=packages) if channels or packages else None
    return conda, pip or []


def _matchspecs(names: Sequence[tuple[Place, str]]) -> tuple[str, ...]:
    if not names:
        return ()
    from poncho_wq.specs import matchspec  # packages need a solver; nothing else does

    unique: dict[str, str] = {}
    for where, text in names:
        with where.located():
            spelled = matchspec.tidy(text)
        # Of two spellings of one package, the same survives whatever their order.
        key = matchspec.canonical(spelled)
        unique[key] = max(spelled, unique.get(key, spelled))
    return tuple(sorted(unique.values()))


def _pip(requirements: Sequence[tuple[Place, str]]) -> tuple[str, ...]:
    if not requirements:
        return ()
    from poncho_wq.specs import requirement

    unique: dict[str, tuple[str, Place]] = {}
    for where, text in requirements:
        with where.located():
            spelled = requirement.tidy(text)
            key = requirement.canonical(spelled)
        before = unique.setdefault(key, (spelled, where))
        unique[key] = (max(spelled, before[0]), before[1])
    found = list(unique.values())
    clash = requirement.contradiction([spelled for spelled, _ in found])
    if clash is not None:
        (first, first_place), (second, place) = found[clash[0]], found[clash[1]]
        place.fail(
            f"{quoted(second)} contradicts {quoted(first)} ({first_place.path})", advice="keep the one that you mean"
        )
    return tuple(sorted(spelled for spelled, _ in found))


def _sources(place: Place, value: object, read: Callable[[Place, object], _T]) -> dict[str, _T]:
    """The entries of `git` or `http`: each a variable and where its data comes from."""
    found = {}
    for name, item in object_at(place, {} if value is None else value).items():
        where = place.key(name)
        with where.located():
            check_variable(name)
        found[name] = read(where, item)
    return found


def _git(place: Place, value: object) -> GitSource:
    fields = object_at(place, value, known=("remote", "tag", "ref"), hints=_HINTS["git"])
    where = place.key("remote")
    remote = string_at(where, required_at(place, fields, "remote"))
    with where.located():
        check_git_remote(remote)
    named = {}
    for key in ("tag", "ref"):  # `ref` is what upstream's tools write
        if key in fields:
            where = place.key(key)
            named[key] = string_at(where, fields[key])
            with where.located():
                check_git_ref(named[key])
    if len(set(named.values())) > 1:
        place.key("ref").fail(
            f'is {quoted(named["ref"])} but "tag" is {quoted(named["tag"])}', advice="give one of the two"
        )
    return GitSource(remote=remote, tag=next(iter(named.values()), None))


def _http(place: Place, value: object) -> HttpSource:
    fields = object_at(place, value, known=("url", "type", "compression", "sha256"), hints=_HINTS["http"])
    where = place.key("url")
    url = string_at(where, required_at(place, fields, "url"))
    with where.located():
        check_download(url)
    kind_of_file = choice_at(place.key("type"), required_at(place, fields, "type"), _TYPES)
    compression = sha256 = None
    if "compression" in fields:
        compression = choice_at(place.key("compression"), fields["compression"], _COMPRESSIONS)
    if "sha256" in fields:
        where = place.key("sha256")
        sha256 = string_at(where, fields["sha256"]).lower()
        if not _SHA256.fullmatch(sha256):
            where.fail(f"expected 64 hexadecimal digits, got {quoted(sha256)}")
    return HttpSource(
        url=url,
        type=cast('Literal["file", "tar"]', kind_of_file),
        compression=cast('Literal["gzip", "bzip2", "xz", "zstd"] | None', compression),
        sha256=sha256,
    )


def _env(place: Place, value: object) -> dict[str, str]:
    found = {}
    for name, item in object_at(place, {} if value is None else value).items():
        where = place.key(name)
        with where.located():
            check_variable(name)
        if isinstance(item, int | float):
            where.fail(f"expected a string, got {kind(item)}", advice="put the value in quotes")
        # Line breaks, tabs and the empty string are fine in a variable; what a process cannot be given is not.
        text = string_at(where, item, limit=MAX_ENV, printable=False)
        bad = _NOT_IN_ENVIRONMENT.search(text)
        if bad:
            where.fail(f"holds the character U+{ord(bad[0]):04X}, which no variable can hold")
        size = len(name) + 1 + len(text.encode())
        if size > MAX_ENV:
            where.fail(f"is {size} bytes long with its name, more than the {MAX_ENV} that Linux passes to a program")
        found[name] = text
    return found


def _pinned(place: Place, value: object) -> tuple[tuple[str, str], ...]:
    if value is None:
        return ()
    place, section = place.key("conda"), object_at(place, value, known=("conda",)).get("conda")
    if section is None:
        return ()
    from poncho_wq.specs import matchspec

    found: dict[str, str] = {}
    for name, item in object_at(place, section).items():
        where = place.key(name)
        if not _CONDA_NAME.fullmatch(name):
            where.fail("is not the name of a conda package")
        version = "".join(string_at(where, item).split())
        with where.located():  # upstream writes the line `name=version`; the version may be `1.20` or `1.20.0=build`
            matchspec.tidy(f"{name}={version}" if version[0].isalnum() else f"{name} {version}")
        if found.setdefault(name.lower(), version) != version:
            where.fail(f"is pinned to {quoted(found[name.lower()])} and to {quoted(version)}")
    return tuple(sorted(found.items()))


def _python(place: Place, value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        place.fail(f'expected a version such as "3.11", got {kind(value)}', advice="put the version in quotes")
    match = _PYTHON.fullmatch(string_at(place, value))
    if match is None:
        place.fail(f'expected a version such as "3.11" or "3.11.7", got {quoted(value)}')
    if int(match[1]) < _OLDEST_PYTHON:
        place.fail(f"an environment's Python is 3.{_OLDEST_PYTHON} or newer, got {quoted(value)}")
    return value


def _glibc(place: Place, value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        place.fail(f'expected a version such as "2.28", got {kind(value)}', advice="put the version in quotes")
    if not _GLIBC.fullmatch(string_at(place, value)):
        place.fail(f'expected a version such as "2.28", got {quoted(value)}')
    return value
