"""Tarballs as zstd frames and as a bare tar: all that holds for gzip members, in every shell.

`PONCHO_FAULTS=N` tries N offsets or moments, as in test_faults.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.wrapper import tarballs
from tests.wrapper.conftest import Samples, Tree, World, make_world, tree
from tests.wrapper.killing import counts, killed_groups
from tests.wrapper.test_faults import damaged_run, path_without

FORMS = ["zstd", "none"]
ZSTD = shutil.which("zstd")
pytestmark = pytest.mark.skipif(ZSTD is None, reason="zstd is not installed")


@pytest.fixture(params=["dash", "bash", "busybox"])
def shell(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    return with_zstd(request.param, tmp_path_factory.getbasetemp())


@pytest.fixture(params=["dash", pytest.param("bash", marks=pytest.mark.slow), "busybox"])
def faulty(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    """For what takes many runs: dash and bash have the same programs."""
    return with_zstd(request.param, tmp_path_factory.getbasetemp())


def with_zstd(name: str, base: Path) -> World:
    """A world with zstd, which busybox does not bring."""
    world = make_world(name, base)
    if shutil.which("zstd", path=world.path) is None:
        (base / "zstd-bin").mkdir(exist_ok=True)
        with contextlib.suppress(FileExistsError):
            (base / "zstd-bin/zstd").symlink_to(str(ZSTD))
        world.path += f":{base}/zstd-bin"
    return world


@pytest.fixture(scope="session")
def forms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tarballs.Tarball]:
    """The environment of `samples.ours` in each form."""
    directory = tmp_path_factory.mktemp("forms")
    return {form: tarballs.ours(directory / form, compression=form) for form in FORMS}


@pytest.mark.parametrize("form", FORMS)
def test_any_tar_reads_it(forms: dict[str, tarballs.Tarball], unpacked: Tree, tmp_path: Path, form: str) -> None:
    if form == "zstd":
        subprocess.run(["zstd", "-q", "-t"], stdin=forms[form].path.open("rb"), check=True)
    subprocess.run(["tar", "-xf", forms[form].path, "-C", tmp_path], check=True)
    assert tree(tmp_path) == unpacked


@pytest.mark.parametrize("cores", ["1", "3"])
@pytest.mark.parametrize("form", FORMS)
def test_the_same_environment(
    shell: World,
    samples: Samples,
    forms: dict[str, tarballs.Tarball],
    unpacked: Tree,
    room: Path,
    form: str,
    cores: str,
) -> None:
    tarball = forms[form]
    assert tarball.identity == samples.ours.identity
    for more in ([], ["--id", tarball.identity], ["--debug"]):
        done = shell.run("-e", tarball.path, "-d", room / "env", *more, "which-one", env={"CORES": cores})
        assert (done.returncode, done.stdout) == (0, "one\n")
        assert (done.stderr == "") == (more != ["--debug"])
    assert tree(room / "env") == unpacked
    # what was unpacked from one form serves for all, and for nothing else
    for other in (samples.ours.path, *(each.path for each in forms.values())):
        done = shell.run("-e", other, "-d", room / "env", "which-one")
        assert (done.returncode, done.stdout, done.stderr) == (0, "one\n", "")
    assert shell.run("-e", samples.other.path, "-d", room / "env", "which-one").returncode == 125
    done = shell.run("-e", tarball.path, "which-one", env={"TMPDIR": str(room), "CORES": cores})
    assert (done.returncode, done.stdout, done.stderr) == (0, "one\n", "")
    assert sorted(path.name for path in room.iterdir() if "lock" not in path.name) == ["env"]
    done = shell.run("-e", tarball.path, "--id", "another", "-d", room / "new", "which-one")
    assert (done.returncode, done.stdout) == (125, "")
    assert tarball.identity in done.stderr


@pytest.mark.parametrize("form", FORMS)
def test_layers_are_unpacked_side_by_side(
    shell: World, forms: dict[str, tarballs.Tarball], room: Path, form: str
) -> None:
    done = shell.run("-e", forms[form].path, "-d", room / "env", "--debug", env={"CORES": "2"})
    assert "in 2 streams" in done.stderr
    assert "once more" not in done.stderr


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize("form", FORMS)
def test_a_warm_run_without_identity_starts_no_process(
    shell: World, forms: dict[str, tarballs.Tarball], room: Path, tmp_path: Path, form: str
) -> None:
    options = ["-e", forms[form].path, "-d", room / "env"]
    assert shell.run(*options).returncode == 0
    argv = [str(shutil.which("strace")), "-f", "-o", tmp_path / "trace", "-e", "trace=process"]
    subprocess.run([*argv, *shell.argv(*options, "/bin/true")], check=True, env=shell.environ())
    calls = (tmp_path / "trace").read_text()
    assert [word for word in ("fork(", "clone(", "clone3(") if word in calls] == []


@pytest.mark.parametrize("form", FORMS)
def test_parts(shell: World, forms: dict[str, tarballs.Tarball], room: Path, tmp_path: Path, form: str) -> None:
    data, (start, length) = forms[form].path.read_bytes(), forms[form].spans[0]
    parts = []
    for number, piece in enumerate((data[:700], data[700 : start + length], data[start + length :])):
        parts += ["-e", tmp_path / f"part {number}"]
        (tmp_path / f"part {number}").write_bytes(piece)
    for _ in ("cold", "warm"):
        done = shell.run(*parts, "-d", room / "env", "which-one", env={"CORES": "3"})
        assert (done.returncode, done.stdout, done.stderr) == (0, "one\n", "")


@pytest.mark.parametrize("form", FORMS)
def test_a_long_manifest(shell: World, room: Path, form: str) -> None:
    tarball = tarballs.ours(room / "t", compression=form, manifest_padding=150_000)
    assert tarball.member > 65536
    for _ in ("cold", "warm"):
        done = shell.run("-e", tarball.path, "-d", room / "env", "--id", tarball.identity, "which-one")
        assert (done.returncode, done.stdout, done.stderr) == (0, "one\n", "")


@pytest.mark.parametrize("form", FORMS)
def test_relocation(shell: World, room: Path, form: str) -> None:
    entries = tarballs.fake_prefix()
    entries["bin/tool"] = tarballs.script(f"#!/bin/sh\necho {tarballs.PLACEHOLDER}\n")
    words = f'sed -i "s|{tarballs.PLACEHOLDER}|$2|" "${{0%/*}}/tool"'
    entries["bin/conda-unpack"] = tarballs.script(f'#!/bin/sh\n[ "$1" = --prefix ] && {words}\n')
    lines = f"placeholder {tarballs.PLACEHOLDER}\nrelocate text 15 bin/tool"
    tarball = tarballs.ours(room / "t", entries, compression=form, extra=lines)
    done = shell.run("-e", tarball.path, "-d", room / "env", "tool")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{room}/env\n", "")


def test_without_the_program(
    shell: World, forms: dict[str, tarballs.Tarball], samples: Samples, room: Path, tmp_path: Path
) -> None:
    """The error names it, and the way out."""
    parts = [path for path in shell.path.split(":") if not path.endswith("zstd-bin")]
    path = ":".join(parts) if shell.name == "busybox" else path_without(tmp_path / "bin", "zstd")
    done = shell.run("-e", forms["zstd"].path, "-d", room / "env", "which-one", env={"PATH": path})
    assert (done.returncode, done.stdout) == (125, "")
    assert "no program zstd" in done.stderr
    assert "--compression gzip" in done.stderr
    assert not (room / "env").exists()
    for other in (forms["none"], samples.ours):
        done = shell.run("-e", other.path, "-d", room / "env", "which-one", env={"PATH": path})
        assert (done.returncode, done.stdout, done.stderr) == (0, "one\n", "")
    # what is unpacked already needs nothing
    done = shell.run("-e", forms["zstd"].path, "-d", room / "env", "which-one", env={"PATH": path})
    assert (done.returncode, done.stdout, done.stderr) == (0, "one\n", "")


@pytest.mark.parametrize("program", ["tail", "head", "awk", "zstd", "sed", "od", "tr"])
def test_one_program_dies_before_it_has_said_anything(
    forms: dict[str, tarballs.Tarball],
    unpacked: Tree,
    room: Path,
    tmp_path_factory: pytest.TempPathFactory,
    program: str,
) -> None:
    world = make_world("dash", tmp_path_factory.getbasetemp())
    (room / "bin").mkdir()
    real = shutil.which(program, path=world.path)
    wrong: list[object] = []
    refused = 0
    for form in FORMS:
        for number in range(1, 7):
            (room / "count").write_text("")
            (room / "bin" / program).write_text(
                f"#!/bin/sh\necho >>'{room}/count'\n"
                f"[ $(wc -l <'{room}/count') != {number} ] || kill -9 $$\nexec {real} \"$@\"\n"
            )
            (room / "bin" / program).chmod(0o755)
            env = {"PATH": f"{room}/bin:{world.path}", "CORES": "3"}
            done = world.run("-e", forms[form].path, "-d", room / "env", "which-one", env=env)
            if done.returncode == 125:
                refused += 1
                if (room / "env").exists():
                    wrong.append((form, number, "is there"))
                continue
            again = world.run("-e", forms[form].path, "--id", forms[form].identity, "-d", room / "env", "which-one")
            if (again.stdout, tree(room / "env")) != ("one\n", unpacked):
                wrong.append((form, number, done, again))
            shutil.rmtree(room / "env")
    print(f"{program} killed at once: {len(FORMS) * 6}, refused: {refused}, wrong: {len(wrong)}")
    assert wrong == []


# ---- damage --------------------------------------------------------------------------------------------------


@counts
@pytest.mark.parametrize("form", FORMS)
def test_truncated(
    faulty: World, forms: dict[str, tarballs.Tarball], unpacked: Tree, room: Path, form: str, count: int
) -> None:
    data, chance = forms[form].path.read_bytes(), random.Random(form)
    offsets = {0, 4, 6, 512, len(data) - 1, len(data) - 4, len(data) - 1024}
    offsets |= {chance.randrange(len(data)) for _ in range(count)}
    offsets |= {512 * chance.randrange(len(data) // 512) for _ in range(count)}
    offsets |= {chance.randrange(forms[form].member) for _ in range(count // 4)}
    wrong = refused = 0
    for offset in sorted(offsets):
        (room / "cut").write_bytes(data[:offset])
        was_refused, right = damaged_run(faulty, room / "cut", room / "env", unpacked)
        refused += was_refused
        wrong += not right
    print(f"{faulty.name}: {form}: truncations: {len(offsets)}, refused: {refused}, wrong: {wrong}")
    assert wrong == 0
    assert refused == len(offsets)


@pytest.mark.parametrize("form", FORMS)
def test_truncated_between_layers(shell: World, forms: dict[str, tarballs.Tarball], room: Path, form: str) -> None:
    """zstd, and tar for some, exit 0 for each of these."""
    tarball = forms[form]
    data, tried = tarball.path.read_bytes(), 0
    for start in (tarball.member, *(start + length for start, length in tarball.spans)):
        (room / "cut").write_bytes(data[:start])
        for cores in ("1", "3"):
            done = shell.run("-e", room / "cut", "-d", room / "env", env={"CORES": cores})
            assert (done.returncode, "damaged" in done.stderr) == (125, True)
            tried += 1
    print(f"{shell.name}: {form}: cut between layers: {tried}, wrong: 0")
    assert tried >= 8
    assert not (room / "env").exists()


@counts
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("cores", ["1", "2"])
def test_flipped(
    faulty: World,
    forms: dict[str, tarballs.Tarball],
    unpacked: Tree,
    room: Path,
    form: str,
    cores: str,
    count: int,
) -> None:
    """One bit. zstd: refused, or nothing has changed. A bare tar has no checksum of contents, as any other has none."""
    tarball = forms[form]
    data, chance = tarball.path.read_bytes(), random.Random(form + cores)
    places = [(chance.randrange(len(data)), 1 << chance.randrange(8)) for _ in range(count)]
    places += [(chance.randrange(tarball.member), 1 << chance.randrange(8)) for _ in range(count // 2)]
    for start, length in tarball.spans:
        places += [(start + at, 1 << chance.randrange(8)) for at in (0, length - 1)]
    wrong: list[object] = []
    refused = seen = 0
    for offset, bit in places:
        changed = bytearray(data)
        changed[offset] ^= bit
        (room / "flipped").write_bytes(changed)
        done = faulty.run("-e", room / "flipped", "-d", room / "env", env={"CORES": cores})
        if done.returncode == 125:
            refused += 1
            if (room / "env").exists():
                wrong.append((offset, bit, "is there"))
            continue
        found = tree(room / "env")
        different = [name for name in unpacked.keys() | found.keys() if unpacked.get(name) != found.get(name)]
        seen += bool(different)
        if done.returncode or (different and (form == "zstd" or not one_bit(different, unpacked, found))):
            wrong.append((offset, bit, done, different))
        shutil.rmtree(room / "env")
    print(
        f"{faulty.name}: {form} on {cores} cores: flips: {len(places)}, refused: {refused}, "
        f"in a file's content: {seen}, wrong: {len(wrong)}"
    )
    assert wrong == []
    assert refused > len(places) / 3 or form == "none"


def one_bit(different: list[str], before: Tree, after: Tree) -> bool:
    """Whether one file differs, by one bit of its content."""
    if len(different) != 1 or different[0] not in before or different[0] not in after:
        return False
    (kind, old), (now, new) = before[different[0]], after[different[0]]
    flips = [bin(one ^ two).count("1") for one, two in zip(old, new, strict=False) if one != two]
    return kind == now and len(old) == len(new) and flips == [1]


# A zstd that takes its time and not the processor's, so that there is a middle to be killed in.
SLOW = f"""#!{sys.executable} -IS
import subprocess, sys, time
if sys.argv[1:] != ["-dc"]:
    sys.exit(subprocess.run([{ZSTD!r}, *sys.argv[1:]]).returncode)
