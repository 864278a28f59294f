"""What live code needs: from functions, classes and values in memory to imports, and on into local source files.

How a thing travels decides what it needs. What `cloudpickle` takes by value (from `__main__`, nested, a lambda, from
the module that the function itself lives in) needs what its byte code looks up, and no more. What goes by reference has
its module imported on the worker: for an installed package that is the package; for local code it is whatever the
module's statements need, read from its source, since that file is what is shipped.
"""

from __future__ import annotations

import builtins
import functools
import inspect
import os
import sys
import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from poncho_wq.analysis.bytecode import CodeUses, scan_code
from poncho_wq.analysis.metadata import module_file
from poncho_wq.analysis.model import Import, LocalModule, Place, Reach, Verdict
from poncho_wq.analysis.modules import WHOLE, Trace
from poncho_wq.analysis.resolve import Resolver, gather
from poncho_wq.analysis.scopes import Use
from poncho_wq.analysis.sources import read_source
from poncho_wq.analysis.values import ATOMIC, CODE, carried, code_in, roots_of

MISSING = object()

# What a module knows of the place that it was imported from.
_PLACES = frozenset(("__file__", "__loader__", "__package__", "__path__", "__spec__"))

_DESCRIPTORS = frozenset((staticmethod, classmethod, property, types.MemberDescriptorType, types.GetSetDescriptorType))


@functools.lru_cache(maxsize=4096)
def _scan(code: types.CodeType) -> CodeUses:
    return scan_code(code)


@dataclass
class Looked:
    """What an answer rests on in memory: when all of this is unchanged, so is the answer."""

    same: list[tuple[Mapping[str, Any], str, Any]] = field(default_factory=list)  # mapping, key, the very object
    kinds: list[tuple[Mapping[str, Any], str, type]] = field(default_factory=list)  # mapping, key, type of plain data
    data: list[tuple[Mapping[str, Any], str, tuple[int, ...]]] = field(default_factory=list)  # ids of the code in it
    functions: list[tuple[types.FunctionType, types.CodeType, tuple[int, ...]]] = field(default_factory=list)
    keep: list[Any] = field(default_factory=list)  # alive, so that no other object gets an id above


