"""Tables and sections, and how they are printed, for reports of any kind.

One table is written as csv, Markdown, LaTeX, HTML, or text of a fixed width.
"""

import base64
import html
import math
import pathlib
import re
import string
import struct
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from panda_jax.io import csv_rows
from panda_jax.transfer.scores import file_names

# The paper's tables, as csv; README.md there says more.
PUBLISHED = pathlib.Path(__file__).resolve().parent / "published"
MISSING = "–"
# Behind a cell some of whose runs failed, are unfinished or not begun.
LOST = "†"
# Rows that fit a page of LaTeX.
_PAGE = 45
# More characters than this in a cell break their line.
_LONG = 50
# The pictures are drawn at 150 dots an inch; a page has 96 pixels an inch.
_SCALE = 96 / 150
# With a tab stop a box can be scrolled from the keyboard.
_BOX = '<div class="box" tabindex="0" role="region" aria-label="{}">'


class Table(NamedTuple):
    """A table as people read it, and as programs do.

    Attributes:
      stem: of its `.csv`, but for signs that no file's name should have; no
        other table's.
      rows: cells as text, as many as the columns that `head` names.
      data: rows of its `.csv`, the first the columns' names; empty for none.
      notes: below it.
      words, ends: columns at the left and at the right that hold words.
    """

    stem: str
    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    data: Sequence[Sequence[Any]] = ()
    notes: Sequence[str] = ()
    words: int = 1
    ends: int = 0

    def is_word(self, column: int) -> bool:
        """Whether a column holds words."""
        return column < self.words or column >= len(self.head) - self.ends


class Picture(NamedTuple):
    """A PNG in the report's folder, and what it shows."""

    name: str
    title: str


class Section(NamedTuple):
    """A heading, with paragraphs, then tables, then pictures below it."""

    title: str
    text: Sequence[str] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()


def points(value: float, *, digits: int = 1) -> str:
    """A score in points, one decimal as in the paper; a dash for NaN."""
    return MISSING if math.isnan(value) else f"{value:z.{digits}f}"


def change(value: float, *, digits: int = 1) -> str:
    """A difference in points, with its sign; a dash for NaN."""
    return MISSING if math.isnan(value) else f"{value:+z.{digits}f}"


def interval(low: float, high: float) -> str:
    """An interval of a difference in points; a dash for NaN."""
    if math.isnan(low):
        return MISSING
    return f"[{change(low, digits=2)}, {change(high, digits=2)}]"


def chance(value: float, *, none: str = MISSING) -> str:
    """A p-value; a dash, or what else stands for `none`, for NaN."""
    return none if math.isnan(value) else f"{value:.4f}"


def write_csv(
    folder: pathlib.Path, tables: Iterable[Table]
) -> list[pathlib.Path]:
    """Writes the data of those that have any; returns the files."""
    with_data = [table for table in tables if table.data]
    stems = file_names(table.stem for table in with_data)
    paths = []
    for table in with_data:
        paths.append(folder / f"{stems[table.stem]}.csv")
        csv_rows.write_rows(paths[-1], table.data)
    return paths


def plain(table: Table, width: int) -> list[str]:
    """Text; several blocks where the columns are too many for `width`.

    Columns are flush right, but for the first, which each block begins with.
    """
    first = ["", *(row[0] for row in table.rows)]
    names = max(map(len, first))
    blocks: list[list[list[str]]] = [[]]
    room = width - names
    for column in list(zip(table.head, *table.rows, strict=True))[1:]:
        size = max(map(len, column)) + 2
        if blocks[-1] and room < size:
            blocks.append([])
            room = width - names
        room -= size
        blocks[-1].append([cell.rjust(size) for cell in column])
    found = []
    for number, block in enumerate(blocks):
        title = "The same, continued" if number else table.title
        lines = [
            name.ljust(names) + "".join(cells)
            for name, *cells in zip(first, *block, strict=True)
        ]
        lines = [f"{title}:", lines[0], *(x.rstrip() for x in lines[1:])]
        found.append("\n".join(lines))
    return found


def markdown(title: str, sections: Sequence[Section]) -> str:
    """GitHub's Markdown; pictures are named as files beside it."""
    blocks = [f"# {_plain(title)}"]
    for section in sections:
        blocks.append(f"## {_plain(section.title)}")
        blocks += map(_plain, section.text)
        for table in section.tables:
            blocks.append(f"### {_plain(table.title)}")
            if table.rows:
                columns = range(len(table.head))
                rules = ["---" if table.is_word(i) else "--:" for i in columns]
                rows = [[*map(_plain, r)] for r in (table.head, *table.rows)]
                rows.insert(1, rules)
                lines = (" | ".join(cells) for cells in rows)
                blocks.append("\n".join(f"| {line} |" for line in lines))
            blocks += map(_plain, table.notes)
        blocks += [f"![{_plain(p.title)}]({p.name})" for p in section.pictures]
    return "\n\n".join(blocks) + "\n"


