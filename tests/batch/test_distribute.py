"""distribute's YAML: the one of its documents as it is, its rules with their messages, and what becomes of a batch."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from poncho_wq.batch.distribute import load, parse
from poncho_wq.batch.model import Notification, Resources
from poncho_wq.errors import BatchError, SpecError
from tests.batch.conftest import cli, installed

DATA = Path(__file__).with_name("data")
# Absolute paths of the document's example: files of a test cannot be there.
ABSOLUTE = ("/path/to/", "/file/always/present/", "/another/file/", "/maybe/python/")

BUILD = """\
import os, sys
print("building with", sys.argv[1], sorted(os.listdir("input")), os.listdir("distribute_save"))
os.mkdir("solver")
open("solver/a.txt", "w").write("built\\n")
open("input/left", "w").close()
open("distribute_save/left", "w").close()
"""
RUN = """\
import json, os, sys
sys.path.insert(0, "input")
sys.dont_write_bytecode = True  # into the directory that is listed next
import utils_file
print(os.path.basename(sys.argv[0]), sys.argv[1], sorted(os.listdir("input")), os.listdir("distribute_save"))
print(open("solver/a.txt").read(), end="", file=sys.stderr)
with open("solver/a.txt", "a") as file:
    file.write("mine alone\\n")
os.mkdir("distribute_save/deep")
with open("distribute_save/deep/result.json", "w") as file:
    json.dump([json.load(open("input/input.json")), utils_file.X], file)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The document's batch, ``distribute-jobs.yaml``, with files made for it."""
    text = (DATA / "distribute-python.yaml").read_text()
    for place in ABSOLUTE:
        (tmp_path / place.strip("/")).mkdir(parents=True)
        text = text.replace(f" {place}", f" {tmp_path}{place}")
    (tmp_path / "distribute-jobs.yaml").write_text(text)
    for name, content in {
        "path/to/build.py": BUILD, "file/always/present/1.txt": "one", "another/file/2.json": "{}",
        "maybe/python/utils_file.py": "X = 'utils'\n", "execute_job.py": RUN, "job_configuration_file.json": "{}",
        "job_configuration_file_with_alias.json": '{"the": "alias"}',
    }.items():  # fmt: skip
        (tmp_path / name).write_text(content)
    return tmp_path


def test_the_document_s_yaml_as_it_is() -> None:
    """Tabs and all; only the files that it names are not here, and every one of them is told."""
    text = (DATA / "distribute-python.yaml").read_text()
    assert "\n\t  path: /path/to/build.py" in text
    with pytest.raises(BatchError) as caught:
        parse(text, source="FILE", directory=Path("/nowhere"))
    assert str(caught.value).splitlines() == [
        "FILE: python.initialize.build_file: no such file: /path/to/build.py",
        "FILE: python.initialize.required_files[0]: no such file: /file/always/present/1.txt",
        "FILE: python.initialize.required_files[1]: no such file: /another/file/2.json",
        "FILE: python.initialize.required_files[2]: no such file: /maybe/python/utils_file.py",
        "FILE: python.jobs[0].file: no such file: /nowhere/execute_job.py",
        "FILE: python.jobs[0].required_files[0]: no such file: /nowhere/job_configuration_file.json",
        "FILE: python.jobs[0].required_files[1]: no such file: /nowhere/job_configuration_file_with_alias.json",
    ]


