"""Archives as this package's Python opens them: environments, data of an environment, results of a batch's job."""

from __future__ import annotations

import json
import os
import shutil
import stat
from pathlib import Path

import pytest
from hypothesis import strategies as st

from poncho_wq.batch import job_runner
from poncho_wq.batch.model import Job, Step
from poncho_wq.batch.outcome import read as read_outcome
from poncho_wq.batch.publish import publish
from poncho_wq.build.archive import decompress, unpack
from poncho_wq.caching.verify import check_tarball
from poncho_wq.described import describe
from poncho_wq.manifest import parse, read_manifest
from poncho_wq.prepare import environment
from poncho_wq.progress import silent
from tests.fuzz.archives import Member, archive, good, members
from tests.fuzz.campaign import Campaign
from tests.fuzz.strategies import damaged
from tests.wrapper import tarballs

MANIFEST_WORDS = (
    b"poncho-manifest 1\n", b"poncho-manifest 2\n", b"end\n", b"layers 9999999999\n",
    b"layer 0 20 512 " + b"0" * 64 + b" x\n", b"relocate text 0 ../x\n", b"relocate binary 0:9 a\n",
    b"placeholder /x\n", b"size 99999999999999999999\n", b"member 007\n", b"glibc 9.9\n", b"\r\n", b"identity ", b"-1",
    b"\xff", b"$(touch x)", b"`touch x`",
)  # fmt: skip


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return tarballs.ours(tmp_path_factory.mktemp("ours") / "env.tar.gz").path.read_bytes()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> bytes:
    """A whole one, with a specification and a lock in it."""
    return environment({"pip": []}, cache_dir=shared_cache).tarball.read_bytes()


def look(file: Path) -> None:
    """All that is done with a tarball which somebody hands in."""
    read_manifest(file)
    read_manifest(file, check_size=False)
    environment(file)
    check_tarball(file)


def test_environments(campaign: Campaign, ours: bytes) -> None:
    file = campaign.directory / "env.tar.gz"

    def case(data: bytes) -> None:
        file.write_bytes(data)
        look(file)

    assert b"poncho-manifest" in ours  # stored as it is, so that words put in change it
    campaign.run("tarball of ours", case, data=damaged((ours,), MANIFEST_WORDS))


def test_manifests(campaign: Campaign, ours: bytes) -> None:
    good_text = ours[ours.index(b"poncho-manifest") :].partition(b"\nend\n")[0] + b"\nend\n"

    def case(data: bytes) -> None:
        parse(data.decode("utf-8", "surrogateescape"))

    campaign.run("manifest", case, data=damaged((good_text,), MANIFEST_WORDS))


def test_what_a_tarball_says_of_itself(campaign: Campaign, built: bytes) -> None:
    file = campaign.directory / "env.tar.gz"
    # Where the layer with the specification is: at the end, before the end of the archive.
    tail = min(len(built), 60_000)

    def case(at: int, byte: int, cut: bool) -> None:
        where = len(built) - 1 - at % tail
        data = built[:where] + bytes([byte]) + (b"" if cut else built[where + 1 :])
        file.write_bytes(data)
        describe(file)
        check_tarball(file)

    campaign.run(
        "tarball of ours, its specification and lock",
        case,
        at=st.integers(0, 10**6),
        byte=st.integers(0, 255),
        cut=st.booleans(),
    )


def test_other_tools_tarballs(campaign: Campaign) -> None:
    file = campaign.directory / "env.tar.gz"
    outside = str(campaign.directory.parent / "outside")

    def case(every: list[Member], compressed: bool, whole: bool) -> None:
        file.write_bytes(archive(every, outside, compressed=compressed, whole=whole))
        environment(file)
        describe(file)

    campaign.run("tarball of another tool", case, every=members, compressed=st.booleans(), whole=st.booleans())


def check_unpacked(root: Path) -> None:
    """Regular files, directories and links that lead to something inside."""
    for place, directories, files in os.walk(root):
        for name in (*directories, *files):
            path = os.path.join(place, name)
            facts = os.lstat(path)
            if stat.S_ISLNK(facts.st_mode):
                assert os.path.realpath(path).startswith(str(root)), f"{path} leads out"
            else:
                assert stat.S_ISREG(facts.st_mode) or stat.S_ISDIR(facts.st_mode), path
                assert not facts.st_mode & (stat.S_ISUID | stat.S_ISGID), path


