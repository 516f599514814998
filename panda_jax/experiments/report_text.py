"""A report as Markdown and as LaTeX."""

from collections.abc import Iterable, Sequence

from panda_jax.experiments.layout import Section, Table

# Rows that fit a page of LaTeX.
_PAGE = 45


def markdown(title: str, sections: Sequence[Section]) -> str:
    """GitHub's Markdown; pictures are named as files beside it."""
    blocks = [f"# {_plain(title)}"]
    for section in sections:
        blocks.append(f"## {_plain(section.title)}")
        blocks += map(_plain, section.text)
        for table in section.tables:
            blocks.append(f"### {_plain(table.title)}")
            if table.rows:
                blocks.append(_pipes(table))
            blocks += map(_plain, table.notes)
        blocks += [f"![{_plain(p.title)}]({p.name})" for p in section.pictures]
    return "\n\n".join(blocks) + "\n"


def _plain(text: str) -> str:
    """Text in which Markdown finds nothing to format."""
    return "".join(
        f"\\{sign}" if sign in "\\`*_[]<>|~" else sign for sign in text
    )


def _pipes(table: Table) -> str:
    def line(cells: Iterable[str]) -> str:
        return f"| {' | '.join(cells)} |"

    rules = [
        "---" if table.is_word(i) else "--:" for i in range(len(table.head))
    ]
    return "\n".join(
        [
            line(map(_plain, table.head)),
            line(rules),
            *(line(map(_plain, row)) for row in table.rows),
        ]
    )


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
    words = [i for i in range(len(table.head)) if table.is_word(i)]
    # A column of sentences must break its lines.
    longest = {
        i: max((len(row[i]) for row in table.rows), default=0) for i in words
    }
    columns = "".join(
        ("p{6cm}" if longest[i] > 50 else "l") if i in longest else "r"
        for i in range(len(table.head))
    )
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
