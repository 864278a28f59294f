"""What anybody may say to the manager of PROMINENCE's jobs: on its socket, and on the port that jobs connect to."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import strategies as st

from poncho_wq.batch.prominence.door import SOCKET, TOKEN, Door, _short, ask
from poncho_wq.batch.prominence.job_channel import Broken, Line, call
from poncho_wq.batch.prominence.relay import Relay
from poncho_wq.batch.prominence.service import Service
from poncho_wq.batch.prominence.settings import settings
from poncho_wq.batch.spool import Spool
from tests.fuzz.campaign import Campaign
from tests.fuzz.strategies import changed, damaged, deep, documents
from tests.fuzz.test_descriptions import JSON_WORDS

PATIENCE = 60.0


@pytest.fixture
def fallen() -> Iterator[list[str]]:
    """Threads of the service that ended with a traceback."""
    found: list[str] = []
    before = threading.excepthook
    threading.excepthook = lambda args: found.append(f"{args.exc_type.__name__}: {args.exc_value}")
    try:
        yield found
    finally:
        threading.excepthook = before


@pytest.fixture
def spool(campaign: Campaign, monkeypatch: pytest.MonkeyPatch) -> Spool:
    monkeypatch.setenv("PONCHO_PROMINENCE_SPOOL", str(campaign.directory / "spool"))
    monkeypatch.setenv("PONCHO_CONFIG", str(campaign.directory / "config.toml"))
    return Spool(campaign.directory / "spool").make()


def say(spool: Spool, data: bytes) -> bytes:
    """Send it all, and return all that is answered."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(PATIENCE)
        with _short(spool.own, SOCKET) as path:
            connection.connect(path)
        answer = bytearray()
        try:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it has heard enough
        try:
            while piece := connection.recv(1 << 16):
                answer += piece
        except ConnectionResetError:
            pass
        return bytes(answer)


KNOCK = {"do": "knock"}
JOB = {"do": "job", "job": 7, "request": {"do": "read", "what": "stdout"}}
EXECUTE = {"do": "job", "job": 7, "request": {"do": "execute", "argv": ["x"], "path": "y", "id": 3}}
KEYS = ("do", "job", "request", "token", "id", "argv", "path", "what")


def test_the_services_socket(campaign: Campaign, spool: Spool, fallen: list[str]) -> None:
    engine = SimpleNamespace(queue=None)
    service = Service(spool, settings())
    with Relay("127.0.0.1") as relay:
        serve: Any = lambda request: service._serve(request, relay, engine)  # type: ignore[arg-type]  # noqa: E731
        with Door(spool, serve):
            token = (spool.own / TOKEN).read_text()
            good = tuple({**each, "token": token} for each in (KNOCK, JOB, EXECUTE))

            def case(data: bytes) -> None:
                answer = say(spool, data + b"\n")
                told = fallen[:]
                fallen.clear()
                assert not told
                if answer:
                    facts = json.loads(answer.partition(b"\n")[0])
                    if "problem" in facts:
                        campaign.counts["(refused)"] += 1
                ask(spool, KNOCK)

            texts = (changed(good, KEYS) | documents(KEYS)).map(lambda each: json.dumps(each).encode())
            raw = damaged(tuple(json.dumps(each).encode() for each in good), (*JSON_WORDS, deep('{"request":')))
            campaign.run("service's socket", case, programs=True, data=texts | raw | st.binary(max_size=40))


def test_the_port_that_jobs_connect_to(campaign: Campaign, fallen: list[str]) -> None:
    """Anybody on the network may connect to it; who does not know a secret gets nowhere."""
    with Relay("127.0.0.1") as relay:
        facts = relay.facts(7)

        def case(data: bytes) -> None:
            with socket.create_connection((facts["address"], facts["port"])) as connection:
                connection.settimeout(PATIENCE)
                try:
                    connection.sendall(data)
                    connection.shutdown(socket.SHUT_WR)
                    while connection.recv(1 << 16):
                        pass
                except OSError:
                    pass  # it has heard enough
            told = fallen[:]
            fallen.clear()
            assert not told
            assert relay._lines == {}

        hello = struct.pack("!Q", 7) + bytes(32) + bytes(32)
        campaign.run(
            "port of jobs, without the secret", case, programs=True, data=damaged((hello,)) | st.binary(max_size=200)
        )


def test_a_job_that_says_something_else(campaign: Campaign, fallen: list[str]) -> None:
    """It knows its secret, and runs whatever the user and the worker's owner made of it."""
    with Relay("127.0.0.1") as relay:
        facts = relay.facts(7)

        def case(header: object, body: bytes, raw: bool) -> None:
            connection = socket.create_connection((facts["address"], facts["port"]))
            try:
                connection.settimeout(PATIENCE)
                line = call(connection, 7, bytes.fromhex(facts["secret"]))
                answered = threading.Thread(target=_answer, args=(line, header, body, raw), daemon=True)
                answered.start()
                try:
                    told, data = relay.ask(7, {"do": "read"}, timeout=PATIENCE)
                    assert isinstance(told, dict)
                    assert isinstance(data, bytes)
                finally:
                    answered.join(PATIENCE)
                    line.close()
            finally:
                connection.close()
                told_of = fallen[:]
                fallen.clear()
                assert not told_of

        headers = changed(
            ({"id": 1, "exit_code": 0}, {"id": 1, "problem": "x"}), ("id", "problem", "exit_code", "archive")
        )
        campaign.run(
            "port of jobs, with the secret", case, programs=True, header=headers | documents(("id", "problem")),
            body=st.binary(max_size=40), raw=st.booleans(),
        )  # fmt: skip


def _answer(line: Line, header: Any, body: bytes, raw: bool) -> None:
    try:
        request, _ = line.receive()
        if isinstance(header, dict) and header.get("id") == 1:
            header["id"] = request["id"]
        if raw:
            message = body
            mac = line._mac(line._ours, line._sent, message)
            line._socket.sendall(struct.pack("!Q", len(message)) + mac + message)
        else:
            line.send(header, body)
        line.close()
    except (Broken, OSError):
        pass
