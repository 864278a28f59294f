"""From a name in a module to the imports it needs: the part of a source file that some code reaches.

A `Trace` follows names from statement to statement of one module. What the module imports is not followed here: the
trace lists it, with the attributes that are looked up on it, for whoever knows where that module is.
"""

from __future__ import annotations

import builtins
from collections.abc import Iterator
from dataclasses import dataclass, field

from poncho_wq.analysis.model import Import
from poncho_wq.analysis.scopes import ImportedAs, Scope, Unit, Use, scan
from poncho_wq.analysis.sources import Source
from poncho_wq.errors import AnalysisError

WHOLE = "*"  # among `Import.attributes`: the module itself is passed on, so that anything in it may be used


@dataclass(eq=False)
class Trace:
    """What has been reached in one module so far.

    `package` is what relative imports are relative to. `as_script`: the module runs as `__main__`.
    """

    source: Source
    package: str | None = None
    as_script: bool = True
    module: Scope = field(init=False)
    _headers: set[int] = field(default_factory=set, init=False)
    _wholes: set[int] = field(default_factory=set, init=False)
    _stars: set[tuple[int, str]] = field(default_factory=set, init=False)
    _found: dict[tuple[int, int], tuple[Unit, ImportedAs, set[str]]] = field(default_factory=dict, init=False)
    _pending: list[tuple[Unit, bool]] = field(default_factory=list, init=False)
    unknown: set[int] = field(default_factory=set, init=False)

    def __post_init__(self) -> None:
        self.module = scan(self.source.tree)

    # -- what to reach

    def everything(self) -> None:
        """All imports of the file, whether or not anything reaches them."""
        for scope in _all_scopes(self.module):
            for unit in scope.units:
                self._headers.add(id(unit))
                self._wholes.add(id(unit))
                self._record(unit)

    def top_level(self) -> None:
        """The imports that are not within a function."""
        for scope in _all_scopes(self.module, into_functions=False):
            for unit in scope.units:
                self._record(unit)

    def import_time(self) -> None:
        """What importing the module needs: its statements, and the functions that they use."""
        for unit in self.module.units:
            self._visit(unit, whole=False)
        self._run()

    def name(self, name: str) -> bool:
        """What a name of the module needs, used from outside; False when the module does not bind it."""
        known = name in self.module.bound
        self._use(self.module, Use(name, (), 0))
        self._run()
        return known or WHOLE in self.module.bound

    def function(self, path: str) -> bool:
        """What one function or class needs, by its dotted path; False when there is none.

        A bare name that is not at the top level is looked for everywhere, as upstream's tool does; `AnalysisError` says
        so when it is ambiguous.
        """
        wanted = path.replace("<locals>.", "")
        scopes = [scope for scope in _all_scopes(self.module) if scope.kind in ("function", "class") and scope.parent]
        chosen = [scope for scope in scopes if scope.path == wanted]
        if not chosen and "." not in wanted:
            chosen = [scope for scope in scopes if scope.name == wanted]
            places = sorted({scope.path for scope in chosen})
            if len(places) > 1:
                raise AnalysisError(
                    f"{self.source.name}: several functions are called {wanted}: {', '.join(places)}",
                    advice="name one of them with its dots",
                )
        for scope in chosen:
            self._function(scope)
        self._run()
        return bool(chosen)

    # -- what was reached

    def imports(self) -> Iterator[Import]:
        """The imports reached so far, in the order of the file."""
        for unit, alias, attributes in sorted(self._found.values(), key=lambda found: found[1].line):
            never = unit.guard.never
            if unit.guard.main and not self.as_script:
                never = never or "runs only when the file is a script"
            yield Import(
                module=alias.module,
                names=(alias.name,) if alias.name else (),
                attributes=tuple(sorted(attributes)),
                level=alias.level,
                package=alias.package or self.package,
                place=self.source.place(alias.line),
                optional=unit.guard.optional,
                never=never,
                how=alias.how,
            )

    # -- how

    def _function(self, scope: Scope) -> None:
        assert scope.owner is not None
        outer = scope.parent
        while outer is not None and outer.owner is not None:
            if outer.kind == "class":  # a method needs its class to exist, though not the other methods
                self._visit(outer.owner, whole=False)
            outer = outer.parent
        if scope.kind == "class":
            self._visit(scope.owner, whole=True)
            return
        self._visit(scope.owner, whole=False)
        for inner in _all_scopes(scope):
            for unit in inner.units:
                self._visit(unit, whole=True)

    def _visit(self, unit: Unit, *, whole: bool) -> None:
        seen = self._wholes if whole else self._headers
        if id(unit) not in seen and id(unit) not in self._wholes:
            seen.add(id(unit))
            self._pending.append((unit, whole))

    def _run(self) -> None:
        while self._pending:
            unit, whole = self._pending.pop()
            self._record(unit)
            if unit.guard.never or (unit.guard.main and not self.as_script):
                continue
            for use in unit.uses:
                self._use(unit.scope, use)
            for child in unit.children:
                if whole or child.kind != "function":
                    for inner in child.units:
                        self._visit(inner, whole=whole)

    def _record(self, unit: Unit) -> None:
        self.unknown.update(unit.unknown)
        for position, alias in enumerate(unit.imports):
            self._found.setdefault((id(unit), position), (unit, alias, set()))

    def _use(self, scope: Scope, use: Use) -> None:
        found = scope.find(use.name)
        if found is None:
            self._unbound(use)
            return
        owner, units = found
        if owner.kind == "class" and owner.parent and units and not any(unit.line < use.line for unit in units):
            self._use(owner.parent, use)  # `name = name` in a class: not bound there yet
        if not self._imported(units, use):
            for unit in units:
                self._visit(unit, whole=True)
        for unit in owner.touched.get(use.name, ()) if owner.kind == "module" else ():
            self._visit(unit, whole=True)
        self._on_self(owner, use)

    def _unbound(self, use: Use) -> None:
        """A name that nothing here binds: a builtin, or what one of the star imports brought."""
        if hasattr(builtins, use.name) or use.name.startswith("__"):
            return
        for unit in self.module.bound.get(WHOLE, ()):
            self._record(unit)
            self._found[(id(unit), 0)][2].add(use.name)

    def _imported(self, units: list[Unit], use: Use) -> bool:
        """Note what is looked up on an imported name; False when a statement other than an import binds it too."""
        aliases = [
            (unit, position, alias)
            for unit in units
            for position, alias in enumerate(unit.imports)
            if alias.binds == use.name
        ]
        fitting = [each for each in aliases if _rest(each[2], use) is not None]
        for unit, position, alias in fitting or aliases:
            self._record(unit)
            self._headers.add(id(unit))
            rest = _rest(alias, use)
            self._found[(id(unit), position)][2].add(WHOLE if rest == () else ".".join(rest or ()))
            self._found[(id(unit), position)][2].discard("")
        return len(aliases) == len(units)

    def _on_self(self, owner: Scope, use: Use) -> None:
        """`self.other()` in a method reaches the other method of the class."""
        if owner.kind != "function" or owner.first_parameter != use.name or not use.attributes:
            return
        if owner.parent is not None and owner.parent.kind == "class":
            for unit in owner.parent.bound.get(use.attributes[0], ()):
                self._visit(unit, whole=True)


def _rest(alias: ImportedAs, use: Use) -> tuple[str, ...] | None:
    """What `use` looks up on what `alias` imports; None when it is about another submodule.

    `import a.b` and `import a.c` both bind `a`; `a.b.x` is about the first.
    """
    if alias.whole:
        return use.attributes
    module, chain = alias.module.split("."), [use.name, *use.attributes]
    common = min(len(module), len(chain))
    if module[:common] != chain[:common]:
        return None
    return tuple(chain[common:]) if len(chain) > len(module) else ("",) if len(chain) < len(module) else ()


def _all_scopes(top: Scope, *, into_functions: bool = True) -> Iterator[Scope]:
    pending = [top]
    while pending:
        scope = pending.pop()
        yield scope
        for unit in scope.units:
            pending.extend(child for child in unit.children if into_functions or child.kind != "function")
