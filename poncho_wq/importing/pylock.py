"""``pylock.toml`` (PEP 751), as ``uv export --format pylock.toml``, ``pip lock`` and pdm write it.

``packaging`` reads and checks the format and selects what belongs to this machine and interpreter.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from packaging.pylock import (
    Package,
    PackageArchive,
    PackageDirectory,
    PackageVcs,
    Pylock,
    PylockSelectError,
    PylockValidationError,
)

from poncho_wq.errors import SpecError
from poncho_wq.importing.model import Conditions, Imported
from poncho_wq.importing.text import read_toml
from poncho_wq.spec import EnvSpec


def read_pylock(path: Path, *, extras: Sequence[str] = (), groups: Sequence[str] | None = None) -> Imported:
    """The packages that ``path`` locks for this machine, exactly, with the hashes that it gives.

    ``extras`` and ``groups`` choose among those of the lock; None takes its default groups.  Raises ``SpecError``.
    """
    source = str(path)
    document = read_toml(path)
    try:
        lock = Pylock.from_dict(document)
        selected = list(lock.select(extras=extras, dependency_groups=groups))
    except PylockValidationError as error:
        raise SpecError(error.message, path=error.context or None, source=source) from None
    except PylockSelectError as error:
        raise SpecError(
            f"has nothing for this machine: {error}", source=source, advice="lock it again for this Python and platform"
        ) from None
    folders = [f"{package.name} ({_where(origin)})" for package, origin in selected if _is_folder(origin)]
    if folders:
        raise SpecError(
            "no index has the code of these packages:\n  " + "\n  ".join(folders),
            source=source,
            advice="lock without the project itself: uv export --no-emit-project --format pylock.toml -o pylock.toml",
        )
    spec = EnvSpec.from_dict({"pip": [_requirement(package, path) for package, _ in selected]}, source=source)
    hashes = {str(package.name): _hashes(package) for package, _ in selected}
    return Imported(
        spec=spec,
        conditions=Conditions(hashes=tuple(sorted((name, digests) for name, digests in hashes.items() if digests))),
    )


def _is_folder(origin: object) -> bool:
    return isinstance(origin, PackageDirectory)


def _where(origin: object) -> str:
    assert isinstance(origin, PackageDirectory)
    return f"{'editable, ' if origin.editable else ''}{origin.path}"


def _requirement(package: Package, lock: Path) -> str:
    if isinstance(package.vcs, PackageVcs):
        url = package.vcs.url or _file_url(package.vcs.path, lock)
        below = f"#subdirectory={package.vcs.subdirectory}" if package.vcs.subdirectory else ""
        return f"{package.name} @ {package.vcs.type}+{url}@{package.vcs.commit_id}{below}"
    if isinstance(package.archive, PackageArchive):
        url = package.archive.url or _file_url(package.archive.path, lock)
        below = f"#subdirectory={package.archive.subdirectory}" if package.archive.subdirectory else ""
        return f"{package.name} @ {url}{below}"
    if package.version is None:
        raise SpecError(f"packages: {package.name} has no version", source=str(lock))
    return f"{package.name}=={package.version}"


def _file_url(path: str | None, lock: Path) -> str:
    return (lock.absolute().parent / (path or "")).resolve().as_uri()


def _hashes(package: Package) -> tuple[str, ...]:
    """The sha256 of all files that the lock has for ``package``; which of them is taken depends on the machine."""
    files = [*(package.wheels or ()), package.sdist, package.archive]
    return tuple(sorted({each.hashes["sha256"].lower() for each in files if each and "sha256" in each.hashes}))
