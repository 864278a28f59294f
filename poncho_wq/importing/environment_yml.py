"""``environment.yml`` as ``conda env export``, ``mamba`` and ``micromamba`` write it, and as people do.

The keys are those that conda reads (its manual, "Managing environments"): name, channels, dependencies with one
``pip`` list, prefix, variables.  ``platforms`` and ``category`` are conda-lock's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from poncho_wq.errors import SpecError
from poncho_wq.importing.model import Imported
from poncho_wq.importing.requirements_txt import read_requirement_lines
from poncho_wq.importing.text import read_text
from poncho_wq.importing.yaml_text import MAX_YAML, load_yaml
from poncho_wq.platforms import host_platform
from poncho_wq.spec import EnvSpec
from poncho_wq.specs.document import Place, items_at, object_at, string_at, strings_at

_KEYS = ("name", "channels", "dependencies", "prefix", "variables", "platforms", "category")
_HINTS = {"packages": "dependencies", "requirements": "dependencies", "env": "variables", "environment": "variables"}
_SELECTOR = re.compile(r"sel\((?P<what>[a-z0-9]+)\)")
_LINUX = ("linux", "unix")


def read_environment(path: Path) -> Imported:
    """The conda environment file ``path``.  Raises ``SpecError`` naming the key."""
    source = str(path)
    root = Place(path="", source=source)
    document = load_yaml(read_text(path, limit=MAX_YAML), source=source)
    if document is None:
        root.fail("is empty", advice="write it with: conda env export > environment.yml")
    top = object_at(root, document, known=_KEYS, hints=_HINTS)
    notes = _check_platforms(root.key("platforms"), top.get("platforms"))
    channels = [text for _, text in strings_at(root.key("channels"), top.get("channels"))]
    packages, places, pip = _dependencies(root.key("dependencies"), top.get("dependencies"))
    imported = read_requirement_lines(pip, folder=path.parent)
    specification: dict[str, Any] = {
        # `nodefaults` asks conda not to add the channels that the user has configured, which we never do.
        "conda": {"channels": [each for each in channels if each != "nodefaults"], "packages": packages},
        "env": _variables(root.key("variables"), top.get("variables")),
    }
    if packages and not specification["conda"]["channels"] and not all("::" in each for each in packages):
        root.key("channels").fail(
            "no channel is named, and a specification does not take those that you have configured",
            advice="write for example channels: [conda-forge], or export it with conda env export, which names them",
        )
    if not packages:
        del specification["conda"]
    try:
        spec = EnvSpec.from_dict({**specification, "pip": list(imported.spec.pip)}, source=source)
    except SpecError as error:
        raise _with_place(error, places) from None
    return Imported(spec=spec, notes=tuple(notes), index=imported.index, conditions=imported.conditions)


def _dependencies(place: Place, value: object) -> tuple[list[str], list[str], list[tuple[str, str]]]:
    """The conda packages, the place of each, and the lines of the ``pip`` list with theirs."""
    packages: list[str] = []
    places: list[str] = []
    pip: list[tuple[str, str]] = []
    for where, item in items_at(place, value):
        if not isinstance(item, Mapping):
            packages.append(string_at(where, item))
            places.append(where.path)
            continue
        for key, inside in object_at(where, item).items():
            selector = _SELECTOR.fullmatch(key)
            if key == "pip":
                lines = strings_at(where.key("pip"), inside)
                pip += [(f"{each.source}: {each.path}", text) for each, text in lines]
            elif selector is None:
                where.key(key).fail(
                    'expected "pip", the only list inside dependencies', advice="write a package as - name=version"
                )
            elif selector["what"] in _LINUX or selector["what"] == host_platform().replace("-", ""):
                packages.append(string_at(where.key(key), inside))
                places.append(where.key(key).path)
    return packages, places, pip


def _variables(place: Place, value: object) -> dict[str, str]:
    found = {}
    for name, item in object_at(place, {} if value is None else value).items():
        # conda sets what stands there as text, whatever YAML takes it for; nothing is the empty text.
        found[name] = "" if item is None else item
    return found


def _check_platforms(place: Place, value: object) -> list[str]:
    listed = [text for _, text in strings_at(place, value)]
    if listed and host_platform() not in listed:
        return [f"{place.source}: lists the platforms {', '.join(listed)}, and this one is {host_platform()}"]
    return []


def _with_place(error: SpecError, places: list[str]) -> SpecError:
    """``error`` of the specification that was made from the file, at the place in the file."""
    path = error.path or ""
    at = re.fullmatch(r"conda\.packages\[(\d+)\]", path)
    if at:
        path = places[int(at[1])]
    path = re.sub(r"^conda\.channels\b", "channels", re.sub(r"^env\b", "variables", path))
    return SpecError(error.message, path=path, source=error.source, advice=error.advice)
