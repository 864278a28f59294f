"""Local modules travel with the functions that reach them: on real Work Queue workers and on the embedded engine."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import pytest

from poncho_wq import PonchoTask
from poncho_wq.errors import EngineError, TaskError
from tests.conftest import ROOT
from tests.engines.conftest import Engine, make_environment
from tests.written import Write, written_project

PACKAGE = {
    "lm_pack/__init__.py": "from .inner import words\n",
    "lm_pack/inner.py": (
        "from importlib.resources import files\nfrom pathlib import Path\nfrom . import other\n"
        "def words(): return [(Path(__file__).parent / 'data/w.txt').read_text(),\n"
        "    (files('lm_pack') / 'data/w.txt').read_text(), other.WORD, __file__]\n"
    ),
    "lm_pack/other.py": "WORD = 'other'\n",
    "lm_pack/data/w.txt": "data",
    "lm_helper.py": "import lm_helper2\nfrom lm_pack import words\ndef go(x): return [lm_helper2.twice(x), *words()]\n",
    "lm_helper2.py": "def twice(x): return 2 * x\n",
}


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Writes files into a project that is on the path."""
    yield from written_project(tmp_path / "project", monkeypatch)


def value(engine: Engine, *call: Any, environment: Path) -> Any:
    t = engine.run(PonchoTask(*call, environment=environment))
    if isinstance(t.output, BaseException):
        raise t.output
    return t.output


def test_modules_packages_and_their_data(engine: Engine, tarball: Path, write: Write) -> None:
    project = write(PACKAGE)

    def go(x: int) -> list[Any]:
        import lm_helper  # type: ignore[import-not-found]

        return list(lm_helper.go(x))

    number, first, second, other, file = value(engine, go, 4, environment=tarball)
    assert (number, first, second, other) == (8, "data", "data", "other")
    assert not file.startswith(str(project))
    assert "/poncho-code-" in file, "unpacked beside the environment"
    again = value(engine, go, 4, environment=tarball)
    assert again[-1] == file, "unpacked once"


def test_an_edited_helper_reaches_the_next_task(engine: Engine, tarball: Path, write: Write) -> None:
    write(PACKAGE)
    import lm_helper

    def go(x: int) -> Any:
        return lm_helper.go(x)[0]

    before = PonchoTask(go, 4, environment=tarball)
    write({"lm_helper2.py": "def twice(x): return 'edited', 2 * x\n"})
    after = PonchoTask(go, 4, environment=tarball)
    engine.run(before, after)
    assert (before.output, after.output) == (8, ("edited", 8)), "each has what was on disk when it was made"
    assert before.environment == after.environment
    one, other = (set(task._job.plan.cached) for task in (before, after))
    assert [name.rpartition("-")[0] for _, name in one ^ other] == ["poncho-code", "poncho-code"]


def test_a_reloaded_module_of_the_function_s_own(engine: Engine, tarball: Path, write: Write) -> None:
    write({"lm_own.py": "import lm_helper2\ndef f(x): return lm_helper2.twice(x)\n", **PACKAGE})
    import lm_own  # type: ignore[import-not-found]

    assert value(engine, lm_own.f, 4, environment=tarball) == 8
    write({"lm_own.py": "import lm_helper2\ndef f(x): return 'new', lm_helper2.twice(x) # longer\n"})
    assert value(engine, lm_own.f, 4, environment=tarball) == 8, "as here, where the old one is loaded"
    importlib.reload(lm_own)
    assert value(engine, lm_own.f, 4, environment=tarball) == lm_own.f(4) == ("new", 8)


def test_classes_are_one_and_the_same(engine: Engine, tarball: Path, write: Write) -> None:
    write(
        {
            "lm_shapes.py": "class Box:\n    def __init__(self, n): self.n = n\n"
            "def is_box(x): return isinstance(x, Box)\n",
            "lm_task.py": "import lm_shapes\nclass Own(lm_shapes.Box): pass\n"
            "def f(box):\n    import lm_shapes as again\n"
            "    return again.Box is lm_shapes.Box, again.is_box(box), Own(box.n + 1)\n",
        }
    )
    import lm_shapes  # type: ignore[import-not-found]
    import lm_task  # type: ignore[import-not-found]

    same, is_box, own = value(engine, lm_task.f, lm_shapes.Box(1), environment=tarball)
    assert (same, is_box, own.n) == (True, True, 2)
    assert type(own) is lm_task.Own, "what comes back is of the manager's class"


def test_a_function_that_asks_for_its_own_data(engine: Engine, tarball: Path, write: Write) -> None:
    source = "from pathlib import Path\nDATA = Path(__file__).parent / 'data/w.txt'\ndef f(): return DATA.read_text()\n"
    project = write({**PACKAGE, "lm_pack/own.py": source})
    own = importlib.import_module("lm_pack.own")
    t = PonchoTask(own.f, environment=tarball)
    (project / "lm_pack/data/w.txt").unlink()  # so that the manager's cannot be taken for the worker's
    assert engine.run(t).output == "data"


