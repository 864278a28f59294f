"""What a function task ships, and what is read back."""

from __future__ import annotations

import ast
import base64
import copyreg
import io
import math
import os
import pickle
import subprocess
import sys
import threading
import types
import zipfile
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poncho_wq import payload, program, runner, staging
from poncho_wq.errors import EngineError

SOURCE = Path(runner.__file__)

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner) | st.frozensets(st.text())
    ),
    max_leaves=20,
)


def run(function: Any, *args: Any, result: Path, code: Path | None = None, **kwargs: Any) -> tuple[int, str, Any]:
    """Run a call as a worker would, with this interpreter; returns exit status, output and outcome."""
    shipped = payload.pickle_function(function)
    arguments = payload.pickle_arguments(args, kwargs)
    word = arguments.word
    if arguments.inline is None:
        content = Path(arguments.file.path).read_bytes() if arguments.file else (arguments.text or "").encode()
        (result.parent / payload.ARGUMENTS_NAME).write_bytes(content)
    argv = [sys.executable, "-s", program.runner_program().path, shipped.path, word, str(result)]
    done = subprocess.run(argv + ([str(code)] if code else []), text=True, cwd=result.parent, check=False,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60,
                          env={k: v for k, v in os.environ.items() if not k.startswith("PYTHON")})  # fmt: skip
    return done.returncode, done.stdout, payload.load_result(result)


@pytest.fixture
def result(tmp_path: Path) -> Path:
    return tmp_path / payload.RESULT_NAME


# -- arguments


