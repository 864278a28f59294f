"""A function needs the same whether it is read from its source or from the object in memory."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from poncho_wq.analysis.objects import Walk
from poncho_wq.analysis.resolve import Resolver
from poncho_wq.analysis.sources import source_from_bytes
from poncho_wq.analysis.static import reach_of_scripts
from poncho_wq.analysis.values import roots_of
from poncho_wq.distributions import Installed
from tests.fakes_analyze import install

PACKAGES = ("zpa", "zpb", "zpc", "zpd", "zpe")
BODY = """
class Thing:
    pass
Thing.value = Thing()
def make(*args):
    return Thing()
CONSTANT = Thing()
"""
_counter = itertools.count()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Five packages with a submodule each, and two distributions that share a namespace."""
    site = tmp_path_factory.mktemp("site") / "site-packages"
    for name in PACKAGES:
        files = {f"{name}/__init__.py": BODY, f"{name}/sub.py": BODY, f"{name}/other.py": BODY}
        install(site, f"dist-{name}", "1.0", files)
    for part in ("one", "two"):
        install(site, f"zns-{part}", "2.0", {f"zns/{part}/__init__.py": BODY})
    sys.path.insert(0, str(site))
    yield site
    sys.path.remove(str(site))
    for name in [name for name in sys.modules if name.partition(".")[0] in (*PACKAGES, "zns")]:
        del sys.modules[name]


package = st.sampled_from(PACKAGES)
LOCALS = ("u", "v", "w")
GLOBALS = ("ga", "gb", "gc", "gd")


@st.composite
def import_line(draw: st.DrawFn, bound: str) -> tuple[str, list[str]]:
    """A line that binds `bound` (or a package's own name), and expressions that use what it binds."""
    name = draw(package)
    return draw(
        st.sampled_from(
            [
                (f"import {name} as {bound}", [f"{bound}.make()", f"{bound}.Thing", f"[{bound}]"]),
                (f"import {name}.sub as {bound}", [f"{bound}.make()", f"{bound}.CONSTANT.value"]),
                (f"from {name} import make as {bound}", [f"{bound}()", f"{bound}(1)"]),
                (f"from {name} import Thing as {bound}", [f"{bound}()", f"isinstance(1, {bound})"]),
                (f"from {name} import sub as {bound}", [f"{bound}.make()"]),
                (f"import {name}.sub", [f"{name}.sub.make()", f"{name}.make()"]),
                (f"import zns.one, zns.two\n{bound} = 0", ["zns.one.make()"]),
                (f"from zns.two import make as {bound}", [f"{bound}()"]),
            ]
        )
    )


@st.composite
def programs(draw: st.DrawFn) -> str:
    """A module of imports, constants, helpers and a function `f` that uses some of them."""
    lines: list[str] = []
    usable: list[str] = ["0", "len"]
    for name in GLOBALS[: draw(st.integers(1, 4))]:
        line, uses = draw(import_line(name))
        lines.extend(line.split("\n"))
        usable.extend(uses)
    for name in ("CA", "CB")[: draw(st.integers(0, 2))]:
        maker = draw(package)
        lines += [f"import {maker} as maker_{name}", f"{name} = maker_{name}.make()"]
        usable.append(name)
        usable.append(f"{name}.value")
    for name in ("ha", "hb", "hc")[: draw(st.integers(0, 3))]:
        lines += draw(function(name, usable))
        usable.append(f"{name}()")
        usable.append(name)
    if draw(st.booleans()):
        lines += ["class K:", *(f"    {line}" for line in draw(function("method", usable, first="self")))]
        usable += ["K", "K()"]
    lines += draw(function("f", usable))
    return "\n".join(lines) + "\n"


@st.composite
def function(draw: st.DrawFn, name: str, usable: list[str], first: str = "") -> list[str]:
    """The lines of a function that uses some expressions, imports some things itself, and nests another function."""
    one = st.sampled_from(usable)
    # A default is a value by now in memory, an expression in source: only those that keep their class can agree.
    kept = [each for each in usable if not each.startswith(("isinstance", "ha()", "hb()", "hc()"))]
    default = f"d={draw(st.sampled_from(kept))}" if draw(st.booleans()) and name != "f" else ""
    head = ", ".join(filter(None, (first, default)))
    start = draw(st.sampled_from(["def", "async def"])) if name != "f" else "def"
    body: list[str] = []
    for _ in range(draw(st.integers(1, 4))):
        expression = draw(one)
        inner = draw(package)
        body += draw(
            st.sampled_from(
                [
                    [f"{draw(st.sampled_from(LOCALS))} = {expression}"],
                    [f"u = [{expression} for u in (1, 2)]"],
                    ["def inner():", f"    return {expression}", "v = inner"],
                    [f"v = lambda: {expression}"],
                    [f"if v_known(): v = {expression}"],
                    ["try:", f"    import {inner}.sub as w", "except ImportError:", "    w = None"],
                    [f"from {inner}.other import make"],
                    [f"import {inner}", f"def inner(): return {inner}.make()"],
                    ["import importlib", f"importlib.import_module('{inner}.sub')"],
                    [f"w = __import__('{inner}')"],
                    ["from typing import TYPE_CHECKING", "if TYPE_CHECKING:", f"    import {inner}"],
                    ["class Inner:", f"    attribute = {expression}"],
                ]
            )
        )
    return [f"{start} {name}({head}):", *(f"    {line}" for line in body), "    return None"]


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(programs())
def test_by_source_and_by_object_agree(site: Path, program: str) -> None:
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(program, f"<program {next(_counter)}>", "exec"), space)
    resolver = Resolver(Installed([str(site)], prefix=site), ships=True)
    source = source_from_bytes(program.encode(), name="program.py", directory=None)
    by_source = reach_of_scripts([source], resolver, functions=["f"])
    by_object = Walk(resolver).reach([space["f"]], roots_of((space["f"],)))
    assert by_object.unresolved == by_source.unresolved == ()
    assert by_object.spec.pip == by_source.spec.pip
