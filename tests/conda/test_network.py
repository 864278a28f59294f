"""Channels on servers: the user's credentials and mirrors are used, and end up nowhere."""

from __future__ import annotations

import base64
import functools
import gzip
import http.server
import json
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from poncho_wq.build.conda import CondaBuilder
from poncho_wq.errors import BuildError, FetchError
from poncho_wq.prepare import environment, lock_environment
from poncho_wq.spec import EnvSpec
from tests.conda.conftest import Channels

USER, SECRET = "me", "s3cret-Passw0rd"


@dataclass
class Server:
    """A web server for the channel directories; ``asked`` are the paths that were asked for."""

    url: str
    asked: list[str] = field(default_factory=list)
    guarded: bool = False
    replaced: dict[str, bytes] = field(default_factory=dict)


class Handler(http.server.SimpleHTTPRequestHandler):
    def __init__(self, *args: object, server_facts: Server, **kwargs: object) -> None:
        self.facts = server_facts
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        self.facts.asked.append(self.path)
        token = base64.b64encode(f"{USER}:{SECRET}".encode()).decode()
        if self.facts.guarded and self.headers.get("Authorization") != f"Basic {token}":
            self.send_error(401)
        elif self.path.rpartition("/")[2] in self.facts.replaced:
            data = self.facts.replaced[self.path.rpartition("/")[2]]
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
        else:
            super().do_GET()

    do_HEAD = do_GET

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(channels: Channels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    home = tmp_path / "home"
    home.mkdir()
    for name, value in {"HOME": home, "XDG_CONFIG_HOME": home / "config", "NETRC": home / "netrc"}.items():
        monkeypatch.setenv(name, str(value))
    for name in ("RATTLER_AUTH_FILE", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    facts = Server(url="")
    handler = functools.partial(Handler, directory=str(channels.root), server_facts=facts)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        facts.url = f"http://127.0.0.1:{httpd.server_address[1]}"
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        try:
            yield facts
        finally:
            httpd.shutdown()
            thread.join()


def spec_for(channel: str, *packages: str) -> EnvSpec:
    return EnvSpec.from_dict({"conda": {"channels": [channel], "packages": list(packages)}})


def holds_secret(tarball: Path, *texts: str) -> bool:
    data = gzip.decompress(tarball.read_bytes())
    return any(SECRET in text for text in texts) or SECRET.encode() in data


def test_credentials_of_the_users_file(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.guarded = True
    auth = tmp_path / "auth.json"
    auth.write_text(json.dumps({"127.0.0.1": {"BasicHTTP": {"username": USER, "password": SECRET}}}))
    monkeypatch.setenv("RATTLER_AUTH_FILE", str(auth))
    spec = spec_for(f"{server.url}/main", "tiny")
    locked = lock_environment(spec, cache_dir=tmp_path / "cache")
    made = environment(spec, cache_dir=tmp_path / "cache", locked=locked)
    kept = [path.read_text(errors="replace") for path in (tmp_path / "cache" / "v1").rglob("*") if path.is_file()]
    assert not holds_secret(made.tarball, locked.to_json(), spec.to_json(), *kept)
    assert any(path.endswith("tiny-1.1-py_1.conda") for path in server.asked)


def test_without_credentials(server: Server, tmp_path: Path) -> None:
    server.guarded = True
    with pytest.raises(FetchError, match="wants credentials") as caught:
        lock_environment(spec_for(f"{server.url}/main", "tiny"), cache_dir=tmp_path / "cache")
    assert caught.value.url is not None
    assert caught.value.url.startswith(server.url)


def test_a_mirror_of_the_users_configuration(server: Server, tmp_path: Path) -> None:
    """The lock names the channel, not the mirror, so it is as good where there is another or none."""
    config = tmp_path / "home" / "config" / "rattler"
    config.mkdir(parents=True)
    mirrors = f'[mirrors]\n"https://conda.anaconda.org/conda-forge" = ["{server.url}/main"]\n'
    (config / "config.toml").write_text(mirrors)
    spec = spec_for("conda-forge", "tiny")
    locked = lock_environment(spec, cache_dir=tmp_path / "cache")
    made = environment(spec, cache_dir=tmp_path / "cache", locked=locked)
    assert {package.channel for package in locked.lock.conda} == {"conda-forge"}
    assert server.url not in locked.to_json()
    assert server.url.encode() not in gzip.decompress(made.tarball.read_bytes())


def test_a_broken_configuration(tmp_path: Path, server: Server) -> None:
    config = tmp_path / "home" / "config" / "rattler"
    config.mkdir(parents=True)
    (config / "config.toml").write_text("[mirrors\n")
    with pytest.raises(BuildError, match="configuration cannot be read"):
        lock_environment(spec_for("conda-forge", "tiny"), cache_dir=tmp_path / "cache")


def test_a_download_that_is_not_what_the_index_says(server: Server, channels: Channels, tmp_path: Path) -> None:
    spec = spec_for(f"{server.url}/main", "tiny")
    builder = CondaBuilder(cache_root=tmp_path / "cache")
    lock = builder.lock(spec, lambda _: None)
    other = channels.root / "main" / "noarch" / "tiny-1.0-py_0.conda"
    server.replaced["tiny-1.1-py_1.conda"] = other.read_bytes()
    with pytest.raises((FetchError, BuildError), match=r"tiny-1\.1-py_1"):
        builder.build(spec, lock, tmp_path / "p", lambda _: None)


def test_built_before_then_offline(server: Server, tmp_path: Path) -> None:
    spec = spec_for(f"{server.url}/main", "tiny")
    locked = lock_environment(spec, cache_dir=tmp_path / "cache")
    first = environment(spec, cache_dir=tmp_path / "cache", locked=locked)
    server.asked.clear()
    server.guarded = True
    again = environment(spec, cache_dir=tmp_path / "cache", locked=locked, offline=True, refresh=True)
    unlocked = environment(spec, cache_dir=tmp_path / "cache", offline=True)
    assert first.identity == again.identity == unlocked.identity
    assert server.asked == []
    shutil.rmtree(tmp_path / "cache")


def test_a_download_that_stops(server: Server, tmp_path: Path) -> None:
    spec = spec_for(f"{server.url}/main", "tiny")
    builder = CondaBuilder(cache_root=tmp_path / "cache")
    lock = builder.lock(spec, lambda _: None)
    server.guarded = True
    with pytest.raises(FetchError, match="could not download"):
        builder.build(spec, lock, tmp_path / "p", lambda _: None)
