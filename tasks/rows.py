"""Rows: what a raw one says is checked here, wherever it was found."""

import difflib
import math
import re
import string
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from panda_jax.tasks.spec import TaskSpec

from panda_jax.errors import UserError

Row = dict[str, Any]


class Place(NamedTuple):
    """Where a raw row was found, for messages.

    Attributes:
      path: of the file, or the name of another source.
      line: number in it, of what `unit` says.
      unit: what is counted: lines, rows, questions, sentences.
      step: lines that each word of the row takes, from `line` on.
      names: field -> what the row calls it, where that is another name.
    """

    path: str
    line: int
    unit: str = "line"
    step: int = 0
    names: Mapping[str, str] | None = None

    def word(self, position: int) -> "Place":
        """Where the row's word at `position` (from 0) is."""
        return self._replace(line=self.line + position * self.step)

    def fault(self, field: str, got: object, expected: str) -> UserError:
        """The error for one field of this row, by the name it has there."""
        field = (self.names or {}).get(field, field)
        return UserError(
            f"{self.path}, {self.unit} {self.line}, field {field!r}: got "
            f"{_shown(got)}, expected {expected}."
        )


def listed(names: Iterable[object]) -> str:
    """Names for a message, in one line and not too many."""
    text = ", ".join(map(str, names))
    return textwrap.shorten(text, 120, placeholder=" ...") or "none"


def row_fields(spec: TaskSpec, *, answered: bool = True) -> tuple[str, ...]:
    """The fields of a task's raw rows, all of which must be there.

    Args:
      spec: the task.
      answered: with those of the answer, and of the question that it is of.
    """
    asked: tuple[str, ...] = spec.pointed[2:]
    answer: tuple[str, ...] = ("label",)
    if spec.kind == "tags":
        asked += ("words", "predicate")[: 1 + spec.has_predicate]
        answer = ("tags",)
    elif spec.kind == "span":
        asked += ("context",)
        answer = ("answers", "starts")
    elif spec.listed_choices:
        asked += spec.choices
        answer = ("answers",)
    group = (spec.group,) if spec.group else ()
    answer = (*group, *answer) if answered else ()
    return tuple(dict.fromkeys((*spec.fields, *asked, *answer)))


def checked(
    spec: TaskSpec,
    place: Place,
    raw: Mapping[str, Any],
    *,
    coded: bool = True,
    answered: bool = True,
) -> Row:
    """A row as `TaskSpec` says, from raw fields.

    Texts stay as they are.  Lists must be Python lists; tags are given by
    name, IOB1 or IOB2.  Candidates and answers that say the same twice are
    kept once.

    Args:
      spec: the task.
      place: where the row is, for messages.
      raw: all of `row_fields(spec)` as found; others are left out.
      coded: whether the label is written as the task's files write it, else
        as the class name.
      answered: else the row has no answer, which is not looked at, and gets
        one that says nothing.

    Raises:
      UserError: a field is missing or cannot be right.
    """
    for field in row_fields(spec, answered=answered):
        if field not in raw and field not in spec.pointed[2:]:
            expected = f"the field; it has: {listed(raw)}"
            raise place.fault(field, "nothing", expected)
    row: Row = {
        field: _text(place, field, raw[field], blank=spec.lenient)
        for field in spec.fields
    }
    if spec.group:
        # Without answers a row may be a question of its own.
        key = raw.get(spec.group, str(place.line))
        written = str(key) if isinstance(key, int) else key
        row[spec.group] = _text(place, spec.group, written)
    for field, values in spec.spoken.items():
        if row[field] not in values:
            raise place.fault(field, row[field], _either(values))
    if spec.pointed:
        text, span, at = spec.pointed
        where = raw.get(at)
        row[text] = _with_marks(place, at, row[text], row[span], where)
    _check_placeholder(spec, place, row)
    if not answered:
        return row | _asked(spec, place, raw)
    if spec.kind == "tags":
        return row | _tagged(spec, place, raw)
    if spec.kind == "span":
        return row | _answered(place, row["context"], raw)
    if spec.listed_choices:
        return row | _chosen(place, spec.choices[0], raw)
    if spec.kind == "regression":
        return row | {"label": _score(spec, place, raw["label"])}
    codes = spec.label_values if coded else {}
    return row | {"label": _class_id(codes, spec.labels, place, raw["label"])}


def _asked(spec: TaskSpec, place: Place, raw: Mapping[str, Any]) -> Row:
    """What of a question is no text, and the answer that says nothing."""
    if spec.kind == "tags":
        row = _words(spec, place, raw)
        return row | {"tags": [0] * len(row["words"])}
    if spec.kind == "span":
        return {"answers": [""], "starts": [0]}
    if spec.listed_choices:
        (field,) = spec.choices
        candidates = list(dict.fromkeys(_texts(place, field, raw[field])))
        return {field: candidates, "answers": candidates[:1]}
    low, high = spec.score_range
    return {"label": min(max(low, 0.0), high) if low < high else 0}


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _either(names: Iterable[str]) -> str:
    return " or ".join(map(repr, names))


def _text(place: Place, field: str, value: Any, *, blank: bool = False) -> str:
    if not isinstance(value, str) or not (blank or value.strip()):
        expected = "a text" if blank else "a text that is not empty"
        raise place.fault(field, value, expected)
    try:
        value.encode()
    except UnicodeEncodeError:
        # JSON can spell half of a surrogate pair, which is no character.
        raise place.fault(field, value, "Unicode text") from None
    return value


