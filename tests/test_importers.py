"""Files that describe packages: as the tools write them (`data/importers`), and as people get them wrong."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from poncho_wq.build.uv import Uv
from poncho_wq.errors import SolveError, SpecError
from poncho_wq.importers import Options, read_source, read_spec
from poncho_wq.importing.model import Conditions, Imported
from poncho_wq.importing.requirements_txt import logical_lines, read_requirements
from poncho_wq.importing.yaml_text import load_yaml
from poncho_wq.lock import Lock, LockedPackage
from poncho_wq.spec import EnvSpec

DATA = Path(__file__).parent / "data" / "importers"


def requirements(tmp_path: Path, text: str, **others: str) -> Imported:
    for name, content in others.items():
        (tmp_path / f"{name}.txt").write_text(content)
    (tmp_path / "requirements.txt").write_text(text)
    return read_requirements(tmp_path / "requirements.txt", environment={"TOKEN": "s3cret", "VERSION": "1.5"})


def refusal(tmp_path: Path, text: str, **others: str) -> str:
    with pytest.raises(SpecError) as caught:
        requirements(tmp_path, text, **others)
    return str(caught.value).replace(f"{tmp_path}/", "")


def outcome_of(path: Path) -> Imported | SpecError:
    try:
        return read_source(path)
    except SpecError as error:
        return error


# requirements.txt, as tools write it


@pytest.mark.parametrize(
    "name",
    ["pip-freeze.txt", "pip-compile.txt", "uv-compile.txt", "uv-export-no-project.txt", "pipenv-requirements.txt"],
)
def test_files_of_real_tools(name: str) -> None:
    imported = read_source(DATA / name)
    listed = {text.partition(";")[0] for text in imported.spec.pip}
    assert {"rich==15.0.0", "six==1.17.0", "mdurl==0.1.2", "pygments==2.21.0", "markdown-it-py==4.3.0"} <= listed
    assert all("==" in text for text in imported.spec.pip)
    hashes = dict(imported.conditions.hashes)
    assert imported.conditions.hashes_required == (name != "pip-freeze.txt")
    assert (set(hashes) == {text.partition("==")[0] for text in imported.spec.pip}) == (name != "pip-freeze.txt")
    assert EnvSpec.from_json(imported.spec.to_json()) == imported.spec


def test_a_specification_may_be_called_yaml(tmp_path: Path) -> None:
    """Parsl's own `pack=True` calls the file that `python_package_analyze` writes so."""
    (tmp_path / "s.yaml").write_text('\n{"pip": ["six==1.16.0"], "python": "3.11.7"}\n')
    assert read_source(tmp_path / "s.yaml").spec.pip == ("six==1.16.0",)
    (tmp_path / "e.yml").write_text('{"dependencies": [{"pip": ["six==1.16.0"]}]}')
    assert read_source(tmp_path / "e.yml").spec.pip == ("six==1.16.0",)
    (tmp_path / "bad.yaml").write_text('{"pipp": []}')
    with pytest.raises(SpecError, match=r"bad.yaml: pipp: unknown key; did you mean .pip.\?"):
        read_source(tmp_path / "bad.yaml")


def test_markers_are_kept() -> None:
    spec = read_spec(DATA / "uv-export-no-project.txt")
    assert 'colorama==0.4.6; sys_platform == "win32"' in spec.pip
    assert 'typing-extensions==4.16.0; python_full_version < "3.11"' in spec.pip


def test_an_editable_project_is_refused_with_file_and_line() -> None:
    with pytest.raises(SpecError) as caught:
        read_source(DATA / "uv-export.txt")
    assert str(caught.value).startswith(f"{DATA}/uv-export.txt:3: '-e .' is not a package specification\n")


def test_index_options_of_real_tools_stay_out_of_the_specification() -> None:
    imported = read_source(DATA / "pip-compile.txt")
    assert len(imported.index.extra_index_urls) == 2
    assert imported.index.find_links == ("/srv/wheels",)
    assert "example" not in imported.spec.to_json() + repr(imported)


# requirements.txt, line by line


