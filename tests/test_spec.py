"""EnvSpec: what is read, what is refused and where, and what the hash covers."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from poncho_wq.errors import SpecError
from poncho_wq.spec import CondaSection, EnvSpec, GitSource, HttpSource, Target
from poncho_wq.specs.document import MAX_DOCUMENT
from poncho_wq.specs.spec_parse import MAX_ENV

GOLDEN = Path(__file__).parent / "golden" / "spec"
ROOT = Path(__file__).parent.parent
TARGET = Target(platform="linux-64", interpreter="cpython-3.11.7", format_version=1)

# A frozen format: a change here makes every cached environment of every user be built again.
HASHES: dict[str, str] = json.loads((GOLDEN / "hashes" / "linux-64-cpython-3.11.7-1.json").read_text())


def read(document: dict[str, Any]) -> EnvSpec:
    return EnvSpec.from_dict(document)


def hash_of(document: dict[str, Any]) -> str:
    return read(document).spec_hash(TARGET)


# --- golden ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.json")), ids=lambda path: path.stem)
def test_golden(path: Path) -> None:
    spec = EnvSpec.from_json(path.read_bytes(), source=path.name)
    assert spec.spec_hash(TARGET) == HASHES[path.stem]
    assert EnvSpec.from_dict(spec.to_dict()) == spec
    assert EnvSpec.from_json(spec.to_json(indent=2)) == spec
    assert EnvSpec.from_json(spec.canonical_json()) == spec


def test_every_golden_hash_has_its_spec() -> None:
    assert sorted(HASHES) == sorted(path.stem for path in GOLDEN.glob("*.json"))


def test_seed_examples_come_back_as_they_are_printed() -> None:
    for name in ("seed-pip", "seed-git", "seed-http", "empty"):
        document = json.loads((GOLDEN / f"{name}.json").read_text())
        if "pip" in document:
            document["pip"].sort()
        assert read(document).to_dict() == document
    conda = EnvSpec.from_json((GOLDEN / "seed-conda.json").read_text()).conda
    assert conda == CondaSection(
        channels=("defaults", "conda-forge"),
        packages=("ndcctools", "numpy=1.20.0=py38h18fd61f_0", "python=3.7"),
    )


def test_upstream_form() -> None:
    """What upstream's analyze writes: `dependencies` with pip inside, `ref`, and conda's leftovers."""
    spec = EnvSpec.from_json((GOLDEN / "upstream-analyze.json").read_bytes())
    assert spec.pip == ("pyyaml==6.0.1", "requests[socks]<3,>=2.31")
    assert spec.git == (("DATA", GitSource(remote="https://example.org/data.git", tag="v1.2")),)
    assert spec.pinned == (("numpy", "1.26.*"),)
    assert spec.conda is not None
    assert spec.conda.channels == ("conda-forge", "defaults")


def test_everything_at_once() -> None:
    spec = EnvSpec.from_json((GOLDEN / "host.json").read_bytes())
    assert dict(spec.env)["GREETING"] == "grüß dich\n'x'"
    assert (spec.python, spec.glibc, spec.conda) == ("3.11", "2.28", None)
    http = read({"http": {"D": {"url": "http://h/x", "type": "tar", "compression": "zstd", "sha256": "AB" * 32}}}).http
    assert http == (("D", HttpSource(url="http://h/x", type="tar", compression="zstd", sha256="ab" * 32)),)


# --- refused, with the place -----------------------------------------------------------------------------------------

GIT = {"remote": "https://h/r.git"}
HTTP = {"url": "https://h/f", "type": "file"}

REFUSED: list[tuple[object, str | None, str]] = [
    # the document
    ([], None, "expected an object, got a list"),
    (None, None, "expected an object, got null"),
    ("x", None, 'expected an object, got "x"'),
    ({"pipp": []}, "pipp", 'unknown key; did you mean "pip"?'),
    ({"Conda": {}}, "Conda", 'unknown key; did you mean "conda"?'),
    ({"channels": []}, "channels", 'did you mean "conda.channels"?'),
    ({"chanels": []}, "chanels", 'did you mean "conda.channels"?'),
    ({"dependencies": []}, "dependencies", 'did you mean "conda.dependencies"?'),
    ({"zzz": 1}, "zzz", 'unknown key; expected "conda", "pip"'),
    ({"a b": 1}, '["a b"]', "unknown key"),
    ({1: 2}, None, "keys that are strings"),
    ({"name": 3}, "name", "expected a string"),
    # conda
    ({"conda": []}, "conda", "expected an object, got a list"),
    ({"conda": {"package": []}}, "conda.package", 'did you mean "packages"?'),
    ({"conda": {"channels": "defaults"}}, "conda.channels", 'expected a list of strings, got "defaults"'),
    ({"conda": {"channels": [1]}}, "conda.channels[0]", "expected a string, got the number 1"),
    ({"conda": {"channels": ["a b"]}}, "conda.channels[0]", "not the name of a conda channel"),
    ({"conda": {"channels": ["/srv/c"]}}, "conda.channels[0]", "file:///the/folder"),
    ({"conda": {"channels": ["ftp://h/c"]}}, "conda.channels[0]", 'cannot come from "ftp:"'),
    ({"conda": {"channels": ["x", "https://u:p@h/c"]}}, "conda.channels[1]", "holds credentials"),
    ({"conda": {"channels": ["https://h/t/tk-1/c"]}}, "conda.channels[0]", "holds credentials"),
    ({"conda": {"packages": ["numpy", "numpy=="]}}, "conda.packages[1]", "not a conda package specification"),
    ({"conda": {"packages": [""]}}, "conda.packages[0]", "is empty"),
    ({"conda": {"packages": {"numpy": "1"}}}, "conda.packages", "expected a list of strings, got an object"),
    ({"conda": {"packages": [{"pip": ["x"]}]}}, "conda.packages[0]", "expected a string, got an object"),
    ({"conda": {"dependencies": {"pip": []}}}, "conda.dependencies", "expected a list, got an object"),
    ({"conda": {"dependencies": "numpy"}}, "conda.dependencies", 'expected a list, got "numpy"'),
    ({"conda": {"dependencies": [None]}}, "conda.dependencies[0]", "expected a string, got null"),
    ({"conda": {"dependencies": [{"pipp": []}]}}, "conda.dependencies[0].pipp", 'did you mean "pip"?'),
    ({"conda": {"dependencies": [{"pip": ["-e ."]}]}}, "conda.dependencies[0].pip[0]", "editable"),
    ({"conda": {"dependencies": [{"pip": []}, "a", {"pip": []}]}}, "conda.dependencies[2]", "second object"),
    # pip
    ({"pip": {"parsl": "1"}}, "pip", "brackets"),
    ({"pip": {"parsl"}}, "pip", "brackets"),
    ({"pip": "numpy"}, "pip", 'put it in brackets: ["numpy"]'),
    ({"pip": ["numpy", 1.5]}, "pip[1]", "expected a string, got the number 1.5"),
    ({"pip": ["numpy", True]}, "pip[1]", "expected a string, got true"),
    ({"pip": [float("nan")]}, "pip[0]", "got NaN"),
    ({"pip": [["numpy"]]}, "pip[0]", "expected a string, got a list"),
    ({"pip": ["  "]}, "pip[0]", "is empty"),
    ({"pip": ["num py"]}, "pip[0]", "not a PEP 508 requirement"),
    ({"pip": ["a\nb"]}, "pip[0]", "U+000A"),
    ({"pip": ["a\ud800"]}, "pip[0]", "U+D800"),
    ({"pip": ["x" * 5000]}, "pip[0]", "5000 characters long"),
    ({"pip": ["a==1", "b", "A==2"]}, "pip[2]", '"a==2" contradicts "a==1" (pip[0])'),
    (
        {"conda": {"dependencies": [{"pip": ["a==1"]}]}, "pip": ["a==2"]},
        "pip[0]",
        'contradicts "a==1" (conda.dependencies[0].pip[0])',
    ),
    # git
    ({"git": []}, "git", "expected an object"),
    ({"git": {"D": "https://h/r"}}, "git.D", "expected an object"),
    ({"git": {"D": {}}}, "git.D", 'lacks "remote"'),
    ({"git": {"D": {**GIT, "branch": "x"}}}, "git.D.branch", 'did you mean "tag"?'),
    ({"git": {"D": {**GIT, "tag": "a", "ref": "b"}}}, "git.D.ref", 'is "b" but "tag" is "a"'),
    ({"git": {"D": {**GIT, "tag": "-x"}}}, "git.D.tag", "begins with a dash"),
    ({"git": {"D": {**GIT, "ref": "a b"}}}, "git.D.ref", "not the name of a commit, tag or branch"),
    ({"git": {"D": {**GIT, "tag": None}}}, "git.D.tag", "expected a string, got null"),
    ({"git": {"D": {"remote": 1}}}, "git.D.remote", "expected a string"),
    ({"git": {"D": {"remote": "--upload-pack=x"}}}, "git.D.remote", "begins with a dash"),
    ({"git": {"D": {"remote": "ext::sh -c id"}}}, "git.D.remote", "runs a command"),
    ({"git": {"D": {"remote": "repo"}}}, "git.D.remote", "expected the URL of a git repository"),
    ({"git": {"D": {"remote": "https://u:p@h/r"}}}, "git.D.remote", "holds credentials"),
    ({"git": {"PATH": GIT}}, "git.PATH", "it finds the environment's programs"),
    ({"git": {"1X": GIT}}, "git.1X", "not the name of a variable"),
    ({"git": {"a-b": GIT}}, "git.a-b", "not the name of a variable"),
    # http
    (
        {"http": {"REFERENCE_DB": {**HTTP, "type": "tra"}}},
        "http.REFERENCE_DB.type",
        'expected "file" or "tar", got "tra"',
    ),
    ({"http": {"D": {"url": "https://h/f"}}}, "http.D", 'lacks "type"'),
    ({"http": {"D": {"type": "file"}}}, "http.D", 'lacks "url"'),
    ({"http": {"D": {**HTTP, "url": "ftp://h/f"}}}, "http.D.url", "cannot come from"),
    ({"http": {"D": {**HTTP, "url": "https:///f"}}}, "http.D.url", "names no host"),
    ({"http": {"D": {**HTTP, "url": "https://h:x/f"}}}, "http.D.url", "is not a URL"),
    ({"http": {"D": {**HTTP, "url": "https://[h/f"}}}, "http.D.url", "is not a URL"),
    ({"http": {"D": {**HTTP, "url": "https://h/a b"}}}, "http.D.url", "percent-encode"),
    ({"http": {"D": {**HTTP, "url": "https://h/f?access_token=x"}}}, "http.D.url", "holds credentials"),
    (
        {"http": {"D": {**HTTP, "compression": "gz"}}},
        "http.D.compression",
        'expected "gzip", "bzip2", "xz" or "zstd", got "gz"',
    ),
    ({"http": {"D": {**HTTP, "compression": None}}}, "http.D.compression", "got null"),
    ({"http": {"D": {**HTTP, "sha256": "abc"}}}, "http.D.sha256", "expected 64 hexadecimal digits"),
    ({"http": {"D": {**HTTP, "md5": "abc"}}}, "http.D.md5", "unknown key"),
    ({"http": {"LD_PRELOAD": HTTP}}, "http.LD_PRELOAD", "how programs are loaded"),
    ({"git": {"D": GIT}, "http": {"D": HTTP}}, "http.D", "the same variable is set by git.D"),
    # pinned
    ({"pinned": {"pip": {}}}, "pinned.pip", "unknown key"),
    ({"pinned": {"conda": ["numpy"]}}, "pinned.conda", "expected an object"),
    ({"pinned": {"conda": {"numpy": 1.2}}}, "pinned.conda.numpy", "expected a string, got the number 1.2"),
    ({"pinned": {"conda": {"numpy": "=="}}}, "pinned.conda.numpy", "not a conda package specification"),
    ({"pinned": {"conda": {"num py": "1"}}}, 'pinned.conda["num py"]', "not the name of a conda package"),
    ({"pinned": {"conda": {"numpy": "1", "NumPy": "2"}}}, "pinned.conda.NumPy", 'pinned to "1" and to "2"'),
    # python, env, glibc
    ({"python": 3.11}, "python", "put the version in quotes"),
    ({"python": ">=3.9"}, "python", 'expected a version such as "3.11"'),
    ({"python": "3"}, "python", 'expected a version such as "3.11"'),
    ({"python": "3.11.7.1"}, "python", 'expected a version such as "3.11"'),
    ({"python": "3.6"}, "python", "3.7 or newer"),
    ({"python": "2.7"}, "python", "expected a version"),
    ({"python": "3.11", "conda": {"packages": ["numpy"]}}, "python", "takes its interpreter from conda"),
    ({"env": {"OMP_NUM_THREADS": 1}}, "env.OMP_NUM_THREADS", "put the value in quotes"),
    ({"env": ["A=1"]}, "env", "expected an object"),
    ({"env": {"A": None}}, "env.A", "expected a string, got null"),
    ({"env": {"A": "x\0y"}}, "env.A", "U+0000"),
    ({"env": {"A": "\udc80"}}, "env.A", "U+DC80"),
    ({"env": {"A": "x" * (MAX_ENV + 1)}}, "env.A", "characters long"),
    ({"env": {"A": "ä" * (MAX_ENV // 2)}}, "env.A", "more than the 131071 that Linux passes"),
    ({"env": {"HOME": "/tmp"}}, "env.HOME", "whose account"),
    ({"env": {"": "x"}}, 'env[""]', "not the name of a variable"),
    ({"git": {"D": GIT}, "env": {"D": "x"}}, "env.D", "the same variable is set by git.D"),
    ({"glibc": 2.28}, "glibc", "put the version in quotes"),
    ({"glibc": "2"}, "glibc", 'expected a version such as "2.28", got "2"'),
    ({"glibc": "2.28.1"}, "glibc", "expected a version"),
]


@pytest.mark.parametrize(("document", "path", "words"), REFUSED, ids=lambda value: repr(value)[:60])
def test_refused_with_its_place(document: Any, path: str | None, words: str) -> None:
    with pytest.raises(SpecError) as caught:
        EnvSpec.from_dict(document, source="spec.json")
    error = caught.value
    assert (error.path, error.source) == (path, "spec.json")
    assert words in str(error)
    assert str(error).startswith("spec.json: " + (f"{path}: " if path else ""))


def test_the_design_s_own_example() -> None:
    with pytest.raises(SpecError) as caught:
        EnvSpec.from_json('{"http": {"REFERENCE_DB": {"type": "tra", "url": "https://h/f"}}}', source="spec.json")
    assert str(caught.value) == 'spec.json: http.REFERENCE_DB.type: expected "file" or "tar", got "tra"'


@pytest.mark.parametrize(
    "name",
    [
        "PATH",
        "HOME",
        "IFS",
        "PWD",
        "UID",
        "LD_LIBRARY_PATH",
        "PYTHONPATH",
        "PONCHO_PREFIX",
        "CONDA_PREFIX",
        "TMPDIR",
        "_",
    ],
)
@pytest.mark.parametrize("section", ["git", "http", "env"])
def test_reserved_variables(section: str, name: str) -> None:
    value: object = {"git": GIT, "http": HTTP, "env": "x"}[section]
    with pytest.raises(SpecError, match="cannot be set by a specification: ") as caught:
        read({section: {name: value}})
    assert caught.value.path == f"{section}.{name}"


BAD_TEXT: list[tuple[str | bytes, str | None, str]] = [
    ("", None, "line 1 column 1: is empty"),
    (" \n\t", None, "is empty"),
    ("\ufeff{}", None, "byte order mark"),
    (b"\xef\xbb\xbf{}", None, "byte order mark"),
    ("{}".encode("utf-16"), None, "byte 1: not UTF-8"),
    (b'{"pip": ["\xff"]}', None, "byte 11: not UTF-8"),
    ("{", None, "line 1 column 2: not JSON"),
    ('{"pip": ["a"]\n "env": {}}', None, "line 2 column 2: not JSON"),
    ('{"pip": ["a",]}', None, "no comma after the last item"),
    ('{"pip": ["a"],}', None, "no comma after the last item"),
    ("{'pip': []}", None, "double quotes"),
    ('{"pip": [] // all\n}', None, "no comments"),
    ("{} {}", None, "not JSON"),
    ('{"pip": ["a\n"]}', None, "not JSON"),
    ('{"pip": [], "pip": ["a"]}', "pip", "is given twice"),
    ('{"http": {"D": {"url": "https://h/f", "url": "https://h/g", "type": "file"}}}', "http.D.url", "is given twice"),
    ('{"env": {"A": "1", "A": "1"}}', "env.A", "is given twice"),
    ('{"pip": [NaN]}', "pip[0]", "got NaN"),
    ('{"pip": [-Infinity]}', "pip[0]", "got a number"),
    ('{"pip": [1e999]}', "pip[0]", "got a number"),
    ('{"pip": [' + "9" * 20_000 + "]}", "pip[0]", "got a number"),
    ('{"pip": ["\\ud800"]}', "pip[0]", "U+D800"),
    ('{"\\ud800": 1}', '["\\ud800"]', "unknown key"),
    ('{"pip": ' + "[" * 200_000, None, "nested too deeply"),
    ('{"pip": ' * 200_000, None, "nested too deeply"),
    ('{"pip": ["' + "x" * MAX_DOCUMENT + '"]}', None, "more than the 4194304"),
    (b" " * (MAX_DOCUMENT + 1), None, "more than the 4194304"),
]


@pytest.mark.parametrize(("text", "path", "words"), BAD_TEXT, ids=lambda value: repr(value)[:50])
def test_bad_text(text: str | bytes, path: str | None, words: str) -> None:
    with pytest.raises(SpecError) as caught:
        EnvSpec.from_json(text, source="s.json")
    assert caught.value.path == path
    assert words in str(caught.value)
    str(caught.value).encode()  # an error that cannot be printed is of no use


def test_braces_where_the_seed_prints_them() -> None:
    """The seed's own pip example is not JSON; who copies it is told what to write."""
    with pytest.raises(SpecError) as caught:
        EnvSpec.from_json('{\n\t"pip": {\n\t\t"parsl",\n\t\t"ipython==7.20.0"\n\t}\n}', source="spec.json")
    assert str(caught.value).startswith("spec.json: line 3 column 10: not JSON")
    assert caught.value.advice is not None
    assert '"pip": ["parsl", "ipython==7.20.0"]' in caught.value.advice
    with pytest.raises(SpecError, match="brackets"):
        EnvSpec.from_json('{"pip": {"parsl"}}')