@given(args=st.lists(values, max_size=4).map(tuple), kwargs=st.dictionaries(st.text(), values, max_size=3))
def test_arguments_come_out_as_they_went_in(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    arguments = payload.pickle_arguments(args, kwargs)
    if arguments.inline is not None:
        assert runner._load_arguments(arguments.word) == (args, kwargs)
        assert len(arguments.inline) <= payload.INLINE_LIMIT
        assert arguments.inline.isascii()
    assert arguments.modules == frozenset()


@pytest.mark.parametrize("size", [*range(1500, 1560, 7), 32_000, 32_768, 33_000, 1_000_000])
def test_each_size_takes_its_way(size: int, result: Path) -> None:
    blob = os.urandom(size)
    arguments = payload.pickle_arguments((blob,), {})
    assert [arguments.inline, arguments.text, arguments.file].count(None) == 2
    name = result.parent / "arguments"
    if arguments.inline is not None:
        assert runner._load_arguments(arguments.inline) == ((blob,), {})
    elif arguments.text is not None:
        name.write_text(arguments.text)
        assert runner._load_arguments(f"@{name}") == ((blob,), {})
        # Work Queue takes the length of a buffer from the text, and text alone.
        assert arguments.text.isascii()
    else:
        assert arguments.file is not None
        assert runner._load_arguments(f"@{arguments.file.path}") == ((blob,), {})


# -- functions


def test_a_function_of_an_installed_package_goes_by_name() -> None:
    import packaging.version

    shipped = payload.pickle_function(packaging.version.parse)
    content = Path(shipped.path).read_bytes()
    assert b"packaging" in content
    assert len(content) < 200


def test_payload_helpers_go_by_value_and_the_registry_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, result: Path
) -> None:
    (tmp_path / "payload_helper.py").write_text("class Box:\n    n = 20\ndef helped(x):\n    return x + Box.n\n")
    (tmp_path / "payload_main.py").write_text("from payload_helper import helped\ndef f(x): return helped(x) + 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import payload_main  # type: ignore[import-not-found]

    before = cloudpickle.list_registry_pickle_by_value()
    result = tmp_path / "elsewhere" / "result"
    result.parent.mkdir()
    status, said, outcome = run(payload_main.f, 1, result=result)
    assert (status, said, outcome.value) == (0, "", 22)
    assert cloudpickle.list_registry_pickle_by_value() == before


def test_what_the_user_registered_stays_registered() -> None:
    cloudpickle.register_pickle_by_value(runner)
    try:
        payload.pickle_function(lambda: runner.main)
        assert "poncho_wq.runner" in cloudpickle.list_registry_pickle_by_value()
    finally:
        cloudpickle.unregister_pickle_by_value(runner)


def test_which_modules_are_local() -> None:
    import hypothesis
    import numpy
    import packaging

    for module in (sys, os, math, io, numpy, packaging, hypothesis):
        assert not payload.is_local(module.__name__), module
    assert payload.is_local(__name__)
    assert payload.is_local("poncho_wq.runner")
    assert not payload.is_local("no_such_module")


# -- the runner's archive


def test_the_program_is_deterministic_and_names_nothing_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    first = program.runner_program()
    # marshal, unless told otherwise, marks what something else in the process refers to as well.
    elsewhere = compile(SOURCE.read_text(encoding="utf-8"), "elsewhere", "exec")
    program._runner_program.cache_clear()
    program._assembled.cache_clear()
    monkeypatch.setenv("TZ", "Pacific/Kiritimati")
    assert first.name == program.runner_program().name
    del elsewhere
    content = Path(first.path).read_bytes()
    parts = [content] + [
        base64.b64decode(line.split()[2])
        for line in content.splitlines()
        if line.startswith((b"# SOURCES ", b"# CLOUDPICKLE "))
    ]
    assert len(parts) == 3
    for part in parts:
        assert str(SOURCE.parent).encode() not in part, "it names this machine's directories"
        assert str(Path(cloudpickle.__file__).parent).encode() not in part


def test_lean_helpers_are_cloudpickle_s_own() -> None:
    import cloudpickle.cloudpickle as whole

    namespace: dict[str, Any] = {"__name__": "lean"}
    exec(program.lean_cloudpickle(), namespace)
    for name in ("_make_function", "_function_setstate", "_make_cell", "_make_empty_cell", "_builtin_type"):
        assert namespace[name].__code__.co_code == getattr(whole, name).__code__.co_code, name
    # What keeps a record of classes must be one for all of them.
    assert not {"_make_skeleton_class", "_lookup_class_or_track"} & set(namespace)


def test_a_plain_function_needs_neither_cloudpickle_nor_pickle(result: Path) -> None:
    factor, private = 2, "_poncho_cloudpickle"

    def loaded(x: int) -> tuple[int, list[str]]:
        import sys

        return factor * x, [name for name in sys.modules if name in {"pickle", "inspect", "dis", private}]

    status, said, outcome = run(loaded, 21, result=result)
    assert (status, said, outcome.value) == (0, "", (42, []))


def test_functools_is_the_real_one_in_the_function(result: Path) -> None:
    def ask() -> str:
        import functools

        return str(functools.lru_cache.__module__)

    assert run(ask, result=result)[2].value == "functools"


def test_classes_by_value_come_through_the_whole_cloudpickle(result: Path) -> None:
    class Base:
        factor = 3

    class Derived(Base):
        def times(self, x: int) -> int:
            return self.factor * x + len(super().__repr__()[:0])

    status, _, outcome = run(lambda d, x: (d.times(x), type(d).__mro__[1].__name__), Derived(), 5, result=result)
    assert (status, outcome.value) == (0, (15, "Base"))


# -- the end of the process


def _ends(body: str, result: Path) -> tuple[int, str]:
    space: dict[str, Any] = {"__name__": "__main__"}
    exec("def f(path):\n" + "".join(f"    {line}\n" for line in body.splitlines()), space)
    status, said, outcome = run(space["f"], str(result.parent / "left"), result=result)
    assert outcome.kind == "value"
    return status, said


def test_exit_functions_run_and_streams_are_flushed(result: Path) -> None:
    status, said = _ends(
        "import atexit, sys\natexit.register(print, 'exit function')\nprint('out')\nsys.stderr.write('err')", result
    )
    assert status == 0
    assert sorted(said.replace("err", "err\n").split()) == ["err", "exit", "function", "out"]


def test_threads_are_waited_for(result: Path) -> None:
    body = "import threading, time\ndef late():\n    time.sleep(0.3)\n    open(path, 'w').close()\n"
    status, _ = _ends(body + "threading.Thread(target=late).start()", result)
    assert status == 0
    assert (result.parent / "left").exists()


@pytest.mark.skipif(not hasattr(threading, "_register_atexit"), reason="Python 3.9's and later")
def test_what_is_to_be_called_before_threads_are_waited_for(result: Path) -> None:
    """An internal of Python's, which libraries use; that of idle pools of threads need not be called."""
    body = "import concurrent.futures, threading\nconcurrent.futures.ThreadPoolExecutor()\n"
    status, said = _ends(body + "threading._register_atexit(print, 'first')", result)
    assert status == 0
    assert said.split() == ["first"]


def test_a_library_s_own_way_to_wait_for_threads(result: Path) -> None:
    body = "import threading\ndef wait():\n    print('waited')\nwait.__module__ = 'another'\nthreading._shutdown = wait"
    status, said = _ends(body, result)
    assert (status, said.split()) == (0, ["waited"])


def test_a_pool_that_is_left_running_ends_its_work(result: Path) -> None:
    body = "import concurrent.futures, time\ndef late():\n    time.sleep(0.3)\n    open(path, 'w').close()\n"
    status, _ = _ends(body + "concurrent.futures.ThreadPoolExecutor().submit(late)", result)
    assert status == 0
    assert (result.parent / "left").exists()


def test_data_of_a_file_left_open_is_written(result: Path) -> None:
    status, _ = _ends("global kept\nkept = open(path, 'w')\nkept.write('words')", result)
    assert status == 0
    assert (result.parent / "left").read_text() == "words"


def test_an_exit_function_that_fails_says_so(result: Path) -> None:
    status, said = _ends("import atexit\natexit.register(lambda: 1 / 0)", result)
    assert status == 0
    assert said.count("ZeroDivisionError") == 1


def test_stdout_that_takes_nothing_is_status_120_as_always(result: Path) -> None:
    status, _ = _ends("import os, sys\nprint('words')\nos.dup2(os.open('/dev/full', os.O_WRONLY), 1)", result)
    assert status == 120


def test_the_runner_is_python_3_7_without_dependencies() -> None:
    tree = ast.parse(SOURCE.read_text(), feature_version=(3, 7))
    imported = {
        alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    } | {str(node.module).split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported <= sys.stdlib_module_names
    assert not [node for node in ast.walk(tree) if isinstance(node, (ast.NamedExpr, ast.Match))]


def test_the_runner_imports_little() -> None:
    code = (
        "import sys; before = set(sys.modules)\n"
        f"exec(compile(open({str(SOURCE)!r}).read(), 'runner', 'exec'), {{'__name__': 'x'}})\n"
        "print(*sorted(set(sys.modules) - before))"
    )
    argv = [sys.executable, "-I", "-S", "-c", code]
    loaded = subprocess.run(argv, text=True, capture_output=True, check=True).stdout.split()
    assert not {"typing", "pathlib", "json", "traceback", "zipfile", "importlib.util", "inspect"} & set(loaded)


# -- results


def test_functions_of_another_version_are_refused(result: Path, tmp_path: Path) -> None:
    shipped = payload.pickle_function(len)
    other = tmp_path / "function"
    other.write_bytes(Path(shipped.path).read_bytes().replace(payload.PYTHON.encode(), b"3.7", 1))
    assert runner.main([str(other), "x", str(result)]) == 1
    outcome = payload.load_result(result)
    assert outcome is not None
    assert outcome.kind == "failed"
    assert f"submitted from Python 3.7 but its environment has Python {payload.PYTHON}" in outcome.message


def test_a_result_that_does_not_fit_on_the_disk(result: Path) -> None:
    def fill() -> bytes:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
        return bytes(100_000)

    status, _, outcome = run(fill, result=result)
    assert status == 1
    assert "the result could not be written: OSError: [Errno 27] File too large" in outcome.message
    assert list(result.parent.iterdir()) == [result], "and no partial one"


def test_not_even_the_error_fits(result: Path) -> None:
    def fill() -> bytes:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))
        return bytes(100)

    status, _, outcome = run(fill, result=result)
    assert status == 1
    assert outcome is None
    assert list(result.parent.iterdir()) == []


