"""README's commands and every example, run as a reader would run them."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()
needs_worker = pytest.mark.skipif(
    shutil.which("work_queue_worker") is None,
    reason="needs Work Queue (apt-get install coop-computing-tools python3-workqueue)",
)


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def environ(programs: Path, run_directory: Path, shared_cache: Path) -> dict[str, str]:
    return os.environ | {"PATH": f"{programs}:/usr/bin:/bin", "PONCHO_CACHE_DIR": str(shared_cache)}


def test_the_two_commands_are_there() -> None:
    first = blocks("console")[0].splitlines()
    assert first == ["make demo", "make test"]
    rules = (ROOT / "Makefile").read_text()
    assert all(re.search(rf"^{line.split()[1]}:", rules, re.MULTILINE) for line in first)


def test_the_three_tools(environ: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "hi.py").write_text("import packaging\nprint('hi', packaging.__name__)\n")
    (block,) = [b for b in blocks("console") if "poncho_package_analyze" in b]
    for line in block.splitlines():
        done = subprocess.run(line.split(), cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
    assert done.stdout == "hi packaging\n"


@needs_worker
def test_the_ten_line_manager(environ: dict[str, str], tmp_path: Path) -> None:
    (block,) = [b for b in blocks("python") if "WorkQueue(9123)" in b]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = tmp_path / "manager.py"
    script.write_text(block.replace("9123", str(port)))
    from poncho_wq.engines.workers import LocalWorkers

    with LocalWorkers(port, environ={"PATH": "/usr/bin:/bin"}):
        done = subprocess.run(
            [sys.executable, str(script)],
            cwd=tmp_path,
            env=environ,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    lines = sorted(done.stdout.splitlines(), key=lambda line: int(line.split()[0]))
    assert len(lines) == 10
    assert all(line.endswith("[3.0, 1.0]") for line in lines)


@needs_worker
def test_quickstart_runs_on_real_workers(environ: dict[str, str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples/quickstart.py")],
        cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=250, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = dict(re.findall(r"^(station\d) +([+-][\d.]+) °C a decade$", done.stdout, re.MULTILINE))
    assert set(found) == {f"station{i}" for i in range(6)}
    # The example made the data with these trends; the analysis must find them again.
    assert all(abs(float(found[f"station{i}"]) - 0.1 * i) < 0.06 for i in range(6)), found
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("engine", [pytest.param("work_queue", marks=needs_worker), "local"])
def test_demo_and_its_second_run(engine: str, environ: dict[str, str], tmp_path: Path) -> None:
    command = ["poncho-wq", "demo", "--engine", engine, "--tasks", "3"]
    for _ in range(2):
        done = subprocess.run(
            command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=250, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "3 of 3 results" in done.stdout
    assert "came from the cache: nothing was built" in done.stdout
    assert "The first task started after" in done.stdout


def test_without_work_queue_the_demo_says_so_and_goes_on(environ: dict[str, str], tmp_path: Path) -> None:
    """No work_queue_worker on PATH: the embedded engine, and how to get the real one."""
    bare = tmp_path / "bin"
    bare.mkdir()
    for program in {*Path("/bin").iterdir(), *Path("/usr/bin").iterdir()}:
        if not program.name.startswith("work_queue") and not (bare / program.name).is_symlink():
            (bare / program.name).symlink_to(program)
    environ["PATH"] = f"{Path(sys.executable).parent}:{bare}"
    done = subprocess.run(
        ["poncho-wq", "demo", "--tasks", "2"],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ndcctools" in done.stdout
    assert "embedded engine" in done.stdout
    assert "2 of 2 results" in done.stdout
