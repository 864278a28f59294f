"""What to do about each import: into the environment, nothing, along with the task, or a refusal that says why."""

from __future__ import annotations

import os
import re
import sys
import sysconfig
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from poncho_wq.analysis.metadata import module_file
from poncho_wq.analysis.model import Import, Reach, Status, Verdict
from poncho_wq.analysis.modules import WHOLE
from poncho_wq.distributions import Distribution, Found, Installed
from poncho_wq.errors import AnalysisError, UnresolvedImport, UnresolvedImportError

_BARE_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")
_STANDARD = sys.stdlib_module_names | set(sys.builtin_module_names) | {"__main__"}
# Left the standard library in 3.12 (PEP 594, PEP 632 and bpo) and 3.13 (PEP 594).
_FORMERLY_STANDARD = frozenset(
    """asynchat asyncore distutils imp smtpd aifc audioop cgi cgitb chunk crypt imghdr lib2to3 mailcap msilib nis
    nntplib ossaudiodev pipes sndhdr spwd sunau telnetlib uu xdrlib""".split()  # noqa: SIM905 - a list of words
)

_ADVICE_MISSING = (
    "Install what is missing where you run this, or name the package that provides it: --pkg-mapping IMPORT=NAME."
)
_ADVICE_LOCAL = (
    "Local code is no package: install it as one (a wheel that an index has), or submit a function with PonchoTask, "
    "which ships local modules with the task."
)


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What the user decided: `mapping` from import name (dotted, too) to package, and `extra` packages."""

    mapping: Mapping[str, str] = field(default_factory=dict)
    extra: tuple[str, ...] = ()


@dataclass
class Resolver:
    """Decides about imports, by what is installed.

    `ships`: local code travels with the task (functions) rather than being refused (the tools).
    """

    installed: Installed
    choices: Choices = field(default_factory=Choices)
    ships: bool = False
    _known: dict[tuple[str, tuple[str, ...], Path | None], Found | None] = field(default_factory=dict, init=False)

    def verdict(self, imported: Import, *, beside: Path | None = None, file: Path | None = None) -> Verdict:
        """Decide about one import of code that lies in the directory `beside`.

        `file` is where the module was loaded from, when it was.
        """
        if imported.never is not None:
            return Verdict(imported=imported, status="out", reason=imported.never)
        if imported.level and not (self.ships and imported.absolute()):
            return self._missing(imported, "a relative import, which needs a package around the file", own_code=True)
        module = imported.absolute() or imported.module
        mapped = self._mapped(module, imported)
        if mapped is not None:
            name = self.choices.mapping[mapped]
            chosen = self.package(name)
            return Verdict(
                imported=imported, status="in", reason=f"you said that {name} provides it", providers=(chosen,),
                remark=chosen.remark,
            )  # fmt: skip
        if module.partition(".")[0] in _STANDARD:
            return self._standard(imported, module, file, beside)
        found = None
        if file is not None:
            found = self.installed.at(module, file)
        if found is None:
            found = self._find(module, imported, beside)
        return self._judge(imported, module, found)

    def _standard(self, imported: Import, module: str, file: Path | None, beside: Path | None) -> Verdict:
        """The standard library, unless a local file of that name was loaded in its place."""
        top = module.partition(".")[0]
        if file is not None and module == top and not _is_standard(file):
            why = f"{file} hides a module of the standard library, and would not do so on a worker"
            return self._missing(imported, why, own_code=True)
        remark = None
        if beside is not None and (here := module_file(beside, top)) is not None and not _is_standard(here):
            remark = f"{imported.place}: {top} is taken for the standard library's, not for {here}"
        return Verdict(imported=imported, status="out", reason="standard library", remark=remark)

    def package(self, name: str) -> Distribution:
        """A package that the user named: the installed version, or whatever there is. Raises `AnalysisError`."""
        name = name.strip()
        if not _BARE_NAME.fullmatch(name):
            return self._requirement(name)
        known = self.installed.named(name)
        if known is None:
            kind: Any = "conda" if self.installed.conda else "pip"
            remark = f"{name}: not installed here, so that its version is left open"
            return Distribution(name=name, version=None, requirement=name, kind=kind, remark=remark)
        if known.folder is not None:
            raise AnalysisError(
                f"{name}: installed from the folder {known.folder}, which means nothing on another machine",
                advice="build a wheel of it (`pip wheel .`) and install that file",
            )
        return known

    def _requirement(self, text: str) -> Distribution:
        """A package with a version or more, as the user wrote it."""
        from packaging.requirements import InvalidRequirement, Requirement

        try:
            parsed = Requirement(text)
        except InvalidRequirement:
            if self.installed.conda and text:
                return Distribution(name=text, version=None, requirement=text, kind="conda")
            raise AnalysisError(f"{text!r} is neither the name of a package nor a PEP 508 requirement") from None
        record = self.installed.conda.named(parsed.name) if self.installed.conda else None
        return Distribution(name=parsed.name, version=None, requirement=text, kind="pip" if record is None else "conda")

    def _mapped(self, module: str, imported: Import) -> str | None:
        """The longest part of the dotted name that the user gave a package for."""
        spelled = [f"{module}.{name}" for name in imported.names] + [module]
        for whole in spelled:
            parts = whole.split(".")
            for length in range(len(parts), 0, -1):
                if ".".join(parts[:length]) in self.choices.mapping:
                    return ".".join(parts[:length])
        return None

    def _find(self, module: str, imported: Import, beside: Path | None) -> Found | None:
        names = tuple(name for name in imported.names if name != WHOLE) or ("",)
        looked_up = tuple(each for each in imported.attributes if each != WHOLE) or ("",)
        candidates = tuple(dict.fromkeys(f"{n}.{a}".strip(".") for n in names for a in looked_up))
        key = (module, candidates, beside)
        if key not in self._known:
            self._known[key] = self.installed.find(module, [each for each in candidates if each], beside=beside)
        return self._known[key]

    def _judge(self, imported: Import, module: str, found: Found | None) -> Verdict:
        if found is None:
            gone = module.partition(".")[0] in _FORMERLY_STANDARD
            why = "left the standard library before this Python" if gone else "no installed package provides it"
            return self._missing(imported, why)
        if found.unclaimed is not None:
            return self._missing(imported, f"{found.unclaimed} belongs to no package that pip or conda knows")
        if found.local is not None:
            of = f" of {found.local.distribution}" if found.local.distribution else ""
            if self.ships:
                return Verdict(
                    imported=imported, status="local", local=found.local, reason=f"local code{of}: {found.local.path}"
                )
            kind = f"an editable install{of}" if of else "a local module"
            return self._missing(imported, f"{kind}: {found.local.path}", own_code=True)
        folders = [each for each in found.distributions if each.folder is not None]
        if folders:
            return self._from_folder(imported, module, folders[0])
        return Verdict(
            imported=imported,
            status="in",
            reason="provided by " + ", ".join(_label(each) for each in found.distributions),
            providers=found.distributions,
            remark="; ".join(each.remark for each in found.distributions if each.remark) or None,
        )

    def _from_folder(self, imported: Import, module: str, owner: Distribution) -> Verdict:
        """Installed by `pip install FOLDER`: a copy in site-packages that no index has."""
        if self.ships:
            local = self.installed.copy_of(module, owner)
            if local is not None:
                return Verdict(
                    imported=imported, status="local", local=local, reason=f"installed from the folder {owner.folder}"
                )
        why = f"{_label(owner)} was installed from the folder {owner.folder}"
        return self._missing(imported, why, own_code=True)

    def _missing(self, imported: Import, why: str, *, own_code: bool = False) -> Verdict:
        status: Status = "unresolved"
        remark = None
        if imported.optional:
            status, why = "out", f"optional (its absence is handled): {why}"
            remark = f"{imported.place}: {imported.spelled} left out: {why}"
        return Verdict(imported=imported, status=status, reason=why, own_code=own_code, remark=remark)


def _is_standard(file: Path) -> bool:
    places = {os.path.realpath(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib")}
    real = Path(os.path.realpath(file))
    inside = any(real.is_relative_to(place) for place in places)
    return inside and not any(part in ("site-packages", "dist-packages") for part in real.parts)


def _label(distribution: Distribution) -> str:
    return f"{distribution.name} {distribution.version}" if distribution.version else distribution.name


def gather(
    verdicts: Iterable[Verdict],
    resolver: Resolver,
    *,
    by_value: Iterable[str] = (),
    notes: Sequence[str] = (),
    sources: Iterable[Path] = (),
) -> Reach:
    """Put what was decided together, with the packages that the user added."""
    every = tuple(dict.fromkeys(verdicts))
    extra = tuple(resolver.package(name) for name in resolver.choices.extra)
    providers = {each.requirement: each for verdict in every for each in verdict.providers}
    providers.update({each.requirement: each for each in extra})
    distributions = tuple(sorted(providers.values(), key=lambda each: (each.name.lower(), each.requirement)))
    # By place as well: a namespace package may have parts in several folders.
    shipped = {(each.local.name, each.local.path): each.local for each in every if each.local is not None}
    remarks = [each.remark for each in every if each.remark] + [each.remark for each in extra if each.remark]
    held = {each.name: each for each in distributions}
    for name, path in sorted(shipped):
        for owner in resolver.installed.owners(name):
            if owner.name in held:
                remarks.append(f"{name}: {path} has the name of a module in {_label(owner)}; a task is refused both")
    return Reach(
        verdicts=every,
        distributions=distributions,
        local_modules=tuple(shipped[key] for key in sorted(shipped)),
        by_value=frozenset(by_value),
        notes=tuple(dict.fromkeys([*notes, *remarks])),
        sources=tuple(dict.fromkeys(sources)),
        _base=tuple(_specification(distributions, resolver.installed).items()),
    )


def refuse_unresolved(reach: Reach) -> Reach:
    """`reach` itself when everything was found. Raises `UnresolvedImportError` with all that was not."""
    missing = reach.unresolved
    if not missing:
        return reach
    imports = tuple(
        UnresolvedImport(
            module=each.imported.spelled or ", ".join(each.imported.names),
            file=each.imported.place.where,
            line=each.imported.place.line,
            why=each.reason,
        )
        for each in missing
    )
    advice = [_ADVICE_MISSING] if any(not each.own_code for each in missing) else []
    advice += [_ADVICE_LOCAL] if any(each.own_code for each in missing) else []
    raise UnresolvedImportError(imports=imports, advice="\n".join(advice))


def _specification(distributions: Sequence[Distribution], installed: Installed) -> dict[str, Any]:
    """The environment specification, in the format of `EnvSpec.from_dict`."""
    pip = [each.requirement for each in distributions if each.kind == "pip"]
    if installed.conda is None:
        version = ".".join(map(str, sys.version_info[:3]))
        return {"python": version, "pip": pip} if pip else {"python": version}
    records = [each.requirement for each in distributions if each.kind == "conda"]
    for name in ("python", "pip") if pip else ("python",):
        record = installed.conda.named(name)
        if record is not None and record.matchspec not in records:
            records.append(record.matchspec)
    channels = installed.conda.channels(each.partition("::")[0] for each in sorted(records) if "::" in each)
    conda = {"channels": channels, "packages": sorted(records)}
    return {"conda": conda, "pip": pip} if pip else {"conda": conda}
