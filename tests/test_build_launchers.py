"""Console scripts start the interpreter beside them, from wherever and however they are called."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from poncho_wq.build.launchers import make_portable

SHELLS = [shell for shell in (["dash"], ["bash"], ["bash", "--posix"], ["busybox", "sh"]) if shutil.which(shell[0])]
SHOW = "import sys\nprint(sys.argv, __doc__, sys.executable)\n"
OLD = "/somewhere/else/bin/python3"


@pytest.fixture
def bin_directory(tmp_path: Path) -> Path:
    """A directory with blanks in its name that holds an interpreter called `pythonX`."""
    directory = tmp_path / "a prefix $(touch x)" / "bin"
    directory.mkdir(parents=True)
    starter = directory / "pythonX"
    starter.write_text(f'#!/bin/sh\nPONCHO_STARTED="$0" exec {sys.executable} "$@"\n')
    starter.chmod(0o755)
    return directory


def _script(directory: Path, text: str, name: str = "show") -> Path:
    path = directory / name
    path.write_text(text)
    path.chmod(0o755)
    assert make_portable(path, [OLD], "pythonX")
    return path


def _run(*argv: str | Path, cwd: Path | None = None, **environment: str) -> str:
    done = subprocess.run(argv, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_runs_by_path_with_its_arguments(bin_directory: Path) -> None:
    script = _script(bin_directory, f"#!{OLD}\n{SHOW}")
    assert _run(script, "a b", "", "$x", "-rf").startswith(f"{[str(script), 'a b', '', '$x', '-rf']!r}")


def test_runs_through_symbolic_links(bin_directory: Path, tmp_path: Path) -> None:
    script = _script(bin_directory, f"#!{OLD}\nimport os\nprint(os.environ['PONCHO_STARTED'])\n")
    (tmp_path / "links -> here").mkdir()
    absolute, relative = tmp_path / "absolute", tmp_path / "links -> here" / "a link"
    absolute.symlink_to(script)
    relative.symlink_to("../absolute")
    for link in (absolute, relative):
        assert _run(link) == str(bin_directory / "pythonX")
        assert _run(link, QUOTING_STYLE="shell-always") == str(bin_directory / "pythonX")
        assert _run(f"./{link.name}", cwd=link.parent) == str(bin_directory / "pythonX")


@pytest.mark.parametrize("shell", SHELLS, ids=" ".join)
def test_runs_under_any_shell(bin_directory: Path, shell: list[str], tmp_path: Path) -> None:
    script = _script(bin_directory, f"#!{OLD}\n{SHOW}")
    link = tmp_path / "link"
    link.symlink_to(script)
    assert _run(*shell, script, "x").startswith(f"{[str(script), 'x']!r}")
    assert _run(*shell, link, "x").startswith(f"{[str(link), 'x']!r}")
    assert _run(*shell, "show", "x", cwd=bin_directory).startswith("['./show', 'x']")


def test_runs_from_path(bin_directory: Path, tmp_path: Path) -> None:
    _script(bin_directory, f"#!{OLD}\n{SHOW}")
    said = _run("/bin/sh", "-c", "show 1", cwd=tmp_path, PATH=f"{bin_directory}:{os.environ['PATH']}")
    assert said.startswith(f"{[str(bin_directory / 'show'), '1']!r}")


def test_a_hostile_pythonhome_does_not_matter(bin_directory: Path) -> None:
    script = _script(bin_directory, f"#!{OLD}\nimport os\nprint('PYTHONHOME' in os.environ)\n")
    assert _run(script, PYTHONHOME="/nowhere") == "False"


def test_exit_status_and_streams_are_the_scripts(bin_directory: Path) -> None:
    script = _script(bin_directory, f"#!{OLD}\nimport sys\nprint(sys.stdin.read())\nsys.exit(7)\n")
    done = subprocess.run([script], input="in", capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (7, "in\n", "")


def test_python_reads_it_as_well(bin_directory: Path) -> None:
    script = _script(bin_directory, f"#!{OLD}\n{SHOW}")
    assert _run(sys.executable, "-W", "error", script).startswith(f"{[str(script)]!r}")


@pytest.mark.parametrize(
    "text",
    [
        '"""The help."""\nfrom __future__ import annotations\nfrom __future__ import division\nprint(__doc__)\n',
        '# a comment\n\n"""The\nhelp."""\nprint(__doc__.replace(chr(10), " "))\n',
        'r"""The help."""\nprint(__doc__)',
        "'The ' 'help.'\nprint(__doc__)\n",
    ],
)
def test_a_docstring_stays_the_docstring(bin_directory: Path, text: str) -> None:
    assert _run(_script(bin_directory, f"#!{OLD}\n{text}")) == "The help."


@pytest.mark.parametrize(
    "text", ["print('é')\n", "x = '''\n'''\nprint('é')\n", "print('é', file=__import__('sys').stdout)"]
)
def test_other_scripts_run_unchanged(bin_directory: Path, text: str) -> None:
    assert _run(_script(bin_directory, f"#!{OLD}\n{text}"), PYTHONIOENCODING="utf-8") == "é"


@pytest.mark.parametrize(
    "first",
    [
        f"#!{OLD}\n",
        f"#!{OLD} -E\n",
        f"#!/bin/sh\n'''exec' {OLD} \"$0\" \"$@\"\n' '''\n",
        f"#!/bin/sh\n'''exec' \"{OLD}\" \"$0\" \"$@\"\n' '''\n",
        f"#!/bin/sh\n'''exec' '{OLD}' \"$0\" \"$@\"\n' '''\n",
    ],
)
def test_every_form_that_installers_write(bin_directory: Path, first: str) -> None:
    script = _script(bin_directory, f"{first}print('ran')\n")
    assert OLD not in script.read_text()
    assert _run(script) == "ran"


@pytest.mark.parametrize("text", ["#!/bin/sh\necho hi\n", "#!/usr/bin/perl\n", "no first line", "", f"#!{OLD}X\n"])
def test_other_files_are_left_alone(tmp_path: Path, text: str) -> None:
    path = tmp_path / "script"
    path.write_text(text)
    assert not make_portable(path, [OLD], "python3")
    assert path.read_text() == text


def test_a_shared_file_is_never_rewritten_in_place(bin_directory: Path, tmp_path: Path) -> None:
    cached = tmp_path / "cached"
    cached.write_text(f"#!{OLD}\nprint(1)\n")
    (bin_directory / "linked").hardlink_to(cached)
    assert make_portable(bin_directory / "linked", [OLD], "pythonX")
    assert cached.read_text() == f"#!{OLD}\nprint(1)\n"
