"""PEP 508 requirements: what may stand in a specification's `pip` list, and which spellings are the same.

Two forms of each: `tidy` keeps the digits that the user wrote (`rich==15.0.0`) for people and for the lists that tools
print; `canonical` spells alike what PEP 440 and PEP 503 call equal (`rich==15`), for hashes and comparisons.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import Specifier
from packaging.utils import InvalidName, canonicalize_name, canonicalize_version

from poncho_wq.errors import SpecError, quoted
from poncho_wq.specs.urls import ARCHIVES, check_requirement_url

_OPTIONS = {
    "-e": "an editable install",
    "--editable": "an editable install",
    "-r": "another requirements file",
    "--requirement": "another requirements file",
    "-c": "a constraints file",
    "--constraint": "a constraints file",
    "-i": "an index",
    "--index-url": "an index",
    "--extra-index-url": "an index",
    "-f": "a folder of links",
    "--find-links": "a folder of links",
}
_INDEX_ADVICE = (
    "a specification does not depend on where you download from: set PIP_INDEX_URL, PIP_EXTRA_INDEX_URL or "
    "PIP_FIND_LINKS (or pip.conf) where the environment is built"
)
_EDITABLE_ADVICE = (
    "local code travels with a function task by itself; for the tools, build a wheel (`pip wheel .`) and list "
    "name @ file:///path/to/that.whl"
)

_DEEPEST_MARKER = 50  # parentheses
_LONG_NUMBER = re.compile(r"[0-9]{1000}")


def tidy(text: str) -> str:
    """`text` as one PEP 508 requirement in uniform spelling, versions as written.

    Raises `SpecError` without a path, also for what requirements files allow besides: options, paths, comments.
    """
    return _render(_parse(text), str)


def canonical(text: str) -> str:
    """One spelling for all requirements that PEP 508, PEP 503 and PEP 440 call equal; `text` comes from `tidy`."""
    return _render(_parse(text), _canonical_specifier)


def contradiction(requirements: Sequence[str]) -> tuple[int, int] | None:
    """The first two of `requirements` that no version can satisfy together, by position.

    Only what can be told without an index: an exact pin that another entry excludes, and two different URLs for one
    name.  Entries with different markers may be meant for different machines and are left to the resolver.
    """
    groups: dict[tuple[str, str], list[tuple[int, Requirement]]] = {}
    for position, text in enumerate(requirements):
        parsed = _parse(text)
        groups.setdefault((canonicalize_name(parsed.name), str(parsed.marker or "")), []).append((position, parsed))
    for group in groups.values():
        if len(group) == 1:
            continue
        for position, parsed in group:
            pin = _exact_version(parsed)
            for other_position, other in group:
                different = parsed.url and other.url and parsed.url != other.url
                if different or (pin is not None and not other.specifier.contains(pin, prereleases=True)):
                    return min(position, other_position), max(position, other_position)
    return None


def _parse(text: str) -> Requirement:
    text = text.strip()
    if text.startswith("-"):
        _refuse_option(text)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", text):
        raise SpecError(f"{quoted(text)} lacks a name", advice="put the name of the package first: name @ URL")
    if text.startswith((".", "/", "~")) or ("@" not in text and text.lower().endswith(ARCHIVES)):
        raise SpecError(f"{quoted(text)} is a path, which means nothing on another machine", advice=_EDITABLE_ADVICE)
    if re.search(r"(?:^|\s)#", text):
        raise SpecError(f"{quoted(text)} holds a comment", advice="remove everything from # on")
    if text.count("(") > _DEEPEST_MARKER:  # packaging parses markers by recursion
        raise SpecError("is nested too deeply for a requirement")
    try:
        parsed = Requirement(text)
        for name in (parsed.name, *parsed.extras):  # packaging 26 lets `a_` through, which is no name in PEP 508
            canonicalize_name(name, validate=True)
    except (InvalidRequirement, InvalidName) as error:
        first_line = str(error).partition("\n")[0]
        raise SpecError(f"{quoted(text)} is not a PEP 508 requirement: {first_line}") from None
    if any(not clause.version for clause in parsed.specifier):  # packaging takes `name===` for a whole clause
        raise SpecError(f"{quoted(text)} is not a PEP 508 requirement: an operator without a version")
    # Python refuses to make a number of more than 4,300 digits, and packaging does not expect that.
    if any(
        _LONG_NUMBER.search(each) for each in (*(clause.version for clause in parsed.specifier), str(parsed.marker))
    ):
        raise SpecError(f"{quoted(text)} is not a PEP 508 requirement: no version has a number of that length")
    if parsed.url is not None:
        if ":" not in parsed.url:
            raise SpecError(
                f"{quoted(text)} names a path, which means nothing on another machine", advice=_EDITABLE_ADVICE
            )
        check_requirement_url(parsed.url)
    return parsed


def _refuse_option(text: str) -> None:
    option = re.split(r"[=\s]", text, maxsplit=1)[0]
    if option[:2] in _OPTIONS and not option.startswith("--"):
        option = option[:2]
    meaning = _OPTIONS.get(option, "an option of pip")
    advice = {
        "an index": _INDEX_ADVICE,
        "a folder of links": _INDEX_ADVICE,
        "an editable install": _EDITABLE_ADVICE,
    }.get(meaning, "list the requirements themselves")
    raise SpecError(f"{quoted(option)} is {meaning}, not a requirement", advice=advice)


def _canonical_specifier(specifier: Specifier) -> str:
    operator, version = specifier.operator, specifier.version
    if operator == "===":  # PEP 440: compared as text, so that no two spellings are equal
        return f"==={version}"
    if version.endswith(".*"):  # `==1.0.*` and `==1.*` differ: the zeros stay
        return f"{operator}{canonicalize_version(version[:-2], strip_trailing_zero=False)}.*"
    return operator + canonicalize_version(version, strip_trailing_zero=operator != "~=")


def _render(parsed: Requirement, spell: Callable[[Specifier], str]) -> str:
    name = canonicalize_name(parsed.name)
    extras = ",".join(sorted({canonicalize_name(extra) for extra in parsed.extras}))
    text = f"{name}[{extras}]" if extras else name
    if parsed.url is not None:
        # The blank before ";" is part of the grammar: a URL may end in one.
        return f"{text} @ {parsed.url}" + (f" ; {parsed.marker}" if parsed.marker else "")
    # One spelling each of what is equal, whichever order they were written in.
    specifiers = {_canonical_specifier(each): spell(each) for each in sorted(parsed.specifier, key=str)}
    text += ",".join(specifiers[key] for key in sorted(specifiers))
    return text + (f"; {parsed.marker}" if parsed.marker else "")


def _exact_version(parsed: Requirement) -> str | None:
    for specifier in parsed.specifier:
        if specifier.operator == "==" and not specifier.version.endswith(".*"):
            return specifier.version
    return None
