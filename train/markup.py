"""The report's page and its parts as HTML: everything that is text becomes so here, escaped."""

from __future__ import annotations

import html
import os
from collections.abc import Iterable, Sequence
from string import Template

# The policy tells the browser what is true anyway: the page loads nothing and runs nothing, whatever a label says.
_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>
:root { --text: #1c2430; --soft: #5d6b82; --line: #d9dee7; --page: #fff; --panel: #f5f7fa; --first: #c2610a;
  --second: #2563c9; --good: 37, 99, 201; --bad: 201, 60, 37; }
@media (prefers-color-scheme: dark) { :root { --text: #e6e9ef; --soft: #98a2b3; --line: #343b47; --page: #14181f;
  --panel: #1c222c; --first: #f0a050; --second: #74a5f5; --good: 116, 165, 245; --bad: 245, 130, 110; } }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--page); max-width: 62rem;
  margin: 2rem auto; padding: 0 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.8rem; line-height: 1.2; margin: 0; } h2 { font-size: 1.2rem; margin: 2.4rem 0 .4rem; }
h3 { font-size: 1rem; font-weight: normal; color: var(--soft); margin: .8rem 0 .2rem; }
p { margin: .3rem 0 .7rem; max-width: 46rem; } p.soft, figcaption, th { color: var(--soft); }
.facts { display: flex; flex-wrap: wrap; gap: .7rem; margin: 1rem 0; } .facts div { background: var(--panel);
  border-radius: .5rem; padding: .5rem .9rem; } .facts dt { color: var(--soft); font-size: .85rem; }
.facts dd { margin: 0; font-size: 1.25rem; font-variant-numeric: tabular-nums; }
.charts { display: flex; flex-wrap: wrap; gap: 1.5rem; } figure { margin: 0; } .charts figure { flex: 1 1 20rem;
  max-width: 30rem; min-width: 0; } svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--soft); font-size: 11px; } svg .grid { stroke: var(--line); } svg .mark { fill: none;
  stroke: var(--text); stroke-width: 1.5; } svg polyline { fill: none; stroke-width: 1.5; stroke-linejoin: round; }
svg .first { stroke: var(--first); } svg .second { stroke: var(--second); } svg circle.first { fill: var(--first); }
svg circle.second { fill: var(--second); } svg .ideal { stroke: var(--soft); stroke-dasharray: 4 4; }
svg .bar { fill: rgba(var(--good), .6); } svg .less { fill: rgba(var(--bad), .45); }
svg .more { fill: rgba(var(--good), .3); }
b.first { color: var(--first); } b.second { color: var(--second); } b.bar { color: rgba(var(--good), .6); }
b.less { color: rgba(var(--bad), .45); } b.more { color: rgba(var(--good), .3); } .charts > div { min-width: 0; }
.wide { overflow-x: auto; max-width: 100%; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .7rem; text-align: right; font-weight: normal; border-bottom: 1px solid var(--line);
  overflow-wrap: normal; white-space: nowrap; }
th.name, td.name { text-align: left; white-space: normal; overflow-wrap: anywhere; min-width: min(9rem, 28vw);
  max-width: 24rem; }
th.up { vertical-align: bottom; padding: .3rem; text-align: center; } th.up span { display: inline-block;
  writing-mode: vertical-rl; transform: rotate(180deg); max-height: 10rem; overflow: hidden; text-overflow: ellipsis; }
th.up ~ th, .dense td { padding: .2rem .4rem; text-align: center; } .dense th.name { position: sticky; left: 0;
  background: var(--page); }
td.chosen { outline: 2px solid var(--text); outline-offset: -2px; font-weight: 600; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: .8rem; }
.cards figure { background: var(--panel); border-radius: .5rem; padding: .6rem; min-width: 0; line-height: 1.35; }
.cards .picture { height: 96px; display: flex; align-items: center; justify-content: center; margin-bottom: .4rem;
  color: var(--soft); font-size: .8rem; } .cards img { width: 100%; height: 100%; object-fit: contain; }
.cards figcaption { font-size: .8rem; } .cards b { color: var(--text); } .cards b:first-child { font-size: .95rem; }
@media (max-width: 30rem) { th, td { padding: .2rem .4rem; } }
@media print { body { max-width: none; } .cards figure, .charts figure, tr { break-inside: avoid; } }
</style>
</head>
<body>
<h1>$title</h1>
<p class="soft">$summary</p>
$content
</body>
</html>
""")


def page(title: str, summary: str, content: str) -> str:
    """A whole HTML file, which needs no other; `content` is markup, the others are text."""
    return _PAGE.substitute(title=escape(title), summary=escape(summary), content=content)


def section(title: str, content: str) -> str:
    """A heading, and the markup below it."""
    return f"<section><h2>{escape(title)}</h2>\n{content}</section>"


def note(text: str) -> str:
    """A paragraph that explains what follows."""
    return f'<p class="soft">{escape(text)}</p>'


def legend(entries: Iterable[tuple[str, str]]) -> str:
    """What the colours of a chart stand for: (class in the style, text) each."""
    squares = " ".join(f'<b class="{name}">&#9632;</b> {escape(text)}' for name, text in entries)
    return f'<p class="soft">{squares}</p>'


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """The numbers that one looks for first: (name, value) each."""
    items = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in pairs)
    return f'<dl class="facts">{items}</dl>' if items else ""


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], names: int = 1) -> str:
    """Cells of text; the first `names` columns are words, the others numbers."""

    def line(cells: Sequence[str], tag: str) -> str:
        return "".join(f"<{tag}{' class=name' * (i < names)}>{escape(cell)}</{tag}>" for i, cell in enumerate(cells))

    body = "".join(f"<tr>{line(row, 'td')}</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{line(heads, "th")}</tr>{body}</table></div>'


def matrix(corner: str, heads: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]], upright: bool) -> str:
    """A table of coloured cells: text names rows and columns, the cells come from `cell`.

    `upright` turns the columns' names, which would make the cells wide otherwise.
    """

    def head(text: str) -> str:
        if not upright:
            return f"<th>{escape(text)}</th>"
        return f'<th class="up" title="{escape(text)}"><span>{escape(text)}</span></th>'

    body = "".join(f'<tr><th class="name">{escape(name)}</th>{"".join(cells)}</tr>' for name, cells in rows)
    top = f'<th class="name">{escape(corner)}</th>{"".join(map(head, heads))}'
    return f'<div class="wide"><table{" class=dense" * upright}><tr>{top}</tr>{body}</table></div>'


def cell(text: str, share: float = 0.0, good: bool = True, chosen: bool = False, tip: str = "") -> str:
    """A cell of `matrix`: the larger `share`, of 1, the stronger its colour; `tip` shows when pointed at."""
    # Up to about half: the text on it stays as easy to read as beside it.
    shade = f' style="background: rgba(var(--{"good" if good else "bad"}), {share * 0.55:.2f})"' if share > 0 else ""
    title = f' title="{escape(tip)}"' if tip else ""
    return f"<td{' class=chosen' * chosen}{shade}{title}>{escape(text)}</td>"


def percent(share: float) -> str:
    """`93.1%`; NaN, of a class that has no images, is no number to show."""
    return "" if share != share else f"{share:.1%}"


def printable(path: str) -> str:
    """A path or label as text of one line: bytes that are not UTF-8 become replacement characters, control
    characters their escapes."""
    text = os.fsencode(path).decode("utf-8", "replace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def escape(text: str) -> str:
    return html.escape(printable(text))
