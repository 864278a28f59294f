"""Cycles in dependencies: ``a -> b -> a``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping


def find_cycle(after: Mapping[str, Iterable[str]]) -> list[str] | None:
    """A cycle as a path along which work would have to go, ``[a, b, a]``: b waits for a, and a for b.  None: no cycle.

    ``after``: what each name waits for; names that are nobody's are passed over.  Its length is not limited by the
    interpreter's stack.
    """
    done: set[str] = set()
    for start in after:
        path: list[str] = []
        on_path: dict[str, int] = {}
        stack: list[tuple[str, bool]] = [(start, False)]
        while stack:
            name, leaving = stack.pop()
            if leaving:
                done.add(name)
                del on_path[path.pop()]
            elif name in on_path:
                return list(reversed([*path[on_path[name] :], name]))
            elif name not in done and name in after:
                on_path[name] = len(path)
                path.append(name)
                stack.append((name, True))
                stack.extend((parent, False) for parent in after[name])
    return None
