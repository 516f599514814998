"""Tasks of the user's own rows, made of a few words about their columns.

The kind of task, its labels and their order follow from the rows by fixed
rules, or are given. The rows stay in this process; what the task is goes with
each prompt that learns it, so that `predict` knows it anywhere.
"""

import dataclasses
import hashlib
import json
import os
import re
import string
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from panda_jax.tasks import specs, tables
from panda_jax.tasks.rows import Place, Row, checked, listed
from panda_jax.tasks.spec import ALL_SPLITS, TaskSpec

from panda_jax.errors import UserError

READER = "own"
KINDS = ("classification", "regression", "choice", "tags")
# More values than this, all of them numbers, are a score and no classes.
_MOST_CLASSES = 20
# Of the training rows, where no rows to validate on are given.
_CARVED = 0.2
_METRICS = {
    "classification": ("accuracy", "f1"),
    "regression": ("pearson_spearman",),
    "choice": ("accuracy",),
    "tags": ("span_f1",),
}
# What templates and rows call otherwise.
_TAKEN = ("choice", "words", "predicate", "label", "answers", "tags")
# What of a specification a prompt keeps.
_KEPT = (
    "name", "kind", "text_a", "text_b", "choices", "labels", "metrics",
    "columns", "score_range",
)  # fmt: skip
_BOUNDLESS = (-1e30, 1e30)

Tables = Mapping[str, tables.Rows]
_ROWS: dict[str, dict[str, list[Row]]] = {}


@dataclasses.dataclass(frozen=True)
class OwnSource:
    """The rows of a task of the user's own, as far as they were given."""

    spec: TaskSpec

    def __str__(self) -> str:
        return "rows of your own"

    def fingerprint(self, split: str) -> str:
        """sha256 of the rows."""
        text = json.dumps(self.rows(split), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def rows(self, split: str) -> list[Row]:
        """The rows of a split.

        Raises:
          UserError: none were given.
        """
        found = _ROWS.get(self.spec.name, {})
        if split not in found:
            raise UserError(
                f"Task {self.spec.name!r} is of rows of your own, and none "
                f"were given for {split}: give --{split}_file=FILE."
            )
        return [dict(row) for row in found[split]]


def add(
    given: Mapping[str, Any],
    *,
    text: Sequence[str] | str | None = None,
    label: str | None = None,
    kind: str | None = None,
    labels: Sequence[str] | None = None,
    name: str | None = None,
) -> TaskSpec:
    """Makes a task of rows and registers it.

    Args:
      given: split -> a file's path, or rows in memory (see `tables`); of
        train, validation and test those that there are. Without validation
        a fifth of the training rows is carved out, by label and by what the
        rows say, so that the same rows always fall to the same side.
      text: the fields of the texts, a first and, if there are more, a second,
        which the others are appended to; column numbers, from 0, of files
        without a header. None where a prompt has brought the task.
      label: the field of the answer, likewise.
      kind: one of `KINDS`. By default: lists of words with as many tags are
        tags; a list of candidates, or the name or number of one of the texts,
        is a choice where it is said to be; numbers with fractions, or more
        than twenty different ones, are scores; all else are classes.
      labels: the classes in the order of their ids. By default all that occur
        in any split, whole numbers by value and else in alphabetical order.
      name: of the task; by default that of the training file.

    Raises:
      UserError: names file, line and field.
    """
    text = listed_names(text)
    first = next((x for x in given.values() if x is not None), None)
    name = name or name_of(first)
    known = specs.get(name) if name in specs.names() else None
    if known is not None and known.reader != READER:
        raise UserError(
            f"{name!r} is a task that is there already: give your rows another "
            "name (--task=NAME)."
        )
    named = [*text, *([label] if label else ())]
    if known is not None and not text:
        named = [
            str(field).removeprefix("column ")
            for field in known.columns.values()
        ]
    numbered = bool(named) and all(part.isdecimal() for part in named)
    found = {
        split: _rows(given[split], split, header=not numbered)
        for split in ALL_SPLITS
        if given.get(split) is not None
    }
    if not found:
        raise UserError("No rows are given: give --train_file=FILE.")
    if numbered:
        text = [f"column {part}" for part in text]
        label = f"column {label}" if label else None
    if known is not None and not text:
        spec = known
    else:
        spec = _specified(name, found, text, label, kind, labels)
    rows = {split: _checked(spec, table) for split, table in found.items()}
    if "train" in rows and "validation" not in rows:
        rows["train"], rows["validation"] = _carved(spec, rows["train"])
    specs.register(spec)
    _ROWS[name] = rows if "train" in rows else {**_ROWS.get(name, {}), **rows}
    return spec


def said(spec: TaskSpec) -> str:
    """One line about a task of one's own, for who gave the rows."""
    counts = ", ".join(
        f"{len(rows)} {split}" for split, rows in _ROWS[spec.name].items()
    )
    what = {
        "classification": f"classes {listed(spec.labels)}",
        "regression": "scores",
        "choice": "a choice of candidates",
        "tags": f"tags of {listed(spec.labels)}",
    }[spec.kind]
    shown = spec.text_a + (f" | {spec.text_b}" if spec.text_b else "")
    return f"Task {spec.name}: {what}, by {shown}; rows: {counts}."


def to_json(spec: TaskSpec) -> dict[str, Any] | None:
    """What a prompt keeps of a task of the user's own; None of another."""
    if spec.reader != READER:
        return None
    return {name: getattr(spec, name) for name in _KEPT}


def adopt(kept: Mapping[str, Any]) -> TaskSpec:
    """Registers the task that a prompt brings, unless it is there.

    Raises:
      UserError: it is no such task, or another of its name is there.
    """
    wrong = [n for n in _KEPT if not isinstance(kept.get(n), _TYPES[n])]
    templates = f"{kept.get('text_a')}{kept.get('text_b') or ''}"
    names = [] if wrong else _template_fields(templates)
    if wrong or not all(map(_is_plain, names)) or kept["kind"] not in KINDS:
        raise UserError(
            "the task that it brings is none: expected "
            f"{', '.join(wrong or _KEPT)} as panda_jax writes them"
        )
    values = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in kept.items()
        if name in _KEPT
    }
    spec = TaskSpec(description=_DESCRIPTION, reader=READER, **values)
    if spec.name in specs.names():
        there = specs.get(spec.name)
        if there.reader != READER:
            return there
        if to_json(there) != to_json(spec):
            _ROWS.pop(spec.name, None)
    return specs.register(spec)


