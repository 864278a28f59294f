"""Each page of the documents, word by word as a reader would go through it, and all of them as a site."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.documents.pages import RUN, blocks, matches, outputs, script

DOCS = ROOT / "docs"
# Those that other tests go through: tests/batch, tests/prominence and tests/engines run these pages' examples.
ELSEWHERE = {"batch.md", "prominence.md", "parsl.md", "taskvine.md"}
PAGES = sorted(
    str(path.relative_to(DOCS))
    for path in DOCS.rglob("*.md")
    if not path.is_relative_to(DOCS / "adr") and str(path.relative_to(DOCS)) not in ELSEWHERE
)
WITH_COMMANDS = [page for page in PAGES if script(DOCS / page)[1]]
PATIENCE = 400


def free_ports(count: int) -> list[int]:
    taken = [socket.socket() for _ in range(count)]
    try:
        for each in taken:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in taken]
    finally:
        for each in taken:
            each.close()


@pytest.mark.parametrize("page", WITH_COMMANDS)
def test_a_reader_can_do_what_the_page_says(page: str, programs: Path, shared_cache: Path, tmp_path: Path) -> None:
    text, steps = script(DOCS / page)
    if "work_queue_worker" in text and shutil.which("work_queue_worker") is None:
        pytest.skip("needs Work Queue (apt-get install coop-computing-tools python3-workqueue)")
    for port, free in zip(("9123", "8765"), free_ports(2), strict=True):
        text = text.replace(port, str(free))
    environ = {
        **{name: value for name, value in os.environ.items() if name.startswith(("PIP_", "UV_", "SSL_"))},
        "PATH": f"{programs}:/usr/bin:/bin", "PONCHO_CACHE_DIR": str(shared_cache), "LANG": "C.UTF-8",
        "HOME": os.environ.get("HOME", str(tmp_path)), "no_proxy": "127.0.0.1,localhost",
    }  # fmt: skip
    process = subprocess.Popen(
        ["bash", "-c", text], cwd=tmp_path, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        said, _ = process.communicate(timeout=PATIENCE)
    finally:
        # What the page starts in the background.
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()
    printed = outputs(said, len(steps))
    assert process.returncode == 0, f"{steps[len(printed) - 1][0]}\n{printed[-1] if printed else said}"
    assert len(printed) == len(steps)
    for (command, expected), came in zip(steps, printed, strict=True):
        assert expected is None or matches(came, expected), f"$ {command}\n{came}\n-- but the page says:\n{expected}"


@pytest.mark.parametrize("page", PAGES)
def test_what_is_not_run_says_why(page: str) -> None:
    for block in blocks(DOCS / page):
        if block.language in RUN and block.language != "console":
            assert block.not_run, f"{page}: a block of {block.language} that nobody runs:\n{block.text}"


def test_a_page_that_lies_is_found_out(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text('```text title="a b"\nx\n```\n\n```console\n$ cat "a b"\nx\n$ echo one two\none…\n```\n')
    text, steps = script(page)
    done = subprocess.run(["bash", "-c", text], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert outputs(done.stdout, len(steps)) == ["x\n", "one two\n"]
    assert matches("one two\n", "one…\n")
    assert not matches("one two\n", "one\n")
    assert not matches("two\n", "…one…\n")


needs_mkdocs = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("mkdocs", "material", "mkdocstrings")),
    reason="needs mkdocs (pip install -e '.[docs]')",
)


@needs_mkdocs
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    commands = (tmp_path / "site/reference/commands.html").read_text()
    assert "usage: poncho-wq report" in commands
    assert "specify_environment" in (tmp_path / "site/reference/python.html").read_text()
    # From a folder, without a network: nothing is loaded from elsewhere.
    for page in (tmp_path / "site").rglob("*.html"):
        found = re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="(https?:)?//[^"]+"', page.read_text())
        assert found == [], page


def test_every_command_is_in_the_reference() -> None:
    from poncho_wq.cli.main import COMMANDS

    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "tools/docs_hooks.py")
    assert spec is not None
    assert spec.loader is not None
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    shown = {each[1] for each in hooks.COMMANDS if each[0] == "poncho-wq"}
    assert set(COMMANDS) - {"analyze", "create", "run"} == shown
    assert "usage: poncho-wq report" in hooks.help_of(("poncho-wq", "report"))


def test_manual_pages(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(ROOT / "tools/man_pages"), str(tmp_path)], check=True)
    pages = {path.name for path in tmp_path.iterdir()}
    assert {"poncho-wq.1", "poncho-wq-report.1", "poncho_package_run.1", "poncho_package_create.1"} <= pages
    for path in tmp_path.iterdir():
        text = path.read_text()
        assert ".SH NAME" in text
        assert ".SH SYNOPSIS" in text
        if shutil.which("groff") is not None:
            done = subprocess.run(
                ["groff", "-man", "-ww", "-Tutf8", str(path)], capture_output=True, text=True, check=True
            )
            assert done.stderr == "", path.name
            assert "--help" in re.sub(r"\x1b\[[0-9;]*m|.\x08", "", done.stdout), path.name


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["poncho-wq", "do"], {"doctor"}),
        (["poncho-wq", "env", "l"], {"lock"}),
        (["poncho-wq", "cache", "gc", "--max"], {"--max-size"}),
        (["poncho-wq", "report", "--h"], {"--help", "--html"}),
        (["/some/where/poncho_package_create", "--comp"], {"--compression"}),
        (["poncho-wq", "doctor", "a"], {"a b.json"}),
    ],
)
def test_bash_completes(words: list[str], expected: set[str], tmp_path: Path) -> None:
    from poncho_wq.cli.completion import script as completion

    (tmp_path / "a b.json").touch()
    program = completion() + (
        'COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))\n_poncho_wq\nprintf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    done = subprocess.run(
        ["bash", "-c", program, "bash", *words], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert set(done.stdout.splitlines()) == expected
    assert done.stderr == ""