def test_the_errors_words_are_those_of_the_design(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "requirements.txt").write_text("numpy\n\n-e .\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SpecError) as caught:
        read_source("requirements.txt")
    assert str(caught.value).splitlines()[0] == "requirements.txt:3: '-e .' is not a package specification"


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("a\nb\n", [(1, "a"), (2, "b")]),
        ("a \\\n  b\nc", [(1, "a   b"), (3, "c")]),
        ("# x\n\na # y\n", [(3, "a")]),
        ("a \\\n# y\nb", [(1, "a"), (3, "b")]),
        ("a#b", [(1, "a#b")]),
        ("a\\", [(1, "a")]),
        ("a \\\n\\\nb", [(1, "a b")]),
        ("\r\na\r\n", [(2, "a")]),
        ("# \\\na", [(2, "a")]),
    ],
)
def test_logical_lines(text: str, lines: list[tuple[int, str]]) -> None:
    assert list(logical_lines(text)) == lines


@pytest.mark.parametrize(
    ("line", "requirement"),
    [
        ("NumPy>=1.20", "numpy>=1.20"),
        ("numpy [a,b] == 1.0 ; python_version > '3'", 'numpy[a,b]==1.0; python_version > "3"'),
        ("a @ https://example.org/a.zip", "a @ https://example.org/a.zip"),
        ("a==${VERSION}", "a==1.5"),
        ("a==1.0 --hash=sha256:" + "a" * 64, "a==1.0"),
        ("https://example.org/x/six-1.16.0-py2.py3-none-any.whl", None),
        ("https://example.org/x/six-1.16.0.tar.gz#sha256=" + "a" * 64, None),
        ("git+https://example.org/x/six@v1#egg=six", "six @ git+https://example.org/x/six@v1"),
        (
            "git+https://example.org/x/six@v1#subdirectory=a&egg=six",
            "six @ git+https://example.org/x/six@v1#subdirectory=a",
        ),
    ],
)
def test_lines_that_are_packages(tmp_path: Path, line: str, requirement: str | None) -> None:
    (found,) = requirements(tmp_path, line).spec.pip
    assert found == (requirement or f"six @ {line}")


def test_archives_on_this_machine_get_a_name(tmp_path: Path) -> None:
    found = requirements(
        tmp_path, "./a b/foo-1.0-py3-none-any.whl\nfoo2-1.0.tar.gz[x] ; python_version > '3'\n"
    ).spec.pip
    assert found == (
        f"foo @ file://{tmp_path}/a%20b/foo-1.0-py3-none-any.whl",
        f'foo2[x] @ file://{tmp_path}/foo2-1.0.tar.gz ; python_version > "3"',
    )


@pytest.mark.parametrize(
    "line",
    [
        "-e .",
        "--editable=./x",
        "-e git+https://example.org/x@1#egg=x",
        ".",
        "./pkg",
        "/abs/pkg",
        "pkg/",
        "file:./x",
    ],
)
def test_what_is_no_package(tmp_path: Path, line: str) -> None:
    said = refusal(tmp_path, f"numpy\n{line}\n")
    assert said.startswith(f"requirements.txt:2: '{line}' is not a package specification\n")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a\nb==\n", 'requirements.txt:2: "b==" is not a PEP 508 requirement'),
        ("a==1\na==2\n", 'requirements.txt:2: "a==2" contradicts "a==1" (requirements.txt:1)'),
        ("--foo\n", "requirements.txt:1: '--foo' is not an option of a requirements file"),
        ("-i\n", "requirements.txt:1: '--index-url' lacks its value"),
        ("-r nowhere.txt\n", "requirements.txt:1: '-r nowhere.txt': nowhere.txt: no such file"),
        ("-r https://example.org/r.txt\n", "requirements.txt:1: '-r https://example.org/r.txt' is on the network"),
        ("-r requirements.txt\n", "requirements.txt:1: '-r requirements.txt' includes a file that includes this one"),
        ("a --hash=md5:00\n", "requirements.txt:1: '--hash=md5:00' is not a sha256"),
        ("a --global-option=x\n", "requirements.txt:1: '--global-option' changes how a package is built"),
        ("--hash=sha256:00\n", "requirements.txt:1: '--hash' belongs behind a requirement"),
        ("-i 'x\n", "requirements.txt:1: '-i 'x': no closing quotation"),
        ("-i https://me:${SECRET}@example.org/\n", "the variable SECRET is not set"),
        ("numpy @ file:///croot/numpy_1\n", "`pip freeze` writes such paths in a conda environment"),
        ("a @ https://me:pw@example.org/a.zip\n", "holds credentials"),
    ],
)
def test_lines_that_are_refused(tmp_path: Path, text: str, words: str) -> None:
    assert words in refusal(tmp_path, text)