_DESCRIPTION = "Rows of the user's own."
_TYPES: dict[str, Any] = {
    **dict.fromkeys(("name", "kind", "text_a"), str),
    "text_b": str | None,
    **dict.fromkeys(("choices", "labels", "metrics"), list | tuple),
    "columns": dict,
    "score_range": list | tuple,
}


def listed_names(names: Sequence[str] | str | None) -> list[str]:
    """Names of fields, from one text with commas or several."""
    if isinstance(names, str):
        names = names.split(",")
    return [str(name).strip() for name in names or ()]


def _rows(given: Any, split: str, *, header: bool) -> tables.Rows:
    if isinstance(given, str | os.PathLike):
        return tables.read(given, header=header)
    return tables.in_memory(given, f"the {split} rows")


def name_of(rows: Any) -> str:
    """A task's name for rows: that of their file."""
    if not isinstance(rows, str | os.PathLike):
        return "own"
    stem = os.path.basename(os.fspath(rows)).partition(".")[0]
    return re.sub(r"\W+", "_", stem).strip("_").lower() or "own"


def _specified(
    name: str,
    found: Tables,
    text: Sequence[str],
    label: str | None,
    kind: str | None,
    labels: Sequence[str] | None,
) -> TaskSpec:
    """The task that rows are of."""
    if not text or label is None:
        fields = listed(next(iter(found.values()))[0][1])
        raise UserError(
            f"Of rows of your own the fields of texts and answer must be named "
            f"(--text=FIELD,FIELD --label=FIELD); they have: {fields}."
        )
    if kind not in (None, *KINDS):
        raise UserError(f"kind is {kind!r}, expected {' or '.join(KINDS)}.")
    rows = [x for split in ALL_SPLITS for x in found.get(split, ())]
    answers = [
        (place, tables.look_up(place, row, label)) for place, row in rows
    ]
    first = tables.look_up(*rows[0], text[0])
    lists = [
        field
        for field in text
        if isinstance(tables.look_up(*rows[0], field), list)
    ]
    if kind is None:
        kind = _inferred(first, lists, [answer for _, answer in answers])
    columns = {_inner(field): field for field in text}
    columns["label"] = label
    shown = [f"{{{_inner(field)}}}" for field in text]
    common = {
        "name": name,
        "kind": kind,
        "description": _DESCRIPTION,
        "reader": READER,
        "metrics": _METRICS[kind],
        "columns": columns,
    }
    if kind == "tags":
        if len(text) != 1:
            raise UserError("Tags are of one text field: give --text=FIELD.")
        types = labels or sorted(
            {
                tag[2:]
                for place, answer in answers
                for tag in _words(place, label, answer)
                if tag != "O"
            }
        )
        columns = {"words": text[0], "tags": label}
        return TaskSpec(
            **common | {"columns": columns},
            text_a="{words}",
            labels=tuple(types),
        )
    if kind == "choice":
        return _of_choices(common, text, lists)
    second = " ".join(shown[1:]) or None
    if kind == "regression":
        return TaskSpec(
            **common, text_a=shown[0], text_b=second, score_range=_BOUNDLESS
        )
    names = list(map(str, labels or _classes(answers, label)))
    if len(names) < 2:
        raise UserError(
            f"The field {label!r} has one value alone, {names[0]!r}, expected "
            "two classes at least."
        )
    return TaskSpec(
        **common, text_a=shown[0], text_b=second, labels=tuple(names)
    )


