"""Console scripts that work wherever the prefix is.

Installers write the interpreter's absolute path into a script's first line.  Here a script begins as one of `/bin/sh`
that starts the interpreter beside it, and Python reads that beginning as a string.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from pathlib import Path

from poncho_wq.build.neutral import replace_file

# To the shell, `''':'` is the command `:`; to Python it opens the string that ends before the script's own code.
# Nothing but POSIX sh: `ls -ld` is how that reads a symbolic link.  A hostile PYTHONHOME would stop the interpreter.
_HEAD = """\
#!/bin/sh
# -*- coding: utf-8 -*-
''':'
_poncho_script=$0
case $_poncho_script in
*/*) ;;
*) [ -f "./$_poncho_script" ] && _poncho_script=./$0 || _poncho_script=$(command -v -- "$0") ;;
esac
_poncho_real=$_poncho_script
while [ -h "$_poncho_real" ]; do
    _poncho_link=$(QUOTING_STYLE=literal ls -ld -- "$_poncho_real")
    _poncho_link=${_poncho_link#*"$_poncho_real -> "}
    case $_poncho_link in
    /*) _poncho_real=$_poncho_link ;;
    *) _poncho_real=${_poncho_real%/*}/$_poncho_link ;;
    esac
done
unset PYTHONHOME
exec "${_poncho_real%/*}/@PYTHON@" "$_poncho_script" "$@"
'''
"""
# What uv writes instead of `#!/path/python` where that is too long for the kernel or has blanks in it.
_LONG_FORM = re.compile(rb"#!/bin/sh\n'''exec' (?P<program>.+?) \"\$0\" \"\$@\"\n' '''\n")


def make_portable(script: Path, interpreters: Sequence[str], program: str) -> bool:
    """Rewrite ``script`` if one of ``interpreters`` (paths) runs it, so that ``program`` beside it does; True if so."""
    data = script.read_bytes()
    body = _without_first_line(data, interpreters)
    if body is None:
        return False
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError:
        return False
    replace_file(script, (_HEAD.replace("@PYTHON@", program) + _with_docstring_kept(text)).encode("utf-8"))
    script.chmod(0o755)
    return True


def _without_first_line(data: bytes, interpreters: Sequence[str]) -> bytes | None:
    """What follows the line that names the interpreter, or None when ``data`` is not a script of one of them."""
    long = _LONG_FORM.match(data)
    if long:
        named, body = long["program"], data[long.end() :]
    elif data.startswith(b"#!"):
        named, _, body = data[2:].partition(b"\n")
    else:
        return None
    words = named.decode("utf-8", "replace").strip().strip("'\"")
    if not any(words == each or words.startswith(f"{each} ") for each in interpreters):
        return None
    return body


def _with_docstring_kept(text: str) -> str:
    """``text`` such that a string before it does not become its docstring (programs print that as their help)."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return text
    first = tree.body[0] if tree.body else None
    docstring = ast.get_docstring(tree, clean=False)
    if docstring is None or first is None:
        return text
    lines = text.splitlines(keepends=True)
    last = tree.body[1] if len(tree.body) > 1 else None
    if last is not None and last.lineno == first.end_lineno:
        return text  # `"""doc"""; import x`: nobody writes that, and it cannot be taken apart by lines
    assert first.end_lineno is not None
    lines[first.lineno - 1 : first.end_lineno] = ["\n"] * (first.end_lineno - first.lineno + 1)
    # `from __future__` may follow nothing but a docstring.
    after = first.end_lineno
    for node in tree.body[1:]:
        if isinstance(node, ast.ImportFrom) and node.module == "__future__" and node.end_lineno is not None:
            after = node.end_lineno
    lines.insert(after, f"__doc__ = {docstring!r}\n")
    return "".join(lines)
