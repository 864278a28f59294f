"""Downloads from a server that fails: whole and right, or an error that says why, and nothing half done is used."""

from __future__ import annotations

import hashlib
import os
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from poncho_wq.build.datastore import DataStore
from poncho_wq.build.download import NotModified, Patience, download
from poncho_wq.errors import CacheError, FetchError
from poncho_wq.progress import Progress
from tests.data_server import FaultyServer, Handler, drop, faulty_server, hang_up, status, wrong_length

BIG = bytes(range(256)) * 4096  # 1 MiB
IMPATIENT = Patience(timeout=0.5, pause=0.0, attempts=3)


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("NETRC", raising=False)


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    with faulty_server() as faulty:
        yield faulty


def get(url: str, partial: Path, **options: Any) -> bytes:
    seen: list[Progress] = options.pop("seen", [])
    options.setdefault("patience", IMPATIENT)
    done = download(url, partial, what="http.DATA", on_progress=seen.append, **options)
    content = partial.read_bytes()
    assert (done.size, done.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    return content


def test_a_file_arrives_with_progress_in_bytes(server: FaultyServer, tmp_path: Path) -> None:
    seen: list[Progress] = []
    assert get(server.add("/a", BIG), tmp_path / "p", seen=seen) == BIG
    assert seen[-1] == Progress(stage="fetch", detail="http.DATA", done=len(BIG), total=len(BIG), unit="bytes")
    assert server.requests[0].headers["Accept-Encoding"] == "identity"


def test_a_dropped_connection_is_resumed_where_it_broke(server: FaultyServer, tmp_path: Path) -> None:
    url = server.add("/a", BIG, drop(300_000), drop(100_000))
    assert get(url, tmp_path / "p") == BIG
    ranges = [request.headers.get("Range") for request in server.requests]
    assert ranges[0] is None
    assert ranges[1] == "bytes=300000-"
    assert ranges[2] == "bytes=400000-"


def test_a_file_that_changed_meanwhile_is_begun_anew(server: FaultyServer, tmp_path: Path) -> None:
    def change(handler: Handler) -> None:
        handler.serve(BIG, cut=300_000)
        server.files["/a"] = other

    other = bytes(reversed(BIG))  # as long, so that the rest of it would fit
    url = server.add("/a", BIG, change)
    assert get(url, tmp_path / "p") == other


def test_without_a_validator_a_broken_download_begins_anew(tmp_path: Path) -> None:
    with faulty_server(etags=False) as server:
        url = server.add("/a", BIG, drop(300_000))
        assert get(url, tmp_path / "p") == BIG
        assert [request.headers.get("Range") for request in server.requests] == [None, None]


def test_without_a_validator_a_known_digest_allows_to_resume(tmp_path: Path) -> None:
    with faulty_server(etags=False) as server:
        url = server.add("/a", BIG, drop(300_000))
        assert get(url, tmp_path / "p", sha256=hashlib.sha256(BIG).hexdigest()) == BIG
        assert server.requests[1].headers.get("Range") == "bytes=300000-"


def test_two_versions_put_together_are_noticed_and_fetched_again(tmp_path: Path) -> None:
    other = bytes(reversed(BIG))
    with faulty_server(etags=False) as server:

        def change(handler: Handler) -> None:
            handler.serve(other, cut=300_000)

        url = server.add("/a", BIG, change)
        assert get(url, tmp_path / "p", sha256=hashlib.sha256(BIG).hexdigest()) == BIG
        assert len(server.requests) == 3


def test_what_a_killed_process_left_is_gone_on_with(server: FaultyServer, tmp_path: Path) -> None:
    url = server.add("/a", BIG, drop(300_000), status(404))
    with pytest.raises(FetchError):
        get(url, tmp_path / "p")
    assert (tmp_path / "p").stat().st_size == 300_000
    assert get(url, tmp_path / "p") == BIG
    assert server.requests[-1].headers["Range"] == "bytes=300000-"


def test_a_partial_file_that_is_whole_already_is_taken(server: FaultyServer, tmp_path: Path) -> None:
    url = server.add("/a", BIG)
    get(url, tmp_path / "p")
    assert get(url, tmp_path / "p") == BIG
    assert len(server.requests) == 2


@pytest.mark.parametrize("fault", [status(500), status(503), status(429, Retry_After="0"), hang_up])
def test_passing_faults_are_tried_again(server: FaultyServer, tmp_path: Path, fault: Any) -> None:
    assert get(server.add("/a", BIG, fault, fault), tmp_path / "p") == BIG
    assert len(server.requests) == 3


def test_pauses_grow_and_a_servers_wish_is_heard(server: FaultyServer, tmp_path: Path) -> None:
    slept: list[float] = []
    url = server.add("/a", b"x", status(500), status(500), status(503, Retry_After="7"))
    patience = Patience(timeout=1, pause=1, attempts=5)
    get(url, tmp_path / "p", patience=patience, sleep=slept.append)
    assert 0.8 <= slept[0] <= 1.2
    assert 1.6 <= slept[1] <= 2.4
    assert slept[2] == 7


def test_a_server_that_only_fails_is_given_up(server: FaultyServer, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match=r"http\.DATA: .*/a: 500 .*\(3 attempts\)") as caught:
        get(server.add("/a", BIG, *[status(500)] * 9), tmp_path / "p")
    assert caught.value.url == f"{server.url}/a"
    assert len(server.requests) == 3


@pytest.mark.parametrize("code", [400, 403, 404, 410])
def test_what_will_not_get_better_is_not_tried_again(server: FaultyServer, tmp_path: Path, code: int) -> None:
    with pytest.raises(FetchError, match=str(code)):
        get(server.add("/a", BIG, status(code)), tmp_path / "p")
    assert len(server.requests) == 1


def test_a_wrong_length_is_noticed(server: FaultyServer, tmp_path: Path) -> None:
    url = server.add("/a", BIG, *[wrong_length(len(BIG) + 10)] * 40)
    with pytest.raises(FetchError, match=f"ended after {len(BIG)} of {len(BIG) + 10} bytes"):
        get(url, tmp_path / "p")


def test_a_silent_server_is_not_waited_for_for_ever(server: FaultyServer, tmp_path: Path) -> None:
    release = threading.Event()

    def silent(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "100")
        handler.end_headers()
        handler.wfile.write(b"x" * 10)
        release.wait(30)

    try:
        with pytest.raises(FetchError, match=r"no answer for 0\.2 seconds"):
            get(
                server.add("/a", b"x" * 100, *[silent] * 9),
                tmp_path / "p",
                patience=Patience(timeout=0.2, pause=0, attempts=2),
            )
    finally:
        release.set()


def test_a_wrong_digest_is_refused_and_nothing_kept(server: FaultyServer, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match=f"its sha256 is {hashlib.sha256(BIG).hexdigest()}, expected {'0' * 64}"):
        get(server.add("/a", BIG), tmp_path / "p", sha256="0" * 64)
    assert list(tmp_path.glob("p*")) == []
    assert len(server.requests) == 1


def test_no_server_at_all(tmp_path: Path) -> None:
    with faulty_server() as server:
        url = server.url
    with pytest.raises(FetchError, match="refused"):
        get(f"{url}/a", tmp_path / "p")


# Redirects


def test_a_redirect_is_followed_with_the_range(server: FaultyServer, tmp_path: Path) -> None:
    target = server.add("/b", BIG, drop(300_000))
    url = server.add("/a", b"", *[status(302, Location=target)] * 2)
    assert get(url, tmp_path / "p") == BIG
    assert [request.headers.get("Range") for request in server.asked("/b")] == [None, "bytes=300000-"]


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_every_kind_of_redirect(server: FaultyServer, tmp_path: Path, code: int) -> None:
    server.add("/b", b"there")
    assert get(server.add("/a", b"", status(code, Location="/b")), tmp_path / "p") == b"there"


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x"])
def test_redirects_to_elsewhere_are_refused(server: FaultyServer, tmp_path: Path, target: str) -> None:
    with pytest.raises(FetchError):
        get(server.add("/a", b"", status(302, Location=target)), tmp_path / "p")
    assert not (tmp_path / "p").exists()


def test_redirects_in_a_circle_end(server: FaultyServer, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match=r"30[0-9]"):
        get(server.add("/a", b"", *[status(302, Location="/a")] * 50), tmp_path / "p")
    assert len(server.requests) < 20


# Secrets and certificates


def netrc(host: str) -> None:
    home = Path(os.environ["HOME"])
    home.mkdir()
    (home / ".netrc").write_text(f"machine {host} login me password s3cret\n")
    (home / ".netrc").chmod(0o600)


def test_netrc_is_used_for_its_host_only(server: FaultyServer, tmp_path: Path) -> None:
    netrc("127.0.0.1")
    port = server.url.rpartition(":")[2]
    server.add("/b", b"there")
    url = server.add("/a", b"", status(302, Location=f"http://localhost:{port}/b"))
    assert get(url, tmp_path / "p") == b"there"
    assert server.asked("/a")[0].headers["Authorization"] == "Basic bWU6czNjcmV0"
    assert server.asked("/b")[0].headers["Authorization"] is None


@pytest.fixture
def keyring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `keyring` on PATH that writes down what it is asked, and answers from the file `answers`."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "keyring"
    program.write_text(
        '#!/bin/sh\necho "$*" >>"${0%/*}/asked"\n'
        "while read -r service user password; do\n"
        '  [ "$service" != "$4" ] || { printf "%s\\n%s\\n" "$user" "$password"; exit 0; }\n'
        'done <"${0%/*}/answers"\nexit 1\n'
    )
    program.chmod(0o755)
    (folder / "answers").touch()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def test_the_keyring_is_asked_when_the_server_wants_to_know(
    server: FaultyServer, tmp_path: Path, keyring: Path
) -> None:
    address = server.url.partition("://")[2].rstrip("/")
    (keyring / "answers").write_text(f"{address} me s3cret\n")
    url = server.add("/a", b"there", status(401, WWW_Authenticate='Basic realm="x"'))
    server.add("/open", b"open")
    assert get(f"{server.url.rstrip('/')}/open", tmp_path / "o") == b"open"
    assert not (keyring / "asked").exists()
    assert get(url, tmp_path / "p") == b"there"
    first, second = server.asked("/a")
    assert first.headers["Authorization"] is None
    assert second.headers["Authorization"] == "Basic bWU6czNjcmV0"
    assert (keyring / "asked").read_text().split("\n") == [
        f"--mode creds get http://{address}", f"--mode creds get {address}", "",
    ]  # fmt: skip


def test_a_keyring_that_does_not_know_or_is_wrong(server: FaultyServer, tmp_path: Path, keyring: Path) -> None:
    refusal = status(401, WWW_Authenticate='Basic realm="x"')
    with pytest.raises(FetchError, match="401") as caught:
        get(server.add("/a", b"", refusal), tmp_path / "p")
    assert "keyring" in str(caught.value)
    (keyring / "answers").write_text(f"{server.url.partition('://')[2].rstrip('/')} me s3cret\n")
    with pytest.raises(FetchError, match="401") as caught:
        get(server.add("/b", b"", refusal, refusal, refusal), tmp_path / "q")
    assert len(server.asked("/b")) == 2
    assert "s3cret" not in f"{caught.value}"


def test_no_secret_is_in_an_error(server: FaultyServer, tmp_path: Path) -> None:
    netrc("127.0.0.1")
    url = server.add("/a?token=s3cret", b"", status(403))
    with pytest.raises(FetchError) as caught:
        get(url, tmp_path / "p")
    shown = f"{caught.value} {caught.value.url} {caught.value.args}"
    assert "s3cret" not in shown
    assert "bWU6" not in shown
    assert "netrc" in shown


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("openssl") is None:
        pytest.skip("needs the program openssl")
    file = tmp_path_factory.mktemp("tls") / "both.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", file, "-out", f"{file}.crt"],
        check=True, capture_output=True,
    )  # fmt: skip
    return file