def test_no_secret_is_shown(tmp_path: Path) -> None:
    for text in (
        "a @ https://x:${TOKEN}@example.org/a.zip",
        "a==${TOKEN}!!",
        "-i https://x:${TOKEN}@example.org/ --foo",
        "-r https://x:s3cret@example.org/r.txt",
        "-e git+https://x:s3cret@example.org/r.git",
    ):
        assert "s3cret" not in refusal(tmp_path, text)
    found = requirements(tmp_path, "-i https://x:${TOKEN}@example.org/simple\na\n")
    assert found.index.index_url == "https://x:s3cret@example.org/simple"
    assert "s3cret" not in repr(found)


def test_files_include_each_other(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/more.txt").write_text("-r ../last.txt\nc\n")
    found = requirements(tmp_path, "a\n-r sub/more.txt\n--requirement=last.txt\n", last="b\n--pre\n")
    assert found.spec.pip == ("a", "b", "c")
    assert found.index.pre
    said = refusal(tmp_path, "-r last.txt\n", last="b\n\n-r requirements.txt\n")
    assert said == "last.txt:3: '-r requirements.txt' includes a file that includes this one"


def test_including_twice_each_time_does_not_explode(tmp_path: Path) -> None:
    files = {f"f{n}": f"-r f{n + 1}.txt\n-r f{n + 1}.txt\n" for n in range(40)}
    found = requirements(tmp_path, "-r f0.txt\n", **files, f40="a\n")
    assert found.spec.pip == ("a",)


def test_constraints_narrow_what_is_listed_and_wait_for_the_rest(tmp_path: Path) -> None:
    found = requirements(tmp_path, "-c limits.txt\nNumPy>=1.20\nrich\n", limits="numpy==1.26.4\nsix<1.17\n")
    assert found.spec.pip == ("numpy==1.26.4,>=1.20", "rich")
    assert found.conditions.constraints == ("six<1.17",)
    assert found.conditions.constraint_files == (tmp_path / "limits.txt",)
    assert found.build_environment({"HOME": str(tmp_path)})["UV_CONSTRAINT"] == str(tmp_path / "limits.txt")
    assert found.digest is not None
    plain = requirements(tmp_path, "-c limits.txt\nrich\n", limits="rich<14\n")
    assert plain.spec.pip == ("rich<14",)
    assert plain.digest is None


@pytest.mark.parametrize(
    "data",
    [
        b"\xef\xbb\xbfnumpy==1.26\n",
        "\ufeffnumpy==1.26\r\n".encode("utf-16-le"),
        "\ufeffnumpy==1.26\n".encode("utf-16-be"),
        "# -*- coding: latin-1 -*-\nnumpy==1.26 # \xe9\n".encode("latin-1"),
    ],
)
def test_encodings(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "requirements.txt").write_bytes(data)
    assert read_spec(tmp_path / "requirements.txt").pip == ("numpy==1.26",)


def test_another_encoding_is_named(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_bytes(b"numpy # \xe9\n")
    with pytest.raises(SpecError, match="is not text in utf-8"):
        read_spec(tmp_path / "requirements.txt")


_PIECES = st.sampled_from(
    ("a", "b==1", "-r", "-c", "-e", "-i", ".", "./x", "#", "\\", "\n", "\r\n", ";", "@", "https://e.org/x-1.zip")
)
_MORE_PIECES = st.sampled_from(("--hash=sha256:", "${A}", "[x]", "'", '"', "==,", "\x00", "\ufeff"))


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.text(max_size=60), st.lists(_PIECES | _MORE_PIECES, max_size=12).map(" ".join)))
@example("a \\")
@example("-r .")
def test_any_text_is_a_specification_or_an_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "requirements.txt"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    outcome = outcome_of(path)
    if isinstance(outcome, SpecError):
        assert str(outcome).startswith(str(path))
    else:
        assert EnvSpec.from_json(outcome.spec.to_json()) == outcome.spec


# How the options reach the resolver


