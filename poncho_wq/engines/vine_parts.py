"""How an environment goes to TaskVine's workers: in parts where that is worth it, else as one file.

A part is a file that is named by what it holds, and an input of the one mini-task that unpacks the environment: a
worker that has it from another environment is not sent it again, and workers have it from each other.  The parts that
are one layer, which is nearly all of the bytes, are the cache's own files; the few others are cut from the tarball into
the staging directory.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

from poncho_wq import staging
from poncho_wq.cache import Cache, default_root, layers_beside
from poncho_wq.engines.shipping import Shipment, as_one_file, readable_manifest
from poncho_wq.packing.compression import form_of
from poncho_wq.packing.parts import Part, Parts

# Of a tarball whose layers are in no cache a whole copy would be made. That is not worth it; of few of them it is.
_MOST_CUT = 4


_lock = threading.Lock()
_shipments: dict[tuple[str, str], Shipment] = {}
_shipped: set[str] = set()


def ship_in_parts(tarball: Path, identity: str) -> Shipment:
    """The files of the environment ``identity``, the same ones whenever this process asks again; these are the tarball
    one after the other.

    Raises ``EngineError`` when they cannot be staged, ``OSError`` when the tarball cannot be read.
    """
    key = str(tarball), identity
    with _lock:
        found = _shipments.get(key)
        if found is None:
            manifest = readable_manifest(tarball)
            parts = None if manifest is None else Parts.of(manifest)
            found = None if parts is None else _in_parts(tarball, parts)
            found = _shipments[key] = found or as_one_file(tarball, identity, manifest)
        return found


def _in_parts(tarball: Path, parts: Parts) -> Shipment | None:
    """None where it goes as one file."""
    with tarball.open("rb") as stream:
        kept = {part.name: path for part in parts.parts if (path := _kept(part, tarball, stream.fileno())) is not None}
    if sum(part.length for part in parts.beyond(kept)) * _MOST_CUT > parts.size:
        return None
    files = []
    for part in parts.parts:
        name = f"poncho-part-{part.name[: staging.DIGEST_LENGTH]}"
        there = kept.get(part.name)
        staged = staging.link(name, there) if there else staging.cut(name, tarball, [(part.offset, part.length)])
        files.append((staged, name))
    shared = parts.size - sum(part.length for part in parts.beyond(_shipped))
    _shipped.update(parts.names())
    return Shipment(files=tuple(files), size=parts.size, shared=shared)


def _kept(part: Part, tarball: Path, stream: int) -> Path | None:
    """The file of a cache that is this part."""
    if len(part.members) > 1 or not part.layers:
        return None
    digest, length = part.members[0]
    for layers in (*layers_beside(tarball), Cache(default_root()).home / "layers"):
        path = layers / f"{digest}{form_of(part.compression).layer_suffix}"
        try:
            with path.open("rb") as file:
                # As long, and with the same end: a checksum, and the length of what it holds.
                if os.fstat(file.fileno()).st_size == length and (
                    os.pread(file.fileno(), 8, length - 8) == os.pread(stream, 8, part.offset + length - 8)
                ):
                    return path
        except OSError:
            continue
    return None


def _forget() -> None:
    """In a forked child: the staged files are the parent's."""
    global _lock
    _lock = threading.Lock()
    _shipments.clear()
    _shipped.clear()


os.register_at_fork(after_in_child=_forget)