def test_a_long_list_is_fine() -> None:
    assert len(read({"pip": [f"package-{n}=={n}.0" for n in range(2000)]}).pip) == 2000


# --- equality and the hash -------------------------------------------------------------------------------------------

EQUAL: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {"pip": [], "conda": {}, "git": {}, "http": {}, "env": {}, "pinned": {"conda": {}}}),
    ({}, {"pip": None, "conda": None, "git": None, "http": None, "env": None, "python": None, "glibc": None}),
    ({}, {"conda": {"channels": [], "packages": None, "dependencies": [{"pip": None}]}, "pinned": {"conda": None}}),
    ({}, {"name": "base", "prefix": "/home/ada/conda"}),
    ({"pip": ["a", "b"]}, {"pip": ["b", "a", "a"]}),
    ({"pip": ["Foo.Bar_baz==1.0"]}, {"pip": ["foo-bar-baz == 1.0.0"]}),
    ({"pip": ["a[x,y]>=1,<2"]}, {"pip": ["A[Y, x] < 2.0 , >= 1.0.0"]}),
    ({"pip": ["a; python_version<'3.8'"]}, {"pip": ['a ; python_version < "3.8"']}),
    ({"conda": {"packages": ["a"]}, "pip": ["b"]}, {"conda": {"dependencies": ["a", {"pip": ["b"]}]}}),
    ({"conda": {"packages": ["a", "b"]}}, {"conda": {"packages": ["b"], "dependencies": ["A", "b"]}}),
    ({"conda": {"packages": ["a=1.2"]}}, {"conda": {"packages": ["a 1.2.*"]}}),
    ({"conda": {"packages": ["a==1.2"]}}, {"conda": {"packages": ["a 1.2.0"]}}),
    ({"conda": {"packages": ["a=1.0=b"]}}, {"conda": {"packages": ["a[version='1.0',build=b]"]}}),
    ({"conda": {"channels": ["x", "y"]}}, {"conda": {"channels": ["x", "y", "x"]}}),
    ({"git": {"D": {**GIT, "tag": "v1"}}}, {"git": {"D": {**GIT, "ref": "v1"}}}),
    ({"git": {"D": {**GIT, "tag": "v1"}}}, {"git": {"D": {"ref": "v1", "tag": "v1", **GIT}}}),
    ({"http": {"D": {**HTTP, "sha256": "ab" * 32}}}, {"http": {"D": {"sha256": "AB" * 32, **HTTP}}}),
    ({"env": {"A": "1", "B": "2"}}, {"env": {"B": "2", "A": "1"}}),
    ({"pinned": {"conda": {"NumPy": "1.2"}}}, {"pinned": {"conda": {"numpy": " 1.2 "}}}),
]  # fmt: skip