def test_a_files_index_comes_before_the_users(tmp_path: Path) -> None:
    found = requirements(
        tmp_path, "-i https://one.example.org\n--extra-index-url https://two.example.org\n-f wheels\na\n"
    )
    given_ = {"HOME": str(tmp_path), "PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": "https://mine.example.org"}
    made = found.build_environment(given_ | {"PIP_EXTRA_INDEX_URL": "https://extra.example.org"})
    assert made["UV_DEFAULT_INDEX"] == "https://one.example.org"
    assert made["UV_INDEX"] == "https://extra.example.org https://two.example.org"
    assert made["UV_FIND_LINKS"] == "wheels"
    nothing = requirements(tmp_path, "a\n").build_environment(given_)
    assert nothing["UV_DEFAULT_INDEX"] == "https://mine.example.org"


def test_no_index_leaves_the_folder_alone(tmp_path: Path) -> None:
    from poncho_wq.build import index

    (tmp_path / "wheels").mkdir()
    found = requirements(tmp_path, "--no-index\n--find-links=wheels\na\n")
    made = found.build_environment({"HOME": str(tmp_path), "UV_INDEX_URL": "https://mine.example.org"})
    assert made["UV_FIND_LINKS"] == str(tmp_path / "wheels")
    assert "UV_INDEX_URL" not in made
    assert index.wants_no_index(made)


def test_uv_resolves_with_the_files_options(tmp_path: Path) -> None:
    from tests.wheelhouse import write_wheel

    for version in ("1.0", "2.0", "3.0a1"):
        write_wheel(tmp_path / "wheels", "thing", version, {"thing.py": ""}, requires=("helper",))
        write_wheel(tmp_path / "wheels", "helper", version, {"helper.py": ""})

    def solved(text: str, **others: str) -> dict[str, str]:
        found = requirements(tmp_path, f"--no-index\n-f wheels\n{text}", **others)
        work = tmp_path / "work"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        uv = Uv(cache=tmp_path / "uv", environment=found.build_environment(os.environ))
        result = uv.compile(
            found.spec.pip, preferred={}, python=Path(sys.executable), glibc=None, platform="linux-64", work=work
        )
        return {each["name"]: each["version"] for each in result["packages"]}

    assert solved("thing\n") == {"thing": "2.0", "helper": "2.0"}
    assert solved("--pre\nthing\n") == {"thing": "3.0a1", "helper": "3.0a1"}
    assert solved("thing\n-c limits.txt\n", limits="helper<2\n") == {"thing": "2.0", "helper": "1.0"}


# What a lock must fulfil


def lock_of(*packages: LockedPackage) -> Lock:
    return Lock(python="3.11.7", interpreter=None, platform="linux-64", packages=packages)


def test_only_files_whose_hashes_are_given_may_be_installed() -> None:
    one, two, three = "1" * 64, "2" * 64, "3" * 64
    lock = lock_of(LockedPackage(name="a", version="1", sha256=(one, two)))
    assert Conditions().restrict(lock) == lock
    limited = Conditions(hashes=(("a", (two, three)),), hashes_required=True).restrict(lock)
    assert limited.packages[0].sha256 == (two,)
    with pytest.raises(SolveError, match="a 1: none of its files has one of the hashes given"):
        Conditions(hashes=(("a", (three,)),)).restrict(lock)
    with pytest.raises(SolveError, match="b 1: no hash is given"):
        Conditions(hashes=(("a", (one,)),), hashes_required=True).restrict(
            lock_of(*lock.packages, LockedPackage(name="b", version="1", sha256=(one,)))
        )


def test_choosing_pre_releases_makes_another_environment(tmp_path: Path) -> None:
    digests = [requirements(tmp_path, f"{option}\na\n").digest for option in ("", "--pre", "--no-binary a", "-i u")]
    assert digests[0] is digests[3] is None
    assert len({*digests}) == 3


def test_conditions_are_told_apart() -> None:
    digests = {
        Conditions().digest,
        Conditions(constraints=("a<2",)).digest,
        Conditions(constraints=("a<3",)).digest,
        Conditions(hashes=(("a", ("1" * 64,)),)).digest,
        Conditions(hashes_required=True).digest,
    }
    assert len(digests) == 5
    assert None in digests


# environment.yml


