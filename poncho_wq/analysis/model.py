"""The values that analysis passes on: imports, what was decided about each, and what a piece of code reaches."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from poncho_wq.distributions import Distribution
    from poncho_wq.spec import EnvSpec

Status = Literal["in", "out", "local", "unresolved"]


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where an import was seen. `cell` counts the code cells of a notebook from 1; `line` is then within the cell."""

    file: str
    line: int
    cell: int | None = None

    @property
    def where(self) -> str:
        """The file, with the cell of a notebook: what stands before the line number in a message."""
        return self.file if self.cell is None else f"{self.file}[cell {self.cell}]"

    def __str__(self) -> str:
        return f"{self.where}:{self.line}"


@dataclass(frozen=True, kw_only=True)
class Import:
    """One imported module, as written.

    `names` are what was taken from it (`from module import name`) and may be modules themselves; `attributes` what the
    code looks up on it (`module.a.b` is `("a.b",)`). `level` counts the leading dots of a relative import, `package` is
    what they are relative to. `optional`: absence is handled (`except ImportError`). `never`: why it does not run here.
    `how` says in words how it is reached.
    """

    module: str
    names: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()
    level: int = 0
    package: str | None = None
    place: Place
    optional: bool = False
    never: str | None = None
    how: str = "imported"

    @property
    def spelled(self) -> str:
        """The module as the code spells it, dots included."""
        return "." * self.level + self.module

    def absolute(self) -> str | None:
        """The absolute name of a relative import; None where the package it is relative to is not known."""
        if not self.level:
            return self.module
        parts = self.package.split(".") if self.package else []
        if len(parts) < self.level:
            return None
        base = ".".join(parts[: len(parts) - self.level + 1])
        return f"{base}.{self.module}" if self.module else base


@dataclass(frozen=True, kw_only=True)
class LocalModule:
    """Code that no package manager knows, to be shipped with a function task.

    `path` is its file or package directory, which lies in `root`: with `root` (or a copy of `path` in another folder)
    on `sys.path` it is imported as `name`. `distribution` is the editable install or folder it comes from, if any.
    """

    name: str
    path: Path
    root: Path
    distribution: str | None = None


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What was decided about one import, and why.

    `status` is "in" (`providers` go into the environment), "out" (nothing is needed), "local" (`local` has to travel
    with the task; the tools refuse it) or "unresolved" (nothing provides it).
    """

    imported: Import
    status: Status
    reason: str
    providers: tuple[Distribution, ...] = ()
    local: LocalModule | None = None
    own_code: bool = False  # unresolved because it is the user's own code, which no package manager knows
    remark: str | None = None  # what a user should be told although nothing is wrong

    def to_dict(self) -> dict[str, Any]:
        """For `--json`: plain values only."""
        seen = self.imported
        return {
            "module": seen.spelled,
            "names": list(seen.names),
            "file": seen.place.where,
            "line": seen.place.line,
            "status": self.status,
            "reason": self.reason,
            "how": seen.how,
            "provided_by": [each.requirement for each in self.providers],
            "local": str(self.local.path) if self.local else None,
        }


@dataclass(frozen=True, kw_only=True)
class Reach:
    """Everything that some code needs: what to install, what to ship, and what could not be found.

    `distributions` go into the environment, `local_modules` travel with the task. `by_value` names the local modules
    whose functions and classes are to be pickled by value, as `__main__`'s are: the module that the function itself
    lives in. `sources` are the local files that were read: when one of them changes, so may the answer.
    """

    verdicts: tuple[Verdict, ...] = ()
    distributions: tuple[Distribution, ...] = ()
    local_modules: tuple[LocalModule, ...] = ()
    by_value: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()
    sources: tuple[Path, ...] = ()
    _base: tuple[tuple[str, Any], ...] = field(default=(), repr=False)

    @property
    def imports(self) -> tuple[Import, ...]:
        """Every import that was looked at, also those that nothing is needed for."""
        return tuple(each.imported for each in self.verdicts)

    @property
    def unresolved(self) -> tuple[Verdict, ...]:
        """The imports that nothing provides."""
        return tuple(each for each in self.verdicts if each.status == "unresolved")

    @cached_property
    def spec(self) -> EnvSpec:
        """The environment that holds `distributions`, pinned to what is installed."""
        from poncho_wq.spec import EnvSpec

        return EnvSpec.from_dict(dict(self._base), source="analysis")
