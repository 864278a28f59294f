"""What a specification's ``git`` and ``http`` entries turned out to be: the part of a lock that is data."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from poncho_wq.errors import BuildError, redact

_FORMS = {"commit": re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}"), "sha256": re.compile(r"[0-9a-f]{64}")}


@dataclass(frozen=True, kw_only=True)
class LockedData:
    """One entry.

    ``variable`` names it; ``url`` is where it came from, without credentials, and of this machine's folders only the
    last name.  Exactly one of ``commit`` (git) and ``sha256`` (http: of the file as downloaded) is set.
    """

    variable: str
    url: str
    commit: str | None = None
    sha256: str | None = None

    def to_dict(self) -> dict[str, str]:
        """The entry as JSON holds it."""
        return {name: value for name, value in vars(self).items() if value is not None}

    @classmethod
    def from_dict(cls, entry: object, where: str) -> LockedData:
        """Read what ``to_dict`` wrote; ``where`` names the place in an error.  Raises ``BuildError``."""
        if not isinstance(entry, Mapping):
            raise BuildError(f"{where}: expected an object")
        for key, value in entry.items():
            if key not in ("variable", "url", "commit", "sha256"):
                raise BuildError(f"{where}: unknown key {key!r}")
            if not isinstance(value, str) or (key in _FORMS and not _FORMS[key].fullmatch(value)):
                raise BuildError(f"{where}.{key}: is not a {key}")
        fields: dict[str, Any] = dict(entry)
        if not {"variable", "url"} <= set(fields) or ("commit" in fields) == ("sha256" in fields):
            raise BuildError(f"{where}: expected variable, url, and one of commit and sha256")
        return cls(**fields)


def public_url(url: str) -> str:
    """``url`` as others may see it."""
    if url.startswith(("file:", "/")):
        return "file:" + url.rstrip("/").rpartition("/")[2]
    return redact(url)
