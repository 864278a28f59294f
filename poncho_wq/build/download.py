"""One file over HTTP: resumed where it broke off, told apart from what it should not be, with the user's credentials.

What happens when, for a server that drops the connection after 3 of 5 MB: the 3 MB stay in the partial file, with the
validator (ETag or Last-Modified) that the server gave for them; after a pause the rest is asked for with ``Range`` and
``If-Range`` (RFC 9110).  A server that has another file by now sends all of it, and the partial file is begun anew.  A
process that is killed leaves the same two files, and the next one goes on with them.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import http.client
import json
import netrc
import os
import random
import re
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

from poncho_wq.build import keyring
from poncho_wq.digests import sha256_of
from poncho_wq.errors import FetchError, redact
from poncho_wq.progress import OnProgress, Progress
from poncho_wq.scratch import disk_error

_PIECE = 1 << 18
# A tick for the eye; a callback a piece would cost more than the download.
_BETWEEN_REPORTS = 0.1  # seconds
_PROGRESS = 1 << 16  # bytes, below which an attempt counts as one that brought nothing
_WORTH_RETRYING = frozenset((408, 425, 429, 500, 502, 503, 504))
_LONGEST_PAUSE = 30.0  # seconds; a server that asks for more is not waited for
_REDIRECTS = 10
_OF_THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO}
# Where systems keep their certificates, for a Python that was built somewhere else and looks in a place of its own.
_SYSTEM_CERTIFICATES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long to try.

    ``timeout`` is the longest silence of a server, ``pause`` the first wait after a failure (doubled each time), both
    in seconds; ``attempts`` how often in a row an attempt may bring nothing.
    """

    timeout: float = 30.0
    pause: float = 0.5
    attempts: int = 5


@dataclass(frozen=True, kw_only=True)
class Downloaded:
    """A complete file: its bytes, their sha256, and what the server calls this version (None where it does not)."""

    size: int
    sha256: str
    etag: str | None
    modified: str | None


class NotModified(Exception):
    """The server still has the version that was asked about.  Not an error, and never leaves this package."""


