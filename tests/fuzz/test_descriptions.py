"""Descriptions of environments: a value, or an error that says what is wrong; reading touches nothing."""

from __future__ import annotations

import json
from pathlib import Path

from hypothesis import strategies as st

from poncho_wq.importers import read_source
from poncho_wq.importing.environment_yml import read_environment
from poncho_wq.importing.requirements_txt import read_requirements
from poncho_wq.lockfile import LockFile, read_lockfile
from poncho_wq.spec import EnvSpec
from tests.fuzz.campaign import Campaign
from tests.fuzz.strategies import changed, damaged, deep, documents

KEYS = (
    "conda", "channels", "packages", "dependencies", "pip", "git", "http", "pinned", "python", "env", "glibc", "remote",
    "tag", "ref", "url", "type", "compression", "sha256", "DATA", "name", "prefix",
)  # fmt: skip
VALUES = (
    "conda-forge", "python=3.11", "conda-forge::numpy=1.26=py*_0", "numpy[version='>=1,<2']", "numpy>=1.2,<3", "3.11",
    "2.28", "tar", "file", "gzip", "zstd", "https://host/a.tar.gz", "git@host:a/b", "file:///a", "0" * 64, "v1.0",
)  # fmt: skip
SPECS = (
    {
        "conda": {"channels": ["conda-forge", "file:///c"], "packages": ["python=3.11", "defaults::a=1=b", "c >=1,<2"]},
        "pip": ["numpy==1.26.4", "rich[jupyter]>=13 ; python_version >= '3.8'"],
        "pinned": {"conda": {"numpy": "1.20"}},
        "env": {"A": "b"},
    },
    {
        "pip": ["a @ https://host/a-1-py3-none-any.whl"],
        "python": "3.11.7",
        "glibc": "2.28",
        "git": {"REPO": {"remote": "https://host/x.git", "tag": "v1"}},
        "http": {"DB": {"url": "https://host/x.tar.gz", "type": "tar", "compression": "gzip", "sha256": "0" * 64}},
    },
    {"conda": {"channels": ["x"], "dependencies": ["python", {"pip": ["a"]}]}},
)
TEXTS = tuple(json.dumps(each).encode() for each in SPECS)
JSON_WORDS = (
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b'"pip"',
    b"\\ud800",
    b"NaN",
    b"-Infinity",
    b"1e999",
    deep("["),
    deep('{"a":'),
)


def test_specifications(campaign: Campaign) -> None:
    def case(data: bytes) -> None:
        spec = EnvSpec.from_json(data, source="spec.json")
        assert EnvSpec.from_json(spec.to_json()) == spec
        assert EnvSpec.from_json(spec.canonical_json()).canonical_json() == spec.canonical_json()

    texts = (changed(SPECS, KEYS, VALUES) | documents(KEYS, VALUES)).map(lambda each: json.dumps(each).encode())
    campaign.run("specification", case, data=texts | damaged(TEXTS, JSON_WORDS) | st.binary(max_size=40))


def test_specifications_as_values(campaign: Campaign) -> None:
    def case(value: object) -> None:
        EnvSpec.from_dict(value)  # type: ignore[arg-type]

    campaign.run("specification as a dictionary", case, value=changed(SPECS, KEYS, VALUES) | documents(KEYS, VALUES))


REQUIREMENTS = (
    b"numpy==1.26.4\nrich[jupyter] >= 13 ; python_version >= '3.8'  # why\n\n-r other.txt\n",
    b"--index-url https://host/simple\n-c other.txt\na==1 \\\n  --hash=sha256:" + b"0" * 64 + b"\n",
    b"a @ https://host/a-1.0-py3-none-any.whl\n-f ./wheels\n--no-binary :all:\n--pre\n${HOME}/x\n",
    b"# -*- coding: latin-1 -*-\ngit+https://host/x.git@v1#egg=x&subdirectory=y\n./a-1.0.tar.gz\n",
)
REQUIREMENT_WORDS = (
    b"-r requirements.txt\n", b"-r other.txt\n", b"-c ", b"-e .", b"--hash=sha256:", b"\\\n", b" #", b"\n", b"==",
    b"@ ", b" ; ", b"[", b"]", b"# coding: utf-16\n", b"# coding: zlib\n", b"# coding: idna\n", b"\xff\xfe",
    b"\xef\xbb\xbf", b"-r /dev/zero\n", b"(" * 3000, b"-r .\n", b"--requirement=\0\n", b"'", b'"',
    b"python_version<'3'", b"or extra == 'a'" * 400, b"#egg=",
)  # fmt: skip


def test_requirements_files(campaign: Campaign) -> None:
    file = campaign.directory / "requirements.txt"
    (campaign.directory / "other.txt").write_text("b<2\n-r requirements.txt\n")

    def case(data: bytes) -> None:
        file.write_bytes(data)
        read_requirements(file, environment={"HOME": "/x", "TOKEN": "s3cret"})

    campaign.run("requirements.txt", case, data=damaged(REQUIREMENTS, REQUIREMENT_WORDS) | st.binary(max_size=60))


