"""A tarball as byte ranges of files that workers may have, and of one file with the rest: which, and of what size.

A task names the files, each of which costs the engine something for every task; so there are few.  A *carrier* is a
file that was sent before, as a whole tarball or as the rest of one.  What no carrier has is the *delta*, which is a
carrier from then on.  A worker that has the carriers is sent the delta alone; one that has nothing is sent all of them,
with bytes in them that this tarball has no use for: the *waste*.

Nothing here touches a file.  A member of a tarball is known by its form, the digest of what it holds, and its length:
such members are interchangeable, whichever compressor made them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from poncho_wq.manifest import Manifest

MOST_FILES = 5
"""A tarball lies in at most so many files."""
MOST_RANGES = 32
"""And in at most so many ranges: they are part of every task's command, 25 bytes each."""
WASTE = 4
"""The waste is at most one part of so many of the tarball."""
SHARED = 4
"""At least one part of so many of the tarball is in carriers, or it is not worth it: the delta is a copy on disk."""
LEAST = 128
"""A carrier has at least one part of so many of the tarball.  Less is put into the delta again: one more file of every
task costs more than to send that."""
LEAST_RUN = 64 << 10
"""Bytes: shorter runs of members are put into the delta again, so that there are few ranges."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """``length`` bytes at ``offset`` of a tarball that can be decompressed by themselves; ``key`` is what they hold."""

    key: str
    offset: int
    length: int


def members_of(manifest: Manifest) -> tuple[Member, ...]:
    """All members, in order and without gaps: the manifest, the layers, the end of the archive."""
    found, at = [], 0
    for digest, length in manifest.members():
        found.append(Member(key=f"{manifest.compression} {digest} {length}", offset=at, length=length))
        at += length
    return tuple(found)


@dataclass(frozen=True, kw_only=True, eq=False)
class Carrier:
    """A file with members in it: ``offsets`` by their keys; ``size`` in bytes."""

    name: str
    size: int
    offsets: Mapping[str, int]

    @classmethod
    def of(cls, name: str, members: Iterable[Member]) -> Carrier:
        """The file that holds these members, one after the other, and nothing else."""
        offsets, size = {}, 0
        for member in members:
            offsets[member.key] = size
            size += member.length
        return cls(name=name, size=size, offsets=offsets)


@dataclass(frozen=True, kw_only=True, slots=True)
class Range:
    """``length`` bytes at ``offset`` of a file: of a carrier, or of the delta where that is None."""

    carrier: Carrier | None
    offset: int
    length: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Assembly:
    """``ranges``, one after the other, are the tarball.  ``carriers``: those that they are of; ``delta``: the members
    that are in none of these, in order, to be written one after the other."""

    carriers: tuple[Carrier, ...]
    delta: tuple[Member, ...]
    ranges: tuple[Range, ...]

    @property
    def sent(self) -> int:
        """Bytes of the delta."""
        return sum(member.length for member in self.delta)

    @property
    def delta_name(self) -> str:
        """Of the delta's content, 64 hexadecimal digits."""
        return hashlib.sha256("".join(f"{member.key}\n" for member in self.delta).encode()).hexdigest()


def assemble(members: Sequence[Member], carriers: Sequence[Carrier]) -> Assembly | None:
    """How to make the tarball of these members with the help of ``carriers``; None where it goes as one file."""
    size = sum(member.length for member in members)
    chosen = _choose(members, carriers, size)
    least = LEAST_RUN
    while True:
        sources = _sources(members, chosen, least)
        ranges = _ranges(members, sources)
        if len(ranges) <= MOST_RANGES:
            break
        least *= 4
    delta = tuple(member for member, source in zip(members, sources, strict=True) if source is None)
    found = Assembly(
        carriers=tuple(carrier for carrier in chosen if carrier in sources), delta=delta, ranges=tuple(ranges)
    )
    return found if (size - found.sent) * SHARED >= size else None


def _choose(members: Sequence[Member], carriers: Sequence[Carrier], size: int) -> list[Carrier]:
    """Those with most bytes of the tarball, of equal ones the smallest and then the first, which most workers have."""
    left = {member.key: member.length for member in members}
    candidates = list(carriers)
    chosen: list[Carrier] = []
    waste = 0
    while candidates and len(chosen) < MOST_FILES - 1:
        gains = [sum(left[key] for key in left if key in each.offsets) for each in candidates]
        number = max(range(len(gains)), key=lambda number: (gains[number], -candidates[number].size))
        gain, best = gains[number], candidates.pop(number)
        if gain < max(LEAST_RUN, size // LEAST):
            break
        if (waste + best.size - gain) * WASTE > size:
            continue
        waste += best.size - gain
        chosen.append(best)
        left = {key: length for key, length in left.items() if key not in best.offsets}
    return chosen


def _sources(members: Sequence[Member], chosen: Sequence[Carrier], least: int) -> list[Carrier | None]:
    """Where each member is taken from: for as long as possible from one place, and never from where the run of members
    is shorter than ``least``."""
    sources: list[Carrier | None] = []
    runs: list[list[int]] = []
    before, at = None, 0
    for number, member in enumerate(members):
        if before is not None and before.offsets.get(member.key) == at:
            runs[-1].append(number)
        else:
            before = next((each for each in chosen if member.key in each.offsets), None)
            runs.append([number])
        at = 0 if before is None else before.offsets[member.key] + member.length
        sources.append(before)
    for run in runs:
        if sum(members[number].length for number in run) < least:
            for number in run:
                sources[number] = None
    return sources


def _ranges(members: Sequence[Member], sources: Sequence[Carrier | None]) -> list[Range]:
    found: list[Range] = []
    end = 0  # of the delta
    for member, source in zip(members, sources, strict=True):
        offset = end if source is None else source.offsets[member.key]
        last = found[-1] if found else None
        if last is not None and last.carrier is source and last.offset + last.length == offset:
            found[-1] = Range(carrier=source, offset=last.offset, length=last.length + member.length)
        else:
            found.append(Range(carrier=source, offset=offset, length=member.length))
        end += member.length if source is None else 0
    return found
