"""``.pyc`` files of a prefix, the same bytes wherever and however often they are made.

A layer's sources are cut into chunks that depend on nothing but the layer itself; each chunk is compiled in a fresh
process of the prefix's own interpreter (``compile_chunk`` says why).  Chunks may run at the same time in any order.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from poncho_wq.command import run
from poncho_wq.errors import BuildError, PackError
from poncho_wq.scratch import disk_error

# A process costs 10 ms and compiling a file 2 ms (measured, CPython 3.11).
_FILES_PER_CHUNK = 64
_BYTES_PER_CHUNK = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Slice:
    """``size`` bytes at ``offset`` of the file ``path``: one ``.pyc`` among those of its chunk."""

    path: Path
    offset: int
    size: int


@dataclass(frozen=True, kw_only=True)
class Compiler:
    """How the sources of one prefix are compiled.

    ``identity`` (64 hexadecimal digits) covers whatever the bytes depend on besides the sources themselves: part of a
    layer's recipe.  ``left_out`` are sources that are not compiled.
    """

    prefix: Path
    interpreter: Path
    version: str
    identity: str
    left_out: frozenset[str] = frozenset()

    def covers(self, path: str) -> bool:
        """Whether ``path`` is to be compiled: ``.py`` under ``lib/pythonX.Y/``, but not a package's own tests.

        With numpy, scipy and pandas every second file is a test, which no task imports (and which works without).
        """
        if path in self.left_out:
            return False
        # A name that is not UTF-8 cannot be a module's, and cannot be passed to the child as text.
        if not path.endswith(".py") or not path.startswith(f"lib/python{self.version}/") or not path.isprintable():
            return False
        return "/tests/" not in path

    def compile(self, sources: Sequence[str], blob: Path) -> Mapping[str, Slice]:
        """Compile ``sources`` (paths in the prefix), write all results into ``blob`` and say what lies where.

        The keys are where each ``.pyc`` belongs (PEP 3147); what does not compile is left out.

        Raises ``PackError`` when the interpreter fails, ``CacheError`` when the disk is full.
        """
        # Nothing of the user's environment: PYTHON*, locale and HOME would all change what the interpreter does.
        environment = {"PYTHONHASHSEED": "0"}
        argv: list[str | Path] = [self.interpreter, "-S", "-s", "-B", "-W", "ignore", "-X", "utf8"]
        # Modules that start the interpreter come from sources, whether or not somebody left their .pyc in the prefix.
        argv += ["-X", f"pycache_prefix={blob}.none", "-c", _CHILD, blob]
        try:
            done = run(argv, cwd=self.prefix, env=environment, stdin="\0".join(sources), what="byte-compile modules")
        except BuildError as error:
            failed = _CHILD_FAILED.search(error.log)
            if failed and int(failed[1]) in (errno.ENOSPC, errno.EDQUOT):
                full = OSError(int(failed[1]), os.strerror(int(failed[1])))
                raise disk_error(full, blob.parent, "could not byte-compile modules") from error
            raise PackError(error.message, command=error.command, log=error.log) from error
        tag, *sizes = done.stdout.split("\n")
        found = {}
        offset = 0
        for source, size in zip(sources, map(int, sizes), strict=True):
            if size:
                folder, _, name = source.rpartition("/")
                found[f"{folder}/__pycache__/{name[:-3]}.{tag}.pyc"] = Slice(path=blob, offset=offset, size=size)
            offset += size
        return found


def compiler_for(
    prefix: Path, python: str, digests: Mapping[str, str], *, left_out: frozenset[str] = frozenset()
) -> Compiler:
    """The compiler for a prefix whose interpreter is ``python`` (full version).

    ``digests`` has the sha256 of the prefix's regular files, by path.  Raises ``PackError`` when the interpreter is
    missing.
    """
    version = ".".join(python.split(".")[:2])
    interpreter = prefix.absolute() / "bin" / f"python{version}"
    if not os.access(interpreter, os.X_OK):
        raise PackError(f"{prefix}: has no bin/python{version}, though its Python is said to be {python}")
    # The version alone does not tell two builds of one release apart; the files that make the interpreter do.
    real = os.path.relpath(interpreter.resolve(), prefix.resolve())
    parts = [path for path in digests if path == real or path.startswith("lib/libpython")]
    facts = [python, _CHILD, *(f"{path} {digests[path]}" for path in sorted(parts))]
    identity = hashlib.sha256("\0".join(facts).encode("utf-8", "surrogateescape")).hexdigest()
    return Compiler(prefix=prefix, interpreter=interpreter, version=version, identity=identity, left_out=left_out)


def chunks(sources: Sequence[tuple[str, int]]) -> Iterator[list[str]]:
    """Cut ``sources`` (path and size in bytes, sorted by path) into the portions that one process compiles."""
    chunk: list[str] = []
    total = 0
    for path, size in sources:
        if chunk and (len(chunk) == _FILES_PER_CHUNK or total + size > _BYTES_PER_CHUNK):
            yield chunk
            chunk, total = [], 0
        chunk.append(path)
        total += size
    if chunk:
        yield chunk


# Last line of a traceback; a source that cannot be read is skipped, so this is about the results.
_CHILD_FAILED = re.compile(r"^OSError: \[Errno (\d+)\]", re.MULTILINE)
_CHILD = Path(__file__).with_name("compile_chunk.py").read_text(encoding="utf-8")
