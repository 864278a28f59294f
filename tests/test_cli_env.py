"""`poncho-wq env import|export|show|diff`: results on stdout, remarks on stderr, and the documented statuses."""

from __future__ import annotations

import gzip
import hashlib
import json
import tarfile
from pathlib import Path

import pytest
import yaml

from poncho_wq import environment, zstd_library
from poncho_wq.build import FileGroup, Prefix
from poncho_wq.cli.env import main
from poncho_wq.comparing import matchspec_name
from poncho_wq.engines import shipping
from poncho_wq.engines.shipping import ship
from poncho_wq.importers import read_spec
from poncho_wq.lock import Lock, LockedPackage
from poncho_wq.lockfile import LockFile
from poncho_wq.manifest import LayerRef, Manifest, end_member
from poncho_wq.pack import pack
from poncho_wq.packing.compression import COMPRESSIONS
from poncho_wq.packing.layers import LayerStore
from poncho_wq.spec import EnvSpec

DATA = Path(__file__).parent / "data" / "importers"
ONE, TWO = "1" * 64, "2" * 64


def lock_of(**versions: str) -> Lock:
    packages = tuple(LockedPackage(name=n, version=v, sha256=(ONE, TWO)) for n, v in sorted(versions.items()))
    return Lock(python="3.11.7", interpreter=None, platform="linux-64", packages=packages)