def test_what_conda_env_export_writes() -> None:
    spec = read_spec(DATA / "environment.export.yml")
    assert spec.conda is not None
    assert spec.conda.channels == ("conda-forge", "bioconda")
    assert "numpy=1.26.4=py311h64a7726_0" in spec.conda.packages
    assert "python=3.11.8=hab00c5b_0_cpython" in spec.conda.packages
    assert len(spec.conda.packages) == 12
    assert spec.pip == ("annotated-types==0.6.0", "pydantic==2.6.4", "typing-extensions==4.10.0")
    assert spec.env == (("OMP_NUM_THREADS", "4"),)
    assert "someone" not in spec.to_json()
    assert "climate" not in spec.to_json()


def test_the_form_without_builds() -> None:
    spec = read_spec(DATA / "environment.no-builds.yml")
    assert spec.conda is not None
    assert spec.conda.packages == ("_libgcc_mutex=0.1", "numpy=1.26.4", "python=3.11.8")


def test_what_people_write() -> None:
    imported = read_source(DATA / "environment.by-hand.yml")
    assert imported.spec.conda is not None
    assert imported.spec.conda.packages == (
        "conda-forge::xarray", "matplotlib-base", "numpy <2,>=1.24", "pip", "python=3.10",
    )  # fmt: skip
    assert imported.spec.pip == ("labtools @ git+https://example.org/lab/tools.git@v1.2", "seaborn~=0.13")
    assert imported.index.extra_index_urls == ("https://index.example.org/simple",)


def test_micromambas_selectors() -> None:
    spec = read_spec(DATA / "environment.micromamba.yml")
    assert spec.conda is not None
    assert spec.conda.packages == ("libgcc-ng", "python=3.12")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("- a\n", "expected an object, got a list"),
        ("channels: [x]\nchannels: [y]\n", "channels: is given twice"),
        ("chanels: [x]\n", 'chanels: unknown key; did you mean "channels"?'),
        ("channels: x\n", "channels: expected a list"),
        ("dependencies: {a: b}\n", "dependencies: expected a list"),
        ("channels: [x]\ndependencies: [a b c d e]\n", "dependencies[0]: "),
        ("channels: [x]\ndependencies: [a, '../x.conda']\n", "dependencies[1]: "),
        ("channels: [https://me:pw@example.org/x]\ndependencies: [a]\n", "channels[0]: "),
        ("dependencies: [numpy]\n", "channels: no channel is named"),
        ("channels: [x]\ndependencies: [{pip: ['-e .']}]\n", "dependencies[0].pip[0]: '-e .' is not a package"),
        ("channels: [x]\ndependencies: [{npm: [a]}]\n", "dependencies[0].npm: "),
        ("variables: {LD_PRELOAD: x}\n", "variables.LD_PRELOAD: cannot be set"),
        ("a: *b\n", "environment.yml:1: the alias *b is not read"),
        ("a: &b [x]\nchannels: *b\n", "environment.yml:2: the alias *b is not read"),
        ("a: [\n", "environment.yml:2: not YAML"),
        ("a:\n\t- b\n", "environment.yml:2: not YAML"),
        ("a: b\n--- \nc: d\n", "not YAML"),
        ("? [a]\n: b\n", "expected a key that is a string"),
        ("\x07", "not YAML"),
        ("[" * 5000, "nested too deeply"),
        ("a: {" * 60 + "}" * 60, "nested too deeply"),
        ('{"a": ' + "[" * 100_000, "nested too deeply"),
        ('"\\UFFFFFFFF": a\n', "not YAML: a character above U+10FFFF"),
        ('"\\U00110000": a\n', "not YAML: a character above U+10FFFF"),
    ],
)
def test_environment_files_that_are_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "environment.yml").write_text(text)
    with pytest.raises(SpecError) as caught:
        read_source(tmp_path / "environment.yml")
    assert words in str(caught.value)
    assert str(caught.value).startswith(f"{tmp_path}/environment.yml")
    assert "pw" not in str(caught.value)


