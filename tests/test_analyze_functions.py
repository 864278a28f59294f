"""Live functions and other callables: what they reach in memory and in local files, and how long an answer holds."""

from __future__ import annotations

import functools
import gc
import importlib
import os
import sys
import threading
import types
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from poncho_wq.analysis import memory
from poncho_wq.analysis.model import Reach
from poncho_wq.analyze import analyze, explain, reach
from poncho_wq.errors import AnalysisError, UnresolvedImportError
from tests.fakes_analyze import install, names

PACKAGES = ("fpa", "fpb", "fpc", "fpd", "fpe")
BODY = """
class Thing:
    def __init__(self, content=None):
        self.content = content
Thing.value = Thing()
def make(content=None):
    return Thing(content)
def decorate(function):
    import functools
    @functools.wraps(function)
    def around(*args):
        return make(function(*args))
    return around
"""


@pytest.fixture(autouse=True)
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Installed: `fpa` … `fpe` with a module `sub`, by distributions of other names, and a shared namespace."""
    site = tmp_path / "site-packages"
    for name in PACKAGES:
        install(site, f"dist-{name}", "1.0", {f"{name}/__init__.py": BODY, f"{name}/sub.py": BODY})
    for part in ("one", "two"):
        install(site, f"fns-{part}", "1.0", {f"fns/{part}.py": BODY})
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(site))
    memory._answers.clear()
    yield site
    for name in set(sys.modules) - before:
        if name.startswith(("fp", "fns", "local_", "helper", "package", "scattered")):
            del sys.modules[name]
    memory._answers.clear()


def needs(function: Callable[..., Any], *args: Any, **kwargs: Any) -> set[str]:
    """The last letters of the packages that a call needs: `{"a", "b"}`."""
    return {name.rpartition("-")[2].removeprefix("fp") for name in names(reach(function, *args, **kwargs).spec.pip)}


def main(text: str, **given: Any) -> dict[str, Any]:
    """The names of a module run as `__main__`, without any source that could be read."""
    space: dict[str, Any] = {"__name__": "__main__", **given}
    exec(compile(text, "<nowhere>", "exec", dont_inherit=True), space)
    return space


# -- what a function reaches


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("def f(): return 1", ""),
        ("import fpa\ndef f(): return 1", ""),
        ("import fpa\ndef f(): return fpa.make()", "a"),
        ("import fpa as x, fpb\ndef f(): return x", "a"),
        ("from fpa import make\ndef f(): return make()", "a"),
        ("from fpa import Thing\ndef f(): return Thing", "a"),
        ("from fpa.sub import make as m\ndef f(): return [m() for _ in ()]", "a"),
        ("def f():\n import fpa.sub as s\n from fpb import sub", "a b"),
        ("def f():\n def g():\n  import fpa\n return g", "a"),
        ("import fpa\ndef f(): return lambda: [fpa for x in ()]", "a"),
        ("import fpa\ndef f():\n class C(fpa.Thing): pass", "a"),
        ("import importlib\ndef f(): return importlib.import_module('fpa.sub')", "a"),
        ("from importlib import import_module as i, import_module\ndef f(): return import_module('fpa')", "a"),
        ("def f(): return __import__('fpa')", "a"),
        ("import fpa\ndef h(): return fpa\ndef f(): return h()", "a"),
        ("import fpa\ndef h(): return f() + g()\ndef g(): return fpa\ndef f(): return h()", "a"),
        ("import fpa\nX = fpa.make()\ndef f(): return X", "a"),
        ("import fpa, fpb\nX = {'k': [1, (fpa.make(fpb.make()),)]}\ndef f(): return X", "a b"),
        ("import fpa\nX = fpa.make\ndef f(): return X", "a"),
        ("import fpa\nclass C:\n def m(self): return fpa\ndef f(): return C()", "a"),
        ("import fpa, fpb\nclass B(fpa.Thing): pass\nclass C(B):\n x = fpb.make()\ndef f(): return C", "a b"),
        ("import fpa\nclass C:\n @property\n def p(self): return fpa\ndef f(): return C", "a"),
        ("import fpa\nclass C:\n @staticmethod\n def p(): return fpa\ndef f(): return C", "a"),
        ("import fpa, functools as t\nclass C:\n @t.cached_property\n def p(self): return fpa\ndef f(): return C", "a"),
        ("import fpa\ndef f(x=fpa.make()): return x", "a"),
        ("import fpa\ndef f(*, x=fpa.Thing): return x", "a"),
        ("import fpa\nclass M(type): m = fpa.make\nclass C(metaclass=M): pass\ndef f(): return C", "a"),
        ("import fpa\nasync def f():\n async with fpa.x as y: return y", "a"),
        ("import fpa\ndef f():\n yield fpa", "a"),
        ("import fpa\n@fpa.decorate\ndef f():\n import fpb", "a b"),
        ("import fpa, functools\n@functools.lru_cache\ndef f(): return fpa", "a"),
        ("import fpa, functools\n@functools.singledispatch\ndef f(x): return fpa", "a"),
        ("import fpa\nf = lambda: fpa", "a"),
        ("import fpa\ndef outer():\n import fpb\n def inner(): return fpb.x, fpa\n return inner\nf = outer()", "a b"),
        ("import fpa\ndef outer(x):\n def inner(): return x\n return inner\nf = outer(fpa.make())", "a"),
        ("import fpa\ndef outer(x):\n def inner(): return x()\n return inner\nf = outer(lambda: fpa)", "a"),
        ("import fpa, functools\nf = functools.partial(print, fpa.make())", "a"),
        ("import fpa, functools\ndef g(*a): return fpa\nf = functools.partial(functools.partial(g, 1), x=2)", "a"),
        ("import fpa\nclass C:\n def __call__(self): return fpa\nf = C()", "a"),
        ("import fpa\nclass C:\n def m(self): return fpa\nf = C().m", "a"),
        ("import fpa\nclass C:\n def m(self): pass\nc = C()\nc.x = fpa.make()\nf = c.m", "a"),
        ("import fpa\nclass C:\n @classmethod\n def m(cls): return fpa\nf = C.m", "a"),
        ("import fpa\nclass f:\n def __init__(self): fpa", "a"),
        ("import fpa\nf = fpa.make", "a"),
        ("import fpa\nf = fpa.Thing", "a"),
        ("f = len", ""),
        ("import math\nf = math.sqrt", ""),
        ("f = [].append", ""),
        ("f = str.upper", ""),
        ("import fns.one, fns.two\ndef f(): return fns.one.make()", "one"),
        ("import fns.one, fns.two\ndef f(): return fns.two", "two"),
        ("def f():\n try:\n  import no_such_thing\n except ImportError: pass", ""),
        ("def f():\n try:\n  import no_such_thing\n except (ValueError, ModuleNotFoundError):\n  import fpa", "a"),
        ("def f():\n try: import fpa\n except ImportError: import nor_this\n else: pass", "a"),
        ("from typing import TYPE_CHECKING\ndef f():\n if TYPE_CHECKING: import no_such_thing\n import fpa", "a"),
        ("import typing\ndef f():\n if typing.TYPE_CHECKING: import fpb\n else: import fpa", "a"),
        ("import fpa\ndef f(fpa): return fpa.x", ""),
        ("import fpa\ndef f():\n fpa = 1\n return (lambda: fpa)()", ""),
        ("import fpa\ndef f():\n global fpa\n import fpb as fpa", "b"),
        ("import fpa\nTHREAD_UNSAFE = __import__('threading').Lock()\ndef f(): return THREAD_UNSAFE, fpa", "a"),
        ("def f(): return undefined_so_far", ""),
        ("import dataclasses as d, fpa\n@d.dataclass\nclass D:\n x: int = d.field(repr=fpa.make)\ndef f(): D", "a"),
        ("import fpa\ndef f():\n class C:\n  fpa = 1\n  y = fpa", ""),
        ("import fpa\ndef f():\n class C:\n  fpa = fpa", "a"),
        ("import enum, fpa\nclass E(enum.Enum):\n A = 1\n def m(self): return fpa\ndef f(): return E.A", "a"),
    ],
)  # fmt: skip
def test_a_function_needs_what_it_reaches_and_no_more(text: str, expected: str) -> None:
    assert needs(main(text)["f"]) == set(expected.split())


def test_annotations_travel_with_a_function() -> None:
    text = "import fpa\ndef f(x: fpa.Thing, y: list[fpa.sub.Thing] = ()): return x"
    assert needs(main("import fpa.sub, fpa\n" + text)["f"]) == {"a"}
    assert needs(main("from __future__ import annotations\n" + text)["f"]) == set()


def test_arguments_count() -> None:
    space = main("import fpa, fpb, fpc.sub\ndef f(*args, **kwargs): return 1\nclass Own:\n def m(self): return fpb")
    f, fpa = space["f"], space["fpa"]
    assert needs(f, 1, "x", None, [1.5, 2], key=b"z") == set()
    assert needs(f, fpa.make()) == {"a"}
    assert needs(f, [{"k": (fpa.Thing(space["fpb"].make()),)}]) == {"a", "b"}
    assert needs(f, key=fpa.Thing) == {"a"}
    assert needs(f, fpa) == {"a"}
    assert needs(f, space["Own"]()) == {"b"}
    assert needs(f, lambda: space) != {"x"}
    assert needs(f, functools.partial(space["fpc"].sub.make, 3)) == {"c"}


def test_arguments_that_pickle_refuses_still_count() -> None:
    space = main("import fpa\ndef f(x): return x")
    holder = space["fpa"].make(threading.Lock())
    assert needs(space["f"], [threading.Lock(), holder]) == {"a"}

    class Awkward:
        def __reduce__(self) -> Any:
            raise RuntimeError("not me")

    assert needs(space["f"], [Awkward(), holder]) == {"a"}


def test_large_arguments_are_not_copied() -> None:
    numpy = pytest.importorskip("numpy")
    import tracemalloc

    space = main("def f(x): return x")
    large = [numpy.zeros(5_000_000), bytes(40_000_000), bytearray(40_000_000)]
    reach(space["f"], large)
    memory._answers.clear()
    tracemalloc.start()
    found = reach(space["f"], large)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert names(found.spec.pip) == {"numpy"}
    assert peak < 20_000_000


def test_values_that_refer_to_themselves() -> None:
    space = main("import fpa\nX = [fpa.make()]\nX.append(X)\nX[0].content = X\ndef f(n): return f(n - 1), X")
    assert needs(space["f"], space["X"]) == {"a"}
    text = "def outer():\n def inner(n):\n  import fpa\n  return inner(n - 1)\n return inner\nf = outer()"
    assert needs(main(text)["f"]) == {"a"}


def test_what_is_missing_is_refused_with_its_line() -> None:
    space = main("\n\ndef f():\n    import no_such_thing\n    import nor_this.one\n")
    with pytest.raises(UnresolvedImportError) as caught:
        reach(space["f"])
    assert [(each.module, each.file, each.line) for each in caught.value.imports] == [
        ("no_such_thing", "<nowhere>", 4), ("nor_this.one", "<nowhere>", 5),
    ]  # fmt: skip
    with pytest.raises(UnresolvedImportError):
        analyze(space["f"])
    assert [each.imported.module for each in explain(space["f"]).unresolved] == ["no_such_thing", "nor_this.one"]


@pytest.mark.parametrize("gives_up", ["raise", "raise RuntimeError('no')", "import sys; sys.exit(1)", "exit()"])
def test_a_handler_that_gives_up_handles_nothing(gives_up: str) -> None:
    with pytest.raises(UnresolvedImportError):
        reach(main(f"def f():\n try: import no_such_thing\n except ImportError: {gives_up}")["f"])


def test_installing_what_was_missing_is_noticed(site: Path) -> None:
    f = main("def f():\n import comes_later")["f"]
    with pytest.raises(UnresolvedImportError):
        reach(f)
    install(site, "comes-later", "1.0", ["comes_later.py"])
    assert names(reach(f).spec.pip) == {"comes-later"}


def test_functions_and_scripts_together(tmp_path: Path) -> None:
    (tmp_path / "s.py").write_text("import fpb")
    f = main("import fpa\ndef f(): return fpa")["f"]
    assert names(analyze(f, tmp_path / "s.py", extra_packages=["dist-fpc"]).pip) == {"dist-fpa", "dist-fpb", "dist-fpc"}
    assert names(analyze(f, pkg_mapping={"fpa": "dist-fpd"}).pip) == {"dist-fpd"}


def test_a_computed_import_is_remarked_on() -> None:
    found = reach(main("import importlib\ndef f(name): return importlib.import_module(name)")["f"])
    assert any("computed" in note for note in found.notes)


# -- local code


def load(directory: Path, name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    directory.mkdir(exist_ok=True)
    (directory / f"{name}.py").write_text(text)
    if str(directory) not in sys.path:
        monkeypatch.syspath_prepend(str(directory))
    importlib.invalidate_caches()
    return importlib.import_module(name)


def test_the_module_that_a_function_lives_in_goes_by_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its other imports, which the manager needs and perhaps no worker can have, are of no concern."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "local_nowhere.py").write_text("")
    text = "import fpa, fpb\nimport local_nowhere\nclass C: pass\ndef h(): return fpb\ndef f(): return h(), C\n"
    module = load(tmp_path / "code", "local_own", text, monkeypatch)
    found = reach(module.f)
    assert names(found.spec.pip) == {"dist-fpb"}
    assert found.by_value == {"local_own"}
    assert found.local_modules == ()


PROJECT = Path(__file__).parent / "projects" / "local"


REPLACED = ("yaml", "six", "dateutil")  # which this test run has itself


@pytest.fixture
def helper_project(monkeypatch: pytest.MonkeyPatch, site: Path) -> Iterator[None]:
    for package, file in {
        "PyYAML": "yaml/__init__.py", "pandas": "pandas/__init__.py", "python-dateutil": "dateutil/__init__.py",
        "six": "six.py", "beautifulsoup4": "bs4/__init__.py", "opencv-python": "cv2/__init__.py", "PyJWT": "jwt.py",
    }.items():  # fmt: skip
        install(site, package, "9.0", [file])
    real = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] in REPLACED}
    monkeypatch.syspath_prepend(str(PROJECT))
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] in REPLACED]:
        del sys.modules[name]
    sys.modules.update(real)


def shipped(found: Reach) -> dict[str, str]:
    return {each.name: str(each.path.relative_to(PROJECT)) for each in found.local_modules}


PACKAGE_NEEDS = "python-dateutil six "  # to import package.part


@pytest.mark.usefixtures("helper_project")
@pytest.mark.parametrize(
    ("text", "packages", "ships"),
    [
        ("import helper\ndef f(x): return helper.light(x)", "pyyaml", "helper"),
        ("import helper\ndef f(x): return helper.heavy(x)", "pyyaml pandas", "helper"),
        ("from helper import heavy\ndef f(x): return heavy(x)", "pyyaml pandas", "helper"),
        ("def f(x):\n from helper import light\n return light(x)", "pyyaml", "helper"),
        ("def f(x):\n import helper\n return helper.heavy(x)", "pyyaml pandas", "helper"),
        ("def f(x):\n import helper as h\n return lambda: h.heavy(x)", "pyyaml pandas", "helper"),
        ("def f(x):\n import helper\n return helper.light(x)", "pyyaml", "helper"),
        ("def f(x):\n import package.part as p\n return p.unused(x)", PACKAGE_NEEDS + "opencv-python", "package"),
        ("def f(x):\n import package.part\n return package.part.unused(x)", PACKAGE_NEEDS + "opencv-python", "package"),
        ("def f(x):\n from package import part as p\n return p.unused(x)", PACKAGE_NEEDS + "opencv-python", "package"),
        ("def f(x):\n from package.part import work\n return work(x)", PACKAGE_NEEDS + "beautifulsoup4", "package"),
        ("import helper\ndef f(x): return helper.through(x)",
         PACKAGE_NEEDS + "pyyaml beautifulsoup4", "helper package"),
        ("from package import part\ndef f(x): return part.work(x)", PACKAGE_NEEDS + "beautifulsoup4", "package"),
        ("import package.part\ndef f(x): return package.part.work(x)", PACKAGE_NEEDS + "beautifulsoup4", "package"),
        ("import package\ndef f(x): return package.CONSTANT", "python-dateutil", "package"),
        ("from package.part import unused\ndef f(x): return unused()", PACKAGE_NEEDS + "opencv-python", "package"),
        ("import scattered.piece\ndef f(x): return scattered.piece", "pyjwt", "scattered"),
        ("import helper\nX = [helper.light]\ndef f(x): return X", "pyyaml", "helper"),
    ],
)  # fmt: skip
def test_local_modules_are_shipped_with_what_importing_them_needs(text: str, packages: str, ships: str) -> None:
    found = reach(main(text)["f"], 1)
    assert names(found.spec.pip) == set(packages.split())
    assert set(shipped(found)) == set(ships.split())
    assert all(each.root == PROJECT for each in found.local_modules)
    if "package" in ships:
        assert shipped(found)["package"] == "package"
    if "helper" in ships:
        assert shipped(found)["helper"] == "helper.py"


@pytest.mark.usefixtures("helper_project")
def test_what_local_code_lacks_is_named_where_it_is() -> None:
    with pytest.raises(UnresolvedImportError) as caught:
        reach(main("import helper\ndef f(): return helper.unfindable()")["f"])
    (each,) = caught.value.imports
    assert (each.module, each.file) == ("missing_in_helper", str(PROJECT / "helper.py"))
    # A module that is passed on may be used in any way.
    with pytest.raises(UnresolvedImportError, match="missing_in_helper"):
        reach(main("import helper\ndef f(): return vars(helper)")["f"])


def test_an_editable_install_is_shipped(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "project" / "src" / "local_editable"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("import fpa\n")
    (site / "local_editable.pth").write_text(f"{package.parent}\n")
    origin = {"url": (tmp_path / "project").as_uri(), "dir_info": {"editable": True}}
    install(site, "local-editable", "0.1", direct_url=origin)
    monkeypatch.syspath_prepend(str(package.parent))
    found = reach(main("import local_editable\ndef f(): return local_editable.x")["f"])
    (module,) = found.local_modules
    assert (module.path, module.root, module.distribution) == (package, package.parent, "local-editable 0.1")
    assert names(found.spec.pip) == {"dist-fpa"}


def test_a_package_from_a_folder_is_shipped(site: Path, tmp_path: Path) -> None:
    origin = {"url": tmp_path.as_uri(), "dir_info": {}}
    install(site, "local-folder", "0.1", {"local_folder/__init__.py": "import fpb"}, direct_url=origin)
    found = reach(main("import local_folder\ndef f(): return local_folder.x")["f"])
    (module,) = found.local_modules
    assert (module.path, module.root) == (site / "local_folder", site)
    assert names(found.spec.pip) == {"dist-fpb"}


def test_shadowing_is_never_silent(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "fpa.py").write_text("")
    (tmp_path / "code" / "local_random.py").write_text("")
    install(site, "both", "1.0", ["both.py", "fpa/plugin.py"])
    found = reach(main("import fpa, both\ndef f(): return fpa.x, both")["f"])
    assert any("has the name of a module in" in note for note in found.notes)
    # A local file that was loaded under a standard name: a worker would load the other one.
    module = types.ModuleType("colorsys")
    module.__file__ = str(tmp_path / "code" / "colorsys.py")
    with pytest.raises(UnresolvedImportError, match="hides a module of the standard library"):
        reach(main("def f(): return colorsys.x", colorsys=module)["f"])


def test_local_code_that_is_not_python_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(tmp_path / "code", "local_broken", "x = 1\n", monkeypatch)
    (tmp_path / "code" / "local_broken.py").write_text("def f(:\n")
    with pytest.raises(AnalysisError, match=r"local_broken.py:1"):
        reach(main("import local_broken\ndef f(): return local_broken.x")["f"])


def test_a_module_made_by_hand_goes_by_value(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("local_made")
    exec("import fpa, fpb\ndef f(): return fpa", vars(module))
    monkeypatch.setitem(sys.modules, "local_made", module)
    found = reach(module.f)
    assert found.by_value == {"local_made"}
    assert names(found.spec.pip) == {"dist-fpa"}


# -- how long an answer holds


def test_an_unchanged_function_is_answered_from_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    space = main("import fpa\nX = [fpa.make()]\ndef h(): return X\ndef f(n): return h()")
    first = reach(space["f"], 1)
    monkeypatch.setattr(memory, "walked", None)  # any analysis would fail now
    assert reach(space["f"], 2) is first
    assert reach(space["f"], "other", key=3.5) is first


def test_functions_of_one_definition_share_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    space = main("import fpa, fpb\ndef make(x):\n return lambda: (fpa, x)\n")
    first = reach(space["make"](1))
    assert names(first.spec.pip) == {"dist-fpa"}
    assert names(reach(space["make"](space["fpb"].make())).spec.pip) == {"dist-fpa", "dist-fpb"}
    monkeypatch.setattr(memory, "walked", None)
    assert reach(space["make"](2)) is first


def change_code(space: dict[str, Any]) -> None:
    """What IPython's autoreload does."""
    space["h"].__code__ = main("import fpb\ndef h():\n import fpb")["h"].__code__