def test_a_module_that_the_environment_has_is_not_hidden(engine: Engine, tarball: Path, write: Write) -> None:
    write({"only_there.py": "WORDS = 'of the manager'\n"})

    def ask() -> str:
        import only_there

        return str(only_there.WORDS)

    t = engine.run(PonchoTask(ask, environment=tarball))
    assert isinstance(t.output, TaskError)
    assert "the module 'only_there' is shipped with the task, but the environment has another one" in str(t.output)


def test_namespaces_and_compiled_modules(engine: Engine, tarball: Path, write: Write) -> None:
    deep = {"x": "from lm_space.deep import y\nWORD = y.WORD\n", "y": "WORD = 1\n"}
    project = write({f"lm_space/deep/{name}.py": text for name, text in deep.items()})
    (project / f"lm_fast{EXTENSION_SUFFIXES[0]}").write_bytes(b"no library")

    def ask() -> Any:
        import lm_space.deep.x as x  # type: ignore[import-not-found]

        try:
            import lm_fast  # type: ignore[import-not-found] # noqa: F401
        except ImportError as error:
            # The loader of compiled modules found it where it was unpacked, and in no zip.
            return x.WORD, "poncho-code" in str(error.path)

    assert value(engine, ask, environment=tarball) == (1, True)


def test_too_much_is_refused_before_anything_is_sent(
    engine: Engine, tarball: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    write({**PACKAGE, "lm_pack/huge.bin": "x" * 100_000})
    monkeypatch.setenv("PONCHO_CODE_LIMIT", "0.05")
    import lm_helper

    with pytest.raises(EngineError, match=r"(?s)more than the limit of 0.1 MB.*huge.bin"):
        PonchoTask(lambda: lm_helper.go(1), environment=tarball)


def test_an_environment_without_python_never_gets_the_worker_s(engine: Engine, tmp_path: Path) -> None:
    bare = make_environment(tmp_path / "bare.tar.gz", python=False)
    t = engine.run(PonchoTask(lambda: 1, environment=bare))
    assert isinstance(t.output, TaskError)
    assert "there is no python3 in the environment" in str(t.output)
    assert "the Python of the worker was used" not in str(t.output)


MAIN = """
import sys
from poncho_wq import PonchoTask
from poncho_wq.engines.local import LocalQueue
import lm_helper
{more}

class Kept:
    pass

def f(x):
    {imports}
    return lm_helper.go(x)[0] + {term}, Kept()

if __name__ == "__main__":
    with LocalQueue(cores=1) as q:
        t = PonchoTask(f, 4, environment=sys.argv[1])
        q.submit(t)
        t = q.wait(60)
        print(t.output[0], type(t.output[1]) is Kept, t.code_size > 0)
"""


@pytest.mark.parametrize("way", ["script", "module", "notebook"])
def test_main_programs_with_helpers_beside_them(way: str, tarball: Path, tmp_path: Path) -> None:
    files = dict(PACKAGE)
    plain = MAIN.format(more="", imports="pass", term="0")
    relative = MAIN.format(more="from . import part", imports="from .part import n", term="part.n + n")
    files.update({"main.py": plain, "lm_app/__init__.py": "", "lm_app/part.py": "n = 10\n", "lm_app/main.py": relative})
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    words = {
        "script": [sys.executable, str(tmp_path / "main.py"), str(tarball)],
        "module": [sys.executable, "-m", "lm_app.main", str(tarball)],
        # As in a notebook's cell: no file, and the current directory to import from.
        "notebook": [sys.executable, "-c", f"import sys\nexec(compile({plain!r}, '<cell>', 'exec'))", str(tarball)],
    }[way]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    cwd = "/" if way == "script" else tmp_path
    done = subprocess.run(words, cwd=cwd, env=environ, text=True, capture_output=True, timeout=120, check=False)
    assert done.stdout.split() == ["28" if way == "module" else "8", "True", "True"], done.stderr


@pytest.mark.slow
def test_editing_code_never_touches_the_environment(
    engine: Engine, write: Write, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an environment that is analyzed and built: by the tools, not by a test's fixture."""
    monkeypatch.setenv("PONCHO_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "cache-of-edits"))
    write({"lm_needs.py": "import packaging.version\ndef go(x): return str(packaging.version.parse('1.0')), x\n"})

    def go(x: int) -> Any:
        import lm_needs  # type: ignore[import-not-found]

        return lm_needs.go(x)

    first = engine.run(PonchoTask(go, 1))
    assert first.output == ("1.0", 1)
    write({"lm_needs.py": "import packaging.version\ndef go(x): return str(packaging.version.parse('2.0')), x\n"})
    second = engine.run(PonchoTask(go, 2))
    assert second.output == ("2.0", 2)
    assert second.environment.tarball == first.environment.tarball
    assert first._job._code.file.name != second._job._code.file.name
    write({"packaging.py": "mine = True\n", "lm_needs.py": "import packaging\ndef go(x): return packaging.mine\n"})
    with pytest.raises(EngineError, match="has the package packaging, which provides a module of that name"):
        engine.queue.submit(PonchoTask(go, 3, environment=first.environment))
