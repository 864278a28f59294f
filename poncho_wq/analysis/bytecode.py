"""What a code object looks up and imports, read from its instructions: what is there for any function, source or not.

Instructions differ between versions of Python; the few facts that are used here hold from 3.10 on: names are looked up
by `LOAD_GLOBAL`, `LOAD_NAME`, `LOAD_DEREF`, `LOAD_FAST` and their variants, attributes by `LOAD_ATTR` and `LOAD_METHOD`
right behind them; `IMPORT_NAME` follows two constants, level and names, and what it gives is stored right away.
"""

from __future__ import annotations

import dis
import itertools
import re
import sys
import types
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from poncho_wq.analysis.guards import catches_import_error
from poncho_wq.analysis.modules import WHOLE
from poncho_wq.analysis.scopes import ImportedAs, Use

_GLOBAL = frozenset(("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"))
_FREE = frozenset(("LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_FROM_DICT_OR_DEREF"))
_FAST = frozenset(("LOAD_FAST", "LOAD_FAST_CHECK", "LOAD_FAST_BORROW"))
_ATTRIBUTE = frozenset(("LOAD_ATTR", "LOAD_METHOD"))
_CONSTANT = frozenset(("LOAD_CONST", "LOAD_SMALL_INT", "LOAD_CONST_IMMORTAL", "LOAD_CONST_MORTAL"))
_STORE = frozenset(("STORE_FAST", "STORE_NAME", "STORE_DEREF", "STORE_GLOBAL"))
# Between the function that is called and its first argument, by version; between an import and where it is stored.
_NOTHING = frozenset(("PUSH_NULL", "CACHE", "NOP", "EXTENDED_ARG", "PRECALL", "RESUME"))
_SHUFFLE = frozenset(("ROT_TWO", "SWAP", "POP_TOP"))
_JUMP_IF_FALSE = frozenset(("POP_JUMP_IF_FALSE", "POP_JUMP_FORWARD_IF_FALSE"))
_BEFORE_MATCH = _GLOBAL | _FREE | _ATTRIBUTE | {"DUP_TOP", "BUILD_TUPLE", "LOAD_FAST"}
_NO_MATCH = frozenset(("JUMP_IF_NOT_EXC_MATCH", "CHECK_EXC_MATCH"))
# Two in one: LOAD_FAST_LOAD_FAST, STORE_FAST_LOAD_FAST …
_LINE = "line_number" if sys.version_info >= (3, 13) else "starts_line"
_PAIR = re.compile(r"(?:LOAD|STORE)_FAST(?:_BORROW)?")


class _Op(NamedTuple):
    name: str
    argument: Any
    offset: int
    line: int


class CodeImport(NamedTuple):
    """An import in byte code, with what the code around it says: `optional`, and why it `never` runs.

    `attributes` is what is looked up on it afterwards.
    """

    imported: ImportedAs
    optional: bool
    never: str | None
    attributes: set[str]


@dataclass
class CodeUses:
    """What a code object and those within it need from outside."""

    names: list[Use] = field(default_factory=list)  # of the globals
    free: list[Use] = field(default_factory=list)  # of enclosing functions
    imports: list[CodeImport] = field(default_factory=list)
    unknown: list[int] = field(default_factory=list)  # lines that import a module whose name is computed


_Bound = dict[str, list[CodeImport]]


def scan_code(code: types.CodeType) -> CodeUses:
    """Everything that `code` and the functions, classes and comprehensions in it look up and import."""
    uses = CodeUses()
    pending: list[tuple[types.CodeType, frozenset[str], _Bound]] = [(code, frozenset(code.co_freevars), {})]
    while pending:
        current, free, outer = pending.pop()
        bound = _scan_one(current, free, outer, uses)
        for inner in current.co_consts:
            if isinstance(inner, types.CodeType):
                # A free variable of an inner function is one of ours only if nobody in between binds it.
                pending.append((inner, free & frozenset(inner.co_freevars), bound))
    return uses


