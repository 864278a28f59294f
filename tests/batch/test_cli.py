"""``poncho-wq batch`` from several processes: status, kill, rerun, pull, resume, and a message in the end."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from poncho_wq.batch.distribute import parse
from poncho_wq.batch.templates import PYTHON
from poncho_wq.errors import BatchError
from tests.batch.conftest import PATIENCE, cli

YAML = """\
meta:
  batch_name: b
  namespace: n
{meta}
python:
  initialize: {{build_file: build.py}}
  jobs:
    - {{name: quick, file: quick.py}}
    - {{name: slow, file: slow.py}}
    - {{name: wrong, file: wrong.py}}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "build.py").write_text("")
    (tmp_path / "quick.py").write_text("open('distribute_save/q.txt', 'w').write('q' * 1000)\nprint('quick')")
    (tmp_path / "slow.py").write_text(
        f"import os, time\nwhile not os.path.exists({str(tmp_path / 'go')!r}): time.sleep(0.1)"
    )
    (tmp_path / "wrong.py").write_text(
        "import os, sys\nprint('oh <no>', file=sys.stderr)\n"
        f"sys.exit(0 if os.path.exists({str(tmp_path / 'go')!r}) else 7)"
    )
    (tmp_path / "b.yaml").write_text(YAML.format(meta=""))
    return tmp_path


