"""Whether the warm server may be forked after an import; part of the runner's program, as ``server.py`` is."""

from __future__ import annotations

import os

# They start threads, or a device's runtime, when imported or first used, and do not work in a forked child.
UNFIT = frozenset({"cupy", "grpc", "jax", "mpi4py", "polars", "pycuda", "ray", "tensorflow"})


def _is_fit(own: set[str]) -> bool:
    """Whether nothing that was imported has left something that all children would share, besides what is the server's
    ``own``: one task could see another's state through it.

    Nor threads, one of which could hold a lock at a fork for which the child would wait for ever.  Libraries such as
    OpenBLAS end theirs at a fork: so fork once to see.
    """
    if not _shared_state() <= own:
        return False
    return _threads() == 1 or (_can_fork() and _threads() == 1)


def _can_fork() -> bool:
    child = os.fork()
    if child == 0:
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0


def _shared_state() -> set[str]:
    """What a fork does not copy: open files and devices, memory mapped to be shared (a GPU's, too), other processes."""
    found = {"fd " + name for name in os.listdir("/proc/self/fd")}
    # Of the one that lists them, which has gone by now.
    found = {name for name in found if os.path.lexists("/proc/self/" + name.replace(" ", "/"))}
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as file:
        found.update("memory " + line.split()[0] for line in file if line.split()[1][1::2] == "ws")
    try:
        with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as file:
            found.update("process " + pid for pid in file.read().split())
    except OSError:
        pass  # a kernel that does not tell
    return found


def _threads() -> int:
    return len(os.listdir("/proc/self/task"))