DIFFERENT: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"conda": {"channels": ["x", "y"], "packages": ["a"]}}, {"conda": {"channels": ["y", "x"], "packages": ["a"]}}),
    ({"conda": {"packages": ["a"]}}, {"pip": ["a"]}),
    ({"conda": {"packages": ["a=1.2"]}}, {"conda": {"packages": ["a==1.2"]}}),
    ({"conda": {"packages": ["a=1.2"]}}, {"conda": {"packages": ["a=1.2.0"]}}),
    ({"conda": {"packages": ["a 1.2.* b"]}}, {"conda": {"packages": ["a=1.2=b"]}}),
    ({"conda": {"packages": ["a"]}}, {"conda": {"packages": ["x::a"]}}),
    ({"conda": {"packages": ["a"]}}, {"conda": {"packages": ["a"], "channels": ["x"]}}),
    ({"pip": ["a==1"]}, {"pip": ["a>=1"]}),
    ({"pip": ["a~=1.0"]}, {"pip": ["a~=1.0.0"]}),
    ({"pip": ["a==1.*"]}, {"pip": ["a==1.0.*"]}),
    ({"pip": ["a===1.0"]}, {"pip": ["a===1.0.0"]}),
    ({"pip": ["a"]}, {"pip": ["a[x]"]}),
    ({"pip": ["a"]}, {"pip": ["a; python_version<'3.8'"]}),
    ({"pip": ["a"]}, {"pip": ["a", "b"]}),
    ({"pip": ["a @ https://h/a.whl"]}, {"pip": ["a @ https://h/b.whl"]}),
    ({"git": {"D": GIT}}, {"git": {"E": GIT}}),
    ({"git": {"D": GIT}}, {"git": {"D": {**GIT, "tag": "main"}}}),
    ({"http": {"D": HTTP}}, {"http": {"D": {**HTTP, "type": "tar"}}}),
    ({"http": {"D": HTTP}}, {"http": {"D": {**HTTP, "compression": "xz"}}}),
    ({"http": {"D": HTTP}}, {"http": {"D": {**HTTP, "sha256": "00" * 32}}}),
    ({"python": "3.11"}, {}),
    ({"python": "3.11"}, {"python": "3.11.0"}),
    ({"env": {"A": ""}}, {}),
    ({"env": {"A": "1"}}, {"env": {"A": "1 "}}),
    ({"glibc": "2.17"}, {"glibc": "2.28"}),
    ({"pinned": {"conda": {"a": "1"}}}, {"pinned": {"conda": {"a": "1.0"}}}),
]


