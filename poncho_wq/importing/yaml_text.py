"""YAML as plain strings, lists and dictionaries, for reading what others wrote.

Not PyYAML's usual loader: that one turns ``python: 3.10`` into the number 3.1, ``on`` into true, keeps the last of two
equal keys without a word, and lets ten lines of aliases stand for a billion items.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from poncho_wq.errors import SpecError

if TYPE_CHECKING:
    import yaml

MAX_YAML = 1024 * 1024  # bytes; `conda env export` of a large environment has 40 kB, and PyYAML reads 200 kB a second
_DEEPEST = 40


class Repeating(dict[str, Any]):
    """A mapping that remembers the keys that were given more than once, as ``document.object_at`` expects."""

    repeated: tuple[str, ...] = ()


def load_yaml(text: str, *, source: str) -> Any:
    """The document ``text``: every scalar a string, except that an empty one, ``~`` and ``null`` are None.

    Raises ``SpecError`` with the line for what is not YAML, for aliases (``*name``), tags (``!name``), several
    documents, and keys that are no strings.
    """
    import yaml

    try:
        _refuse_aliases(text, source)
        node = yaml.compose(text, Loader=yaml.BaseLoader)
        return None if node is None else _value(node, source, 0)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{source}:{mark.line + 1}" if mark else source
        advice = "indent with blanks, not tabs" if "'\\t'" in str(error) else None
        raise SpecError(f"not YAML: {error.problem or error}", source=where, advice=advice) from None
    except yaml.YAMLError as error:  # a character that YAML does not allow
        raise SpecError(f"not YAML: {str(error).splitlines()[0]}", source=source) from None
    except RecursionError:
        raise SpecError("nested too deeply", source=source) from None
    except (OverflowError, ValueError):  # of `chr`, which PyYAML hands whatever "\\UXXXXXXXX" says
        raise SpecError("not YAML: a character above U+10FFFF", source=source) from None


def _refuse_aliases(text: str, source: str) -> None:
    # Composing shares one node among all aliases of it, but whatever walks the result meets it once for each.
    import yaml

    for event in yaml.parse(text, Loader=yaml.BaseLoader) if "*" in text else ():
        if isinstance(event, yaml.AliasEvent) and event.start_mark:
            where = f"{source}:{event.start_mark.line + 1}"
            raise SpecError(f"the alias *{event.anchor} is not read", source=where, advice="write what it stands for")


def _value(node: yaml.Node, source: str, depth: int) -> Any:
    import yaml

    here = f"{source}:{node.start_mark.line + 1}"
    if depth > _DEEPEST:
        raise SpecError("nested too deeply", source=here)
    if isinstance(node, yaml.ScalarNode):
        plain = node.style is None
        return None if plain and node.value in ("", "~", "null", "Null", "NULL") else str(node.value)
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, source, depth + 1) for item in node.value]
    assert isinstance(node, yaml.MappingNode)
    found, repeated = Repeating(), []
    for key_node, value_node in node.value:
        key = _value(key_node, source, depth + 1)
        if not isinstance(key, str):
            raise SpecError("expected a key that is a string", source=f"{source}:{key_node.start_mark.line + 1}")
        if key in found:
            repeated.append(key)
        found[key] = _value(value_node, source, depth + 1)
    found.repeated = tuple(repeated)
    return found