done = subprocess.run([{ZSTD!r}, "-dc"], stdin=sys.stdin, stdout=subprocess.PIPE)
step = len(done.stdout) // 25 + 1
for start in range(0, len(done.stdout), step):
    sys.stdout.buffer.write(done.stdout[start : start + step])
    sys.stdout.buffer.flush()
    time.sleep(0.01)
sys.exit(done.returncode)
"""


@counts
@pytest.mark.parametrize("form", FORMS)
def test_the_group_is_killed(faulty: World, room: Path, tmp_path: Path, form: str, count: int) -> None:
    prefix = tarballs.fake_prefix(name="large", files=700, size=3000)
    tarball = tarballs.ours(tmp_path / "large", prefix, compression=form, layers=9)
    (tmp_path / "expected").mkdir()
    subprocess.run(["tar", "-xf", tarball.path, "-C", tmp_path / "expected"], check=True)
    expected = tree(tmp_path / "expected")
    world = faulty
    if form == "zstd":
        (tmp_path / "slow").mkdir()
        (tmp_path / "slow/zstd").write_text(SLOW)
        (tmp_path / "slow/zstd").chmod(0o755)
        world = dataclasses.replace(faulty, path=f"{tmp_path}/slow:{faulty.path}")
    in_time = killed_groups(world, faulty, ["-e", tarball.path], expected, room, count, f"{form}: ")
    assert in_time > count / 3 or form == "none"
