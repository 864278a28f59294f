"""A commit of a git repository: which one a name means, brought here once, its files put somewhere.

git is run with the user's configuration where it speaks to a server, since keys, proxies and credential helpers are
configured there, and with none where it writes files, since hooks and filters are too.  Whatever the configuration
says, it may use the transports below alone, asks nobody for a password, and runs no hook.
"""

from __future__ import annotations

import difflib
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from poncho_wq.command import run
from poncho_wq.errors import BuildError, FetchError, redact
from poncho_wq.specs.urls import check_git_remote

_TRANSPORTS = "https:http:ssh:git:file"
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_ABBREVIATED = re.compile(r"[0-9a-f]{7,63}")
# Of git's variables those are kept that say how to reach a server; the rest point at other repositories.
_KEPT = re.compile(r"GIT_(SSL_.*|SSH.*|ASKPASS|HTTP_.*|PROXY_.*|CONFIG_.*|EXEC_PATH)")
_SILENCE = ("-c", "http.lowSpeedLimit=1", "-c", "http.lowSpeedTime=60")  # bytes a second, for that many seconds
_SAFE = ("-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false", "-c", "maintenance.auto=false")
_FETCH = ("fetch", "--quiet", "--no-recurse-submodules", "--no-auto-gc", "--no-write-fetch-head")
_SSH = "ssh -o BatchMode=yes -o ConnectTimeout=30 -o ServerAliveInterval=30"


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """What a name stands for: the ``commit`` (40 or 64 hexadecimal digits), as a commit, tag, branch or HEAD."""

    commit: str
    kind: str


def resolve(remote: str, tag: str | None, *, what: str) -> Resolved | None:
    """The commit that ``tag`` (None: the default branch) is at ``remote`` now.

    None where it looks like the beginning of a commit's name, which only the repository itself can complete.
    Raises ``FetchError`` when the remote cannot be reached or has no such name.
    """
    check_git_remote(remote)
    if tag is not None and is_commit(tag):
        return Resolved(commit=tag.lower(), kind="commit")
    refs = _refs(remote, what)
    if tag is None:
        if "HEAD" not in refs:
            raise FetchError(f"{what}: {redact(remote)} is empty", url=remote, advice="name a commit, tag or branch")
        return Resolved(commit=refs["HEAD"], kind="HEAD")
    for kind, name in (("tag", f"refs/tags/{tag}"), ("branch", f"refs/heads/{tag}"), ("reference", tag)):
        # An annotated tag is an object of its own; ^{} is the commit that it names.
        commit = refs.get(f"{name}^{{}}") or (refs.get(name) if name.startswith("refs/") else None)
        if commit:
            return Resolved(commit=commit, kind=kind)
    if _ABBREVIATED.fullmatch(tag.lower()):
        return None
    raise _unknown(remote, tag, refs, what)


def is_commit(tag: str | None) -> bool:
    """Whether ``tag`` is the whole name of a commit, which means the same everywhere."""
    return tag is not None and _COMMIT.fullmatch(tag.lower()) is not None


def _unknown(remote: str, tag: str, refs: Mapping[str, str], what: str) -> FetchError:
    names = sorted({re.sub(r"^refs/(heads|tags)/|\^\{\}$", "", name) for name in refs if name != "HEAD"})
    close = difflib.get_close_matches(tag, names, n=3)
    return FetchError(
        f'{what}: {redact(remote)} has no commit, tag or branch "{tag}"',
        url=remote,
        advice=f"did you mean {' or '.join(close)}?" if close else f"it has {', '.join(names[:8]) or 'none'}",
    )


def _refs(remote: str, what: str) -> dict[str, str]:
    listed = _git(["ls-remote", "--quiet", "--", check_git_remote(remote)], remote=remote, what=what)
    found = {}
    for line in listed.splitlines():
        commit, _, name = line.partition("\t")
        if _COMMIT.fullmatch(commit):
            found[name] = commit
    return found


def fetch(remote: str, commit: str | None, tag: str | None, repository: Path, *, what: str) -> str:
    """Make the new bare ``repository`` that holds one commit of ``remote``, and return that commit.

    ``commit`` None means that ``tag`` is the beginning of its name.  Raises ``FetchError``.
    """
    check_git_remote(remote)
    form = ["--object-format=sha256"] if commit and len(commit) == 64 else []
    _git(["init", "--quiet", "--bare", "--template=", *form, repository], remote=remote, what=what)
    if commit:
        wanted = ["--depth=1", "--no-tags", "--", remote, f"{commit}:refs/heads/wanted"]
        try:
            _git([*_FETCH, *wanted], repository, remote=remote, what=what)
        except FetchError as error:
            # Some servers give out what a name points to and nothing else; then all of it has to come.
            if not re.search(r"not our ref|unadvertised|no such remote ref|couldn't find remote ref", error.log, re.I):
                raise
        else:
            return commit
    _git([*_FETCH, "--", remote, "+refs/*:refs/remotes/all/*"], repository, remote=remote, what=what)
    name = commit or str(tag).lower()
    try:
        return _local(["rev-parse", "--verify", "--quiet", f"{name}^{{commit}}"], repository, what=what).strip()
    except BuildError:
        raise _unknown(remote, name, _refs(remote, what), what) from None


