"""The frame of a page: its style, sections, tiles; and how numbers are written for people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

_STYLE = """
:root { --ink: #1c2430; --soft: #5d6b7c; --line: #d9dfe6; --card: #ffffff; --ground: #f4f6f8; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6ebf1; --soft: #9aa7b5; --line: #34404d; --card: #1c232c;
  --ground: #12171d; } }
* { box-sizing: border-box; }
body { margin: 0; padding: 28px; background: var(--ground); color: var(--ink);
  font: 15px/1.45 system-ui, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif; }
main { max-width: 1180px; margin: 0 auto; }
h1 { font-size: 24px; margin: 0; } h1 small { color: var(--soft); font-weight: 400; }
h2 { font-size: 16px; margin: 0 0 12px; }
p.when { color: var(--soft); margin: 4px 0 18px; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 18px 20px;
  margin-bottom: 18px; }
section > p.soft { color: var(--soft); margin: -6px 0 14px; }
.tiles { display: flex; flex-wrap: wrap; gap: 12px; margin-bottom: 18px; }
.tile { background: var(--card); border: 1px solid var(--line); border-left: 5px solid var(--c); border-radius: 8px;
  padding: 8px 18px 8px 14px; min-width: 110px; }
.tile b { display: block; font-size: 24px; line-height: 1.2; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); }
.bar { display: flex; height: 10px; border-radius: 5px; overflow: hidden; margin-bottom: 18px;
  background: var(--line); } .bar i { background: var(--c); }
.legend { display: flex; flex-wrap: wrap; gap: 6px 18px; margin: 0 0 12px; color: var(--soft); }
.legend i { display: inline-block; width: 11px; height: 11px; border-radius: 3px; background: var(--c);
  margin-right: 6px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; } th { text-align: left; color: var(--soft); font-weight: 500; }
th, td { padding: 5px 14px 5px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
tr:last-child td { border-bottom: 0; } tr.sum td { font-weight: 600; }
pre { background: #171c22; color: #e6ebf1; border-radius: 6px; padding: 10px 14px; margin: 6px 0 0; overflow-x: auto;
  font: 13px/1.45 ui-monospace, "SF Mono", Menlo, "DejaVu Sans Mono", monospace; }
summary { cursor: pointer; font-weight: 600; } details table { margin-top: 10px; }
details + details { margin-top: 22px; } details > p { margin: 6px 0 0; }
code { font: 13px ui-monospace, Menlo, "DejaVu Sans Mono", monospace; overflow-wrap: anywhere; }
svg { display: block; width: 100%; height: auto; } svg text { fill: var(--ink); } svg .soft { fill: var(--soft); }
svg .grid { stroke: var(--line); } svg .lane { fill: var(--ground); }
"""


def document(title: str, parts: Iterable[str], *, style: str = "") -> str:
    """A whole page.  ``title`` is plain text, ``parts`` are HTML (empty ones are left out), ``style`` more CSS."""
    body = "\n".join(filter(None, parts))
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}{style}</style></head>\n<body><main>\n{body}\n</main></body></html>\n"
    )


def section(heading: str, body: str, *, note: str = "") -> str:
    """A card; nothing when its body, which is HTML, is empty.  ``heading`` and ``note`` are plain text."""
    if not body:
        return ""
    above = (f"<h2>{escape(heading)}</h2>" if heading else "") + (f'<p class="soft">{escape(note)}</p>' if note else "")
    return f"<section>{above}{body}</section>"


def tiles(shown: Iterable[tuple[str, str, str]]) -> str:
    """(class for its colour, number, word), in a row."""
    return "".join(
        f'<div class="tile {kind}"><b>{escape(number)}</b><span>{escape(word)}</span></div>'
        for kind, number, word in shown
    )


def legend(shown: Iterable[tuple[str, str]]) -> str:
    """(class for its colour, word), in a row."""
    items = "".join(f'<span class="{kind}"><i></i>{escape(word)}</span>' for kind, word in shown)
    return f'<div class="legend">{items}</div>'


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Iterable[int] = (), sums: int = 0) -> str:
    """Cells are plain text.  ``numbers``: which columns stand to the right; the last ``sums`` rows are totals."""
    right = frozenset(numbers)
    kinds = [' class="n"' if column in right else "" for column in range(len(heads))]
    filled = list(rows)
    head = "".join(f"<th{kind}>{escape(text)}</th>" for kind, text in zip(kinds, heads, strict=True))
    lines = [
        f"<tr{' class=sum' if number >= len(filled) - sums else ''}>"
        + "".join(f"<td{kind}>{escape(text)}</td>" for kind, text in zip(kinds, row, strict=True))
        + "</tr>"
        for number, row in enumerate(filled)
    ]
    return f'<div class="wide"><table><tr>{head}</tr>{"".join(lines)}</table></div>'


def span(seconds: float) -> str:
    """``0.4 s``, ``12 s``, ``3 min 20 s``, ``2 h 5 min``."""
    seconds = max(0.0, seconds)
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"


def amount(size: float) -> str:
    """Bytes, as ``312 kB``, ``61 MB``, ``1.2 GB``."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= 0.9995 * factor:  # or it would be written as 1000 of the next smaller
            value = size / factor
            return f"{value:.1f} {unit}" if value < 9.95 else f"{value:.0f} {unit}"
    return f"{size:.0f} B"
