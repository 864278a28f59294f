"""Taking a prefix's own path out of its files again: the placeholder returns to where linking put the path.

conda and its kin write the path of a new prefix over a placeholder that its packages were built with.  The record of a
package says where (``prefix_placeholder``, ``file_mode``) and what the file was before (``sha256``), so that undoing it
can be proved right.  Files without such a record (pip's, and those made by hand) are edited by what they look like.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence

from poncho_wq.build.relocation import PLACEHOLDER
from poncho_wq.errors import BuildError

_NEW = PLACEHOLDER.encode()
_LARGEST_TEXT = 4 << 20  # bytes of a file that no package lists; more is data


def unlink(data: bytes, kind: str, built_with: str, names: Sequence[str], *, sha256: str | None, path: str) -> bytes:
    """``data`` with ``PLACEHOLDER`` for the prefix that it was linked into.

    ``kind`` is ``"text"`` or ``"binary"`` and ``built_with`` the placeholder of the package, as its record says.
    ``names`` are the paths that the prefix has here, any of which may have been written; ``sha256`` is of the file in
    the package, None where not known.  Raises ``BuildError`` for a binary that cannot be undone.
    """
    there = [name for name in map(os.fsencode, names) if name in data]
    old = os.fsencode(built_with)
    for name in there:
        original = data.replace(name, old) if kind == "text" else _swap(data, name, old)
        if original is not None and hashlib.sha256(original).hexdigest() == sha256:
            linked = original.replace(old, _NEW) if kind == "text" else _swap(original, old, _NEW)
            if linked is not None:
                return linked
    if not there or hashlib.sha256(data).hexdigest() == sha256:
        return data  # linking wrote nothing, whatever it looks like
    if kind == "text":
        return unlink_text(data, names)
    for name in there:
        swapped = _swap(data, name, _NEW)
        if swapped is None:
            raise BuildError(
                f"{path} names the prefix and has no room for a longer path",
                advice="create the environment again from its export: conda env export > environment.yml",
            )
        data = swapped
    return data


def unlink_text(data: bytes, names: Sequence[str]) -> bytes:
    """``data``, a text, with ``PLACEHOLDER`` for each of ``names``, the longest first, where its last name ends."""
    each = b"|".join(re.escape(os.fsencode(name)) for name in names)
    return re.sub(rb"(?:" + each + rb")(?![A-Za-z0-9_\-]|\.[A-Za-z0-9])", lambda _: _NEW, data)


def is_text(data: bytes) -> bool:
    """Whether a file that no package lists can be edited as a text."""
    return len(data) <= _LARGEST_TEXT and b"\0" not in data


def _swap(data: bytes, old: bytes, new: bytes) -> bytes | None:
    """``data`` with ``new`` for ``old`` in its zero-terminated texts, everything else staying where it is.

    A text that shrinks is filled up with zeros, as linking does; one that grows takes them.  None where there are too
    few.
    """
    out, done = bytearray(), 0
    while (at := data.find(old, done)) >= 0:
        end = data.find(b"\0", at)
        end = len(data) if end < 0 else end
        text = data[at:end].replace(old, new)
        grown = len(text) - (end - at)
        out += data[done:at] + text
        if grown > 0 and data[end : end + grown] != bytes(grown):
            return None
        out += bytes(max(-grown, 0))
        done = end + max(grown, 0)
    return bytes(out + data[done:])