def _texts(place: Place, field: str, value: Any) -> list[str]:
    if not isinstance(value, list) or not value:
        raise place.fault(field, value, "a list of texts, at least one")
    return [_text(place, field, text) for text in value]


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _with_marks(
    place: Place, field: str, text: str, span: str, at: object
) -> str:
    """`text` with asterisks around `span`, at its word or where it is once."""
    found = [
        match.span()
        for match in re.finditer(
            rf"(?<!\w){re.escape(span.strip())}(?!\w)", text, re.IGNORECASE
        )
    ]
    if at is None and len(found) != 1:
        expected = (
            f"the position in words, from 0, of {span!r}, which the text holds "
            f"{len(found)} times"
        )
        raise place.fault(field, "nothing", expected)
    if at is not None:
        words = text.split()
        if not _whole(at) or not 0 <= int(str(at)) < len(words):
            expected = f"a position among the {len(words)} words, from 0"
            raise place.fault(field, at, expected)
        wanted = int(str(at))
        away = {one: abs(_words_before(text, one[0]) - wanted) for one in found}
        # Of the published rows one is a word off.
        found = [
            one for one in sorted(found, key=away.__getitem__) if away[one] <= 1
        ]
        if not found:
            expected = f"where the text says {_shown(span)}; there it says "
            raise place.fault(field, at, expected + _shown(words[wanted]))
    begin, end = found[0]
    return f"{text[:begin]}* {text[begin:end]} *{text[end:]}"


def _words_before(text: str, at: int) -> int:
    """Which word, from 0, the character at a position is of."""
    return len(re.findall(r"\S+", text[: at + 1])) - 1


def _check_placeholder(spec: TaskSpec, place: Place, row: Row) -> None:
    parts = string.Formatter().parse(spec.text_b or "")
    fields = [name for _, name, _, _ in parts if name in row]
    if fields and not any(spec.placeholder in row[name] for name in fields):
        expected = f"a text with {spec.placeholder!r} in it"
        raise place.fault(fields[0], row[fields[0]], expected)


def _score(spec: TaskSpec, place: Place, value: Any) -> float:
    low, high = spec.score_range
    try:
        score = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        score = math.nan
    if not low <= score <= high:
        raise place.fault("label", value, f"a number from {low:g} to {high:g}")
    return score


def _class_id(
    codes: Mapping[str, str], labels: Sequence[str], place: Place, value: Any
) -> int:
    written = str(value).lower() if isinstance(value, bool) else str(value)
    name = codes.get(written, "") if codes else written
    if name not in labels:
        raise place.fault("label", value, _either(codes or labels))
    return labels.index(name)


def _chosen(place: Place, field: str, raw: Mapping[str, Any]) -> Row:
    candidates = list(dict.fromkeys(_texts(place, field, raw[field])))
    answers = list(dict.fromkeys(_texts(place, "answers", raw["answers"])))
    if not set(answers) & set(candidates):
        expected = f"one of the {field}: {listed(candidates)}"
        raise place.fault("answers", answers[0], expected)
    return {field: candidates, "answers": answers}


def _answered(place: Place, context: str, raw: Mapping[str, Any]) -> Row:
    answers = _texts(place, "answers", raw["answers"])
    starts = raw["starts"]
    if not isinstance(starts, list) or len(starts) != len(answers):
        expected = f"a list of {len(answers)} positions, one an answer"
        raise place.fault("starts", starts, expected)
    for answer, start in zip(answers, starts, strict=True):
        if not _whole(start) or start < 0:
            raise place.fault("starts", start, "a position in the context")
        there = context[start : start + len(answer)]
        if there != answer:
            expected = (
                f"where the context says {_shown(answer)}; there it says "
                f"{_shown(there)}"
            )
            raise place.fault("starts", start, expected)
    # Several people's answers to a question often agree.
    pairs = dict.fromkeys(zip(answers, starts, strict=True))
    return {
        "answers": [answer for answer, _ in pairs],
        "starts": [start for _, start in pairs],
    }


def _words(spec: TaskSpec, place: Place, raw: Mapping[str, Any]) -> Row:
    words = raw["words"]
    if not isinstance(words, list) or not words:
        raise place.fault("words", words, "a list of words, at least one")
    for i, word in enumerate(words):
        if word == "":
            raise place.word(i).fault("words", word, "a word")
        # Files hold words of nothing but unusual spaces.
        _text(place.word(i), "words", word, blank=True)
    row: Row = {"words": list(words)}
    if spec.has_predicate:
        at = row["predicate"] = raw["predicate"]
        if not _whole(at) or not 0 <= at < len(words):
            expected = f"a position among the {len(words)} words, from 0"
            raise place.fault("predicate", at, expected)
    return row


def _tagged(spec: TaskSpec, place: Place, raw: Mapping[str, Any]) -> Row:
    row, tags = _words(spec, place, raw), raw["tags"]
    words = row["words"]
    if not isinstance(tags, list) or len(tags) != len(words):
        got = f"{len(tags)} tags" if isinstance(tags, list) else tags
        raise place.fault("tags", got, f"a list of {len(words)}, one a word")
    return row | {"tags": _tag_ids(spec, place, tags)}


def _tag_ids(spec: TaskSpec, place: Place, tags: Sequence[Any]) -> list[int]:
    names = spec.tag_names
    ids = []
    before = "O"
    for i, tag in enumerate(tags):
        if tag not in names:
            near = difflib.get_close_matches(str(tag), names, n=3)
            expected = f"a tag such as {listed(near or names[:9])}"
            raise place.word(i).fault("tags", tag, expected)
        # IOB1 begins a span with I- unless it touches another of its type.
        if tag.startswith("I-") and tag[2:] != before[2:]:
            tag = f"B-{tag[2:]}"
        ids.append(names.index(tag))
        before = tag
    return ids