def download(
    url: str,
    partial: Path,
    *,
    what: str,
    on_progress: OnProgress,
    sha256: str | None = None,
    known: Mapping[str, str | None] | None = None,
    patience: Patience | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Downloaded:
    """Download ``url`` to the file ``partial``, which is complete when this returns.

    What is in ``partial`` already is the beginning of an earlier attempt.  ``what`` names the download to a person.
    ``sha256`` is what the file must have.  ``known`` are the ``etag`` and ``modified`` of a version that is at hand.
    The caller sees to it that nobody else writes to ``partial``.

    Raises ``FetchError``, ``CacheError`` for a disk that is full, and ``NotModified`` where ``known`` is current.
    """
    patience = patience or Patience()
    transfer = _Transfer(
        url=url, partial=partial, what=what, on_progress=on_progress, sha256=sha256, known=dict(known or {}),
        timeout=patience.timeout,
    )  # fmt: skip
    failures, furthest, resumed = 0, transfer.have(), transfer.have() > 0
    while True:
        try:
            done = transfer.attempt()
        except _Broken as broken:
            # What gets further than ever is worth going on with, however often it breaks.
            failures = 1 if transfer.have() >= furthest + _PROGRESS else failures + 1
            furthest = max(furthest, transfer.have())
            if failures >= patience.attempts:
                raise transfer.failed(f"{broken} ({failures} attempts)") from broken.__cause__
            pause = patience.pause * 2 ** (failures - 1) * random.uniform(0.8, 1.2)
            on_progress(Progress(stage="fetch", detail=f"{what}: {broken}, trying again"))
            sleep(min(max(pause, broken.pause or 0), _LONGEST_PAUSE))
            resumed = True
            continue
        if sha256 is None or done.sha256 == sha256:
            return done
        transfer.discard()
        if not resumed:
            raise transfer.failed(
                f"its sha256 is {done.sha256}, expected {sha256}",
                advice="the file at this address has changed, or is not the one that was meant; correct sha256 or url",
            )
        # Pieces of two versions may have been put together: once more, from the beginning.
        resumed = False


class _Broken(Exception):
    """An attempt failed in a way that another may not.  ``pause`` is what the server asked for, in seconds."""

    def __init__(self, message: str, pause: float | None = None) -> None:
        super().__init__(message)
        self.pause = pause


@dataclass(kw_only=True)
class _Transfer:
    """One download: the request, the partial file, and beside it a note of which version it is the beginning of."""

    url: str
    partial: Path
    what: str
    on_progress: OnProgress
    sha256: str | None
    known: dict[str, str | None]
    timeout: float

    def have(self) -> int:
        try:
            return self.partial.stat().st_size
        except OSError:
            return 0

    @property
    def _note(self) -> Path:
        return self.partial.with_name(f"{self.partial.name}.json")

    def discard(self) -> None:
        self.partial.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)

    def failed(self, message: str, *, advice: str | None = None) -> FetchError:
        return FetchError(f"{self.what}: {redact(self.url)}: {message}", url=self.url, advice=advice)

    def attempt(self) -> Downloaded:
        """Ask for what is missing.  Raises ``_Broken`` for what may go better another time, else ``FetchError``."""
        begun, validator = self._begun()
        headers = {"User-Agent": "poncho_wq", "Accept-Encoding": "identity", "Accept": "*/*"}
        if begun:
            headers["Range"] = f"bytes={begun}-"
            if validator:
                headers["If-Range"] = validator
        elif self.known.get("etag"):
            headers["If-None-Match"] = str(self.known["etag"])
        elif self.known.get("modified"):
            headers["If-Modified-Since"] = str(self.known["modified"])
        try:
            request = urllib.request.Request(self.url, headers=headers)
            with _opener().open(request, timeout=self.timeout) as reply:
                return self._receive(reply, begun)
        except urllib.error.HTTPError as error:
            if error.code == 416 and begun and self._is_whole(begun, error.headers.get("Content-Range")):
                return self._complete(begun, None, None)
            raise self._status(error, begun) from error
        except _Refused as error:
            raise self.failed(str(error)) from error
        except urllib.error.URLError as error:
            raise self._unreachable(error.reason) from error
        except (http.client.HTTPException, ssl.SSLError, ConnectionError, TimeoutError) as error:
            raise self._unreachable(error) from error

    def _begun(self) -> tuple[int, str | None]:
        """How many bytes there are of which version.  Without a way to tell the version they are worth nothing."""
        have = self.have()
        if not have:
            return 0, None
        try:
            note = json.loads(self._note.read_text(encoding="utf-8"))
            validator = note.get("etag") or note.get("modified")
        except (OSError, ValueError, AttributeError):
            validator = None
        # A weak validator may not be used for a part (RFC 9110, 13.1.5).
        if validator and not str(validator).startswith("W/"):
            return have, str(validator)
        if self.sha256:  # which will tell in the end
            return have, None
        self.discard()
        return 0, None

    def _is_whole(self, have: int, content_range: str | None) -> bool:
        """Whether nothing is missing: a process was killed between the last byte and the end of its work."""
        try:
            total = json.loads(self._note.read_text(encoding="utf-8")).get("total")
        except (OSError, ValueError, AttributeError):
            total = None
        return _content_range(content_range)[1] == have and total in (None, have)

    def _receive(self, reply: Any, begun: int) -> Downloaded:
        etag, modified = reply.headers.get("ETag"), reply.headers.get("Last-Modified")
        length = _number(reply.headers.get("Content-Length"))
        total = length
        if begun and reply.status == 206:
            start, total = _content_range(reply.headers.get("Content-Range"))
            if start != begun:
                self.discard()
                raise _Broken("the server sent another part than was asked for")
        else:
            self.discard()
            begun = 0
        with self._writing():
            note = {"etag": etag, "modified": modified, "total": total}
            self._note.write_text(json.dumps(note), encoding="utf-8")
            size = self._copy(reply, begun, total)
        if total is not None and size < total:
            raise _Broken(f"the connection ended after {size} of {total} bytes")
        return self._complete(size, etag, modified)

    def _complete(self, size: int, etag: str | None, modified: str | None) -> Downloaded:
        return Downloaded(size=size, sha256=sha256_of(self.partial), etag=etag, modified=modified)

    def _copy(self, reply: Any, begun: int, total: int | None) -> int:
        done, reported = begun, 0.0
        with self.partial.open("ab") as file:
            while piece := reply.read(_PIECE):
                file.write(piece)
                done += len(piece)
                if time.monotonic() - reported >= _BETWEEN_REPORTS:
                    reported = time.monotonic()
                    self._report(done, total)
        self._report(done, total)
        return done

    def _report(self, done: int, total: int | None) -> None:
        self.on_progress(Progress(stage="fetch", detail=self.what, done=done, total=total, unit="bytes"))

    @contextlib.contextmanager
    def _writing(self) -> Any:
        try:
            yield
        except (ConnectionError, TimeoutError, ssl.SSLError):
            raise
        except OSError as error:
            if error.errno in _OF_THE_DISK:
                raise disk_error(error, self.partial.parent, f"could not store {self.what}") from error
            raise _Broken(f"the connection broke: {error}") from error

    def _status(self, error: urllib.error.HTTPError, begun: int) -> Exception:
        said = f"{error.code} {error.reason}".strip()
        if error.code == 304 and not begun:
            return NotModified()
        if error.code == 416:
            self.discard()
            return _Broken("the file has become shorter")
        if error.code in _WORTH_RETRYING:
            return _Broken(said, _number(error.headers.get("Retry-After")))
        advice = "is it the right address?"
        if error.code in (401, 403, 407):
            advice = (
                "put the credentials for this host into ~/.netrc (machine HOST login NAME password WORD) or into the "
                "keyring (keyring set https://HOST NAME)"
            )
        return self.failed(said, advice=advice)

    def _unreachable(self, reason: object) -> Exception:
        if isinstance(reason, ssl.SSLCertVerificationError):
            return self.failed(
                f"the server's certificate is not trusted: {reason.verify_message}",
                advice="name the bundle of your site's authorities in SSL_CERT_FILE",
            )
        if isinstance(reason, TimeoutError):
            return _Broken(f"no answer for {self.timeout:g} seconds")
        return _Broken(redact(str(getattr(reason, "strerror", None) or reason) or type(reason).__name__))


