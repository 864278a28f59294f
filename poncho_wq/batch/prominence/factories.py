"""Dependencies between the jobs of a workflow, and factories that make many jobs of one.

Jobs are named by their name or given as they are; JSON has names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from poncho_wq.batch.prominence import keys
from poncho_wq.specs.document import kind, one_of, required_at


@dataclass(slots=True)
class Dependency:
    """``children`` wait until ``parent`` is completed; of a factory's job, until all its instances are."""

    parent: Any
    children: list[Any]

    def to_dict(self) -> dict[str, list[str]]:
        """``{parent: [child, …]}``, all by name: an entry of ``dependencies`` in PROMINENCE's JSON."""
        return {name_of(self.parent): _names(self.children)}

    @classmethod
    def from_dict(cls, document: Mapping[str, Iterable[str]]) -> Dependency:
        """From such an entry.  Raises ``ValueError`` unless it is exactly one."""
        ((parent, children),) = document.items()
        return cls(parent, list(children))


@dataclass(slots=True)
class ParameterSet:
    """One parameter: from ``start`` to ``end``, which is included, by ``step``; or its ``values``."""

    name: str
    start: float | None = None
    end: float | None = None
    step: float | None = None
    values: list[Any] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """PROMINENCE's JSON: ``name`` with ``values`` if there are any, else with ``start``, ``end`` and ``step``."""
        if self.values:
            return {"name": self.name, "values": list(self.values)}
        return {"name": self.name, "start": self.start, "end": self.end, "step": self.step}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> ParameterSet:
        """From PROMINENCE's JSON.  Raises ``SpecError`` for a key that it does not have, or without ``name``."""
        given = keys.fields(document, keys.PARAMETER)
        required_at(keys.TOP, given, "name")
        return cls(**given)


@dataclass(slots=True)
class Factory:
    """Makes instances ``<job>_0``, ``<job>_1`` … of each of its ``jobs``, in whose commands ``$parameter`` is replaced.

    What ``ParameterSweep``, ``Zip`` and ``Repeat`` have in common.
    """

    name: str | None = None
    jobs: list[Any] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """PROMINENCE's JSON: ``name``, ``type``, the names of the ``jobs``, and ``parameters`` or ``number``."""
        return {"name": self.name, "type": _TYPES[type(self)], "jobs": _names(self.jobs)}

    @staticmethod
    def from_dict(document: Mapping[str, Any]) -> Factory:
        """The factory of the ``type`` that is named: ``parameterSweep``, ``zip`` or ``repeat``.

        What PROMINENCE once wrote is read too: ``parametricSweep``, and ``parameterSets`` for ``parameters``.
        Raises ``SpecError`` for another type or key, and without what the type needs.
        """
        given = keys.fields(document, keys.FACTORY)
        name = required_at(keys.TOP, given, "type")
        known = keys.FACTORIES.get(name) if isinstance(name, str) else None
        if known is None:
            keys.TOP.key("type").fail(f"expected {one_of(tuple(_TYPES.values()))}, got {kind(name)}")
        made = next(each for each, called in _TYPES.items() if called == known)(name=given.get("name"))
        made.jobs = [*keys.names_at(keys.TOP.key("jobs"), given.get("jobs"))]
        if isinstance(made, Repeat):
            number: Any = required_at(keys.TOP, given, "number")
            made.number = number
        elif isinstance(made, ParameterSweep | Zip):
            older = "parameterSets" in given and "parameters" not in given
            required_at(keys.TOP, given, "parameterSets" if older else "parameters")
            made.parameters = keys.each_of(given, "parameterSets" if older else "parameters", ParameterSet.from_dict)
        return made


@dataclass(slots=True)
class ParameterSweep(Factory):
    """An instance for every combination of the values of up to four ``parameters``; the last one varies fastest."""

    parameters: list[ParameterSet] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return {**Factory.to_dict(self), "parameters": [each.to_dict() for each in self.parameters]}


@dataclass(slots=True)
class Zip(Factory):
    """The i-th instance has the i-th of the values of each of ``parameters``."""

    parameters: list[ParameterSet] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return {**Factory.to_dict(self), "parameters": [each.to_dict() for each in self.parameters]}


@dataclass(slots=True)
class Repeat(Factory):
    """``number`` instances that are all alike."""

    number: int = 1

    def to_dict(self) -> dict[str, Any]:
        return {**Factory.to_dict(self), "number": self.number}


_TYPES: dict[type[Factory], str] = {ParameterSweep: "parameterSweep", Zip: "zip", Repeat: "repeat"}


def name_of(job: Any) -> str:
    """The name of a job that may be given as one."""
    return job if isinstance(job, str) else str(job.name)


def _names(jobs: Iterable[Any]) -> list[str]:
    return [name_of(job) for job in jobs]
