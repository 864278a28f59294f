"""An environment as a file of another tool: ``requirements.txt`` or ``environment.yml``.

What such a file cannot say is left out and noted, never silently.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from poncho_wq.described import Described
from poncho_wq.errors import SpecError
from poncho_wq.lock import Lock, LockedPackage
from poncho_wq.spec import EnvSpec

FORMATS = ("environment.yml", "requirements.txt")


@dataclass(frozen=True, kw_only=True)
class Exported:
    """The text of the file, and what it does not say."""

    text: str
    notes: tuple[str, ...] = ()


def export(environment: Described, format: str, *, name: str | None = None) -> Exported:
    """``environment`` in one of ``FORMATS``; exact packages with their hashes where it is locked.

    ``name`` is what an ``environment.yml`` calls it.  Raises ``SpecError`` for what the format cannot hold at all.
    """
    if environment.spec is None:
        raise SpecError("was made by another tool, and does not say what is in it", source=environment.source)
    if format == "requirements.txt":
        return _requirements(environment.spec, environment.lock, environment.source)
    if format == "environment.yml":
        return _environment(environment.spec, environment.lock, name)
    raise SpecError(f"there is no format {format!r}", advice=f"it is one of {', '.join(FORMATS)}")


def _requirements(spec: EnvSpec, lock: Lock | None, source: str) -> Exported:
    if spec.conda is not None:
        raise SpecError(
            "has conda packages, which a requirements.txt cannot hold",
            source=source,
            advice="export it with --format environment.yml",
        )
    lines = list(spec.pip) if lock is None else [_locked(package, spec) for package in lock.packages]
    notes = _not_said(spec, ("git", "http", "env", "glibc"))
    if spec.python is not None:
        notes = (*notes, f"python {spec.python}: a requirements.txt does not say which Python")
    return Exported(text="".join(f"{line}\n" for line in lines), notes=notes)


def _locked(package: LockedPackage, spec: EnvSpec) -> str:
    from poncho_wq.build.host import requirement_line

    return requirement_line(package, spec).replace(" --hash", " \\\n    --hash")


def _environment(spec: EnvSpec, lock: Lock | None, name: str | None) -> Exported:
    import yaml

    pip = list(spec.pip) if lock is None else [_locked(each, spec).partition(" \\")[0] for each in lock.packages]
    if lock is not None and lock.conda:
        packages = [f"{each.name}={each.version}={each.build}" for each in lock.conda]
    elif spec.conda is not None:
        packages = list(spec.conda.packages)
    else:
        packages = [f"python={lock.python if lock else spec.python}"] if lock or spec.python else ["python"]
    notes = list(_not_said(spec, ("git", "http", "glibc")))
    pinned = [f"{package} {version}" for package, version in spec.pinned if lock is None]
    if pinned:
        notes.append(f"pinned {', '.join(pinned)}: an environment.yml pins only what it lists")
    if lock is not None and lock.packages:
        notes.append("the hashes of the pip packages: an environment.yml does not hold them")
    if pip and not any(package.split("=")[0].rpartition("::")[2] == "pip" for package in packages):
        packages.append("pip")
    channels = list(spec.conda.channels) if spec.conda is not None else []
    document: dict[str, Any] = {} if name is None else {"name": name}
    # Without `nodefaults`, conda adds the channels that whoever reads this has configured.
    document |= {"channels": [*(channels or ["conda-forge"]), "nodefaults"]}
    document["dependencies"] = [*packages, *([{"pip": pip}] if pip else [])]
    if spec.env:
        document["variables"] = dict(spec.env)
    text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=10_000)
    return Exported(text=text, notes=tuple(notes))


def _not_said(spec: EnvSpec, sections: tuple[str, ...]) -> tuple[str, ...]:
    """A note for each of ``sections`` that ``spec`` has."""
    notes = []
    for section in sections:
        value = getattr(spec, section)
        if value:
            listed = value if isinstance(value, str) else ", ".join(variable for variable, _ in value)
            notes.append(f"{section} {listed}: left out, as the format has no place for it")
    return tuple(notes)
