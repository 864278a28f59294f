"""How two environments differ, package by package."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from poncho_wq.described import Described
from poncho_wq.errors import SpecError
from poncho_wq.lock import Lock
from poncho_wq.packing.parts import Parts
from poncho_wq.packing.ranges import Carrier, assemble, members_of
from poncho_wq.spec import EnvSpec


@dataclass(frozen=True, kw_only=True)
class Change:
    """One difference: ``before`` is None for what was added, ``after`` for what was removed."""

    section: str
    name: str
    before: str | None
    after: str | None

    def __str__(self) -> str:
        if self.before is None:
            return f"+ {self.section:<9} {self.name} {self.after}".rstrip()
        if self.after is None:
            return f"- {self.section:<9} {self.name} {self.before}".rstrip()
        return f"~ {self.section:<9} {self.name} {self.before or '(any)'} → {self.after or '(any)'}"

    def to_dict(self) -> dict[str, str | None]:
        """As JSON has it."""
        return dict(vars(self))


@dataclass(frozen=True, kw_only=True)
class Sending:
    """What a worker that has one environment is sent for another, of ``size`` bytes: ``bytes`` by Work Queue;
    ``vine_bytes`` by TaskVine, which are ``parts`` of ``all_parts``."""

    bytes: int
    size: int
    vine_bytes: int
    parts: int
    all_parts: int

    def __str__(self) -> str:
        if not self.bytes:
            return f"to send     nothing of {self.size:,} bytes"
        text = f"to send     {self.bytes:,} of {self.size:,} bytes"
        if self.all_parts > 1:
            return f"{text} (TaskVine: {self.vine_bytes:,}, {self.parts} of {self.all_parts} parts)"
        return f"{text} (one file)" if self.bytes == self.size else text

    def to_dict(self) -> dict[str, int]:
        """As JSON has it."""
        return dict(vars(self))


def sending(one: Described, two: Described) -> Sending | None:
    """What a worker that has the tarball ``one`` is sent for the tarball ``two``; None where these are no tarballs of
    ours."""
    if one.manifest is None or two.manifest is None:
        return None
    size = two.manifest.size
    if one.manifest.identity == two.manifest.identity:
        return Sending(bytes=0, size=size, vine_bytes=0, parts=0, all_parts=1)
    assembly = assemble(members_of(two.manifest), [Carrier.of("one", members_of(one.manifest))])
    sent = size if assembly is None else assembly.sent
    before, after = Parts.of(one.manifest), Parts.of(two.manifest)
    if after is None:
        return Sending(bytes=sent, size=size, vine_bytes=size, parts=1, all_parts=1)
    new = after.beyond(before.names() if before is not None else ())
    return Sending(
        bytes=sent, size=size, vine_bytes=sum(part.length for part in new), parts=len(new), all_parts=len(after.parts)
    )


def compare(one: Described, two: Described) -> tuple[Change, ...]:
    """What changes from ``one`` to ``two``, sorted.

    Where both are locked, exact packages are compared; otherwise what their specifications ask for.
    Raises ``SpecError`` for an environment of another tool, of which nothing is known.
    """
    for each in (one, two):
        if each.spec is None:
            raise SpecError("was made by another tool, and does not say what is in it", source=each.source)
    assert one.spec is not None
    assert two.spec is not None
    locked = one.lock is not None and two.lock is not None
    before, after = _items(one.spec, one.lock if locked else None), _items(two.spec, two.lock if locked else None)
    return tuple(
        Change(section=key[0], name=key[1], before=before.get(key), after=after.get(key))
        for key in sorted({*before, *after})
        if before.get(key) != after.get(key)
    )


def _items(spec: EnvSpec, lock: Lock | None) -> Mapping[tuple[str, str], str]:
    """(section, name) → what is said of it."""
    return dict(_of_lock(lock) if lock is not None else _of_packages(spec)) | dict(_of_rest(spec))


def _of_lock(lock: Lock) -> Iterator[tuple[tuple[str, str], str]]:
    yield ("python", ""), lock.python
    yield ("platform", ""), lock.platform
    for package in lock.packages:
        commit = f" ({package.commit[:12]})" if package.commit else ""
        yield ("pip", package.name), f"{package.version or ''}{commit}"
    for each in lock.conda:
        yield ("conda", each.name), f"{each.version}={each.build}"


def _of_packages(spec: EnvSpec) -> Iterator[tuple[tuple[str, str], str]]:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    if spec.python is not None:
        yield ("python", ""), spec.python
    found: dict[tuple[str, str], list[str]] = {}
    for text in spec.pip:
        name: str = canonicalize_name(Requirement(text).name)
        found.setdefault(("pip", name), []).append(text.removeprefix(name))
    for text in spec.conda.packages if spec.conda else ():
        name = matchspec_name(text)
        found.setdefault(("conda", name), []).append(text.removeprefix(name))
    for key, texts in found.items():
        yield key, " and ".join(text.strip() for text in texts)


def _of_rest(spec: EnvSpec) -> Iterator[tuple[tuple[str, str], str]]:
    if spec.conda is not None:
        yield ("channels", ""), ", ".join(spec.conda.channels)
    if spec.glibc is not None:
        yield ("glibc", ""), spec.glibc
    for name, version in spec.pinned:
        yield ("pinned", name), version
    for name, value in spec.env:
        yield ("env", name), value
    for variable, source in spec.git:
        yield ("git", variable), _words(vars(source))
    for variable, download in spec.http:
        yield ("http", variable), _words(vars(download))


def _words(fields: Mapping[str, Any]) -> str:
    return " ".join(str(value) for value in fields.values() if value is not None)


def matchspec_name(text: str) -> str:
    """The name of the package in a MatchSpec as ``EnvSpec`` spells it."""
    name = text.rpartition("::")[2]
    for at, character in enumerate(name):
        if character in " =<>!~[":
            return name[:at]
    return name
