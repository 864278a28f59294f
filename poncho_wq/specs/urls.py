"""Where things come from, as text: which URLs a specification may name, and how credentials are kept out of sight.

A specification is shared, hashed and packed into every tarball, and an error ends up in somebody's terminal or issue
tracker, so neither may ever hold a password.  Everything here works on text alone; nothing is opened.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from urllib.parse import SplitResult, unquote, urlsplit

from poncho_wq.errors import SpecError, quoted, redact

# conda's own channel schemes that carry packages over something a worker's manager can reach.
CHANNEL_SCHEMES = ("http", "https", "file", "s3", "gcs", "oci")
# What git itself speaks.  Not "ext" and "fd" (they run a command), not "<helper>::" (runs git-remote-<helper>).
GIT_SCHEMES = ("https", "http", "ssh", "git", "file", "git+ssh", "ssh+git")
# What uv installs from; it knows git and no other version control system.
REQUIREMENT_SCHEMES = ("https", "http", "file", "git+https", "git+http", "git+ssh", "git+file")
ARCHIVES = (".whl", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip")

CREDENTIALS_ADVICE = (
    "a specification is shared and ends up in every tarball: leave the credentials out, and give them to the tool that "
    "downloads (~/.netrc, a git credential helper, an ssh key)"
)
_SCP_LIKE = re.compile(r"(?:(?P<user>[^@:/]+)@)?(?P<host>[^@:/]+):(?P<path>[^:].*)")
_CHANNEL_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(?:/[A-Za-z0-9_][A-Za-z0-9_.-]*)*")
# Characters that git's own check-ref-format refuses, and so can be in no tag, branch or commit.
_NOT_IN_REF = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|@\{")


def check_channel(text: str) -> str:
    """A conda channel, name or URL, without its last slashes.  Raises `SpecError` without a path."""
    if ":" in text or text.startswith(("/", ".", "~")):
        if "://" not in text:
            raise SpecError(
                f"expected a channel name or URL, got {quoted(text)}",
                advice="for a channel in a folder write file:///the/folder",
            )
        _check_url(text, CHANNEL_SCHEMES, what="a channel", channel_tokens=True)
        return text.rstrip("/")
    name = text.rstrip("/")
    if not _CHANNEL_NAME.fullmatch(name):
        raise SpecError(f"{quoted(text)} is not the name of a conda channel")
    return name


def check_git_remote(text: str) -> str:
    """What `git clone` may be given: a URL, `user@host:path` or an absolute path.  Raises `SpecError` without a path.

    git runs programs for some remotes (`ext::sh -c …`) and takes a leading dash for an option; none of that passes.
    """
    if text.startswith("-"):
        raise SpecError(f"{quoted(text)} begins with a dash, which git would take for an option")
    if re.match(r"[A-Za-z0-9+._-]*::", text):
        helper = text.partition("::")[0]
        raise SpecError(
            f"the git transport {quoted(helper + '::')} runs a command, which a specification may not",
            advice="use an https://, ssh:// or file:// remote",
        )
    if "://" in text:
        _check_url(text, GIT_SCHEMES, what="a git remote")
        return text
    if text.startswith("/"):
        return text
    scp = _SCP_LIKE.fullmatch(text)
    if scp is not None and scp["user"] is None and "@" in scp["path"]:  # user:password@host:path, not quoted back
        raise SpecError("holds credentials", advice=CREDENTIALS_ADVICE)
    if scp is None or " " in text:
        raise SpecError(
            f"expected the URL of a git repository, got {quoted(text)}",
            advice="use an https://, ssh:// or file:// URL, user@host:path, or an absolute path; a relative path would "
            "mean another repository in every folder",
        )
    if scp["host"].startswith("-") or (scp["user"] or "").startswith("-"):
        raise SpecError(f"the host of {quoted(text)} begins with a dash, which ssh would take for an option")
    return text


def check_git_ref(text: str) -> str:
    """A commit, tag or branch.  Raises `SpecError` without a path."""
    if text.startswith("-"):
        raise SpecError(f"{quoted(text)} begins with a dash, which git would take for an option")
    if _NOT_IN_REF.search(text):
        raise SpecError(f"{quoted(text)} is not the name of a commit, tag or branch")
    return text


def check_download(text: str) -> str:
    """The URL of a file, HTTP or HTTPS.  Raises `SpecError` without a path."""
    _check_url(text, ("http", "https"), what="a download")
    return text


def check_requirement_url(text: str) -> str:
    """The URL of `name @ URL`.  Raises `SpecError` without a path."""
    if "${" in text:
        raise SpecError(f"{quoted(text)} refers to an environment variable, whose value differs between machines")
    parts = _check_url(text, REQUIREMENT_SCHEMES, what="a requirement")
    if parts.scheme == "file" and not unquote(parts.path).lower().endswith(ARCHIVES):
        raise SpecError(
            f"{quoted(text)} is not an archive, and a folder may change behind an environment's back",
            advice="build a wheel of it (`pip wheel .`) and name that file",
        )
    return text


def _check_url(text: str, schemes: Collection[str], *, what: str, channel_tokens: bool = False) -> SplitResult:
    shown = quoted(text)
    if redact(text, channel_tokens=channel_tokens) != text:
        raise SpecError(f"{shown} holds credentials", advice=CREDENTIALS_ADVICE)
    if not text.isascii() or re.search(r"[\s\\\"<>^`{|}]", text):
        raise SpecError(f"{shown} holds characters that no URL may hold", advice="percent-encode them (a blank is %20)")
    try:
        parts = urlsplit(text)
        parts.port  # noqa: B018 - reading it checks it
    except ValueError as error:
        raise SpecError(f"{shown} is not a URL: {error}") from None
    if parts.scheme not in schemes:
        raise SpecError(
            f"{what} cannot come from {quoted(parts.scheme + ':')}: expected one of {', '.join(schemes)}, got {shown}"
        )
    if parts.scheme.endswith("file"):
        if parts.hostname not in (None, "localhost") or not parts.path.startswith("/"):
            raise SpecError(f"{shown} names no file", advice="a file URL has three slashes: file:///the/path")
    elif not parts.hostname:
        raise SpecError(f"{shown} names no host")
    elif parts.netloc.startswith("-") or parts.hostname.startswith("-"):
        raise SpecError(f"the host of {shown} begins with a dash, which ssh would take for an option")
    return parts
