"""Python source as a tree, wherever it stands: a script, a notebook, standard input. Nothing is imported or run."""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from poncho_wq.analysis.model import Place
from poncho_wq.errors import AnalysisError

# Cell magics whose body is Python and runs; the body of any other (%%bash, %%html, %%writefile …) is not.
_PYTHON_CELLS = frozenset(
    ("capture", "debug", "memit", "mprun", "lprun", "prun", "python", "python3", "pypy", "time", "timeit")
)
_MAGIC = re.compile(r"\s*(?:%|!|\?)|.*\?\??\s*$|\s*[\w.,\s\[\]\"'()]+=\s*[%!]")


@dataclass(frozen=True)
class Source:
    """A parsed file. `directory` is where Python would look first for what it imports; None when unknown.

    `cells` holds, for a notebook, the first line and the number of each code cell within `tree`.
    """

    name: str
    tree: ast.Module
    directory: Path | None
    cells: tuple[tuple[int, int], ...] = field(default=())

    def place(self, line: int) -> Place:
        """The place of a line of `tree`, as a person would look for it."""
        for first, cell in reversed(self.cells):
            if line >= first:
                return Place(file=self.name, line=line - first + 1, cell=cell)
        return Place(file=self.name, line=line)


def read_source(path: str | Path) -> Source:
    """Read a script or, by its suffix `.ipynb`, a notebook. Raises `AnalysisError` naming file and line."""
    path = Path(path)
    try:
        data = path.read_bytes()
    except IsADirectoryError:
        raise AnalysisError(f"{path}: is a directory, not a script") from None
    except FileNotFoundError:
        raise AnalysisError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise AnalysisError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    return source_from_bytes(data, name=str(path), directory=path.absolute().parent)


def source_from_bytes(data: bytes, *, name: str, directory: Path | None) -> Source:
    """Parse a script or notebook that was read already; `name` is what messages call it."""
    if name.endswith(".ipynb"):
        return _notebook(data, name=name, directory=directory)
    return Source(name=name, tree=_parse(data, name), directory=directory)


def _parse(text: str | bytes, name: str) -> ast.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "invalid escape sequence" is between the user and Python
            return ast.parse(text, filename=name)
    except SyntaxError as error:
        place = f"{name}:{error.lineno}" if error.lineno else name
        raise AnalysisError(
            f"{place}: not Python as this version reads it: {error.msg}",
            advice=_python2_advice(error.msg or ""),
        ) from None
    except (RecursionError, MemoryError):
        raise AnalysisError(f"{name}: too deeply nested to be parsed") from None
    except ValueError as error:  # null bytes
        raise AnalysisError(f"{name}: not Python: {error}") from None


def _python2_advice(message: str) -> str | None:
    if "parentheses in call to" in message:
        return "this looks like Python 2, which is not supported"
    return None


def _notebook(data: bytes, *, name: str, directory: Path | None) -> Source:
    """The code cells of a notebook as one module, each followed by an empty line."""
    try:
        document = json.loads(data)
        language = _language(document)
        texts = [_text(cell) for cell in _cells(document) if cell.get("cell_type") == "code"]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise AnalysisError(f"{name}: not a Jupyter notebook") from None
    if language != "python":
        raise AnalysisError(f"{name}: a notebook in {language}; only Python can be analyzed")
    body: list[ast.stmt] = []
    places: list[tuple[int, int]] = []
    first = 1
    for number, text in enumerate(texts, start=1):
        tree = _parse_cell(text, f"{name}[cell {number}]")
        ast.increment_lineno(tree, first - 1)
        body.extend(tree.body)
        places.append((first, number))
        first += text.count("\n") + 2
    return Source(name=name, tree=ast.Module(body=body, type_ignores=[]), directory=directory, cells=tuple(places))


def _cells(document: Any) -> Iterable[Any]:
    if "cells" in document:
        return list(document["cells"])
    return [cell for sheet in document["worksheets"] for cell in sheet["cells"]]  # nbformat 3


def _language(document: Any) -> str:
    metadata = document.get("metadata", {})
    for section, key in (("language_info", "name"), ("kernelspec", "language")):
        if metadata.get(section, {}).get(key):
            return str(metadata[section][key]).lower()
    return "python"


def _text(cell: Any) -> str:
    source = cell["source"] if "source" in cell else cell["input"]
    return source if isinstance(source, str) else "".join(source)


def _parse_cell(text: str, name: str) -> ast.Module:
    """Parse a cell, taking out what only IPython understands.

    A line goes only if Python itself stumbles over it, so that `%` in a continued expression or a string stays.
    """
    lines = text.split("\n")
    start = next((number for number, line in enumerate(lines) if line.strip()), None)
    if start is not None and lines[start].startswith("%%"):
        magic = re.match(r"%%(\w*)", lines[start])
        if magic is None or magic[1] not in _PYTHON_CELLS:
            return ast.Module(body=[], type_ignores=[])
        lines[start] = ""
    while True:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return ast.parse("\n".join(lines), filename=name)
        except SyntaxError as error:
            bad = (error.lineno or 1) - 1
            if not (0 <= bad < len(lines) and _MAGIC.match(lines[bad])):
                bad = next((n for n, line in enumerate(lines) if _MAGIC.match(line) and line.lstrip()[:1] in "%!?"), -1)
            if bad < 0:
                return _parse("\n".join(lines), name)
            _take_out(lines, bad)
        except (ValueError, RecursionError, MemoryError):
            return _parse("\n".join(lines), name)


def _take_out(lines: list[str], bad: int) -> None:
    """Replace line `bad`, and those that it is continued on, by `pass` at the same depth."""
    continued = lines[bad].rstrip().endswith("\\")
    lines[bad] = lines[bad][: len(lines[bad]) - len(lines[bad].lstrip())] + "pass"
    while continued and bad + 1 < len(lines):
        bad += 1
        continued = lines[bad].rstrip().endswith("\\")
        lines[bad] = ""
