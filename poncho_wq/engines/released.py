"""Waiting for a manager's next task without holding up the other threads of this process.

The bindings of Work Queue and TaskVine call their C library with Python's global lock held: while a thread is in
``wait(1)``, no other thread runs for up to a second.  ``ctypes`` calls the same function of the same loaded library and
lets the lock go.  Meanwhile nobody else may call that manager; whoever opened it sees to that.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from typing import Any

__all__ = ["address_of", "released_wait"]

# The binding's library, the C function (manager, seconds) → task or NULL, and the attribute that holds the manager.
_FUNCTIONS = {
    "work_queue": (("_work_queue", "ndcctools._cwork_queue", "_cwork_queue"), "work_queue_wait", "_work_queue"),
    "taskvine": (("ndcctools.taskvine._cvine", "_cvine"), "vine_wait", "_taskvine"),
}


def released_wait(kind: str, manager: Any) -> Callable[[int], int] | None:
    """``wait(seconds)`` → the address of the C task that is done, or 0; None where the binding is not as known."""
    modules, name, attribute = _FUNCTIONS[kind]
    library = next((sys.modules[module] for module in modules if module in sys.modules), None)
    path = getattr(library, "__file__", None)
    if path is None:
        return None
    try:
        function = getattr(ctypes.CDLL(path), name)
        function.argtypes, function.restype = (ctypes.c_void_p, ctypes.c_int), ctypes.c_void_p
        pointer = int(getattr(manager, attribute))
    except (OSError, AttributeError, TypeError, ValueError):
        return None

    def wait(seconds: int) -> int:
        return function(pointer, seconds) or 0

    return wait


def address_of(struct: Any) -> int:
    """The address of a task's C structure; 0 when that cannot be told."""
    try:
        return int(getattr(struct, "this", struct))
    except (TypeError, ValueError):
        return 0
