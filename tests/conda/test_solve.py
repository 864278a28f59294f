"""Which packages are chosen, from where, and what is said when none can be."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from poncho_wq.build.conda import CondaBuilder, ask
from poncho_wq.build.rattler import Conda
from poncho_wq.build.solver_words import Question, explain_fetch, explain_solve
from poncho_wq.errors import FetchError, SolveError, SpecError
from poncho_wq.progress import Progress
from poncho_wq.spec import EnvSpec
from tests.conda.channel import FOREIGN, FULL, MINOR, SUBDIR
from tests.conda.conftest import Channels


def versions(conda: Conda, channels: list[str], *specs: str, pinned: tuple[str, ...] = ()) -> dict[str, str]:
    records = conda.solve(specs, channels=channels, pinned=pinned, platform=SUBDIR, glibc=None)
    return {record["name"]: record["version"] for record in records}


def test_the_newest_of_the_first_channel(conda: Conda, channels: Channels) -> None:
    assert versions(conda, [channels.main, channels.other], "choice")["choice"] == "2.0"
    assert versions(conda, [channels.other, channels.main], "choice")["choice"] == "9.0"


def test_priority_is_strict_even_for_a_version_that_only_a_later_channel_has(conda: Conda, channels: Channels) -> None:
    with pytest.raises(SolveError) as caught:
        versions(conda, [channels.main, channels.other], "choice=9")
    assert f"{channels.main} has 1.0, 2.0" in str(caught.value)
    assert f"write {channels.other}::choice" in str(caught.value)


def test_a_package_may_name_its_channel(conda: Conda, channels: Channels) -> None:
    found = versions(conda, [channels.main, channels.other], f"{channels.other}::choice=9")
    assert found["choice"] == "9.0"
    assert found["python"] == FULL


def test_a_channel_that_only_a_package_names_is_asked_last(channels: Channels, builder: CondaBuilder) -> None:
    spec = EnvSpec.from_dict({"conda": {"channels": [channels.main], "packages": [f"{channels.other}::choice"]}})
    lock = builder.lock(spec, lambda _: None)
    assert {package.name: package.channel for package in lock.conda} == {
        "choice": channels.other,
        "python": channels.main,
    }


@pytest.mark.parametrize(
    ("spec", "version"),
    [("tiny=1.0", "1.0"), ("tiny==1.0", "1.0"), ("tiny <1.1", "1.0"), ("tiny=1.1=py_1", "1.1"), ("tiny 1.*", "1.1")],
)
def test_versions_and_builds(conda: Conda, channels: Channels, spec: str, version: str) -> None:
    assert versions(conda, [channels.main], spec)["tiny"] == version


def test_a_build_that_is_not_there(conda: Conda, channels: Channels) -> None:
    with pytest.raises(SolveError):
        versions(conda, [channels.main], "tiny=1.1=other_7")


def test_pins_limit_and_do_not_ask(conda: Conda, channels: Channels) -> None:
    assert versions(conda, [channels.main], "tiny", pinned=("choice=1",)).keys() == {"tiny", "python"}
    assert versions(conda, [channels.main], "choice", pinned=("choice=1",))["choice"] == "1.0"
    with pytest.raises(SolveError):
        versions(conda, [channels.main], "left", pinned=("common=2",))


def test_pinned_of_the_specification(builder: CondaBuilder, channels: Channels) -> None:
    spec = channels.spec("choice", pinned={"conda": {"choice": "1.0"}})
    lock = builder.lock(spec, lambda _: None)
    assert [package.version for package in lock.conda if package.name == "choice"] == ["1.0"]


def test_a_conflict_is_explained_and_short(conda: Conda, channels: Channels) -> None:
    with pytest.raises(SolveError) as caught:
        versions(conda, [channels.main, channels.other], "left", "right")
    message = str(caught.value)
    assert "common <2" in message
    assert "common >=2" in message
    assert "loosen" in message
    assert len(message.splitlines()) < 30
    assert str(pickle.loads(pickle.dumps(caught.value))) == message


def test_a_name_that_no_channel_has(conda: Conda, channels: Channels) -> None:
    with pytest.raises(SolveError, match=r"nosuch: in none of the channels .*check the spelling"):
        versions(conda, [channels.main], "nosuch")


def test_a_version_that_the_only_channel_lacks(conda: Conda, channels: Channels) -> None:
    with pytest.raises(SolveError, match=r"choice: .* has 1\.0, 2\.0"):
        versions(conda, [channels.main], "choice=7")


def test_a_platform_that_the_channel_lacks(channels: Channels, conda: Conda) -> None:
    with pytest.raises(SolveError, match=FOREIGN):
        conda.solve(["prefixed"], channels=[channels.main], platform=FOREIGN, glibc=None)


def test_the_c_library_that_may_be_counted_on(conda: Conda, channels: Channels) -> None:
    def solve(glibc: str | None) -> None:
        conda.solve(["newglibc"], channels=[channels.main], platform=SUBDIR, glibc=glibc)

    with pytest.raises(SolveError, match='raise "glibc"'):
        solve("2.28")
    solve("99.1")


def test_overrides_of_virtual_packages(conda: Conda, channels: Channels, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SolveError, match="CONDA_OVERRIDE_CUDA"):
        versions(conda, [channels.main], "gpu")
    monkeypatch.setenv("CONDA_OVERRIDE_CUDA", "12.4")
    assert versions(conda, [channels.main], "gpu")["gpu"] == "1.0"
    monkeypatch.setenv("CONDA_OVERRIDE_GLIBC", "2.12")
    with pytest.raises(SolveError):
        versions(conda, [channels.main], "oldglibc")


def test_no_such_channel(conda: Conda, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="there is no such channel"):
        versions(conda, [tmp_path.as_uri()], "tiny")


def test_a_channel_that_does_not_answer(conda: Conda) -> None:
    with pytest.raises(FetchError, match="do they answer"):
        versions(conda, ["http://127.0.0.1:9/none"], "tiny")


def test_offline_asks_nobody(conda_root: Path) -> None:
    with pytest.raises(FetchError, match="network may not be used") as caught:
        versions(Conda(cache=conda_root / "conda", offline=True), ["http://127.0.0.1:9/none"], "tiny")
    assert "without --offline" in str(caught.value)


def test_python_is_added_in_the_managers_version_and_said(builder: CondaBuilder, channels: Channels) -> None:
    said: list[Progress] = []
    lock = builder.lock(channels.spec("activated"), said.append)
    assert lock.python == FULL
    assert any("asks for no Python" in each.detail and MINOR in each.detail for each in said)


def test_python_that_is_asked_for_is_left_alone(channels: Channels) -> None:
    question = ask(channels.spec(f"python >={MINOR}", "tiny"))
    assert question.specs == (f"python >={MINOR}", "tiny")
    assert question.note is None
    assert ask(channels.spec("python-dateutil")).note is not None


def test_a_pinned_python_is_not_contradicted(channels: Channels) -> None:
    question = ask(channels.spec("tiny", pinned={"conda": {"python": "3.9"}}))
    assert "python" in question.specs
    assert question.pinned == ("python=3.9",)


def test_without_channels_the_usual_one_is_taken_and_said() -> None:
    question = ask(EnvSpec.from_dict({"conda": {"packages": ["numpy"]}}))
    assert question.channels == ("conda-forge",)
    assert "conda-forge" in (question.note or "")


def test_requirements_cannot_be_installed_for_another_platform(channels: Channels, conda_root: Path) -> None:
    foreign = CondaBuilder(cache_root=conda_root, platform=FOREIGN)
    with pytest.raises(SpecError, match="list them as conda packages"):
        foreign.lock(channels.spec("tiny", pip=["packaging"]), lambda _: None)


def test_where_a_loop_runs_already(conda: Conda, channels: Channels) -> None:
    """As in a notebook."""
    import asyncio

    async def cell() -> dict[str, str]:
        return versions(conda, [channels.main], "tiny")

    assert asyncio.run(cell())["tiny"] == "1.1"


def test_no_credentials_in_messages() -> None:
    text = "Request failed\nCaused by: error sending request for url (https://me:secret@host/t/tk-1234/chan/noarch/x)"
    asked = Question(specs=("a",), channels=("https://me:secret@host/t/tk-1234/chan",), platform=SUBDIR)
    for error in (explain_fetch(text, asked.channels, offline=False), explain_solve(text, asked, {"a": {}})):
        shown = f"{error} {error.log} {getattr(error, 'url', '')} {pickle.dumps(error)!r}"
        assert "secret" not in shown
        assert "tk-1234" not in shown


def test_long_explanations_are_cut() -> None:
    text = "Cannot solve the request because of: " + "\n".join(f"├─ package{i} cannot" for i in range(200))
    message = str(explain_solve(text, Question(specs=(), channels=("a",), platform=SUBDIR), {}))
    assert "176 lines more" in message
    assert len(message.splitlines()) < 30


def test_importing_the_package_does_not_load_the_solver() -> None:
    code = "import sys, poncho_wq, poncho_wq.prepare; sys.exit('rattler' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env={**os.environ}, check=False).returncode == 0