@pytest.fixture(params=COMPRESSIONS)
def tarball(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "zstd" and zstd_library.find() is None:
        pytest.skip(f"no zstd library: {zstd_library.ADVICE}")
    prefix = tmp_path / "prefix"
    (prefix / "share").mkdir(parents=True)
    (prefix / "share/x").write_text("x")
    group = FileGroup(name="other", version=None, kind="other", files=("share/x",))
    built = Prefix(path=prefix, python=None, platform="linux-64", glibc="2.17", groups=(group,))
    spec = EnvSpec.from_dict({"pip": ["rich", "six"], "env": {"A": "1"}})
    output, store = tmp_path / "env.tar.gz", LayerStore(tmp_path / "s", request.param)
    pack(built, spec=spec, lock=lock_of(rich="15.0.0", six="1.17.0"), store=store, output=output)
    return output


def test_import_writes_a_specification(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["import", str(DATA / "environment.export.yml")]) == 0
    (tmp_path / "spec.json").write_text(capsys.readouterr().out)
    assert read_spec(tmp_path / "spec.json") == read_spec(DATA / "environment.export.yml")


def test_import_says_what_a_specification_cannot_hold(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import", str(DATA / "pip-compile.txt")]) == 0
    said = capsys.readouterr()
    assert "note: hashes, constraints and --pre have no place in a specification" in said.err
    assert "example" not in said.out


def test_bad_input_is_status_2_and_writes_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["import", str(DATA / "uv-export.txt")]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"error: {DATA}/uv-export.txt:3: '-e .' is not a package specification")
    with tarfile.open(tmp_path / "no.tar.gz", "w:gz"):
        pass
    assert main(["show", str(tmp_path / "no.tar.gz")]) == 2
    assert "not a Poncho environment (missing bin/activate)" in capsys.readouterr().err


def test_show_a_tarball(capsys: pytest.CaptureFixture[str], tarball: Path) -> None:
    assert main(["show", str(tarball)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "pip        rich 15.0.0" in lines
    assert "env        A=1" in lines
    assert main(["show", "--json", str(tarball)]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["tarball"]["size"] == tarball.stat().st_size
    assert shown["lock"]["packages"][0]["name"] == "rich"
    assert shown["spec"]["env"] == {"A": "1"}


@pytest.mark.parametrize("cut", [600, -10])
def test_show_a_tarball_that_is_not_whole(capsys: pytest.CaptureFixture[str], tarball: Path, cut: int) -> None:
    tarball.write_bytes(tarball.read_bytes()[:cut])
    assert main(["show", str(tarball)]) == 1
    assert "Traceback" not in capsys.readouterr().err


def test_show_another_tools_tarball(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "activate").write_text("")
    with tarfile.open(tmp_path / "t.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "activate", "./bin/activate")
    assert main(["show", str(tmp_path / "t.tar.gz")]) == 0
    assert "made by another tool" in capsys.readouterr().out
    assert main(["diff", str(tmp_path / "t.tar.gz"), str(tmp_path / "t.tar.gz")]) == 2


def test_export_a_tarball_exactly(capsys: pytest.CaptureFixture[str], tarball: Path, tmp_path: Path) -> None:
    assert main(["export", "--format", "requirements.txt", str(tarball)]) == 0
    said = capsys.readouterr()
    (tmp_path / "requirements.txt").write_text(said.out)
    assert read_spec(tmp_path / "requirements.txt").pip == ("rich==15.0.0", "six==1.17.0")
    assert said.out.count("--hash=sha256:") == 4
    assert "note: env A: left out" in said.err
    assert main(["export", "--format", "environment.yml", "--name", "n", str(tarball)]) == 0
    document = yaml.safe_load(capsys.readouterr().out)
    assert document["name"] == "n"
    assert document["dependencies"] == ["python=3.11.7", "pip", {"pip": ["rich==15.0.0", "six==1.17.0"]}]
    assert document["variables"] == {"A": "1"}


@pytest.mark.parametrize("name", ["environment.export.yml", "environment.no-builds.yml", "environment.by-hand.yml"])
def test_what_is_exported_reads_back_the_same(capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str) -> None:
    assert main(["export", "--format", "environment.yml", str(DATA / name)]) == 0
    (tmp_path / "environment.yml").write_text(capsys.readouterr().out)
    before, after = read_spec(DATA / name), read_spec(tmp_path / "environment.yml")
    assert before.conda is not None
    assert after.conda is not None
    assert (after.conda.channels, after.pip, after.env) == (before.conda.channels, before.pip, before.env)
    assert set(after.conda.packages) - {"pip"} == set(before.conda.packages) - {"pip"}


def test_conda_packages_are_no_requirements(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--format", "requirements.txt", str(DATA / "environment.export.yml")]) == 2
    assert "export it with --format environment.yml" in capsys.readouterr().err


def test_diff(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for name, pins in (("a", ["numpy==1", "six", "rich==1"]), ("b", ["numpy==2", "rich==1", "idna"])):
        (tmp_path / name).write_text(json.dumps({"pip": pins}))
    pair = [str(tmp_path / "a"), str(tmp_path / "b")]
    assert main(["diff", *pair]) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["+", "pip", "idna"],
        ["~", "pip", "numpy", "==1", "→", "==2"],
        ["-", "pip", "six"],
    ]
    assert main(["diff", "--exit-code", *pair]) == 1
    assert main(["diff", "--exit-code", pair[0], pair[0]]) == 0
    capsys.readouterr()
    assert main(["diff", "--json", *pair]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["changes"][1] == {
        "section": "pip", "name": "numpy", "before": "==1", "after": "==2",
    }  # fmt: skip
    assert document["sending"] is None


def test_diff_of_a_tarball_and_a_lock_compares_versions(
    capsys: pytest.CaptureFixture[str], tarball: Path, tmp_path: Path
) -> None:
    spec = EnvSpec.from_dict({"pip": ["rich", "six"], "env": {"A": "1"}})
    locked = LockFile(spec=spec, lock=lock_of(rich="16.0", six="1.17.0"))
    (tmp_path / "poncho.lock").write_text(locked.to_json())
    assert main(["diff", str(tarball), str(tmp_path / "poncho.lock")]) == 0
    assert capsys.readouterr().out == "~ pip       rich 15.0.0 → 16.0\n"


def test_diff_of_tarballs_says_what_is_sent(
    capsys: pytest.CaptureFixture[str], shared_cache: Path, tarball: Path
) -> None:
    one, two = (environment({"env": {"WORD": word}}, cache_dir=shared_cache) for word in ("one", "two"))
    assert main(["diff", str(one.tarball), str(two.tarball)]) == 0
    changed, sent = capsys.readouterr().out.splitlines()
    assert changed == "~ env       WORD one → two"
    assert sent.startswith("to send     ")
    assert sent.endswith(", 2 of 4 parts)")
    assert f" of {two.size:,} bytes (TaskVine: " in sent
    assert main(["diff", "--json", str(one.tarball), str(two.tarball)]) == 0
    found = json.loads(capsys.readouterr().out)["sending"]
    assert (found["size"], found["parts"], found["all_parts"]) == (two.size, 2, 4)
    assert 0 < found["bytes"] <= found["vine_bytes"] < two.size / 100
    shipping._forget()
    first, second = ship(one.tarball, one.identity), ship(two.tarball, two.identity)
    assert found["bytes"] == second.size - second.shared, "what is really sent"
    assert (len(first.files), len(second.files)) == (1, 2)
    assert main(["diff", str(one.tarball), str(one.tarball)]) == 0
    assert capsys.readouterr().out == f"to send     nothing of {one.size:,} bytes\n"
    # another one has no part in common: all of it
    assert main(["diff", str(one.tarball), str(tarball)]) == 0
    size = tarball.stat().st_size
    assert capsys.readouterr().out.splitlines()[-1] == f"to send     {size:,} of {size:,} bytes (one file)"


def test_the_name_in_a_matchspec() -> None:
    for text in ("numpy", "numpy=1", "conda-forge::numpy >=1", "numpy[md5=x]", "numpy==1=b", "https://e.org/c::numpy"):
        assert matchspec_name(text) == "numpy"


def test_a_tarball_whose_specification_is_a_bomb(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """It is read into memory, so no further than the manifest says."""
    packed = gzip.compress(bytes(50 << 20), mtime=0)
    digest = hashlib.sha256(bytes(50 << 20)).hexdigest()
    layer = LayerRef(offset=0, length=len(packed), unpacked=1024, digest=digest, name="runtime")
    manifest = Manifest(platform="linux-64", python=None, glibc=None, unpacked=0, files=0, layers=(layer,))
    (tmp_path / "t.tar.gz").write_bytes(manifest.first_member() + packed + end_member())
    assert main(["show", str(tmp_path / "t.tar.gz")]) == 1
    assert "layer runtime holds more than its manifest says" in capsys.readouterr().err