def test_a_process_killed_while_it_writes_leaves_no_result(result: Path) -> None:
    class Deadly:
        def __reduce__(self) -> Any:
            os.kill(os.getpid(), 9)

    status, _, outcome = run(lambda: [bytes(10_000_000), Deadly()], result=result)
    assert status == -9
    assert outcome is None


def test_a_deep_result(result: Path) -> None:
    def deep() -> list[Any]:
        nested: list[Any] = []
        for _ in range(100_000):
            nested = [nested]
        return nested

    _, _, outcome = run(deep, result=result)
    assert outcome.kind == "failed"
    assert "cannot be pickled: " in outcome.message


def test_functions_and_classes_made_on_the_worker(result: Path) -> None:
    def make() -> tuple[Any, Any]:
        class Made:
            word = "made there"

        return (lambda x: x + 1), Made()

    _, _, outcome = run(make, result=result)
    function, made = outcome.value
    assert function(1) == 2
    assert made.word == "made there"


def test_the_environment_s_own_cloudpickle_is_the_function_s(result: Path) -> None:
    (result.parent / "cloudpickle.py").write_text("VERSION = 'of the environment'\n")

    def ask() -> tuple[str, bool]:
        import sys

        sys.path.remove(next(p for p in sys.path if p.endswith("site-packages")))
        import cloudpickle as theirs

        return theirs.VERSION, hasattr(theirs, "dumps")

    status, said, outcome = run(ask, result=result)
    assert status == 0, said
    assert outcome.value == ("of the environment", False)