def _scan_one(code: types.CodeType, free: frozenset[str], outer: _Bound, uses: CodeUses) -> _Bound:
    """Add what one code object uses; returns the imports that its variables, and those around it, are bound to."""
    ops = list(_ops(code))
    cells = {*code.co_cellvars, *code.co_freevars}
    named_here: set[str] = set()  # by a class's body, so far
    guarded: list[list[tuple[int, int]]] = []  # optional and never; worked out for the first import
    bound: _Bound = {name: list(imports) for name, imports in outer.items() if name in code.co_freevars}

    def add(alias: ImportedAs, op: _Op) -> None:
        if not guarded:
            guarded.extend((list(_handled(code, ops)), list(_type_checking(ops))))
        optional, never = (any(start <= op.offset < end for start, end in ranges) for ranges in guarded)
        found = CodeImport(alias, optional, "only for type checkers" if never else None, set())
        uses.imports.append(found)
        if alias.binds is not None:
            bound.setdefault(alias.binds, []).append(found)

    for position, op in enumerate(ops):
        if op.name == "IMPORT_NAME":
            for alias in _aliases(ops, position):
                add(alias, op)
        elif _looks_up(op) in ("import_module", "__import__"):
            called = _import_call(op, ops[position + 1 : position + 3])
            if called is None:
                uses.unknown.append(op.line)
            else:
                add(called, op)
    for position, op in enumerate(ops):
        if op.name == "STORE_NAME":
            named_here.add(op.argument)
        if op.name in _FAST and op.argument in cells:
            continue  # from 3.13 on: a variable handed to an inner function, not looked at
        if op.name in _GLOBAL or op.name in _FREE or op.name in _FAST:
            use = _chain(ops, position)
            for found in bound.get(op.argument, ()):
                found.attributes.add(_below(found.imported, use))
            if op.argument in bound and op.name != "LOAD_GLOBAL":
                continue
            if (op.name in _FREE and op.argument in free) or (op.name in _GLOBAL and op.argument not in named_here):
                (uses.free if op.name in _FREE else uses.names).append(use)
    return bound


def _ops(code: types.CodeType) -> Iterator[_Op]:
    """The instructions that matter, two in one taken apart."""
    line = code.co_firstlineno
    for each in dis.get_instructions(code):
        line = (getattr(each, _LINE)) or line
        if each.opname in _NOTHING:
            continue
        if isinstance(each.argval, tuple) and (parts := _PAIR.findall(each.opname)):
            for name, argument in zip(parts, each.argval, strict=False):
                yield _Op(name, argument, each.offset, line)
        else:
            yield _Op(each.opname, each.argval, each.offset, line)


def _looks_up(op: _Op) -> str | None:
    """The name that an instruction puts on the stack, global, local or attribute."""
    if not op.name.startswith("LOAD_") or op.name in _CONSTANT or not isinstance(op.argument, str):
        return None
    return op.argument


def _chain(ops: list[_Op], position: int) -> Use:
    """The name at `position` with the attributes looked up on it."""
    behind = itertools.takewhile(lambda op: op.name in _ATTRIBUTE, itertools.islice(ops, position + 1, None))
    return Use(str(ops[position].argument), tuple(str(op.argument) for op in behind), ops[position].line)


def _below(alias: ImportedAs, use: Use) -> str:
    """What `use` looks up on what `alias` imports; `import a.b` binds `a`, of which `a.b.x` is `x` of it."""
    attributes = use.attributes
    if not alias.whole:
        for part in alias.module.split(".")[1:]:
            if not attributes or attributes[0] != part:
                return WHOLE
            attributes = attributes[1:]
    return ".".join(attributes) or WHOLE


# -- imports


def _aliases(ops: list[_Op], position: int) -> Iterator[ImportedAs]:
    """What the import at `position` imports, and the names that it is stored under."""
    op, names, level = ops[position], ops[position - 1].argument, ops[position - 2].argument
    module = str(op.argument or "")
    level = level if isinstance(level, int) else 0
    if isinstance(names, tuple):
        stored = _stored_from(ops, position)
        for name in names:
            yield ImportedAs(module, name, level, stored.get(name), True, op.line)
        return
    position += 1
    renamed = False
    while position < len(ops) and (ops[position].name == "IMPORT_FROM" or ops[position].name in _SHUFFLE):
        renamed = True  # `import a.b as c` fetches b from a
        position += 1
    binds = ops[position].argument if position < len(ops) and ops[position].name in _STORE else None
    yield ImportedAs(module, None, level, binds, renamed or "." not in module, op.line)


