"""Scripts and notebooks: what becomes of each import, without running any of them."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poncho_wq.analysis.model import Reach
from poncho_wq.analysis.sources import read_source, source_from_bytes
from poncho_wq.analyze import analyze, analyze_scripts, explain
from poncho_wq.errors import AnalysisError, UnresolvedImportError
from tests.fakes_analyze import install, names

PROJECTS = Path(__file__).parent / "projects"

INSTALLED = {
    "PyYAML": ["yaml/__init__.py"],
    "numpy": ["numpy/__init__.py", "numpy/linalg/__init__.py"],
    "six": ["six.py"],
    "protobuf": ["google/protobuf/message.py", "google/protobuf/__init__.py"],
    "google-cloud-storage": ["google/cloud/storage/__init__.py"],
    "attrs": ["attr/__init__.py"],
    "python-dateutil": ["dateutil/__init__.py"],
    "pandas": ["pandas/__init__.py"],
    "scikit-image": ["skimage/__init__.py"],
    "opencv-python": ["cv2/__init__.py"],
    "pyserial": ["serial/__init__.py"],
    "pyzmq": ["zmq/__init__.py"],
    "beautifulsoup4": ["bs4/__init__.py"],
    "Pillow": ["PIL/Image.py"],
    "PyJWT": ["jwt/__init__.py"],
    "python-magic": ["magic.py"],
    "python-slugify": ["slugify/__init__.py"],
    "python-docx": ["docx/__init__.py"],
    "python-dotenv": ["dotenv/__init__.py"],
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    site = tmp_path_factory.mktemp("installed") / "site-packages"
    for package, files in INSTALLED.items():
        install(site, package, "1.0", files, on_disk=False)
    return site


Scan = Callable[..., Reach]


@pytest.fixture
def scan(site: Path) -> Scan:
    """Analyze source text."""

    def scan(text: str, **options: object) -> Reach:
        source = source_from_bytes(text.encode(), name="script.py", directory=None)
        return analyze_scripts([source], path=[str(site)], prefix=site, **options)  # type: ignore[arg-type]

    return scan


def missing(found: Reach) -> list[str]:
    return [each.imported.spelled for each in found.unresolved]


# -- whole scripts


def test_each_import_of_the_tricky_script(site: Path) -> None:
    """The script says it itself, line by line."""
    file = PROJECTS / "tricky" / "script.py"
    found = analyze_scripts([read_source(file)], path=[str(site)], prefix=site)
    by_line: dict[int, set[str]] = {}
    for verdict in found.verdicts:
        words = {"in": [f"in {each.name}" for each in verdict.providers], "out": ["out"], "unresolved": ["missing"]}
        by_line.setdefault(verdict.imported.place.line, set()).update(words[verdict.status])
    expected: dict[int, set[str]] = {}
    for number, line in enumerate(file.read_text().splitlines(), start=1):
        comment = re.search(r"# (in .*|out|missing)$", line)
        if comment:
            kind, _, packages = comment[1].partition(" ")
            expected[number] = {f"in {name}" for name in packages.split(", ")} if packages else {kind}
    by_line.pop(3)  # __future__
    assert by_line == expected
    assert any("computed" in note for note in found.notes)
    assert any("ujson left out" in note for note in found.notes)


def test_nothing_is_imported_or_run(tmp_path: Path, site: Path) -> None:
    (tmp_path / "helper.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    (tmp_path / "script.py").write_text("import helper\nimport yaml\nraise SystemExit(3)\n")
    before = set(sys.modules)
    analyze_scripts([read_source(tmp_path / "script.py")], path=[str(site)], prefix=site)
    assert "helper" not in set(sys.modules) - before
    assert sorted(each.name for each in tmp_path.iterdir()) == ["helper.py", "script.py"]


def test_top_level_only(scan: Scan) -> None:
    text = """
        import yaml
        if True:
            import six
        class C:
            import attr
            def method(self):
                import numpy
        def f(d=__import__("jwt")):
            import pandas
        g = [__import__("zmq") for _ in ()]
        h = lambda: __import__("cv2")
    """
    found = scan(re.sub(r"(?m)^ {8}", "", text), toplevel=True)
    assert names(found.spec.pip) == {"pyyaml", "six", "attrs", "pyjwt", "pyzmq"}


def test_refused_all_at_once_with_file_and_line(site: Path) -> None:
    file = PROJECTS / "local" / "script.py"
    with pytest.raises(UnresolvedImportError) as caught:
        analyze(file, path=[str(site)], prefix=site)
    seen = [(each.module, each.line) for each in caught.value.imports]
    assert seen == [
        ("helper", 1), ("package.part", 2), ("package", 3), (".", 4), (".package", 5), ("scattered.piece", 6),
        ("missing_one", 7), ("missing_two", 7),
    ]  # fmt: skip
    assert {each.file for each in caught.value.imports} == {str(file)}
    said = str(caught.value)
    assert f"{file}:1: helper: a local module: {PROJECTS / 'local' / 'helper.py'}" in said
    assert "relative" in said
    assert "--pkg-mapping" in said
    assert "PonchoTask" in said


def test_several_scripts_at_once(tmp_path: Path, site: Path) -> None:
    for name, text in (("a.py", "import yaml"), ("b.py", "import six\nimport gone"), ("c.py", "import lost")):
        (tmp_path / name).write_text(text)
    files = [tmp_path / name for name in ("a.py", "b.py")]
    assert names(analyze(files[0], path=[str(site)], prefix=site).pip) == {"pyyaml"}
    with pytest.raises(UnresolvedImportError) as caught:
        analyze(*files, tmp_path / "c.py", path=[str(site)], prefix=site)
    assert [each.module for each in caught.value.imports] == ["gone", "lost"]


def test_the_specification_pins_and_names_this_python(scan: Scan) -> None:
    version = ".".join(map(str, sys.version_info[:3]))
    assert scan("import yaml, os").spec.to_dict() == {"pip": ["pyyaml==1.0"], "python": version}
    assert scan("import os").spec.to_dict() == {"python": version}
    assert scan("").spec.to_dict() == {"python": version}


@pytest.mark.parametrize(
    ("mapping", "text", "expected"),
    [
        ({"odd": "six"}, "import odd", ["six==1.0"]),
        ({"odd": "PyYAML"}, "import odd.part", ["pyyaml==1.0"]),
        ({"odd.part": "six"}, "from odd import part", ["six==1.0"]),
        ({"odd": "not-installed"}, "import odd", ["not-installed"]),
        ({"odd": "six>=1.2"}, "import odd", ["six>=1.2"]),
        ({"yaml": "six"}, "import yaml", ["six==1.0"]),
        ({"unused": "six"}, "import yaml", ["pyyaml==1.0"]),
    ],
)
def test_package_mapping(scan: Scan, mapping: dict[str, str], text: str, expected: list[str]) -> None:
    found = scan(text, pkg_mapping=mapping)
    assert missing(found) == []
    assert list(found.spec.pip) == expected


def test_a_mapping_to_something_else_leaves_the_rest(scan: Scan) -> None:
    assert missing(scan("import odd, other", pkg_mapping={"odd": "six"})) == ["other"]


def test_extra_packages(scan: Scan) -> None:
    found = scan("import yaml", extra_packages=["six", "samtools", "numpy>=1.0"])
    assert list(found.spec.pip) == ["numpy>=1.0", "pyyaml==1.0", "samtools", "six==1.0"]
    assert any("samtools: not installed here" in note for note in found.notes)
    with pytest.raises(AnalysisError, match="neither the name"):
        scan("", extra_packages=["not a name"])


def test_a_package_from_a_folder_is_refused_by_the_tools(tmp_path: Path) -> None:
    site = tmp_path / "site-packages"
    install(site, "mine", "1.0", ["mine.py"], direct_url={"url": "file:///some/where", "dir_info": {}})
    (tmp_path / "s.py").write_text("import mine")
    with pytest.raises(UnresolvedImportError, match="from the folder /some/where"):
        analyze(tmp_path / "s.py", path=[str(site)], prefix=site)
    with pytest.raises(AnalysisError, match="build a wheel"):
        analyze(path=[str(site)], prefix=site, extra_packages=["mine"])


def test_a_local_file_with_the_name_of_a_standard_module_is_remarked_on(tmp_path: Path, site: Path) -> None:
    (tmp_path / "random.py").write_text("")
    (tmp_path / "s.py").write_text("import random\nimport yaml")
    found = analyze_scripts([read_source(tmp_path / "s.py")], path=[str(site)], prefix=site)
    assert found.unresolved == ()
    assert any(str(tmp_path / "random.py") in note for note in found.notes)


# -- in a conda prefix


def test_a_conda_prefix_gives_a_conda_section(tmp_path: Path) -> None:
    from tests.test_distributions import conda

    prefix = tmp_path / "conda"
    site = prefix / "lib/python3.11/site-packages"
    forge = "https://conda.anaconda.org/conda-forge/linux-64"
    bio = "https://conda.anaconda.org/bioconda/noarch"
    install(site, "numpy", "1.26.4", ["numpy/__init__.py"])
    install(site, "six", "1.16", ["six.py"])
    conda(prefix, "python", "3.11.7", "h_0_cpython", ["bin/python3.11"], forge)
    conda(prefix, "pip", "23.3", "pyhd_0", [], forge)
    conda(prefix, "numpy", "1.26.4", "py311_0", ["lib/python3.11/site-packages/numpy-1.26.4.dist-info/METADATA"], forge)
    conda(prefix, "blast", "2.15", "pl_1", ["bin/blastn"], bio)
    (tmp_path / "s.py").write_text("import numpy, os")
    only_conda = analyze(tmp_path / "s.py", path=[str(site)], prefix=prefix, extra_packages=["blast"])
    assert only_conda.to_dict() == {
        "conda": {
            "channels": ["conda-forge", "bioconda"],
            "packages": [
                "bioconda::blast=2.15=pl_1",
                "conda-forge::numpy=1.26.4=py311_0",
                "conda-forge::python=3.11.7=h_0_cpython",
            ],
        }
    }
    (tmp_path / "s.py").write_text("import numpy, six")
    both = analyze(tmp_path / "s.py", path=[str(site)], prefix=prefix).to_dict()
    assert both["pip"] == ["six==1.16"]
    assert "conda-forge::pip=23.3=pyhd_0" in both["conda"]["packages"]
    assert "python" not in both


# -- one function

MODULE = """
import numpy as np, pandas
import google.protobuf, google.cloud.storage
from skimage import io as picture
import six as unused
from yaml import *
import attr
import bs4, serial
import importlib

