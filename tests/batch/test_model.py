"""A batch is checked as a whole, and is the same after it was written down."""

from __future__ import annotations

import pytest

from poncho_wq.batch.cycles import find_cycle
from poncho_wq.batch.document import from_json, to_json
from poncho_wq.batch.model import (
    FACTS,
    Batch,
    Input,
    Job,
    Notification,
    Output,
    Policies,
    Resources,
    Step,
    check,
)
from poncho_wq.errors import BatchError, SpecError
from tests.batch.conftest import job


def _wrong(*jobs: Job, **options: object) -> list[str]:
    with pytest.raises(BatchError) as caught:
        check(Batch(name="b", jobs=jobs, **options), source="f")  # type: ignore[arg-type]
    assert isinstance(caught.value, SpecError)
    return [each._headline() for each in caught.value.problems]


def test_a_good_batch_is_good() -> None:
    check(Batch(name="b", jobs=(job("a"), job("c", after=("a",)))))


def test_everything_that_is_wrong_is_reported_at_once() -> None:
    assert _wrong(
        job("a/b", after=("zz",)),
        job("a", resources=Resources(cores=0, memory=-1, walltime=-2)),
        job("a", inputs=(Input(name="../x", path="x"), Input(name="y"), Input(name="z", job="q", output="o"))),
        Job(name="d", steps=()),
        Job(name="e", steps=(Step(argv=("x\0",), cwd="/tmp", env={"a b": "c"}),), exports={"X": "nothing"}),
    ) == [
        'f: jobs: all jobs must have unique names: "a" is used more than once',
        "f: jobs[0].name: 'a/b' cannot be the name of a directory",
        'f: jobs[0].after: parent job "zz" is not defined',
        "f: jobs[1].resources.cores: expected a number from 1, got 0",
        "f: jobs[1].resources.memory: expected a number from 1, got -1",
        "f: jobs[1].resources.walltime: expected a number from 0, got -2",
        "f: jobs[2].inputs[0].name: '../x': a path in the job's home is relative and stays inside it",
        "f: jobs[2].inputs[1]: expected one of path, url, content and job",
        "f: jobs[2].inputs[2]: takes a file of 'q', so that must be in after, and the output be named",
        "f: jobs[3].steps: a job needs at least one step that is no sidecar",
        "f: jobs[4].steps[0].argv: a command cannot hold a NUL character, or half of a pair of surrogates",
        "f: jobs[4].steps[0].cwd: '/tmp': a path in the job's home is relative and stays inside it",
        "f: jobs[4].steps[0].env: 'a b' cannot be the name of an environment variable",
        f"f: jobs[4].exports.X: 'nothing' is none of {', '.join(FACTS)}",
    ]


def test_a_cycle_is_shown() -> None:
    assert _wrong(job("a", after=("b",)), job("b", after=("a",))) == ["f: jobs: dependency cycle: a -> b -> a"]


def test_cycles() -> None:
    assert find_cycle({"a": ["a"]}) == ["a", "a"]
    assert find_cycle({"a": [], "b": ["a"], "c": ["a", "b"]}) is None
    # Longer than the interpreter's stack is deep.
    chain: dict[str, list[str]] = {str(n): [str(n - 1)] for n in range(1, 50_000)}
    assert find_cycle({**chain, "0": []}) is None
    cycle = find_cycle({**chain, "0": ["49999"]})
    assert cycle is not None
    assert len(cycle) == 50_001


def test_written_and_read_again() -> None:
    batch = Batch(
        name="b", namespace="n", environment={"pip": ["x"]}, labels={"l": "m"},
        notifications=(Notification(kind="matrix", to="@u:h"),),
        jobs=(
            Job(
                name="a",
                steps=(Step(argv=("x", "y z"), env={"A": "b"}, sidecar=True), Step(argv=("y",), environment="e")),
                inputs=(Input(name="i", content=b"\0\xff"), Input(name="j", path="/p", unpack=True)),
                outputs=(Output(pattern="*", archive=True, exclude=("q",)),),
                resources=Resources(memory=5, walltime=1.5),
                features=("f",), policies=Policies(step_retries=2, max_queue=0.0), exports={"X": "cores"},
                directories=("d",),
            ),
        ),
    )  # fmt: skip
    assert from_json(to_json(batch)) == batch
    assert to_json(from_json(to_json(batch))) == to_json(batch)


def test_another_format_is_refused() -> None:
    with pytest.raises(ValueError, match="format 99"):
        from_json('{"format": 99}')


@pytest.mark.parametrize("bad", ["a\0b", "\ud800"])
def test_what_the_kernel_takes_for_no_argument_is_refused_before_it_is_sent(bad: str) -> None:
    for step in (Step(argv=("x", bad)), Step(argv=("x",), inside=(bad,)), Step(argv=("x",), env={"A": bad})):
        (told,) = _wrong(Job(name="a", steps=(step,)))
        assert "NUL" in told
    assert _wrong(Job(name="a", steps=(Step(argv=("x",), cwd=bad),)))
    check(Batch(name="b", jobs=(Job(name="a", steps=(Step(argv=("x", "\udcff", "é")),)),)))
