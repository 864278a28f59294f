"""Commits from local repositories: the one that is meant, its files alone, and nothing that a repository could run."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from poncho_wq.build import git
from poncho_wq.build.data import fetch_data, lock_data, place_data
from poncho_wq.build.datastore import DataStore
from poncho_wq.errors import BuildError, FetchError, SpecError
from poncho_wq.progress import Progress
from poncho_wq.spec import EnvSpec


@pytest.fixture(autouse=True)
def _own_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The configuration of whoever runs the tests is not part of them."""
    for name in list(os.environ):
        if name.startswith("GIT_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    (tmp_path / "gitconfig").write_text("[user]\n name = T\n email = t@example.org\n[init]\n defaultBranch = main\n")


class Repository:
    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()
        self.git("init", "--quiet")

    def git(self, *arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=self.path, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    def commit(self, **files: str) -> str:
        for name, content in files.items():
            path = self.path / name.replace("__", "/").replace("_dot_", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "-m", "c")
        return self.git("rev-parse", "HEAD")


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    made = Repository(tmp_path / "repo")
    made.commit(a="one\n", sub__b="b\n")
    return made


def spec_for(remote: object, tag: str | None = None) -> EnvSpec:
    source = {"remote": str(remote)} if tag is None else {"remote": str(remote), "tag": tag}
    return EnvSpec.from_dict({"git": {"REPO": source}})


def fetch(remote: object, tag: str | None, tmp_path: Path) -> tuple[Path, str, list[str]]:
    """Fetches into a new prefix: where the files are, the commit, what the user was told."""
    seen: list[Progress] = []
    number = len(list(tmp_path.glob("prefix*")))
    prefix = tmp_path / f"prefix{number}"
    (group,), (locked,) = fetch_data(spec_for(remote, tag), tmp_path / "cache", prefix, seen.append)
    assert (group.name, group.kind) == ("REPO", "data")
    assert locked.commit is not None
    directory = prefix / "poncho" / "data" / "REPO"
    assert sorted(group.files) == list(group.files)
    assert all(os.path.lexists(prefix / file) for file in group.files)
    return directory, locked.commit, [each.detail for each in seen if each.stage == "note"]


def names(directory: Path) -> set[str]:
    return {path.relative_to(directory).as_posix() for path in directory.rglob("*") if not path.is_dir()}


@pytest.mark.parametrize("form", ["path", "url"])
@pytest.mark.parametrize("kind", ["commit", "tag", "annotated tag", "branch", "short commit", "none", "older commit"])
def test_what_a_tag_may_be(repository: Repository, tmp_path: Path, kind: str, form: str) -> None:
    first = repository.git("rev-parse", "HEAD")
    repository.git("tag", "light")
    repository.git("tag", "-a", "heavy", "-m", "x")
    repository.git("branch", "side")
    second = repository.commit(a="two\n")
    tag, commit, content = {
        "commit": (second, second, "two\n"),
        "older commit": (first, first, "one\n"),
        "short commit": (first[:10], first, "one\n"),
        "tag": ("light", first, "one\n"),
        "annotated tag": ("heavy", first, "one\n"),
        "branch": ("side", first, "one\n"),
        "none": (None, second, "two\n"),
    }[kind]
    remote = repository.path if form == "path" else repository.path.as_uri()
    directory, got, notes = fetch(remote, tag, tmp_path)
    assert got == commit
    assert (directory / "a").read_text() == content
    assert names(directory) == {"a", "sub/b"}
    assert bool(notes) == (kind in ("branch", "none"))
    if notes:
        assert f'"tag": "{commit}"' in notes[0]


def test_a_tag_comes_before_a_branch_of_its_name(repository: Repository, tmp_path: Path) -> None:
    repository.git("tag", "x")
    tagged = repository.git("rev-parse", "HEAD")
    repository.git("checkout", "--quiet", "-b", "x")
    repository.commit(a="branch\n")
    assert fetch(repository.path, "x", tmp_path)[1] == tagged


def test_a_commit_in_the_store_needs_no_remote(repository: Repository, tmp_path: Path) -> None:
    commit = repository.git("rev-parse", "HEAD")
    fetch(repository.path, commit, tmp_path)
    repository.path.rename(tmp_path / "gone")
    assert fetch(repository.path, commit, tmp_path)[1] == commit


def test_offline_takes_what_is_in_the_store(repository: Repository, tmp_path: Path) -> None:
    commit = fetch(repository.path, "main", tmp_path)[1]
    offline = DataStore(tmp_path / "cache", offline=True)
    (locked,) = lock_data(spec_for(repository.path, commit), offline, lambda _: None)
    assert locked.commit == commit
    for spec in (spec_for(repository.path, "main"), spec_for(repository.path, "0" * 40)):
        with pytest.raises(FetchError, match="nothing may be downloaded"):
            lock_data(spec, offline, lambda _: None)


def test_one_commit_of_two_remotes_is_kept_once(repository: Repository, tmp_path: Path) -> None:
    subprocess.run(["git", "clone", "--quiet", repository.path, tmp_path / "clone"], check=True)
    fetch(repository.path, "main", tmp_path)
    commit = fetch(tmp_path / "clone", "main", tmp_path)[1]
    assert [path.name for path in (tmp_path / "cache" / "data" / "git").iterdir()] == [commit]


def test_a_branch_that_moved_is_seen_and_a_lock_stays(repository: Repository, tmp_path: Path) -> None:
    store, spec = DataStore(tmp_path / "cache"), spec_for(repository.path, "main")
    before = lock_data(spec, store, lambda _: None)
    repository.commit(a="two\n")
    after = lock_data(spec, store, lambda _: None)
    assert before != after
    place_data(spec, before, store, tmp_path / "prefix", lambda _: None)
    assert (tmp_path / "prefix/poncho/data/REPO/a").read_text() == "one\n"


def test_what_was_evicted_is_fetched_again_exactly(repository: Repository, tmp_path: Path) -> None:
    spec = spec_for(repository.path, "main")
    locked = lock_data(spec, DataStore(tmp_path / "cache"), lambda _: None)
    repository.commit(a="two\n")
    place_data(spec, locked, DataStore(tmp_path / "other"), tmp_path / "prefix", lambda _: None)
    assert (tmp_path / "prefix/poncho/data/REPO/a").read_text() == "one\n"


def test_a_damaged_repository_in_the_store_is_fetched_again(repository: Repository, tmp_path: Path) -> None:
    commit = fetch(repository.path, "main", tmp_path)[1]
    for pack in (tmp_path / "cache/data/git" / commit / "objects").rglob("*"):
        if pack.is_file():
            pack.unlink()
    assert fetch(repository.path, commit, tmp_path)[1] == commit


def test_unknown_names_are_told_with_what_there_is(repository: Repository, tmp_path: Path) -> None:
    repository.git("tag", "v1.0")
    with pytest.raises(FetchError, match=r'git\.REPO: .* has no commit, tag or branch "v1\.O"\ndid you mean v1\.0'):
        fetch(repository.path, "v1.O", tmp_path)
    with pytest.raises(FetchError, match="no commit, tag or branch"):
        fetch(repository.path, "1234567", tmp_path)
    with pytest.raises(FetchError):
        fetch(repository.path, "0" * 40, tmp_path)


def test_a_remote_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FetchError, match=r"git\.REPO: cannot fetch .*nowhere") as caught:
        fetch(tmp_path / "nowhere", "main", tmp_path)
    assert caught.value.command[0].endswith("git")
    assert not (tmp_path / "cache" / "data" / "git").exists()


def test_an_empty_repository(tmp_path: Path) -> None:
    Repository(tmp_path / "empty")
    with pytest.raises(FetchError, match="is empty"):
        fetch(tmp_path / "empty", None, tmp_path)


# What a repository or a configuration could make git do


@pytest.mark.parametrize(
    "remote", ["-oProxyCommand=touch x", "--upload-pack=touch x", "ext::sh -c touch% x", "ssh://-oProxyCommand=x/y"]
)
def test_remotes_that_run_something_are_refused(remote: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="REPO"):
        spec_for(remote, "main")
    with pytest.raises(SpecError):
        git.resolve(remote, "main", what="git.REPO")
    with pytest.raises(SpecError):
        git.fetch(remote, "0" * 40, None, tmp_path / "r", what="git.REPO")
    assert not (tmp_path / "r").exists()


def test_a_configuration_cannot_bring_in_another_transport(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trap = tmp_path / "trapped"
    (tmp_path / "gitconfig").write_text(
        f'[url "ext::touch {trap}"]\n insteadOf = {repository.path}\n[protocol "ext"]\n allow = always\n'
    )
    with pytest.raises(FetchError, match="ext"):
        fetch(repository.path, "main", tmp_path)
    assert not trap.exists()


def test_no_hook_or_filter_is_run(repository: Repository, tmp_path: Path) -> None:
    trap = tmp_path / "trapped"
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    for hook in ("post-checkout", "reference-transaction", "post-index-change"):
        (hooks / hook).write_text(f"#!/bin/sh\ntouch {trap}\n")
        (hooks / hook).chmod(0o755)
    repository.commit(_dot_gitattributes="a filter=evil\n", a="content\n")
    with (tmp_path / "gitconfig").open("a") as config:
        config.write(f"[core]\n hooksPath = {hooks}\n fsmonitor = touch {trap}\n")
        config.write(f'[filter "evil"]\n smudge = touch {trap}; cat\n required = true\n')
    directory, _, _ = fetch(repository.path, "main", tmp_path)
    assert (directory / "a").read_text() == "content\n"
    assert not trap.exists()


def test_line_ends_are_those_of_the_repository(repository: Repository, tmp_path: Path) -> None:
    with (tmp_path / "gitconfig").open("a") as config:
        config.write("[core]\n autocrlf = true\n")
    directory, _, _ = fetch(repository.path, "main", tmp_path)
    assert (directory / "a").read_bytes() == b"one\n"


@pytest.mark.parametrize("target", ["/etc/passwd", "../../../../outside", "sub/../../x"])
def test_links_out_of_the_checkout_are_refused(repository: Repository, tmp_path: Path, target: str) -> None:
    (repository.path / "link").symlink_to(target)
    repository.commit()
    with pytest.raises(BuildError, match=r"git\.REPO: the link 'link' leads out of the directory"):
        fetch(repository.path, "main", tmp_path)


def test_links_and_programs_inside_stay(repository: Repository, tmp_path: Path) -> None:
    (repository.path / "link").symlink_to("sub/b")
    (repository.path / "program").write_text("#!/bin/sh\n")
    (repository.path / "program").chmod(0o755)
    repository.commit()
    directory, _, _ = fetch(repository.path, "main", tmp_path)
    assert os.readlink(directory / "link") == "sub/b"
    assert os.access(directory / "program", os.X_OK)
    assert not os.access(directory / "a", os.X_OK)


def test_submodules_and_lfs_are_told(repository: Repository, tmp_path: Path) -> None:
    Repository(tmp_path / "other").commit(x="x")
    repository.git("-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(tmp_path / "other"), "mod")
    repository.commit(_dot_gitattributes="*.bin filter=lfs\n")
    directory, _, notes = fetch(repository.path, "main", tmp_path)
    assert any("submodules are not fetched" in note and "mod" in note for note in notes)
    assert any("git-lfs" in note for note in notes)
    assert list((directory / "mod").iterdir()) == []


def test_awkward_file_names(repository: Repository, tmp_path: Path) -> None:
    awkward = {"a b", "$(touch x)", "-rf", "ü", "quote'\""}
    for name in awkward:
        (repository.path / name).write_text(name)
    repository.commit()
    directory, _, _ = fetch(repository.path, "main", tmp_path)
    assert awkward < names(directory)


def test_credentials_come_from_a_helper_and_are_not_asked_for(tmp_path: Path) -> None:
    from tests.data_server import faulty_server, status

    with faulty_server() as server:
        path = "/r.git/info/refs?service=git-upload-pack"
        server.faults[path] = [status(401, WWW_Authenticate='Basic realm="x"') for _ in range(9)]
        with pytest.raises(FetchError, match="nobody is asked for a password"):
            fetch(f"{server.url}/r.git", "main", tmp_path)
        helper = tmp_path / "helper"
        helper.write_text("#!/bin/sh\necho username=me; echo password=s3cret\n")
        helper.chmod(0o755)
        with (tmp_path / "gitconfig").open("a") as config:
            config.write(f"[credential]\n helper = {helper}\n")
        with pytest.raises(FetchError) as caught:
            fetch(f"{server.url}/r.git", "main", tmp_path)
        assert "s3cret" not in f"{caught.value} {caught.value.log} {caught.value.command}"
        assert "Basic bWU6czNjcmV0" in {request.headers["Authorization"] for request in server.requests}