zmq = importlib.import_module("zmq")
CONSTANT = np.zeros(3)
TABLE = {}
TABLE["x"] = attr.ib()
with open(bs4.__file__) as FILE:
    LINES = FILE.readlines()

def by_alias(x: "pandas.DataFrame"): return np.sum(x)
def by_chain(): return google.protobuf.message.Message
def by_from(): return picture
def by_star(): return safe_load("")
def by_constant(): return CONSTANT
def by_assignment(): return zmq.Context()
def by_item(): return TABLE
def by_with(): return LINES
def by_helper(): return by_alias(1)
def by_default(x=pandas.NA): return x
def by_annotation(x: pandas.DataFrame): return x
def by_decorator_helper(f): return f
@by_decorator_helper
def by_decorator():
    import jwt
def by_global():
    global lazy
    import magic as lazy
def uses_global(): return lazy.thing
def shadowed(np): return np.sum()
def shadowed_within():
    pandas = 3
    def inner(): return pandas
    return [bs4 for bs4 in inner()]
def by_comprehension(): return [np for x in () if pandas]
async def asynchronous():
    import dotenv
def outer():
    import docx
    def inner():
        return docx.x, deeper()
    def deeper():
        import slugify
    def unrelated():
        import cv2
    return inner
class Base:
    def inherited(self):
        import PIL