@dataclass
class Walk:
    """One analysis of live code; `reach` is its result.

    `by_name` are modules whose code goes by reference although the submitted function is theirs; `again` are those for
    which the walk has found that it has to, see `walked`.
    """

    resolver: Resolver
    by_name: frozenset[str] = frozenset()
    looked: Looked = field(default_factory=Looked)
    verdicts: list[Verdict] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    by_value: set[str] = field(default_factory=set)
    traces: dict[str, Trace] = field(default_factory=dict)
    sources: list[Path] = field(default_factory=list)
    _shippable: set[str] = field(default_factory=set)
    _placed: set[str] = field(default_factory=set)
    _seen: set[int] = field(default_factory=set)
    _decided: set[Any] = field(default_factory=set)
    _pending: list[tuple[Any, str]] = field(default_factory=list)

    def reach(self, own: Iterable[Any], roots: Iterable[Any]) -> Reach:
        """What `roots` need; `own` are those whose local modules are taken by value."""
        for each in own:
            self._take_by_value(each)
        roots = list(roots)
        self.looked.keep.extend(roots)
        self._pending.extend((each, "given") for each in reversed(roots))
        while self._pending:
            value, how = self._pending.pop()
            self._value(value, (), how, None)
        self._local_sources()
        return gather(self.verdicts, self.resolver, by_value=self.by_value, notes=self.notes, sources=self.sources)

    @property
    def again(self) -> frozenset[str]:
        """Modules that were taken by value, and must not be: a worker has to have the very module.

        Shipped code imports it, and a second copy of its classes would not be equal to the first; or it asks where its
        file is, which lies in a package that is shipped with its data.
        """
        return frozenset(each for each in self._shippable if each in self.traces or each in self._placed)

    def follow(self, module: str, trace: Trace) -> Reach:
        """The same from source alone: what `trace`, of that module, has reached so far, and on from there."""
        self.traces[module] = trace
        self._local_sources()
        return gather(self.verdicts, self.resolver, notes=self.notes, sources=self.sources)

    # -- values

    def _value(self, value: Any, attributes: tuple[str, ...], how: str, place: Place | None) -> None:
        if type(value) in ATOMIC:
            return
        if isinstance(value, types.ModuleType):
            self._module(value, attributes, how, place)
        elif isinstance(value, (types.FunctionType, type)):
            if id(value) not in self._seen:
                self._seen.add(id(value))
                self.looked.keep.append(value)
                self._definition(value, how, place)
        elif isinstance(value, types.BuiltinFunctionType):
            self._builtin(value, how, place)
        else:
            for each in code_in(value):
                self._value(each, (), f"in {how}", place)

    def _builtin(self, value: types.BuiltinFunctionType, how: str, place: Place | None) -> None:
        owner = value.__self__
        if isinstance(owner, types.ModuleType) or owner is None:
            self._reference(value.__module__ or getattr(owner, "__name__", ""), value.__name__, how, place)
        elif not isinstance(owner, type):
            self._value(owner, (), how, place)
        else:
            self._value(owner, (), how, place)

    def _definition(self, value: Any, how: str, place: Place | None) -> None:
        """A function or a class."""
        if self._by_reference(value):
            self._reference(value.__module__, value.__qualname__.partition(".")[0], how, place)
        elif isinstance(value, type):
            self._class(value)
        else:
            self._function(value)

    def _by_reference(self, value: Any) -> bool:
        """Whether cloudpickle sends only the name: it can be found under it, in a module that a worker can have."""
        name = getattr(value, "__module__", None)
        module = sys.modules.get(name) if isinstance(name, str) else None
        if module is None or name == "__main__" or name in self.by_value:
            return False
        found: Any = module
        for part in value.__qualname__.split("."):
            found = vars(found).get(part, MISSING) if hasattr(found, "__dict__") else MISSING
            found = found.__func__ if isinstance(found, (staticmethod, classmethod)) else found
        return found is value

    def _take_by_value(self, value: Any) -> None:
        """The module that a submitted function lives in goes by value, when it is no installed one."""
        name = getattr(value, "__module__", None)
        if not isinstance(name, str) or name == "__main__" or name not in sys.modules or name in self.by_name:
            return
        module = sys.modules[name]
        if hasattr(module, "__path__"):
            return  # a package runs before whatever is imported from it
        verdict = self.resolver.verdict(Import(module=name, place=Place(file="?", line=0)), file=_file_of(module))
        if verdict.status in ("local", "unresolved"):
            self.by_value.add(name)
        if verdict.status == "local":
            self._shippable.add(name)

    def _reference(self, module: str, name: str, how: str, place: Place | None) -> None:
        if module in ("builtins", "__main__") or not module:
            return
        where = place or Place(file=_name_of_file(sys.modules.get(module)), line=0)
        self._import(Import(module=module, names=(name,), place=where, how=how), _file_of(sys.modules.get(module)))

    def _module(self, module: types.ModuleType, attributes: tuple[str, ...], how: str, place: Place | None) -> None:
        """A module that is passed around, or that something is looked up on."""
        while attributes:
            name = f"{module.__name__}.{attributes[0]}"
            inner = vars(module).get(attributes[0], sys.modules.get(name))
            if not isinstance(inner, types.ModuleType) or inner.__name__ != name:
                break
            module, attributes = inner, attributes[1:]
        name = module.__name__
        if name in ("builtins", "__main__"):
            return
        where = place or Place(file=_name_of_file(module), line=0)
        looked_up = (".".join(attributes) or WHOLE,)
        self._import(Import(module=name, attributes=looked_up, place=where, how=how), _file_of(module))

    # -- by value

    def _function(self, function: types.FunctionType) -> None:
        code, space = function.__code__, function.__globals__
        uses = _scan(code)
        luggage = roots_of(carried(function))
        self.looked.keep.extend(luggage)
        self.looked.functions.append((function, code, tuple(map(id, luggage))))
        for use in uses.names:
            self._global(function, space, use)
        cells = dict(zip(code.co_freevars, function.__closure__ or (), strict=True))
        for use in uses.free:
            self._free(function, cells, use)
        package = space.get("__package__") or None
        for found in uses.imports:
            alias = found.imported
            self._import(
                Import(
                    module=alias.module,
                    names=(alias.name,) if alias.name else (),
                    attributes=tuple(sorted(found.attributes)),
                    level=alias.level,
                    package=alias.package or package,
                    place=Place(file=code.co_filename, line=alias.line),
                    optional=found.optional,
                    never=found.never,
                    how=f"{alias.how} in {function.__qualname__}",
                )
            )
        for line in uses.unknown:
            self.notes.append(unknown_import(f"{code.co_filename}:{line}"))
        for value in (*carried(function), *_annotations(function)):
            if not isinstance(value, types.ModuleType):  # in a closure: what is looked up on it counts, above
                self._pending.append((value, f"carried by {function.__qualname__}"))

    def _global(self, function: types.FunctionType, space: dict[str, Any], use: Use) -> None:
        value = space.get(use.name, MISSING)
        if value is MISSING:
            if not hasattr(builtins, use.name):
                self.looked.same.append((space, use.name, MISSING))
            return
        self._depend(space, use.name, value)
        if use.name in _PLACES or isinstance(value, (str, PurePath)):
            self._note_place(space, use.name, value)
        place = Place(file=function.__code__.co_filename, line=use.line)
        self._value(value, use.attributes, f"global {use.name} of {function.__qualname__}", place)

    def _note_place(self, space: Mapping[str, Any], name: str, value: Any) -> None:
        """Note a module of a package whose code uses its own place, or a path into the package."""
        module, file = space.get("__name__"), space.get("__file__")
        if module not in self._shippable or "." not in module or not isinstance(file, str):
            return
        package = Path(os.path.abspath(file)).parents[module.count(".") - 1]
        if name in _PLACES or (os.path.isabs(value) and Path(value).is_relative_to(package)):
            self._placed.add(module)

    def _free(self, function: types.FunctionType, cells: Mapping[str, types.CellType], use: Use) -> None:
        try:
            value = cells[use.name].cell_contents
        except (KeyError, ValueError):
            return
        if isinstance(value, types.ModuleType):
            place = Place(file=function.__code__.co_filename, line=use.line)
            self._value(value, use.attributes, f"{use.name} in the closure of {function.__qualname__}", place)

    def _class(self, kind: type) -> None:
        for base in kind.__mro__[1:]:
            self._value(base, (), f"base of {kind.__qualname__}", None)
        self._value(type(kind), (), f"metaclass of {kind.__qualname__}", None)
        space = vars(kind)
        for name, value in space.items():
            if name in ("__dict__", "__weakref__", "__module__", "__doc__", "__slots__", "__annotations__"):
                continue
            self._depend(space, name, value)
            for inner in _unwrapped(value):
                self._value(inner, (), f"{kind.__qualname__}.{name}", None)
        for value in _annotations(kind):
            self._value(value, (), f"annotation in {kind.__qualname__}", None)

    def _depend(self, space: Mapping[str, Any], name: str, value: Any) -> None:
        kind = type(value)
        if kind in ATOMIC:
            self.looked.kinds.append((space, name, kind))
        elif isinstance(value, CODE) or kind in _DESCRIPTORS:
            self.looked.same.append((space, name, value))
        else:
            found = code_in(value)
            self.looked.keep.extend(found)
            self.looked.data.append((space, name, tuple(map(id, found))))

    # -- imports, and local source

    def _import(self, imported: Import, file: Path | None = None) -> None:
        """Decide about an import of live code: once, however many lines use it."""
        key = (imported.absolute(), imported.names, imported.attributes, imported.optional, imported.never)
        if key in self._decided:
            return
        self._decided.add(key)
        verdict = self.resolver.verdict(imported, file=file)
        self.verdicts.append(verdict)
        if verdict.local is not None:
            self._enter(verdict.imported, verdict.local, file)

    def _enter(self, imported: Import, local: LocalModule, file: Path | None) -> None:
        """Read the local modules that an import runs, and follow what is taken from them."""
        module = imported.absolute() or imported.module
        names = imported.names or ("",)
        for name in names:
            for attribute in imported.attributes or ("",):
                full = [part for part in f"{module}.{name}.{attribute}".split(".") if part and part != WHOLE]
                depth = len(full)
                while depth > 1 and module_file(local.root, ".".join(full[:depth])) is None:
                    depth -= 1
                for length in range(1, depth + 1):
                    self._open(".".join(full[:length]), local, file)
                target = self.traces.get(".".join(full[:depth]))
                if target is None:
                    continue
                if depth < len(full):
                    target.name(full[depth])
                elif WHOLE in (name, attribute) and attribute:
                    for each in list(target.module.bound):
                        target.name(each)

    def _open(self, module: str, local: LocalModule, file: Path | None) -> None:
        if module in self.traces:
            return
        found = module_file(local.root, module) or (file if "." not in module and file else None)
        if found is None or found.suffix != ".py":
            return  # a namespace, or compiled
        package = module if found.stem == "__init__" else module.rpartition(".")[0]
        trace = self.traces[module] = Trace(read_source(found), package=package or None, as_script=False)
        self.sources.append(found)
        trace.import_time()

    def _local_sources(self) -> None:
        """Decide about what the local modules import, until no more of them are entered."""
        entered: set[Import] = set()
        before = -1
        while before != len(entered):
            before = len(entered)
            for imported in [each for trace in self.traces.values() for each in trace.imports()]:
                if imported not in entered:
                    entered.add(imported)
                    local = self.resolver.verdict(imported).local
                    if local is not None:
                        self._enter(imported, local, None)
        for trace in self.traces.values():
            self.verdicts.extend(self.resolver.verdict(each) for each in trace.imports())
            self.notes.extend(unknown_import(str(trace.source.place(line))) for line in sorted(trace.unknown))


