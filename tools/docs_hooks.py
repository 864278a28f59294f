"""For mkdocs: the page of the commands, from what each says of itself with ``--help``."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

COMMANDS = (
    ("poncho_package_analyze",), ("poncho_package_create",), ("poncho_package_run",), ("poncho-wq", "explain"),
    ("poncho-wq", "env"), *(("poncho-wq", "env", each) for each in ("lock", "show", "diff", "import", "export")),
    ("poncho-wq", "cache"), *(("poncho-wq", "cache", each) for each in ("list", "info", "verify", "gc", "rm")),
    ("poncho-wq", "doctor"), ("poncho-wq", "report"), ("poncho-wq", "batch"),
    *(("poncho-wq", "batch", each) for each in ("template", "run", "status", "pull", "kill", "rerun")),
    ("poncho-wq", "completion"), ("poncho-wq", "demo"),
)  # fmt: skip
_MARK = re.compile(r"<!-- commands: .*? -->")


def help_of(command: tuple[str, ...]) -> str:
    """What it says with ``--help``, in lines of 80 columns."""
    program = Path(sys.executable).parent / command[0]
    environ = {**os.environ, "COLUMNS": "80", "NO_COLOR": "1", "TERM": "dumb"}
    done = subprocess.run(
        [str(program), *command[1:], "--help"], capture_output=True, text=True, env=environ, check=True,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    return done.stdout


def on_page_markdown(markdown: str, **_: object) -> str:
    """mkdocs' hook."""
    if not _MARK.search(markdown):
        return markdown
    parts = [f"## {' '.join(each)}\n\n```text\n{help_of(each)}```\n" for each in COMMANDS]
    return _MARK.sub(lambda _: "\n".join(parts), markdown)