@pytest.mark.parametrize("engine", ["local", "work_queue", "taskvine"])
def test_the_document_s_yaml_on_an_engine(engine: str, folder: Path) -> None:
    installed(engine)
    words = ("--engine", engine, "--workers", "2", "--feature", "gfortran", "--feature", "apptainer")
    environ = {}
    if engine == "taskvine":
        # Wherever this process found it: the tests' own environment says nothing of that.
        environ["PYTHONPATH"] = str(Path(importlib.import_module("ndcctools.taskvine").__file__ or "").parents[2])
    done = cli("run", "distribute-jobs.yaml", *words, cwd=folder, **environ)
    assert (done.returncode, done.stdout) == (
        0, f"2 of 2 jobs completed; results: {folder}/example_namespace/your_jobset_name\n",
    ), done.stderr  # fmt: skip
    results = folder / "example_namespace/your_jobset_name"
    assert (results / "_build/stdout.txt").read_text() == (
        "building with 1 ['2.json', 'optional_alias.txt', 'utils_file.py'] []\n"
    )
    assert (results / "job_1/stdout.txt").read_text() == (
        "execute_job.py 1 ['2.json', 'input.json', 'job_configuration_file.json', 'optional_alias.txt', "
        "'utils_file.py'] []\n"
    )
    assert (results / "job_1/stderr.txt").read_text() == "built\n"
    assert json.loads((results / "job_1/deep/result.json").read_text()) == [{"the": "alias"}, "utils"]
    status = json.loads(cli("status", "--json", cwd=folder).stdout)
    assert [(each["name"], each["words"]) for each in status["jobs"]] == [
        ("_build", "completed"),
        ("job_1", "completed"),
    ]


def _small(folder: Path, jobs: str, *, meta: str = "", rest: str = "") -> Path:
    (folder / "build.py").write_text("")
    file = folder / "b.yaml"
    file.write_text(
        f"meta:\n  batch_name: b\n  namespace: n\n{meta}python:\n  initialize:\n    build_file: build.py\n"
        f"  jobs:\n{jobs}{rest}"
    )
    return file


def _job(name: str, script: str = "run.py") -> str:
    return f"    - name: {name}\n      file: {script}\n"


@pytest.mark.parametrize("engine", ["local", "work_queue"])
def test_one_of_two_jobs_exits_3(engine: str, tmp_path: Path) -> None:
    installed(engine)
    (tmp_path / "good.py").write_text("open('distribute_save/r', 'w').write('good')")
    (tmp_path / "bad.py").write_text("import sys\nopen('distribute_save/r', 'w').write('part')\nsys.exit(3)")
    _small(tmp_path, _job("good", "good.py") + _job("bad", "bad.py"))
    done = cli("run", "b.yaml", "--engine", engine, "--workers", "1", cwd=tmp_path)
    assert done.returncode == 1
    assert (tmp_path / "n/b/good/r").read_text() == "good"
    assert (tmp_path / "n/b/bad/r").read_text() == "part"
    status = cli("status", cwd=tmp_path)
    assert status.returncode == 1
    assert re.search(r"^  bad +failed \(exit 3\) ", status.stdout, re.MULTILINE)
    assert re.search(r"^  good +completed ", status.stdout, re.MULTILINE)


@pytest.mark.parametrize("engine", ["local", "work_queue"])
def test_a_capability_that_no_worker_offers(engine: str, tmp_path: Path) -> None:
    installed(engine)
    (tmp_path / "run.py").write_text("")
    _small(tmp_path, _job("a"), meta="  capabilities: [python3, gfortran]\n")
    done = cli("run", "b.yaml", "--engine", engine, "--workers", "1", "--stall-limit", "3", cwd=tmp_path)
    assert done.returncode == 1
    assert (
        "error: None of the nodes could run the jobs. Aborted\n  _build: no worker has 1 core, gfortran\n"
        in done.stderr
    )


def test_a_build_that_fails(tmp_path: Path) -> None:
    (tmp_path / "run.py").write_text("")
    file = _small(tmp_path, _job("a"))
    (tmp_path / "build.py").write_text("raise SystemExit('no compiler here')")
    assert cli("run", file, cwd=tmp_path).returncode == 1
    status = cli("status", cwd=tmp_path).stdout
    assert "a       skipped (_build did not complete)" in status
    assert "  | no compiler here" in status
    # With the build mended, which the batch has a copy of, another batch is needed; this one can be tried again.
    assert cli("rerun", cwd=tmp_path).returncode == 1


