"""The command-line tools as their documents show them, and what they say to bad input."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

HI = """\
import os
import sys
import pickle

import packaging.version


if __name__ == "__main__":
    print("hi from", packaging.version.Version("1.0"), sys.prefix)
"""


@pytest.fixture
def run(programs: Path, shared_cache: Path, tmp_path: Path):
    """Run a program in a fresh directory, with the environment that an ordinary user has."""

    def run(
        *argv: str, status: int | None = 0, env: dict[str, str] | None = None, stdin: str = "", cwd: Path = tmp_path
    ):
        environ = {"PATH": f"{programs}:/usr/bin:/bin", "HOME": str(tmp_path), "PONCHO_CACHE_DIR": str(shared_cache)}
        environ |= {
            k: v for k, v in os.environ.items() if k.startswith(("PIP_", "UV_", "SSL_")) or k.endswith("_proxy")
        }
        done = subprocess.run(
            argv, cwd=cwd, env=environ | (env or {}), input=stdin, capture_output=True, text=True, check=False
        )
        if status is not None:
            assert done.returncode == status, f"{argv}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return done

    return run


@pytest.mark.parametrize(
    ("prefix", "run_line"),
    [
        ("poncho", "./poncho_package_run --environment venv.tar.gz python3 hi.py"),
        ("python", "./python_package_run venv.tar.gz python3 hi.py"),
    ],
)
def test_the_three_steps_of_the_documents(prefix, run_line, run, programs, tmp_path):
    """ "How to test overall functionality", word for word."""
    (tmp_path / "hi.py").write_text(HI)
    for tool in ("analyze", "create", "run"):
        (tmp_path / f"{prefix}_package_{tool}").symlink_to(programs / f"{prefix}_package_{tool}")
    run(f"./{prefix}_package_analyze", "hi.py", "output.json")
    run(f"./{prefix}_package_create", "output.json", "venv.tar.gz")
    said = run(*run_line.split())
    assert said.stdout.startswith("hi from 1.0 ")
    assert sys.prefix not in said.stdout
    assert sorted(p.name for p in tmp_path.iterdir() if not p.is_symlink()) == ["hi.py", "output.json", "venv.tar.gz"]


def test_poncho_wq_is_the_same_three(run, tmp_path):
    (tmp_path / "hi.py").write_text(HI)
    run("poncho-wq", "analyze", "hi.py", "output.json")
    run("poncho-wq", "create", "output.json", "venv.tar.gz")
    assert run("poncho-wq", "run", "-e", "venv.tar.gz", "--", "python3", "hi.py").stdout.startswith("hi from 1.0 ")
    assert run("poncho-wq", "run", "-e", "venv.tar.gz", "--", "sh", "-c", "exit 7", status=7).stdout == ""


def test_create_reads_standard_input_and_keeps_stdout_clean(run, tmp_path):
    done = run("poncho_package_create", "-", "e.tar.gz", stdin='{"pip": ["packaging"]}')
    assert done.stdout == ""
    assert (tmp_path / "e.tar.gz").stat().st_size > 1_000_000


def test_a_second_create_builds_nothing(run, tmp_path):
    (tmp_path / "spec.json").write_text('{"pip": ["packaging"]}')
    run("poncho_package_create", "spec.json", "a.tar.gz")
    done = run("poncho_package_create", "spec.json", "b.tar.gz")
    assert "from the cache" in done.stderr
    assert (tmp_path / "a.tar.gz").read_bytes() == (tmp_path / "b.tar.gz").read_bytes()


def test_upstreams_options_are_accepted_with_a_note(run, tmp_path):
    (tmp_path / "spec.json").write_text('{"pip": ["packaging"]}')
    options = ("--conda-executable", "/opt/conda", "--no-micromamba", "--ignore-editable-packages")
    done = run("poncho_package_create", *options, "spec.json", "a.tar.gz")
    # The third says what to do with a virtual environment or a conda prefix; a specification has nothing of that kind.
    assert done.stderr.count("note:") == 2


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ('{"pip": ["-e ."]}', "pip[0]"),
        ('{"pip": ["numpy==="]}', "pip[0]"),
        ('{"pip": "numpy"}', "pip"),
        ('{"pipp": ["numpy"]}', "did you mean"),
        ('{"conda": {"channels": "x", "packages": []}}', "conda.channels"),
        ('{"conda": {"packages": ["python=3.11"]}, "python": "3.11"}', "python"),
        ('{"git": {"D": {"remote": "ext::sh -c x", "tag": "v1"}}}', "git.D.remote"),
        ('{"http": {"D": {"type": "tra", "url": "http://x/y"}}}', 'http.D.type: expected "file" or "tar", got "tra"'),
        ('{"pinned": {"conda": {"numpy": 1}}}', "pinned.conda.numpy"),
        ('{"env": {"LD_PRELOAD": "x"}}', "env.LD_PRELOAD"),
        ('{"glibc": "two"}', "glibc"),
        ('{"python": "three"}', "python"),
        ("", "spec.json"),
        ("{", "spec.json"),
        ("[]", "spec.json"),
    ],
)
def test_a_malformed_specification_is_status_2_with_its_place(spec, words, run, tmp_path):
    (tmp_path / "spec.json").write_text(spec)
    done = run("poncho_package_create", "spec.json", "e.tar.gz", status=2)
    assert done.stderr.startswith("error: spec.json: ")
    assert words in done.stderr
    assert not (tmp_path / "e.tar.gz").exists()


@pytest.mark.parametrize(
    ("section", "place"),
    [
        ({"conda": {"channels": ["file:///nowhere/channel"], "packages": ["zlib"]}}, "/nowhere/channel"),
        ({"git": {"DATA": {"remote": "file:///nowhere/r.git", "tag": "v1"}}}, "/nowhere/r.git"),
        ({"http": {"DATA": {"type": "file", "url": "http://127.0.0.1:9/d"}}}, "127.0.0.1:9"),
    ],
)
def test_what_cannot_be_fetched_is_named(section, place, run, tmp_path):
    (tmp_path / "spec.json").write_text(json.dumps(section))
    env = {"PONCHO_CACHE_DIR": str(tmp_path / "cache")}
    done = run("poncho_package_create", "spec.json", "e.tar.gz", status=1, env=env)
    assert place in done.stderr
    assert not (tmp_path / "e.tar.gz").exists()
    assert not list((tmp_path / "cache").rglob("*.tar.gz"))


def test_another_python_than_the_managers_is_refused_with_advice(run, tmp_path):
    (tmp_path / "spec.json").write_text('{"python": "3.99", "pip": []}')
    done = run("poncho_package_create", "spec.json", "e.tar.gz", status=None)
    assert done.returncode in (1, 2)
    assert "3.99" in done.stderr
    assert f"3.{sys.version_info.minor}" in done.stderr


def test_an_output_path_that_cannot_be_is_told_before_anything_is_built(run, tmp_path):
    (tmp_path / "spec.json").write_text('{"pip": ["packaging"]}')
    done = run("poncho_package_create", "spec.json", "missing/e.tar.gz", status=2)
    assert "no such directory" in done.stderr
    assert "mkdir -p missing" in done.stderr
    done = run("poncho_package_create", "spec.json", ".", status=2)
    assert "is a directory" in done.stderr


@pytest.mark.parametrize("name", ["nowhere.json", "dir"])
def test_an_input_that_is_not_a_specification(name, run, tmp_path):
    (tmp_path / "dir").mkdir()
    done = run("poncho_package_create", name, "e.tar.gz", status=2)
    assert name in done.stderr


def test_a_package_that_does_not_exist(run, tmp_path, shared_cache):
    cache = tmp_path / "cache"
    (tmp_path / "spec.json").write_text('{"pip": ["poncho-no-such-package-anywhere==1.0"]}')
    done = run("poncho_package_create", "spec.json", "e.tar.gz", status=1, env={"PONCHO_CACHE_DIR": str(cache)})
    assert "poncho-no-such-package-anywhere" in done.stderr
    assert len(done.stderr) < 1500
    assert not list(cache.rglob("*.tar.gz"))
    assert not (tmp_path / "e.tar.gz").exists()


def test_no_network_names_the_index_that_was_asked(run, tmp_path):
    index = "http://user:secret@127.0.0.1:9/simple"
    (tmp_path / "spec.json").write_text('{"pip": ["packaging==0.0.1"]}')
    env = {
        "PONCHO_CACHE_DIR": str(tmp_path / "cache"), "UV_DEFAULT_INDEX": index, "UV_INDEX_URL": index,
        "UV_HTTP_RETRIES": "0",
        "PIP_INDEX_URL": index, "PIP_EXTRA_INDEX_URL": "", "PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": "/dev/null",
    }  # fmt: skip
    done = run("poncho_package_create", "spec.json", "e.tar.gz", status=1, env=env)
    assert "127.0.0.1:9" in done.stderr
    assert "secret" not in done.stderr
    assert not list((tmp_path / "cache").rglob("*.tar.gz"))


def _can_mount() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not _can_mount(), reason="needs the right to mount a small file system (unshare -m)")
@pytest.mark.parametrize("what", ["cache", "output"])
def test_a_full_disk(what, run, programs, tmp_path, shared_cache):
    """A real file system of 4 MB: the error says so, and neither cache nor output holds anything after it."""
    (tmp_path / "spec.json").write_text('{"pip": ["packaging"]}')
    run("poncho_package_create", "spec.json", "whole.tar.gz")
    small = tmp_path / "small"
    small.mkdir()
    cache = small if what == "cache" else shared_cache
    output = small / "e.tar.gz" if what == "output" else tmp_path / "e.tar.gz"
    script = (
        'mount -t tmpfs -o size=4m,mode=700 none "$1" || exit 77; '
        'poncho_package_create --cache-dir "$2" spec.json "$3"; s=$?; '
        'echo left: $(find "$1" -name "*.tar.gz" -o -name "*partial*"); exit $s'
    )
    uv_cache = os.environ.get("UV_CACHE_DIR", str(tmp_path / "uv"))
    done = run(
        "unshare",
        "-m",
        "sh",
        "-c",
        script,
        "sh",
        str(small),
        str(cache),
        str(output),
        status=1,
        env={"UV_CACHE_DIR": uv_cache},
    )
    assert "space" in done.stderr
    assert done.stdout.strip() == "left:"


def test_usage_errors_are_status_2(run):
    for tool in ("poncho_package_create", "poncho_package_analyze", "poncho-wq"):
        assert run(tool, status=2).stderr
    assert run("poncho-wq", "nonsense", status=2).stderr
    assert run("poncho_package_create", "--help").stdout
    assert run("poncho-wq", "--version").stdout.startswith("poncho-wq ")


def test_importing_the_package_loads_no_engine_solver_or_yaml():
    heavy = [
        "work_queue",
        "ndcctools",
        "rattler",
        "yaml",
        "rich",
        "isal",
        "cloudpickle",
        "elftools",
        "filelock",
        "uv",
        "conda_pack",
    ]
    code = f"import sys, poncho_wq; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