@pytest.mark.parametrize(
    "change",
    [
        lambda space: exec("def h():\n import fpb", space),
        lambda space: exec("import fpb as h", space),
        lambda space: exec("h = fpb.make()", space),
        lambda space: exec("X.append(fpb.make())", space),
        lambda space: exec("X = fpb.make()", space),
        lambda space: exec("class K:\n def m(self): return fpb", space),
        lambda space: exec("K.m = lambda self: fpb", space),
        lambda space: exec("later = fpb.make()", space),
        lambda space: exec("NUMBER = fpb.Thing", space),
        lambda space: exec("h.__defaults__ = (fpb.make(),)", space),
        lambda space: exec("h.attribute = fpb.make()", space),
        change_code,
    ],
)
def test_a_changed_global_is_noticed(change: Callable[[dict[str, Any]], None]) -> None:
    text = (
        "import fpa, fpb as unused\nX = []\nNUMBER = 1\ndef h(): return fpa, X, K, NUMBER\n"
        "class K:\n def m(self): pass\ndef f(): return h(), later"
    )
    space = main(text)
    before = reach(space["f"])
    assert names(before.spec.pip) == {"dist-fpa"}
    space["fpb"] = space["unused"]
    assert reach(space["f"]) is before
    change(space)
    assert "dist-fpb" in names(reach(space["f"]).spec.pip)


