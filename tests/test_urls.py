"""Which places a specification may name, and above all which it may not: each refusal would run or leak something."""

from __future__ import annotations

import pytest

from poncho_wq.errors import SpecError
from poncho_wq.specs.urls import check_channel, check_download, check_git_ref, check_git_remote


@pytest.mark.parametrize(
    "remote",
    [
        "https://example.org/a/b.git",
        "http://.../repo.git",
        "ssh://git@example.org:2222/a/b.git",
        "git@example.org:a/b.git",
        "example.org:b.git",
        "git://example.org/b",
        "file:///srv/b.git",
        "/srv/a b.git",
    ],
)
def test_git_remotes(remote: str) -> None:
    assert check_git_remote(remote) == remote


@pytest.mark.parametrize(
    ("remote", "words"),
    [
        ("ext::sh -c 'touch x'", "runs a command"),
        ("ext::/bin/true", "runs a command"),
        ("fd::17", "runs a command"),
        ("foo::https://h/r", "runs a command"),
        ("::https://h/r", "runs a command"),
        ("-uexec", "begins with a dash"),
        ("--upload-pack=touch x", "begins with a dash"),
        ("ssh://-oProxyCommand=touch%20x/r", "begins with a dash"),
        ("ssh://git@-oProxyCommand=x/r", "begins with a dash"),
        ("git@-oProxyCommand=x:r", "begins with a dash"),
        ("-o@host:r", "begins with a dash"),
        ("ext://sh", "cannot come from"),
        ("javascript://h/x", "cannot come from"),
        ("https://u:secret@h/r", "holds credentials"),
        ("https://secret@h/r", "holds credentials"),
        ("ssh://git:secret@h/r", "holds credentials"),
        ("git:secret@h:r", "holds credentials"),
        ("https:///r", "names no host"),
        ("file://host/r", "names no file"),
        ("https://h/a b", "percent-encode"),
        ("repo", "expected the URL of a git repository"),
        ("./repo", "expected the URL of a git repository"),
        ("../a:b c", "expected the URL of a git repository"),
    ],
)
def test_refused_git_remotes(remote: str, words: str) -> None:
    with pytest.raises(SpecError) as caught:
        check_git_remote(remote)
    assert words in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("ref", ["v1.2", "main", "feature/x", "abcd1234....", "0" * 40])
def test_git_refs(ref: str) -> None:
    assert check_git_ref(ref) == ref


@pytest.mark.parametrize("ref", ["-b", "a b", "a~1", "a^", "a:b", "a?", "a*", "a[", "a\\b", "a@{1}", "a\n"])
def test_refused_git_refs(ref: str) -> None:
    with pytest.raises(SpecError):
        check_git_ref(ref)


@pytest.mark.parametrize(
    ("channel", "same"),
    [
        ("defaults", "defaults"),
        ("conda-forge/label/dev", "conda-forge/label/dev"),
        ("conda-forge/", "conda-forge"),
        ("https://example.org/conda/", "https://example.org/conda"),
        ("file:///srv/channel", "file:///srv/channel"),
        ("s3://bucket/channel", "s3://bucket/channel"),
    ],
)
def test_channels(channel: str, same: str) -> None:
    assert check_channel(channel) == same


@pytest.mark.parametrize(
    "url", ["http://.../dataset.tar.gz", "https://example.org/t/data/x?download=1", "HTTPS://h:8080/"]
)
def test_downloads(url: str) -> None:
    assert check_download(url) == url


@pytest.mark.parametrize(
    "url", ["https://u:p@h/x", "https://h/x?token=1", "ftp://h/x", "https://", "x", "file:///x", "//h/x"]
)
def test_refused_downloads(url: str) -> None:
    with pytest.raises(SpecError):
        check_download(url)