class _Refused(Exception):
    """A redirect that is not followed."""


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follow redirects to http and https, never from https to http; credentials go to their own host only."""

    max_redirections = _REDIRECTS
    http_error_308 = urllib.request.HTTPRedirectHandler.http_error_302  # not in Python 3.10

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Message, newurl: str
    ) -> urllib.request.Request | None:
        newurl = urljoin(req.full_url, newurl)
        before, after = urlsplit(req.full_url), urlsplit(newurl)
        if after.scheme not in ("http", "https"):
            raise _Refused(f"redirected to {redact(newurl)}, which is neither http nor https")
        if before.scheme == "https" and after.scheme == "http":
            raise _Refused(f"redirected from https to {redact(newurl)}, where others could change the file")
        kept = {name: value for name, value in req.headers.items() if name.lower() != "authorization"}
        return urllib.request.Request(newurl, headers=kept, unverifiable=True)


class _Netrc(urllib.request.BaseHandler):
    """The user's ``~/.netrc`` (``$NETRC``): a login for exactly the host that is asked."""

    handler_order = 400

    def http_request(self, request: urllib.request.Request) -> urllib.request.Request:
        login = _login(urlsplit(request.full_url).hostname or "")
        if login and not request.has_header("Authorization"):
            _authorize(request, login)
        return request

    https_request = http_request


class _Keyring(urllib.request.BaseHandler):
    """The user's keyring, asked only when a server refuses who has no credentials: it may take its time."""

    def http_error_401(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Message
    ) -> http.client.HTTPResponse | None:
        if req.has_header("Authorization"):
            return None
        address = urlsplit(req.full_url)
        login = keyring.login((f"{address.scheme}://{address.netloc}", address.netloc))
        if login is None:
            return None
        again = urllib.request.Request(req.full_url, headers=dict(req.headers), unverifiable=req.unverifiable)
        _authorize(again, login)
        answer: http.client.HTTPResponse = self.parent.open(again, timeout=req.timeout)
        return answer


def _authorize(request: urllib.request.Request, login: tuple[str, str]) -> None:
    token = base64.b64encode(":".join(login).encode()).decode("ascii")
    # Unredirected: it stays with this host.
    request.add_unredirected_header("Authorization", f"Basic {token}")


def _login(host: str) -> tuple[str, str] | None:
    path = os.environ.get("NETRC") or os.path.expanduser("~/.netrc")
    try:
        found = netrc.netrc(path).hosts.get(host)
    except (OSError, netrc.NetrcParseError, UnicodeDecodeError):
        return None
    return (found[0], found[2] or "") if found else None


def _opener() -> urllib.request.OpenerDirector:
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(context=_certificates()),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _Redirects(),
        _Netrc(),
        _Keyring(),
    ):
        opener.add_handler(handler)
    return opener


def _certificates() -> ssl.SSLContext:
    """Trust what OpenSSL is told to (``SSL_CERT_FILE``, ``SSL_CERT_DIR``), else the system's certificates."""
    context = ssl.create_default_context()
    places = ssl.get_default_verify_paths()
    told = os.environ.get("SSL_CERT_FILE") or os.environ.get("SSL_CERT_DIR")
    if not told and places.cafile is None and places.capath is None:
        for bundle in _SYSTEM_CERTIFICATES:
            if os.path.isfile(bundle):
                context.load_verify_locations(bundle)
                break
    return context


def _number(text: str | None) -> int | None:
    return int(text) if text and re.fullmatch(r"[0-9]{1,18}", text.strip()) else None


def _content_range(text: str | None) -> tuple[int | None, int | None]:
    """The first byte of the part, and the length of the whole file, as far as the header says."""
    match = re.fullmatch(r"bytes (?:(\d{1,18})-\d{1,18}|\*)/(\d{1,18}|\*)", (text or "").strip())
    if match is None:
        return None, None
    return None if match[1] is None else int(match[1]), None if match[2] == "*" else int(match[2])
