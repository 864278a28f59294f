"""Parts: a tarball cut between its members into 10–20 pieces, so that what has not changed is not sent again.

``cat`` of the parts is the tarball.  Which layers make a part, and in which order they lie in the tarball, is decided
here alone: ``pack`` writes them in the order of ``arrange``, and ``Parts.of`` cuts there.  It follows from the layers'
names and sizes, so that a changed package changes the part that holds it, besides the first and the last, which name
the whole and are small:

- the manifest;
- each large layer alone, the largest first;
- the others in buckets by the name of their package, whatever its version;
- the layer that this program adds, with the end of the archive.

A small tarball is one piece: a message for each of twenty files would cost more than the bytes that they save.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from poncho_wq.manifest import LayerRef, Manifest
from poncho_wq.packing.compression import Compression
from poncho_wq.packing.planning import BUCKETS, bucket_of, shared_bucket

WORTH = 32 << 20
"""Tarballs of fewer bytes, unpacked, are not cut (the interpreter alone has more)."""
ALONE = 4 << 20
"""Layers of at least so many bytes, unpacked, are parts of their own, unless there are more than ``MOST_ALONE``."""
MOST_ALONE = 10
MOST = 1 + MOST_ALONE + BUCKETS + 1
"""A tarball has at most so many parts."""
OWN = "runtime"
"""The layer that this program adds to every environment."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """``length`` bytes at ``offset`` of the tarball, which are whole ``members``, as ``Manifest.members`` has them;
    ``layers`` are those among them, by name."""

    offset: int
    members: tuple[tuple[str, int], ...]
    layers: tuple[str, ...] = ()
    compression: Compression = "gzip"

    @property
    def length(self) -> int:
        """Bytes."""
        return sum(length for _, length in self.members)

    @property
    def name(self) -> str:
        """64 hexadecimal digits: the sha256 of the compression and its members' digests and lengths, a line each.

        Parts of one name are interchangeable: as long, and the same unpacked, whichever compressor made them.
        """
        lines = [self.compression, *(f"{digest} {length}" for digest, length in self.members)]
        return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Parts:
    """A tarball's parts, in order and without gaps."""

    parts: tuple[Part, ...]

    @classmethod
    def of(cls, manifest: Manifest) -> Parts | None:
        """The parts of the tarball with this manifest; None where it is small or not in ``arrange``'s order."""
        layers = manifest.layers
        groups = arrange([(layer.name, layer.unpacked) for layer in layers])
        if groups is None or [number for group in groups for number in group] != list(range(len(layers))):
            return None
        form = manifest.compression
        first, *_, end = manifest.members()
        parts = [Part(offset=0, members=(first,), compression=form)]
        parts += [_of_layers(manifest, [layers[number] for number in group]) for group in groups]
        if layers and layers[-1].name == OWN:
            last = parts.pop()
            parts.append(replace(last, members=(*last.members, end)))
        else:
            parts.append(Part(offset=manifest.size - end[1], members=(end,), compression=form))
        return cls(parts=tuple(parts))

    @property
    def size(self) -> int:
        """Bytes of the whole."""
        return sum(part.length for part in self.parts)

    def beyond(self, names: Iterable[str]) -> tuple[Part, ...]:
        """The parts whose names are not among ``names``: what is sent to a worker that has those."""
        there = frozenset(names)
        return tuple(part for part in self.parts if part.name not in there)

    def names(self) -> frozenset[str]:
        """The names of all parts."""
        return frozenset(part.name for part in self.parts)


def arrange(layers: Sequence[tuple[str, int]]) -> list[list[int]] | None:
    """The order of layers in a tarball, cut into groups that are sent together: their numbers in ``layers``.

    Of each layer its name and its unpacked bytes are given.  Arranging what is arranged gives the same.  None for a
    tarball that is not worth it.
    """
    if sum(unpacked for _, unpacked in layers) < WORTH:
        return None
    own = [number for number, (name, _) in enumerate(layers) if name == OWN]
    rest = [number for number, (name, _) in enumerate(layers) if name != OWN]
    limit = ALONE
    while len(alone := [n for n in rest if layers[n][1] >= limit and shared_bucket(layers[n][0]) is None]) > MOST_ALONE:
        limit += limit // 4  # in steps, so that a layer that grows a little moves no other
    alone.sort(key=lambda number: (-layers[number][1], layers[number][0]))
    buckets: dict[int, list[int]] = {}
    for number in sorted({*rest} - {*alone}, key=lambda number: layers[number][0]):
        buckets.setdefault(layer_bucket(layers[number][0]), []).append(number)
    return [*([number] for number in alone), *(buckets[each] for each in sorted(buckets)), *([own] if own else [])]


def layer_bucket(layer: str) -> int:
    """The bucket of a small layer: that which ``planning`` puts the smallest packages in, by the same rule."""
    shared = shared_bucket(layer)
    return bucket_of(layer.rpartition("-")[0] or layer) if shared is None else shared


def _of_layers(manifest: Manifest, layers: Sequence[LayerRef]) -> Part:
    return Part(
        offset=manifest.member + layers[0].offset,
        members=tuple((layer.digest, layer.length) for layer in layers),
        layers=tuple(layer.name for layer in layers),
        compression=manifest.compression,
    )