def _inferred(first: Any, lists: Sequence[str], answers: Sequence[Any]) -> str:
    if isinstance(first, list):
        return "tags"
    if lists:
        return "choice"
    numbers = [_number(answer) for answer in answers]
    if all(number is not None for number in numbers):
        whole = all(number == int(number or 0) for number in numbers)
        if not whole or len(set(numbers)) > _MOST_CLASSES:
            return "regression"
    return "classification"


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if abs(number) < _BOUNDLESS[1] else None


def _classes(
    answers: Sequence[tuple[Place, Any]], label: str
) -> Collection[str]:
    """All classes, whole numbers by value, else in alphabetical order."""
    for place, answer in answers:
        plain = isinstance(answer, str | int | float)
        if not plain or not str(answer).strip():
            raise place.fault(label, answer, "a class: a text or a number")
    names = {_written(answer) for _, answer in answers}
    if len(names) > max(_MOST_CLASSES, len(answers) / 2):
        raise UserError(
            f"The field {label!r} has {len(names)} different values in "
            f"{len(answers)} rows, which are no classes. Give --kind, or "
            "another --label."
        )
    if all(re.fullmatch(r"-?\d{1,18}", name) for name in names):
        return sorted(names, key=int)
    return sorted(names)


def _written(answer: Any) -> str:
    """A class as a text; JSON's and pandas' 1.0 is 1."""
    if isinstance(answer, bool):
        return str(answer)
    if isinstance(answer, float) and answer.is_integer():
        return str(int(answer))
    return str(answer).strip()


def _of_choices(
    common: dict[str, Any], text: Sequence[str], lists: Sequence[str]
) -> TaskSpec:
    """Candidates in a list, or in all fields but the first."""
    asked = [field for field in text if field not in lists]
    if len(lists) > 1 or not asked or (not lists and len(text) < 3):
        raise UserError(
            "A choice has a text, and one field with a list of candidates or "
            f"two and more fields with one each; --text names {listed(text)}."
        )
    if lists:
        return TaskSpec(
            **common | {"metrics": ("answer_exact_match",)},
            text_a=" ".join(f"{{{_inner(field)}}}" for field in asked),
            text_b="{choice}",
            choices=(_inner(lists[0]),),
        )
    return TaskSpec(
        **common,
        text_a=f"{{{_inner(text[0])}}}",
        text_b="{choice}",
        choices=tuple(map(_inner, text[1:])),
        labels=tuple(map(_inner, text[1:])),
    )