def test_a_function_that_is_defined_again_is_another(tmp_path: Path) -> None:
    space = main("import fpa, fpb\ndef f(): return fpa")
    assert needs(space["f"]) == {"a"}
    exec("def f(): return fpb", space)
    assert needs(space["f"]) == {"b"}
    exec("f.__code__ = (lambda: fpa).__code__", space)
    assert needs(space["f"]) == {"a"}


def test_reload_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "import fpa\ndef h(): return fpa\ndef f(): return h()"
    module = load(tmp_path / "code", "local_reloaded", text, monkeypatch)
    old = module.f
    assert needs(module.f) == {"a"}
    source = tmp_path / "code" / "local_reloaded.py"
    source.write_text("import fpb\ndef h(): return fpb\ndef f(): return [h()]")
    os.utime(source, (1, 1))
    importlib.reload(module)
    assert needs(module.f) == {"b"}
    assert needs(old) == {"b"}  # the old function sees the new helper


def test_an_edited_local_module_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(tmp_path / "code", "local_helper", "import fpa\ndef g(): return fpa", monkeypatch)
    f = main("import local_helper\ndef f(): return local_helper.g()")["f"]
    before = reach(f)
    assert reach(f) is before
    source = tmp_path / "code" / "local_helper.py"
    source.write_text("import fpb\ndef g(): return fpb  # edited, and not loaded again\n")
    assert needs(f) == {"b"}
    os.unlink(source)
    with pytest.raises((UnresolvedImportError, AnalysisError)):
        reach(f)


