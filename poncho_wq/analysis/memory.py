"""Analysis of live functions, remembered: asking again about an unchanged function costs microseconds.

An answer is found by what was asked about (the code and globals of the functions, the classes of the values) and holds
as long as what it was read from is the same: the very objects behind every global name that was followed, the code of
every function (IPython's autoreload exchanges it in place), the kinds of data in globals, the local source files.
"""

from __future__ import annotations

import os
import sys
import threading
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from poncho_wq.analysis.model import Reach
from poncho_wq.analysis.objects import MISSING, Looked, walked
from poncho_wq.analysis.resolve import Resolver, refuse_unresolved
from poncho_wq.analysis.values import ATOMIC, carried, carries, code_in, roots_of
from poncho_wq.distributions import Installed

_MOST = 1024  # answers kept; the oldest goes first


@dataclass(slots=True)
class _Answer:
    reach: Reach
    looked: Looked
    files: tuple[tuple[str, tuple[int, int, int]], ...]
    installed: Installed

    def holds(self) -> bool:
        """Whether everything that the answer rests on is still what it was."""
        looked = self.looked
        for space, name, value in looked.same:
            if space.get(name, MISSING) is not value:
                return False
        for function, code, ids in looked.functions:
            if function.__code__ is not code:
                return False
            if (ids or carries(function)) and tuple(map(id, roots_of(carried(function)))) != ids:
                return False
        for space, name, kind in looked.kinds:
            if type(space.get(name, MISSING)) is not kind:
                return False
        for space, name, found in looked.data:
            if tuple(map(id, code_in(space.get(name, MISSING)))) != found:
                return False
        if any(_stamp(path) != stamp for path, stamp in self.files):
            return False
        # What was found is pinned; what was not may have been installed since.
        return not self.reach.unresolved or Installed.here() is self.installed


_writing = threading.Lock()
_answers: dict[tuple[Any, ...], _Answer] = {}


def remembered_reach(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Reach:
    """What a call of `function` needs. Raises `UnresolvedImportError`; a refusal is not remembered."""
    reach = reach_of_call(function, args, kwargs)
    if reach.unresolved:
        # What is missing may have come meanwhile, without a trace that would be cheap to see.
        reach = reach_of_call(function, args, kwargs, anew=True)
    return refuse_unresolved(reach)


def reach_of_call(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], *, anew: bool = False
) -> Reach:
    """The same, with the imports that nothing provides listed rather than refused. `anew`: never from memory."""
    if (
        type(function) is types.FunctionType
        and ATOMIC.issuperset(map(type, args))
        and ATOMIC.issuperset(map(type, kwargs.values()))
    ):
        roots = roots_of((function,)) if carries(function) else [function]
    else:
        roots = roots_of((function, *args, *kwargs.values()))
    key = (_search_path(), *[_key(each) for each in roots])
    answer = _answers.get(key)
    if answer is not None and not anew and answer.holds():
        return answer.reach
    installed = Installed.here()
    reach, walk = walked(own_code(function), roots, Resolver(installed, ships=True))
    files = tuple((str(path), _stamp(str(path))) for path in reach.sources)
    answer = _Answer(reach, _without_roots(walk.looked, roots), files, installed)
    with _writing:
        while len(_answers) >= _MOST:
            del _answers[next(iter(_answers))]
        _answers[key] = answer
    return reach


def own_code(function: Any) -> list[Any]:
    """The functions and classes that were submitted themselves, rather than met on the way."""
    found: list[Any] = []
    while function is not None and len(found) < 100:
        if isinstance(function, types.MethodType):
            found.append(type(function.__self__))
            function = function.__func__
        elif hasattr(function, "func") and hasattr(function, "keywords"):  # functools.partial and its like
            # The functions that it was made with are what it is about: a user's inside a caller of ours or of Parsl's.
            for given in getattr(function, "args", ()):
                if isinstance(given, types.FunctionType):
                    found.extend(own_code(given))
            function = function.func
        else:
            found.append(function if hasattr(function, "__qualname__") else type(function))
            function = getattr(function, "__wrapped__", None)
    return found


def _search_path() -> tuple[str, ...]:
    """Where imports are looked for; "" stands for the current directory, as in a notebook."""
    return (os.getcwd(), *sys.path) if "" in sys.path else tuple(sys.path)


def _key(root: Any) -> Any:
    # Functions made again and again by one `def` or `lambda` share code and globals; what they carry are roots too.
    if type(root) is types.FunctionType:
        return id(root.__code__), id(root.__globals__)
    return id(root)


def _without_roots(looked: Looked, roots: list[Any]) -> Looked:
    """Leave out what the key covers: the very function objects may be gone while their like are asked about."""
    given = {id(each) for each in roots if isinstance(each, types.FunctionType)}
    looked.functions = [entry for entry in looked.functions if id(entry[0]) not in given]
    looked.keep = [each for each in looked.keep if id(each) not in given]
    looked.keep.extend(each.__code__ for each in roots if isinstance(each, types.FunctionType))
    looked.keep.extend(each.__globals__ for each in roots if isinstance(each, types.FunctionType))
    return looked


def _stamp(path: str) -> tuple[int, int, int]:
    try:
        state = os.stat(path)
    except OSError:
        return (0, 0, 0)
    return (state.st_mtime_ns, state.st_size, state.st_ino)
