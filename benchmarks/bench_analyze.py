"""Analysis: a 10,000-line script, 1,000 functions, and asking again about a function that has not changed.

The peers are what Python itself needs for the same code: compiling it, disassembling it, pickling it.
"""

from __future__ import annotations

import dis
from collections.abc import Iterator
from typing import Any

import cloudpickle

from benchmarks.harness import Row, paired, seconds
from poncho_wq.analysis import memory
from poncho_wq.analysis.sources import source_from_bytes
from poncho_wq.analyze import analyze_scripts, reach

LINES = 10_000
FUNCTIONS = 1_000
AGAIN = 20_000

_PART = '''
def function_{n}(table, *columns, scale=2.0):
    """Sum some columns, scaled, of the rows that pass."""
    import collections
    from packaging.version import Version

    found = collections.Counter()
    for row in table:
        if any(row[name] is None for name in columns):
            continue
        total = sum(scale * row[name] for name in columns)
        found[row.get("key", {n})] += total
        try:
            found.update({{key: value for key, value in row.items() if Version(key) > Version("1.{n}")}})
        except (KeyError, ValueError) as error:
            print(error, packaging.__name__)
    return function_{previous}(sorted(found), *columns) if len(found) > {n} else found
'''


def script() -> str:
    """A script of about `LINES` lines: imports, and functions that call one another."""
    count = LINES // _PART.count("\n")
    parts = (_PART.format(n=n, previous=max(n - 1, 0)) for n in range(count))
    return "import os, sys\nimport packaging\n" + "".join(parts)


def functions() -> list[Any]:
    """`FUNCTIONS` functions of different code, each of which reaches three others."""
    text = "import packaging, packaging.version as v\n" + "".join(
        f"def f{n}(x):\n    from packaging import tags\n    return f{n // 4 * 4}(x), [v.Version(y) for y in x], {n}\n"
        for n in range(FUNCTIONS)
    )
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(text, "<benchmark>", "exec"), space)
    return [space[f"f{n}"] for n in range(FUNCTIONS)]


def rows() -> Iterator[Row]:
    """Milliseconds a script, microseconds a function: for the first time, and again."""
    text = script()
    data = text.encode()

    def whole() -> object:
        return analyze_scripts([source_from_bytes(data, name="script.py", directory=None)]).spec

    def one() -> object:
        source = source_from_bytes(data, name="script.py", directory=None)
        return analyze_scripts([source], functions=["function_100"]).spec

    for name, action in (("the whole of it", whole), ("one function of it", one)):
        yield paired(
            f"script of {text.count(chr(10)):,} lines, {name}",
            lambda action=action: 1e3 * seconds(action),  # type: ignore[misc]
            lambda: 1e3 * seconds(lambda: compile(text, "script.py", "exec")),
            pairs=5, unit="ms", peer_name="compile() of it",
        )  # fmt: skip

    many = functions()

    def first() -> float:
        memory._answers.clear()
        from poncho_wq.analysis import objects

        objects._scan.cache_clear()
        return 1e6 * seconds(lambda: [reach(f) for f in many]) / FUNCTIONS

    yield paired(
        f"{FUNCTIONS:,} functions, each for the first time", first,
        lambda: 1e6 * seconds(lambda: [list(dis.Bytecode(f)) for f in many]) / FUNCTIONS,
        pairs=3, unit="µs", peer_name="dis.Bytecode() of it",
    )  # fmt: skip

    f = many[3]
    import numpy

    array = numpy.zeros(1000)
    for name, args in (("plain arguments", (1, "x", [2.5])), ("an array as argument", (array,))):
        yield paired(
            f"an unchanged function again, {name}",
            lambda args=args: 1e6 * seconds(lambda: [reach(f, *args) for _ in range(AGAIN)]) / AGAIN,  # type: ignore[misc]
            lambda: 1e6 * seconds(lambda: [cloudpickle.dumps(f) for _ in range(AGAIN // 20)]) / (AGAIN // 20),
            pairs=3, unit="µs", peer_name="cloudpickle.dumps() of it", target="<= 20 µs",
        )  # fmt: skip
