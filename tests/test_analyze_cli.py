"""`poncho_package_analyze`, its older name, and `poncho-wq explain`, as commands."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from poncho_wq.cli import analyze as command
from tests.conftest import ROOT
from tests.fakes_analyze import install, names

Result = subprocess.CompletedProcess[str]


@pytest.fixture
def run(tmp_path: Path) -> Any:
    """Run a command module in a fresh directory, with some packages installed."""
    site = tmp_path / "lib" / "site-packages"
    files = {"fake-PyYAML": "yaml_fake/__init__.py", "fake-numpy": "numpy_fake/__init__.py", "fake-six": "six_fake.py"}
    for package, file in files.items():
        install(site, package, "1.0", [file])
    (tmp_path / "work").mkdir()

    def run(*words: str, module: str = "analyze", stdin: str = "", status: int | None = 0) -> Result:
        environ = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": f"{ROOT}:{site}"}
        done = subprocess.run(
            [sys.executable, "-m", f"poncho_wq.cli.{module}", *words],
            cwd=tmp_path / "work", env=environ, input=stdin, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert status is None or done.returncode == status, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return done

    return run


@pytest.fixture
def work(tmp_path: Path) -> Path:
    return tmp_path / "work"


def leftovers(work: Path) -> set[str]:
    return {each.name for each in work.iterdir()}


def test_a_script_gives_a_specification_that_the_package_reads(run: Any, work: Path) -> None:
    from poncho_wq.spec import EnvSpec

    (work / "s.py").write_text("import yaml_fake\nimport os\n")
    done = run("s.py", "out.json")
    assert done.stdout == done.stderr == ""
    text = (work / "out.json").read_text()
    assert text.endswith("}\n")
    assert json.loads(text) == {"pip": ["fake-pyyaml==1.0"], "python": ".".join(map(str, sys.version_info[:3]))}
    assert EnvSpec.from_json(text).pip == ("fake-pyyaml==1.0",)
    assert leftovers(work) == {"s.py", "out.json"}


def test_standard_input_and_output(run: Any, work: Path) -> None:
    done = run("-", "-", stdin="import six_fake\n")
    assert json.loads(done.stdout)["pip"] == ["fake-six==1.0"]
    (work / "s.py").write_text("import yaml_fake\n")
    both = run("s.py", "-", "-", stdin="import six_fake\n")
    assert names(json.loads(both.stdout)["pip"]) == {"fake-pyyaml", "fake-six"}
    assert "<stdin>:2: gone" in run("-", "out.json", stdin="\nimport gone", status=2).stderr
    assert leftovers(work) == {"s.py"}


def test_options(run: Any, work: Path) -> None:
    text = "import yaml_fake\nimport odd\ndef f():\n    import six_fake\nclass C:\n    def m(self): import numpy_fake\n"
    (work / "s.py").write_text(text)

    def packages(*words: str) -> set[str]:
        return names(json.loads(run(*words, "s.py", "-").stdout)["pip"])

    assert packages("--pkg-mapping", "odd=fake-six", "--toplevel") == {"fake-pyyaml", "fake-six"}
    assert packages("--function", "f") == {"fake-six"}
    assert packages("--function", "f", "--function", "C.m") == {"fake-six", "fake-numpy"}
    extra = ("--extra-pkg", "fake-PyYAML", "--extra-pkg=other")
    assert packages("--function=f", *extra) == {"fake-six", "fake-pyyaml", "other"}
    assert packages("--pkg-mapping=odd=elsewhere>=2") == {"fake-pyyaml", "elsewhere", "fake-six", "fake-numpy"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "usage"),
        (["s.py"], "usage"),
        (["s.py", "other.py"], "looks like a script"),
        (["s.py", "nb.ipynb"], "looks like a script"),
        (["script", "script"], "would overwrite"),
        (["-", "-", "-"], "only once"),
        (["s.py", "missing/out.json"], "no such directory"),
        (["s.py", "."], "is a directory"),
        (["nowhere.py", "out.json"], "nowhere.py: no such file"),
        ([".", "out.json"], "is a directory"),
        (["broken.py", "out.json"], "broken.py:1"),
        (["--toplevel", "--function", "f", "s.py", "out.json"], "not allowed with"),
        (["--function", "nothing", "s.py", "out.json"], "no function is called nothing"),
        (["--pkg-mapping", "odd", "s.py", "out.json"], "IMPORT=NAME"),
        (["--pkg-mapping", "odd=", "s.py", "out.json"], "IMPORT=NAME"),
        (["--pkg-mapping", "=x", "s.py", "out.json"], "IMPORT=NAME"),
        (["--extra-pkg", "not a name", "s.py", "out.json"], "not a name"),
        (["missing.py", "out.json"], "missing.py:1: gone"),
    ],
)
def test_bad_usage_and_bad_input_are_status_2(run: Any, work: Path, words: list[str], said: str) -> None:
    for name, text in {"s.py": "", "script": "", "broken.py": "def (", "missing.py": "import gone, lost"}.items():
        (work / name).write_text(text)
    before = leftovers(work)
    done = run(*words, status=2)
    assert said in done.stderr
    assert done.stdout == ""
    assert leftovers(work) == before


def test_a_failure_leaves_an_existing_output_as_it_was(run: Any, work: Path) -> None:
    (work / "out.json").write_text("precious")
    (work / "s.py").write_text("import gone")
    run("s.py", "out.json", status=2)
    assert (work / "out.json").read_text() == "precious"
    assert leftovers(work) == {"s.py", "out.json"}


def test_local_modules_beside_the_script_are_refused(run: Any, work: Path) -> None:
    (work / "helper.py").write_text("raise SystemExit('was run')")
    (work / "s.py").write_text("import helper\nfrom . import other\n")
    done = run("s.py", "out.json", status=2)
    assert "s.py:1: helper: a local module" in done.stderr
    assert "s.py:2: .: a relative import" in done.stderr
    assert not (work / "out.json").exists()


def test_notes_go_to_stderr(run: Any, work: Path) -> None:
    (work / "s.py").write_text("try:\n    import gone\nexcept ImportError:\n    gone = None\n")
    done = run("s.py", "-")
    assert "note: s.py:2: gone left out" in done.stderr
    assert "gone" not in done.stdout


def test_where_the_output_goes(run: Any, work: Path) -> None:
    (work / "s.py").write_text("")
    (work / "out.json").write_text("old")
    (work / "out.json").chmod(0o640)
    (work / "link.json").symlink_to("out.json")
    run("s.py", "link.json")
    assert (work / "link.json").is_symlink()
    assert json.loads((work / "out.json").read_text())
    assert stat.S_IMODE((work / "out.json").stat().st_mode) == 0o640
    run("s.py", "/dev/null")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    run("s.py", "new.json")
    current = os.umask(0)
    os.umask(current)
    assert stat.S_IMODE((work / "new.json").stat().st_mode) == 0o666 & ~current


@pytest.mark.usefixtures("run")
def test_an_output_that_cannot_be_written_is_status_1(
    monkeypatch: pytest.MonkeyPatch, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A full disk, at each step: the old file stays, nothing else remains."""
    (work / "s.py").write_text("import os")
    (work / "out.json").write_text("precious")

    def full(*args: Any, **kwargs: Any) -> Any:
        raise OSError(28, "No space left on device")

    for step in ("replace", "fchmod"):
        with monkeypatch.context() as patched:
            patched.setattr(command.os, step, full)
            assert command.main([str(work / "s.py"), str(work / "out.json")]) == 1
        assert "No space left" in capsys.readouterr().err
        assert (work / "out.json").read_text() == "precious"
        assert leftovers(work) == {"s.py", "out.json"}