def test_yaml_has_strings_only() -> None:
    document = load_yaml("a: 3.10\nb: on\nc: 0x10\nd: 2024-01-01\ne: ~\nf: '~'\ng:\n- null\n- !!int 3\n", source="x")
    assert document == {"a": "3.10", "b": "on", "c": "0x10", "d": "2024-01-01", "e": None, "f": "~", "g": [None, "3"]}


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.text(max_size=80), st.text(alphabet="channels:dependencies- pip{}[]&*!?|>\n\t#'\"", max_size=80)))
def test_any_text_is_an_environment_or_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "environment.yml").write_bytes(text.encode("utf-8", "surrogatepass"))
    outcome = outcome_of(tmp_path / "environment.yml")
    assert isinstance(outcome, Imported) or str(outcome).startswith(str(tmp_path))


# pyproject.toml and pylock.toml

PROJECT = """
[project]
name = "Survey"
version = "0.1"
requires-python = ">=3.8"
dependencies = ["numpy>=1.26", "tzdata; sys_platform == 'linux'"]
[project.optional-dependencies]
plot = ["six>=1.16"]
Extra_All = ["survey[plot]", "idna"]
[dependency-groups]
test = ["iniconfig", {include-group = "lint"}]
lint = ["pathspec"]
"""


def project(tmp_path: Path, text: str, **options: object) -> tuple[str, ...]:
    (tmp_path / "pyproject.toml").write_text(text)
    return read_source(tmp_path / "pyproject.toml", Options(**options)).spec.pip  # type: ignore[arg-type]


def test_a_projects_dependencies(tmp_path: Path) -> None:
    base = ("numpy>=1.26", 'tzdata; sys_platform == "linux"')
    assert project(tmp_path, PROJECT) == base
    assert project(tmp_path, PROJECT, extras=["plot"]) == (base[0], "six>=1.16", base[1])
    assert project(tmp_path, PROJECT, extras=["extra-all"]) == ("idna", base[0], "six>=1.16", base[1])
    assert project(tmp_path, PROJECT, groups=["test"]) == ("iniconfig", base[0], "pathspec", base[1])


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("[build-system]\n", {}, 'has no "project" table'),
        ("[project]\ndynamic = ['dependencies']\n", {}, "project.dependencies: are dynamic"),
        ("[project]\nrequires-python = '>=3.99'\n", {}, "project.requires-python: the project needs Python >=3.99"),
        ("[project]\nrequires-python = 'x'\n", {}, "is not a version specifier"),
        ("[project]\ndependencies = 'a'\n", {}, "project.dependencies: expected a list"),
        ("[project]\ndependencies = ['a', 'b c']\n", {}, "project.dependencies[1]: "),
        ("[project]\ndependencies = [1]\n", {}, "project.dependencies[0]: expected a string"),
        (PROJECT, {"extras": ["none"]}, 'project.optional-dependencies: has no extra "none"\nit has Extra_All, plot'),
        (PROJECT, {"groups": ["none"]}, 'dependency-groups: has no group "none"'),
        ("[dependency-groups]\na = [{include-group='a'}]\n", {"groups": ["a"]}, "dependency-groups.a: includes itself"),
        ("x = \n", {}, "not TOML"),
        (
            "[project]\ndependencies = ['lab']\n[tool.uv.sources]\nlab = {workspace = true}\n",
            {},
            "tool.uv.sources.lab: comes from a workspace",
        ),
    ],
)
def test_projects_that_are_refused(tmp_path: Path, text: str, options: dict[str, object], words: str) -> None:
    with pytest.raises(SpecError) as caught:
        project(tmp_path, text, **options)
    assert words in str(caught.value)


def test_poetrys_own_form_is_refused_with_what_to_do(tmp_path: Path) -> None:
    shutil.copy(DATA / "pyproject.poetry.toml", tmp_path / "pyproject.toml")
    with pytest.raises(SpecError, match=r"tool\.poetry: (.|\n)*poetry export"):
        read_source(tmp_path / "pyproject.toml")


@pytest.mark.parametrize("name", ["pylock.toml", "pylock.pip.toml"])
def test_locks_of_real_tools(name: str) -> None:
    imported = read_source(DATA / name)
    assert {"rich==15.0.0", "six==1.17.0", "mdurl==0.1.2"} <= set(imported.spec.pip)
    assert not any("colorama" in text for text in imported.spec.pip), "not for this platform"
    hashes = dict(imported.conditions.hashes)
    assert set(hashes) == {text.partition("==")[0] for text in imported.spec.pip}
    assert "33bd4ef74232fb73fe9279a257718407f169c09b78a87ad3d296f548e27de0bb" in hashes["rich"]
    assert "http" not in imported.spec.to_json()