def _inner(field: str) -> str:
    """A field's name as templates may say it."""
    name = re.sub(r"[.\[\]{}!:]", "/", field)
    if name in _TAKEN or name.isdecimal():
        name = f"the {name}"
    return name


def _template_fields(template: str) -> list[str]:
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError:
        return ["."]
    return [name or "." for _, name, _, _ in parts if name is not None]


def _is_plain(field: str) -> bool:
    """Whether a template's field is a name alone, which reaches for nothing."""
    return _inner(field) == field or field in ("choice", "words")


def _words(place: Place, field: str, value: Any) -> list[str]:
    """A list of words or tags; a text is split at blanks."""
    words = value.split() if isinstance(value, str) else value
    if not isinstance(words, list) or not all(
        isinstance(word, str) for word in words
    ):
        raise place.fault(field, value, "a list of words, or words in a text")
    return words


def raw_row(
    spec: TaskSpec, place: Place, row: Mapping[str, Any], *, answered: bool
) -> tuple[Place, dict[str, Any]]:
    """A row under the names that the task has for its fields.

    Returns:
      Its place, which knows what the row itself calls them; and its fields.
    """
    raw, names = {}, {}
    for inner, field in spec.columns.items():
        if inner in ("label", "tags") and not answered:
            continue
        name = str(field)
        if inner in row and name not in row:
            name = inner
        names[inner] = name
        value = tables.look_up(place, row, name)
        if inner in ("words", "tags"):
            value = _words(place, name, value)
        elif inner in spec.fields and isinstance(value, int | float):
            value = _written(value)
        raw[inner] = value
    names["answers"] = names.get("label", "answers")
    place = place._replace(names=names)
    if answered:
        raw |= _answer(spec, place, raw)
    return place, raw


def _answer(
    spec: TaskSpec, place: Place, raw: Mapping[str, Any]
) -> dict[str, Any]:
    """The answer as the task has it."""
    if spec.listed_choices:
        return {"answers": [_chosen(spec, place, raw)]}
    if spec.kind == "choice":
        answer = _written(raw["label"])
        names = list(spec.labels)
        # Python reads no number of thousands of digits.
        short = answer.isdecimal() and len(answer) < 9
        numbered = short and int(answer) < len(names)
        return {"label": names[int(answer)] if numbered else _inner(answer)}
    if spec.kind == "classification":
        return {"label": _written(raw["label"])}
    return {}


def _chosen(spec: TaskSpec, place: Place, raw: Mapping[str, Any]) -> Any:
    """The right candidate's text, which rows name or count from 0."""
    candidates, answer = raw[spec.choices[0]], raw["label"]
    if isinstance(answer, int) and isinstance(candidates, list):
        if not 0 <= answer < len(candidates):
            expected = f"one of {len(candidates)} candidates, from 0"
            raise place.fault("label", answer, expected)
        return str(candidates[answer])
    return str(answer) if isinstance(answer, int) else answer


def _checked(spec: TaskSpec, table: tables.Rows) -> list[Row]:
    return [
        checked(spec, *raw_row(spec, place, row, answered=True))
        for place, row in table
    ]


def _carved(spec: TaskSpec, rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Rows to train and to validate on, by label; the same ones always."""
    groups: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        classes = spec.kind == "classification"
        groups.setdefault(str(row["label"]) if classes else "", []).append(
            number
        )
    if len(rows) < 2:
        raise UserError(
            f"Task {spec.name!r} has one row to train on, of which none can "
            "be kept to validate on: give --validation_file=FILE."
        )
    held: set[int] = set()
    for numbers in groups.values():
        order = sorted(
            numbers,
            key=lambda n: hashlib.sha256(
                json.dumps(rows[n], sort_keys=True).encode()
            ).digest(),
        )
        count = round(len(order) * _CARVED)
        held.update(order[: max(count, 1) if len(order) > 1 else 0])
    return (
        [row for n, row in enumerate(rows) if n not in held],
        [row for n, row in enumerate(rows) if n in held],
    )