class Class(Base, metaclass=by_decorator_helper(type)):
    field = attr.ib()
    def method(self):
        return self.other()
    def other(self):
        return serial
    def unrelated(self):
        import cv2
    @staticmethod
    def static():
        return np
    class Inner:
        def method(self): import dateutil
def by_class(): return Class()
def recursive(n): return recursive(n - 1)
def builtin(): return len, print, undefined_name_of_builtin_like
def match_it(x):
    match x:
        case np.ndarray(shape=[bs4, *six]) | {"k": attr, **pandas}:
            return bs4, six, attr, pandas
def walrus(): return [y := np.x, y]
def exception_name():
    try: pass
    except ValueError as np: print(np)
"""


@pytest.mark.parametrize(
    ("function", "expected"),
    {
        "by_alias": "numpy",
        "by_chain": "protobuf",
        "by_from": "scikit-image",
        "by_star": "pyyaml",
        "by_constant": "numpy",
        "by_assignment": "pyzmq",
        "by_item": "attrs",
        "by_with": "beautifulsoup4",
        "by_helper": "numpy",
        "by_default": "pandas",
        "by_decorator": "pyjwt",
        "by_global": "python-magic",
        "uses_global": "python-magic",
        "shadowed": "",
        "shadowed_within": "",
        "by_comprehension": "numpy pandas",
        "asynchronous": "python-dotenv",
        "outer": "python-docx python-slugify opencv-python",
        "outer.inner": "python-docx python-slugify",
        "outer.<locals>.deeper": "python-slugify",
        "inner": None,
        "deeper": "python-slugify",
        "Class.method": "attrs pyserial pillow",
        "Class.static": "attrs numpy pillow",
        "Class.Inner.method": "attrs pillow python-dateutil",
        "Class": "attrs pyserial opencv-python numpy python-dateutil pillow",
        "by_class": "attrs pyserial opencv-python numpy python-dateutil pillow",
        "other": "attrs pillow pyserial",
        "recursive": "",
        "match_it": "numpy",
        "walrus": "numpy",
        "exception_name": "",
    }.items(),
)
def test_a_function_needs_what_it_reaches_and_no_more(scan: Scan, function: str, expected: str | None) -> None:
    if expected is None:
        with pytest.raises(AnalysisError, match="several functions"):
            scan(MODULE, functions=[function])
        return
    found = scan(MODULE, functions=[function])
    assert missing(found) == []
    assert names(found.spec.pip) == set(expected.split())


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="annotations are not evaluated from 3.14 on")
def test_annotations_count_when_they_are_evaluated(scan: Scan) -> None:
    assert names(scan(MODULE, functions=["by_annotation"]).spec.pip) == {"pandas"}
    assert scan("from __future__ import annotations\n" + MODULE, functions=["by_annotation"]).spec.pip == ()
    text = "import numpy, six\ndef f():\n    x: numpy.ndarray = 1\ndef g() -> six.x: ...\nclass C:\n    y: numpy.z\n"
    assert names(scan(text, functions=["f"]).spec.pip) == set()
    assert names(scan(text, functions=["g"]).spec.pip) == {"six"}
    assert names(scan(text, functions=["C"]).spec.pip) == {"numpy"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import six\nclass f:\n    six = 1\n    def m(self): return six", "six"),
        ("import six\nclass f:\n    six = ()\n    y = [x for x in six]", ""),
        ("import six\nclass f:\n    six = ()\n    y = [z for x in () for z in six]", "six"),
        ("import six\nclass f:\n    six = six", "six"),
        ("import six\nclass f:\n    six = 1\n    x = six", ""),
        ("import six\nif TYPE_CHECKING:\n    X = six.x\ndef f(): return X", ""),
        ("import six\nif __name__ == '__main__':\n    X = six.x\ndef f(): return X", "six"),
        ("def f():\n    v = 1\n    def g():\n        nonlocal v\n        import six as v", "six"),
    ],
)
def test_scopes(scan: Scan, text: str, expected: str) -> None:
    found = scan(text, functions=["f"])
    assert names(found.spec.pip) == set(expected.split())


def test_only_what_the_function_needs_can_be_missing(scan: Scan) -> None:
    text = "import gone, lost\nimport six\ndef f(): return six.x\ndef g(): return lost\n"
    assert missing(scan(text, functions=["f"])) == []
    assert missing(scan(text, functions=["g"])) == ["lost"]
    assert missing(scan(text, functions=["f", "g"])) == ["lost"]


def test_a_function_that_is_not_there(scan: Scan) -> None:
    for name in ("nothing", "Class.nothing", "f.nothing", ""):
        with pytest.raises(AnalysisError, match="no function is called"):
            scan("def f(): ...\nclass Class: ...\n", functions=[name])


def test_a_function_in_one_of_several_scripts(tmp_path: Path, site: Path) -> None:
    (tmp_path / "a.py").write_text("import yaml\ndef f(): return yaml")
    (tmp_path / "b.py").write_text("import six\ndef g(): return six")
    files = [tmp_path / "a.py", tmp_path / "b.py"]
    assert names(analyze(*files, functions=["g"], path=[str(site)], prefix=site).pip) == {"six"}
    assert names(analyze(*files, functions=["f", "g"], path=[str(site)], prefix=site).pip) == {"pyyaml", "six"}


@pytest.mark.skipif(sys.version_info < (3, 12), reason="the syntax is of 3.12")
def test_type_parameters_are_no_globals(scan: Scan) -> None:
    text = "import six, yaml\ntype A = six.x\ndef f[yaml](x: yaml) -> A: return yaml\nclass C[yaml]: x = yaml\n"
    assert names(scan(text, functions=["f"]).spec.pip) == {"six"} or sys.version_info >= (3, 14)
    assert scan(text, functions=["C"]).spec.pip == ()


# -- notebooks


def test_a_notebook_without_its_magics(site: Path) -> None:
    found = analyze_scripts([read_source(PROJECTS / "notebook" / "analysis.ipynb")], path=[str(site)], prefix=site)
    assert names(found.spec.pip) == {"pyyaml", "six", "numpy", "pandas", "python-dateutil"}
    (gone,) = found.unresolved
    assert gone.imported.module == "missing_here"
    assert (gone.imported.place.cell, gone.imported.place.line) == (6, 2)
    assert str(gone.imported.place).endswith("analysis.ipynb[cell 6]:2")
    places = {each.imported.module: (each.imported.place.cell, each.imported.place.line) for each in found.verdicts}
    assert places["yaml"] == (1, 5)
    assert places["pandas"] == (4, 10)
    assert places["dateutil"] == (5, 7)


def test_an_old_notebook(site: Path) -> None:
    found = analyze_scripts([read_source(PROJECTS / "notebook" / "old.ipynb")], path=[str(site)], prefix=site)
    assert names(found.spec.pip) == {"pyyaml"}


# -- what cannot be read


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("python2.py", "python2.py:2: not Python"),
        ("syntax.py", "syntax.py:3: not Python"),
        ("null.py", "null.py"),
        ("not_utf8.py", "not_utf8.py"),
        ("cookie.py", "cookie.py"),
        ("notjson.ipynb", "notjson.ipynb: not a Jupyter notebook"),
        ("list.ipynb", "list.ipynb: not a Jupyter notebook"),
        ("r.ipynb", "a notebook in r"),
        ("cell.ipynb", "cell.ipynb[cell 2]:2: not Python"),
        ("nowhere.py", "nowhere.py: no such file"),
        (".", "is a directory"),
    ],
)
def test_broken_input_is_named(file: str, words: str) -> None:
    with pytest.raises(AnalysisError) as caught:
        analyze(PROJECTS / "broken" / file)
    assert words in str(caught.value)


@pytest.mark.parametrize(("file", "expected"), [("latin1.py", {"pyyaml"}), ("bom.py", {"pyyaml", "six"})])
def test_encodings(site: Path, file: str, expected: set[str]) -> None:
    assert names(analyze(PROJECTS / "tricky" / file, path=[str(site)], prefix=site).pip) == expected


@pytest.mark.parametrize(
    "text",
    [
        "x = " + " + ".join(["1"] * 900) + "\nimport six\n",
        "if x: pass\n" + "elif x: pass\n" * 900 + "import six\n",
        "x" + ".y" * 900 + "\nimport six\n",
        "f" + "()" * 900 + "\nimport six\n",
    ],
    ids=["sum", "elif", "attributes", "calls"],
)
def test_depth_that_python_can_parse_can_be_analyzed(scan: Scan, text: str) -> None:
    assert names(scan(text).spec.pip) == {"six"}


def test_depth_that_python_cannot_parse_is_an_error_like_others(scan: Scan) -> None:
    with pytest.raises(AnalysisError):
        scan("(" * 5000 + ")" * 5000)


@given(st.text() | st.binary())
def test_any_text_is_analyzed_or_refused(text: str | bytes) -> None:
    data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    for name in ("s.py", "s.ipynb"):
        try:
            source = source_from_bytes(data, name=name, directory=None)
        except AnalysisError:
            continue
        analyze_scripts([source], path=[], prefix="/no/such/prefix")


# -- explain


def test_explain_a_file_says_all_and_refuses_nothing() -> None:
    found = explain(PROJECTS / "local" / "script.py")
    status = {each.imported.spelled: each.status for each in found.verdicts}
    assert status["helper"] == "unresolved"
    assert status["missing_one"] == "unresolved"
    assert status["yaml"] in ("in", "unresolved")
    one = explain(str(PROJECTS / "local" / "script.py") + ":uses_helper")
    assert [each.imported.module for each in one.verdicts] == ["helper"]


def test_explain_a_function_of_a_module_follows_local_code(monkeypatch: pytest.MonkeyPatch, site: Path) -> None:
    monkeypatch.chdir(PROJECTS / "local")
    before = set(sys.modules)
    found = explain("helper:through")
    status = {each.imported.spelled: each.status for each in found.verdicts}
    assert status["package"] == "local"
    assert ".other" in status  # what package/__init__.py imports
    assert "bs4" in status  # what package.part.work reaches in package.deep
    assert "cv2" not in status
    assert "pandas" not in status
    assert set(sys.modules) == before
    for bad in ("helper:nothing", "no_such_module:f", "not a module:f", "package.nothing"):
        with pytest.raises(AnalysisError):
            explain(bad)