@pytest.fixture
def https(certificate: Path) -> Iterator[FaultyServer]:
    import http.server

    with faulty_server() as plain:
        handler = type("Bound", (Handler,), {"faulty": plain})
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        server.handle_error = lambda *_: None  # type: ignore[method-assign]
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(f"{certificate}.crt", certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        http_url, plain.url = plain.url, f"https://127.0.0.1:{server.server_port}"
        plain.add("/to-http", b"", status(302, Location=f"{http_url}/a"))
        try:
            yield plain
        finally:
            server.shutdown()
            server.server_close()


def test_a_sites_own_authority(
    https: FaultyServer, certificate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = https.add("/a", b"safe")
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)
    monkeypatch.setenv("SSL_CERT_FILE", f"{certificate}.crt")
    assert get(url, tmp_path / "p") == b"safe"


def test_a_certificate_that_nobody_vouches_for(
    https: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    with pytest.raises(FetchError, match=r"certificate is not trusted(.|\n)*SSL_CERT_FILE"):
        get(https.add("/a", b"safe"), tmp_path / "p")
    assert https.requests == []


def test_https_is_never_given_up_for_http(
    https: FaultyServer, certificate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", f"{certificate}.crt")
    https.add("/a", b"safe")
    with pytest.raises(FetchError, match="redirected from https"):
        get(f"{https.url}/to-http", tmp_path / "p")
    assert https.asked("/a") == []


# Asking whether something has changed


def test_a_version_at_hand_is_not_sent_again(server: FaultyServer, tmp_path: Path) -> None:
    url = server.add("/a", BIG)
    done = download(url, tmp_path / "p", what="x", on_progress=lambda _: None)
    with pytest.raises(NotModified):
        download(url, tmp_path / "q", what="x", on_progress=lambda _: None, known={"etag": done.etag})


def test_disk_errors_are_the_caches(server: FaultyServer, tmp_path: Path) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    partial = tmp_path / "p"
    partial.symlink_to("/dev/full")

    class Full(type(partial)):  # type: ignore[misc]
        def unlink(self, missing_ok: bool = False) -> None:
            if not self.is_symlink():
                super().unlink(missing_ok)

    with pytest.raises(CacheError, match=r"could not store http\.DATA: No space left"):
        get(server.add("/a", BIG), Full(partial))


# The store


def store_get(store: DataStore, url: str, sha256: str | None = None, **options: Any) -> bytes:
    digest = store.file(url, sha256, "http.DATA", lambda _: None, **options)
    return store.path(digest).read_bytes()


def test_a_file_is_fetched_once_per_content(server: FaultyServer, tmp_path: Path) -> None:
    store = DataStore(tmp_path, patience=IMPATIENT)
    digest = hashlib.sha256(BIG).hexdigest()
    one, two = server.add("/a", BIG), server.add("/b", BIG)
    assert store_get(store, one, digest) == BIG
    assert store_get(store, one, digest) == BIG
    assert store_get(store, two, digest) == BIG
    assert len(server.requests) == 1


def test_offline_takes_what_is_in_the_store(server: FaultyServer, tmp_path: Path) -> None:
    url, digest = server.add("/a", BIG), hashlib.sha256(BIG).hexdigest()
    store_get(DataStore(tmp_path), url, digest)
    offline = DataStore(tmp_path, offline=True)
    assert store_get(offline, url, digest) == BIG
    for wanted in (None, "0" * 64):
        with pytest.raises(FetchError, match="nothing may be downloaded"):
            store_get(offline, url, wanted)
    assert len(server.requests) == 1


def test_an_unpinned_file_is_only_asked_about(server: FaultyServer, tmp_path: Path) -> None:
    store = DataStore(tmp_path, patience=IMPATIENT)
    url = server.add("/a", BIG)
    assert store_get(store, url) == store_get(store, url) == BIG
    assert server.requests[1].headers["If-None-Match"]
    server.files["/a"] = b"another"
    assert store_get(store, url) == b"another"


def test_a_file_that_went_bad_in_the_store_is_fetched_again(server: FaultyServer, tmp_path: Path) -> None:
    store = DataStore(tmp_path, patience=IMPATIENT)
    url, digest = server.add("/a", BIG), hashlib.sha256(BIG).hexdigest()
    store_get(store, url, digest)
    store.path(digest).chmod(0o644)
    store.path(digest).write_bytes(b"rot")
    assert store_get(store, url, digest, check=True) == BIG


def test_many_who_want_one_file_fetch_it_once(server: FaultyServer, tmp_path: Path) -> None:
    url, digest = server.add("/a", BIG), hashlib.sha256(BIG).hexdigest()
    stores = [DataStore(tmp_path, patience=IMPATIENT) for _ in range(8)]
    threads = [threading.Thread(target=store_get, args=(store, url, digest)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.requests) == 1
    assert [path.name for path in (tmp_path / "data" / "http").iterdir()] == [digest]
    assert list((tmp_path / "data" / "partial").iterdir()) == []


def test_the_store_is_private(server: FaultyServer, tmp_path: Path) -> None:
    store_get(DataStore(tmp_path), server.add("/a", BIG))
    assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700
