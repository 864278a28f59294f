"""conda's MatchSpec: which strings are one, and which spellings are the same.

py-rattler decides what is valid, and this module is the only one that asks it.  How a MatchSpec is spelled is decided
here: rattler's own form has changed between releases, and hashes must not change with it.  Where rattler calls two
spellings equal so do we; a form that the rules below do not cover is kept as it was written, which can only make two
hashes differ, never make two different packages share one.

Two forms of each, as in `requirement`: `tidy` keeps the digits of versions as written, `canonical` drops zeros that
mean nothing (`==1.20.0` is `==1.20`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from poncho_wq.errors import SpecError, quoted, redact
from poncho_wq.specs.urls import CREDENTIALS_ADVICE, check_channel

# What follows a name is a blank or an operator; anything else (`namespace:name`) is a form kept as written.
_NAME = re.compile(r"(?P<name>[A-Za-z0-9_][A-Za-z0-9_.-]*)(?P<rest>(?:[\s=<>!~(*].*)?)", re.DOTALL)
_BRACKETS = re.compile(r"(?P<head>[^\[\]]*)\[(?P<inside>.*)\]", re.DOTALL)
_ATTRIBUTE = re.compile(
    r"\s*(?P<key>[a-z][a-z0-9_]*)\s*=\s*(?:\"(?P<double>[^\"]*)\"|'(?P<single>[^']*)'|(?P<bare>[^\s,\[\]\"'=]+))\s*(?:,|$)"
)
_CONSTRAINT = re.compile(r"(?P<operator>==|!=|>=|<=|~=|=|>|<)?(?P<version>[A-Za-z0-9_.!+*-]+)")
_COMPARISON = re.compile(r"(?P<operator>==|!=|>=|<=|>|<)(?P<numbers>[0-9]+(?:\.[0-9]+)*)")
_BUILD = re.compile(r"[A-Za-z0-9_.+*]+")
# `==1.*` alone is `1.*`; rattler reads it as `==1` beside a build or another constraint, where conda does not.
_EXACTLY_ANY = re.compile(r"==\s*[^\s,|=<>!~()]*\*")
_TOO_MANY_WORDS = re.compile(r"[^\s\[\]()<>=!~,|]+(?:\s+[^\s\[\]()<>=!~,|]+){3,}")
_SUBDIRS = frozenset(
    ("noarch", "linux-64", "linux-aarch64", "linux-32", "linux-ppc64le", "osx-64", "osx-arm64", "win-64")
)


def tidy(text: str) -> str:
    """`text` in uniform spelling, close to the seed's `channel::name=version=build`.

    Raises `SpecError`, without a path, with rattler's own words when it is not a MatchSpec, and for packages named by
    path or URL, local channels without a scheme, and credentials.
    """
    text = text.strip()
    _validate(text)
    parts = _split(text)
    if parts is None:
        return text
    if parts.channel:
        check_channel(parts.channel)
    return _render(parts, str)


def canonical(text: str) -> str:
    """One spelling for all MatchSpecs that are equal; `text` comes from `tidy` and is not validated again."""
    parts = _split(text)
    return text if parts is None else _render(parts, _without_zeros)


def _validate(text: str) -> None:
    if "::" not in text and re.match(r"[./~]|[A-Za-z][A-Za-z0-9+.-]*:/", text):
        raise SpecError(
            f"{quoted(text)} names one package file, not a package", advice="write channel::name=version=build instead"
        )
    if redact(text) != text:
        raise SpecError(f"{quoted(text)} holds credentials", advice=CREDENTIALS_ADVICE)
    if text.rpartition("::")[2].startswith("-"):
        raise SpecError(f"{quoted(text)} begins with a dash, so it is an option and no package")
    if "#" in text:
        raise SpecError(f"{quoted(text)} holds a comment or a fragment", advice="remove everything from # on")
    if _TOO_MANY_WORDS.fullmatch(text):  # rattler takes the third and all later words for one build string
        raise SpecError(f"{quoted(text)} has too many words", advice="write each package as an item of its own")
    # Here, not above: a specification without conda packages must not load the solver.
    from rattler import MatchSpec
    from rattler.exceptions import InvalidMatchSpecError

    try:
        MatchSpec(text)
    except InvalidMatchSpecError as error:
        first_line = str(error).partition("\n")[0]
        raise SpecError(f"{quoted(text)} is not a conda package specification: {first_line}") from None


@dataclass(frozen=True, kw_only=True)
class _Parts:
    """What a MatchSpec says, each part in the user's spelling; empty for what it does not say."""

    channel: str
    name: str
    version: str
    build: str
    attributes: dict[str, str]


