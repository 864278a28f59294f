"""How an environment goes to the workers of Work Queue, and to this machine's: as byte ranges of few files.

The first environment of a process goes as one file.  The next that shares members with it goes as those bytes of that
file, and one more file with what is new; ``packing.ranges`` decides.  Files are named by what they hold and stay for as
long as the process, so that a worker that has them is sent only what is new.  TaskVine has ways of its own: see
``vine_parts``.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path

from poncho_wq import staging
from poncho_wq.errors import CorruptTarball, EngineError
from poncho_wq.manifest import Manifest, read_manifest
from poncho_wq.packing.compression import suffix_of
from poncho_wq.packing.ranges import Carrier, Member, assemble, members_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Shipment:
    """``files``: (local path, remote name) of inputs.  The tarball is ``ranges`` of them, in the run wrapper's words
    (see ``--ranges`` in ``docs/formats/wrapper.md``), or all of them one after the other where that is empty.

    ``size`` of the tarball in bytes; ``shared``: how many of these are in files that this process has shipped before,
    with other environments, and that are not sent again to a worker that has them.
    """

    files: tuple[tuple[str, str], ...]
    size: int
    ranges: str = ""
    shared: int = 0

    @property
    def options(self) -> str:
        """For the run wrapper's command line; names and ranges need no quotes."""
        words = [word for _, name in self.files for word in ("-e", name)]
        return " ".join([*words, "--ranges", self.ranges] if self.ranges else words)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Staged:
    """A carrier, and the file that it is."""

    carrier: Carrier
    path: str
    facts: tuple[int, ...]

    def is_there(self) -> bool:
        """Whether it is what it was: where there are no hard links it is one that somebody else may change."""
        try:
            return _facts(self.path) == self.facts
        except OSError:
            return False


def _facts(path: str) -> tuple[int, ...]:
    found = os.stat(path)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


_lock = threading.Lock()
_shipments: dict[tuple[str, str], Shipment] = {}
_staged: list[_Staged] = []
# Of each whole tarball, by the identity in its name, the digest of its manifest: one name is one content.
_names: dict[str, str] = {}


def ship(tarball: Path, identity: str) -> Shipment:
    """The files of the environment ``identity``, the same ones whenever this process asks again.

    Raises ``EngineError`` when they cannot be staged, ``OSError`` when the tarball cannot be read.
    """
    key = str(tarball), identity
    with _lock:
        found = _shipments.get(key)
        if found is None:
            found = _shipments[key] = _ship(tarball, identity)
        return found


def readable_manifest(tarball: Path) -> Manifest | None:
    """The manifest of a tarball of ours; None of any other, and where it is damaged: a worker says better how.

    Raises ``OSError``.
    """
    try:
        return read_manifest(tarball)
    except CorruptTarball:
        return None


def as_one_file(tarball: Path, identity: str, manifest: Manifest | None) -> Shipment:
    """The tarball itself, by a path that tells which it is.  Raises what ``ship`` does."""
    name = identity[: staging.DIGEST_LENGTH]
    content = "" if manifest is None else manifest.members()[0][0]
    if _names.setdefault(name, content) != content:
        # The same environment from another compressor: what is in it lies elsewhere.
        name += f"-{content[: staging.DIGEST_LENGTH]}"
    name = f"poncho-env-{name}{suffix_of(tarball)}"
    return Shipment(files=((staging.link(name, tarball), name),), size=tarball.stat().st_size)


def _ship(tarball: Path, identity: str) -> Shipment:
    manifest = readable_manifest(tarball)
    members = () if manifest is None else members_of(manifest)
    found = _in_ranges(tarball, members) if members else None
    if found is None:
        found = as_one_file(tarball, identity, manifest)
        if members:
            ((path, name),) = found.files
            _keep(Carrier.of(name, members), path)
    return found


def _in_ranges(tarball: Path, members: tuple[Member, ...]) -> Shipment | None:
    """None where it goes as one file."""
    there = {each.carrier: each.path for each in _staged if each.is_there()}
    found = assemble(members, [*there])
    if found is None:
        return None
    numbers: dict[Carrier | None, int] = {}
    files = []
    if found.delta:
        # First, since it begins with the manifest.
        name = f"poncho-delta-{found.delta_name[: staging.DIGEST_LENGTH]}"
        try:
            path = staging.cut(name, tarball, [(member.offset, member.length) for member in found.delta])
        except EngineError:
            return None  # no room for a copy; a link takes none
        _keep(Carrier.of(name, found.delta), path)
        files.append((path, name))
        numbers[None] = 1
    for carrier in found.carriers:
        files.append((there[carrier], carrier.name))
        numbers[carrier] = len(files)
    size = sum(member.length for member in members)
    ranges = ",".join(f"{numbers[each.carrier]}:{each.offset}:{each.length}" for each in found.ranges)
    if len(files) == 1 and found.carriers and found.carriers[0].size == size:
        ranges = ""  # the same members as another tarball's, in the same order
    return Shipment(files=tuple(files), size=size, ranges=ranges, shared=size - found.sent)


def _keep(carrier: Carrier, path: str) -> None:
    if all(each.carrier.name != carrier.name or not each.is_there() for each in _staged):
        _staged[:] = [each for each in _staged if each.carrier.name != carrier.name]
        _staged.append(_Staged(carrier=carrier, path=path, facts=_facts(path)))


def _forget() -> None:
    """In a forked child: the staged files are the parent's."""
    global _lock
    _lock = threading.Lock()
    _shipments.clear()
    _staged.clear()
    _names.clear()


os.register_at_fork(after_in_child=_forget)
