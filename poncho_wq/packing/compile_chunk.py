"""Byte-compile some files, always to the same bytes.  Run by a prefix's own interpreter, never imported.

The caller passes this text to ``python -c`` (Python ≥ 3.7), in the prefix, with the names of the sources on stdin,
separated by NUL, and the file to write on the command line.  All ``.pyc`` contents go into that file one after another;
stdout gets the interpreter's cache tag (PEP 3147) and then a line for each source: the length of its ``.pyc``, or 0
when it does not compile.

Why a fresh process for each handful of files: ``marshal`` marks an object for later reference when more than one
reference to it is alive, so what else is interned in the process shows in the bytes.  From a fresh interpreter that was
given the same files in the same order, the same bytes come.
"""

from __future__ import annotations

import _frozen_importlib_external
import _imp
import gc
import marshal
import sys

TYPE_CHECKING = False  # `typing` is a large import, and would be alive in every process
if TYPE_CHECKING:
    from types import CodeType

# The collector runs by counting allocations; without it nothing but the sources decides what is alive.
gc.disable()
# `python -c` looks for modules in the current directory first, and that is the prefix.
sys.path[:1] = []

UNCHECKED_HASH = b"\1\0\0\0"  # PEP 552
MAGIC = _frozen_importlib_external.MAGIC_NUMBER


def reproducible(code: CodeType) -> bool:
    """Whether ``marshal`` gives the same bytes in every process.

    Before Python 3.11 a frozenset is written in the order of its hashes, and those of None and ``...`` are addresses.
    """
    for constant in code.co_consts:
        if isinstance(constant, frozenset):
            if not all(isinstance(item, (str, bytes, int, float, complex)) for item in constant):
                return False
        elif isinstance(constant, type(code)) and not reproducible(constant):
            return False
    return True


def compiled(name: str) -> bytes:
    with open(name, "rb") as stream:
        source = stream.read()
    # `name` is relative to the prefix: no machine's path gets into the file; the importer puts in the real one.
    code = compile(source, name, "exec", dont_inherit=True, optimize=0)
    if sys.version_info < (3, 11) and not reproducible(code):
        return b""
    digest = _imp.source_hash(int.from_bytes(MAGIC, "little"), source)
    return MAGIC + UNCHECKED_HASH + digest + marshal.dumps(code)


def main() -> None:
    names = sys.stdin.buffer.read().decode("utf-8").split("\0")
    lines = [sys.implementation.cache_tag]
    with open(sys.argv[1], "wb") as blob:
        for name in names:
            try:
                data = compiled(name)
            except Exception:
                # As compileall does: some packages ship templates, or code for another Python, under `.py`.
                data = b""
            blob.write(data)
            lines.append(str(len(data)))
    sys.stdout.write("\n".join(lines))


main()