def test_later_files_win_and_plain_strings_are_paths(tmp_path: Path) -> None:
    for name in ("run.py", "one", "two"):
        (tmp_path / name).write_text(name)
    text = (
        "meta: {batch_name: b, namespace: n}\npython:\n  initialize:\n    build_file: run.py\n    required_files:\n"
        "      - {path: one, alias: same}\n      - two\n  jobs:\n    - name: a\n      file: run.py\n"
        "      required_files: [{path: two, alias: same}]\n"
    )
    batch = parse(text, source="f", directory=tmp_path).batch
    build, job = batch.jobs
    assert [(each.name, Path(each.path or "").name) for each in build.inputs] == [
        ("run.py", "run.py"), ("input/same", "one"), ("input/two", "two"),
    ]  # fmt: skip
    assert [(each.name, Path(each.path or "").name) for each in job.inputs][2:] == [
        ("input/same", "one"), ("input/two", "two"), ("input/same", "two"),
    ]  # fmt: skip


@pytest.fixture
def parsed(tmp_path: Path) -> Callable[..., list[str]]:
    """``parsed(text)``: what is wrong with a batch, the files ``run.py`` and ``build.py`` being there."""
    for name in ("run.py", "build.py"):
        (tmp_path / name).touch()
    (tmp_path / "dir").mkdir()

    def parsed(text: str) -> list[str]:
        with pytest.raises(SpecError) as caught:
            parse(text, source="FILE", directory=tmp_path)
        return str(caught.value).replace(str(tmp_path), "DIR").splitlines()

    return parsed


META = "meta: {batch_name: b, namespace: n}\n"
INIT = "python:\n  initialize: {build_file: build.py}\n"
JOBS = "  jobs: [{name: a, file: run.py}]\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (META + INIT + "  jobs: []\n", "There were no actual jobs specified in the configuration file"),
        (META + INIT, "There were no actual jobs specified in the configuration file"),
        (
            META + INIT + "  jobs: [{name: a, file: run.py}, {name: a, file: run.py}]\n",
            "There was a duplicate job name in the config file: a",
        ),
        (
            META + INIT + "  jobs: [{name: a, file: run.py, required_file: []}]\n",
            "python.jobs[0]: unknown key 'required_file' (did you mean 'required_files'?)",
        ),
        (META + INIT + "  jobs: [{name: a, file: no.py}]\n", "python.jobs[0].file: no such file: DIR/no.py"),
        (META + INIT + "  jobs: [{name: a, file: dir}]\n", "python.jobs[0].file: not a file: DIR/dir"),
        (META + INIT + "  jobs: [{name: a}]\n", "python.jobs[0].file: is missing"),
        (META + INIT + "  jobs: [{file: run.py}]\n", "python.jobs[0].name: is missing"),
        (META + INIT + "  jobs: [a]\n", "python.jobs[0]: expected keys and values, got 'a'"),
        (META + INIT + "  jobs: a\n", "python.jobs: expected a list, got 'a'"),
        (
            META + INIT + "  jobs: [{name: a/b, file: run.py}]\n",
            "python.jobs[0].name: 'a/b' cannot be the name of a directory: no slash, no leading dot",
        ),
        (
            META + INIT + "  jobs: [{name: _build, file: run.py}]\n",
            "python.jobs[0].name: '_build' is the name of the build itself",
        ),
        (
            META + INIT + "  jobs: [{name: a, file: {path: run.py, aliass: x}}]\n",
            "python.jobs[0].file: unknown key 'aliass' (did you mean 'alias'?)",
        ),
        (
            META + INIT + "  jobs: [{name: a, file: run.py, required_files: [{path: run.py, alias: ../x}]}]\n",
            "python.jobs[0].required_files[0].alias: '../x' must be a name in the input directory",
        ),
        (INIT + JOBS, "meta: is missing"),
        ("meta: {namespace: n}\n" + INIT + JOBS, "meta.batch_name: is missing"),
        (
            "meta: {batch_name: b, namespace: n, matrix: me}\n" + INIT + JOBS,
            "meta.matrix: expected a name such as @your-user:matrix.org, got 'me'",
        ),
        (META + "pyton: {}\n" + INIT + JOBS, "unknown key 'pyton' (did you mean 'python'?)"),
        (META + "apptainer: {}\n" + INIT + JOBS, "apptainer: Apptainer batches are not run here; python ones are"),
        (META + INIT + JOBS + "slurm: {nodes: 2}\n", "slurm.nodes: nodes=2: a job runs on one worker"),
        (META + INIT + JOBS + "slurm: {ntasks: x}\n", "slurm.ntasks: expected a number from 1, got 'x'"),
        (
            META + INIT + JOBS + "slurm: {mem_per_cpu: lots}\n",
            "slurm.mem_per_cpu: expected an amount such as 500M or 4G, got 'lots'",
        ),
        (
            META + INIT + JOBS + "slurm: {time: soon}\n",
            "slurm.time: expected a time such as 30, 2:00:00 or 1-12, got 'soon'",
        ),
        (META + INIT + JOBS + "slurm: {cpu: 2}\n", "slurm: unknown key 'cpu' (expected "),
        (META + META + INIT + JOBS, "the key 'meta' is given twice"),
    ],
)
def test_bad_input(parsed: Callable[[str], list[str]], text: str, message: str) -> None:
    lines = parsed(text)
    assert len(lines) == 1
    if message.endswith("(expected "):
        assert lines[0].startswith(f"FILE: {message}")
    else:
        assert lines[0] == f"FILE: {message}"


