"""The service: one for a spool, started on demand, ended when idle, and closed to everybody else."""

from __future__ import annotations

import io
import json
import os
import socket
import struct
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from poncho_wq.batch.prominence import door, job_channel
from poncho_wq.batch.prominence.relay import Relay
from poncho_wq.batch.prominence.settings import settings
from poncho_wq.batch.spool import Spool
from poncho_wq.errors import EngineError, SpecError
from poncho_wq.prominence import Job, Notification, Workflow
from tests.prominence.conftest import Service, until


def said(spool: Spool) -> list[str]:
    return [line.split(" ", 1)[1] for line in (spool.own / door.LOG).read_text().splitlines()]


def test_it_ends_when_idle_and_starts_again(serving: Callable[..., Any], job: Callable[..., Job]) -> None:
    with serving(engine="local", idle=0) as service:
        for text in ("one", "two"):
            made = job(f"echo {text}")
            made.create()
            made.wait()
            assert made.stdout() == f"{text}\n"
            until(lambda: not service.is_there)
            until(lambda: said(service.spool)[-1] == "ends")
        assert not (service.spool.own / door.TOKEN).exists()


def test_clients_that_come_at_once_get_one_service(here: Service, tmp_path: Path) -> None:
    script = (
        "from poncho_wq.prominence import *; job = Job(); job.tasks.append(Task(command='hostname')); "
        "job.create(); job.wait(); print(job.status)"
    )
    clients = [subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert [client.communicate()[0] for client in clients] == ["completed\n"] * 4
    assert said(here.spool).count("runs local") == 1


def test_the_socket_and_the_token_are_the_users_alone(here: Service, job: Callable[..., Job]) -> None:
    job("true").create()
    for name in (door.SOCKET, door.TOKEN):
        assert (here.spool.own / name).stat().st_mode & 0o077 == 0


def _talk(spool: Spool, line: bytes) -> dict[str, Any]:
    with socket.socket(socket.AF_UNIX) as connection, door._short(spool.own, door.SOCKET) as path:
        connection.connect(path)
        connection.sendall(line)
        connection.shutdown(socket.SHUT_WR)
        with connection.makefile("rb") as stream:
            answer: dict[str, Any] = json.loads(stream.readline())
            return answer


@pytest.mark.parametrize(
    "request_line",
    [
        b'{"do": "knock"}\n', b'{"do": "knock", "token": "0000"}\n', b'{"do": "knock", "token": null}\n', b"[]\n", b"",
        b'{"do": "knock", "token": "\\ud800"}\n', b"[" * 9000 + b"\n",
    ],
)  # fmt: skip
def test_a_connection_without_the_token_is_refused(here: Service, job: Callable[..., Job], request_line: bytes) -> None:
    job("true").create()
    answer = _talk(here.spool, request_line)
    assert answer["refused"]
    assert "pid" not in answer


@pytest.mark.parametrize(
    "request_", [{}, {"job": "x", "request": {}}, {"job": 1, "request": 3}, {"job": 9, "request": {}}]
)
def test_a_request_of_no_job_is_answered(here: Service, job: Callable[..., Job], request_: dict[str, Any]) -> None:
    job("true").create()
    token = (here.spool.own / door.TOKEN).read_text()
    assert "problem" in _talk(here.spool, json.dumps({"do": "job", "token": token, **request_}).encode() + b"\n")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_another_user_is_refused_though_all_permissions_were_given(here: Service, job: Callable[..., Job]) -> None:
    job("true").create()
    token = (here.spool.own / door.TOKEN).read_text()
    for path in (here.spool.own, *here.spool.own.parents):
        if path.stat().st_mode & 0o005 != 0o005 and path != Path("/"):
            path.chmod(path.stat().st_mode | 0o005)
    (here.spool.own / door.SOCKET).chmod(0o666)
    script = (
        "import socket, sys\n"
        "s = socket.socket(socket.AF_UNIX)\n"
        "s.connect('service.socket')\n"
        "s.sendall(sys.argv[1].encode())\n"
        "print(s.makefile().readline())\n"
    )
    line = json.dumps({"do": "knock", "token": token}) + "\n"
    done = subprocess.run(
        ["/usr/bin/python3", "-c", script, line], cwd=here.spool.own, user=65534, group=65534, extra_groups=[],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert json.loads(done.stdout)["problem"] == "this service is another user's", done.stderr


def test_a_service_of_another_user_is_known_by_its_refusal(tmp_path: Path) -> None:
    spool = Spool(tmp_path).make()
    with door.Door(spool, lambda request: ({}, b"")):
        (spool.own / door.TOKEN).write_text("of somebody else")
        with pytest.raises(door.Refused, match="the token is missing or wrong"):
            door.ask(spool, {"do": "knock"})


def test_errors_cross_the_door_and_answers_carry_bytes(tmp_path: Path) -> None:
    def serve(request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        if request["do"] == "fail":
            raise EngineError("it cannot be done", advice="do something else")
        return {"a": 1}, b"\0" * 3_000_000

    spool = Spool(tmp_path / ("long" * 40) / "spool").make()
    with door.Door(spool, serve):
        facts, data = door.ask(spool, {"do": "x"})
        assert (facts["a"], len(data)) == (1, 3_000_000)
        with pytest.raises(EngineError, match="do something else"):
            door.ask(spool, {"do": "fail"})
    with pytest.raises(door.Closed):
        door.ask(spool, {"do": "x"})


def test_a_service_that_cannot_start_says_why(serving: Callable[..., Any], job: Callable[..., Job]) -> None:
    with serving(engine="local", address="no.such.host.invalid", features="a"):
        os.environ["PONCHO_PROMINENCE_PORT"] = "many"
        try:
            with pytest.raises(SpecError, match="PONCHO_PROMINENCE_PORT: expected a whole number, got 'many'"):
                job("true").create()
        finally:
            del os.environ["PONCHO_PROMINENCE_PORT"]


def test_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith("PONCHO_PROMINENCE_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PONCHO_CONFIG", str(tmp_path / "config.toml"))
    found = settings()
    assert (found.engine, found.workers, found.port, found.name, found.idle) == ("local", 0, 0, None, 300)
    assert (found.address, found.is_all_here) == ("127.0.0.1", True)
    (tmp_path / "config.toml").write_text('[prominence]\nport = 9123\nfeatures = "a, b"\nspool = "~/x"\nidle = 5\n')
    found = settings()
    assert (found.engine, found.port, found.features, found.idle) == ("work_queue", 9123, ("a", "b"), 5)
    assert (found.spool, found.is_all_here) == (Path.home() / "x", False)
    assert found.address == socket.getfqdn()
    monkeypatch.setenv("PONCHO_PROMINENCE_ENGINE", "taskvine")
    assert settings().engine == "taskvine"
    monkeypatch.setenv("PONCHO_PROMINENCE_ENGINE", "slurm")
    with pytest.raises(SpecError, match="expected one of work_queue, taskvine, local"):
        settings()


# -- the channel to a running job


class FakeJob:
    """What the runner hands to a companion, as far as it is needed."""

    def __init__(self, directory: Path, facts: dict[str, Any]) -> None:
        self.sandbox, self.home = str(directory), str(directory)
        self.stdout, self.stderr = str(directory / "out"), str(directory / "err")
        (directory / "out").write_text("so far")
        self.job = {"companion_facts": facts, "steps": [{"argv": ["true"]}]}

    def start(self, step: dict[str, Any], stdout: Any, stderr: Any) -> Any:
        return subprocess.Popen(step["argv"], stdout=stdout, stderr=stderr)


def test_jobs_and_the_service_prove_who_they_are(tmp_path: Path) -> None:
    with Relay("127.0.0.1") as relay:
        facts = relay.facts(7)
        impostor = job_channel.attach(FakeJob(tmp_path, {**facts, "secret": "00" * 32}))
        try:
            with pytest.raises(job_channel.Broken), socket.create_connection((facts["address"], facts["port"])) as sock:
                job_channel.call(sock, 7, b"\0" * 32)
            with pytest.raises(job_channel.Broken), socket.create_connection((facts["address"], facts["port"])) as sock:
                job_channel.call(sock, 8, bytes.fromhex(facts["secret"]))
            assert not relay._lines
        finally:
            impostor.close()
        companion = job_channel.attach(FakeJob(tmp_path, facts))
        try:
            assert relay.ask(7, {"do": "read", "what": "stdout"})[1] == b"so far"
            assert relay.ask(7, {"do": "execute", "argv": ["sh", "-c", "echo $((6*7)); exit 3"]})[1] == b"42\n"
            with pytest.raises(EngineError, match="No such file"):
                relay.ask(7, {"do": "snapshot", "path": "nothing"})
            # One that takes long keeps no other from being answered.
            slow = threading.Thread(target=lambda: relay.ask(7, {"do": "execute", "argv": ["sleep", "1"]}))
            slow.start()
            assert relay.ask(7, {"do": "read", "what": "stdout"})[1] == b"so far"
            slow.join()
            relay.forget(7)
            with pytest.raises(EngineError, match="job 7 does not answer"):
                relay.ask(7, {"do": "read", "what": "stdout"})
        finally:
            companion.close()


def test_what_is_too_large_for_an_answer_is_refused_not_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_channel, "ANSWER", 1000)
    kept = tmp_path / "kept"
    kept.mkdir()
    with Relay("127.0.0.1") as relay:
        running = FakeJob(tmp_path, relay.facts(7))
        companion = job_channel.attach(running)
        try:
            for size in (1000, 1001):
                noise = os.urandom(size)
                (tmp_path / "file").write_bytes(noise)
                Path(running.stdout).write_bytes(noise)
                for request in (
                    {"do": "read", "what": "stdout"}, {"do": "snapshot", "path": "file"},
                    {"do": "execute", "argv": ["cat", str(tmp_path / "file")]},
                ):  # fmt: skip
                    if size == 1000:
                        assert relay.ask(7, request)[1] == noise
                        continue
                    with pytest.raises(EngineError, match="is larger than the 1000 bytes that") as caught:
                        relay.ask(7, request)
                    assert caught.value.advice
            with tarfile.open(fileobj=io.BytesIO(relay.ask(7, {"do": "snapshot", "path": "kept"})[1])) as tar:
                assert tar.getnames() == ["kept"]
            (kept / "noise").write_bytes(os.urandom(3000))
            with pytest.raises(EngineError, match=r"job 7: kept, as a tar\.gz, is larger"):
                relay.ask(7, {"do": "snapshot", "path": "kept"})
            # What tells no size of its own.
            assert relay.ask(7, {"do": "snapshot", "path": "/proc/self/statm"})[1].endswith(b"\n")
            with pytest.raises(EngineError, match="/proc/self/status is larger"):
                relay.ask(7, {"do": "snapshot", "path": "/proc/self/status"})
        finally:
            companion.close()


def _pair(secret: bytes) -> tuple[job_channel.Line, job_channel.Line, socket.socket]:
    """Both ends of a line, and the socket of the job's."""
    ours, theirs = socket.socketpair()
    answered: list[Any] = []
    thread = threading.Thread(target=lambda: answered.append(job_channel.answer(theirs, lambda job: secret)))
    thread.start()
    job_line = job_channel.call(ours, 1, secret)
    thread.join()
    return job_line, answered[0][1], ours


def _receive_both(line: job_channel.Line) -> None:
    line.receive()
    line.receive()


def test_a_message_that_was_changed_or_sent_again_is_refused() -> None:
    job_line, service_line, raw = _pair(b"secret")
    service_line.send({"a": 1}, b"data")
    assert job_line.receive() == ({"a": 1}, b"data")
    sent: list[bytes] = []
    service_line._socket = type("Tap", (), {"sendall": lambda self, data: sent.append(data)})()  # type: ignore[assignment]
    service_line.send({"do": "execute"})
    raw.close()
    for change in (lambda data: data[:-1] + b"\0", lambda data: data + data):
        ours, theirs = socket.socketpair()
        job_line._socket = ours
        job_line._received = 1
        theirs.sendall(change(sent[0]))
        theirs.close()
        with ours, pytest.raises(job_channel.Broken):
            _receive_both(job_line)


@pytest.mark.parametrize(
    "message", [b"", b"\0\0\0\x02{}"[:3], b"\0\0\0\x02[]", b"\0\0\0\x01\xff", b"\xff\xff\xff\xff" + b"[" * 9000]
)
def test_a_message_in_another_form_ends_the_line(message: bytes) -> None:
    """Its sender knows the secret, but may be of another version, or worse."""
    job_line, service_line, raw = _pair(b"secret")
    mac = service_line._mac(service_line._ours, 0, message)
    service_line._socket.sendall(struct.pack("!Q", len(message)) + mac + message)
    with raw, pytest.raises(job_channel.Broken):
        job_line.receive()


# -- messages by e-mail


class Mailbox:
    """An SMTP server on the loopback, for one message after the other."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            with connection, connection.makefile("rw", newline="\r\n") as stream:
                self._talk(stream)

    def _talk(self, stream: Any) -> None:
        def say(text: str) -> None:
            stream.write(f"{text}\n")
            stream.flush()

        say("220 here")
        for line in iter(stream.readline, ""):
            if line.upper().startswith("DATA"):
                say("354 go on")
                lines = list(iter(lambda: stream.readline().rstrip("\r\n"), "."))
                self.messages.append("\n".join(lines))
                say("250 kept")
            elif line.upper().startswith("QUIT"):
                say("221 bye")
                return
            else:
                say("250 ok")

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()


@contextmanager
def mailbox(here: Service, to: str = "me@example.org") -> Iterator[Mailbox]:
    box = Mailbox()
    config = here.spool.save.with_name("config.toml")
    config.write_text(f'[email]\nhost = "127.0.0.1"\nport = {box.port}\nto = "{to}"\n')
    try:
        yield box
    finally:
        box.close()


def test_a_message_when_a_job_or_a_workflow_is_over(here: Service, job: Callable[..., Job]) -> None:
    with mailbox(here) as box:
        made = job("exit 2", name="fit")
        made.notifications.append(Notification("jobFinished", "email"))
        made.create()
        made.wait()
        until(lambda: box.messages)
        assert "To: me@example.org" in box.messages[0]
        assert "Subject: job fit of fit is completed (exit 2)" in box.messages[0]
        workflow = Workflow()
        workflow.name = "study"
        workflow.jobs = [job("true", name="a"), job("true", name="b")]
        workflow.notifications.append(Notification("workflowFinished", "email"))
        workflow.create()
        workflow.wait()
        until(lambda: len(box.messages) > 1)
        assert "batch study is over" in box.messages[1]
        assert "2 completed" in box.messages[1]
        assert len(box.messages) == 2


def test_a_message_that_cannot_be_sent_is_refused_before_anything_runs(here: Service, job: Callable[..., Job]) -> None:
    made = job("true")
    made.notifications.append(Notification("jobFinished", "email"))
    with pytest.raises(EngineError, match="no SMTP server is configured"):
        made.create()
    assert made.id is None


def test_a_mail_server_that_is_away_makes_no_difference_to_the_job(here: Service, job: Callable[..., Job]) -> None:
    with mailbox(here) as box:
        pass
    made = job("echo done")
    made.notifications.append(Notification("jobFinished", "email"))
    made.create()
    made.wait()
    assert made.stdout() == "done\n"
    until(lambda: any("no message could be sent by email" in line for line in said(here.spool)))
    assert box.messages == []
