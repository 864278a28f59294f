"""Code that does not run here, or may fail to import without harm: what the code around an import says about it."""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

_CATCH_IMPORT_ERROR = frozenset(("ImportError", "ModuleNotFoundError", "Exception", "BaseException"))
_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Lt: lambda a, b: a < b,
    ast.LtE: lambda a, b: a <= b,
    ast.Gt: lambda a, b: a > b,
    ast.GtE: lambda a, b: a >= b,
    ast.Eq: lambda a, b: a == b,
    ast.NotEq: lambda a, b: a != b,
}


@dataclass(frozen=True)
class Guard:
    """`optional`: a failing import is handled. `never`: why the code does not run. `main`: only as a script."""

    optional: bool = False
    never: str | None = None
    main: bool = False

    def within_function(self) -> Guard:
        """The guard of a function's body: the `try` around a `def` is long over when the function runs."""
        return replace(self, optional=False) if self.optional else self


NO_GUARD = Guard()


def dotted(node: ast.expr) -> str | None:
    """`a.b.c` of a chain of attributes of a name, else None."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return None
    return ".".join([node.id, *reversed(parts)])


def of_if(test: ast.expr, guard: Guard) -> tuple[Guard, Guard]:
    """The guards of the two branches of `if test`."""
    if _is_main(test):
        return replace(guard, main=True), guard
    truth, why = _truth(test)
    if truth is None:
        return guard, guard
    never = replace(guard, never=guard.never or why)
    return (guard, never) if truth else (never, guard)


def of_try(node: ast.Try, guard: Guard) -> tuple[Guard, Guard]:
    """The guards of (body, handlers and else) and of `finally`.

    A handler that ends by raising or exiting says that the import is needed after all, in words of its own.
    """
    for handler in node.handlers:
        if _catches_import_error(handler.type):
            if _gives_up(handler.body):
                break
            return replace(guard, optional=True), guard
    return guard, guard


def of_with(items: list[ast.withitem], guard: Guard) -> Guard:
    """The guard of the body of `with`: `contextlib.suppress(ImportError)` handles a failing import."""
    for item in items:
        call = item.context_expr
        if (
            isinstance(call, ast.Call)
            and (dotted(call.func) or "").rpartition(".")[2] == "suppress"
            and any(_catches_import_error(argument) for argument in call.args)
        ):
            return replace(guard, optional=True)
    return guard


def catches_import_error(names: set[str]) -> bool:
    """Whether `except` with these exception names handles a failing import."""
    return bool(names & _CATCH_IMPORT_ERROR)


def _catches_import_error(caught: ast.expr | None) -> bool:
    if caught is None:
        return True
    each = caught.elts if isinstance(caught, ast.Tuple) else [caught]
    return catches_import_error({(dotted(one) or "").rpartition(".")[2] for one in each})


def _gives_up(body: list[ast.stmt]) -> bool:
    last = body[-1]
    if isinstance(last, ast.Raise):
        return True
    return (
        isinstance(last, ast.Expr)
        and isinstance(last.value, ast.Call)
        and dotted(last.value.func) in ("sys.exit", "exit", "quit", "os._exit", "os.abort")
    )


def _is_main(test: ast.expr) -> bool:
    return (
        isinstance(test, ast.Compare)
        and len(test.ops) == 1
        and isinstance(test.ops[0], ast.Eq)
        and {_word(test.left), _word(test.comparators[0])} == {"__name__", "'__main__'"}
    )


def _word(node: ast.expr) -> str | None:
    return repr(node.value) if isinstance(node, ast.Constant) else dotted(node)


def _truth(test: ast.expr) -> tuple[bool | None, str]:
    """Whether `test` holds here, as far as the platform and version decide it, and why it does not."""
    if isinstance(test, ast.Constant):
        return bool(test.value), "never runs: the condition is constant"
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        truth, why = _truth(test.operand)
        return (None if truth is None else not truth), why
    if isinstance(test, ast.BoolOp):
        return _of_several(test)
    if (dotted(test) or "").rpartition(".")[2] == "TYPE_CHECKING":
        return False, "only for type checkers"
    if isinstance(test, ast.Compare) and len(test.ops) == 1:
        return _comparison(test.left, test.ops[0], test.comparators[0])
    if isinstance(test, ast.Call) and isinstance(test.func, ast.Attribute) and test.func.attr == "startswith":
        subject = dotted(test.func.value)
        if subject == "sys.platform" and len(test.args) == 1 and isinstance(test.args[0], ast.Constant):
            return sys.platform.startswith(str(test.args[0].value)), "for another platform"
    return None, ""


def _of_several(test: ast.BoolOp) -> tuple[bool | None, str]:
    decisive = isinstance(test.op, ast.Or)  # the value that settles it
    answers = [_truth(value) for value in test.values]
    for truth, why in answers:
        if truth is decisive:
            return truth, why
    if all(truth is not None for truth, _ in answers):
        return not decisive, answers[0][1]
    return None, ""


def _comparison(left: ast.expr, operator: ast.cmpop, right: ast.expr) -> tuple[bool | None, str]:
    compare = _COMPARE.get(type(operator))
    here, why = _known(left)
    if compare is None or here is None:
        return None, ""
    try:
        return bool(compare(here, ast.literal_eval(right))), why
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None, ""


def _known(node: ast.expr) -> tuple[object, str]:
    """The value here of what scripts ask about their platform and version, and why code for another does not run."""
    if isinstance(node, ast.Subscript):
        whole, why = _known(node.value)
        if isinstance(whole, tuple) and isinstance(node.slice, ast.Constant) and isinstance(node.slice.value, int):
            part = whole[node.slice.value : node.slice.value + 1]
            return (part[0], why) if part else (None, "")
        if isinstance(whole, tuple) and isinstance(node.slice, ast.Slice) and node.slice.lower is None:
            upper = node.slice.upper
            if isinstance(upper, ast.Constant) and isinstance(upper.value, int) and node.slice.step is None:
                return whole[: upper.value], why
        return None, ""
    subject = dotted(node)
    if subject == "sys.platform":
        return sys.platform, "for another platform"
    if subject == "os.name":
        return os.name, "for another platform"
    if subject == "sys.version_info":
        return tuple(sys.version_info), "for another version of Python"
    if subject == "sys.version_info.major":
        return sys.version_info.major, "for another version of Python"
    if subject == "sys.version_info.minor":
        return sys.version_info.minor, "for another version of Python"
    return None, ""
