"""A manifest and its layers → a tarball: one file, written once, that appears complete or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Sequence
from io import FileIO
from pathlib import Path

from poncho_wq.errors import PackError
from poncho_wq.manifest import Manifest, end_member
from poncho_wq.packing.layers import sync_directory
from poncho_wq.scratch import space

_PIECE = 1 << 20


def write_tarball(output: Path, manifest: Manifest, layers: Sequence[Path]) -> None:
    """Put the manifest, ``layers`` (the files that it names, in its order) and the end in a row.

    ``output`` appears complete or not at all.  Raises ``PackError``.
    """
    draft = output.with_name(f".{output.name}.{secrets.token_hex(8)}.part")
    try:
        try:
            with draft.open("xb", buffering=0) as stream:
                _write_all(stream, manifest.first_member())
                for layer, reference in zip(layers, manifest.layers, strict=True):
                    _append(stream, layer, reference.length)
                _write_all(stream, end_member(manifest.compression))
                os.fsync(stream.fileno())
                written = os.fstat(stream.fileno()).st_size
            if written != manifest.size:
                raise PackError(f"{output}: {written} bytes were written instead of {manifest.size}")
            draft.replace(output)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
    except OSError as error:
        facts = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            facts += f": {space(output.parent, manifest.size)}"
        raise PackError(f"{output}: could not write the tarball: {facts}", advice=_ELSEWHERE) from error
    sync_directory(output.parent)


_ELSEWHERE = "choose an existing directory that you can write to, on a disk with enough space"


def _append(stream: FileIO, layer: Path, length: int) -> None:
    """Copy the ``length`` bytes of ``layer`` to the end of ``stream``, within the kernel where it can."""
    try:
        source = layer.open("rb", buffering=0)
    except FileNotFoundError:
        raise PackError(f"{layer}: was removed while it was needed", advice=_EVICTED) from None
    with source:
        left = length
        with contextlib.suppress(OSError):  # not between these two file systems, or not on this kernel
            while left and (copied := os.copy_file_range(source.fileno(), stream.fileno(), left)):
                left -= copied
        source.seek(length - left)
        while left:
            piece = source.read(min(left, _PIECE))
            if not piece:
                raise PackError(f"{layer}: was cut short while it was needed", advice=_EVICTED)
            _write_all(stream, piece)
            left -= len(piece)


_EVICTED = "something else cleans up the cache directory: run it again"


def _write_all(stream: FileIO, data: bytes) -> None:
    """A raw file may take less than it is given, and says so; without buffers, what was written is known exactly."""
    rest = memoryview(data)
    while rest:
        rest = rest[stream.write(rest) :]
