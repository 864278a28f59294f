"""The ``.pyc`` files that conda packages bring: taken over instead of compiled again, which would take far longer.

Theirs name the time of their source, which a tarball does not keep.  So the first 16 bytes are replaced by those of an
unchecked-hash ``.pyc`` (PEP 552); the code that follows stays, as the package's author built it.  The same package
gives the same bytes.
"""

from __future__ import annotations

import _imp
import posixpath
import struct
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from poncho_wq.packing.layers import Entry, OnDisk, WithHead

if TYPE_CHECKING:
    from poncho_wq.packing.planning import Plan

# What the .pyc files of each release begin with (Lib/importlib/_bootstrap_external.py); fixed once a release is out.
_MAGIC = {"3.7": 3394, "3.8": 3413, "3.9": 3425, "3.10": 3439, "3.11": 3495, "3.12": 3531, "3.13": 3571, "3.14": 3627}
_HASH_BASED, _CHECKED = 1, 2


def is_bytecode(path: str) -> bool:
    """Whether ``path`` is one of the files that the interpreter itself would write."""
    return path.endswith(".pyc") and posixpath.basename(posixpath.dirname(path)) == "__pycache__"


def adopt(plans: Sequence[Plan], python: str | None, edited: frozenset[str]) -> tuple[list[Plan], frozenset[str]]:
    """The plans with the ``.pyc`` files that fit, in their new form, and without the others.

    ``python`` is the environment's version; the sources in ``edited`` are changed after unpacking.  Also returns the
    sources that need not be compiled.
    """
    minor = ".".join((python or "").split(".")[:2])
    done: set[str] = set()
    adopted = []
    for plan in plans:
        if not any(is_bytecode(entry.path) for entry in plan.entries):
            adopted.append(plan)
            continue
        sources = {entry.path: entry for entry in plan.entries if entry.path.endswith(".py") and entry.kind == "file"}
        kept = []
        for entry in plan.entries:
            if not is_bytecode(entry.path):
                kept.append(entry)
                continue
            source = sources.get(_source_of(entry.path, minor) or "")
            if source is not None and source.path not in edited and _fits(entry, source, minor):
                kept.append(_unchecked(entry, source))
                done.add(source.path)
        adopted.append(replace(plan, entries=tuple(kept)))
    return adopted, frozenset(done)


def _source_of(path: str, minor: str) -> str | None:
    """The module that ``path`` is the compiled form of, for CPython ``minor``; None for optimised and other forms."""
    folder, name = posixpath.split(path)
    ending = f".cpython-{minor.replace('.', '')}.pyc"
    if not name.endswith(ending) or not path.startswith(f"lib/python{minor}/"):
        return None
    return f"{posixpath.dirname(folder)}/{name.removesuffix(ending)}.py"


def _fits(entry: Entry, source: Entry, minor: str) -> bool:
    """Whether the ``.pyc`` was made from this very source: its size is recorded in it, or its hash."""
    if not isinstance(entry.content, OnDisk) or not isinstance(source.content, OnDisk) or minor not in _MAGIC:
        return False
    try:
        with open(entry.content.path, "rb", buffering=0) as stream:
            head = stream.read(16)
    except OSError:
        return False  # packing says what is wrong with it
    if len(head) < 16 or head[:4] != magic(minor):
        return False
    flags: int
    size: int
    flags, _, size = struct.unpack("<4xIII", head)
    if flags & _HASH_BASED:
        return head[8:] == _source_hash(source.content, head[:4])
    return flags == 0 and size == source.content.size & 0xFFFFFFFF


def magic(minor: str) -> bytes:
    """The first four bytes of the ``.pyc`` files of CPython ``minor`` (``"3.11"``)."""
    return _MAGIC[minor].to_bytes(2, "little") + b"\r\n"


def _unchecked(entry: Entry, source: Entry) -> Entry:
    pyc, text = entry.content, source.content
    assert isinstance(pyc, OnDisk)
    assert isinstance(text, OnDisk)

    def head() -> bytes:
        with open(pyc.path, "rb", buffering=0) as stream:
            start = stream.read(4)
        return start + struct.pack("<I", _HASH_BASED) + _source_hash(text, start)

    # What is written differs from what was hashed, and the layer's recipe must say so.
    return replace(entry, content=WithHead(file=pyc, head=head), digest=f"{entry.digest} unchecked")


def _source_hash(source: OnDisk, start: bytes) -> bytes:
    with open(source.path, "rb") as stream:
        return _imp.source_hash(int.from_bytes(start, "little"), stream.read())
