"""The manager's part: whether a function may run in a warm interpreter, and what that should import beforehand."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

from poncho_wq.errors import EngineError
from poncho_wq.warm.fitness import UNFIT

if TYPE_CHECKING:
    from poncho_wq.analysis.model import Reach

# "auto": unless something that the function imports is known not to survive a fork.
Warm = Literal["auto", True, False]

# Importing them does something that is to be seen, or belongs to the task.
_NEVER_BEFOREHAND = frozenset({"__main__", "antigravity", "this", "idlelib", "readline", "rlcompleter", "tkinter"})
_MOST = 256
_known: dict[int, tuple[Reach, tuple[str, ...]]] = {}


def checked_warm(warm: Warm) -> Warm:
    """What was given, if it is one of them.  Raises ``EngineError``."""
    if warm not in ("auto", True, False):
        raise EngineError(f'warm is "auto", True or False, not {warm!r}')
    return warm


def survives_fork(modules: Iterable[str]) -> bool:
    """Whether none of them is on the list of those that do not."""
    return not any(name.partition(".")[0] in UNFIT for name in modules)


def modules_of(reach: Reach) -> tuple[str, ...]:
    """The installed modules that a function surely imports, by name, sorted."""
    found = _known.get(id(reach))
    if found is None or found[0] is not reach:
        if len(_known) >= _MOST:
            _known.clear()
        found = _known[id(reach)] = reach, tuple(sorted(_names(reach) - _NEVER_BEFOREHAND))
    return found[1]


def group_of(modules: Iterable[str]) -> str:
    """Eight hexadecimal digits, the same for functions that import the same packages: these share a server.

    A fork costs by what its process has loaded, and a fresh interpreter would not have it either.  The standard
    library is small, so it does not tell groups apart.
    """
    packages = {name.partition(".")[0] for name in modules}
    text = " ".join(sorted(packages - sys.stdlib_module_names))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _names(reach: Reach) -> set[str]:
    names = set()
    for verdict in reach.verdicts:
        name = verdict.imported.absolute()
        if not name or verdict.imported.never is not None:
            continue
        standard = verdict.status == "out" and name.partition(".")[0] in sys.stdlib_module_names
        if verdict.status == "in" or standard:
            names.add(name)
    return names