def test_a_lock_with_the_project_in_it_is_refused() -> None:
    with pytest.raises(SpecError, match=r"no index has the code of these packages:\n  survey \(editable, \.\)"):
        read_source(DATA / "pylock.editable.toml")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "lock-version"),
        ("lock-version = '2.0'\ncreated-by='x'\npackages=[]\n", "2.0"),
        ("lock-version = '1.0'\ncreated-by='x'\n[[packages]]\nversion='1'\n", "packages[0]"),
        ("lock-version = '1.0'\ncreated-by='x'\nrequires-python='>=3.99'\npackages=[]\n", "nothing for this machine"),
    ],
)
def test_locks_that_are_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "pylock.toml").write_text(text)
    with pytest.raises(SpecError) as caught:
        read_source(tmp_path / "pylock.toml")
    assert words in str(caught.value)
    assert str(caught.value).startswith(f"{tmp_path}/pylock.toml")


def test_a_lock_with_archives_and_commits(tmp_path: Path) -> None:
    (tmp_path / "pylock.toml").write_text(
        "lock-version = '1.0'\ncreated-by = 'x'\n"
        "[[packages]]\nname = 'a'\n[packages.vcs]\ntype = 'git'\nurl = 'https://example.org/a.git'\n"
        f"commit-id = '{'1' * 40}'\nsubdirectory = 'sub'\n"
        "[[packages]]\nname = 'b'\n[packages.archive]\npath = 'files/b-1.zip'\n"
        f"hashes = {{sha256 = '{'2' * 64}'}}\n"
    )
    assert read_spec(tmp_path / "pylock.toml").pip == (
        f"a @ git+https://example.org/a.git@{'1' * 40}#subdirectory=sub",
        f"b @ file://{tmp_path}/files/b-1.zip",
    )


# What is what


def test_what_is_nothing_that_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "project").mkdir()
    (tmp_path / "project/requirements.txt").touch()
    (tmp_path / "uv.lock").touch()
    (tmp_path / "link.json").symlink_to("gone.json")
    (tmp_path / "env.tar.gz").write_bytes(b"\x1f\x8b\x08\x00")
    for source, words in (
        (
            tmp_path / "project",
            f"{tmp_path}/project: neither a venv (pyvenv.cfg) nor a conda prefix (conda-meta)\ndid you",
        ),
        (tmp_path / "nothing", "no such file"),
        ("nothing", "nothing: no such file\n"),
        (tmp_path / "uv.lock", "uv export"),
        (tmp_path / "link.json", "is a link to gone.json, which is not there"),
        (tmp_path / "env.tar.gz", "is a tarball, not a specification"),
    ):
        with pytest.raises(SpecError) as caught:
            read_source(source)
        assert words in str(caught.value)


def test_specifications_pass_through(tmp_path: Path) -> None:
    spec = EnvSpec.from_dict({"pip": ["numpy"]})
    assert read_spec(spec) is spec
    assert read_spec({"pip": ["numpy"]}) == spec
    (tmp_path / "spec").write_text(spec.to_json())
    assert read_source(tmp_path / "spec") == Imported(spec=spec)


def test_a_pipe_that_nobody_writes_to_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "requirements.txt")
    assert read_spec(tmp_path / "requirements.txt") == EnvSpec()


def test_choosing_a_reader_loads_no_other(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text("numpy\n")
    code = (
        "import sys, poncho_wq.importers as i; i.read_source(sys.argv[1]);"
        "print([m for m in ('yaml', 'rattler', 'packaging.pylock', 'uv', 'rich') if m in sys.modules])"
    )
    said = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "requirements.txt")], capture_output=True, text=True, check=True
    )
    assert said.stdout.strip() == "[]"


def test_reading_changes_nothing() -> None:
    def state() -> str:
        return hashlib.sha256(
            "".join(f"{path}{path.stat().st_mtime_ns}{path.read_bytes()!r}" for path in sorted(DATA.iterdir())).encode()
        ).hexdigest()

    before = state()
    read_source(DATA / "environment.by-hand.yml")
    read_source(DATA / "pylock.toml")
    assert state() == before
