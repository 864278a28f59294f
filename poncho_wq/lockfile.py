"""`poncho.lock`: a specification and what it was resolved to, in one file that builds the same environment again.

`poncho-wq env lock SPEC > poncho.lock` writes it, `poncho_package_create --locked poncho.lock` reads it.  It is meant
to be kept in a repository: it names no machine and no user, and changes only when a package does.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path

from poncho_wq.errors import BuildError, SpecError
from poncho_wq.lock import Lock
from poncho_wq.spec import EnvSpec

LOCKFILE_FORMAT = 1
_AGAIN = "lock the specification again: poncho-wq env lock SPEC > poncho.lock"
# Locks of real environments have some hundred kilobytes.
_LARGEST = 64 << 20


@dataclass(frozen=True, kw_only=True)
class LockFile:
    """What `poncho.lock` holds."""

    spec: EnvSpec
    lock: Lock

    def to_json(self) -> str:
        """The text of the file: the same for equal locks of the same specification."""
        document = {
            "poncho-lock": LOCKFILE_FORMAT,
            "spec": self.spec.to_dict(),
            "lock": json.loads(self.lock.to_json()),
        }
        return json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n"

    def write(self, path: Path) -> None:
        """Write the file.  Raises `BuildError` when it cannot be written."""
        try:
            path.write_text(self.to_json(), encoding="utf-8")
        except OSError as error:
            raise BuildError(f"{path}: cannot be written: {error.strerror or error}") from error

    @classmethod
    def from_json(cls, text: str | bytes, *, source: str | None = None) -> LockFile:
        """Read what `to_json` wrote; `source` is the file's name.  Raises `SpecError`, `BuildError`."""
        try:
            return cls._from_json(text, source)
        except RecursionError:
            raise SpecError("is not a lock file: nested too deeply", source=source, advice=_AGAIN) from None

    @classmethod
    def _from_json(cls, text: str | bytes, source: str | None) -> LockFile:
        try:
            document = json.loads(text)
        except ValueError as error:
            raise SpecError(f"is not a lock file: {error}", source=source, advice=_AGAIN) from None
        if not isinstance(document, dict) or "poncho-lock" not in document:
            raise SpecError("is not a lock file of poncho_wq", source=source, advice=_AGAIN)
        version = document["poncho-lock"]
        if version != LOCKFILE_FORMAT:
            raise SpecError(
                f"is a lock file of format {version!r}; this version of poncho_wq reads format {LOCKFILE_FORMAT}",
                source=source,
                advice=_AGAIN,
            )
        spec = EnvSpec.from_dict(document.get("spec") or {}, source=source)
        return cls(spec=spec, lock=Lock.from_json(json.dumps(document.get("lock"))))

    def key(self, spec_hash: str) -> str:
        """What a build of this very lock is cached under; `spec_hash` is that of the specification."""
        return hashlib.sha256(f"{spec_hash} {self.lock.to_json()}".encode()).hexdigest()

    def check_for(self, spec: EnvSpec) -> None:
        """Raises `BuildError` when it was not made for `spec`."""
        if spec != self.spec:
            raise BuildError("the lock was made for another specification than this", advice=_AGAIN)

    def check_complete(self) -> None:
        """Raises `BuildError` when a package is named without what proves it to be the same."""
        open_ends = [each.name for each in self.lock.packages if not (each.sha256 or each.commit)]
        open_ends += [each.name for each in self.lock.conda if each.sha256 is None]
        if open_ends:
            raise BuildError(
                f"the lock has no digest for {', '.join(sorted(open_ends))}",
                advice="their index publishes none; take them from another, or build without --require-locked",
            )


def read_lockfile(path: str | PathLike[str]) -> LockFile:
    """The lock file at `path`.  Raises `SpecError` when it is none, `BuildError` when it is damaged."""
    name = fspath(path)
    try:
        with open(name, "rb") as file:
            text = file.read(_LARGEST + 1)
    except OSError as error:
        raise SpecError(f"cannot be read: {error.strerror or error}", source=name) from error
    if len(text) > _LARGEST:
        raise SpecError("is too large for a lock file", source=name)
    return LockFile.from_json(text, source=name)