ENVIRONMENTS = (
    (
        b"name: x\nchannels:\n  - c\n  - nodefaults\ndependencies:\n  - python=3\n  - pip:\n    - numpy==1\n"
        b"    - -r other.txt\nvariables:\n  A: b\n  C: ~\nprefix: /home/x\n"
    ),
    b"channels: [conda-forge]\ndependencies: [python>=3.9, numpy=1.26=py311h_0, {pip: [rich]}]\nplatforms: [x]\n",
    b'"dependencies":\n- sel(linux): "a"\n- sel(win): b\n- "c::d"\n',
)
YAML_WORDS = (
    b"\n", b"  ", b"\t", b"- ", b": ", b"? ", b"&a ", b"*a", b"!!binary ", b"!!python/object/apply:os.system ", b"|\n",
    b">\n", b"---\n", b"...\n", b"<<: *a\n", b"{", b"[", b"%YAML 9.9\n", b"%TAG ! x\n", b"dependencies:\n", b"pip:\n",
    b"  - pip:\n", b"'", b'"\\x"', b"\\UFFFFFFFF", b"\xef\xbb\xbf", deep("["), deep("- "), deep("{a: "), b"? " * 3000,
)  # fmt: skip


def test_conda_environment_files(campaign: Campaign) -> None:
    file = campaign.directory / "environment.yml"
    (campaign.directory / "other.txt").write_text("b<2\n")

    def case(data: bytes) -> None:
        file.write_bytes(data)
        read_environment(file)

    campaign.run("environment.yml", case, data=damaged(ENVIRONMENTS, YAML_WORDS) | st.binary(max_size=60))


PROJECTS = (
    (
        b'[project]\nname = "x"\nversion = "1"\ndependencies = ["numpy>=1"]\nrequires-python = ">=3.9"\n'
        b'[project.optional-dependencies]\na = ["r"]\n[dependency-groups]\ndev = ["x", {include-group = "b"}]\nb = []\n'
    ),
    b'[tool.uv.sources]\nx = { path = "../x" }\n[project]\nname="a"\ndynamic = ["dependencies"]\n',
)
PYLOCKS = (
    b'lock-version = "1.0"\ncreated-by = "x"\nrequires-python = ">=3.9"\n[[packages]]\nname = "a"\nversion = "1.0"\n'
    b'marker = "python_version > \'3\'"\n[[packages.wheels]]\nname = "a-1.0-py3-none-any.whl"\nurl = "https://h/a.whl"\n'
    b'hashes = { sha256 = "' + b"0" * 64 + b'" }\n',
    b'lock-version = "1.0"\ncreated-by = "x"\n[[packages]]\nname = "b"\n[packages.vcs]\ntype = "git"\n'
    b'url = "https://h/b"\ncommit-id = "' + b"0" * 40 + b'"\n',
)
TOML_WORDS = (
    b"[[packages]]\n",
    b"[",
    b"]",
    b'"',
    b"'''",
    b"= ",
    b"{}",
    b"1979-05-27",
    b"0x",
    b"inf",
    b"\n",
    deep("a="),
    deep("["),
)


def test_projects_and_pylocks(campaign: Campaign) -> None:
    def case(name: str, data: bytes) -> None:
        file = campaign.directory / name
        file.write_bytes(data)
        read_source(file)

    names = st.sampled_from(("pyproject.toml", "pylock.toml", "pylock.dev.toml"))
    campaign.run("pyproject.toml, pylock.toml", case, name=names, data=damaged(PROJECTS + PYLOCKS, TOML_WORDS))


LOCK = {
    "poncho-lock": 1,
    "spec": {"pip": ["a"]},
    "lock": {
        "format": 1, "interpreter": "x", "platform": "linux-64", "python": "3.11.7",
        "packages": [{"name": "a", "version": "1", "sha256": ["0" * 64], "url": "file:a", "commit": "0" * 40}],
        "conda": [{"name": "b", "version": "1", "build": "0", "build_number": 0, "subdir": "noarch", "channel": "c"}],
        "data": [{"variable": "V", "url": "https://h/x", "sha256": "0" * 64}],
    },
}  # fmt: skip


def test_lock_files(campaign: Campaign) -> None:
    file = campaign.directory / "poncho.lock"
    keys = ("poncho-lock", "spec", "lock", "format", "packages", "conda", "data", "sha256", "commit", "url", "variable")
    texts = changed((LOCK,), keys).map(lambda each: json.dumps(each).encode())

    def case(data: bytes) -> None:
        file.write_bytes(data)
        locked = read_lockfile(file)
        assert LockFile.from_json(locked.to_json()) == locked
        locked.check_for(locked.spec)
        locked.check_complete()

    campaign.run("poncho.lock", case, data=texts | damaged((json.dumps(LOCK).encode(),), JSON_WORDS))


def test_anything_under_any_name(campaign: Campaign) -> None:
    """What is handed in may be called anything, and be anything else."""
    every = (*TEXTS, *REQUIREMENTS, *ENVIRONMENTS, *PROJECTS, *PYLOCKS)
    names = (
        "spec.json",
        "x",
        "requirements.in",
        "a.yml",
        "b.yaml",
        "pyproject.toml",
        "pylock.x.toml",
        "-",
        "a.ipynb",
        "x.pip",
    )

    def case(name: str, data: bytes) -> None:
        file = Path(campaign.directory, name)
        file.write_bytes(data)
        read_source(file)

    campaign.run("any description under any name", case, name=st.sampled_from(names), data=damaged(every))