def test_data_archives(campaign: Campaign) -> None:
    file, target = campaign.directory / "data.tar", campaign.directory / "data"
    outside = str(campaign.directory.parent / "outside")

    def case(every: list[Member], compressed: bool, whole: bool) -> None:
        file.write_bytes(archive(every, outside, compressed=compressed, whole=whole))
        shutil.rmtree(target, ignore_errors=True)
        unpack(file, target, None, what="http.X", on_progress=silent)
        check_unpacked(target)

    campaign.run("archive of data, members", case, every=members, compressed=st.booleans(), whole=st.booleans())


def test_damaged_data_archives(campaign: Campaign) -> None:
    file, target = campaign.directory / "data.tar", campaign.directory / "data"
    import bz2
    import lzma

    plain = archive(
        [Member("a", data=b"x" * 900), Member("b/c", mode=0o755), Member("d", kind=b"2", target="a")],
        "x",
        compressed=False,
    )
    every = (good({"a": b"x" * 2000}), plain, bz2.compress(plain), lzma.compress(plain))

    def case(data: bytes, kind: str | None) -> None:
        file.write_bytes(data)
        shutil.rmtree(target, ignore_errors=True)
        if kind in ("gzip", "bzip2", "xz"):
            target.unlink(missing_ok=True)
            try:
                decompress(file, target, kind, what="http.X", on_progress=silent)
            finally:
                target.unlink(missing_ok=True)
        else:
            unpack(file, target, None, what="http.X", on_progress=silent)
            check_unpacked(target)

    campaign.run(
        "archive of data, bytes",
        case,
        data=damaged(every),
        kind=st.sampled_from((None, None, None, "gzip", "bzip2", "xz")),
    )


def test_inputs_of_jobs(campaign: Campaign) -> None:
    """As the job's runner unpacks them on a worker."""
    file, home = campaign.directory / "input", campaign.directory / "home"
    outside = str(campaign.directory.parent / "outside")

    def case(every: list[Member], compressed: bool, whole: bool, name: str) -> None:
        file.write_bytes(archive(every, outside, compressed=compressed, whole=whole))
        shutil.rmtree(home, ignore_errors=True)
        inputs = [{"file": str(file), "name": name, "unpack": True}, {"file": __file__, "name": "a/b"}]
        running = job_runner.Running({"inputs": inputs, "directories": ["lib"]})
        running.sandbox, running.home = str(campaign.directory), str(home)
        running.stdout = running.stderr = str(campaign.directory / "said")
        try:
            job_runner._prepare(running)
        except job_runner.Problem:
            campaign.counts["(refused)"] += 1

    names = st.sampled_from((".", "a", "lib"))
    campaign.run("input of a job", case, every=members, compressed=st.booleans(), whole=st.booleans(), name=names)


RESULT = {
    "format": 1, "outcome": "ended", "problem": None, "missing": [], "host": "h", "worker": "w", "started": 1.0,
    "ended": 2.0, "steps": [{"step": 0, "exit_code": 0, "signal": None, "tries": 1, "started": 1.0, "ended": 2.0}],
}  # fmt: skip


def test_results_of_jobs(campaign: Campaign) -> None:
    """They come from workers, which may be anybody's who knows the manager's port."""
    from tests.fuzz.strategies import changed, documents

    file, results = campaign.directory / "1-1.tar", campaign.directory / "save" / "job"
    outside = str(campaign.directory.parent / "outside")
    job = Job(name="job", steps=(Step(argv=("true",)),))
    keys = (*RESULT, "step", "exit_code", "signal")

    def case(facts: object, every: list[Member], compressed: bool) -> None:
        text = json.dumps(facts).encode()
        first = [Member("result.json", data=text), Member("stderr.txt", data=b"x" * 5000)]
        file.write_bytes(archive([*first, *every], outside, compressed=compressed))
        outcome = read_outcome(file, job)
        if outcome is not None:
            publish(file, results, job=1, attempt=1, outcome=outcome)
            check_unpacked(results)

    campaign.run(
        "result of a job", case, facts=changed((RESULT,), keys) | documents(keys), every=st.just([]) | members,
        compressed=st.booleans(),
    )  # fmt: skip
