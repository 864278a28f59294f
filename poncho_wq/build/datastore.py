"""Commits and downloads in the cache, named by their content.

Each is brought here once, whichever environment, branch or mirror it came by:

    data/git/<commit>/      a bare repository with that commit
    data/http/<sha256>      a file as downloaded
    data/urls/<hash>.json   what a URL gave the last time (ETag and so on), to ask only whether it has changed
    data/partial/<hash>     the beginning of a download, and which version it is of
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from poncho_wq.build import git
from poncho_wq.build.download import Downloaded, NotModified, Patience, download
from poncho_wq.digests import sha256_of
from poncho_wq.errors import FetchError
from poncho_wq.holders import holder, signed
from poncho_wq.locked_data import public_url
from poncho_wq.progress import OnProgress, Progress
from poncho_wq.scratch import disk_error, held, sweep, work_directory
from poncho_wq.spec import GitSource


@dataclass(frozen=True, kw_only=True)
class _Version:
    """What a URL gave the last time."""

    sha256: str
    etag: str | None
    modified: str | None


class DataStore:
    """Commits and downloads under ``<cache root>/data``, each there whole or not at all.

    ``patience`` is for servers that fail; ``offline`` takes what is here and asks nobody.  Several processes may use
    one store: who wants what another is fetching waits for it.
    """

    def __init__(self, cache_root: Path, *, patience: Patience | None = None, offline: bool = False) -> None:
        self._root = cache_root.absolute() / "data"
        self._patience = patience
        self._offline = offline

    def path(self, sha256: str) -> Path:
        """The file of that digest, if it is there."""
        return self._root / "http" / sha256

    def commit(self, source: GitSource, what: str, on_progress: OnProgress) -> tuple[str, str]:
        """The commit that ``source`` names now, and how it names it (``commit``, ``tag``, ``branch``, ``HEAD``).

        Afterwards it is in the store.  Raises ``FetchError``, ``CacheError``.
        """
        on_progress(Progress(stage="fetch", detail=f"{what}: {public_url(source.remote)}"))
        if not git.is_commit(source.tag):
            self._check_online(source.remote, what)
        resolved = git.resolve(source.remote, source.tag, what=what)
        if resolved is None:
            return self._fetch(source, None, what, on_progress), "commit"
        self.repository(source, resolved.commit, what, on_progress)
        return resolved.commit, resolved.kind

    def repository(self, source: GitSource, commit: str, what: str, on_progress: OnProgress) -> Path:
        """A repository that holds ``commit``, fetched from ``source`` where there is none.  Raises ``FetchError``."""
        path = self._root / "git" / commit
        if not path.is_dir() or not git.holds(path, commit):
            shutil.rmtree(path, ignore_errors=True)
            self._fetch(source, commit, what, on_progress)
        _used(path)
        return path

    def file(self, url: str, sha256: str | None, what: str, on_progress: OnProgress, *, check: bool = False) -> str:
        """The digest of what ``url`` gives, which is in the store afterwards; of a file that has ``sha256`` if given.

        With ``check`` the stored file is read, and fetched again where it is not what it was.
        Raises ``FetchError``, ``CacheError``.
        """
        if sha256 is not None and self._has(sha256, check=check):
            return sha256
        self._check_online(url, what)
        key = hashlib.sha256(url.encode()).hexdigest()
        with self._locked(f"url-{key[:32]}", what, on_progress):
            if sha256 is not None and self._has(sha256):
                return sha256
            known = self._known(key) if sha256 is None else None
            partial = self._root / "partial" / key[:32]
            self._directory("partial")
            try:
                done = download(
                    url, partial, what=what, on_progress=on_progress, sha256=sha256, patience=self._patience,
                    known=None if known is None else {"etag": known.etag, "modified": known.modified},
                )  # fmt: skip
            except NotModified:
                assert known is not None, "only asked about what is known"
                _used(self.path(known.sha256))
                return known.sha256
            self._keep(partial, done, key)
            return done.sha256

    def _fetch(self, source: GitSource, commit: str | None, what: str, on_progress: OnProgress) -> str:
        self._check_online(source.remote, what)
        remote = hashlib.sha256(source.remote.encode()).hexdigest()
        with self._locked(f"git-{remote[:32]}", what, on_progress):
            if commit is not None and (self._root / "git" / commit).is_dir():
                return commit  # somebody else was faster
            sweep(self._directory("tmp"))
            with work_directory(self._root / "tmp") as work:
                new = work / "repository"
                found = git.fetch(source.remote, commit, source.tag, new, what=what)
                target = self._directory("git") / found
                # Two remotes may have one commit, and be fetched from side by side: either will do.
                with contextlib.suppress(OSError):
                    new.rename(target)
                if not target.is_dir():
                    raise FetchError(f"{what}: could not be kept in {self._root}", url=source.remote)
            return found

    def _check_online(self, url: str, what: str) -> None:
        if self._offline:
            raise FetchError(
                f"{what}: {public_url(url)} is not in the cache, and nothing may be downloaded",
                url=url,
                advice="build without --offline; a branch, or a file without sha256, has to be asked for each time",
            )

    def _has(self, sha256: str, *, check: bool = False) -> bool:
        path = self.path(sha256)
        if not path.is_file():
            return False
        if check and sha256_of(path) != sha256:
            path.unlink(missing_ok=True)
            return False
        _used(path)
        return True

    def _known(self, key: str) -> _Version | None:
        try:
            version = _Version(**json.loads((self._root / "urls" / f"{key}.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None
        return version if (version.etag or version.modified) and self._has(version.sha256) else None

    def _keep(self, partial: Path, done: Downloaded, key: str) -> None:
        """Move a complete download to its place, and remember what the URL gave."""
        try:
            target = self._directory("http") / done.sha256
            partial.chmod(0o444)
            partial.replace(target)
            partial.with_name(f"{partial.name}.json").unlink(missing_ok=True)
            version = {"sha256": done.sha256, "etag": done.etag, "modified": done.modified}
            note = self._directory("urls") / f"{key}.json"
            new = note.with_name(f"{note.name}.{os.getpid()}")
            new.write_text(json.dumps(version), encoding="utf-8")
            new.replace(note)
        except OSError as error:
            raise disk_error(error, self._root, "could not keep a download") from error

    @contextlib.contextmanager
    def _locked(self, name: str, what: str, on_progress: OnProgress) -> Iterator[None]:
        def waiting() -> None:
            on_progress(Progress(stage="wait", detail=f"{what}: it is being fetched by {holder(lock)}"))

        lock = self._directory("locks") / f"{name}.lock"
        with held(lock, on_wait=waiting), signed(lock):
            yield

    def _directory(self, name: str) -> Path:
        path = self._root / name
        try:
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise disk_error(error, self._root, "could not make a directory") from error
        return path


def _used(path: Path) -> None:
    """When it was last of use, for eviction; a cache that may not be written to is one all the same."""
    with contextlib.suppress(OSError):
        os.utime(path)
