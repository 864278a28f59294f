"""Whatever a user has → ``EnvSpec``: reading only, nothing is installed, downloaded or run.

``read_source`` says what a thing is and hands it to the reader of its kind, in ``importing``.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from poncho_wq.errors import SpecError
from poncho_wq.importing.model import Imported
from poncho_wq.spec import EnvSpec
from poncho_wq.specs.document import MAX_DOCUMENT

SpecLike = EnvSpec | Mapping[str, Any] | str | os.PathLike[str]

_KINDS = (
    "a specification (JSON), environment.yml, requirements.txt, pyproject.toml, pylock.toml, "
    "a virtual environment or a conda prefix"
)
# Files of other tools, by name: how to turn them into one that is read.
_REFUSED = {
    "uv.lock": "uv export --no-emit-project -o requirements.txt",
    "poetry.lock": "poetry export -o requirements.txt",
    "pdm.lock": "pdm export -o requirements.txt",
    "pipfile": "pipenv requirements > requirements.txt",
    "pipfile.lock": "pipenv requirements > requirements.txt",
    "conda-lock.yml": "conda-lock render -k env, or name the environment that was made from it",
    "setup.py": "pip install . in a virtual environment, and import that",
    "setup.cfg": "pip install . in a virtual environment, and import that",
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """What some kinds of source leave open.

    ``extras`` and ``groups`` choose among the optional dependencies of a ``pyproject.toml`` or ``pylock.toml``.
    ``ignore_editable`` leaves out packages that are installed from a folder, instead of refusing them.
    """

    extras: Sequence[str] = ()
    groups: Sequence[str] = ()
    ignore_editable: bool = False


def read_spec(source: SpecLike) -> EnvSpec:
    """The specification that ``source`` holds or describes; see ``read_source``."""
    return source if isinstance(source, EnvSpec) else read_source(source).spec


def read_source(source: SpecLike, options: Options | None = None) -> Imported:
    """The specification that ``source`` holds or describes, and what the source says besides.

    ``source`` is an ``EnvSpec``, a dictionary in the specification format, ``"-"`` for a specification on standard
    input, the path of a file or directory of any kind that is known, or the name of a conda environment.
    Raises ``SpecError`` with the file's name and the place in it.
    """
    options = options or Options()
    if isinstance(source, EnvSpec):
        return Imported(spec=source)
    if isinstance(source, Mapping):
        return Imported(spec=EnvSpec.from_dict(source))
    if source == "-":
        return Imported(spec=EnvSpec.from_json(sys.stdin.buffer.read(MAX_DOCUMENT + 1), source="<stdin>"))
    path = Path(os.fspath(source))
    reader = _directory_reader(path) if os.path.isdir(path) else _file_reader(path, named=isinstance(source, str))
    return reader(path, options)


_Reader = Callable[[Path, Options], Imported]


def _directory_reader(path: Path) -> _Reader:
    if (path / "pyvenv.cfg").is_file():
        return _venv
    if (path / "conda-meta").is_dir():
        return _conda_prefix
    raise SpecError(
        "neither a venv (pyvenv.cfg) nor a conda prefix (conda-meta)",
        source=str(path),
        advice=_inside(path) or f"name {_KINDS}",
    )


def _inside(path: Path) -> str | None:
    """Advice for somebody who named a project's directory: the files in it that could be meant."""
    known = ("environment.yml", "requirements.txt", "pylock.toml", "pyproject.toml", ".venv", "venv", "env")
    there = [str(path / name) for name in known if (path / name).exists()]
    return f"did you mean {' or '.join(there)}?" if there else None


def _file_reader(path: Path, *, named: bool) -> _Reader:
    name = path.name.lower()
    if not os.path.exists(path):  # also for a name that is too long for one
        return _missing(path, named=named)
    if name in _REFUSED:
        raise SpecError("is not read", source=str(path), advice=f"turn it into one that is: {_REFUSED[name]}")
    if name.endswith((".yml", ".yaml")):
        return _specification if _is_specification(path) else _environment
    if name.endswith(".toml"):
        return _pylock if _is_pylock(path) else _pyproject
    if name.endswith((".txt", ".in", ".pip")) or name == "requirements":
        return _requirements
    return _specification


def _is_specification(path: Path) -> bool:
    """Whether a YAML file is a specification after all: JSON is YAML, and Parsl has `python_package_analyze` write its
    result to a file of that name."""
    from poncho_wq.importing.text import read_bytes

    data = read_bytes(path, limit=MAX_DOCUMENT)
    if not data.lstrip().startswith(b"{"):
        return False
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return False
    return "dependencies" not in document


def _is_pylock(path: Path) -> bool:
    return path.name == "pylock.toml" or (path.name.startswith("pylock.") and path.name.count(".") == 2)


def _missing(path: Path, *, named: bool) -> _Reader:
    """A name that is no path may be that of a conda environment."""
    if named and len(path.parts) == 1:
        from poncho_wq.importing.conda_prefix import find_environment

        prefix = find_environment(str(path))
        if prefix is not None:
            return lambda _, options: _conda_prefix(prefix, options)
    if os.path.lexists(path):
        raise SpecError(f"is a link to {os.readlink(path)}, which is not there", source=str(path))
    raise SpecError("no such file", source=str(path), advice=f"name {_KINDS}, or - for standard input")


# Each imports its reader only when it is used: `import poncho_wq` comes by here, and needs neither YAML nor a solver.


def _specification(path: Path, options: Options) -> Imported:
    from poncho_wq.importing.text import read_bytes

    data = read_bytes(path, limit=MAX_DOCUMENT)
    if data[:2] == b"\x1f\x8b":
        raise SpecError(
            "is a tarball, not a specification",
            source=str(path),
            advice="the specification of an environment: poncho-wq env show TARBALL --json",
        )
    return Imported(spec=EnvSpec.from_json(data, source=str(path)))


def _environment(path: Path, options: Options) -> Imported:
    from poncho_wq.importing.environment_yml import read_environment

    return read_environment(path)


def _requirements(path: Path, options: Options) -> Imported:
    from poncho_wq.importing.requirements_txt import read_requirements

    return read_requirements(path)


def _pyproject(path: Path, options: Options) -> Imported:
    from poncho_wq.importing.pyproject import read_pyproject

    return read_pyproject(path, extras=options.extras, groups=options.groups)


def _pylock(path: Path, options: Options) -> Imported:
    from poncho_wq.importing.pylock import read_pylock

    return read_pylock(path, extras=options.extras, groups=options.groups or None)


def _venv(path: Path, options: Options) -> Imported:
    from poncho_wq.importing.venv import read_venv

    return read_venv(path, ignore_editable=options.ignore_editable)


def _conda_prefix(path: Path, options: Options) -> Imported:
    from poncho_wq.importing.conda_prefix import read_conda_prefix

    return read_conda_prefix(path, ignore_editable=options.ignore_editable)
