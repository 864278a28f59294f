"""What the warm server does when its imports are done, so that its children cost less; part of the runner's program, as
``server.py`` is.

A child pays for what it is the first to write to since the fork: some 3 µs for each page of 4 KiB.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


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
