"""Functions of which it can be seen in a microsecond or two that they would be pickled as before.

Pickling a function takes some fifty microseconds, and most managers submit one function thousands of times.  Its pickle
holds its code, defaults, closure and the globals it uses.  Where all of these are immutable, or travel by name, it is
enough to see that they are the very objects of last time.  Of any other function (it uses a list in a global, say, or a
class of ``__main__``) nothing is remembered: its pickle may be another one each time, without a trace.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import cloudpickle

# Values of exactly these types never change, and hold nothing that does.
FROZEN = frozenset({type(None), bool, int, float, complex, str, bytes, type(Ellipsis)})
# Of one function; a longer list would cost as much as it saves.
_MOST = 100
_MISSING = object()


class _Changeable(Exception):
    """What the function holds may change in place."""


@dataclass(slots=True)
class Watch:
    """What a function's pickle was made from.  ``still()`` tells whether it would be the same again."""

    function: Any
    functions: list[tuple[types.FunctionType, tuple[Any, ...]]] = field(default_factory=list)
    names: list[tuple[dict[str, Any], str, Any]] = field(default_factory=list)
    sizes: list[tuple[dict[str, Any], int]] = field(default_factory=list)
    registered: set[str] = field(default_factory=set)
    # A package's submodules that are imported later are part of a pickle that names the package.
    modules: int = 0

    def still(self) -> bool:
        """Whether everything is what it was.  Never raises."""
        if len(sys.modules) != self.modules:
            return False
        for function, parts in self.functions:
            if function.__dict__:
                return False
            for now, then in zip(_parts(function), parts, strict=True):
                if now is not then:
                    return False
        for space, name, value in self.names:
            if space.get(name, _MISSING) is not value:
                return False
        if any(len(space) != size for space, size in self.sizes):
            return False
        return bool(self.registered == cloudpickle.list_registry_pickle_by_value())


def watch(function: Callable[..., Any], by_value: Callable[[str], bool]) -> Watch | None:
    """How to see that ``function`` has not changed; None when that cannot be seen cheaply.

    ``by_value`` says whether what a module defines travels by value.
    """
    made = Watch(function, registered=cloudpickle.list_registry_pickle_by_value(), modules=len(sys.modules))
    try:
        _add(function, by_value, made, set())
    except _Changeable:
        return None
    return made


def _parts(function: types.FunctionType) -> tuple[Any, ...]:
    """All that a function's pickle holds besides globals and what its containers hold, in a fixed order."""
    closure = function.__closure__
    cells = () if closure is None else tuple([_content(cell) for cell in closure])
    return (
        function.__code__, function.__defaults__, function.__kwdefaults__, function.__module__, function.__name__,
        function.__qualname__, function.__doc__, function.__annotations__, *cells,
    )  # fmt: skip


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return _MISSING


def _add(function: Any, by_value: Callable[[str], bool], made: Watch, seen: set[int]) -> None:
    if type(function) is not types.FunctionType or function.__dict__:
        raise _Changeable
    if id(function) in seen:
        return
    seen.add(id(function))
    parts = _parts(function)
    made.functions.append((function, parts))
    if any(type(part) not in FROZEN for part in parts[3:7]):
        raise _Changeable
    values: list[Any] = [*(function.__defaults__ or ()), *parts[8:]]
    for space in (function.__kwdefaults__ or {}, function.__annotations__):
        made.sizes.append((space, len(space)))
        for name, value in space.items():
            made.names.append((space, name, value))
            values.append(value)
    space = function.__globals__
    for name in {*_names(function.__code__)}:
        value = space.get(name, _MISSING)
        made.names.append((space, name, value))
        values.append(value)
    if len(made.names) + len(made.functions) > _MOST:
        raise _Changeable
    for value in values:
        if value is _MISSING or _is_frozen(value) or _by_name(value, by_value):
            continue
        _add(value, by_value, made, seen)


def _is_frozen(value: Any) -> bool:
    return type(value) in FROZEN or (type(value) is tuple and len(value) <= _MOST and all(map(_is_frozen, value)))


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for each in code.co_consts:
        if isinstance(each, types.CodeType):
            yield from _names(each)


def _by_name(value: Any, by_value: Callable[[str], bool]) -> bool:
    """Whether a module, function or class travels as its name alone: an installed module has it under that name."""
    if isinstance(value, types.ModuleType):
        return sys.modules.get(value.__name__) is value and not by_value(value.__name__)
    if not isinstance(value, (type, types.FunctionType, types.BuiltinFunctionType)):
        return False
    name = getattr(value, "__module__", None)
    if not isinstance(name, str) or by_value(name):
        return False
    found: Any = sys.modules.get(name)
    for part in value.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is value