class Run:
    """``poncho-wq batch run`` in the background."""

    def __init__(self, folder: Path, *words: str) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-m", "poncho_wq.cli.main", "batch", *words], cwd=folder, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def until(self, **states: str) -> None:
        """Wait until these jobs are in these states."""
        limit = time.monotonic() + PATIENCE
        while True:
            if (self.folder / ".poncho-batch/journal.sqlite").exists():
                answer = cli("status", "--json", cwd=self.folder)
                if answer.returncode in (0, 1) and answer.stdout:
                    jobs = {each["name"]: each["words"] for each in json.loads(answer.stdout)["jobs"]}
                    if all(jobs[name] == state for name, state in states.items()):
                        return
            assert time.monotonic() < limit
            assert self.process.poll() is None or time.monotonic() < limit
            time.sleep(0.2)

    def end(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, out, err


@pytest.fixture
def runs(folder: Path) -> Iterator[Any]:
    started: list[Run] = []

    def run(*words: str) -> Run:
        started.append(Run(folder, *words))
        return started[-1]

    yield run
    for each in started:
        # So that what it started ends by itself; the embedded engine's jobs end with their manager.
        each.process.kill()
        each.process.communicate()


def test_status_kill_and_rerun_from_other_processes(folder: Path, runs: Any) -> None:
    run = runs("run", "b.yaml", "--workers", "2")
    run.until(quick="completed", wrong="failed (exit 7)", slow="running")
    status = cli("status", cwd=folder)
    assert status.returncode == 1
    assert f"being run by process {run.process.pid} on" in status.stdout
    assert "  | oh <no>" in status.stdout
    second = cli("run", "b.yaml", "--resume", cwd=folder)
    assert second.returncode == 1
    assert f"error: the batch n/b is being run by process {run.process.pid} on" in second.stderr

    assert cli("kill", "n/b", "slow", cwd=folder).returncode == 0
    code, out, _ = run.end()
    assert code == 1
    assert "2 of 4 jobs completed" in out
    status = cli("status", cwd=folder)
    assert re.search(r"^  slow +deleted \(Job deleted by user\)", status.stdout, re.MULTILINE)
    (folder / "go").touch()

    assert cli("rerun", "b", cwd=folder).returncode == 0
    jobs = json.loads(cli("status", "--json", "n/b", cwd=folder).stdout)["jobs"]
    assert [(each["name"], each["words"], each["attempt"]) for each in jobs] == [
        ("_build", "completed", 1), ("quick", "completed", 1), ("slow", "completed", 2), ("wrong", "completed", 2),
    ]  # fmt: skip


def test_rerun_while_it_runs(folder: Path, runs: Any) -> None:
    run = runs("run", "b.yaml", "--workers", "2")
    run.until(wrong="failed (exit 7)", slow="running")
    asked = cli("rerun", "b", "wrong", cwd=folder)
    assert (asked.returncode, asked.stderr) == (0, "asked the manager that runs the batch\n")
    (folder / "go").touch()
    run.end()
    jobs = {each["name"]: each for each in json.loads(cli("status", "--json", cwd=folder).stdout)["jobs"]}
    assert jobs["wrong"]["attempt"] == 2


def test_a_batch_without_a_manager_is_killed_by_whoever_asks(folder: Path, runs: Any) -> None:
    run = runs("run", "b.yaml", "--workers", "2")
    run.until(slow="running")
    run.process.kill()
    run.process.wait()
    assert "no manager runs it: go on with" in cli("status", cwd=folder).stdout
    assert cli("kill", "b", cwd=folder).returncode == 0
    status = cli("status", "--json", cwd=folder)
    assert {each["name"]: each["state"] for each in json.loads(status.stdout)["jobs"]}["slow"] == "deleted"
    assert cli("kill", "b", "nothing", cwd=folder).stderr.startswith("error: the batch has no job nothing\n")


def test_resume_after_a_killed_manager_and_refusals(folder: Path, runs: Any) -> None:
    run = runs("run", "b.yaml", "--workers", "2")
    run.until(quick="completed", wrong="failed (exit 7)", slow="running")
    run.process.kill()
    run.process.wait()
    again = cli("run", "b.yaml", cwd=folder)
    assert again.returncode == 1
    assert again.stderr.startswith(f"error: there is a batch n/b in {folder} already\n")
    (folder / "go").touch()
    script = (folder / "slow.py").read_text()
    (folder / "slow.py").write_text("print('another')")
    changed = cli("run", "b.yaml", "--resume", cwd=folder)
    assert (changed.returncode, "is not what it was when the batch n/b was started" in changed.stderr) == (1, True)
    (folder / "slow.py").write_text(script)
    resumed = cli("run", "b.yaml", "--resume", cwd=folder)
    assert "3 of 4 jobs completed" in resumed.stdout
    jobs = {each["name"]: each for each in json.loads(cli("status", "--json", cwd=folder).stdout)["jobs"]}
    assert (jobs["quick"]["attempt"], jobs["slow"]["attempt"], jobs["wrong"]["attempt"]) == (1, 2, 1)


def test_dry_pull_template_and_page(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    (folder / "go").touch()
    dry = cli("run", "b.yaml", "--dry", cwd=folder)
    assert dry.returncode == 0
    assert "    command python3 quick.py 1\n" in dry.stdout
    assert not (folder / ".poncho-batch").exists()
    assert cli("run", "b.yaml", "--workers", "2", cwd=folder).returncode == 0

    other = tmp_path_factory.mktemp("pulled")
    dry = cli("pull", "n/b", "--save-dir", folder, "--include", r"\.txt$", "--dry", cwd=other)
    assert dry.stdout.splitlines() == sorted(
        [f"{job}/{name}" for job in ("_build", "quick", "slow", "wrong") for name in ("stderr.txt", "stdout.txt")]
        + ["quick/q.txt"]
    )
    assert os.listdir(other) == []
    pulled = cli("pull", "n/b", "--save-dir", folder, "--exclude", "std", "--exclude", "^_build/", cwd=other)
    assert pulled.stderr == "1 file, 0.0 MB to n/b\n"
    assert [str(path.relative_to(other)) for path in other.rglob("*") if path.is_file()] == ["n/b/quick/q.txt"]
    both = cli("pull", "b", "--include", "a", "--exclude", "b", cwd=folder)
    assert both.returncode == 2
    assert cli("pull", "b", "--include", "(", cwd=folder).stderr.startswith(
        "error: --include (: not a regular expression"
    )
    assert cli("status", cwd=other).stderr.startswith(f"error: {other}: there are no batches here\n")

    assert cli("status", "--html", "page.html", cwd=folder).returncode == 0
    page = (folder / "page.html").read_text()
    assert page.startswith("<!doctype html>")
    assert not re.search(r"(src|href)=|@import|url\(", page)
    assert page.count('<rect class="lane"') == 1
    assert "4 completed" in page
    assert "Failures" not in page


def test_the_template_is_distribute_s() -> None:
    with pytest.raises(BatchError) as caught:
        parse(PYTHON, source="t", directory=Path("/nowhere"))
    assert all("no such file" in each.message for each in caught.value.problems)
    template = cli("template", "python", cwd=Path.cwd())
    assert template.stdout == PYTHON
    assert json.loads(cli("template", "prominence", cwd=Path.cwd()).stdout)["dependencies"] == {"first": ["second"]}


def test_the_page_shows_what_users_wrote_as_text(folder: Path, runs: Any) -> None:
    run = runs("run", "b.yaml", "--workers", "2")
    run.until(wrong="failed (exit 7)", slow="running")
    cli("status", "--html", "page.html", cwd=folder)
    page = (folder / "page.html").read_text()
    assert "oh &lt;no&gt;" in page
    assert "<no>" not in page
    assert "failed (exit 7)" in page
    assert "running now" in page


class Homeserver:
    """Stands in for a Matrix homeserver: remembers what it was told."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, Any]] = []
        self.direct: dict[str, list[str]] = {}
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            def handle_any(self) -> None:
                size = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(size)) if size else None
                path = self.path.removeprefix("/_matrix/client/v3")
                stand_in.calls.append((self.command, path, body))
                status, answer = stand_in.answer(self.headers.get("Authorization"), self.command, path, body)
                self.send_response(status)
                self.end_headers()
                self.wfile.write(json.dumps(answer).encode())

            do_GET = do_PUT = do_POST = handle_any

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def answer(self, token: str | None, method: str, path: str, body: Any) -> tuple[int, Any]:
        if token != "Bearer secret-token":
            return 401, {"errcode": "M_UNKNOWN_TOKEN"}
        if path == "/account/whoami":
            return 200, {"user_id": "@batches:here"}
        if path.endswith("m.direct"):
            if method == "PUT":
                self.direct = body
            return (200, self.direct) if self.direct else (404, {"errcode": "M_NOT_FOUND"})
        return 200, {"room_id": "!r:here", "event_id": "$e"}

    @property
    def messages(self) -> list[str]:
        return [body["body"] for _, path, body in self.calls if "/send/m.room.message/" in path]


@pytest.fixture
def homeserver() -> Iterator[Homeserver]:
    server = Homeserver()
    yield server
    server.server.shutdown()
    server.thread.join()
    server.server.server_close()


def test_a_message_by_matrix(folder: Path, homeserver: Homeserver) -> None:
    (folder / "b.yaml").write_text(YAML.format(meta="  matrix: @me:here"))
    (folder / "go").touch()
    config = folder / "config.toml"
    refused = cli("run", "b.yaml", cwd=folder, PONCHO_CONFIG=str(config))
    assert refused.returncode == 1
    assert refused.stderr.startswith(
        "error: the batch asks for a message by Matrix, and no Matrix account is configured\nput [matrix] with"
    )
    assert not (folder / ".poncho-batch").exists()

    config.write_text(
        f'[matrix]\nhomeserver = "http://127.0.0.1:{homeserver.server.server_port}"\ntoken = "secret-token"\n'
    )
    done = cli("run", "b.yaml", "--workers", "2", cwd=folder, PONCHO_CONFIG=str(config))
    assert done.returncode == 0, done.stderr
    text = "your distributed compute job n/b has finished all its jobs: 4 completed"
    assert homeserver.messages == [text]
    made = [body for method, path, body in homeserver.calls if path == "/createRoom"]
    assert made == [{"is_direct": True, "invite": ["@me:here"], "preset": "trusted_private_chat"}]

    # The next one goes to the same room; a token that is no good is a warning, and no secret.
    (folder / "b.yaml").write_text((folder / "b.yaml").read_text().replace("batch_name: b", "batch_name: c"))
    assert cli("run", "b.yaml", "--workers", "2", cwd=folder, PONCHO_CONFIG=str(config)).returncode == 0
    assert len([1 for _, path, _ in homeserver.calls if path == "/createRoom"]) == 1
    config.write_text(config.read_text().replace("secret-token", "other-token"))
    (folder / "b.yaml").write_text((folder / "b.yaml").read_text().replace("batch_name: c", "batch_name: d"))
    warned = cli("run", "b.yaml", "--workers", "2", cwd=folder, PONCHO_CONFIG=str(config))
    assert warned.returncode == 0
    assert "no message could be sent to @me:here by matrix: http://127.0.0.1:" in warned.stderr
    assert "401" in warned.stderr
    assert "token" not in warned.stderr


def test_what_fails_before_the_first_job_leaves_no_batch(folder: Path) -> None:
    (folder / "go").touch()
    (folder / "env.json").write_text('{"pipp": []}')
    failed = cli("run", "b.yaml", "--environment", "env.json", cwd=folder)
    assert failed.returncode == 2
    assert "pipp" in failed.stderr
    assert json.loads(cli("status", "--all", "--json", cwd=folder).stdout) == []
    assert cli("run", "b.yaml", "--workers", "2", cwd=folder).returncode == 0


def test_live_on_a_terminal(folder: Path) -> None:
    (folder / "b.yaml").write_text(YAML.format(meta=""))
    (folder / "slow.py").write_text("")
    read, terminal = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "poncho_wq.cli.main", "batch", "run", "b.yaml", "--workers", "2"], cwd=folder,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120"}, stdout=subprocess.DEVNULL, stderr=terminal,
    )  # fmt: skip
    os.close(terminal)
    shown = b""
    try:
        while piece := os.read(read, 4096):
            shown += piece
    except OSError:  # the terminal is closed on its other side
        pass
    finally:
        os.close(read)
        assert process.wait(PATIENCE) == 1
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert "wrong: failed (exit 7)" in text
    assert "4/4" in text
    assert re.search(r"3 completed +1 failed", text)
    assert re.search(r"environment +[0-9.]+ MB, Python", text)
    assert re.search(r"workers +1, 2 cores +this machine", text)
