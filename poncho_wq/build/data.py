"""The data of an environment: git checkouts and downloads, in ``poncho/data/VAR`` of its prefix.

Two steps, as with packages: ``lock_data`` finds out what exactly a specification means today and brings it into the
cache, ``place_data`` puts exactly that into a prefix.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from poncho_wq.build import FileGroup, git
from poncho_wq.build.archive import decompress, unpack
from poncho_wq.build.datastore import DataStore
from poncho_wq.errors import BuildError
from poncho_wq.locked_data import LockedData, public_url
from poncho_wq.progress import OnProgress, Progress
from poncho_wq.scratch import disk_error
from poncho_wq.spec import EnvSpec, GitSource, HttpSource

DATA = "poncho/data"  # in the prefix; `poncho/set_env` names it too


def fetch_data(
    spec: EnvSpec, cache_root: Path, prefix: Path, on_progress: OnProgress
) -> tuple[tuple[FileGroup, ...], tuple[LockedData, ...]]:
    """Find out what the ``git`` and ``http`` entries of ``spec`` are, and put them into ``prefix``.

    Raises ``FetchError``, ``BuildError``, ``CacheError``.
    """
    store = DataStore(cache_root)
    locked = lock_data(spec, store, on_progress)
    return place_data(spec, locked, store, prefix, on_progress), locked


def lock_data(spec: EnvSpec, store: DataStore, on_progress: OnProgress) -> tuple[LockedData, ...]:
    """What the data of ``spec`` is now, sorted by variable; all of it is in ``store`` afterwards.

    What may be something else tomorrow is told to ``on_progress``, with the stage ``note``.
    Raises ``FetchError``, ``CacheError``.
    """
    found = []
    for variable, source in spec.git:
        what = f"git.{variable}"
        commit, kind = store.commit(source, what, on_progress)
        if kind in ("branch", "HEAD", "reference"):
            name = f"the branch {source.tag}" if kind == "branch" else source.tag or "the default branch"
            _note(on_progress, f'{what}: {name} moves, so this is not reproducible; to keep it: "tag": "{commit}"')
        found.append(LockedData(variable=variable, url=public_url(source.remote), commit=commit))
    for variable, download_from in spec.http:
        what = f"http.{variable}"
        digest = store.file(download_from.url, download_from.sha256, what, on_progress)
        if download_from.sha256 is None:
            _note(
                on_progress,
                f'{what}: the file may change, so this is not reproducible; to keep it: "sha256": "{digest}"',
            )
        found.append(LockedData(variable=variable, url=public_url(download_from.url), sha256=digest))
    return tuple(sorted(found, key=lambda each: each.variable))


def place_data(
    spec: EnvSpec, locked: tuple[LockedData, ...], store: DataStore, prefix: Path, on_progress: OnProgress
) -> tuple[FileGroup, ...]:
    """Put the data of ``spec``, exactly as ``locked``, into ``prefix``: one group a variable.

    What ``store`` no longer has is fetched again, and has to be the same.
    Raises ``BuildError`` for what cannot be unpacked, ``FetchError``, ``CacheError``.
    """
    exact = {each.variable: each for each in locked}
    missing = [variable for variable, _ in (*spec.git, *spec.http) if variable not in exact]
    if missing:
        raise BuildError(f"the lock does not have {', '.join(missing)}", advice="lock the environment again")
    root = prefix / DATA
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(error, prefix, "could not make the directory of the data") from error
    groups = []
    for variable, source in spec.git:
        _place_commit(source, exact[variable], root / variable, store, on_progress)
    for variable, file in spec.http:
        _place_file(file, exact[variable], root / variable, store, on_progress)
    for variable in sorted(variable for variable, _ in (*spec.git, *spec.http)):
        version = (exact[variable].commit or exact[variable].sha256 or "")[:12]
        groups.append(FileGroup(name=variable, version=version, kind="data", files=_files(root / variable, prefix)))
    return tuple(groups)


def _note(on_progress: OnProgress, text: str) -> None:
    on_progress(Progress(stage="note", detail=text))


def _place_commit(
    source: GitSource, entry: LockedData, target: Path, store: DataStore, on_progress: OnProgress
) -> None:
    what = f"git.{entry.variable}"
    if entry.commit is None:
        raise BuildError(f"the lock has no commit for {what}", advice="lock the environment again")
    on_progress(Progress(stage="unpack", detail=what))
    repository = store.repository(source, entry.commit, what, on_progress)
    for note in git.check_out(repository, entry.commit, target, what=what):
        _note(on_progress, note)


def _place_file(source: HttpSource, entry: LockedData, target: Path, store: DataStore, on_progress: OnProgress) -> None:
    what = f"http.{entry.variable}"
    if entry.sha256 is None:
        raise BuildError(f"the lock has no sha256 for {what}", advice="lock the environment again")
    digest = store.file(source.url, entry.sha256, what, on_progress, check=True)
    file = store.path(digest)
    on_progress(Progress(stage="unpack", detail=what))
    if source.type == "tar":
        unpack(file, target, source.compression, what=what, on_progress=on_progress)
    elif source.compression is not None:
        decompress(file, target, source.compression, what=what, on_progress=on_progress)
    else:
        try:
            shutil.copyfile(file, target)
        except OSError as error:
            raise disk_error(error, target.parent, f"could not copy {what}") from error
    if source.type == "file":
        target.chmod(0o644)


def _files(target: Path, prefix: Path) -> tuple[str, ...]:
    """What ``FileGroup.files`` lists of ``target``."""
    if not target.is_dir():
        return (target.relative_to(prefix).as_posix(),)
    found = []
    for directory, subdirectories, files in os.walk(target):
        here = Path(directory).relative_to(prefix).as_posix()
        links = [name for name in subdirectories if os.path.islink(os.path.join(directory, name))]
        found += [f"{here}/{name}" for name in (*files, *links)]
        if not files and not subdirectories:
            found.append(f"{here}/")
    return tuple(sorted(found))
