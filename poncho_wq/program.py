"""The runner as one file, which starts as fast as Python itself does.

    poncho-runner-DIGEST.py     a few lines of Python, with the byte code of ``runner.py`` as a base64 literal, which
                                Python reads in half the time that it takes for one with escapes
    # SOURCES                   the same as text, for a Python that cannot use that byte code: to say what is wrong
    # CLOUDPICKLE               this cloudpickle, compiled; read by those tasks alone that need the whole of it
    # WARM                      the modules of ``warm/`` that run there, compiled; for the first task of a worker

The last three are comments, base64 of marshalled dictionaries.  One file, since each costs the manager and every worker
something for every task; no zip, whose import machinery costs a task more than its own work does.

Nearly every function needs a handful of cloudpickle's helpers to be loaded, and importing cloudpickle for them takes
longer than starting Python.  So the byte code holds *lean* copies of those of its functions that depend on nothing
else in it that has a state.  They are taken from the cloudpickle that this manager pickles with, when the program is
made: whatever its version, they are what it would have run itself.
"""

from __future__ import annotations

import ast
import base64
import builtins
import importlib.util
import marshal
import os
import sys
from functools import cache
from pathlib import Path

import cloudpickle

from poncho_wq import staging

# What every interpreter has loaded before it runs anything, or builds in: free to import.
_FREE = frozenset({"builtins", "sys", "types"})
_PACKAGE = "cloudpickle"
# 2 is the last version whose bytes do not depend on what else refers to the strings in them: they are the file's name.
# Python 3.14 has slices among its constants, which only 5 can write; there all strings of code are marked, always.
_MARSHAL = 2 if sys.version_info < (3, 14) else 5

_TEXT = """\
# poncho_wq's runner; what it is, the module poncho_wq.program says.
import sys
_magic = {magic!r}
_sources, _whole = "# SOURCES ", "# CLOUDPICKLE "
def _tail(mark, file=__file__ if __file__[:1] == "/" else __import__("os").getcwd() + "/" + __file__):
    import binascii, marshal
    with open(file, encoding="ascii") as stream:
        for line in stream:
            if line.startswith(mark):
                return marshal.loads(binascii.a2b_base64(line[len(mark):]))
if sys.modules["_frozen_importlib_external"].MAGIC_NUMBER == _magic:
    import binascii, marshal
    _lean, _code = marshal.loads(binascii.a2b_base64({code!r}))
else:
    _lean, _code = [compile(text, name, "exec") for name, text in _tail(_sources)]
exec(_code)
"""


def runner_program() -> staging.SharedFile:
    """The file.  Raises ``EngineError`` when it cannot be written."""
    # A forked child has a staging directory of its own, since its parent's may go any time.
    return _runner_program(os.getpid())


@cache
def _runner_program(pid: int) -> staging.SharedFile:
    return staging.share("poncho-runner", _assembled(), ".py")


def warm_client(server: str, fresh: str) -> staging.SharedFile:
    """The shell's part of a warm interpreter: a file to be sourced, with its name as ``$1`` and then the runner's
    words.

    ``server`` names the servers that will do, and ``fresh`` is the command for where there is none, which finds the
    runner's words as ``"$@"`` and the directory where a server may be started as ``$_poncho_warm``.  Both are part of
    the file, since a shell that has to start again must know them.  Raises ``EngineError`` when it cannot be written.
    """
    return _warm_client(os.getpid(), server, fresh)


@cache
def _warm_client(pid: int, server: str, fresh: str) -> staging.SharedFile:
    text = Path(__file__).parent.joinpath("warm", "client.sh").read_text(encoding="ascii")
    # A worker's shell reads it for every task: without the comments.
    lines = [line for line in map(str.strip, text.splitlines()) if line[:1] not in ("#", "")]
    content = "\n".join([f"_poncho_id={server}", *lines, fresh, ""])
    return staging.share("poncho-warm", content.encode("utf-8", "surrogateescape"), ".sh")


@cache
def _assembled() -> bytes:
    runner = Path(__file__).with_name("runner.py").read_text(encoding="utf-8")
    sources = [("<lean cloudpickle>", lean_cloudpickle()), ("poncho-runner", runner)]
    code = [compile(text, name, "exec", dont_inherit=True) for name, text in sources]
    whole = {
        file.stem: compile(file.read_bytes(), f"{_PACKAGE}/{file.name}", "exec", dont_inherit=True)
        for file in sorted(Path(cloudpickle.__file__).parent.glob("*.py"))
    }
    text = _TEXT.format(magic=importlib.util.MAGIC_NUMBER, code=base64.b64encode(marshal.dumps(code, _MARSHAL)))
    warm = {
        name: compile(
            Path(__file__).parent.joinpath("warm", name + ".py").read_bytes(), name, "exec", dont_inherit=True
        )
        for name in ("starting", "fitness", "settling", "order", "children", "child", "server")
    }
    for mark, content in (("SOURCES", sources), ("CLOUDPICKLE", whole), ("WARM", warm)):
        text += f"# {mark} {base64.b64encode(marshal.dumps(content, _MARSHAL)).decode()}\n"
    return text.encode("ascii")


def lean_cloudpickle() -> str:
    """Source of those of cloudpickle's functions that stand on built-ins, the modules in ``_FREE`` and one another.

    A module-level name that is assigned to may be a state, which must be one for all: what uses it is left out.
    """
    path = Path(cloudpickle.__file__).with_name("cloudpickle.py")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    offered = {node.name: node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    needs = {name: _globals_of(node) for name, node in offered.items()}
    free = {
        alias.asname or alias.name: alias.name
        for node in tree.body
        if isinstance(node, ast.Import)
        for alias in node.names
        if alias.name in _FREE
    }
    known = set(vars(builtins)) | {"__builtins__"} | set(free)
    good = set(offered)
    while bad := {name for name in good if not needs[name] <= known | good}:
        good -= bad
    imports = [f"import {module} as {name}" for name, module in sorted(free.items())]
    # In their order there: a decorator, or a default, stands before what uses it.
    return "\n".join([*imports, *(ast.unparse(node) for name, node in offered.items() if name in good)]) + "\n"


def _globals_of(node: ast.AST) -> set[str]:
    """Every name that the node loads and does not itself bind: its globals, or more."""
    loaded: set[str] = set()
    bound: set[str] = set()
    for each in ast.walk(node):
        if isinstance(each, ast.Name):
            (loaded if isinstance(each.ctx, ast.Load) else bound).add(each.id)
        elif isinstance(each, ast.arg):
            bound.add(each.arg)
        elif isinstance(each, ast.ExceptHandler) and each.name:
            bound.add(each.name)
        elif isinstance(each, (ast.Global, ast.Import, ast.ImportFrom)):
            # Too much to follow: it needs what no set of names has.
            loaded.add("*")
    return loaded - bound
