"""Who uses which name: the scopes of a module, their statements, and what each statement binds, uses and imports.

The unit is a statement, because that is what has to run for a name to exist: following names from unit to unit gives
what a function needs and no more (`modules` does that). The tree is walked with a stack of its own: Python parses
`elif` chains and sums deeper than its own recursion goes.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from poncho_wq.analysis import guards
from poncho_wq.analysis.guards import NO_GUARD, Guard

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_TRIES: tuple[type, ...] = tuple(getattr(ast, name) for name in ("Try", "TryStar") if hasattr(ast, name))
# PEP 649: from 3.14 on nobody evaluates an annotation until it is asked for.
_ANNOTATIONS_RUN = sys.version_info < (3, 14)


class Use(NamedTuple):
    """A name that is looked up, with the attributes looked up on it: `("np", ("linalg", "norm"))`."""

    name: str
    attributes: tuple[str, ...]
    line: int


class ImportedAs(NamedTuple):
    """One alias of an import statement, or a call that imports a module by its literal name.

    `name` is None for `import module`, else what is taken from it (`*` too). `binds` is the name it gives, if any;
    `whole` says whether that name stands for `module` itself rather than for its first part.
    """

    module: str
    name: str | None
    level: int
    binds: str | None
    whole: bool
    line: int
    how: str = "imported"
    package: str | None = None


@dataclass(eq=False)
class Unit:
    """A statement (of a compound one: its header), in the scope that it runs in."""

    scope: Scope
    line: int
    guard: Guard
    uses: list[Use] = field(default_factory=list)
    imports: list[ImportedAs] = field(default_factory=list)
    children: list[Scope] = field(default_factory=list)
    unknown: list[int] = field(default_factory=list)  # lines that import a module whose name is computed


@dataclass(eq=False)
class Scope:
    """A module, class, function, lambda or comprehension, and the statements in it."""

    kind: str  # "module", "class", "function" or "comprehension"
    name: str
    parent: Scope | None
    line: int = 1
    owner: Unit | None = None  # the statement in the parent that this scope is part of
    units: list[Unit] = field(default_factory=list)
    bound: dict[str, list[Unit]] = field(default_factory=dict)
    touched: dict[str, list[Unit]] = field(default_factory=dict)  # `name[…] = value`, `name.attribute = value`
    elsewhere: dict[str, str] = field(default_factory=dict)  # name → "global" or "nonlocal"
    first_parameter: str | None = None

    @property
    def path(self) -> str:
        """Dotted name within the module, `Class.method`; empty for the module itself."""
        if self.parent is None:
            return ""
        before = self.parent.path
        return f"{before}.{self.name}" if before else self.name

    def find(self, name: str) -> tuple[Scope, list[Unit]] | None:
        """The scope that `name` means when used here, and the statements that bind it; None for a builtin."""
        scope: Scope | None = self
        while scope is not None:
            if name in scope.bound and (scope is self or scope.kind != "class"):
                return scope, scope.bound[name]
            scope = scope.parent
        return None


def scan(tree: ast.Module) -> Scope:
    """The scope of a module, with all those within it."""
    future = any(
        isinstance(node, ast.ImportFrom)
        and node.module == "__future__"
        and any(alias.name == "annotations" for alias in node.names)
        for node in tree.body
    )
    builder = _Builder(annotations_run=_ANNOTATIONS_RUN and not future)
    return builder.build(tree)


class _Builder:
    def __init__(self, *, annotations_run: bool) -> None:
        self.annotations_run = annotations_run
        self.module = Scope("module", "", None)
        self.scopes = [self.module]
        # What is still to be visited: a statement with its guard, or an expression with its unit.
        self.pending: list[tuple[ast.AST, Scope, Guard, Unit | None]] = []

    def build(self, tree: ast.Module) -> Scope:
        self._body(tree.body, self.module, NO_GUARD)
        while self.pending:
            node, scope, guard, unit = self.pending.pop()
            if isinstance(node, ast.stmt):
                self._statement(node, scope, guard)
            elif unit is not None:
                self._expression(node, unit)
        self._settle()
        return self.module

    def _settle(self) -> None:
        """Move what `global` and `nonlocal` bind to where it belongs."""
        for scope in self.scopes:
            for name, where in scope.elsewhere.items():
                units = scope.bound.pop(name, [])
                target: Scope | None = self.module
                if where == "nonlocal":
                    target = scope.parent
                    while target is not None and (target.kind != "function" or name not in target.bound):
                        target = target.parent
                if target is not None:
                    target.bound.setdefault(name, []).extend(units)

    # -- statements

    def _body(self, body: list[ast.stmt], scope: Scope, guard: Guard) -> None:
        # Reversed, so that the stack gives them back in order.
        self.pending.extend((statement, scope, guard, None) for statement in reversed(body))

    def _unit(self, node: ast.AST, scope: Scope, guard: Guard) -> Unit:
        unit = Unit(scope=scope, line=getattr(node, "lineno", scope.line), guard=guard)
        scope.units.append(unit)
        return unit

    def _scope(self, kind: str, name: str, unit: Unit, line: int) -> Scope:
        scope = Scope(kind, name, unit.scope, line=line, owner=unit)
        unit.children.append(scope)
        self.scopes.append(scope)
        return scope

    def _queue(self, nodes: Iterable[ast.AST | None], unit: Unit) -> None:
        """Expressions of `unit`: its scope is where their names are looked up."""
        self.pending.extend((node, unit.scope, unit.guard, unit) for node in nodes if node is not None)

    def _statement(self, node: ast.stmt, scope: Scope, guard: Guard) -> None:
        unit = self._unit(node, scope, guard)
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            self._import(node, unit)
        elif isinstance(node, _FUNCTIONS):
            self._function(node, unit)
        elif isinstance(node, ast.ClassDef):
            self._class(node, unit)
        elif isinstance(node, (ast.Global, ast.Nonlocal)):
            where = "global" if isinstance(node, ast.Global) else "nonlocal"
            scope.elsewhere.update(dict.fromkeys(node.names, where))
        elif isinstance(node, ast.AnnAssign):
            self._annotated(node, unit)
        elif isinstance(node, ast.If):
            self._queue([node.test], unit)
            then, otherwise = guards.of_if(node.test, guard)
            self._body(node.orelse, scope, otherwise)
            self._body(node.body, scope, then)
        elif isinstance(node, _TRIES):
            self._try(node, unit)  # type: ignore[arg-type]  # TryStar has the same fields
        else:
            self._other(node, unit)

    def _other(self, node: ast.stmt, unit: Unit) -> None:
        """Any statement without rules of its own: expressions belong to it, statements stand for themselves."""
        guard = unit.guard
        if isinstance(node, (ast.With, ast.AsyncWith)):
            guard = guards.of_with(node.items, guard)
        self._queue((child for child in _children(node) if not isinstance(child, ast.stmt)), unit)
        for _, value in ast.iter_fields(node):
            if isinstance(value, list) and value and isinstance(value[0], ast.stmt):
                self._body(value, unit.scope, guard)
        if isinstance(node, ast.Match):
            for case in node.cases:
                self._body(case.body, unit.scope, guard)

    def _try(self, node: ast.Try, unit: Unit) -> None:
        tried, finally_ = guards.of_try(node, unit.guard)
        self._body(node.finalbody, unit.scope, finally_)
        self._body(node.orelse, unit.scope, tried)
        for handler in reversed(node.handlers):
            if handler.name:
                self._bind(unit.scope, handler.name, unit)
            if handler.type is not None:
                self._queue([handler.type], unit)
            self._body(handler.body, unit.scope, tried)
        self._body(node.body, unit.scope, tried)

    def _annotated(self, node: ast.AnnAssign, unit: Unit) -> None:
        self._queue([node.target, node.value], unit)
        # Within a function annotations of variables are never evaluated (PEP 526).
        if self.annotations_run and unit.scope.kind != "function":
            self._queue([node.annotation], unit)

    def _import(self, node: ast.Import | ast.ImportFrom, statement: Unit) -> None:
        scope = statement.scope
        scope.units.remove(statement)
        for alias in node.names:
            # Each alias is a unit: using one of `import a, b` needs only that one.
            unit = self._unit(node, scope, statement.guard)
            if isinstance(node, ast.Import):
                whole = alias.asname is not None or "." not in alias.name
                binds: str | None = alias.asname or alias.name.partition(".")[0]
                found = ImportedAs(alias.name, None, 0, binds, whole, node.lineno)
            else:
                binds = None if alias.name == "*" else alias.asname or alias.name
                found = ImportedAs(node.module or "", alias.name, node.level, binds, True, node.lineno)
            unit.imports.append(found)
            self._bind(scope, found.binds or "*", unit)

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef, unit: Unit) -> None:
        self._bind(unit.scope, node.name, unit)
        self._queue(node.decorator_list, unit)
        inner = self._scope("function", node.name, unit, node.lineno)
        types = self._type_parameters(node, inner, unit)
        self._parameters(node.args, inner, unit, annotated=types)
        if self.annotations_run and node.returns is not None:
            self._queue([node.returns], types)
        self._body(node.body, inner, unit.guard.within_function())

    def _class(self, node: ast.ClassDef, unit: Unit) -> None:
        self._bind(unit.scope, node.name, unit)
        self._queue(node.decorator_list, unit)
        inner = self._scope("class", node.name, unit, node.lineno)
        types = self._type_parameters(node, inner, unit)
        self._queue([*node.bases, *(word.value for word in node.keywords)], types)
        self._body(node.body, inner, unit.guard)

    def _type_parameters(self, node: ast.AST, inner: Scope, unit: Unit) -> Unit:
        """The unit in which annotations and bases are looked up: one that knows the type parameters, if any."""
        names = [parameter.name for parameter in getattr(node, "type_params", ())]
        if not names:
            return unit
        around = self._scope("comprehension", "<type parameters>", unit, unit.line)
        for name in names:
            inner.bound.setdefault(name, [])
            around.bound.setdefault(name, [])
        return self._unit(node, around, unit.guard)

    def _parameters(self, args: ast.arguments, inner: Scope, unit: Unit, annotated: Unit | None = None) -> None:
        every = [*args.posonlyargs, *args.args, *args.kwonlyargs]
        if every:
            inner.first_parameter = every[0].arg
        every.extend(each for each in (args.vararg, args.kwarg) if each is not None)
        for parameter in every:
            inner.bound.setdefault(parameter.arg, [])
            if self.annotations_run and parameter.annotation is not None:
                self._queue([parameter.annotation], annotated or unit)
        self._queue([*args.defaults, *args.kw_defaults], unit)

    # -- expressions

    def _bind(self, scope: Scope, name: str, unit: Unit) -> None:
        scope.bound.setdefault(name, []).append(unit)

    def _expression(self, node: ast.AST, unit: Unit) -> None:
        if isinstance(node, ast.Name):
            self._name(node, unit)
        elif isinstance(node, (ast.Attribute, ast.Subscript)):
            self._attribute(node, unit)
        elif isinstance(node, ast.Lambda):
            inner = self._scope("function", "<lambda>", unit, node.lineno)
            self._parameters(node.args, inner, unit)
            self._queue([node.body], self._unit(node, inner, unit.guard.within_function()))
        elif isinstance(node, _COMPREHENSIONS):
            self._comprehension(node, unit)
        elif isinstance(node, ast.NamedExpr):
            target = unit.scope
            while target.kind == "comprehension" and target.parent is not None:
                target = target.parent
            self._bind(target, node.target.id, unit)
            self._queue([node.value], unit)
        elif isinstance(node, ast.match_case):
            self._queue([node.pattern, node.guard], unit)
        else:
            self._general(node, unit)

    def _general(self, node: ast.AST, unit: Unit) -> None:
        if isinstance(node, ast.Call):
            self._call(node, unit)
        for name in (getattr(node, "name", None), getattr(node, "rest", None)):
            if isinstance(name, str) and isinstance(node, ast.pattern):  # captures of `match`
                self._bind(unit.scope, name, unit)
        self._queue(_children(node), unit)

    def _name(self, node: ast.Name, unit: Unit) -> None:
        if isinstance(node.ctx, ast.Load):
            unit.uses.append(Use(node.id, (), node.lineno))
        else:
            self._bind(unit.scope, node.id, unit)

    def _attribute(self, node: ast.Attribute | ast.Subscript, unit: Unit) -> None:
        base: ast.expr = node
        attributes: list[str] = []
        while isinstance(base, (ast.Attribute, ast.Subscript)):
            if isinstance(base, ast.Attribute):
                attributes.append(base.attr)
            else:
                self._queue([base.slice], unit)
                attributes.clear()  # what is looked up on an item is not looked up on the name
            base = base.value
        if not isinstance(base, ast.Name):
            self._queue([base], unit)
            return
        unit.uses.append(Use(base.id, tuple(reversed(attributes)), node.lineno))
        if not isinstance(node.ctx, ast.Load):
            unit.scope.touched.setdefault(base.id, []).append(unit)

    def _comprehension(self, node: ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp, unit: Unit) -> None:
        inner = self._scope("comprehension", "<comprehension>", unit, node.lineno)
        within = self._unit(node, inner, unit.guard)
        for position, generator in enumerate(node.generators):
            # The first iterable is evaluated outside, which matters in a class.
            self._queue([generator.iter], unit if position == 0 else within)
            self._queue([generator.target, *generator.ifs], within)
        results = [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]
        self._queue(results, within)

    def _call(self, node: ast.Call, unit: Unit) -> None:
        """`importlib.import_module("name")` and `__import__("name")` are imports; with a computed name, a remark."""
        called = (guards.dotted(node.func) or "").rpartition(".")[2]
        if called not in ("import_module", "__import__"):
            return
        given = {word.arg: word.value for word in node.keywords if word.arg}
        given.update(zip(("name", "package" if called == "import_module" else "globals"), node.args, strict=False))
        if called == "__import__" and len(node.args) > 3:
            given["fromlist"] = node.args[3]
        name, package = given.get("name"), given.get("package")
        if not (isinstance(name, ast.Constant) and isinstance(name.value, str)):
            unit.unknown.append(node.lineno)
            return
        level = len(name.value) - len(name.value.lstrip("."))
        relative_to = package.value if isinstance(package, ast.Constant) and isinstance(package.value, str) else None
        for taken in _strings(given.get("fromlist")) or [None]:
            unit.imports.append(
                ImportedAs(name.value[level:], taken, level, None, True, node.lineno, f"{called}()", relative_to)
            )


def _children(node: ast.AST) -> list[ast.AST]:
    """`ast.iter_child_nodes`, at half its cost: most of the time goes here."""
    found: list[ast.AST] = []
    for name in node._fields:
        value = getattr(node, name, None)
        if isinstance(value, ast.AST):
            found.append(value)
        elif isinstance(value, list):
            found.extend(each for each in value if isinstance(each, ast.AST))
    return found


def _strings(node: ast.expr | None) -> list[str | None]:
    if not isinstance(node, (ast.List, ast.Tuple)):
        return []
    return [each.value for each in node.elts if isinstance(each, ast.Constant) and isinstance(each.value, str)]