def _stored_from(ops: list[_Op], position: int) -> dict[str, str]:
    """The names that `from module import …` stores what it takes under."""
    stored: dict[str, str] = {}
    position += 1
    while position + 1 < len(ops) and ops[position].name == "IMPORT_FROM":
        if ops[position + 1].name in _STORE:
            stored[ops[position].argument] = ops[position + 1].argument
        position += 2
    return stored


def _import_call(op: _Op, arguments: list[_Op]) -> ImportedAs | None:
    """`importlib.import_module("name")` or `__import__("name")`; None when the name is computed."""
    words: list[str] = []
    for each in arguments:
        if each.name not in _CONSTANT or not isinstance(each.argument, str):
            break
        words.append(each.argument)
    if not words:
        return None
    level = len(words[0]) - len(words[0].lstrip("."))
    package = words[1] if level and len(words) > 1 else None
    return ImportedAs(words[0][level:], None, level, None, True, op.line, f"{op.argument}()", package)


# -- what is around an import


def _handled(code: types.CodeType, ops: list[_Op]) -> Iterator[tuple[int, int]]:
    """The ranges of offsets whose failing imports are handled: `try` blocks, and the handlers themselves."""
    at = {op.offset: position for position, op in enumerate(ops)}
    for start, end, target in _try_blocks(code, ops):
        if target not in at:
            continue
        caught, raises, last = _handler(ops, at[target], at)
        if caught and not raises:
            yield start, end
            yield target, last


def _try_blocks(code: types.CodeType, ops: Iterable[_Op]) -> Iterator[tuple[int, int, int]]:
    """(start, end, handler) of each protected range."""
    if sys.version_info >= (3, 11):
        for entry in dis.Bytecode(code).exception_entries:  # type: ignore[attr-defined]
            yield entry.start, entry.end, entry.target
        return
    for op in ops:
        if op.name == "SETUP_FINALLY":
            yield op.offset, int(op.argument), int(op.argument)


def _handler(ops: list[_Op], position: int, at: dict[int, int]) -> tuple[bool, bool, int]:
    """Whether the handlers at `position` catch ImportError, whether that one ends by raising, and where it ends."""
    while position + 1 < len(ops):
        if ops[position].name == "PUSH_EXC_INFO":
            position += 1
        if ops[position].name == "POP_TOP":  # nothing is compared: `except:`
            return True, *_end_of_handler(ops, position)
        names: set[str] = set()
        while position < len(ops) and ops[position].name in _BEFORE_MATCH:
            names.add(str(ops[position].argument))
            position += 1
        if position + 1 >= len(ops) or ops[position].name not in _NO_MATCH:
            break
        if catches_import_error(names):
            return True, *_end_of_handler(ops, position)
        jump = ops[position if ops[position].name.startswith("JUMP") else position + 1]
        position = at.get(jump.argument, len(ops))  # the next handler
    return False, False, 0


def _end_of_handler(ops: list[_Op], position: int) -> tuple[bool, int]:
    """How control leaves a handler, by an exception of its own or by going on (`POP_EXCEPT`), and where."""
    for op in ops[position:]:
        if op.name == "POP_EXCEPT":
            return False, op.offset
        if op.name == "RAISE_VARARGS" or _looks_up(op) in ("exit", "quit", "_exit", "abort"):
            return True, op.offset
    return False, ops[-1].offset + 2


def _type_checking(ops: list[_Op]) -> Iterator[tuple[int, int]]:
    """The ranges that only type checkers read: from a jump on `TYPE_CHECKING` to where it goes."""
    for position, op in enumerate(ops[:-1]):
        if _looks_up(op) == "TYPE_CHECKING":
            behind = next((each for each in ops[position + 1 : position + 3] if each.name != "TO_BOOL"), None)
            if behind is not None and behind.name in _JUMP_IF_FALSE:
                yield behind.offset, int(behind.argument)