def _split(text: str) -> _Parts | None:
    """The parts of a valid MatchSpec, or None for a form that is kept as written."""
    brackets = _BRACKETS.fullmatch(text)
    attributes: dict[str, str] | None = {}
    if brackets:
        text, attributes = brackets["head"], _attributes(brackets["inside"])
    channel, _, rest = text.rpartition("::")
    named = _NAME.fullmatch(rest.strip())
    if attributes is None or named is None:
        return None
    version_and_build = _version_and_build(named["rest"].strip())
    if version_and_build is None:
        return None
    version, build = version_and_build
    written = attributes.get("version", named["rest"]).strip()
    if _EXACTLY_ANY.search(written) and (not _EXACTLY_ANY.fullmatch(written) or "build" in attributes or build):
        return None
    # What stands in brackets wins over what stands outside (conda's rule 8).
    version = _constraints(attributes.pop("version", version))
    if _BUILD.fullmatch(attributes.get("build", "?")):
        build = attributes.pop("build")
    elif "build" in attributes:
        build = ""
    channel = attributes.pop("channel", channel.strip())
    where, _, subdir = channel.rpartition("/")
    if where and subdir in _SUBDIRS:
        channel = where
        attributes.setdefault("subdir", subdir)
    return _Parts(channel=channel, name=named["name"].lower(), version=version, build=build, attributes=attributes)


def _attributes(inside: str) -> dict[str, str] | None:
    """`key=value, key="value"` as a dictionary; None where a value has a structure of its own."""
    found: dict[str, str] = {}
    position = 0
    while position < len(inside):
        match = _ATTRIBUTE.match(inside, position)
        if match is None or match["key"] in found:
            return None
        found[match["key"]] = next(value for value in match.group("double", "single", "bare") if value is not None)
        position = match.end()
    return found


def _version_and_build(rest: str) -> tuple[str, str] | None:
    """What follows the name.  Blanks or a second `=` divide; an `=version` with a build is exact (conda's rule)."""
    rest = re.sub(r"\s*([,|])\s*", r"\1", rest)
    rest = re.sub(r"([=<>!~])\s+", r"\1", rest)
    exact = re.fullmatch(r"={0,2}(?P<version>[A-Za-z0-9_*][A-Za-z0-9_.!+*-]*)(?<!!)(?:\s+|=)(?P<build>[^\s=]+)", rest)
    if exact and _BUILD.fullmatch(exact["build"]):
        return exact["version"], exact["build"]
    words = rest.split()
    if len(words) > 2 or (len(words) == 2 and not _BUILD.fullmatch(words[1])) or re.search(r"[^=<>!~,|]=[^=]", rest):
        return None
    return (words[0] if words else ""), (words[1] if len(words) == 2 else "")


def _constraints(version: str) -> str:
    """A version in one spelling: alternatives `|` of constraints `,`, sorted, since their order means nothing."""
    text = _in_order(re.sub(r"\s+", "", version), _constraint)
    return "" if text == "*" else text


def _in_order(version: str, spell: Callable[[str], str]) -> str:
    if re.search(r"[()]", version):
        return version
    alternatives = {",".join(sorted({spell(each) for each in part.split(",")})) for part in version.split("|")}
    return "|".join(sorted(alternatives))


def _constraint(text: str) -> str:
    """One comparison: `==V`, `V.*` and the like."""
    match = _CONSTRAINT.fullmatch(text)
    if match is None:
        return text
    operator, version = match["operator"] or "", match["version"].lower()
    stem = version.rstrip("*").rstrip(".")
    if not stem or "*" in stem:
        return "*" if not stem and operator in ("", "=", "==") else operator + version
    if operator == "=" or (operator in ("", "==") and version.endswith("*")):
        return f"{stem}.*"
    if operator == ">=" and version.endswith("*"):
        return f">={stem}"
    return (operator or "==") + version


def _without_zeros(constraint: str) -> str:
    """Drop what conda's order ignores, `==1.02.0` is `==1.2`; never from `1.20.*` and `~=1.20`, where it counts."""
    match = _COMPARISON.fullmatch(constraint)
    if match is None:
        return constraint
    numbers = [number.lstrip("0") or "0" for number in match["numbers"].split(".")]
    while len(numbers) > 1 and numbers[-1] == "0":
        numbers.pop()
    return match["operator"] + ".".join(numbers)


def _render(parts: _Parts, spell: Callable[[str], str]) -> str:
    attributes = dict(parts.attributes)
    channel = parts.channel
    if channel and attributes.get("subdir") in _SUBDIRS:
        channel += "/" + attributes.pop("subdir")
    text = f"{channel}::{parts.name}" if channel else parts.name
    version = _in_order(parts.version, spell)
    exact = re.fullmatch(r"==(?P<version>[^,|]+)", version)
    fuzzy = re.fullmatch(r"(?P<version>[^=<>!~,|*()]+)\.\*", version)
    if parts.build not in ("", "*"):
        if exact:
            text += f"={exact['version']}={parts.build}"
        else:
            text += f" {version or '*'} {parts.build}"
    elif exact:
        text += version
    elif fuzzy:
        text += f"={fuzzy['version']}"
    elif version:
        text += f" {version}"
    if attributes:
        text += "[" + ",".join(f"{key}={_quote(value)}" for key, value in sorted(attributes.items())) + "]"
    return text


def _quote(value: str) -> str:
    """There is no escape inside quotes; a value that was written can hold one kind of them only."""
    return f"'{value}'" if '"' in value else f'"{value}"'
