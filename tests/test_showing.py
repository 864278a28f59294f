"""What a person sees of long work: in a log, on a terminal, in a notebook; and that Ctrl-C ends it all."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import poncho_wq
from poncho_wq import holders
from poncho_wq.build.uv import Downloads
from poncho_wq.command import run
from poncho_wq.errors import BuildError
from poncho_wq.progress import Progress, current, everywhere, shown_by, silent
from poncho_wq.showing import STAGES, _Cell, _Lines, progress, show_progress

PATIENCE = 120  # seconds until a test gives up on a process


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def fetched(done: int, total: int | None = 60_000_000) -> Progress:
    return Progress(stage="download", detail="numpy", done=done, total=total, unit="bytes")


def test_a_log_has_a_line_when_a_stage_begins_and_now_and_then() -> None:
    stream, clock = io.StringIO(), Clock()
    say = _Lines(stream, clock).say
    say(Progress(stage="resolve", detail="2 requirements"))
    clock.now += 1
    say(fetched(0))
    for _ in range(100):
        clock.now += 0.3
        say(fetched(int((clock.now - 101) * 1_000_000)))
    say(Progress(stage="note", detail="by the way"))
    say(Progress(stage="ready", detail="env.tar.gz"))
    say(Progress(stage="ready", detail="env.tar.gz"))
    assert stream.getvalue().splitlines() == [
        "[   0.0 s] resolving packages: 2 requirements",
        "[   1.0 s] downloading packages: numpy; 60 MB",
        "[  11.2 s] downloading packages: numpy; 10 MB of 60 MB, 1.0 MB/s",
        "[  21.4 s] downloading packages: numpy; 20 MB of 60 MB, 1.0 MB/s",
        "note: by the way",
        "[  31.0 s] ready: env.tar.gz",
    ]


def test_a_notebook_has_one_text_that_is_renewed() -> None:
    shown: list[str] = []
    clock = Clock()
    say = _Cell(shown.append, clock).say
    say(Progress(stage="resolve", detail="2 requirements"))
    for _ in range(1000):
        clock.now += 0.01
        say(fetched(1, None))
    say(Progress(stage="note", detail="by the way"))
    assert len(shown) < 60
    lines = shown[-1].splitlines()
    assert lines[0] == "note: by the way"
    assert lines[1].startswith("resolving packages")
    assert lines[2].startswith("downloading packages")
    assert max(map(len, lines)) <= 80


def test_a_terminal_of_80_columns(tmp_path: Path) -> None:
    program = (
        "from poncho_wq.showing import progress; from poncho_wq.progress import Progress\n"
        "with progress() as say:\n"
        "    say(Progress(stage='note', detail='[bold]by the way'))\n"
        "    say(Progress(stage='download', detail='a-package-with-a-very-long-name, ' * 9, done=1, total=2,"
        " unit='bytes'))\n"
        "    say(Progress(stage='install', detail='numpy', done=3, total=4, unit='packages'))\n"
        "    say(Progress(stage='download', detail='', done=2, total=2, unit='bytes'))\n"
        "    say(Progress(stage='ready', detail='env.tar.gz'))\n"
    )
    read, terminal = os.openpty()
    done = subprocess.Popen(
        [sys.executable, "-c", program], stderr=terminal, env={**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    )
    os.close(terminal)
    shown = b""
    try:
        while piece := os.read(read, 4096):
            shown += piece
    except OSError:
        pass
    os.close(read)
    assert done.wait(PATIENCE) == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    lines = re.split(r"[\r\n]+", text)
    assert max(map(len, lines)) <= 80
    assert "note: [bold]by the way" in lines
    last = [line for line in lines if line.strip()][-3:]
    assert [line.split("━")[0].strip(" ✓") for line in last] == ["downloading packages", "installing packages", "ready"]


DRAWN = {
    "progress": "from poncho_wq.showing import show_progress\nwith show_progress():\n    print('mine')\n",
    "bar": "from poncho_wq.engines.bar import Bar\nbar = Bar()\nbar.added()\nprint('mine')\nbar.close()\n",
}


@pytest.mark.parametrize("what", DRAWN)
def test_what_a_program_prints_to_a_file_gets_there(what: str) -> None:
    """Stderr is a terminal where something is drawn; stdout is not."""
    read, terminal = os.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-c", DRAWN[what]], stdout=subprocess.PIPE, stderr=terminal, check=True, text=True,
            env={**os.environ, "TERM": "xterm"}, timeout=PATIENCE,
        )  # fmt: skip
    finally:
        os.close(terminal)
        os.close(read)
    assert done.stdout == "mine\n"


def test_quiet_is_quiet_and_a_pipe_gets_lines() -> None:
    stream = io.StringIO()
    with progress(quiet=True, stream=stream) as say:
        say(Progress(stage="pack"))
    assert stream.getvalue() == ""
    with progress(stream=stream) as say:
        say(Progress(stage="pack", detail="numpy"))
    assert stream.getvalue() == "[   0.0 s] packing: numpy\n"


def test_show_progress_reaches_threads_and_ends(capsys: pytest.CaptureFixture[str]) -> None:
    with show_progress():
        thread = threading.Thread(target=lambda: current()(Progress(stage="pack", detail="in a thread")))
        thread.start()
        thread.join()
        with shown_by(silent):
            current()(Progress(stage="install", detail="not shown"))
    assert current() is silent
    said = capsys.readouterr().err
    assert "packing: in a thread" in said
    assert "not shown" not in said
    assert everywhere(silent) is silent


def test_every_stage_has_a_name() -> None:
    used = set()
    for path in Path(poncho_wq.__file__).parent.rglob("*.py"):
        used |= set(re.findall(r"""Progress\(\s*stage="([a-z]+)\"""", path.read_text()))
    assert {"analyze", "resolve", "download", "install", "pack", "hash", "wait", "send"} <= used
    assert used - {"note"} <= set(STAGES)


