"""What the warm server does when its imports are done, so that its children cost less; part of the runner's program, as
``server.py`` is.

A child pays for what it is the first to write to since the fork: some 3 µs for each page of 4 KiB.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

# Of the standard library.  What the first do after a fork is to mend the locks and lists of threads that stayed behind;
# the last seeds its generator, which ``_Generators`` does for a quarter of that.
_KEPT_BACK = ("threading", "logging", "concurrent.futures.thread", "random")
# That all of the 624 words of a Mersenne Twister's state are, and new ones have to be made of them.
_USED_UP = (624).to_bytes(4, sys.byteorder)


class _Hooks:
    """Keeps back what ``_KEPT_BACK`` register to be called at a fork, when they are imported after this.

    The server has one thread, and so nothing to mend; to do it all the same would cost a child as much as to take a
    task's place does.  What a task forks may have something to mend: it gets all of them, before its first fork.
    """

    def __init__(self) -> None:
        import _thread

        self.register = os.register_at_fork
        self.kept: list[dict[str, Callable[[], object]]] = []
        self.lock = _thread.allocate_lock()
        # For the child to set.
        self.keeping = True
        self.register(before=self.before)
        os.register_at_fork = self.called  # type: ignore[assignment]

    def called(self, **hooks: Callable[[], object]) -> None:
        """In place of ``os.register_at_fork``."""
        if self.keeping and sys._getframe(1).f_globals.get("__name__") in _KEPT_BACK:
            self.kept.append(hooks)
        else:
            self.register(**hooks)

    def before(self) -> None:
        """At a fork.  What is registered now is called after this fork, but not before it."""
        kept = self.kept
        if self.keeping or not kept:
            return
        # Another thread that forks has to wait until all are registered.  A process that is forked while one holds the
        # lock never comes here: then there is nothing kept any more.
        with self.lock:
            for hooks in self.kept:
                self.register(**hooks)
            self.kept = []
        for hooks in reversed(kept):
            if "before" in hooks:
                hooks["before"]()


class _Generators:
    """The generators of ``random`` and ``numpy.random``, which every child seeds for itself."""

    def __init__(self) -> None:
        self.python: Any = None
        self.numpy: Any = None
        # Of numpy's state, to be written to without the many steps that lead there; 0 when it is not known.
        self.address = 0

    def settled(self) -> None:
        """Note what has been imported, and find the way that has a child write to the fewest pages."""
        random = sys.modules.get("random")
        if random is not None:
            import _random

            random._inst.gauss_next = None  # as its own seed() does
            self.python = _random.Random.seed, random._inst
        if "numpy.random" in sys.modules:
            self.numpy = sys.modules["numpy"]
            try:
                self.address = self.state_of(self.numpy)
            except Exception:
                self.address = 0  # another numpy, or a generator of another kind

    def state_of(self, numpy: Any) -> int:
        """Where numpy's Mersenne Twister has its 624 words and the number of those that are used up; 0 if elsewhere."""
        import ctypes

        words = os.urandom(4 * 624)
        numpy.random.set_state(("MT19937", numpy.frombuffer(words, "u4"), 624))
        address: int = numpy.random.mtrand._rand._bit_generator.ctypes.state_address
        self.move = ctypes.memmove
        return address if ctypes.string_at(address, 4 * 625) == words + _USED_UP else 0

    def seed(self) -> None:
        if self.python is not None:
            seed, generator = self.python
            seed(generator)
        if self.address:
            self.move(self.address, os.urandom(4 * 624) + _USED_UP, 4 * 625)
        elif self.numpy is not None:
            self.numpy.random.seed()


def _first_use(done: set[str]) -> None:
    """Use libraries for the first time that have much to do then, which each child would do for itself otherwise.

    A child that sums a column writes to a third fewer pages.  ``done`` has the names of those that need it no more.
    """
    for name, use in _FIRST_USES.items():
        library = sys.modules.get(name)
        if library is None or name in done:
            continue
        done.add(name)
        import warnings

        # What is said once for each line of code is to be said to a task.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                use(library)
            except Exception:
                pass  # another version, or one that is broken; tasks will say so


def _use_numpy(numpy: Any) -> None:
    row = numpy.arange(6.0)
    numpy.array([1, 2, 3])
    numpy.zeros((2, 3)) + row.reshape(2, 3)
    (row * 2 + row)[row > 1].sum()
    row.mean(), row.max(), row.astype(int), row.tolist(), numpy.concatenate([row, row]), numpy.sqrt(row)


def _use_pandas(pandas: Any) -> None:
    import io

    frame = pandas.DataFrame({"a": [1, 2, 3], "b": (1.0, 2.0, 3.0), "c": ["x", "y", "x"], "d": range(3), "e": 5})
    frame["f"] = frame["a"] * 2 + frame["b"]
    frame[frame["a"] > 1].loc[2, "a"], frame.iloc[1:], frame[["a", "b"]].sum()["a"]
    frame.mean(numeric_only=True), frame["b"].to_numpy(), frame.to_dict("records"), frame.isna().any(), str(frame)
    frame.groupby("c")["b"].sum(), frame.groupby("c").agg({"b": "mean"}), frame.sort_values("b").reset_index(drop=True)
    frame.merge(frame, on="c"), pandas.concat([frame, frame]), frame.set_index("c").fillna(0), frame.apply(len)
    frame["c"].str.upper(), pandas.to_datetime(frame["a"]), pandas.read_csv(io.StringIO(frame.to_csv()))


_FIRST_USES: dict[str, Callable[[Any], None]] = {"numpy": _use_numpy, "pandas": _use_pandas}
