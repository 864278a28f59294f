"""Scripts and modules by their text alone: the tools' analysis, and `explain`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from poncho_wq.analysis.metadata import module_file
from poncho_wq.analysis.model import Reach, Verdict
from poncho_wq.analysis.modules import Trace
from poncho_wq.analysis.objects import Walk, unknown_import
from poncho_wq.analysis.resolve import Resolver, gather
from poncho_wq.analysis.sources import Source, read_source
from poncho_wq.distributions import Installed
from poncho_wq.errors import AnalysisError


def reach_of_scripts(
    sources: Sequence[Source], resolver: Resolver, *, toplevel: bool = False, functions: Sequence[str] = ()
) -> Reach:
    """What scripts need: all that they import, or only at the top level, or only what `functions` reach.

    A function has to be in at least one of the scripts; `AnalysisError` names the one that is in none.
    """
    verdicts: list[Verdict] = []
    notes: list[str] = []
    missing = dict.fromkeys(functions)
    for source in sources:
        trace = Trace(source)
        if functions:
            for name in functions:
                if trace.function(name):
                    missing.pop(name, None)
        elif toplevel:
            trace.top_level()
        else:
            trace.everything()
        verdicts.extend(resolver.verdict(each, beside=source.directory) for each in trace.imports())
        notes.extend(unknown_import(str(source.place(line))) for line in sorted(trace.unknown))
    if missing:
        where = ", ".join(source.name for source in sources)
        raise AnalysisError(
            f"{where}: no function is called {next(iter(missing))}",
            advice="name a method with its class (Class.method), an inner function with the outer one (outer.inner)",
        )
    return gather(verdicts, resolver, notes=notes)


def explain_static(what: str, resolver: Resolver, *, functions: Sequence[str] = ()) -> Reach:
    """The imports of a file, or of the function of `MODULE:FUNCTION`; nothing is imported to find the module."""
    name, colon, function = what.rpartition(":")
    if not colon or os.path.exists(what):
        name, function = what, ""
    wanted = [*functions, function] if function else list(functions)
    if os.path.isfile(name) or name.endswith((".py", ".ipynb")):
        return reach_of_scripts([read_source(name)], resolver, functions=wanted)
    file = _file_of_module(name, resolver)
    root = file.parents[name.count(".") + (1 if file.stem == "__init__" else 0)]
    source = read_source(file)
    package = name if file.stem == "__init__" else name.rpartition(".")[0]
    trace = Trace(source, package=package or None, as_script=False)
    if not wanted:
        trace.everything()
    for each in wanted:
        if not trace.function(each):
            raise AnalysisError(f"{file}: no function is called {each}")
    here = Installed([str(root), *(str(entry.directory) for entry in resolver.installed.entries)])
    return Walk(replace(resolver, installed=here, ships=True)).follow(name, trace)


def _file_of_module(name: str, resolver: Resolver) -> Path:
    if all(part.isidentifier() for part in name.split(".")):
        for directory in (Path.cwd(), *(entry.directory for entry in resolver.installed.entries)):
            file = module_file(directory, name)
            if file is not None and file.suffix == ".py":
                return file
    raise AnalysisError(
        f"{name}: neither a file nor a module with source on the path",
        advice="name a script, a notebook, or MODULE:FUNCTION of a module that can be imported from here",
    )
