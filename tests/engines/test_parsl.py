"""Parsl apps on our executors, unchanged: real DataFlowKernel, real Work Queue, workers whose own Python is a trap."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import sysconfig
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from poncho_wq.engines.workers import TASKVINE, WORK_QUEUE, LocalWorkers
from poncho_wq.errors import EngineError, TaskError
from tests.engines.conftest import PATIENCE
from tests.engines.opened_engines import needed

parsl = pytest.importorskip("parsl", reason="Parsl is not installed: pip install parsl")

from parsl import File, bash_app, join_app, python_app  # noqa: E402
from parsl.app.errors import BashExitFailure  # noqa: E402
from parsl.config import Config  # noqa: E402
from parsl.executors.errors import InvalidResourceSpecification  # noqa: E402

from poncho_wq.engines.parsl_apps import app_call, checked_init, needs_of, parsl_requirement  # noqa: E402
from poncho_wq.parsl import PonchoTaskVineExecutor, PonchoWorkQueueExecutor, htex_launch_cmd  # noqa: E402

KINDS = ("work_queue", "taskvine")


@pytest.fixture(params=KINDS)
def run(
    request: pytest.FixtureRequest, trap: Path, tmp_path: Path, shared_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Any]]:
    """``run(**options)`` loads Parsl with our executor and a worker of two cores."""
    kind = request.param
    needed(kind)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PONCHO_CACHE_DIR", str(shared_cache))
    workers: list[LocalWorkers] = []

    def start(init_command: str = "", **options: Any) -> Any:
        if kind == "taskvine":
            from parsl.executors.taskvine import TaskVineManagerConfig

            config = TaskVineManagerConfig(port=0, init_command=init_command)
            executor: Any = PonchoTaskVineExecutor(worker_launch_method="manual", manager_config=config, **options)
        else:
            executor = PonchoWorkQueueExecutor(manual_workers=True, init_command=init_command, **options)
        parsl.load(Config(executors=[executor], run_dir=str(tmp_path / "runinfo"), usage_tracking=0))
        program = WORK_QUEUE if kind == "work_queue" else TASKVINE
        environ = {"PATH": f"{trap}:/usr/bin:/bin", "HOME": "/nonexistent", "PYTHONPATH": str(trap)}
        workers.append(LocalWorkers(executor._dispatcher.port, cores=2, program=program, environ=environ).__enter__())
        return executor

    try:
        yield start
    finally:
        try:
            parsl.dfk().cleanup()
        except parsl.errors.NoDataFlowKernelError:
            pass
        parsl.clear()
        for each in workers:
            each.stop()


@pytest.mark.parametrize("name", ["python_env", "condor_requirements", "batch_options"])
def test_what_a_factory_cannot_have_is_refused(name: str) -> None:
    from parsl.executors.taskvine import TaskVineFactoryConfig

    with pytest.raises(EngineError, match=f"{name} of the factory_config is not offered"):
        PonchoTaskVineExecutor(factory_config=TaskVineFactoryConfig(**{name: "x"}))


def test_a_factory_s_workers_are_told_what_they_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from parsl.executors.taskvine import TaskVineFactoryConfig, TaskVineManagerConfig

    opened: dict[str, Any] = {}
    monkeypatch.setattr("poncho_wq.engines.parsl_executors.open_engine", lambda kind, **options: opened.update(options))
    executor = PonchoTaskVineExecutor(
        manager_config=TaskVineManagerConfig(project_password_file="words"),
        factory_config=TaskVineFactoryConfig(memory=500, gpus=1, worker_options="--single-shot -o 'a log'"),
    )
    executor.run_dir = str(tmp_path)
    executor._open()
    assert opened["worker_options"] == ["--memory=500", "--gpus=1", "--single-shot", "-o", "a log"]
    assert opened["password_file"] == "words"


@python_app
def where(number: int) -> tuple[int, str, int, bool]:
    import os
    import sys

    return number, sys.prefix, os.stat(sys.prefix).st_ctime_ns, "parsl" in sys.modules


@python_app
def fail() -> None:
    raise ValueError("on purpose")


@python_app
def read(file: Any) -> str:
    with open(file) as stream:
        return stream.read()


@bash_app
def shout(word: str, inputs: Any = (), outputs: Any = (), stdout: Any = None) -> str:
    return f"tr a-z A-Z < {inputs[0]} > {outputs[0]}; echo {word} $PONCHO_PREFIX $MARK"


@bash_app
def exit_with(status: int) -> str:
    return f"exit {status}"


@join_app
def all_of(count: int) -> list[Any]:
    return [where(number) for number in range(count)]


@bash_app
def with_numpy() -> str:
    import numpy

    return f"echo {numpy.pi}"


def test_python_apps_run_in_an_environment_of_their_own_unpacked_once(run: Callable[..., Any]) -> None:
    run()
    found = [each.result(PATIENCE) for each in [where(number) for number in range(5)]]
    assert [each[0] for each in found] == list(range(5))
    assert len({each[2] for each in found}) == 1
    assert not any(each[1].startswith((sys.prefix, sys.base_prefix)) for each in found)
    # Nor has Parsl been imported: the user's function does not ask for it.
    assert not any(each[3] for each in found)
    assert [each[0] for each in all_of(3).result(PATIENCE)] == [0, 1, 2]


def test_exceptions_come_back_with_the_traceback_there(run: Callable[..., Any]) -> None:
    run()
    with pytest.raises(ValueError, match="on purpose") as caught:
        fail().result(PATIENCE)
    assert isinstance(caught.value.__cause__, TaskError)
    assert 'raise ValueError("on purpose")' in str(caught.value.__cause__)


def test_bash_apps_with_files_streams_and_an_init_command(run: Callable[..., Any], tmp_path: Path) -> None:
    run(init_command="export MARK=marked")
    (tmp_path / "in.txt").write_text("abc\n")
    app = shout("hello", inputs=[File("in.txt")], outputs=[File("out.txt")], stdout="said.txt")
    assert app.result(PATIENCE) == 0
    assert (tmp_path / "out.txt").read_text() == "ABC\n"
    assert re.fullmatch(r"hello \S+ marked\n", (tmp_path / "said.txt").read_text())
    assert read(File("in.txt")).result(PATIENCE) == "abc\n"
    with pytest.raises(BashExitFailure, match="exit code 3"):
        exit_with(3).result(PATIENCE)


def test_one_environment_for_all_apps_gets_parsl(run: Callable[..., Any], tmp_path: Path) -> None:
    run(environment={"env": {"MARK": "given"}})
    (tmp_path / "in.txt").write_text("abc\n")
    shout("hi", inputs=[File("in.txt")], outputs=[File("out.txt")], stdout="said.txt").result(PATIENCE)
    assert (tmp_path / "said.txt").read_text().endswith("given\n")


def test_a_bash_app_is_analyzed_through_its_wrapping() -> None:
    from poncho_wq.analyze import analyze

    spec = analyze(with_numpy.wrapped_remote_function)
    names = {re.split(r"[^A-Za-z0-9-]", str(each), maxsplit=1)[0] for each in spec.pip}
    assert names == {"numpy", "parsl"}


# -- what an app's call is read as


def _parsl_function(app: Any) -> Any:
    return app.func


def test_relative_files_are_staged_and_absolute_ones_are_not(tmp_path: Path) -> None:
    kwargs = {
        "inputs": [File("a"), File("/b"), File("http://c.example/d")],
        "outputs": [File("e")],
        "other": File("f"),
        "stdout": "g",
        "stderr": ("/h", "a"),
    }
    call = app_call(_parsl_function(where), (File("i"), 3), kwargs, shared_fs=False, cache_inputs=True)
    assert {(file.name, file.output, file.cache) for file in call.files} == {
        ("a", False, True), ("f", False, True), ("i", False, True), ("e", True, False), ("g", True, False),
    }  # fmt: skip
    assert call.function is where.func.__wrapped__


def test_on_a_shared_file_system_paths_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = File("a")
    call = app_call(where.func, (given,), {"outputs": [File("b")], "stdout": "c"}, shared_fs=True, cache_inputs=False)
    assert call.files == ()
    assert call.args[0].filepath == str(tmp_path / "a")
    assert call.kwargs["outputs"][0].filepath == str(tmp_path / "b")
    assert call.kwargs["stdout"] == (str(tmp_path / "c"), "a+")
    assert given.local_path is None


def test_resources_are_all_or_none() -> None:
    assert needs_of({}, retries=1, strict=True).cores is None
    assert needs_of({"cores": 1, "memory": 2, "disk": 3}, retries=1, strict=True).memory == 2
    for wrong in ({"cores": 1}, {"colour": "red"}):
        with pytest.raises(InvalidResourceSpecification):
            needs_of(wrong, retries=1, strict=True)


@pytest.mark.parametrize(
    "text",
    [
        "conda activate other", "source /opt/venv/bin/activate", ". venv/bin/activate", "export PYTHONPATH=/x",
        "ulimit -s 100; exec /opt/python", "cd /scratch", "module load gcc Python/3.9", "true && micromamba activate x",
        "PYTHONHOME=/x", "/opt/conda/bin/conda activate x", "if true; then conda activate x; fi",
        'eval "$(conda shell.bash hook)"',
    ],
)  # fmt: skip
def test_an_init_command_that_leads_outside_is_refused(text: str) -> None:
    with pytest.raises(EngineError, match="init_command"):
        checked_init(text)


@pytest.mark.parametrize("text", ["", "export OMP_NUM_THREADS=1;", "ulimit -c 0", "module load gcc", ". ./settings.sh"])
def test_other_init_commands_are_taken(text: str) -> None:
    assert checked_init(text).strip() == text.rstrip(";")


@pytest.mark.parametrize("options", [{"coprocess": True}, {"autolabel": True}, {"init_command": "conda activate x"}])
def test_what_is_not_offered_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(EngineError):
        PonchoWorkQueueExecutor(**options)


# -- HighThroughputExecutor


def test_htex_workers_run_inside_the_environment(
    tmp_path: Path, shared_cache: Path, programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from parsl.executors import HighThroughputExecutor
    from parsl.providers import LocalProvider

    # Parsl pickles a function by reference to its module, and there is none of ours in the environment.
    path_there = python_app(sysconfig.get_path)
    # For Parsl's own interchange, which runs here.
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("PONCHO_CACHE_DIR", str(shared_cache))
    try:
        place = tmp_path / "node's own {disk}"
        executor = HighThroughputExecutor(
            address="127.0.0.1", max_workers_per_node=1, encrypted=False, provider=LocalProvider(init_blocks=1),
            launch_cmd=htex_launch_cmd({"env": {"WORD": "htex"}}, unpack_to=place),
        )  # fmt: skip
        with parsl.load(Config(executors=[executor], run_dir=str(tmp_path / "runinfo"), usage_tracking=0)):
            prefix = path_there("data").result(PATIENCE)
    finally:
        parsl.clear()
    assert Path(prefix).parent == place


# -- Debian's binding under ndcctools' name


def _python(code: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], env={**os.environ, **environ}, capture_output=True, text=True,
        timeout=PATIENCE,
    )  # fmt: skip


def test_the_shim_serves_spawned_processes_too(tmp_path: Path) -> None:
    needed("work_queue")
    if importlib.util.find_spec("ndcctools") is not None:
        pytest.skip("a real ndcctools is installed, in front of which nothing is put")
    script = tmp_path / "program.py"
    script.write_text(
        textwrap.dedent("""\
        import multiprocessing

        def child(answer):
            from ndcctools.work_queue import WorkQueue
            answer.put(WorkQueue(0).port > 0)

        if __name__ == "__main__":
            from poncho_wq.parsl import offer_ndcctools
            assert offer_ndcctools()
            import parsl.executors.workqueue.executor as stock
            assert stock._work_queue_enabled
            context = multiprocessing.get_context("spawn")
            answer = context.Queue()
            process = context.Process(target=child, args=(answer,))
            process.start()
            print(answer.get(timeout=60))
            process.join()
        """)
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=PATIENCE)
    assert done.stdout == "True\n", done.stderr


def test_the_shim_is_never_in_front_of_a_real_install(tmp_path: Path) -> None:
    package = tmp_path / "ndcctools"
    package.mkdir()
    (package / "__init__.py").touch()
    code = """
        from poncho_wq.engines.parsl_shim import offer_ndcctools
        print(offer_ndcctools())
        import ndcctools.work_queue
        print(ndcctools.work_queue.REAL)
    """
    assert "before `import parsl`" in _python("import parsl" + code.replace("\n        ", "\n")).stderr
    without = _python(code, PYTHONPATH=str(tmp_path))
    assert "EngineError: the ndcctools that is installed here has no work_queue" in without.stderr
    (package / "work_queue.py").write_text("REAL = 'real'\n")
    assert _python(code, PYTHONPATH=str(tmp_path)).stdout == "False\nreal\n"


def test_without_parsl_the_error_says_how_to_get_it(tmp_path: Path) -> None:
    (tmp_path / "parsl.py").write_text("raise ModuleNotFoundError('gone', name='parsl')\n")
    done = _python("from poncho_wq.parsl import PonchoWorkQueueExecutor", PYTHONPATH=str(tmp_path))
    assert "EngineNotInstalled" in done.stderr
    assert "pip install parsl" in done.stderr


# -- Parsl's own tests

SUBSET = (
    "test_python_apps/test_basic.py", "test_python_apps/test_join.py", "test_python_apps/test_fail.py",
    "test_python_apps/test_outputs.py", "test_bash_apps/test_basic.py", "test_bash_apps/test_error_codes.py",
    "test_error_handling/test_resource_spec.py",
)  # fmt: skip


@pytest.mark.slow
def test_a_fixed_part_of_parsls_own_tests_passes(tmp_path: Path, shared_cache: Path) -> None:
    needed("work_queue")
    tests = Path(parsl.__file__).parent / "tests"
    # Parsl's tests are for a pytest before 8, which is put in front of ours for that one process.
    old = tmp_path / "pytest7"
    subprocess.run(
        [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--target", str(old), "pytest<8"], check=True
    )
    (tmp_path / "config.py").write_text(
        textwrap.dedent("""\
        from parsl.config import Config
        from poncho_wq.parsl import PonchoWorkQueueExecutor

        def fresh_config():
            executor = PonchoWorkQueueExecutor(
                address="127.0.0.1", worker_options="--cores 2 -t 60", environment={"pip": ["pytest<8"]}
            )
            return Config(executors=[executor], usage_tracking=0)
        """)
    )
    done = subprocess.run(
        [
            sys.executable, "-m", "pytest", *(str(tests / each) for each in SUBSET), "--config", "config.py",
            "-m", "not local", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), "-c", os.devnull,
        ],
        cwd=tmp_path, capture_output=True, text=True, timeout=280,
        env={
            **os.environ, "PYTHONPATH": str(old), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "PONCHO_CACHE_DIR": str(shared_cache),
        },
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) >= 10, done.stdout


def test_this_parsl_is_what_is_added() -> None:
    assert parsl_requirement() == f"parsl=={parsl.__version__}"