# -- what is told


def test_uv_tells_of_downloads() -> None:
    told: list[Progress] = []
    look = Downloads(told.append).line
    said = """\
Resolved 3 packages in 671ms
Downloading pandas (11.8MiB)
Downloading numpy (1.0GiB)
 Downloaded pandas
Downloading nonsense
 Downloaded what-is-small
 Downloaded numpy
"""
    for line in said.splitlines():
        look(line)
    mib = 1 << 20
    assert [(each.detail, each.done, each.total) for each in told] == [
        ("pandas", 0, round(11.8 * mib)),
        ("pandas, numpy", 0, round(11.8 * mib) + 1024 * mib),
        ("numpy", round(11.8 * mib), round(11.8 * mib) + 1024 * mib),
        ("", round(11.8 * mib) + 1024 * mib, round(11.8 * mib) + 1024 * mib),
    ]


def test_lines_come_as_a_program_prints_them() -> None:
    """More than a pipe holds on both streams, so that neither may wait for the other."""
    lines: list[str] = []
    program = "import sys; print('x' * 300000); sys.stderr.write('é\\n' * 100000); print(sys.stdin.read())"
    done = run([sys.executable, "-c", program], stdin="given", on_line=lines.append)
    assert lines == ["é"] * 100000
    assert done.stderr == "é\n" * 100000
    assert done.stdout.endswith("given\n")
    with pytest.raises(BuildError) as failed:
        run([sys.executable, "-c", "import sys; sys.exit('oh')"], on_line=lines.append)
    assert failed.value.log == "oh"


def test_a_reader_that_fails_ends_the_program() -> None:
    def interrupted(line: str) -> None:
        raise KeyboardInterrupt

    program = "import sys, time; print('1', file=sys.stderr, flush=True); time.sleep(300)"
    with pytest.raises(KeyboardInterrupt):
        run([sys.executable, "-c", program], on_line=interrupted)


def test_who_holds_a_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = tmp_path / "a.lock"
    assert holders.holder(lock) == "somebody else"
    monkeypatch.setenv("LOGNAME", "anna\x1b[2J")
    with holders.signed(lock):
        said = holders.holder(lock)
        assert re.fullmatch(
            rf"anna\?\[2J on {re.escape(socket.gethostname())} \(process {os.getpid()}\), since \d\d:\d\d:\d\d", said
        )
    assert list(tmp_path.iterdir()) == []
    note = tmp_path / "a.lock.who"
    for text in ("", "[]", "{}", json.dumps({"user": "a", "host": "b", "pid": 1, "since": 1e300})):
        note.write_text(text)
        assert holders.holder(lock) == "somebody else"
    with holders.signed(tmp_path / "no" / "such" / "a.lock"):
        pass


