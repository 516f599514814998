"""The formats of the CoNLL shared tasks: a word a line, sentences apart."""

import itertools
import re
from collections.abc import Iterator, Sequence

from panda_jax.tasks.readers_flat import File, Found, lines
from panda_jax.tasks.rows import Place
from panda_jax.tasks.spec import TaskSpec

from panda_jax.errors import UserError

# A sentence: where its first word is, and the columns of each word.
Sentence = tuple[Place, list[list[str]]]

_BREAK = "-DOCSTART-"
_DOCUMENT = ("#begin document", "#end document")
_WORD, _LEMMA, _FRAMESET, _NAMES, _ROLES = 3, 6, 7, 10, 11
# What a span's cells look like: `(X*`, `*`, `*)`, or `(X*)` and `(X)` alone.
_CELL = re.compile(r"(?:\(([^()*]+))?\*(\))?|\(([^()*]+)\)")


def conll_columns(spec: TaskSpec, paths: Sequence[File]) -> Found:
    """CoNLL-2003: columns of words and tags."""
    word, tag = (int(spec.columns[field]) for field in ("words", "tags"))
    for place, rows in _sentences(paths, _BREAK):
        _check_widths(place, rows, spec.width)
        yield (
            place,
            {
                "words": [row[word] for row in rows],
                "tags": [row[tag] for row in rows],
            },
        )


def conll_props(spec: TaskSpec, paths: Sequence[File]) -> Found:
    """CoNLL-2005: a file of words and one of roles; each predicate a row."""
    for text, place, rows in _words_and_roles(spec, paths):
        width = len(rows[0])
        marked = [i for i, row in enumerate(rows) if row[0] != "-"]
        if len(marked) != width - 1:
            raise place.fault(
                "(whole sentence)",
                f"{width - 1} columns of roles",
                f"{len(marked)}, one for each predicate in the first column",
            )
        yield from _predicates(place, rows, text, range(1, width), marked)


def _marked_words(spec: TaskSpec, paths: Sequence[File]) -> Found:
    """CoNLL-2005's predicates, whatever is known of their roles."""
    for text, place, rows in _words_and_roles(spec, paths):
        for at, row in enumerate(rows):
            if row[0] != "-":
                yield place, {"words": text, "predicate": at}


def _words_and_roles(
    spec: TaskSpec, paths: Sequence[File]
) -> Iterator[tuple[list[str], Place, list[list[str]]]]:
    """Each sentence's words, and the columns of the file of roles."""
    if len(paths) != 2:
        raise UserError(
            f"Task {spec.name!r}: the reader conll_props takes two files, of "
            f"words and of roles, got {len(paths)}."
        )
    said, props = paths
    pairs = itertools.zip_longest(_sentences([said]), _sentences([props]))
    for words, roles in pairs:
        if not words or not roles:
            place, rows = words or roles
            other = (said if roles else props).name
            raise place.fault(
                "(whole sentence)",
                " ".join(row[0] for row in rows),
                f"no more sentences: {other} has ended",
            )
        place, rows = roles
        if len(rows) != len(words[1]):
            raise place.fault(
                "(whole sentence)",
                f"{len(rows)} lines",
                f"{len(words[1])}, as in {said.name} from line "
                f"{words[0].line} on",
            )
        _check_widths(place, rows, len(rows[0]))
        yield [row[0] for row in words[1]], place, rows


def conll12_roles(spec: TaskSpec, paths: Sequence[File]) -> Found:
    """CoNLL-2012: the roles around each predicate are a row."""
    for place, rows in _documents(paths):
        text = [row[_WORD] for row in rows]
        columns, marked = _role_columns(rows), _with_framesets(rows)
        yield from _predicates(place, rows, text, columns, marked)


def conll12_names(spec: TaskSpec, paths: Sequence[File]) -> Found:
    """CoNLL-2012: the names in each sentence.

    Left out are documents in which no word carries a name: nobody marked any
    there, and they are not in the published numbers of sentences.
    """

    def document(sentence: Sentence) -> tuple[str, str]:
        place, rows = sentence
        return place.path, rows[0][0]

    for _, sentences in itertools.groupby(_documents(paths), key=document):
        found = [
            (
                place,
                {
                    "words": [row[_WORD] for row in rows],
                    "tags": _bracket_tags(place, rows, _NAMES),
                },
            )
            for place, rows in sentences
        ]
        if any(set(raw["tags"]) != {"O"} for _, raw in found):
            yield from found


def columns(paths: Sequence[File]) -> Found:
    """A sentence a row, `column 0`, `column 1`, ... the lists of its cells."""
    for place, rows in _sentences(paths, _BREAK):
        _check_widths(place, rows, len(rows[0]))
        cells = zip(*rows, strict=True)
        yield place, {f"column {i}": list(x) for i, x in enumerate(cells)}


