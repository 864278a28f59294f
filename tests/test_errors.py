"""The family of errors: its shape, what `str()` says, that facts survive a pickle, that credentials do not."""

from __future__ import annotations

import concurrent.futures
import copy
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poncho_wq import errors
from poncho_wq.errors import (
    AnalysisError,
    BatchError,
    BuildError,
    CacheError,
    CorruptTarball,
    EngineError,
    EngineNotInstalled,
    FetchError,
    LockTimeout,
    PackError,
    PonchoError,
    SolveError,
    SpecError,
    TaskError,
    UnresolvedImport,
    UnresolvedImportError,
    quoted,
    redact,
)

ONE_OF_EACH: list[PonchoError] = [
    PonchoError("it broke", advice="mend it"),
    SpecError("is empty", path="pip[0]", source="spec.json", advice="fill it"),
    BatchError([SpecError("is empty", path="jobs"), SpecError("is missing", path="meta")]),
    AnalysisError("no such function", advice="name another"),
    UnresolvedImportError(imports=[UnresolvedImport(module="nope", file="a.py", line=3)], advice="install it"),
    SolveError("no versions", command=["uv", "pip"], log="because"),
    BuildError("failed", command=("uv", "pip", "install"), log="x\ny"),
    FetchError("refused", url="https://example.org/x"),
    PackError("no room", advice="free some"),
    CacheError("not a directory"),
    LockTimeout("held", lock="/x/lock", waited=1.5),
    CorruptTarball("cut short", tarball="/x/env.tar.gz"),
    EngineError("refused"),
    EngineNotInstalled("no Work Queue", engine="work_queue", advice="conda install ndcctools"),
    TaskError("it raised", traceback="Traceback…", exit_status=1, host="node7"),
]


def test_each_class_of_the_module_is_in_the_list() -> None:
    family = {each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, PonchoError)}
    assert {each for each in family if not each.__name__.startswith("_")} == {type(each) for each in ONE_OF_EACH}


@pytest.mark.parametrize(
    ("child", "parent"),
    [
        (SpecError, PonchoError),
        (UnresolvedImportError, AnalysisError),
        (LockTimeout, CacheError),
        (CorruptTarball, CacheError),
        (EngineNotInstalled, EngineError),
        (TaskError, PonchoError),
    ],
)
def test_family(child: type, parent: type) -> None:
    assert issubclass(child, parent)


@pytest.mark.parametrize("error", ONE_OF_EACH, ids=lambda error: type(error).__name__)
def test_survives_pickling_and_copying(error: PonchoError) -> None:
    copies = [pickle.loads(pickle.dumps(error, protocol)) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]
    for twin in [*copies, copy.copy(error), copy.deepcopy(error)]:
        assert type(twin) is type(error)
        assert str(twin) == str(error)
        assert twin.args == error.args
        assert _facts(twin) == _facts(error)


def _facts(error: PonchoError) -> dict[str, object]:
    """Its attributes; errors among them are not equal to their copies, but say the same."""
    problems = {"problems": tuple(map(str, error.problems))} if isinstance(error, BatchError) else {}
    return {**vars(error), **problems}


def _fail() -> None:
    error = BuildError("failed", command=("uv",), log="why", advice="do this")
    error.add_note("seen in a pool")
    raise error


def test_crosses_a_process() -> None:
    with concurrent.futures.ProcessPoolExecutor(1) as pool, pytest.raises(BuildError) as caught:
        pool.submit(_fail).result()
    assert (caught.value.command, caught.value.log, caught.value.advice) == (("uv",), "why", "do this")


def test_a_subclass_elsewhere_survives_too() -> None:
    twin = pickle.loads(pickle.dumps(_Strict(7)))
    assert twin.number == 7
    assert str(twin) == "number 7"


class _Strict(PonchoError):
    """Its __init__ shares no argument with its parent's, which plain pickling would call."""

    def __init__(self, number: int) -> None:
        super().__init__(f"number {number}")
        self.number = number


def test_advice_comes_on_lines_of_its_own() -> None:
    assert str(PonchoError("it broke", advice="mend it\nor not")) == "it broke\nmend it\nor not"
    assert str(PonchoError("it broke")) == "it broke"


@pytest.mark.parametrize(
    ("path", "source", "text"),
    [
        ("a.b", "s.json", "s.json: a.b: bad"),
        ("a.b", None, "a.b: bad"),
        (None, "s.json", "s.json: bad"),
        (None, None, "bad"),
    ],
)
def test_spec_error_names_the_place(path: str | None, source: str | None, text: str) -> None:
    assert str(SpecError("bad", path=path, source=source)) == text


def test_unresolved_imports_are_listed_together() -> None:
    found = [UnresolvedImport(module="a", file="x.py", line=1), UnresolvedImport(module="b", why="is a local module")]
    error = UnresolvedImportError(imports=found)
    assert error.imports == tuple(found)
    assert "x.py:1: a: no installed package provides it" in str(error)
    assert "b: is a local module" in str(error)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://user:pass@example.org/x", "https://***@example.org/x"),
        ("got https://token@example.org/x here", "got https://***@example.org/x here"),
        ("https://a:p@ss@example.org/x", "https://***@example.org/x"),
        ("git+https://u:p@example.org/x@v1", "git+https://***@example.org/x@v1"),
        ("ssh://git@example.org/x", "ssh://git@example.org/x"),
        ("git+ssh://git@example.org/x", "git+ssh://git@example.org/x"),
        ("ssh://git:pw@example.org/x", "ssh://***@example.org/x"),
        ("https://example.org/x?mail=a@b", "https://example.org/x?mail=a@b"),
        ("https://example.org/t/ab-0123/conda", "https://example.org/t/***/conda"),
        ("https://example.org/x?a=1&X-Amz-Signature=ff&b=2", "https://example.org/x?a=1&X-Amz-Signature=***&b=2"),
        ("https://example.org/x?design=1", "https://example.org/x?design=1"),
        ("a == 1.0 # me@example.org", "a == 1.0 # me@example.org"),
    ],
)
def test_redact(text: str, shown: str) -> None:
    assert redact(text) == shown
    assert redact(shown) == shown


def test_no_error_shows_credentials() -> None:
    secret = "https://user:hunter2@example.org/simple"
    shown: list[PonchoError] = [
        BuildError(f"could not read {secret}", command=["uv", "--index", secret], log=f"GET {secret}", advice=secret),
        FetchError("no", url=secret),
        SpecError(f"bad: {secret}", advice=secret),
    ]
    for error in shown:
        assert "hunter2" not in f"{error} {vars(error)} {error.args} {error!r}"


@given(st.text())
def test_redact_takes_any_text(text: str) -> None:
    assert redact(redact(text)) == redact(text)


def test_redact_is_linear() -> None:
    """Quadratic behaviour on these would take many minutes; the suite's time limit would end it."""
    for text in ("a" * 3_000_000, "://" * 1_000_000, "?" * 2_000_000, "x&" * 1_000_000, "http://" + "a" * 3_000_000):
        redact(text)


def test_quoted_is_short_and_printable() -> None:
    assert quoted("tra") == '"tra"'
    assert quoted("grüß") == '"grüß"'
    assert quoted("a\nb\ud800").isascii()
    assert len(quoted("x" * 10_000)) < 200