def test_an_archive_of_local_code(result: Path) -> None:
    code = result.parent / "code.zip"
    with zipfile.ZipFile(code, "w") as archive:
        archive.writestr("mine/__init__.py", "from mine.deep import word\n")
        archive.writestr("mine/deep.py", "word = 'shipped'\n")

    def use() -> str:
        import mine  # type: ignore[import-not-found]

        return str(mine.word)

    _, said, outcome = run(use, result=result, code=code)
    assert outcome.value == "shipped", said
    assert (result.parent / "code/mine/deep.py").exists()
    code = code.rename(code.with_name("other.zip"))
    with zipfile.ZipFile(code, "a") as archive:
        archive.writestr("packaging.py", "")
    _, _, outcome = run(use, result=result, code=code)
    assert outcome.kind == "failed"
    assert "'packaging' is shipped with the task, but the environment has another one" in outcome.message


def test_nothing_at_all(tmp_path: Path) -> None:
    assert payload.load_result(tmp_path / "none") is None


def good_result(tmp_path: Path) -> bytes:
    path = tmp_path / "good"
    runner._write(str(path), b"value", "", "", {"a": list(range(50))})
    return path.read_bytes()


def test_a_result_cut_anywhere_is_never_a_wrong_value(tmp_path: Path) -> None:
    whole = good_result(tmp_path)
    path = tmp_path / "cut"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        outcome = payload.load_result(path)
        assert outcome is not None
        assert outcome.kind == "failed", length
        assert outcome.message


