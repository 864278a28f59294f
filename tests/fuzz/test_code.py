"""Scripts and notebooks: the imports in them, or an error; nothing of them is imported or run."""

from __future__ import annotations

import json

from hypothesis import strategies as st

from poncho_wq.analysis.sources import read_source
from poncho_wq.analyze import analyze_scripts, explain
from tests.fuzz.campaign import Campaign
from tests.fuzz.strategies import changed, damaged, deep, documents
from tests.fuzz.test_descriptions import JSON_WORDS

CELLS = (
    "%%time\nimport os, numpy as np\n", "!pip install x\nfrom . import a\n", "x = %sql select\nimport importlib\n",
    "%%bash\nrm -rf x\n", "def f():\n    import json\n    return json?\n", "async def g():\n    from a.b import *\n",
    "%matplotlib \\\n inline\n",
)  # fmt: skip
NOTEBOOK = {
    "cells": [{"cell_type": "code", "source": [line + "\n" for line in CELLS[0].split("\n")]}]
    + [{"cell_type": "code", "source": each} for each in CELLS[1:]]
    + [{"cell_type": "markdown", "source": "# x"}],
    "metadata": {"kernelspec": {"language": "python"}, "language_info": {"name": "python"}},
    "nbformat": 4,
}
OLD = {"worksheets": [{"cells": [{"cell_type": "code", "input": "import a"}]}], "metadata": {}}
KEYS = (
    "cells",
    "cell_type",
    "source",
    "input",
    "worksheets",
    "metadata",
    "kernelspec",
    "language_info",
    "name",
    "language",
    "code",
)
SCRIPT = b"""# -*- coding: utf-8 -*-
import os, a.b as c
from ..x import *
try:
    import numpy
except ImportError:
    numpy = None
def f(n, *, m=[i for i in range(3)]):
    global h
    from z import y
    return (lambda: importlib.import_module("q"))()
class C(f.D):
    def g(self): return __import__("p" + "k", fromlist=["r"])
match h:
    case {"k": [w, *_]}: pass
if __name__ == "__main__": f(1)
"""
WORDS = (
    b"import ", b"\nimport " + b"x" * 300 + b"\n", b"from ", b"import *", b" as ", b"\n", b"    ", b"\t", b"(", b")",
    b"[", b"lambda: ", b"yield ", b"await ", b"%%", b"%x", b"!ls", b"x?", b"\\\n", b"'''", b'"""', b"f'{",
    b"# coding: rot13\n", b"\x0c", b"global f\n", b"nonlocal x\n", b"del ", b":=", b"importlib.import_module(",
    b"__import__(", b"from . import ", b"import " + b"a." * 2000 + b"b\n", deep("("), b"-" * 5000, b"x" + b".y" * 3000,
    b"if 1:\n" * 90, b"@" * 9, b"type X[T] = ", b"9" * 6000, b"0x" * 9,
)  # fmt: skip
FUNCTIONS = st.sampled_from(((), (), ("f",), ("C.g",), ("f.f",), ("",), ("..",), ("\ud800",)))


def test_scripts(campaign: Campaign) -> None:
    file = campaign.directory / "script.py"

    def case(data: bytes, functions: tuple[str, ...], toplevel: bool) -> None:
        file.write_bytes(data)
        analyze_scripts([read_source(file)], functions=functions, toplevel=toplevel)
        explain(file)

    campaign.run("script", case, data=damaged((SCRIPT,), WORDS), functions=FUNCTIONS, toplevel=st.booleans())


def test_notebooks(campaign: Campaign) -> None:
    file = campaign.directory / "notebook.ipynb"
    good = (NOTEBOOK, OLD)

    def case(data: bytes, functions: tuple[str, ...]) -> None:
        file.write_bytes(data)
        analyze_scripts([read_source(file)], functions=functions)

    texts = (changed(good, KEYS, CELLS) | documents(KEYS, CELLS)).map(lambda each: json.dumps(each).encode())
    broken = damaged(tuple(json.dumps(each).encode() for each in good), (*JSON_WORDS, *WORDS, deep('{"cells":[')))
    campaign.run("notebook", case, data=texts | broken, functions=FUNCTIONS)
