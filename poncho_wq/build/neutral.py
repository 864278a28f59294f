"""Making files forget where they were made.

A tarball travels to other machines and other people.  What names this one, its user or their directories is replaced,
in binaries by text of the same length.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

# What is the same on every machine says nothing about this one; nor does a directory at the root (/usr, /sw, /tmp).
_EVERYWHERE = "/usr/local"


class Neutral:
    """Replaces the directories ``places`` wherever a path to them is written, and ``home``, the user's, as well."""

    def __init__(self, places: Sequence[Path], *, home: Path | None = None) -> None:
        self._home = set() if home is None else {os.path.abspath(home), os.path.realpath(home)}
        texts = (
            {os.path.abspath(place) for place in places} | {os.path.realpath(place) for place in places} | self._home
        )
        telling = [text for text in texts if text.count("/") > 1 and text != _EVERYWHERE]
        # The longest first: /home/a/python before /home/a.
        self._places = sorted(telling, key=lambda text: (-len(text), text))
        each = b"|".join(re.escape(os.fsencode(place)) for place in self._places) or b"(?!)"
        # Up to the end of its last name; wherever it begins, since it may follow an option (-L) or another root (.).
        self._pattern = re.compile(rb"(?:" + each + rb")(?![A-Za-z0-9_.\-])")

    def replace(self, text: str, by: str) -> str:
        """``text`` with ``by`` for each of the places."""
        return os.fsdecode(self._pattern.sub(lambda match: os.fsencode(by), os.fsencode(text)))

    def clean(self, data: bytes) -> bytes:
        """``data`` with another path of the same length for each of the places."""
        if not any(os.fsencode(place) in data for place in self._places):
            return data  # searched for in a fraction of the time that the pattern takes
        return self._pattern.sub(self._same_length, data)

    def _same_length(self, match: re.Match[bytes]) -> bytes:
        """Another path of the same length that exists nowhere, with the same last name unless that is the user's.

        Linkers let one constant be the end of another: the "3.12.1" of ``sys.version`` may be the very bytes at the end
        of "/home/me/versions/3.12.1".
        """
        path = match[0]
        kept = b"" if os.fsdecode(path) in self._home else b"/" + os.path.basename(path)
        return (b"/nonexistent" + b"_" * len(path))[: len(path) - len(kept)] + kept

    def rewrite(self, path: Path) -> bool:
        """Clean the file ``path``; True when it changed."""
        data = path.read_bytes()
        cleaned = self.clean(data)
        if cleaned != data:
            replace_file(path, cleaned)
        return cleaned != data


def home_directory() -> Path | None:
    """The user's home directory; None for a user that has none, such as a container's made-up one."""
    home = os.path.expanduser("~")
    return Path(home) if os.path.isabs(home) else None


def replace_file(path: Path, data: bytes) -> None:
    """Put a new file with ``data`` and the same mode in the place of ``path``.

    Never the old one rewritten: it may be a hard link into uv's cache, and so into other environments.
    """
    new = path.with_name(f".{path.name}.new")
    new.write_bytes(data)
    new.chmod(path.stat().st_mode & 0o7777)
    new.replace(path)
