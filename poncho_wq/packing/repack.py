"""A tarball → the same environment in another form: nothing is resolved, built or compiled again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from os import sched_getaffinity
from pathlib import Path

from poncho_wq.errors import CorruptTarball, PackError
from poncho_wq.manifest import LayerRef, Manifest, read_manifest
from poncho_wq.pack import Packed
from poncho_wq.packing.compression import Damaged, form_of
from poncho_wq.packing.layers import Layer, LayerStore
from poncho_wq.packing.tarball import write_tarball
from poncho_wq.progress import OnProgress, Progress, silent

_AGAIN = "make the tarball again (in the cache: poncho-wq cache verify --remove)"


def repack(tarball: Path, *, store: LayerStore, output: Path, on_progress: OnProgress = silent) -> Packed:
    """Write ``tarball``, one of ours, to ``output`` in the form that ``store`` has.  The identity stays.

    Layers are taken from ``store`` and kept there.  Raises ``CorruptTarball`` when the tarball is damaged,
    ``PackError`` when it is not ours or the output cannot be written, ``CacheError`` when the store cannot be used.
    """
    manifest = read_manifest(tarball)
    if manifest is None:
        raise PackError(
            f"{tarball}: was not made by poncho_package_create, and can only be used as it is",
            advice="leave out --compression (or: compression=None)",
        )
    total = sum(layer.unpacked for layer in manifest.layers)
    done = 0
    layers: list[Layer] = []
    pool = ThreadPoolExecutor(len(sched_getaffinity(0)), thread_name_prefix="poncho-repack")
    try:
        with store.work_directory() as work:
            making = [pool.submit(_layer, tarball, manifest, layer, store, work) for layer in manifest.layers]
            for layer, future in zip(manifest.layers, making, strict=True):
                layers.append(future.result())
                done += layer.unpacked
                on_progress(Progress(stage="pack", detail=layer.name, done=done, total=total, unit="bytes"))
    finally:
        pool.shutdown(cancel_futures=True)
    changed = replace(manifest, layers=tuple(_placed(manifest.layers, layers)), compression=store.compression)
    write_tarball(output, changed, [layer.path for layer in layers])
    return Packed.of(output, changed)


def _layer(tarball: Path, manifest: Manifest, layer: LayerRef, store: LayerStore, work: Path) -> Layer:
    """One layer in the store's form.  Its recipe is its digest: how it was made is not in the tarball."""
    found = store.find(layer.digest)
    if found is not None:
        return found
    try:
        with tarball.open("rb") as stream:
            stream.seek(manifest.member + layer.offset)
            pieces = form_of(manifest.compression).content(stream, layer.length)
            # What a layer's files come to is asked of those that are packed from a prefix only.
            made = store.copy(layer.digest, pieces, work, content=0, files=0)
    except Damaged as error:
        raise CorruptTarball(f"{tarball}: layer {layer.name}: {error}", tarball=tarball, advice=_AGAIN) from error
    except OSError as error:
        raise PackError(f"{tarball}: cannot be read: {error.strerror or error}") from error
    if made.digest != layer.digest:
        raise CorruptTarball(
            f"{tarball}: layer {layer.name} holds the sha256 {made.digest}", tarball=tarball, advice=_AGAIN
        )
    return made


def _placed(references: Sequence[LayerRef], layers: Sequence[Layer]) -> Iterator[LayerRef]:
    offset = 0
    for reference, layer in zip(references, layers, strict=True):
        yield replace(reference, offset=offset, length=layer.length)
        offset += layer.length