def walked(own: Iterable[Any], roots: Iterable[Any], resolver: Resolver) -> tuple[Reach, Walk]:
    """What `roots` need, and the walk that found it; `own` as for `Walk.reach`."""
    own, roots = list(own), list(roots)
    by_name: frozenset[str] = frozenset()
    while True:
        walk = Walk(resolver, by_name=by_name)
        reach = walk.reach(own, roots)
        if walk.again <= by_name:
            return reach, walk
        by_name |= walk.again


def unknown_import(place: str) -> str:
    """The remark about a module whose name is computed."""
    return f"{place}: imports a module whose name is computed; add its package yourself (--extra-pkg) if it is needed"


def _unwrapped(value: Any) -> Iterator[Any]:
    """The functions in a class's attribute."""
    if isinstance(value, (staticmethod, classmethod)):
        yield value.__func__
    elif isinstance(value, property):
        yield from (each for each in (value.fget, value.fset, value.fdel) if each is not None)
    elif isinstance(value, functools.cached_property):
        yield value.func
    elif not isinstance(value, (types.MemberDescriptorType, types.GetSetDescriptorType, types.WrapperDescriptorType)):
        yield value


def _annotations(value: Any) -> list[Any]:
    try:
        return list(inspect.get_annotations(value).values())
    except Exception:
        # From 3.14 on looking at them runs code of the user's, which may name what is imported for type checkers only.
        return []


def _file_of(module: types.ModuleType | None) -> Path | None:
    file = getattr(module, "__file__", None)
    return Path(file).absolute() if isinstance(file, str) else None


def _name_of_file(module: types.ModuleType | None) -> str:
    return str(getattr(module, "__file__", None) or getattr(module, "__name__", "?"))