def test_all_that_is_wrong_at_once_and_exit_status_2(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text(
        "meta: {batch_name: b, namespace: n, matrx: ~}\npython:\n  initialize: {build_file: no.py}\n"
        "  jobs: [{name: a, file: run.py, required_file: []}]\n"
    )
    done = cli("run", "b.yaml", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        "error: b.yaml: meta: unknown key 'matrx' (did you mean 'matrix'?)",
        "b.yaml: python.initialize.build_file: no such file: no.py",
        "b.yaml: python.jobs[0]: unknown key 'required_file' (did you mean 'required_files'?)",
        "b.yaml: python.jobs[0].file: no such file: run.py",
    ]
    assert not (tmp_path / ".poncho-batch").exists()


def test_no_yaml_and_no_file(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text("meta: [")
    with pytest.raises(SpecError, match=r"b\.yaml:2: not YAML"):
        load(tmp_path / "b.yaml")
    with pytest.raises(SpecError, match=r"no\.yaml: cannot be read: No such file"):
        load(tmp_path / "no.yaml")


def test_an_unquoted_matrix_name(tmp_path: Path) -> None:
    (tmp_path / "run.py").touch()
    (tmp_path / "build.py").touch()
    for name in ("@my-username:matrix.org", '"@my-username:matrix.org"', "@my-username:matrix.org  # me"):
        text = f"meta:\n  batch_name: b\n  namespace: n\n  matrix: {name}\n" + INIT + JOBS
        batch = parse(text, source="f", directory=tmp_path).batch
        assert batch.notifications == (Notification(kind="matrix", to="@my-username:matrix.org"),)


def test_slurm_s_words(tmp_path: Path) -> None:
    (tmp_path / "run.py").touch()
    (tmp_path / "build.py").touch()
    text = (
        META + INIT + "  jobs:\n    - {name: a, file: run.py, slurm: {ntasks: 3, time: '1-12'}}\n"
        "    - {name: b, file: run.py}\n"
        "slurm: {cpus_per_task: 2, mem_per_cpu: 1G, time: '30', partition: p, account: x, mail_user: m}\n"
    )
    loaded = parse(text, source="f", directory=tmp_path)
    build, a, b = loaded.batch.jobs
    assert a.resources == Resources(cores=6, memory=6144, walltime=36 * 3600.0)
    assert b.resources == build.resources == Resources(cores=2, memory=2048, walltime=1800.0)
    assert a.steps[0].argv == ("python3", "run.py", "6")
    assert loaded.notes == ("f: slurm: partition, account, mail_user: not used here",)


def test_capabilities(tmp_path: Path) -> None:
    (tmp_path / "run.py").touch()
    (tmp_path / "build.py").touch()
    text = "meta: {batch_name: b, namespace: n, capabilities: [gfortran, python3, gpu]}\n" + INIT + JOBS
    for job in parse(text, source="f", directory=tmp_path).batch.jobs:
        assert (job.features, job.resources.gpus) == (("gfortran",), 1)
