"""One unpack per node: a cache that all tasks of a user share, bounded, and never without what somebody uses."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.wrapper import tarballs
from tests.wrapper.conftest import Samples, World, make_world, tree
from tests.wrapper.killing import Verdict, all_ended, counts, wait_until
from tests.wrapper.test_faults import NOBODY, dead_owner, ordinary, path_without, small_disk, stats

HOLD = "echo here; read line; which-one"


@pytest.fixture(params=["dash", "bash", "busybox", "no flock"])
def shell(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    base = tmp_path_factory.getbasetemp()
    if request.param != "no flock":
        return make_world(request.param, base)
    world = make_world("dash", base)
    world.path = path_without(base / "no-flock", "flock")
    return world


@pytest.fixture(scope="session")
def several(tmp_path_factory: pytest.TempPathFactory) -> list[tarballs.Tarball]:
    """Environments of about a mebibyte each; `which-one` of number N says N."""
    directory = tmp_path_factory.mktemp("several")
    return [
        tarballs.ours(directory / f"{name}.tar.gz", tarballs.fake_prefix(name=str(name), files=50, size=20_000))
        for name in range(5)
    ]


def cached(cache: Path) -> set[str]:
    """The identities of the environments in a cache."""
    return {path.name for path in cache.iterdir() if not path.name.startswith(".")}


def run(world: World, cache: Path, tarball: tarballs.Tarball, *command: str, size: str = "", **env: str) -> str:
    limit = {"PONCHO_NODE_CACHE_SIZE": size} if size else {}
    done = world.run(
        "-n", "-e", tarball.path, "--", *command, env={"PONCHO_NODE_CACHE": str(cache), **limit, **env}, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout


def hold(world: World, cache: Path, tarball: tarballs.Tarball, *command: str) -> subprocess.Popen[str]:
    """A command that uses the environment until its stdin is closed."""
    process = world.start(
        "-n", "-e", tarball.path, *(command or ("sh", "-c", HOLD)), env={"PONCHO_NODE_CACHE": str(cache)},
        stdin=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "here\n"
    return process


def test_unpacked_once_for_all(shell: World, several: list[tarballs.Tarball], room: Path) -> None:
    cache, lines = room / "deep/the cache", room / "stats"
    for _ in range(3):
        assert run(shell, cache, several[0], "which-one", PONCHO_STATS=str(lines)) == "0\n"
    assert [row["unpacked"] for row in stats(lines)] == ["1", "0", "0"]
    assert cache.stat().st_mode & 0o777 == 0o700
    assert cached(cache) == {several[0].identity}
    # the identity is enough, once it is there
    words = ["-n", "-e", "no such file", "--id", several[0].identity, "which-one"]
    assert shell.run(*words, env={"PONCHO_NODE_CACHE": str(cache)}).stdout == "0\n"


def test_a_command_named_within_the_prefix(shell: World, several: list[tarballs.Tarball], room: Path) -> None:
    assert run(shell, room / "cache", several[0], "@/bin/which-one") == "0\n"
    done = shell.run("-e", several[0].path, "@/bin/which-one")
    assert (done.returncode, done.stdout) == (0, "0\n")
    done = shell.run("-e", several[0].path, "-d", room / "env", "@/bin/sh")
    assert done.returncode == 127


def test_the_least_recently_used_goes_first(shell: World, several: list[tarballs.Tarball], room: Path) -> None:
    cache, lines = room / "cache", room / "stats"
    for number in (0, 1):
        run(shell, cache, several[number], "true")
        time.sleep(1.1 if shell.name == "busybox" else 0.02)  # busybox compares whole seconds
    run(shell, cache, several[0], "true")  # a warm run counts as use
    assert run(shell, cache, several[2], "which-one", size="3M", PONCHO_STATS=str(lines)) == "2\n"
    assert cached(cache) == {several[0].identity, several[2].identity}
    assert stats(lines)[0]["evicted"] == "1"
    # one that is larger than the limit has the cache for itself
    assert run(shell, cache, several[3], "which-one", size="1000") == "3\n"
    assert cached(cache) == {several[3].identity}
    assert [path.name for path in cache.glob(".poncho-[on]*")] == []


def test_what_is_in_use_stays(shell: World, several: list[tarballs.Tarball], room: Path) -> None:
    cache = room / "cache"
    one = hold(shell, cache, several[0])
    # a child that goes on when the command has ended holds it as well
    other = hold(shell, cache, several[1], "sh", "-c", "exec 3<&0; (echo here; read line; which-one) <&3 & exit 3")
    assert other.wait() == 3
    run(shell, cache, several[2], "true", size="1K")
    assert cached(cache) == {tarball.identity for tarball in several[:3]}
    run(shell, cache, several[3], "true", size="1K")
    assert cached(cache) == {tarball.identity for tarball in (*several[:2], several[3])}
    for process, word in ((one, "0\n"), (other, "1\n")):
        assert process.communicate("\n", timeout=60)[0] == word
    run(shell, cache, several[4], "true", size="1K")
    assert cached(cache) == {several[4].identity}


def test_a_command_that_was_killed_holds_nothing(shell: World, several: list[tarballs.Tarball], room: Path) -> None:
    process = hold(shell, room / "cache", several[0])
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    all_ended(process.pid)
    run(shell, room / "cache", several[1], "true", size="1K")
    assert cached(room / "cache") == {several[1].identity}


def test_who_died_while_evicting_is_cleaned_up_after(shell: World, several: list[tarballs.Tarball], room: Path) -> None:
    cache = room / "cache"
    process = hold(shell, cache, several[0])
    ready = cache / several[0].identity / "poncho/ready"
    ready.rename(ready.with_name("ready-aside"))
    lock = cache / f".poncho-lock.{several[0].identity}.held"
    lock.write_text(dead_owner())
    (cache / ".poncho-old.another.1.0/bin").mkdir(parents=True)
    (cache / ".poncho-new.another.4194300.0/bin").mkdir(parents=True)
    before = ready.parent.stat().st_ino
    lines = room / "stats"
    assert run(shell, cache, several[0], "which-one", PONCHO_STATS=str(lines)) == "0\n"
    assert (stats(lines)[0]["unpacked"], ready.parent.stat().st_ino) == ("0", before)
    assert process.communicate("\n", timeout=60)[0] == "0\n"
    run(shell, cache, several[1], "true")
    assert [path.name for path in cache.glob(".poncho-[on]*")] == []


def test_who_comes_between_the_look_and_the_removal(
    tmp_path_factory: pytest.TempPathFactory, several: list[tarballs.Tarball], room: Path
) -> None:
    """Run F of the story: the evictor has looked, and is stopped before he renames DIR away."""
    world = make_world("dash", tmp_path_factory.getbasetemp())
    cache = room / "cache"
    run(world, cache, several[0], "true")
    (room / "bin").mkdir()
    (room / "bin/mv").write_text(
        f"#!/bin/sh\ncase $2 in */.poncho-old.*) : >'{room}/looked'\n"
        f"while [ ! -e '{room}/go' ]; do sleep 0.02; done ;; esac\nexec /bin/mv \"$@\"\n"
    )
    (room / "bin/mv").chmod(0o755)
    env = {"PONCHO_NODE_CACHE": str(cache), "PONCHO_NODE_CACHE_SIZE": "1K", "PATH": f"{room}/bin:{world.path}"}
    evictor = world.start("-n", "-e", several[1].path, "which-one", env=env)
    wait_until(lambda: (room / "looked").exists(), "nobody is evicted")
    late = world.start("-n", "-e", several[0].path, "which-one", env={"PONCHO_NODE_CACHE": str(cache)})
    time.sleep(0.3)
    assert late.poll() is None
    (room / "go").touch()
    assert evictor.communicate(timeout=60) == ("1\n", "")
    assert late.communicate(timeout=60) == ("0\n", "")
    # The evictor makes room once more when it has unpacked, and may find that the late one has ended.
    assert cached(cache) - {several[0].identity} == {several[1].identity}


def test_the_evictor_is_ended_in_the_middle(
    tmp_path_factory: pytest.TempPathFactory, several: list[tarballs.Tarball], room: Path
) -> None:
    world = make_world("dash", tmp_path_factory.getbasetemp())
    cache = room / "cache"
    run(world, cache, several[0], "true")
    (room / "bin").mkdir()
    (room / "bin/mv").write_text(
        f"#!/bin/sh\ncase $2 in */.poncho-old.*) : >'{room}/looked'; sleep 5; exit 1 ;; esac\nexec /bin/mv \"$@\"\n"
    )
    (room / "bin/mv").chmod(0o755)
    env = {"PONCHO_NODE_CACHE": str(cache), "PONCHO_NODE_CACHE_SIZE": "1K", "PATH": f"{room}/bin:{world.path}"}
    for number in (signal.SIGTERM, signal.SIGKILL):
        (room / "looked").unlink(missing_ok=True)
        evictor = world.start("-n", "-e", several[1].path, "which-one", env=env)
        wait_until(lambda: (room / "looked").exists(), "nobody is evicted")
        os.killpg(evictor.pid, number)
        assert evictor.communicate(timeout=60)[0] == ""
        all_ended(evictor.pid)
        assert run(world, cache, several[0], "which-one") == "0\n"
    run(world, cache, several[2], "true")
    assert [path.name for path in cache.glob(".poncho-[on]*")] == []


@counts
def test_many_want_more_than_fits(shell: World, several: list[tarballs.Tarball], room: Path, count: int) -> None:
    """Workers that evict at once, and are killed at any moment: nobody ever runs in half an environment."""
    cache, lines = room / "cache", room / "stats"
    expected = []
    for tarball in several[:4]:
        (room / tarball.identity).mkdir()
        subprocess.run(["tar", "-xzf", tarball.path, "-C", room / tarball.identity], check=True)
        expected.append(tree(room / tarball.identity))
        shutil.rmtree(room / tarball.identity)
    env = {"PONCHO_NODE_CACHE": str(cache), "PONCHO_NODE_CACHE_SIZE": "3M", "PONCHO_STATS": str(lines)}
    verdict, killed = Verdict(), 0
    for turn in range(count):
        # the data is read while others evict: a part that went away would be missed
        command = 'which-one; sleep 0.0$1; cat "$PONCHO_PREFIX"/lib/*/* | wc -c'
        running = [
            shell.start("-n", "-e", several[number % 4].path, "sh", "-c", command, "sh", str(number), env=env)
            for number in range(turn, turn + 6)
        ]
        time.sleep(0.02 * (turn % 10))
        if turn % 2:
            os.killpg(running[0].pid, signal.SIGKILL)
        sizes = set()
        for number, process in zip(range(turn, turn + 6), running, strict=True):
            out, err = process.communicate(timeout=120)
            if process.returncode == -signal.SIGKILL:
                killed += 1
                continue
            words = out.split()
            verdict.check(turn, process.returncode == 0 and err == "" and len(words) == 2, (process.returncode, err))
            if len(words) == 2:
                verdict.check(turn, words[0] == str(number % 4), out)
                sizes.add(words[1])
        verdict.check(turn, len(sizes) <= 1, sizes)
    evicted = sum(int(row["evicted"]) for row in stats(lines))
    run(shell, cache, several[0], "true", size="3M")
    for number in range(4):
        directory = cache / several[number].identity
        if directory.exists():
            # Who was killed while he looked whether it is in use has left `ready` aside: the next run names it back.
            run(shell, cache, several[number], "true", size="1G")
            found = {
                name: entry
                for name, entry in tree(directory).items()
                if name not in ("poncho/in-use", "poncho/used", "poncho/kib")
            }
            differs = sorted(set(found.items()) ^ set(expected[number].items()))
            verdict.check(number, not differs, f"not whole: {differs[:3]}, {len(differs)} in all")
    print(f"{shell.name}: runs: {6 * count}, killed: {killed}, evicted: {evicted}, wrong: {len(verdict.wrong)}")
    assert verdict.wrong == []
    assert evicted >= count / 2


def test_refused(shell: World, several: list[tarballs.Tarball], samples: Samples, room: Path) -> None:
    def refused(env: dict[str, str], *words: object) -> str:
        done = shell.run("-n", "-e", several[0].path, *words, "true", env=env)
        assert (done.returncode, done.stdout) == (125, "")
        return done.stderr

    (room / "open").mkdir(mode=0o755)
    assert "chmod 700" in refused({"PONCHO_NODE_CACHE": str(room / "open")})
    assert "absolute" in refused({"PONCHO_NODE_CACHE": "relative"})
    cache = {"PONCHO_NODE_CACHE": str(room / "cache")}
    for size in ("many", "12X", "-1", "1.5G"):
        assert size in refused({**cache, "PONCHO_NODE_CACHE_SIZE": size})
    assert "two different places" in refused(cache, "-d", room / "env")
    assert "--id" in refused(cache, "--id", "../x")
    done = shell.run("-n", "-e", samples.venv.path, "true", env=cache)
    assert done.returncode == 125
    assert "--id" in done.stderr
    done = shell.run("-n", "-e", samples.venv.path, "--id", "a-venv.1", "which-one", env=cache)
    assert (done.returncode, done.stdout, done.stderr) == (0, "venv\n", "")
    if os.getuid() == 0:
        (room / "theirs").mkdir(mode=0o700)
        os.chown(room / "theirs", NOBODY, NOBODY)
        assert "somebody else" in refused({"PONCHO_NODE_CACHE": str(room / "theirs")})


def test_sizes(shell: World, several: list[tarballs.Tarball], room: Path) -> None:
    """Room for two of them, in every spelling."""
    for size in ("3000000", "003000k", "3m", "3M"):
        for number in range(3):
            run(shell, room / "cache", several[number], "true", size=size)
        assert len(cached(room / "cache")) == 2, size
    for number in range(3):
        run(shell, room / "cache", several[number], "true", size="1G")
    assert len(cached(room / "cache")) == 3


def test_an_ordinary_user_and_the_usual_place(shell: World, several: list[tarballs.Tarball], public: Path) -> None:
    """A /tmp of its own for this test: the cache is below it, and one that another user made is not used."""
    user = ordinary(shell, public)
    tarball = Path(shutil.copy(several[0].path, public / "t.tar.gz"))
    script = public / "script"
    call = " ".join(f"'{word}'" for word in user.argv("-n", "-e", tarball, "which-one"))
    # what lies in this /tmp is out of sight behind the other, but for what is bound into it again
    script.write_text(
        f"mkdir -p '{public}/tmp' && mount -t tmpfs tmpfs '{public}/tmp' && chmod 1777 '{public}/tmp' &&\n"
        f"mkdir '{public}/tmp/{public.name}' && mount --bind '{public}' '{public}/tmp/{public.name}' &&\n"
        f"mount --rbind '{public}/tmp' /tmp && echo mounted || exit 0\n"
        f"{call}\n{call}\nls -ld /tmp/poncho-cache-{NOBODY} | cut -c1-10\n"
        f"rm -rf /tmp/poncho-cache-{NOBODY}; mkdir -m 755 /tmp/poncho-cache-{NOBODY}\n{call}\necho $?\n"
        f"rmdir /tmp/poncho-cache-{NOBODY}; ln -s /var /tmp/poncho-cache-{NOBODY}\n{call}\necho $?\n"
    )
    done = subprocess.run(
        ["unshare", "-m", "sh", script], env=user.environ(), capture_output=True, text=True, timeout=60
    )
    if not done.stdout.startswith("mounted"):
        pytest.skip("mounting is not allowed here")
    assert done.stdout.splitlines() == ["mounted", "0", "0", "drwx------", "125", "125"], done
    assert done.stderr.count("somebody else") == 2


def test_room_is_made_on_a_full_disk(shell: World, several: list[tarballs.Tarball], room: Path) -> None:
    with small_disk(room / "disk", "3m"):
        for number in (0, 1, 2, 0):
            assert run(shell, room / "disk/cache", several[number], "which-one") == f"{number}\n"
        process = hold(shell, room / "disk/cache", several[0])
        other = hold(shell, room / "disk/cache", several[1])
        done = shell.run("-n", "-e", several[2].path, "which-one", env={"PONCHO_NODE_CACHE": str(room / "disk/cache")})
        assert done.returncode == 125
        assert "needs" in done.stderr
        assert "free" in done.stderr
        for each, word in ((process, "0\n"), (other, "1\n")):
            assert each.communicate("\n", timeout=60)[0] == word


def test_a_warm_run_starts_no_process(shell: World, several: list[tarballs.Tarball], room: Path) -> None:
    """Nothing can be started where PATH is empty, and what a subshell would cost is seen in process numbers."""
    cache = room / "cache"
    run(shell, cache, several[0], "true")
    sh = str(shutil.which(shell.shell[0], path=shell.path) or shell.shell[0])
    env = {"PONCHO_NODE_CACHE": str(cache), "PATH": "/nonexistent", "PONCHO_STATS": str(room / "stats")}
    command = [sh, *shell.shell[1:], str(shell.wrapper), "-n", "-e", str(several[0].path), "@/bin/which-one"]
    trace = room / "trace"
    if shutil.which("strace") is None:
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")
        return
    calls = "trace=clone,clone3,fork,vfork,execve"
    done = subprocess.run(
        ["/usr/bin/strace", "-e", calls, "-o", trace, *command], env=env, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "0\n")
    lines = [line for line in trace.read_text().splitlines() if not line.startswith(("+++", "---"))]
    ours = [line for line in lines if "fork" in line or "clone" in line]
    assert ours == []
