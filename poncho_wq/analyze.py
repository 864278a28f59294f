"""What code needs: scripts, notebooks and functions in, an environment specification out.

    analyze(*functions_or_paths)    the specification, for anything
    reach(function, *args)          what a function task needs: the specification, and local code to ship with it
    explain(what)                   every import, what provides it, and why it is in or out

Nothing of the user's is imported or run to find out, and nothing is installed. The package's own name `analyze` is the
function; this module is reached as `from poncho_wq.analyze import …`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from poncho_wq.analysis.model import Reach
    from poncho_wq.analysis.sources import Source
    from poncho_wq.spec import EnvSpec

__all__ = ["analyze", "analyze_scripts", "explain", "reach"]


def analyze(
    *what: Callable[..., Any] | str | os.PathLike[str],
    toplevel: bool = False,
    functions: Sequence[str] = (),
    pkg_mapping: Mapping[str, str] | None = None,
    extra_packages: Iterable[str] = (),
    path: Sequence[str] | None = None,
    prefix: str | os.PathLike[str] | None = None,
) -> EnvSpec:
    """The environment that functions (or other callables) and scripts or notebooks (by path) need together.

    For paths: `toplevel` leaves out the imports within functions, `functions` names those that alone count (`f`,
    `Class.method`, `outer.inner`). `pkg_mapping` says which package provides an import name, `extra_packages` adds
    packages that no import shows. `path` is searched for packages instead of `sys.path`, `prefix` for `conda-meta`
    instead of `sys.prefix`.

    Local code that a function reaches is no part of its environment (see `reach`); a script's is refused. Raises
    `AnalysisError` for what cannot be read, `UnresolvedImportError` with all imports that nothing provides.
    """
    from poncho_wq.analysis.resolve import Choices, gather, refuse_unresolved

    resolver = _resolver(Choices(mapping=pkg_mapping or {}, extra=tuple(extra_packages)), path, prefix)
    verdicts: list[Any] = []
    files = [os.fspath(each) for each in what if isinstance(each, (str, os.PathLike))]
    if files:
        from poncho_wq.analysis.sources import read_source

        sources = [read_source(each) for each in files]
        verdicts.extend(_scripts(sources, resolver, toplevel=toplevel, functions=functions).verdicts)
    for each in what:
        if not isinstance(each, (str, os.PathLike)):
            verdicts.extend(_walk(each, resolver).verdicts)
    return refuse_unresolved(gather(verdicts, resolver)).spec


def analyze_scripts(
    sources: Sequence[Source],
    *,
    toplevel: bool = False,
    functions: Sequence[str] = (),
    pkg_mapping: Mapping[str, str] | None = None,
    extra_packages: Iterable[str] = (),
    path: Sequence[str] | None = None,
    prefix: str | os.PathLike[str] | None = None,
) -> Reach:
    """The same for source that was read already, with what there is to say about it; unresolved imports are listed in
    the result, not raised."""
    from poncho_wq.analysis.resolve import Choices

    resolver = _resolver(Choices(mapping=pkg_mapping or {}, extra=tuple(extra_packages)), path, prefix)
    return _scripts(sources, resolver, toplevel=toplevel, functions=functions)


def reach(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Reach:
    """What the call `function(*args, **kwargs)` needs on a worker: packages (`.spec`) and local code to ship.

    Any callable will do. Asked again about an unchanged function it answers from memory. Raises
    `UnresolvedImportError` with all imports that nothing provides, `AnalysisError` for local code that is not Python.
    """
    from poncho_wq.analysis.memory import remembered_reach

    return remembered_reach(function, args, kwargs)


def explain(what: Callable[..., Any] | str | os.PathLike[str], *, functions: Sequence[str] = ()) -> Reach:
    """Every import of a script, of the function in `MODULE:FUNCTION` or `FILE:FUNCTION`, or of a callable.

    Nothing is imported, and nothing refused: what cannot be resolved is in the result. Raises `AnalysisError` where
    there is no such file, module or function.
    """
    if not isinstance(what, (str, os.PathLike)):
        return _walk(what, _resolver(None, None, None, ships=True))
    from poncho_wq.analysis.static import explain_static

    return explain_static(os.fspath(what), _resolver(None, None, None), functions=functions)


def _resolver(
    choices: Any, path: Sequence[str] | None, prefix: str | os.PathLike[str] | None, *, ships: bool = False
) -> Any:
    from poncho_wq.analysis.resolve import Choices, Resolver
    from poncho_wq.distributions import Installed

    installed = Installed.here() if path is None and prefix is None else Installed(path, prefix=prefix)
    return Resolver(installed, choices or Choices(), ships=ships)


def _scripts(sources: Sequence[Source], resolver: Any, *, toplevel: bool, functions: Sequence[str]) -> Reach:
    from poncho_wq.analysis.static import reach_of_scripts

    return reach_of_scripts(sources, resolver, toplevel=toplevel, functions=functions)


def _walk(function: Any, resolver: Any) -> Reach:
    from dataclasses import replace

    from poncho_wq.analysis.memory import own_code
    from poncho_wq.analysis.objects import walked
    from poncho_wq.analysis.values import roots_of

    return walked(own_code(function), roots_of((function,)), replace(resolver, ships=True))[0]
