"""What hostile and careless people hand in: documents of the right form with the wrong things in them, and damage."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

# Text that has meant something to somebody: a shell, an option parser, a path, a URL, a format, a terminal.
NASTY = (
    "", " ", "-", "--", "-rf", "-e .", "--index-url=http://x/", "-oProxyCommand=touch x", "$(touch x)", "`touch x`",
    "; touch x", "| cat", "&& true", "a b", "a\nb", "a\r\nb", "a\0b", "\t", "'", '"', "\\", "*", "?", "[", "{",
    "${HOME}", "%s%n", "{0.__class__}", "../../x", "/etc/passwd", "/dev/zero", "/proc/self/mem", "~root", ".", "..",
    "...", "CON", "file:///etc/passwd", "http://", "https://user:s3cret@host/x", "http://[::1", "http://host:99999/",
    "//x", "ext::sh -c x", "git+ssh://x/y", "\u202eabc", "\ud800", "\U0001f600", "\x1b[31m", "e\u0301", "\ufeff",
    "null", "true", "NaN", "1e999", "99999999999999999999", "9" * 5000, "-1", "0x10", "٣", "²", "1_0", "1:30",
    "a" * 300, "x" * 5000, "python", "numpy", "numpy==1.0", "numpy @ file:///x", "name; python_version < '3'", "[[[[",
    "<<", "!!python/object:x", "&a [*a]", "@x",
)  # fmt: skip
NUMBERS = (0, -1, 1, 2**31, 2**63, 2**64, 10**30, 0.1, -0.0, 1e308, float("inf"), float("nan"))
_DEEP = 3_000  # more than the interpreter's stack; readers of YAML are slow


def leaves(more: Sequence[str] = ()) -> st.SearchStrategy[Any]:
    """Single values: nasty ones, those of the format (``more``), and anything."""
    return st.one_of(
        st.sampled_from((*more, *NASTY)), st.sampled_from(NUMBERS), st.none(), st.booleans(), st.text(max_size=12),
        st.integers(),
    )  # fmt: skip


def documents(keys: Sequence[str], more: Sequence[str] = ()) -> st.SearchStrategy[Any]:
    """Nested lists and objects whose keys are mostly those of the format."""
    key = st.one_of(
        st.sampled_from(tuple(keys)), st.sampled_from(tuple(keys)), st.sampled_from(NASTY), st.text(max_size=5)
    )
    return st.recursive(
        leaves(more),
        lambda inner: st.one_of(st.lists(inner, max_size=5), st.dictionaries(key, inner, max_size=6)),
        max_leaves=25,
    )


@st.composite
def changed(draw: st.DrawFn, good: Any, keys: Sequence[str], more: Sequence[str] = ()) -> Any:
    """A good document with some of its values, keys or items replaced: most of it is what the reader expects."""
    document = json.loads(json.dumps(draw(st.sampled_from(good))))
    for _ in range(draw(st.integers(0, 3))):
        holder, key = draw(st.sampled_from(_places(document)))
        action = draw(st.sampled_from(("replace", "replace", "remove", "rename", "wrap", "repeat")))
        if action == "replace":
            holder[key] = draw(documents(keys, more))
        elif action == "wrap":
            holder[key] = draw(st.sampled_from(([holder[key]], {"x": holder[key]}, str(holder[key]))))
        elif action == "repeat" and isinstance(holder, list):
            holder.append(json.loads(json.dumps(holder[key])))
        elif action == "rename" and isinstance(holder, dict):
            holder[draw(st.sampled_from((*keys, *NASTY)))] = holder.pop(key)
        else:
            del holder[key]
        if not _places(document):
            break
    return document


def _places(document: Any) -> list[tuple[Any, Any]]:
    found: list[tuple[Any, Any]] = []
    keys = document if isinstance(document, dict) else range(len(document)) if isinstance(document, list) else ()
    for key in keys:
        found.append((document, key))
        found += _places(document[key])
    return found


@st.composite
def damaged(draw: st.DrawFn, good: Sequence[bytes], tokens: Sequence[bytes] = ()) -> bytes:
    """Good bytes, cut, doubled, overwritten, with words of the format or of nobody put in anywhere."""
    data = bytearray(draw(st.sampled_from(tuple(good))))
    words = (*tokens, *(each.encode("utf-8", "surrogatepass") for each in NASTY), b"\xff\xfe", b"\0" * 600)
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(data)))
        length = draw(st.one_of(st.integers(0, 8), st.integers(0, max(1, len(data)))))
        action = draw(st.sampled_from(("flip", "put", "put", "put", "cut", "double", "end", "word", "word", "any")))
        if action == "flip" and at < len(data):
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif action == "put":
            data[at:at] = draw(st.sampled_from(words))
        elif action == "cut":
            del data[at : at + length]
        elif action == "double":
            data[at:at] = data[at : at + length]
        elif action == "end":
            del data[at:]
        elif action == "word":
            word = draw(st.sampled_from(words))
            data[at : at + len(word)] = word
        else:
            data[at:at] = draw(st.binary(max_size=16))
    return bytes(data)


def deep(opening: str, closing: str = "") -> bytes:
    """So deeply nested that a reader which calls itself would run out of stack."""
    return (opening * _DEEP + closing * _DEEP).encode()
