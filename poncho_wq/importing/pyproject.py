"""``pyproject.toml``: what a project depends on.  The project itself is local code, and not part of an environment."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import canonicalize_name

from poncho_wq.errors import SpecError
from poncho_wq.importing.model import Imported
from poncho_wq.importing.text import read_toml
from poncho_wq.spec import EnvSpec
from poncho_wq.specs.document import Place, items_at, object_at, string_at, strings_at

# (requirement, where it stands)
_Lines = list[tuple[str, Place]]


def read_pyproject(path: Path, *, extras: Sequence[str] = (), groups: Sequence[str] = ()) -> Imported:
    """The dependencies of the project ``path`` (PEP 621), with ``extras`` and dependency ``groups`` (PEP 735).

    Raises ``SpecError`` naming the key.
    """
    root = Place(path="", source=str(path))
    document = object_at(root, read_toml(path))
    project = object_at(root.key("project"), document.get("project", {}))
    tools = object_at(root.key("tool"), document.get("tool", {}))
    if "project" not in document:
        _refuse_without_project(root, tools, bool(groups))
    where = root.key("project")
    _check_dynamic(where, project, bool(extras))
    _check_python(where.key("requires-python"), project.get("requires-python"))
    own = canonicalize_name(str(project.get("name", "")))
    lines: _Lines = [(text, at) for at, text in strings_at(where.key("dependencies"), project.get("dependencies"))]
    available = object_at(where.key("optional-dependencies"), project.get("optional-dependencies", {}))
    for extra in extras:
        lines += _extra(where.key("optional-dependencies"), available, extra, own, ())
    defined = object_at(root.key("dependency-groups"), document.get("dependency-groups", {}))
    for group in groups:
        lines += _group(root.key("dependency-groups"), defined, group, ())
    _refuse_local_sources(root, tools, lines)
    return Imported(spec=_spec([(text, at) for text, at in lines if _name(text) != own or not own], root))


def _spec(lines: _Lines, root: Place) -> EnvSpec:
    try:
        return EnvSpec.from_dict({"pip": [text for text, _ in lines]}, source=root.source)
    except SpecError as error:
        at = re.fullmatch(r"pip\[(\d+)\]", error.path or "")
        place = lines[int(at[1])][1] if at else root
        message = re.sub(r"pip\[(\d+)\]", lambda match: lines[int(match[1])][1].path, error.message)
        place.fail(message, advice=error.advice)


def _extra(place: Place, available: Mapping[str, Any], extra: str, own: str, above: tuple[str, ...]) -> _Lines:
    """The requirements of an extra.  One that lists ``own[other]`` takes in the other."""
    names = {canonicalize_name(name): name for name in available}
    name = names.get(canonicalize_name(extra))
    if name is None:
        place.fail(f'has no extra "{extra}"', advice=f"it has {', '.join(sorted(available)) or 'none'}")
    if name in above:
        place.key(name).fail("includes itself")
    lines: _Lines = []
    for at, text in strings_at(place.key(name), available[name]):
        if own and _name(text) == own:
            for other in sorted(Requirement(text).extras):
                lines += _extra(place, available, other, own, (*above, name))
        else:
            lines.append((text, at))
    return lines


def _group(place: Place, defined: Mapping[str, Any], group: str, above: tuple[str, ...]) -> _Lines:
    names = {canonicalize_name(name): name for name in defined}
    name = names.get(canonicalize_name(group))
    if name is None:
        place.fail(f'has no group "{group}"', advice=f"it has {', '.join(sorted(defined)) or 'none'}")
    if name in above:
        place.key(name).fail("includes itself")
    lines: _Lines = []
    for at, item in items_at(place.key(name), defined[name]):
        if isinstance(item, Mapping):
            other = object_at(at, item, known=("include-group",)).get("include-group")
            lines += _group(place, defined, string_at(at.key("include-group"), other), (*above, name))
        else:
            lines.append((string_at(at, item), at))
    return lines


def _name(text: str) -> str | None:
    try:
        return canonicalize_name(Requirement(text).name)
    except InvalidRequirement:
        return None


def _refuse_without_project(root: Place, tools: Mapping[str, Any], has_groups: bool) -> None:
    if "poetry" in tools:
        root.key("tool").key("poetry").fail(
            "has dependencies in poetry's own form only",
            advice="write them out with: poetry export -o requirements.txt (poetry-plugin-export), and import that",
        )
    if not has_groups:
        root.fail('has no "project" table, so names no dependencies')


def _check_dynamic(place: Place, project: Mapping[str, Any], extras: bool) -> None:
    computed = [text for _, text in strings_at(place.key("dynamic"), project.get("dynamic"))]
    for key in ("dependencies", *(["optional-dependencies"] if extras else [])):
        if key in computed:
            place.key(key).fail(
                "are dynamic: only building the project tells what they are",
                advice="import the requirements.txt that they come from, or a virtual environment that has them",
            )


def _check_python(place: Place, value: object) -> None:
    if value is None:
        return
    wanted = string_at(place, value)
    try:
        fits = SpecifierSet(wanted).contains(platform.python_version(), prereleases=True)
    except InvalidSpecifier:
        place.fail(f'"{wanted}" is not a version specifier')
    if not fits:
        place.fail(
            f"the project needs Python {wanted}, and the manager runs {platform.python_version()}",
            advice="run poncho_wq with a Python that fits",
        )


def _refuse_local_sources(root: Place, tools: Mapping[str, Any], lines: _Lines) -> None:
    """uv takes some dependencies from folders and repositories: an index may have another project of that name."""
    sources = tools.get("uv", {}).get("sources", {}) if isinstance(tools.get("uv", {}), Mapping) else {}
    wanted = {_name(text) for text, _ in lines}
    for name, source in sorted(sources.items()) if isinstance(sources, Mapping) else ():
        entries = source if isinstance(source, list) else [source]
        elsewhere = [key for each in entries if isinstance(each, Mapping) for key in each if key in _ELSEWHERE]
        if elsewhere and canonicalize_name(name) in wanted:
            root.key("tool").key("uv").key("sources").key(name).fail(
                f"comes from a {elsewhere[0]}, not from an index",
                advice="import what uv exports: uv export --no-emit-project -o requirements.txt",
            )


_ELSEWHERE = ("path", "workspace", "git", "url")