def _plain(text: str) -> str:
    """Text in which Markdown finds nothing to format."""
    return re.sub(r"([\\`*_\[\]<>|~])", r"\\\1", text)


def latex(title: str, sections: Sequence[Section]) -> str:
    """A LaTeX document that needs no package; tables are plain tabulars."""
    lines = [
        r"\documentclass[10pt]{article}",
        # Wide tables: as much of the page as there is.
        r"\textwidth=18.5cm \oddsidemargin=-1.3cm \textheight=25cm",
        r"\topmargin=-2cm \parindent=0pt \parskip=4pt",
        r"\setlength{\tabcolsep}{2.5pt}",
        r"\begin{document}",
        rf"\section*{{{tex(title)}}}",
    ]
    for section in sections:
        lines.append(rf"\subsection*{{{tex(section.title)}}}")
        lines += [tex(text) + "\n" for text in section.text]
        for table in section.tables:
            lines += _tabular(table)
    return "\n".join([*lines, r"\end{document}", ""])


def _tabular(table: Table) -> Iterable[str]:
    yield rf"\subsubsection*{{{tex(table.title)}}}"
    columns = ""
    for i in range(len(table.head)):
        # A column of sentences must break its lines.
        long = any(len(row[i]) > _LONG for row in table.rows)
        columns += ("p{6cm}" if long else "l") if table.is_word(i) else "r"
    for start in range(0, len(table.rows), _PAGE):
        yield rf"{{\scriptsize\begin{{tabular}}{{{columns}}}\hline"
        yield " & ".join(map(tex, table.head)) + r" \\ \hline"
        for row in table.rows[start : start + _PAGE]:
            yield " & ".join(map(tex, row)) + r" \\"
        yield r"\hline\end{tabular}\par}"
    for note in table.notes:
        yield rf"{{\footnotesize {tex(note)}\par}}"


_TEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "–": "--",
    "†": r"$\dagger$",
    # Else `\\ [` would be a distance between rows.
    "[": "{[}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}


def tex(text: str) -> str:
    """Text that LaTeX prints as it is; what its fonts lack becomes `?`."""
    return "".join(
        _TEX.get(sign, sign if " " <= sign < "\x7f" else "?")
        for sign in " ".join(text.split())
    )


def page(title: str, sections: Sequence[Section], folder: pathlib.Path) -> str:
    """One HTML page that needs no other file, script or network.

    The pictures, which lie in `folder`, become part of it.
    """
    page = pathlib.Path(__file__).with_suffix(".html").read_text("utf-8")
    contents, parts = [], []
    for i, section in enumerate(sections):
        name = html.escape(section.title)
        contents.append(f'<li><a href="#s{i}">{name}</a></li>')
        parts += [f'<section id="s{i}">', f"<h2>{name}</h2>"]
        parts += [f"<p>{html.escape(text)}</p>" for text in section.text]
        for table in section.tables:
            parts += _html_table(table)
        for picture in section.pictures:
            parts += _figure(picture, folder)
        parts.append("</section>")
    return string.Template(page).substitute(
        title=html.escape(title),
        contents="\n".join(contents),
        sections="\n".join(parts),
    )


def _html_table(table: Table) -> Iterable[str]:
    title = html.escape(table.title)
    yield f"<h3>{title}</h3>"
    if table.rows:
        yield _BOX.format(title)
        yield "<table><thead><tr>"
        for i, head in enumerate(table.head):
            style = ' class="word"' if table.is_word(i) else ""
            yield f'<th scope="col"{style}>{html.escape(head)}</th>'
        yield "</tr></thead><tbody>"
        for row in table.rows:
            mean = re.search(r"\bmean of |^average$", row[0])
            mark = ' class="mean"' if mean else ""
            cells = ""
            for i, text in enumerate(row):
                kinds = ["word"] * table.is_word(i)
                kinds += ["long"] * (len(text) > _LONG)
                style = f' class="{" ".join(kinds)}"' if kinds else ""
                tag = ("td", "") if i else ("th", ' scope="row"')
                text = html.escape(text)
                cells += f"<{tag[0]}{tag[1]}{style}>{text}</{tag[0]}>"
            yield f"<tr{mark}>{cells}</tr>"
        yield "</tbody></table></div>"
    for note in table.notes:
        yield f'<p class="note">{html.escape(note)}</p>'


def _figure(picture: Picture, folder: pathlib.Path) -> Iterable[str]:
    data = (folder / picture.name).read_bytes()
    # A PNG begins with its signature and the header: width and height.
    sizes = struct.unpack(">II", data[16:24])
    width, height = (round(size * _SCALE) for size in sizes)
    text = base64.b64encode(data).decode()
    title = html.escape(picture.title)
    yield f"<figure>{_BOX.format(title)}"
    yield (
        f'<img alt="Heat map: {title}" width="{width}" height="{height}" '
        f'src="data:image/png;base64,{text}">'
    )
    yield f"</div><figcaption>{title}</figcaption></figure>"
