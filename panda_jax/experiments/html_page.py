"""A report as one HTML page that needs no other file, script or network."""

import base64
import html
import pathlib
import re
import struct
from collections.abc import Iterable, Sequence

from panda_jax.experiments.layout import Picture, Section, Table

# The pictures are drawn at 150 dots an inch; a page has 96 pixels an inch.
_SCALE = 96 / 150

# Dark text on white and one blue: the same with and without colour blindness.
# Only a table's own box scrolls sideways, never the page.
_STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1400px; padding: 0 1.25rem 3rem;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans",
  sans-serif; color: #1b1f24; background: #fff; overflow-wrap: break-word; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 1.5rem 0 .5rem; }
h2 { font-size: 1.3rem; margin: 2.5rem 0 .5rem; padding-top: .5rem;
  border-top: 3px solid #00538a; }
h3 { font-size: 1.05rem; margin: 1.75rem 0 .5rem; }
p { margin: .5rem 0; max-width: 75ch; }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1rem; list-style: none;
  padding: 0; margin: .5rem 0; }
a { color: #00538a; }
nav a { display: inline-block; padding: .35rem 0; }
.note { font-size: .875rem; color: #4a525c; }
.box { overflow: auto; max-height: 85vh; max-width: 100%; width: fit-content;
  border: 1px solid #c3cad3; border-radius: 4px; }
.box:focus { outline: 2px solid #00538a; }
table { border-collapse: separate; border-spacing: 0; font-size: .875rem;
  line-height: 20px; font-variant-numeric: tabular-nums; }
th, td { padding: 5px .6rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid #e3e7ec; background: #fff; }
thead th { position: sticky; top: 0; z-index: 2; background: #eaf1f7;
  border-bottom: 2px solid #00538a; vertical-align: bottom; }
tbody th { position: sticky; left: 0; z-index: 1; font-weight: 600; }
thead th:first-child { left: 0; z-index: 3; }
.word { text-align: left; }
.long { white-space: normal; min-width: 18rem; max-width: 34rem; }
tr.mean > * { background: #f3f6f9; font-style: italic; }
figure { margin: 1.5rem 0; }
figure .box { max-height: none; }
figure img { display: block; max-width: none; height: auto; }
figcaption { font-size: .875rem; color: #4a525c; margin-top: .35rem; }
@media (max-width: 640px) {
  body { padding: 0 .75rem 2rem; font-size: 15px; }
  h1 { font-size: 1.4rem; }
  table { font-size: .8rem; }
  th, td { padding: 5px .45rem; }
  tbody th { white-space: normal; min-width: 6.5rem; max-width: 11rem; }
  .long { min-width: 14rem; }
}
@media print { .box { overflow: visible; max-height: none; border: 0; } }
"""

# With a tab stop a box can be scrolled from the keyboard.
_BOX = '<div class="box" tabindex="0" role="region" aria-label="{}">'


def page(title: str, sections: Sequence[Section], folder: pathlib.Path) -> str:
    """The whole page.

    Args:
      title: its title and first heading.
      sections: what it holds.
      folder: where the pictures lie, which become part of the page.
    """
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        # Else a browser asks the server for one.
        '<link rel="icon" href="data:,">',
        f"<title>{_text(title)}</title>",
        f"<style>{_STYLE}</style>",
        "</head>",
        "<body>",
        f"<h1>{_text(title)}</h1>",
        '<nav aria-label="Contents"><ul>',
        *(
            f'<li><a href="#s{i}">{_text(section.title)}</a></li>'
            for i, section in enumerate(sections)
        ),
        "</ul></nav>",
        "<main>",
    ]
    for i, section in enumerate(sections):
        parts += _section(section, i, folder)
    return "\n".join([*parts, "</main>", "</body>", "</html>", ""])


def _section(
    section: Section, place: int, folder: pathlib.Path
) -> Iterable[str]:
    yield f'<section id="s{place}">'
    yield f"<h2>{_text(section.title)}</h2>"
    for text in section.text:
        yield f"<p>{_text(text)}</p>"
    for table in section.tables:
        yield f"<h3>{_text(table.title)}</h3>"
        if table.rows:
            yield from _table(table)
        for note in table.notes:
            yield f'<p class="note">{_text(note)}</p>'
    for picture in section.pictures:
        yield from _figure(picture, folder)
    yield "</section>"


def _table(table: Table) -> Iterable[str]:
    yield _BOX.format(_text(table.title))
    yield "<table><thead><tr>"
    for i, head in enumerate(table.head):
        style = ' class="word"' if table.is_word(i) else ""
        yield f'<th scope="col"{style}>{_text(head)}</th>'
    yield "</tr></thead><tbody>"
    for row in table.rows:
        mean = re.search(r"\bmean of |^average$", row[0])
        style = ' class="mean"' if mean else ""
        cells = [_cell(table, i, text) for i, text in enumerate(row)]
        yield f"<tr{style}>{''.join(cells)}</tr>"
    yield "</tbody></table></div>"


def _cell(table: Table, column: int, text: str) -> str:
    kinds = ["word"] if table.is_word(column) else []
    if len(text) > 50:
        kinds.append("long")
    style = f' class="{" ".join(kinds)}"' if kinds else ""
    if column == 0:
        return f'<th scope="row"{style}>{_text(text)}</th>'
    return f"<td{style}>{_text(text)}</td>"


def _figure(picture: Picture, folder: pathlib.Path) -> Iterable[str]:
    data = (folder / picture.name).read_bytes()
    # A PNG begins with its signature and the header: width and height.
    width, height = (
        round(size * _SCALE) for size in struct.unpack(">II", data[16:24])
    )
    text = base64.b64encode(data).decode()
    title = _text(picture.title)
    yield f"<figure>{_BOX.format(title)}"
    yield (
        f'<img alt="Heat map: {title}" width="{width}" height="{height}" '
        f'src="data:image/png;base64,{text}">'
    )
    yield f"</div><figcaption>{title}</figcaption></figure>"


def _text(text: str) -> str:
    return html.escape(text)