@given(junk=st.binary(max_size=200))
@settings(max_examples=200)
def test_any_file_is_some_outcome(junk: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "junk-result"
    path.write_bytes(junk)
    outcome = payload.load_result(path)
    assert outcome is not None
    assert outcome.kind == "failed"


def test_what_cannot_be_sent_says_so() -> None:
    with pytest.raises(EngineError) as caught:
        payload.pickle_arguments((1, [threading.Lock()]), {})
    assert "argument 2 cannot be sent to a worker" in str(caught.value)
    assert "inside the function" in str(caught.value)


# -- staging


def test_shared_content_is_one_file_while_anyone_needs_it() -> None:
    one, two = staging.share("x", b"content"), staging.share("x", b"content")
    assert one is two
    path = Path(one.path)
    assert path.read_bytes() == b"content"
    assert path.stat().st_mode & 0o077 == 0 or path.parent.stat().st_mode & 0o077 == 0, "for this user only"
    del one
    assert path.exists()
    del two
    assert not path.exists()
    assert Path(staging.share("x", b"content").path).exists()


def test_a_link_outlives_an_evicted_target(tmp_path: Path) -> None:
    """Where both lie on one file system; the cache may drop an environment while tasks wait for it."""
    target = tmp_path / "target"
    target.write_text("still here")
    path = Path(staging.link("kept", target))
    if path.is_symlink():
        pytest.skip("the staging directory lies on another file system")
    target.unlink()
    assert path.read_text() == "still here"


def test_where_no_hard_link_can_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def another_file_system(*args: Any, **kwargs: Any) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", another_file_system)
    target = tmp_path / "target"
    target.write_text("there")
    path = Path(staging.link("far", target))
    assert path.is_symlink()
    assert path.read_text() == "there"


def test_links_follow_their_target(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("1")
    two.write_text("2")
    assert staging.link("a-link", one) == staging.link("a-link", one)
    assert Path(staging.link("a-link", two)).read_text() == "2"


def test_the_format_of_arguments_is_plain_pickle() -> None:
    """Base64 text and a raw pickle are told apart by the first byte."""
    assert pickle.dumps(((), {}), 5)[:1] == b"\x80"
    assert b"\x80" not in base64.b64encode(bytes(range(256)))


def test_tblib_s_ways_of_pickling_stay_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parsl registers them for the whole process when it is imported; environments without Parsl have no tblib."""
    support = pytest.importorskip("tblib.pickling_support", reason="tblib, which comes with Parsl, is not installed")
    monkeypatch.setitem(copyreg.dispatch_table, ValueError, support.pickle_exception)
    monkeypatch.setitem(copyreg.dispatch_table, types.TracebackType, support.pickle_traceback)
    error = ValueError("as an argument")
    assert b"tblib" in pickle.dumps(error)
    arguments = payload.pickle_arguments((error,), {})
    content = base64.b64decode(arguments.inline or "")
    assert b"tblib" not in content
    assert str(pickle.loads(content)[0][0]) == "as an argument"
    try:
        raise error
    except ValueError:
        with pytest.raises(EngineError, match="traceback"):
            payload.pickle_arguments((error.__traceback__,), {})


def _stage(tmp: Path) -> subprocess.Popen[str]:
    """A process with a staging directory in ``tmp``, which then waits."""
    code = "from poncho_wq import staging; it = staging.share('x', b'1'); print(it.path, flush=True); input()"
    environ = {**os.environ, "TMPDIR": str(tmp)}
    return subprocess.Popen(
        [sys.executable, "-c", code], env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_what_a_killed_process_staged_is_removed_by_the_next(tmp_path: Path) -> None:
    foreign = tmp_path / "poncho-1-abcd"  # nobody has signed it
    foreign.mkdir()
    elsewhere = tmp_path / "poncho-2-abcd"  # of another machine, or of a time before
    elsewhere.mkdir()
    (elsewhere / ".owner").write_text("another")
    with _stage(tmp_path) as dead, _stage(tmp_path) as living:
        try:
            assert dead.stdout is not None
            assert living.stdout is not None
            theirs, kept = Path(dead.stdout.readline().strip()), Path(living.stdout.readline().strip())
            assert theirs.is_file()
            dead.kill()
            dead.wait()
            assert theirs.is_file()
            with _stage(tmp_path) as third:
                assert third.stdout is not None
                third.stdout.readline()
                assert not theirs.parent.exists()
                assert kept.is_file()
                third.communicate("\n")
        finally:
            dead.kill()
            living.communicate("\n")
    assert {path.name for path in tmp_path.iterdir()} == {foreign.name, elsewhere.name}


# -- a result on stdout


def _said(function: Any, *args: Any, result: Path, status: int = 0) -> tuple[str, payload.Outcome | None]:
    """What is left of stdout, and the outcome that was in it."""
    shipped, arguments = payload.pickle_function(function), payload.pickle_arguments(args, {})
    out = result.parent / "out"
    with out.open("wb") as file:
        argv = [sys.executable, "-s", program.runner_program().path, shipped.path, arguments.word, f"+m1:{result.name}"]
        done = subprocess.run(argv, cwd=result.parent, stdout=file, stderr=file, check=False, timeout=60)
    assert done.returncode == status, out.read_text()
    said, text = payload.split_said(out.read_text(), "m1")
    return said, None if text is None else payload.load_said(text)


def test_a_result_on_stdout(result: Path) -> None:
    def speak(value: Any) -> Any:
        print("before", end="")
        return value

    for value in (None, "\n", ["x" * 1000], lambda: 7):
        said, outcome = _said(speak, value, result=result)
        assert said == "before"
        assert outcome is not None
        assert outcome.kind == "value"
        assert not result.exists()
        assert outcome.value == value or outcome.value() == 7
    assert list(result.parent.iterdir()) == [result.parent / "out"]


def test_a_result_that_is_too_long_for_stdout(result: Path) -> None:
    def make(what: str) -> Any:
        if what == "many pieces":
            return [str(n) for n in range(10_000)]
        if what == "one piece":
            return "x" * 100_000
        # Plain pickle gives this up in the middle.
        return ["y" * 9_000, "z" * 9_000, lambda: 7]

    for what in ("many pieces", "one piece", "a function at its end"):
        said, outcome = _said(make, what, result=result, status=payload.RESULT_IN_FILE)
        assert (said, outcome) == ("", None)
        found = payload.load_result(result)
        assert found is not None
        assert found.value[:2] == make(what)[:2]
        assert len(found.value) == len(make(what))
        result.unlink()
        assert list(result.parent.iterdir()) == [result.parent / "out"]


def test_an_exception_is_in_the_file(result: Path) -> None:
    _, outcome = _said(lambda: 1 / 0, result=result, status=1)
    assert outcome is None
    found = payload.load_result(result)
    assert found is not None
    assert isinstance(found.value, ZeroDivisionError)


@pytest.mark.parametrize(
    ("said", "rest", "text"),
    [
        ("", "", None),
        ("words\n", "words\n", None),
        ("\n=poncho-result= m1 gA==\n", "", "gA=="),
        ("a\n=poncho-result= m1 gA==\nb", "ab", "gA=="),
        ("=poncho-result= m1 gA==\n", "=poncho-result= m1 gA==\n", None),
        ("\n=poncho-result= m2 x\n", "\n=poncho-result= m2 x\n", None),
        ("\n=poncho-result= m1 x\n\n=poncho-result= m1 y\n", "\n=poncho-result= m1 x\n", "y"),
        ("cut\n=poncho-result= m1 gA", "cut\n=poncho-result= m1 gA", None),
    ],
)
def test_the_line_in_what_was_said(said: str, rest: str, text: str | None) -> None:
    assert payload.split_said(said, "m1") == (rest, text)


@given(st.text(alphabet="=abgA \n", max_size=40))
def test_any_text_in_the_line_is_an_outcome(text: str) -> None:
    assert payload.load_said(text).kind == "failed"


@pytest.mark.parametrize("name", ["work_queue_worker", "vine_worker", "resource_monitor"])
def test_a_task_leads_its_group_when_its_worker_was_too_slow(name: str, tmp_path: Path, result: Path) -> None:
    """The worker's setpgid fails once the task runs its shell, and then its kill reaches nobody."""
    function = payload.pickle_function(lambda: (__import__("os").getpid(), __import__("os").getpgrp()))
    # Called as a worker's program is, with the task in its own group.
    worker = tmp_path / name
    worker.symlink_to(sys.executable)
    script = "import subprocess, sys; sys.exit(subprocess.run(sys.argv[1:]).returncode)"
    task = [sys.executable, "-s", program.runner_program().path, function.path, payload.pickle_arguments((), {}).word]
    subprocess.run([worker, "-c", script, *task, str(result)], check=True, timeout=60)
    outcome = payload.load_result(result)
    assert outcome is not None
    pid, group = outcome.value
    assert (pid == group) is (name != "resource_monitor")
