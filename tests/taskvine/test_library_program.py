"""The program that a library runs on a worker, driven as ``vine_worker`` drives it; without TaskVine."""

from __future__ import annotations

import json
import os
import pickle
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from poncho_wq import payload

PROGRAM = Path(payload.__file__).parent / "engines" / "vine_library.py"
STATE: list[int] = []


def double(x: Any) -> Any:
    STATE.append(1)
    print("doubling", x, flush=True)
    return x * 2


def state() -> tuple[int, int, str, str]:
    return len(STATE), os.getpid(), os.getcwd(), os.environ["OMP_NUM_THREADS"]


def setup() -> dict[str, str]:
    STATE.append(0)
    return {"colour": "green"}


def colour() -> str:
    from ndcctools.taskvine import load_variable_from_library
    from ndcctools.taskvine.utils import load_variable_from_library as same

    assert same is load_variable_from_library
    return str(load_variable_from_library("colour"))


def pause() -> int:
    time.sleep(30)
    return 0


def die(how: str) -> None:
    if how == "exit":
        raise SystemExit("some words")
    if how == "raise":
        raise KeyError("gone")
    os.kill(os.getpid(), signal.SIGKILL)


class Worker:
    """The worker's side of a library."""

    def __init__(self, home: Path, mode: str, *, init: Any = None, python: str = payload.PYTHON, status: int = 0,
                 hoist: tuple[str, ...] = ("json",), wanted: tuple[str, ...] = ()) -> None:  # fmt: skip
        self.home = home
        archive = payload.program_archive("poncho-library", PROGRAM, "cloudpickle")
        functions = {f.__name__: f for f in (double, state, colour, pause, die)}
        made = {"functions": functions, "init": init, "hoist": list(hoist), "wanted": list(wanted)}
        header = f"poncho-library 1 {python} {mode} a-name\n".encode()
        (home / "functions").write_bytes(header + payload.pickled(made, "library"))
        to_library, self._write = os.pipe()
        self._read, from_library = os.pipe()
        self.woken = 0
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self.process = subprocess.Popen(
            [
                sys.executable, "-s", archive.path, "functions", "-", str(status), "--in-pipe-fd", str(to_library),
                "--out-pipe-fd", str(from_library), "--task-id", "7", "--library-cores", "4", "--function-slots", "2",
                "--worker-pid", str(os.getpid()),
            ],
            cwd=home, pass_fds=(to_library, from_library), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(to_library)
        os.close(from_library)

    def message(self) -> str:
        length = b""
        while not length.endswith(b"\n"):
            assert select.select([self._read], [], [], 60)[0], "the library says nothing"
            piece = os.read(self._read, 1)
            assert piece, "the library has ended"
            length += piece
        return os.read(self._read, int(length)).decode()

    def start(self, number: int, function: str, event: Any = None) -> bytes:
        """Prepare a call; returns what tells the library of it."""
        sandbox = self.home / f"func.{number}"
        sandbox.mkdir()
        with (sandbox / "infile").open("wb") as file:
            cloudpickle.dump(event if event is not None else {"fn_args": (), "fn_kwargs": {}}, file)
        text = f"{number} {function} {sandbox} {sandbox}/.taskvine.stdout".encode()
        return b"%d\n%s" % (len(text), text)

    def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            os.write(self._write, piece)

    def call(self, number: int, function: str, *args: Any, **kwargs: Any) -> tuple[int, dict[str, Any]]:
        self.send(self.start(number, function, {"fn_args": args, "fn_kwargs": kwargs}))
        return self.answer(number)

    def answer(self, number: int) -> tuple[int, dict[str, Any]]:
        told, status = self.message().split()
        assert int(told) == number
        return int(status), self.result(number)

    def result(self, number: int) -> dict[str, Any]:
        file = self.home / f"func.{number}" / "outfile"
        return dict(pickle.loads(file.read_bytes())) if file.exists() else {}

    def said(self, number: int) -> str:
        return (self.home / f"func.{number}" / ".taskvine.stdout").read_text()

    def hang_up(self) -> None:
        os.close(self._write)
        self._write = -1

    def close(self) -> None:
        if self._write >= 0:
            self.hang_up()
        self.process.kill()
        self.process.wait()
        os.close(self._read)


@pytest.fixture
def library(tmp_path: Path) -> Iterator[Callable[..., Worker]]:
    made: list[Worker] = []
    before = signal.getsignal(signal.SIGCHLD)

    def make(mode: str, **options: Any) -> Worker:
        made.append(Worker(tmp_path, mode, **options))
        return made[-1]

    yield make
    for worker in made:
        worker.close()
    signal.signal(signal.SIGCHLD, before)


MODES = pytest.mark.parametrize("mode", ["fork", "direct"])


@MODES
def test_calls(library: Callable[..., Worker], mode: str) -> None:
    worker = library(mode, init=setup)
    assert json.loads(worker.message()) == {"name": "a-name", "taskid": 7, "exec_mode": mode}
    assert worker.call(1, "double", 21) == (0, {"Success": True, "Result": 42, "Reason": None})
    assert worker.said(1) == "doubling 21\n"
    count, pid, cwd, threads = worker.call(2, "state")[1]["Result"]
    # What init did is there; what a call did is there only where calls share the process.
    assert count == (1 if mode == "fork" else 2)
    assert (pid == worker.process.pid) == (mode == "direct")
    assert cwd == str(worker.home / "func.2")
    assert threads == "2", "four cores for two calls at a time"
    assert worker.call(3, "colour")[1]["Result"] == "green"
    assert worker.call(4, "double", x="ab")[1]["Result"] == "abab"


@MODES
def test_messages_come_in_pieces_and_together(library: Callable[..., Worker], mode: str) -> None:
    worker = library(mode)
    worker.message()
    one, two, three = (worker.start(n, "double", {"fn_args": (n,)}) for n in (1, 2, 3))
    worker.send(one[:1], one[1:9], one[9:] + two + three[:-3], three[-3:])
    done = sorted(worker.message() for _ in range(3))
    assert done == ["1 0", "2 0", "3 0"]
    assert [worker.result(n)["Result"] for n in (1, 2, 3)] == [2, 4, 6]


@MODES
def test_failures(library: Callable[..., Worker], mode: str) -> None:
    worker = library(mode)
    worker.message()
    status, result = worker.call(1, "die", "raise")
    assert (status, result["Success"], result["poncho"]["kind"]) == (1, False, "raised")
    assert result["Reason"].endswith("KeyError: 'gone'\n")
    assert "in die\n" in result["Reason"]
    assert "vine_library" not in result["Reason"]
    assert worker.said(1) == result["Reason"]
    assert repr(pickle.loads(result["poncho"]["error"])) == "KeyError('gone')"
    status, result = worker.call(2, "die", "exit")
    assert (status, result["poncho"]["kind"], result["poncho"]["message"]) == (1, "exit", "some words")
    status, result = worker.call(3, "nobody")
    assert (status, result["Reason"]) == (1, "library a-name has no function nobody")
    worker.send(worker.start(4, "double", {"poncho": b"no pickle"}))
    status, result = worker.answer(4)
    assert "arguments cannot be loaded" in result["poncho"]["message"]
    assert worker.call(5, "double", 1)[0] == 0, "and goes on"


def test_a_killed_call_harms_no_other(library: Callable[..., Worker]) -> None:
    worker = library("fork")
    worker.message()
    assert worker.call(1, "die", "kill") == (9, {})
    assert worker.call(2, "double", 1)[0] == 0


@MODES
@pytest.mark.parametrize(("options", "words"), [
    ({"python": "2.6"}, "made by Python 2.6"),
    ({"status": 3}, "init of library a-name ended with exit status 3"),
    ({"init": die}, "init of library a-name raised TypeError"),
    ({"wanted": ("json", "no_such")}, "module no_such cannot be imported"),
], ids=["python", "status", "init", "wanted"])  # fmt: skip
def test_every_call_hears_why_it_could_not_start(
    library: Callable[..., Worker], mode: str, options: dict[str, Any], words: str
) -> None:
    worker = library(mode, **options)
    assert json.loads(worker.message())["name"] == "a-name"
    for number in (1, 2):
        status, result = worker.call(number, "double", 1)
        assert status == 1
        assert words in result["poncho"]["message"]
        assert words in worker.said(number)


def test_what_analysis_found_may_be_missing(library: Callable[..., Worker]) -> None:
    worker = library("fork", hoist=("no_such", "json"))
    worker.message()
    assert worker.call(1, "double", 1)[0] == 0


def test_it_leads_the_group_that_the_worker_kills(library: Callable[..., Worker]) -> None:
    worker = library("direct")
    worker.message()
    assert os.getpgid(worker.process.pid) == worker.process.pid


@MODES
def test_it_ends_when_the_worker_hangs_up(library: Callable[..., Worker], mode: str) -> None:
    worker = library(mode)
    worker.message()
    worker.hang_up()
    assert worker.process.wait(60) == 0


def test_calls_end_with_the_worker(library: Callable[..., Worker]) -> None:
    worker = library("fork")
    worker.message()
    worker.send(worker.start(1, "pause"))
    sandbox = worker.home / "func.1" / ".taskvine.stdout"
    while not sandbox.exists():
        time.sleep(0.01)
    worker.hang_up()
    assert worker.process.wait(60) == 0


def test_results_that_stayed_on_the_workers(library: Callable[..., Worker]) -> None:
    worker = library("fork")
    worker.message()
    stored = worker.home / "stored"
    stored.write_bytes(pickle.dumps({"Result": 5}))
    assert worker.call(1, "double", {"VineFutureFile": str(stored)})[1]["Result"] == 10