def test_explain(run: Any, work: Path) -> None:
    (work / "helper.py").write_text("import six_fake\ndef g(): return six_fake\n")
    (work / "s.py").write_text("import yaml_fake, os\nimport helper\nimport gone\ndef f(): return helper.g()\n")
    lines = run("s.py", module="explain").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["in", "out", "refused", "MISSING"]
    assert "s.py:1" in lines[0]
    assert "fake-PyYAML 1.0" in lines[0]
    document = json.loads(run("s.py", "--json", module="explain").stdout)
    assert {each["module"]: each["status"] for each in document["imports"]} == {
        "yaml_fake": "in", "os": "out", "helper": "unresolved", "gone": "unresolved",
    }  # fmt: skip
    function = json.loads(run("s:f", "--json", module="explain").stdout)
    assert {each["module"]: each["status"] for each in function["imports"]} == {"helper": "local", "six_fake": "in"}
    assert function["local"] == [{"name": "helper", "path": str(work / "helper.py"), "root": str(work)}]
    assert function["environment"]["pip"] == ["fake-six==1.0"]
    assert run("s.py:f", module="explain").stdout.startswith("refused  helper")
    assert "no_such" in run("no_such:f", module="explain", status=2).stderr
    assert "nothing" in run("s:nothing", module="explain", status=2).stderr
