"""Index, conda channels and proxies as they are configured, each asked once with a limit of time; and the clock."""

from __future__ import annotations

import os
import socket
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import urlsplit

from poncho_wq.build.conda import DEFAULT_CHANNEL
from poncho_wq.build.index import uv_variables, wants_no_index
from poncho_wq.build.rattler import served_from
from poncho_wq.build.uv import Uv
from poncho_wq.doctor.finding import Finding, note, of_error, ok, problem, warning
from poncho_wq.errors import FetchError, PonchoError, SolveError, redact
from poncho_wq.platforms import host_platform

# It is on every index that can serve us: we need it ourselves.
_ASKED_FOR = "packaging"
# Certificates are refused, and signed downloads too, by clocks that are minutes off.
CLOCK_SECONDS = 60
_PROXIES = ("http_proxy", "https_proxy", "all_proxy")
_INDEX = f"{sys.executable} -m pip config set global.index-url https://YOUR-INDEX/simple"


def index(seconds: float) -> Iterator[Finding]:
    """Have uv look for one package, exactly as a build would: same indexes, certificates, credentials, proxies."""
    limit = str(max(1, int(seconds)))
    limits = {"UV_HTTP_TIMEOUT": limit, "UV_HTTP_CONNECT_TIMEOUT": limit, "UV_HTTP_RETRIES": "0"}
    variables = {**os.environ, **limits}
    variables.pop("UV_CACHE_DIR", None)  # what is downloaded already would answer
    with tempfile.TemporaryDirectory(prefix="poncho-doctor-") as work:
        uv = Uv(cache=Path(work, "cache"), environment=variables)
        try:
            uv.compile(
                [_ASKED_FOR], preferred={}, python=Path(sys.executable), glibc=None, platform=host_platform(),
                work=Path(work), dependencies=False,
            )  # fmt: skip
        except SolveError:
            yield warning("index", f"{_asked()} has no package {_ASKED_FOR}: is it a package index?", _INDEX)
        except FetchError as error:
            yield problem(
                "index", f"{error.message}", f"{_INDEX}    (behind a proxy: export https_proxy=http://HOST:PORT)"
            )
        except PonchoError as error:
            yield problem("index", error.message, error.advice or _INDEX)
        else:
            yield ok("index", f"{_asked()} answers")


def _asked() -> str:
    if wants_no_index(os.environ):
        return "the configured folder"
    url = _index_url()
    return redact(url) if url else "uv's default index"


def _index_url() -> str | None:
    """Where packages are configured to come from first; None when that is a folder alone, or left to uv."""
    given = {**os.environ, **uv_variables(os.environ)}
    return None if wants_no_index(os.environ) else given.get("UV_DEFAULT_INDEX") or given.get("UV_INDEX_URL")


def channels(seconds: float) -> Iterator[Finding]:
    """Whether the channel of specifications that name none answers, or a mirror of it that rattler is configured with.
    Only specifications with a conda section need it."""
    try:
        places = served_from(DEFAULT_CHANNEL)
    except PonchoError as error:
        yield of_error("channels", error, "mend ~/.config/rattler/config.toml")
        return
    faults = {url: _unreachable(f"{url}noarch/repodata.json.zst", seconds) for url in places}
    well = [url for url, fault in faults.items() if fault is None]
    if well:
        yield ok("channels", f"{DEFAULT_CHANNEL} ({redact(well[0])}) answers")
        return
    said = "; ".join(f"{redact(url)}: {fault}" for url, fault in faults.items())
    yield warning(
        "channels",
        f"{DEFAULT_CHANNEL} does not answer ({said}): environments with a conda section cannot be built here, unless "
        "they name a channel that does",
        'name a mirror in the specification ("channels": ["https://MIRROR/conda-forge"]) or in '
        '~/.config/rattler/config.toml: [mirrors] "https://conda.anaconda.org/conda-forge" = ["https://MIRROR/conda-forge"]',
    )


def _unreachable(url: str, seconds: float) -> str | None:
    """Why nobody answers at ``url``; None when somebody does, be it to ask for a login."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=seconds):
            return None
    except urllib.error.HTTPError as error:
        return None if error.code in (401, 403, 405) else f"HTTP status {error.code}"
    except (OSError, ValueError) as error:
        return redact(str(getattr(error, "reason", error)) or type(error).__name__)


def proxies(seconds: float, *, offline: bool = False) -> Iterator[Finding]:
    """Whether each proxy is a URL with a host that takes connections."""
    for name in _PROXIES:
        for variable in (name, name.upper()):
            value = os.environ.get(variable, "")
            if value:
                yield _proxy(variable, value, seconds, offline=offline)
    lower, upper = os.environ.get("https_proxy"), os.environ.get("HTTPS_PROXY")
    if lower and upper and lower != upper:
        yield note(
            "proxy", "https_proxy and HTTPS_PROXY differ: programs take one or the other", 'HTTPS_PROXY="$https_proxy"'
        )


def _proxy(variable: str, value: str, seconds: float, *, offline: bool) -> Finding:
    shown = f"{variable}={redact(value)}"
    try:
        parts = urlsplit(value if "://" in value else f"http://{value}")
        host, port = parts.hostname, parts.port or (1080 if parts.scheme.startswith("socks") else 80)
    except ValueError:
        host, port = None, 0
    if not host:
        return problem("proxy", f"{shown} is no URL", f"export {variable}=http://HOST:PORT    (or: unset {variable})")
    if offline:
        return ok("proxy", shown)
    try:
        socket.create_connection((host, port), timeout=seconds).close()
    except OSError as error:
        return problem(
            "proxy",
            f"{shown} takes no connection: {error.strerror or error}",
            f"unset {variable}    (or give the right one)",
        )
    return ok("proxy", shown)


def clock(seconds: float) -> Iterator[Finding]:
    """Compare with the time that the index's server tells, or the channel's where the index is left to uv."""
    url = _index_url()
    if url is None and not wants_no_index(os.environ):
        with suppress(PonchoError):
            url = next(iter(served_from(DEFAULT_CHANNEL)), None)
    if url is None or not url.startswith(("http://", "https://")):
        return
    server = redact(urlsplit(url).hostname or url)
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=seconds) as answer:
            told = answer.headers.get("Date")
    except urllib.error.HTTPError as error:
        told = error.headers.get("Date")
    except (OSError, ValueError):
        return  # that it does not answer is the index's finding
    try:
        off = time.time() - parsedate_to_datetime(told).timestamp()
    except (TypeError, ValueError):
        return
    if abs(off) > CLOCK_SECONDS:
        way = "ahead of" if off > 0 else "behind"
        yield warning(
            "clock", f"this machine's clock is {abs(off):.0f} s {way} {server}'s: certificates may be refused",
            "sudo timedatectl set-ntp true    (or ask who runs the machine)",
        )  # fmt: skip
    else:
        yield ok("clock", f"within {CLOCK_SECONDS} s of {server}'s")