def test_who_waits_is_told_whom_for(shared_cache: Path, tmp_path: Path) -> None:
    """A real build is held up in its packing; a second process wants the same."""
    spec = tmp_path / "spec.json"
    spec.write_text('{"pip": ["packaging"], "env": {"WHO": "waits"}}')
    environ = os.environ | {"PONCHO_CACHE_DIR": str(tmp_path / "cache"), "UV_CACHE_DIR": str(shared_cache / "uv")}
    held_up = (
        "import sys, poncho_wq\n"
        "def say(what):\n"
        "    if what.stage == 'pack':\n"
        "        print('packing', flush=True); sys.stdin.read()\n"
        f"poncho_wq.environment({str(spec)!r}, on_progress=say)\n"
    )
    first = subprocess.Popen(
        [sys.executable, "-c", held_up], env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    second = None
    try:
        assert first.stdin is not None
        assert first.stdout is not None
        assert first.stdout.readline() == "packing\n"
        command = [sys.executable, "-m", "poncho_wq.cli.create", str(spec), str(tmp_path / "out.tar.gz")]
        second = subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, text=True)
        assert second.stderr is not None
        while "waiting for another build" not in (line := second.stderr.readline()):
            assert line, "it did not wait"
        assert f"(process {first.pid}), since " in line
        first.stdin.close()
        assert second.wait(PATIENCE) == 0
        assert first.wait(PATIENCE) == 0
    finally:
        for process in (first, second):
            if process is not None:
                process.kill()
                process.wait()
                for stream in (process.stdin, process.stdout, process.stderr):
                    if stream is not None:
                        stream.close()


@pytest.mark.parametrize("stage", ["resolving packages", "installing packages", "packing"])
def test_ctrl_c_leaves_nothing_behind(stage: str, shared_cache: Path, tmp_path: Path) -> None:
    """To the whole group, as a terminal does: no output, no work in the cache, no process, and no traceback."""
    spec, output, cache = tmp_path / "spec.json", tmp_path / "out.tar.gz", tmp_path / "cache"
    spec.write_text('{"pip": ["packaging"]}')
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "poncho_wq.cli.create", str(spec), str(output)],
        env=os.environ
        | {"PONCHO_CACHE_DIR": str(cache), "UV_CACHE_DIR": str(shared_cache / "uv"), "TMPDIR": str(temporary)},
        cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        said = ""
        while stage not in (line := process.stderr.readline()):
            assert line, said
            said += line
        os.killpg(process.pid, signal.SIGINT)
        said += process.stderr.read()
        assert process.wait(PATIENCE) == 130, said
    finally:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()
    assert "Traceback" not in said
    assert said.endswith("interrupted\n")
    assert not output.exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("out")] == []
    assert list(temporary.iterdir()) == []
    left = [path for path in (cache / "v1" / "tmp").glob("*") if not path.name.startswith(".")]
    assert left == []
    assert not list((cache / "v1" / "locks").glob("*.who"))
    assert is_gone(process.pid), "it left a process"


def is_gone(group: int) -> bool:
    """Whether a process group comes to its end; what was orphaned is reaped by another."""
    until = time.monotonic() + 20
    while time.monotonic() < until:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def test_a_real_notebook(tmp_path: Path) -> None:
    """In a real kernel: what the cell shows in the end is one output with all stages."""
    nbclient = pytest.importorskip("nbclient", reason="needs nbclient and ipykernel (pip install nbclient ipykernel)")
    pytest.importorskip("ipykernel", reason="needs ipykernel (pip install ipykernel)")
    import nbformat

    source = (
        "import poncho_wq\nfrom poncho_wq.progress import Progress, current\n"
        "with poncho_wq.show_progress():\n"
        "    current()(Progress(stage='resolve', detail='2 requirements'))\n"
        "    current()(Progress(stage='pack', detail='numpy', done=5, total=5, unit='bytes'))\n"
    )
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    nbclient.NotebookClient(book, timeout=PATIENCE, kernel_name="python3").execute()
    (output,) = book.cells[0].outputs
    lines = output["data"]["text/plain"].splitlines()
    assert [line.split("  ")[0] for line in lines] == ["resolving packages", "packing"]
    assert lines[1].endswith("5 B of 5 B  numpy")