@pytest.mark.parametrize(("one", "other"), EQUAL, ids=lambda value: repr(value)[:50])
def test_equal_environments(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert read(one) == read(other)
    assert hash(read(one)) == hash(read(other))
    assert hash_of(one) == hash_of(other)


@pytest.mark.parametrize(("one", "other"), DIFFERENT, ids=lambda value: repr(value)[:50])
def test_different_environments(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert read(one) != read(other)
    assert hash_of(one) != hash_of(other)


def test_the_target_is_covered() -> None:
    spec = read({"pip": ["a"]})
    targets = [
        TARGET,
        dataclasses.replace(TARGET, platform="linux-aarch64"),
        dataclasses.replace(TARGET, interpreter="cpython-3.11.8"),
        dataclasses.replace(TARGET, interpreter=None),
        dataclasses.replace(TARGET, format_version=2),
    ]
    assert len({spec.spec_hash(target) for target in targets}) == len(targets)


def test_other_platforms_are_refused_by_name() -> None:
    with pytest.raises(SpecError, match='linux-64 or linux-aarch64, got "win-64"'):
        Target(platform="win-64", interpreter=None, format_version=1)


def test_a_spec_is_not_other_things() -> None:
    assert read({}) != {}
    assert repr(read({"python": "3.11"})) == repr(read({"python": "3.11"}))


def test_the_users_digits_stay_readable() -> None:
    """`==15.0.0` hashes as `==15` but is shown as written; of two spellings the same one is kept in either order."""
    assert read({"pip": ["Rich == 15.0.0"]}).pip == ("rich==15.0.0",)
    assert read({"pip": ["a==1", "a==1.0"]}).pip == read({"pip": ["a==1.0", "a==1"]}).pip == ("a==1.0",)
    for packages in (["a==1", "a==1.0"], ["a==1.0", "a==1"]):
        assert read({"conda": {"packages": packages}}).conda == CondaSection(packages=("a==1.0",))


def test_hash_is_the_same_in_another_process() -> None:
    code = (
        "from poncho_wq.spec import EnvSpec, Target; import sys; "
        "t = Target(platform='linux-64', interpreter='cpython-3.11.7', format_version=1); "
        "print(EnvSpec.from_json(sys.stdin.buffer.read()).spec_hash(t))"
    )
    for seed in ("0", "1"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            input=(GOLDEN / "host.json").read_bytes(),
            env={"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed, "LC_ALL": "C"},
            capture_output=True,
            check=True,
        )
        assert done.stdout.decode().strip() == HASHES["host"]


def test_survives_pickling() -> None:
    spec = EnvSpec.from_json((GOLDEN / "host.json").read_bytes())
    for twin in (pickle.loads(pickle.dumps(spec)), copy.deepcopy(spec)):
        assert twin == spec
        assert twin.spec_hash(TARGET) == spec.spec_hash(TARGET)


def test_import_is_cheap() -> None:
    """No solver, no YAML on import, nor for a specification without conda packages."""
    code = (
        "import sys, poncho_wq.spec as s; first = set(sys.modules); "
        's.EnvSpec.from_json(\'{"pip": ["a"], "conda": {"channels": ["x"]}}\'); '
        "print(sorted({'rattler', 'yaml', 'packaging'} & first), sorted({'rattler', 'yaml'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(ROOT)}, capture_output=True, check=True)
    assert done.stdout.decode().strip() == "[] []"


# --- properties ------------------------------------------------------------------------------------------------------

VARIABLES = st.from_regex(r"DATA_[A-Z0-9]{1,6}", fullmatch=True)
VERSIONS = st.lists(st.integers(0, 30), min_size=1, max_size=3).map(lambda parts: ".".join(map(str, parts)))
NAMES = st.sampled_from(["numpy", "Pandas", "scikit_learn", "ruamel.yaml", "a-b", "zlib", "x264"])
REQUIREMENTS = st.one_of(
    NAMES,
    st.builds("{}>={}".format, NAMES, VERSIONS),
    st.builds("{}[b,A] != {}.*".format, NAMES, VERSIONS),
    st.builds("{} ; python_version < '{}'".format, NAMES, VERSIONS),
    st.builds("{} @ https://example.org/{}.whl".format, st.just("direct"), st.just("direct-1-py3-none-any")),
)
MATCHSPECS = st.one_of(
    NAMES,
    st.builds("{}={}".format, NAMES, VERSIONS),
    st.builds("{} >={},<99".format, NAMES, VERSIONS),
    st.builds("chan::{}={}=py_0".format, NAMES, VERSIONS),
    st.builds("{}[version='{}',build='*cuda*']".format, NAMES, VERSIONS),
)
DOCUMENTS = st.fixed_dictionaries(
    {},
    optional={
        "conda": st.fixed_dictionaries(
            {},
            optional={
                "channels": st.lists(st.sampled_from(["defaults", "conda-forge", "file:///srv/c"]), unique=True),
                "packages": st.lists(MATCHSPECS, max_size=4),
            },
        ),
        "pip": st.lists(REQUIREMENTS, max_size=5),
        "git": st.dictionaries(VARIABLES.map("G{}".format), st.just({**GIT, "tag": "v1"}), max_size=2),
        "http": st.dictionaries(VARIABLES.map("H{}".format), st.just(HTTP), max_size=2),
        "env": st.dictionaries(
            VARIABLES.map("E{}".format),
            st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20),
            max_size=3,
        ),
        "glibc": st.sampled_from(["2.17", "2.28"]),
        "pinned": st.fixed_dictionaries({"conda": st.dictionaries(NAMES.map(str.lower), VERSIONS, max_size=2)}),
    },
)


def shuffled(value: Any, shuffle: Callable[[list[Any]], None], path: tuple[str, ...] = ()) -> Any:
    """`value` with keys and lists in another order, except the channels."""
    if isinstance(value, dict):
        items = list(value.items())
        shuffle(items)
        return {key: shuffled(item, shuffle, (*path, key)) for key, item in items}
    if isinstance(value, list) and path[-1] != "channels":
        items = [*value, *value[:1]]
        shuffle(items)
        return items
    return value


@given(DOCUMENTS, st.randoms(use_true_random=False))
@settings(deadline=None)
def test_reordering_keeps_the_hash(document: dict[str, Any], randomness: random.Random) -> None:
    other = shuffled(document, randomness.shuffle)
    assert hash_of(other) == hash_of(document)
    assert read(other) == read(document)
    assert read(other).to_dict() == read(document).to_dict()


@given(DOCUMENTS, st.data())
@settings(deadline=None)
def test_a_meaningful_change_alters_the_hash(document: dict[str, Any], data: st.DataObject) -> None:
    change = data.draw(
        st.sampled_from(
            [
                {"pip": [*document.get("pip", []), "entirely-new==1"]},
                {"glibc": "2.31"},
                {"env": {**document.get("env", {}), "NEW": ""}},
                {"git": {**document.get("git", {}), "NEW": GIT}},
                {"http": {**document.get("http", {}), "NEW": HTTP}},
                {"conda": {**document.get("conda", {}), "dependencies": ["entirely-new"]}},
                {
                    "conda": {
                        **document.get("conda", {}),
                        "channels": ["new", *document.get("conda", {}).get("channels", [])],
                    }
                },
            ]
        )
    )
    assert hash_of({**document, **change}) != hash_of(document)


@given(DOCUMENTS)
@settings(deadline=None)
def test_round_trip(document: dict[str, Any]) -> None:
    spec = read(document)
    for twin in (
        EnvSpec.from_dict(spec.to_dict()),
        EnvSpec.from_json(spec.to_json()),
        EnvSpec.from_json(spec.to_json(indent=2).encode()),
        EnvSpec.from_json(spec.canonical_json()),
    ):
        assert twin == spec
        assert twin.spec_hash(TARGET) == spec.spec_hash(TARGET)
    assert EnvSpec.from_json(spec.to_json()).to_dict() == spec.to_dict()


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
# Values in the right places with the wrong contents reach further than values anywhere.
LIKELY_KEYS = st.sampled_from(
    [
        "conda",
        "pip",
        "git",
        "http",
        "pinned",
        "python",
        "env",
        "glibc",
        "channels",
        "packages",
        "dependencies",
        "D",
        "url",
    ]
)
NEAR_MISSES = st.recursive(
    ANY_JSON | REQUIREMENTS | MATCHSPECS | st.sampled_from(["https://h/x", "ext::x", "-x", "3.11", "file"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(LIKELY_KEYS, inner, max_size=4),
    max_leaves=20,
)


def parse_or_refuse(make: Callable[[], EnvSpec]) -> None:
    try:
        spec = make()
    except SpecError as error:
        str(error).encode()
    else:
        assert EnvSpec.from_json(spec.to_json()) == spec
        spec.spec_hash(TARGET)


@given(st.text() | st.text('{}[]":,\\ \n0123456789eabpi'))
def test_any_text_gives_a_spec_or_a_spec_error(text: str) -> None:
    parse_or_refuse(lambda: EnvSpec.from_json(text))


@given(st.binary())
def test_any_bytes_give_a_spec_or_a_spec_error(text: bytes) -> None:
    parse_or_refuse(lambda: EnvSpec.from_json(text))


@given(ANY_JSON | NEAR_MISSES)
@settings(deadline=None, max_examples=400, suppress_health_check=[HealthCheck.too_slow])
def test_any_json_gives_a_spec_or_a_spec_error(value: Any) -> None:
    parse_or_refuse(lambda: EnvSpec.from_json(json.dumps(value)))
    parse_or_refuse(lambda: EnvSpec.from_dict(value))


TOKENS = st.lists(
    st.sampled_from(
        [*"[](){}<>=!~,;|@#*:/. -'\"\\^$é\t", "1.0", "numpy", "py38", "version", "::", "https://", "==", "and"]
    )
    | st.text(max_size=3),
    max_size=12,
).map("".join)


@given(TOKENS)
@settings(deadline=None, max_examples=500)
def test_any_string_in_any_list(text: str) -> None:
    for document in (
        {"pip": [text]},
        {"conda": {"packages": [text]}},
        {"conda": {"channels": [text]}},
        {"git": {"D": {"remote": text, "tag": text}}},
        {"git": {"D": {**GIT, "tag": text}}},
        {"http": {"D": {"url": text, "type": "file"}}},
        {"pinned": {"conda": {"a": text}}},
        {"env": {text: text}},
        {"python": text, "glibc": text},
    ):
        parse_or_refuse(lambda document=document: EnvSpec.from_dict(document))  # type: ignore[misc]


# --- the schema in docs ----------------------------------------------------------------------------------------------

SCHEMA: dict[str, Any] = json.loads((ROOT / "docs" / "formats" / "spec.schema.json").read_text())
TYPES = {"object": dict, "array": list, "string": str, "null": type(None)}
# What JSON Schema cannot say or we leave to the parser: contents of strings, and how keys relate.
STRUCTURAL = ("expected", "unknown key", "lacks")
NOT_SHAPES = ("git.D.remote",)


def conforms(value: Any, schema: dict[str, Any]) -> bool:
    """JSON Schema, as much of it as ours uses; an unknown keyword fails the test rather than pass unseen."""
    notes = {"$schema", "$defs", "title", "description"}
    known = {"$ref", "type", "properties", "additionalProperties", "required", "items", "enum", "pattern"}
    known |= {"propertyNames", "anyOf", *notes}
    assert set(schema) <= known, set(schema) - known
    if "$ref" in schema:
        return conforms(value, SCHEMA["$defs"][schema["$ref"].removeprefix("#/$defs/")])
    if "anyOf" in schema and not any(conforms(value, each) for each in schema["anyOf"]):
        return False
    if "enum" in schema and value not in schema["enum"]:
        return False
    kinds = schema.get("type", list(TYPES))
    if not isinstance(value, tuple(TYPES[each] for each in ([kinds] if isinstance(kinds, str) else kinds))):
        return False
    if isinstance(value, str):
        return re.search(schema.get("pattern", ""), value) is not None
    if isinstance(value, list):
        return all(conforms(each, schema.get("items", {})) for each in value)
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        others = schema.get("additionalProperties", {})
        return (
            set(schema.get("required", ())) <= set(value)
            and all(conforms(key, schema.get("propertyNames", {})) for key in value)
            and all(
                conforms(each, properties[key]) if key in properties else others is not False and conforms(each, others)
                for key, each in value.items()
            )
        )
    return True


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.json")), ids=lambda path: path.stem)
def test_schema_takes_what_the_parser_takes(path: Path) -> None:
    assert conforms(json.loads(path.read_bytes()), SCHEMA)
    assert conforms(EnvSpec.from_json(path.read_bytes()).to_dict(), SCHEMA)


@pytest.mark.parametrize(
    "document", [each for pair in EQUAL + DIFFERENT for each in pair], ids=lambda each: repr(each)[:50]
)
def test_schema_takes_the_valid_ones(document: dict[str, Any]) -> None:
    assert conforms(document, SCHEMA)


@pytest.mark.parametrize(
    "document",
    [document for document, path, words in REFUSED if words.startswith(STRUCTURAL) and path not in NOT_SHAPES],
    ids=lambda each: repr(each)[:50],
)
def test_schema_refuses_the_wrong_shapes(document: Any) -> None:
    assert not conforms(document, SCHEMA)


@given(NEAR_MISSES)
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_schema_takes_whatever_the_parser_takes(value: Any) -> None:
    try:
        EnvSpec.from_dict(value)
    except SpecError:
        return
    assert conforms(value, SCHEMA)


@pytest.mark.parametrize("compression", ["gzip", "bzip2", "xz", "zstd"])
@pytest.mark.parametrize("kind", ["file", "tar"])
def test_schema_knows_every_choice(kind: str, compression: str) -> None:
    document = {"http": {"D": {"url": "https://h/f", "type": kind, "compression": compression}}}
    assert read(document).to_dict() == document
    assert conforms(document, SCHEMA)


def test_the_document_s_example_is_valid() -> None:
    text = (ROOT / "docs" / "formats" / "spec.md").read_text()
    examples = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    assert len(examples) == 1
    assert conforms(json.loads(examples[0]), SCHEMA)
    assert EnvSpec.from_json(examples[0]).pip == ("ipython==7.20.0", "parsl")
