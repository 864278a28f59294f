"""What is known of an environment, whatever it is given as: a description, a lock, a tarball, or a prefix unpacked.

Reading only, and of a tarball of ours no more than its manifest and one small layer.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from poncho_wq.errors import CorruptTarball, SpecError
from poncho_wq.importers import Options, SpecLike, read_source
from poncho_wq.lock import Lock
from poncho_wq.lockfile import LockFile
from poncho_wq.manifest import Manifest, read_manifest
from poncho_wq.packing.compression import Damaged, form_of
from poncho_wq.spec import EnvSpec

# Compressed tar files, by what they begin with; a plain one has its magic word further on.
_COMPRESSED = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ\x00", b"BZh")
_PLAIN_AT, _PLAIN = 257, b"ustar"
_RUNTIME = "runtime"  # the layer that `pack` puts specification and lock into
_AGAIN = "create it again, or copy it again from where it was created"


@dataclass(frozen=True, kw_only=True)
class Described:
    """An environment as far as it is known.

    ``lock`` is None for a description that nothing was resolved for; ``manifest`` for what is no tarball of ours;
    ``spec`` for a tarball of another tool.  ``notes`` are what reading it had to say.
    """

    source: str
    spec: EnvSpec | None
    lock: Lock | None = None
    manifest: Manifest | None = None
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON has it."""
        return {
            "source": self.source,
            "spec": None if self.spec is None else self.spec.to_dict(),
            "lock": None if self.lock is None else json.loads(self.lock.to_json()),
            "tarball": None if self.manifest is None else _facts(self.manifest),
            "notes": list(self.notes),
        }


def describe(source: SpecLike, options: Options | None = None) -> Described:
    """What ``source`` says of its environment: anything that ``read_source`` takes, a lock file, or an environment.

    Raises ``SpecError`` for what is none of these, ``CorruptTarball`` for a tarball that is not whole.
    """
    if isinstance(source, str | os.PathLike) and source != "-":
        path = Path(source)
        if os.path.isfile(path):
            found = _file(path)
            if found is not None:
                return found
        elif os.path.isfile(path / "poncho" / "spec.json"):
            return _unpacked(path)
    imported = read_source(source, options)
    name = "<stdin>" if source == "-" else os.fspath(source) if isinstance(source, str | os.PathLike) else "<python>"
    return Described(source=name, spec=imported.spec, notes=imported.notes)


def _facts(manifest: Manifest) -> dict[str, Any]:
    own = ("identity", "platform", "python", "glibc", "size", "unpacked", "files")
    layers = [{"name": each.name, "size": each.length, "digest": each.digest} for each in manifest.layers]
    return {**{name: getattr(manifest, name) for name in own}, "layers": layers}


def _file(path: Path) -> Described | None:
    """A tarball or a lock file; None for any other."""
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise SpecError(f"cannot be read: {error.strerror or error}", source=str(path)) from error
    if head.startswith(_COMPRESSED) or head[_PLAIN_AT : _PLAIN_AT + len(_PLAIN)] == _PLAIN:
        return _tarball(path)
    if head.lstrip().startswith(b"{") and b'"poncho-lock"' in path.read_bytes():
        locked = LockFile.from_json(path.read_bytes(), source=str(path))
        return Described(source=str(path), spec=locked.spec, lock=locked.lock)
    return None


def _tarball(path: Path) -> Described:
    manifest = read_manifest(path)
    if manifest is None:
        _check_foreign(path)
        note = "made by another tool: what is in it is not recorded"
        return Described(source=str(path), spec=None, notes=(note,))
    files = dict(_runtime_files(path, manifest))
    try:
        spec = EnvSpec.from_json(files["poncho/spec.json"], source=f"{path}: poncho/spec.json")
        lock = Lock.from_json(files["poncho/lock.json"])
    except KeyError as error:
        raise CorruptTarball(f"{path}: does not hold {error.args[0]}", tarball=path, advice=_AGAIN) from None
    return Described(source=str(path), spec=spec, lock=lock, manifest=manifest)


def _runtime_files(path: Path, manifest: Manifest) -> Iterator[tuple[str, bytes]]:
    """(name, content) of the files in the layer that every environment of ours gets."""
    for layer in manifest.layers:
        if layer.name != _RUNTIME:
            continue
        try:
            with path.open("rb") as file:
                file.seek(manifest.member + layer.offset)
                data = bytearray()
                for piece in form_of(manifest.compression).content(file, layer.length):
                    data += piece
                    if len(data) > layer.unpacked:  # or it could be any number of gigabytes
                        raise Damaged(f"layer {layer.name} holds more than its manifest says")
            with tarfile.open(fileobj=io.BytesIO(data)) as archive:
                for member in archive:
                    content = archive.extractfile(member) if member.isreg() else None
                    if content is not None:
                        yield member.name, content.read()
        except (Damaged, tarfile.TarError, EOFError) as error:
            raise CorruptTarball(f"{path}: is damaged: {error}", tarball=path, advice=_AGAIN) from error


def _check_foreign(path: Path) -> None:
    """Refuse a tarball that no wrapper could run."""
    try:
        with tarfile.open(path, "r|*") as archive:
            if any(os.path.normpath(member.name) == "bin/activate" for member in archive):
                return
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise CorruptTarball(f"{path}: is damaged: {error}", tarball=path, advice=_AGAIN) from error
    raise SpecError(
        "not a Poncho environment (missing bin/activate)",
        source=str(path),
        advice="create one with poncho_package_create",
    )


def _unpacked(path: Path) -> Described:
    spec = EnvSpec.from_json((path / "poncho/spec.json").read_bytes(), source=str(path / "poncho/spec.json"))
    lock = path / "poncho/lock.json"
    return Described(source=str(path), spec=spec, lock=Lock.from_json(lock.read_bytes()) if lock.is_file() else None)