def test_another_search_path_is_another_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    f = main("def f():\n import local_twice\n return local_twice")["f"]
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "local_twice.py").write_text("x = 1\n")
        monkeypatch.syspath_prepend(str(tmp_path / name))
        assert [each.root.name for each in reach(f).local_modules] == [name]


def test_a_changed_closure_is_noticed() -> None:
    text = "import fpa\ndef make():\n x = None\n def put(v):\n  nonlocal x\n  x = v\n def f(): return x\n return f, put"
    space = main(text)
    f, put = space["make"]()
    assert needs(f) == set()
    put(space["fpa"].make())
    assert needs(f) == {"a"}
    put(lambda: space)
    put(main("def g():\n import fpb")["g"])
    assert needs(f) == {"b"}


def test_memory_keeps_neither_functions_nor_their_data_alive() -> None:
    class Data(list[int]):
        pass

    space = main("import fpa\ndef make(x):\n def f(): return x, fpa\n return f")
    data = Data()
    f = space["make"](data)
    watched = [weakref.ref(data), weakref.ref(f)]
    reach(f)
    reach(f, data)
    del f, data
    gc.collect()
    assert [ref() for ref in watched] == [None, None]


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_MOST", 5)
    for number in range(12):
        reach(main(f"def f(): return {number}")["f"])
    assert len(memory._answers) <= 5


def test_from_several_threads() -> None:
    space = main("import fpa, fpb\ndef h(): return fpa\ndef f(x): return h()")
    results: list[set[str]] = []

    def work() -> None:
        for number in range(50):
            exec("def h(): return fpb" if number % 2 else "def h(): return fpa", space)
            results.append(needs(space["f"], number))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 200
    assert all(each in ({"a"}, {"b"}) for each in results)
