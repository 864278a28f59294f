"""Every finding of the doctor, made to happen, and what is said to mend it."""

from __future__ import annotations

import http.server
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

import pytest

from poncho_wq import zstd_library
from poncho_wq.cli.doctor import main
from poncho_wq.doctor import engines, examine, network, node, program, storage
from poncho_wq.doctor.finding import Finding, ok, problem

BAD = ("warning", "problem")


def only(found: Iterator[Finding] | list[Finding], *levels: str) -> list[Finding]:
    return [each for each in found if each.level in (levels or BAD)]


def test_whatever_is_bad_has_something_that_mends_it(tmp_path: Path) -> None:
    found = list(examine(root=tmp_path / "cache", seconds=5, offline=True))
    assert {"python", "programs", "cache", "tmp", "work_queue", "tar"} <= {each.check for each in found}
    assert all(each.mend for each in only(found))
    assert not (tmp_path / "cache").exists()


def test_a_check_that_fails_is_a_finding(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def surprise() -> list[Finding]:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(
        "poncho_wq.doctor.examination.checks", lambda **_: [("tmp", surprise), ("x", lambda: [ok("x", "y")])]
    )
    first, second = examine(root=tmp_path)
    assert (first.level, first.check, "ZeroDivisionError: oh" in first.text) == ("problem", "tmp", True)
    assert second.level == "ok"


# -- python and programs


def test_a_python_without_its_standard_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(program.sysconfig, "get_path", lambda name: str(tmp_path))
    (found,) = only(program.interpreter())
    assert found.level == "problem"
    assert "os.py" in found.text


def test_a_machine_that_is_no_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    (found,) = program.interpreter()
    assert (found.level, "riscv64" in found.text) == ("problem", True)


def test_a_wheel_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rattler", None)
    (found,) = only(program.programs())
    assert found.mend == f"{sys.executable} -m pip install --force-reinstall py-rattler"


def test_uv_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uv", None)
    # Another one may be on PATH, or beside the interpreter, where conda puts it.
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr("poncho_wq.build.uv.sys.executable", "/nowhere/python")
    (found,) = only(program.programs())
    assert "pip install uv" in (found.mend or "")


@pytest.mark.parametrize(("inside", "level"), [(True, "ok"), (False, "warning")])
def test_pip_that_requires_a_virtual_environment(monkeypatch: pytest.MonkeyPatch, inside: bool, level: str) -> None:
    monkeypatch.setenv("PIP_REQUIRE_VIRTUALENV", "true")
    monkeypatch.setattr(program.sys, "base_prefix", "/elsewhere" if inside else sys.prefix)
    (found,) = (each for each in program.pip_settings() if "PIP_REQUIRE_VIRTUALENV" in each.text)
    assert found.level == level


def test_pip_settings_and_python_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_TARGET", "/somewhere")
    monkeypatch.setenv("PYTHONPATH", "/mine")
    found = list(program.pip_settings())
    assert {"python3 -m pip config unset global.target", "unset PYTHONPATH"} <= {each.mend for each in found}


def test_the_sites_compression(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PONCHO_COMPRESSION", raising=False)
    assert list(program.compression()) == []
    for name in ("gzip", "none"):
        monkeypatch.setenv("PONCHO_COMPRESSION", name)
        assert [each.level for each in program.compression()] == ["ok"]
    monkeypatch.setenv("PONCHO_COMPRESSION", "zstd")
    monkeypatch.setattr(zstd_library, "find", lambda: object())
    assert ["zstd" in each.text for each in program.compression()] == [True]
    monkeypatch.setattr(zstd_library, "find", lambda: None)
    (found,) = program.compression()
    assert found.level == "problem"
    assert found.mend is not None
    assert zstd_library.ADVICE in found.mend
    monkeypatch.setenv("PONCHO_COMPRESSION", "lzma")
    assert [each.level for each in program.compression()] == ["problem"]


def test_somebody_elses_wrapper_on_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    theirs = tmp_path / "poncho_package_run"
    theirs.write_text("#!/bin/sh\n")
    theirs.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    (found,) = program.wrapper()
    assert (found.level, str(theirs) in found.text) == ("warning", True)
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    (found,) = program.wrapper()
    assert (found.level, "export PATH" in (found.mend or "")) == ("note", True)


# -- places


def test_a_cache_that_others_can_write_to(tmp_path: Path) -> None:
    (tmp_path / "v1").mkdir()
    (tmp_path / "v1").chmod(0o777)
    (found,) = only(storage.cache(tmp_path))
    assert found.level == "problem"
    assert "chmod o-w" in (found.mend or "")


def test_a_limit_that_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PONCHO_CACHE_SIZE", "plenty")
    (found,) = storage.cache(tmp_path)
    assert "PONCHO_CACHE_SIZE=20G" in (found.mend or "")


def test_a_cache_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(storage.os, "access", lambda path, mode: False)
    (found,) = storage.cache(tmp_path / "cache")
    assert (found.level, "PONCHO_CACHE_DIR" in (found.mend or "")) == ("problem", True)


def test_a_file_system_without_locks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def no_locks(file: object, how: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(storage.fcntl, "lockf", no_locks)
    (found,) = only(storage.cache(tmp_path))
    assert (found.level, "No locks available" in found.text) == ("problem", True)


def test_a_disk_without_room(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(storage, "ENOUGH_BYTES", 1 << 62)
    monkeypatch.setattr(storage, "ENOUGH_FILES", 1 << 62)
    found = list(storage.room("cache", tmp_path, "mend it"))
    assert found
    assert {each.level for each in found} == {"warning"}
    assert "are free" in found[0].text


def test_a_home_on_a_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(storage, "filesystem", lambda path: "nfs4")
    monkeypatch.setenv("HOME", str(tmp_path))
    (found,) = storage.home(tmp_path / ".cache")
    assert (found.level, "nfs4" in found.text) == ("warning", True)
    (found,) = storage.home(Path("/scratch/me"))
    assert found.level == "ok"
    monkeypatch.setenv("HOME", str(tmp_path / "gone"))
    (found,) = storage.home(tmp_path)
    assert found.level == "warning"


def test_file_systems_are_those_of_the_kernel(tmp_path: Path) -> None:
    table = tmp_path / "mountinfo"
    inner = tmp_path / "a b"
    inner.mkdir()
    escaped = str(inner).replace(" ", "\\040")
    table.write_text(
        f"1 0 8:1 / / rw - ext4 /dev/sda rw\n2 1 0:5 / {escaped} rw shared:1 - lustre srv:/x rw\nnonsense\n"
    )
    assert storage.filesystem(inner / "deeper", str(table)) == "lustre"
    assert storage.filesystem(tmp_path, str(table)) == "ext4"


QUOTA = """\
Disk quotas for user me (uid 1000):
     Filesystem  blocks   quota   limit   grace   files   quota   limit   grace
srv:/home     9500000 10000000 11000000              9000   100000   100000
srv:/work     120*     100      110    6days       99999  100000 0
/dev/none       1       0       0               1       0       0
"""


def quota_says(directory: Path, text: str) -> None:
    (directory / "table").write_text(text)
    script = directory / "quota"
    script.write_text(f"#!/bin/sh\nwhile IFS= read -r line; do printf '%s\\n' \"$line\"; done <'{directory}/table'\n")
    script.chmod(0o755)


def test_quotas(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert list(storage.parse_quota(QUOTA)) == [
        ("srv:/home", "KiB", 9500000, 10000000),
        ("srv:/home", "files", 9000, 100000),
        ("srv:/work", "KiB", 120, 100),
        ("srv:/work", "files", 99999, 100000),
    ]
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    quota_says(tmp_path, QUOTA)
    found = list(storage.quotas(tmp_path, 5))
    assert [each.level for each in found] == ["warning", "problem", "warning"]
    assert all("poncho-wq cache gc" in (each.mend or "") for each in found)
    quota_says(tmp_path, "srv:/home 5 10 10 5 10 10\n")
    (found_well,) = storage.quotas(tmp_path, 5)
    assert found_well.level == "ok"


def test_a_quota_program_that_hangs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "quota").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "quota").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (found,) = storage.quotas(tmp_path, 0.2)
    assert found.level == "note"


def test_places_for_temporary_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def nowhere() -> str:
        raise FileNotFoundError("No usable temporary directory")

    (tmp_path / "a b").mkdir()
    monkeypatch.setattr(storage.tempfile, "gettempdir", lambda: str(tmp_path / "a b"))
    (found,) = only(storage.temporary())
    assert "blank" in found.text
    monkeypatch.setattr(storage.tempfile, "gettempdir", nowhere)
    (found,) = storage.temporary()
    assert found.level == "problem"


# -- network: servers of this machine


class _Server(http.server.BaseHTTPRequestHandler):
    status, date = 200, ""

    def do_HEAD(self) -> None:
        self.send_response_only(self.status)
        self.send_header("Date", self.date or formatdate(usegmt=True))
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[type[_Server]]:
    kind = type("_Mine", (_Server,), {})
    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), kind)
    thread = threading.Thread(target=served.serve_forever)
    thread.start()
    kind.url = f"http://127.0.0.1:{served.server_port}"
    yield kind
    served.shutdown()
    thread.join()
    served.server_close()


@pytest.fixture
def _plain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No settings of the person who runs the tests."""
    for name in list(os.environ):
        if name.startswith(("PIP_", "UV_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def closed_port() -> Iterator[int]:
    with socket.socket() as taken:  # bound and not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@pytest.mark.usefixtures("_plain")
def test_an_index_that_does_not_answer(monkeypatch: pytest.MonkeyPatch, closed_port: int) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", f"http://me:secret@127.0.0.1:{closed_port}/simple")
    (found,) = network.index(2)
    assert found.level == "problem"
    assert f"127.0.0.1:{closed_port}" in found.text
    assert "secret" not in json.dumps(found.as_dict())
    assert "pip config set global.index-url" in (found.mend or "")


@pytest.mark.usefixtures("_plain")
def test_an_index_that_is_none(monkeypatch: pytest.MonkeyPatch, server: type[_Server]) -> None:
    server.status = 404
    monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple")
    (found,) = network.index(5)
    assert (found.level, "is it a package index?" in found.text) == ("warning", True)


@pytest.mark.usefixtures("_plain")
def test_channels(monkeypatch: pytest.MonkeyPatch, server: type[_Server], closed_port: int) -> None:
    monkeypatch.setattr(network, "served_from", lambda name: [f"{server.url}/conda-forge/"])
    assert [each.level for each in network.channels(5)] == ["ok"]
    server.status = 403  # somebody is there
    assert [each.level for each in network.channels(5)] == ["ok"]
    server.status = 500
    assert [each.level for each in network.channels(5)] == ["warning"]
    monkeypatch.setattr(network, "served_from", lambda name: [f"http://127.0.0.1:{closed_port}/"])
    (found,) = network.channels(2)
    assert (found.level, "mirror" in (found.mend or "")) == ("warning", True)


@pytest.mark.usefixtures("_plain")
def test_channels_of_a_configured_mirror(
    monkeypatch: pytest.MonkeyPatch, server: type[_Server], closed_port: int, tmp_path: Path
) -> None:
    config = tmp_path / "config" / "rattler" / "config.toml"
    config.parent.mkdir(parents=True)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    mirrors = f'["http://127.0.0.1:{closed_port}/cf", "{server.url}/cf"]'
    config.write_text(f'[mirrors]\n"https://conda.anaconda.org/conda-forge" = {mirrors}\n')
    (found,) = network.channels(2)
    assert (found.level, f"{server.url}/cf/" in found.text) == ("ok", True)
    config.write_text("[mirrors\n")
    (found,) = network.channels(2)
    assert (found.level, bool(found.mend)) == ("problem", True)


@pytest.mark.usefixtures("_plain")
def test_the_clock(monkeypatch: pytest.MonkeyPatch, server: type[_Server]) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", server.url)
    (found,) = network.clock(5)
    assert found.level == "ok"
    server.date, server.status = formatdate(1_000_000_000, usegmt=True), 404
    (found,) = network.clock(5)
    assert (found.level, "ahead of 127.0.0.1" in found.text) == ("warning", True)
    server.date = "yesterday"
    assert list(network.clock(5)) == []


@pytest.mark.usefixtures("_plain")
def test_proxies(monkeypatch: pytest.MonkeyPatch, closed_port: int) -> None:
    assert list(network.proxies(2)) == []
    monkeypatch.setenv("https_proxy", f"http://me:secret@127.0.0.1:{closed_port}")
    monkeypatch.setenv("HTTPS_PROXY", "http://[broken")
    monkeypatch.setenv("http_proxy", "//")
    found = list(network.proxies(2))
    assert [each.level for each in found] == ["problem", "problem", "problem", "note"]
    assert "secret" not in "".join(each.text for each in found)
    assert [each.level for each in network.proxies(2, offline=True)] == ["problem", "ok", "problem", "note"]


# -- a worker's machine


def test_the_workers_script_is_what_runs_here() -> None:
    found = list(node.here())
    assert {"machine", "tools", "tar", "tmp"} <= {each.check for each in found}
    assert only(found, "problem") == []


@pytest.mark.parametrize("shell", ["dash", "bash", "busybox"])
def test_the_workers_script_without_tar(tmp_path: Path, shell: str) -> None:
    found = next((p for p in (Path("/bin", shell), Path("/usr/bin", shell)) if p.exists()), None)
    if found is None:
        pytest.skip(f"{shell} is not installed")
    (tmp_path / "uname").symlink_to("/usr/bin/uname")
    command = [str(found), *(["sh"] if shell == "busybox" else []), "-s", "--", "--tsv"]
    done = subprocess.run(
        command, input=node.worker_script(), env={"PATH": str(tmp_path), "TMPDIR": str(tmp_path / "none")},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    rows = {each.check: each for each in node.parse(done.stdout)}
    if shell == "busybox":
        assert done.returncode in (0, 1)  # its shell may have tar and all the others inside
        return
    assert (done.returncode, rows["tools"].level) == (1, "problem")
    assert "tar" in rows["tools"].text
    assert rows["tools"].mend


@pytest.mark.parametrize(
    ("name", "text", "check"),
    [
        ("tar", "exit 2", "tar"),
        ("head", "exit 1", "head"),
        ("uname", "echo Darwin", "machine"),
        ("df", "echo x; echo /dev/sda 10 9 1024 90% /", "disk"),
        ("getconf", "exit 1", "libc"),
    ],
)
def test_a_node_with_a_bad_program(tmp_path: Path, name: str, text: str, check: str) -> None:
    (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
    (tmp_path / name).chmod(0o755)
    done = subprocess.run(
        ["sh", "-s", "--", "--tsv"], input=node.worker_script(), env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    (found,) = (each for each in node.parse(done.stdout) if each.check == check)
    assert found.level != "ok"
    assert found.mend
    assert done.returncode == (1 if found.level == "problem" else 0)


def test_the_workers_script_tries_the_manager(closed_port: int) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        for port, status in ((server.getsockname()[1], 0), (closed_port, 1)):
            done = subprocess.run(
                ["sh", "-s", "--", "127.0.0.1", str(port)], input=node.worker_script(),
                env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, timeout=60, check=False,
            )  # fmt: skip
            assert done.returncode == status, done.stdout


def test_nothing_is_left_on_the_node(tmp_path: Path) -> None:
    environ = {"PATH": "/usr/bin:/bin", "TMPDIR": str(tmp_path)}
    subprocess.run(["sh", "-s"], input=node.worker_script(), env=environ, capture_output=True, text=True, check=True)
    assert list(tmp_path.iterdir()) == []


# -- the command


def test_status_and_output(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    bad = problem("index", "https://me:secret@host/ does not answer", "do this " * 30)
    for found, status in (([ok("tmp", "fine")], 0), ([ok("tmp", "fine"), bad], 1)):
        monkeypatch.setattr("poncho_wq.cli.doctor.examine", lambda found=found, **_: iter(found))
        assert main([]) == status
        shown = capsys.readouterr()
        assert main(["--json"]) == status
        rows = json.loads(capsys.readouterr().out)
        assert [set(row) for row in rows] == [{"check", "level", "text", "mend"}] * len(found)
    assert "do this " * 29 in shown.out  # whole, on one line of a pipe
    assert shown.err == "1 problem\n"
    assert "secret" not in shown.out + json.dumps(rows)


def test_the_worker_option_prints_the_script(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--worker"]) == 0
    assert capsys.readouterr().out == node.worker_script()


@pytest.mark.parametrize("words", [["--timeout", "0"], ["--timeout", "nan"], ["--nonsense"]])
def test_bad_usage(words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2


def test_a_name_is_looked_up_on_path_once_each(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "tool").write_text("")
    (tmp_path / "tool").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{tmp_path}:")
    assert engines._programs("tool") == [str(tmp_path / "tool")]