def holds(repository: Path, commit: str) -> bool:
    """Whether ``repository`` holds ``commit``."""
    try:
        _local(["cat-file", "-e", f"{commit}^{{commit}}"], repository, what="look for a commit")
    except BuildError:
        return False
    return True


def check_out(repository: Path, commit: str, directory: Path, *, what: str) -> list[str]:
    """Write the files of ``commit`` into the new directory ``directory``; returns notes for the user.

    Line ends are as in the repository.  Submodules and what git-lfs keeps elsewhere are not fetched.
    Raises ``BuildError``.
    """
    from poncho_wq.build.archive import check_links

    directory.mkdir()
    index = repository / f"index-{os.getpid()}"
    try:
        env = {"GIT_INDEX_FILE": str(index)}
        _local(["read-tree", commit], repository, what=f"{what}: read the files of commit {commit}", env=env)
        argv = ["checkout-index", "--all", "--quiet", f"--prefix={directory.absolute()}/"]
        _local(["--work-tree=.", *argv], repository, what=f"{what}: write the files of commit {commit}", env=env)
        listed = _local(["ls-files", "--stage", "-z"], repository, what=f"{what}: list the files", env=env)
    finally:
        index.unlink(missing_ok=True)
    check_links(directory, what)
    notes = []
    modules = [entry.partition("\t")[2] for entry in listed.split("\0") if entry.startswith("160000 ")]
    if modules:
        notes.append(f"{what}: submodules are not fetched, so these directories are empty: {', '.join(modules)}")
    if _uses_lfs(directory):
        notes.append(f"{what}: git-lfs, which keeps some of its files, is not asked: those are pointers to the data")
    return notes


def _uses_lfs(directory: Path) -> bool:
    for attributes in directory.rglob(".gitattributes"):
        if attributes.is_file() and b"filter=lfs" in attributes.read_bytes():
            return True
    return False


def _git(arguments: Sequence[str | Path], repository: Path | None = None, *, remote: str, what: str) -> str:
    """Run git as one that speaks to a server.  Raises ``FetchError`` with git's own words."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_") or _KEPT.fullmatch(name)}
    env |= {"GIT_ALLOW_PROTOCOL": _TRANSPORTS, "GIT_TERMINAL_PROMPT": "0", "GIT_LFS_SKIP_SMUDGE": "1", "LC_ALL": "C"}
    program = _program()
    if "GIT_SSH_COMMAND" not in env and "GIT_SSH" not in env and not _has_ssh_command(program, env):
        env["GIT_SSH_COMMAND"] = _SSH
    where = [] if repository is None else [f"--git-dir={repository}"]
    argv = [program, *_SAFE, *_SILENCE, *where, *map(str, arguments)]
    try:
        return run(argv, cwd=Path("/"), env=env, what="run git").stdout
    except BuildError as error:
        raise FetchError(
            f"{what}: cannot fetch {redact(remote)}: {_said(error.log)}",
            url=remote, command=error.command, log=error.log, advice=_advice(error.log),
        ) from error  # fmt: skip


def _local(arguments: Sequence[str], repository: Path, *, what: str, env: Mapping[str, str] | None = None) -> str:
    """Run git on files alone, with no configuration but what is said here."""
    clean = {"PATH": os.environ.get("PATH", os.defpath), "HOME": "/nonexistent", "LC_ALL": "C"}
    clean |= {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_ALLOW_PROTOCOL": "", **(env or {})}
    fixed = ("-c", "core.autocrlf=false", "-c", "core.eol=lf", "-c", "core.symlinks=true", "-c", "safe.directory=*")
    argv = [_program(), *_SAFE, *fixed, f"--git-dir={repository}", *arguments]
    return run(argv, cwd=repository, env=clean, what=what).stdout


def _program() -> str:
    program = shutil.which("git")
    if program is None:
        raise FetchError("the program git is missing", advice="install git, or load the module that has it")
    return program


def _has_ssh_command(program: str, env: Mapping[str, str]) -> bool:
    try:
        return bool(run([program, "config", "--get", "core.sshCommand"], cwd=Path("/"), env=env).stdout.strip())
    except BuildError:
        return False


def _said(log: str) -> str:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    told = [line for line in lines if re.match(r"(fatal|error|ssh|remote|Permission denied|Host key)", line)]
    text = (told or lines or ["git said nothing"])[0]
    return redact(re.sub(r"^(fatal|error): ", "", text))


def _advice(log: str) -> str | None:
    if re.search(r"could not read Username|Authentication failed|Permission denied|terminal prompts disabled", log):
        return "nobody is asked for a password here: configure a credential helper, an ssh key or ~/.netrc for git"
    if "not allowed" in log:
        return f"only these transports are used: {_TRANSPORTS.replace(':', ', ')}"
    return None
