"""A function's pickle is remembered only while it would be the same again."""

from __future__ import annotations

import inspect
import itertools
import os
import pickle
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from poncho_wq import payload, unchanging
from poncho_wq.engines.core import _fits_plainly

SOURCE = """
import math
import os.path as path
NUMBER = 1
NUMBERS = (1, "two", (3.0, None))
LIST = [1]
def helper(x): return x + NUMBER
def uses_helper(x): return helper(x)
def uses_tuple(x): return x, NUMBERS, math.pi, path.sep
def uses_list(x): return x, LIST
def nested(x): return [helper(y) for y in (lambda z: NUMBERS)(x)]
def defaults(x, y=2, *, z=3) -> int: return x + y + z
def undefined(x): return x + LATER
def made(n):
    def inner(x): return x + n
    return inner
class Class: pass
def uses_class(): return Class()
def recursive(n): return n and recursive(n - 1)
"""


@pytest.fixture
def space() -> dict[str, Any]:
    made: dict[str, Any] = {"__name__": "__main__"}
    exec(SOURCE, made)
    return made


def by_value(module: str) -> bool:
    return module == "__main__"


def watched(function: Any) -> unchanging.Watch:
    found = unchanging.watch(function, by_value)
    assert found is not None
    assert found.still()
    return found


@pytest.mark.parametrize("name", ["uses_helper", "uses_tuple", "nested", "defaults", "undefined", "recursive"])
def test_what_cannot_change_in_place_is_watched(name: str, space: dict[str, Any]) -> None:
    watched(space[name])


@pytest.mark.parametrize("name", ["uses_list", "uses_class", "Class"])
def test_what_can_is_not(name: str, space: dict[str, Any]) -> None:
    assert unchanging.watch(space[name], by_value) is None


CHANGES: dict[str, tuple[str, Callable[[dict[str, Any]], Any]]] = {
    "a global's value": ("uses_helper", lambda s: s.update(NUMBER=2)),
    "a global deep inside": ("nested", lambda s: s.update(NUMBER=1.0)),
    "a global function": ("uses_helper", lambda s: s.update(helper=s["defaults"])),
    "a global that was missing": ("undefined", lambda s: s.update(LATER=1)),
    "the code": ("helper", lambda s: setattr(s["helper"], "__code__", (lambda x: x).__code__)),
    "the code of one it calls": ("uses_helper", lambda s: setattr(s["helper"], "__code__", (lambda x: x).__code__)),
    "a default": ("defaults", lambda s: setattr(s["defaults"], "__defaults__", (5,))),
    "a keyword default": ("defaults", lambda s: s["defaults"].__kwdefaults__.update(z=5)),
    "another keyword default": ("defaults", lambda s: s["defaults"].__kwdefaults__.update(a=5)),
    "an annotation": ("defaults", lambda s: s["defaults"].__annotations__.update({"return": str})),
    "another annotation": ("defaults", lambda s: s["defaults"].__annotations__.update({"x": str})),
    "an attribute": ("defaults", lambda s: setattr(s["defaults"], "attribute", 1)),
    "its name": ("defaults", lambda s: setattr(s["defaults"], "__name__", "other")),
    "a cell": ("inner", lambda s: setattr(s["inner"].__closure__[0], "cell_contents", 7)),
    "a module came": ("uses_tuple", lambda s: sys.modules.__setitem__("poncho_test_module", types.ModuleType("x"))),
    "cloudpickle's register": ("uses_tuple", lambda s: cloudpickle.register_pickle_by_value(unchanging)),
}


@pytest.mark.parametrize("what", CHANGES)
def test_every_change_is_seen(what: str, space: dict[str, Any]) -> None:
    space["inner"] = space["made"](3)
    name, change = CHANGES[what]
    watch = watched(space[name])
    try:
        change(space)
        assert not watch.still()
    finally:
        sys.modules.pop("poncho_test_module", None)
        if "poncho_wq.unchanging" in cloudpickle.list_registry_pickle_by_value():
            cloudpickle.unregister_pickle_by_value(unchanging)


def _value_of(file: Any, *args: Any) -> Any:
    return pickle.loads(Path(file.path).read_bytes().split(b"\n", 1)[1])(*args)


def test_the_same_file_until_something_changes(space: dict[str, Any]) -> None:
    first = payload.pickle_function(space["uses_helper"])
    assert payload.pickle_function(space["uses_helper"]) is first
    space["NUMBER"] = 10
    second = payload.pickle_function(space["uses_helper"])
    assert (_value_of(first, 1), _value_of(second, 1)) == (2, 11)
    changing = payload.pickle_function(space["uses_list"])
    space["LIST"].append(2)
    assert _value_of(changing, 0) == (0, [1])
    assert _value_of(payload.pickle_function(space["uses_list"]), 0) == (0, [1, 2])


def test_what_travels_by_value_is_part_of_it(space: dict[str, Any]) -> None:
    by_name = payload.pickle_function(space["uses_tuple"], frozenset())
    assert payload.pickle_function(space["uses_tuple"], frozenset({"json"})) is not None
    assert payload.pickle_function(space["uses_tuple"], frozenset()).path == by_name.path


def test_a_file_goes_with_its_tasks_though_it_is_remembered(space: dict[str, Any]) -> None:
    file = payload.pickle_function(space["helper"])
    path = file.path
    assert os.path.exists(path)
    del file
    assert not os.path.exists(path)
    assert _value_of(payload.pickle_function(space["helper"]), 1) == 2


def test_many_functions_do_not_pile_up() -> None:
    for n in range(200):
        payload.pickle_function(eval(f"lambda x: x + {n}", {"__name__": "__main__"}))
    assert len(payload._kept_functions) <= payload._MOST_KEPT


def test_plain_arguments_are_what_cloudpickle_would_make() -> None:
    for args, kwargs in [((), {}), ((1, "a", None, [1, 2.5], (b"x", True)), {"k": "v"}), ((1 << 70,), {})]:
        arguments = payload.pickle_arguments(args, kwargs)
        content = payload.pickled((args, kwargs), "")
        assert pickle.loads(content) == (args, kwargs)
        assert arguments.modules == frozenset()
    assert not payload._are_plain([[[1]]])
    assert not payload._are_plain([int])


def _functions() -> list[Any]:
    def a() -> None: ...
    def b(x: Any, y: Any = 1) -> None: ...
    def c(x: Any, /, y: Any, *, z: Any) -> None: ...
    def d(*a: Any, **k: Any) -> None: ...
    def e(x: Any, /, y: Any = 2, *, z: Any = 3, w: Any) -> None: ...
    def f(x: Any, *a: Any, z: Any = 1) -> None: ...

    return [a, b, c, d, e, f]


def test_no_call_is_taken_that_python_would_refuse() -> None:
    taken = 0
    for function, given, chosen in itertools.product(_functions(), range(4), range(4)):
        for names in itertools.combinations("xyzwq", chosen):
            args, kwargs = tuple(range(given)), dict.fromkeys(names, 1)
            if _fits_plainly(function, args, kwargs):
                inspect.signature(function).bind(*args, **kwargs)
                taken += 1
    assert taken > 20
