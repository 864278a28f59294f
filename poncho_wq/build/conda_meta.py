"""What a linked prefix says of itself: ``conda-meta``, one document a package, and which file belongs to which.

conda's own tools, conda-pack among them, read these documents, so they stay; but nothing in them may say where and by
whom the environment was built.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from poncho_wq.build import FileGroup
from poncho_wq.build.host import list_files
from poncho_wq.build.rattler import base_url
from poncho_wq.packing.conda_package import CondaPackage

META = "conda-meta"
# Where the package was unpacked on this machine, and when its channel was indexed.
_OF_THIS_MACHINE = (
    "extracted_package_dir",
    "package_tarball_full_path",
    "link",
    "indexed_timestamp",
    "requested_specs",
    "requested_spec",
)

Documents = Mapping[str, Mapping[str, Any]]
"""Name of a package → the document of it."""


def settle(prefix: Path, packages: Sequence[CondaPackage]) -> Documents:
    """Make the documents the same wherever the packages were linked, and return them."""
    (prefix / "CACHEDIR.TAG").unlink(missing_ok=True)  # for backup programs, of this machine
    settled: dict[str, Mapping[str, Any]] = {}
    for package in packages:
        path = prefix / META / f"{_stem(package.file)}.json"
        document = json.loads(path.read_bytes())
        for key in _OF_THIS_MACHINE:
            document.pop(key, None)
        document["link"] = None  # conda's word for a package that is no longer in a cache; conda-pack asks for the key
        document["url"], document["channel"] = _public(package)
        document["paths_data"]["paths"].sort(key=lambda row: row["_path"])
        document["files"] = sorted(document.get("files", ()))
        # Indented, it would take the slow encoder: a third of a second for an environment of some size.
        path.write_text(json.dumps(document, sort_keys=True) + "\n", encoding="utf-8")
        settled[package.name] = document
    (prefix / META / "history").write_bytes(b"")  # its existence is how conda knows a prefix
    return settled


def owned_files(prefix: Path, documents: Documents) -> dict[str, str]:
    """Path → package, for every file that a conda package installed; where two have one, it is of the first."""
    owners: dict[str, str] = {}
    for name, document in sorted(documents.items()):
        for path in (*document["files"], *(row["_path"] for row in document["paths_data"]["paths"])):
            owners.setdefault(path.rstrip("/"), name)
    return owners


def groups(
    prefix: Path, packages: Sequence[CondaPackage], owners: Mapping[str, str], of_pip: Sequence[FileGroup]
) -> tuple[FileGroup, ...]:
    """Every file of ``prefix`` in the group of its package, of its distribution, or of neither."""
    files: dict[str, list[str]] = {package.name: [] for package in packages}
    taken = {path for group in of_pip for path in group.files}
    meta = {f"{META}/{_stem(package.file)}.json": package.name for package in packages}
    other: list[str] = []
    for path in list_files(prefix):
        owner = meta.get(path) or owners.get(path.rstrip("/"))
        if path in taken:
            continue
        (files[owner] if owner is not None else other).append(path)
    found = [
        FileGroup(name=package.name, version=package.version, kind="conda", files=tuple(files[package.name]))
        for package in packages
    ]
    if other:
        found.append(FileGroup(name="other", version=None, kind="other", files=tuple(other)))
    return (*found, *of_pip)


def _stem(file: str) -> str:
    return file.removesuffix(".conda").removesuffix(".tar.bz2")


def _public(package: CondaPackage) -> tuple[str, str]:
    """(url, channel) as others may see them: of a channel in a directory here, its name alone."""
    channel = package.channel
    if channel.startswith("file:"):
        channel = "file:///" + channel.rstrip("/").rpartition("/")[2]
    elif "://" not in channel:
        channel = base_url(channel).rstrip("/")
    return f"{channel}/{package.subdir}/{package.file}", channel
