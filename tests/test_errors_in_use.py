"""Every class of errors, made to happen by what users do, and what it says to do next."""

from __future__ import annotations

import os
import pickle
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import poncho_wq
from poncho_wq import LocalQueue, PonchoTask, errors
from poncho_wq.errors import PonchoError


def bad_spec(place: Path) -> object:
    return poncho_wq.environment({"pip": ["numpy=1"]})


def bad_batch(place: Path) -> object:
    from poncho_wq.batch.front_ends import load

    (place / "b.yaml").write_text("meta: 7\nmain: 1\nnonsense: 1\n")
    return load(place / "b.yaml")


def bad_code(place: Path) -> object:
    (place / "a.py").write_text("def f(:\n")
    return poncho_wq.analyze(place / "a.py")


def unknown_import(place: Path) -> object:
    (place / "a.py").write_text("import os\nimport nothing_of_that_name\n")
    return poncho_wq.analyze(place / "a.py")


def no_such_version(place: Path) -> object:
    return poncho_wq.environment({"pip": ["packaging==999"]}, cache_dir=place / "cache")


def unreachable_index(place: Path) -> object:
    with socket.socket() as taken:  # bound, not listening
        taken.bind(("127.0.0.1", 0))
        os.environ["UV_DEFAULT_INDEX"] = f"http://127.0.0.1:{taken.getsockname()[1]}/simple"
        os.environ["UV_HTTP_RETRIES"] = "0"
        os.environ.pop("PIP_FIND_LINKS", None)
        os.environ["PIP_CONFIG_FILE"] = os.devnull
        os.environ["UV_CACHE_DIR"] = str(place / "uv")
        return poncho_wq.environment({"pip": ["packaging"]}, cache_dir=place / "cache")


def not_locked(place: Path) -> object:
    return poncho_wq.environment({"pip": ["packaging"]}, cache_dir=place / "cache", require_locked=True)


def no_cache(place: Path) -> object:
    (place / "file").touch()
    return poncho_wq.environment({"pip": ["packaging"]}, cache_dir=place / "file")


def held_lock(place: Path) -> object:
    from poncho_wq.scratch import held

    with held(place / "a.lock"), held(place / "a.lock", timeout=0.01):
        return None


def no_environment(place: Path) -> object:
    with LocalQueue() as queue:
        return queue.submit(PonchoTask("true"))


def no_engine(place: Path) -> object:
    from poncho_wq.engines import binding

    return binding._search(("no.such.binding",))


def died(place: Path) -> object:
    def f() -> None:
        import os

        os._exit(3)

    with LocalQueue() as queue:
        queue.submit(PonchoTask(f))
        task = None
        while task is None:
            task = queue.wait(5)
        raise task.output


def cut_tarball(place: Path) -> object:
    from poncho_wq.described import describe

    env = poncho_wq.environment({"pip": ["packaging"]})
    (place / "cut.tar.gz").write_bytes(env.tarball.read_bytes()[:-5000])
    return describe(place / "cut.tar.gz")


def a_directory_in_the_way(place: Path) -> object:
    from poncho_wq.cli.create import publish

    (place / "tarball").write_bytes(b"x")
    (place / "out" / "in the way").mkdir(parents=True)
    return publish(place / "tarball", place / "out")


HAPPEN: dict[str, Callable[[Path], object]] = {
    "SpecError": bad_spec,
    "BatchError": bad_batch,
    "AnalysisError": bad_code,
    "UnresolvedImportError": unknown_import,
    "SolveError": no_such_version,
    "FetchError": unreachable_index,
    "BuildError": not_locked,
    "CacheError": no_cache,
    "LockTimeout": held_lock,
    "CorruptTarball": cut_tarball,
    "EngineError": no_environment,
    "EngineNotInstalled": no_engine,
    "TaskError": died,
    "PackError": a_directory_in_the_way,
}


@pytest.fixture(autouse=True)
def _restored(shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    from poncho_wq.engines import binding

    before = dict(os.environ)
    os.environ["PONCHO_CACHE_DIR"] = str(shared_cache)
    monkeypatch.setattr(binding, "DEBIAN", Path("/nowhere"))
    yield
    os.environ.clear()
    os.environ.update(before)


def test_every_class_is_made_to_happen() -> None:
    family = {name for name, each in vars(errors).items() if isinstance(each, type) and issubclass(each, PonchoError)}
    # The root is for `except`; nobody raises it.
    raised = "".join(path.read_text() for path in Path(poncho_wq.__file__).parent.rglob("*.py"))
    assert not re.search(r"raise PonchoError\(", raised)
    assert {name for name in family if not name.startswith("_")} - {"PonchoError"} == set(HAPPEN)


# Of what is to be mended in a text of the user's, the place and what was expected are what to do next.
SAYS_WHERE = {"SpecError", "BatchError", "AnalysisError"}


@pytest.mark.parametrize("name", HAPPEN)
def test_it_says_what_to_do_next(name: str, tmp_path: Path) -> None:
    with pytest.raises(PonchoError) as raised:
        HAPPEN[name](tmp_path)
    error = raised.value
    assert type(error).__name__ == name
    headline, *rest = str(error).splitlines()
    assert headline
    assert "Traceback" not in headline
    if name in SAYS_WHERE:
        assert re.search(r"\w+[\[\]\w.]*: |:\d+", headline), f"it names no place: {error}"
    else:
        assert error.advice, f"it does not say what to do next: {error}"
        assert rest
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (type(error), str(error))
