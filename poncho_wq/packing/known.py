"""Files that need not be there to be packed: what an earlier build has given, by the digests of then.

A layer of such files is taken from the store.  Where the store does not have it, or where files that are there are not
what they were, ``NotAsKnown`` says that the prefix has to be built in full.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from poncho_wq.errors import PackError

if TYPE_CHECKING:
    from poncho_wq.build import FileGroup
    from poncho_wq.packing.layers import Entry


class NotAsKnown(PackError):
    """The prefix cannot be packed from what is known of it.  Never shown: whoever gets it builds the whole."""


@dataclass(frozen=True, kw_only=True)
class Absent:
    """The content of a file that is not there, ``size`` bytes."""

    size: int


def check(groups: Iterable[FileGroup], entries: Mapping[str, Entry]) -> None:
    """Raises ``NotAsKnown`` unless ``entries``, by path and with digests, are what is known of the groups there."""
    for group in groups:
        if group.there and group.known:
            paths = (name.rstrip("/") for name in group.files)
            found = [_facts(entries[path]) for path in paths if path in entries]
            if sorted(found) != sorted(map(_facts, group.known)):
                raise NotAsKnown(f"{group.name}: is not what it was")


def _facts(entry: Entry) -> tuple[str, str, int, str, str, int]:
    return entry.path, entry.kind, entry.mode, entry.digest, entry.target, entry.size
