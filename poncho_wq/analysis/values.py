"""The code that values bring along: functions, classes and modules found in arguments, closures and globals.

What a value needs is what unpickling it imports, so pickle itself is asked: a pickler that writes nowhere reports every
class and function on its way. Large buffers are handed over, not copied.
"""

from __future__ import annotations

import copyreg
import pickle
import types
from typing import Any

ATOMIC = frozenset((int, float, complex, bool, str, bytes, bytearray, type(None), range, slice, type(...)))
CODE = (types.FunctionType, types.ModuleType, type, types.BuiltinFunctionType)

_CONTAINERS = frozenset((tuple, list, set, frozenset))
_PROTOCOL = 5


class _Nowhere:
    def write(self, data: Any) -> int:
        return len(data)


class _Reporter(pickle.Pickler):
    def __init__(self) -> None:
        # Out of band, so that arrays are not copied; nobody takes them.
        super().__init__(_Nowhere(), protocol=_PROTOCOL, buffer_callback=lambda buffer: None)
        self.found: dict[int, Any] = {}

    def reducer_override(self, obj: Any) -> Any:
        """Called by pickle for whatever is not of a built-in type."""
        if obj is list:  # what everything is replaced by below
            return NotImplemented
        if isinstance(obj, CODE):
            self.found[id(obj)] = obj
            return list, ()
        if isinstance(obj, types.MethodType):
            return list, ((obj.__func__, obj.__self__),)
        kind = type(obj)
        self.found[id(kind)] = kind
        # Not by getattr: proxies and mocks answer to any name.
        attributes = getattr(obj, "__dict__", None)
        wrapped = attributes.get("__wrapped__") if isinstance(attributes, dict) else None
        try:
            reducer = copyreg.dispatch_table.get(kind)
            reduced = reducer(obj) if reducer is not None else obj.__reduce_ex__(_PROTOCOL)
        except Exception:
            # What cannot be pickled will be told when the task is made; its class is known now.
            reduced = ""
        if isinstance(wrapped, types.FunctionType):
            return list, ((wrapped,),)
        # A string names a global, which is found by the class.
        return (list, ()) if isinstance(reduced, str) else reduced


def code_in(value: Any) -> tuple[Any, ...]:
    """The functions, classes, modules and builtins that `value` consists of, each once; () for plain data."""
    kind = type(value)
    if kind in ATOMIC or (kind in _CONTAINERS and ATOMIC.issuperset(map(type, value))):
        return ()
    if isinstance(value, CODE):
        return (value,)
    if kind is dict and ATOMIC.issuperset(map(type, value)) and ATOMIC.issuperset(map(type, value.values())):
        return ()
    if kind.__name__ == "ndarray" and kind.__module__ == "numpy" and not value.dtype.hasobject:
        return (kind,)  # what pickle would find too, ten times as fast, for the most common large argument
    reporter = _Reporter()
    try:
        reporter.dump(value)
    except Exception:
        # As above: an object that fails halfway has told what it could.
        pass
    return tuple(reporter.found.values())


def roots_of(values: Any) -> list[Any]:
    """The code in `values` (an iterable) and in what functions among it carry: closure, defaults, attributes.

    Each once, in an order that is the same for the same values.
    """
    found: list[Any] = []
    seen: set[int] = set()
    pending = list(values)
    pending.reverse()
    while pending:
        value = pending.pop()
        kind = type(value)
        if kind in ATOMIC:
            continue
        if kind is not types.FunctionType:
            for each in code_in(value):
                if type(each) is types.FunctionType:
                    if id(each) not in seen:
                        pending.append(each)
                elif id(each) not in seen:
                    seen.add(id(each))
                    found.append(each)
            continue
        if id(value) in seen:
            continue
        seen.add(id(value))
        found.append(value)
        pending.extend(carried(value))
    return found


def carries(function: types.FunctionType) -> bool:
    """Whether there is anything for `carried` to find."""
    return bool(function.__closure__ or function.__defaults__ or function.__kwdefaults__ or function.__dict__)


def carried(function: types.FunctionType) -> list[Any]:
    """What a function brings along besides its code: values in its closure, its defaults, its attributes."""
    values: list[Any] = []
    for cell in function.__closure__ or ():
        try:
            values.append(cell.cell_contents)
        except ValueError:  # not filled yet
            continue
    if function.__defaults__:
        values.extend(function.__defaults__)
    if function.__kwdefaults__:
        values.extend(function.__kwdefaults__.values())
    if function.__dict__:
        values.extend(function.__dict__.values())
    return values