def questions(spec: TaskSpec, paths: Sequence[File]) -> Found:
    """Words, and predicates, of the task's own format, whose tags may lack.

    In the place of two files, of words and of roles, the latter may have the
    column that marks predicates alone.
    """
    if spec.reader == "conll_props":
        yield from _marked_words(spec, paths)
        return
    word = _WORD
    marks = _DOCUMENT
    if spec.reader == "conll_columns":
        word, marks = int(spec.columns["words"]), (_BREAK,)
    for place, rows in _sentences(paths, *marks):
        _check_widths(place, rows, max(len(rows[0]), word + 1))
        words = [row[word] for row in rows]
        if spec.has_predicate:
            yield from _asked_predicates(place, rows, words)
        else:
            yield place, {"words": words}


def _asked_predicates(
    place: Place, rows: Sequence[Sequence[str]], words: list[str]
) -> Found:
    """CoNLL-2012's predicates: those with roles, else those with framesets."""
    width = max(len(rows[0]), _FRAMESET + 1)
    _check_widths(place, rows, width)
    marked = _with_framesets(rows)
    columns = _role_columns(rows)
    if columns:
        found = _predicates(place, rows, words, columns, marked)
        marked = [raw["predicate"] for _, raw in found]
    for at in marked:
        yield place, {"words": words, "predicate": at}


def _with_framesets(rows: Sequence[Sequence[str]]) -> list[int]:
    return [
        i
        for i, row in enumerate(rows)
        if row[_LEMMA] != "-" and row[_FRAMESET] != "-"
    ]


def _role_columns(rows: Sequence[Sequence[str]]) -> list[int]:
    # A sentence without predicates may have one column of nothing.
    return [
        column
        for column in range(_ROLES, len(rows[0]) - 1)
        if any(row[column] != "*" for row in rows)
    ]


def _sentences(paths: Sequence[File], *marks: str) -> Iterator[Sentence]:
    """Sentences between blank lines and lines that begin with a mark."""
    for path in paths:
        rows: list[list[str]] = []
        first = 1
        for number, line in itertools.chain(lines(path), [(0, "")]):
            # Words may hold other white space.
            cells = re.findall(r"[^ \t]+", line)
            if cells and not line.startswith(marks):
                first = first if rows else number
                rows.append(cells)
            elif rows:
                yield Place(str(path), first, step=1), rows
                rows = []


def _documents(paths: Sequence[File]) -> Iterator[Sentence]:
    for place, rows in _sentences(paths, *_DOCUMENT):
        _check_widths(place, rows, max(len(rows[0]), _ROLES + 1))
        yield place, rows


def _check_widths(
    place: Place, rows: Sequence[Sequence[str]], width: int
) -> None:
    for i, row in enumerate(rows):
        if len(row) != width:
            expected = f"{width} columns, not {len(row)}"
            got = " ".join(row)
            raise place.word(i).fault("(whole line)", got, expected)


def _predicates(
    place: Place,
    rows: Sequence[Sequence[str]],
    words: list[str],
    columns: Sequence[int],
    marked: Sequence[int],
) -> Found:
    """A raw row for each of `columns`; `marked` are the words with lemmas."""
    for k, column in enumerate(columns):
        tags = _bracket_tags(place, rows, column)
        if "B-V" in tags:
            at = tags.index("B-V")
        elif len(marked) == len(columns):
            at = marked[k]
        else:
            raise place.fault(
                f"column {column + 1}",
                "no (V*)",
                "the predicate in brackets, or as many words with a lemma "
                f"as columns of roles, not {len(marked)} and {len(columns)}",
            )
        yield place, {"words": words, "tags": tags, "predicate": at}


def _bracket_tags(
    place: Place, rows: Sequence[Sequence[str]], column: int
) -> list[str]:
    """IOB2 tags from a column of brackets."""
    field = f"column {column + 1}"
    tags = []
    name, begun = "", 0
    for i, row in enumerate(rows):
        cell = _CELL.fullmatch(row[column])
        opened = (cell[1] or cell[3]) if cell else ""
        if not cell or (opened and name):
            expected = "(X*, *, *) or (X*), and no bracket within another"
            raise place.word(i).fault(field, row[column], expected)
        if cell[2] and not (opened or name):
            expected = "no end of a bracket: none is open"
            raise place.word(i).fault(field, row[column], expected)
        if opened:
            name, begun = opened, i
        tags.append(f"B-{name}" if opened else f"I-{name}" if name else "O")
        if cell[2] or cell[3]:
            name = ""
    if name:
        expected = "a bracket that ends within the sentence"
        raise place.word(begun).fault(field, rows[begun][column], expected)
    return tags
