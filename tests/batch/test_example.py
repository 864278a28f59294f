"""``examples/batch`` does what it says, and so do the commands of ``docs/batch.md``."""

from __future__ import annotations

import ast
import json
import re
import shutil
from pathlib import Path

from poncho_wq.batch import job_runner
from poncho_wq.cli.batch import parser
from tests.batch.conftest import cli

ROOT = Path(__file__).resolve().parents[2]


def test_the_example(tmp_path: Path) -> None:
    folder = tmp_path / "batch"
    shutil.copytree(ROOT / "examples/batch", folder)
    done = cli("run", "distribute-jobs.yaml", "--workers", "2", cwd=folder)
    assert done.returncode == 1
    results = folder / "example/heat_001"
    assert done.stdout == f"3 of 4 jobs completed; results: {results}\n"
    found = {name: json.loads((results / name / "result.json").read_text()) for name in ("coarse", "fine")}
    assert found["coarse"]["mean"] == found["fine"]["mean"] == 33.333
    assert "ValueError: a step of 1.0 s is too long for 120 cells" in (results / "unstable/stderr.txt").read_text()


def test_the_commands_in_the_documents_are_commands() -> None:
    text = (ROOT / "docs/batch.md").read_text()
    commands = re.findall(r"^poncho-wq batch (.*?)(?:  +#.*)?$", text, re.MULTILINE)
    assert len(commands) >= 8
    for command in commands:
        parser("poncho-wq batch").parse_args(command.split())


def test_the_runner_is_python_3_7() -> None:
    source = Path(job_runner.__file__).read_text()
    ast.parse(source, feature_version=(3, 7))
    imported = {
        (node.names[0].name if isinstance(node, ast.Import) else node.module or "").split(".")[0]
        for node in ast.walk(ast.parse(source))
        if isinstance(node, (ast.Import, ast.ImportFrom))
    }
    import sys

    assert imported <= set(sys.stdlib_module_names)
