"""Parts of a page of results: a frame that fetches nothing, tables, charts, numbers."""

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from string import Template
from typing import Any


@dataclass(frozen=True)
class Code:
    """A page's scripts: one at its end, and those that this one may add to the page."""

    script: str
    added: tuple[bytes, ...] = ()
    style: str = ""


def page(
    name: str,
    lead: str,
    facts: str,
    sections: Iterable[tuple[str, str]],
    code: Code | None = None,
) -> str:
    """A whole page. Titles are text; `lead`, `facts` and the bodies of sections are HTML.

    Sections without a body are left out. Without `code` no script can run in the page.
    """
    return _PAGE.substitute(
        name=escape(name),
        policy=_policy(code),
        style=code.style if code else "",
        script=f"<script>{code.script}</script>\n" if code else "",
        lead=lead,
        facts=facts,
        sections="\n".join(
            f"<section><h2>{escape(title)}</h2>\n{body}</section>"
            for title, body in sections
            if body
        ),
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: Iterable[int] = ()) -> str:
    """An HTML table of text; every cell is escaped, and the columns `numbers` align right."""
    right = set(numbers)

    def line(tag: str, cells: Sequence[str]) -> str:
        return "".join(
            f'<{tag} class="n">{escape(cell)}</{tag}>'
            if column in right
            else f"<{tag}>{escape(cell)}</{tag}>"
            for column, cell in enumerate(cells)
        )

    body = "\n".join(f"<tr>{line('td', row)}</tr>" for row in rows)
    return (
        f'<div class="wide"><table><thead><tr>{line("th", head)}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>\n"
    )


def chart(svg: bytes, alt: str) -> str:
    """A picture inside the page."""
    uri = data_uri(svg, "image/svg+xml")
    return f'<img class="chart" src="{uri}" alt="{escape(alt)}">\n'


def data_uri(content: bytes, kind: str) -> str:
    """Content of a MIME type as a data URI."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def mm(value: float | None) -> str:
    """A length with two decimals."""
    return "–" if value is None else f"{value:.2f}".replace("-", "−")


def percent(share: float | None) -> str:
    """A share in [0, 1]."""
    return "–" if share is None else f"{100 * share:.1f} %"


def p_value(value: float | None) -> str:
    """A probability with three decimals."""
    return "–" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def interval(test: Mapping[str, Any]) -> str:
    """The interval of `metrics.paired_comparison`."""
    bounds = test["interval"]
    return "–" if bounds is None else f"{mm(bounds[0])} to {mm(bounds[1])}"


def data_block(name: str, kind: str, content: str) -> str:
    """Text of a MIME type that a script finds by its name; the page neither shows nor runs it.

    Raises ValueError for a name that is no word, and for content that could end the block.
    """
    if not name.replace("-", "").isalnum() or "<" in content:
        raise ValueError(f"{name!r}: not a data block")
    return f'<script type="{kind}" id="{name}">{content}</script>\n'


def _policy(code: Code | None) -> str:
    """The page's Content-Security-Policy: it fetches nothing, and only `code` runs.

    Scripts are named by their hashes. Everything else falls under default-src: a script can't
    connect to anything, start workers, or compile text or WebAssembly.
    """
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    if code is None:
        return policy
    hashes = (hashlib.sha256(text).digest() for text in (code.script.encode(), *code.added))
    named = (f"'sha256-{base64.b64encode(digest).decode('ascii')}'" for digest in hashes)
    return f"{policy}; script-src {' '.join(named)}"


_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="$policy">
<meta name="color-scheme" content="light dark">
<title>$name</title>
<style>
:root { --ink: #1d2329; --soft: #5b6670; --line: #dde2e6; --ground: #ffffff; --tint: #f4f6f8; }
@media screen and (prefers-color-scheme: dark) {
  :root { --ink: #e3e7ea; --soft: #9aa5ae; --line: #333c44; --ground: #14181c; --tint: #1c2227; }
  img.chart { filter: invert(0.9) hue-rotate(180deg); }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1180px; padding: 2.5rem 1.5rem 4rem; color: var(--ink);
  background: var(--ground); font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .4rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 0 0 .8rem; }
.lead { font-size: 1.25rem; margin: 0 0 .3rem; }
section > p.warning { color: #c0392b; margin-top: .5rem; }
.facts, figcaption, section > p { color: var(--soft); margin: 0; }
section { border-top: 1px solid var(--line); margin-top: 2rem; padding-top: 1.4rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem 1.1rem .3rem 0; text-align: left; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 500; vertical-align: bottom; }
.n { text-align: right; white-space: nowrap; }
img { display: block; max-width: 100%; height: auto; }
img.chart { width: 1000px; }
figure { margin: 0 0 1.4rem; }
figure.scan img { background: #ffffff; border-radius: 4px; width: 100%; }
details { margin-bottom: .8rem; }
summary { cursor: pointer; }
pre { background: var(--tint); padding: 1rem; border-radius: 4px; overflow-x: auto; }
@media print {
  body { max-width: none; padding: 0; font-size: 11px; }
  figure, tr, img { break-inside: avoid; }
  h2 { break-after: avoid; }
}
$style</style>
</head>
<body>
<header>
<h1>$name</h1>
<p class="lead">$lead</p>
<p class="facts">$facts</p>
</header>
$sections
$script</body>
</html>
""")
