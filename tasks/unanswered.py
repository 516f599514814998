"""Rows that are to be answered, in whatever layout users have them.

A task's own files, labelled or not (SuperGLUE's JSON lines, GLUE's TSV, SQuAD's
JSON, the CoNLL formats), tables with the task's field names, and rows in
memory. Nothing of an answer is looked at, or asked for; what a row is known by
is kept.
"""

import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from panda_jax.tasks import (
    own,
    readers_conll,
    readers_flat,
    readers_nested,
    tables,
)
from panda_jax.tasks.readers_flat import File, Found
from panda_jax.tasks.rows import Place, Row, checked, listed, row_fields
from panda_jax.tasks.spec import TaskSpec

from panda_jax.errors import UserError, unknown_name
from panda_jax.io.files import parse_json

# What rows are known by: SuperGLUE's, GLUE's, SQuAD's. Others by their number.
KEYS = ("idx", "index", "id")
NUMBER = "row"
_SQUAD = {"data", "version"}
_MISSING = object()


class Asked(NamedTuple):
    """A row that is to be answered.

    Attributes:
      row: as `TaskSpec` says, with an answer that says nothing.
      key: the field that it is known by, and what that says; else its number
        among the rows, from 0.
      fields: as they came.
    """

    row: Row
    key: dict[str, Any]
    fields: dict[str, Any]


def read(
    spec: TaskSpec,
    rows: Any,
    *,
    format: str | None = None,
    text: Sequence[str] | str | None = None,
    tell: Callable[[str], None] | None = None,
) -> list[Asked]:
    """Rows without answers.

    Args:
      spec: the task.
      rows: a file's path, `-` for stdin, or rows in memory as
        `tables.in_memory` takes them.
      format: of the file, one of `tables.FORMATS`. By default what its ending
        says, else what it looks like.
      text: what the rows call the fields that the task asks for, in their
        order, where they call them otherwise; column numbers, from 0, of a
        file without a header.
      tell: is told in a sentence what was guessed.

    Raises:
      UserError: names file, line, and a field that is there or must be.
    """
    names = own.listed_names(text)
    numbered = bool(names) and all(name.isdecimal() for name in names)
    if numbered:
        names = [f"column {name}" for name in names]
    spec = _renamed(spec, names)
    if not isinstance(rows, str | os.PathLike):
        if isinstance(rows, list | tuple) and not rows:
            raise UserError("There is no row to answer.")
        found = _nested(spec, tables.in_memory(rows, "the rows"))
    else:
        header = not numbered and not _is_numbered(spec)
        found = _of_file(spec, os.fspath(rows), format, header, tell)
    asked = []
    for number, (place, raw) in enumerate(found):
        for name in names:
            tables.look_up(place, raw, name)
        asked.append(_asked(spec, place, raw, number))
    if not asked:
        raise UserError("There is no row to answer.")
    return asked


def _renamed(spec: TaskSpec, names: Sequence[str]) -> TaskSpec:
    """The task with what these rows call its fields.

    Raises:
      UserError: it asks for more or fewer.
    """
    if not names:
        return spec
    asked = row_fields(spec, answered=False)
    if len(names) != len(asked):
        raise UserError(
            f"--text names {listed(names)}; task {spec.name!r} asks for "
            f"{len(asked)} fields: {listed(_known(spec, asked))}."
        )
    columns = {**spec.columns, **dict(zip(asked, names, strict=True))}
    return dataclasses.replace(spec, columns=columns)


def _is_numbered(spec: TaskSpec) -> bool:
    """Whether the task was made of a file without a header."""
    return spec.reader == own.READER and all(
        re.fullmatch(r"column \d+", str(name)) for name in spec.columns.values()
    )


def _known(spec: TaskSpec, fields: Iterable[str]) -> list[str]:
    """Fields as the user of an own task knows them."""
    if spec.reader != own.READER:
        return list(fields)
    return [str(spec.columns.get(field, field)) for field in fields]


# --- where the rows are ------------------------------------------------------


def _of_file(
    spec: TaskSpec,
    path: str,
    format: str | None,
    header: bool,
    tell: Callable[[str], None] | None,
) -> Found:
    if format is not None and format not in tables.FORMATS:
        raise unknown_name("input_format", format, tables.FORMATS)
    files = [tables.opened(part) for part in _parts(spec, path)]
    for file in files:
        if isinstance(file, pathlib.Path) and not file.exists():
            raise UserError(
                f"The input {str(file)!r} is no file. Give one (--input=FILE), "
                "or - for stdin."
            )
    first = files[0]
    guessed = format or tables.format_of(first)
    if guessed is None:
        # The CoNLL formats have endings of every kind.
        shaped = spec.reader.startswith("conll")
        looks = tables.sniffed(first)
        tabled = looks in ("csv", "tsv")
        guessed = "conll" if shaped and tabled else looks
        if tell is not None:
            tell(f"{first} is read as {tables.FORMATS[guessed]}.")
    if guessed == "conll" and spec.reader.startswith("conll"):
        return readers_conll.questions(spec, files)
    if len(files) > 1:
        raise UserError(f"{path!r} names {len(files)} files, expected one.")
    if guessed == "tsv":
        return _tsv(spec, first, header)
    return _nested(spec, tables.parsed(first, guessed, header=header))


def _parts(spec: TaskSpec, path: str) -> list[str]:
    """The files that an input names: CoNLL-2005's are two, with a comma."""
    if spec.reader == "conll_props" and not os.path.exists(path):
        return path.split(",")
    return [path]


def _tsv(spec: TaskSpec, file: File, header: bool) -> Found:
    """GLUE's columns, under a header or as the task's files have them."""
    if spec.reader == "tsv_plain" and header:
        # Its files have no header; those of the test rows do.
        cells = next(readers_flat.lines(file))[1].split("\t")
        fields = row_fields(spec, answered=False)
        header = any(set(_names(spec, field)) & set(cells) for field in fields)
    rows = tables.parsed(file, "tsv", header=header, torn=spec.lenient)
    yield from _nested(spec, rows)


def _nested(spec: TaskSpec, table: Iterable[tuple[Place, Any]]) -> Found:
    """A row a question, where an object holds several."""
    for place, value in table:
        if spec.reader == "multirc" and isinstance(value.get("passage"), dict):
            yield from readers_nested.paragraph_rows(place, value)
        elif spec.reader == "record" and isinstance(value.get("passage"), dict):
            yield from readers_nested.passage_rows(place, value, answered=False)
        elif spec.reader == "squad" and {"data"} <= value.keys() <= _SQUAD:
            place = place._replace(line=1, unit="question")
            yield from readers_nested.article_rows(place, value, answered=False)
        else:
            yield place, value


# --- what a row says ---------------------------------------------------------


def _asked(
    spec: TaskSpec, place: Place, fields: dict[str, Any], number: int
) -> Asked:
    if spec.reader == own.READER:
        named, raw = own.raw_row(spec, place, fields, answered=False)
    else:
        named, raw = _task_row(spec, place, fields)
    row = checked(spec, named, raw, coded=False, answered=False)
    return Asked(row, _key(spec, place, fields, number), fields)


def _task_row(
    spec: TaskSpec, place: Place, fields: Mapping[str, Any]
) -> tuple[Place, dict[str, Any]]:
    """The fields under the task's names, and where, by the row's own."""
    raw, names = {}, {}
    for field in row_fields(spec, answered=False):
        found = (
            (name, value)
            for name in _names(spec, field)
            if (value := _look_up(fields, name)) is not _MISSING
        )
        name, value = next(found, (field, _MISSING))
        if value is not _MISSING:
            raw[field], names[field] = _spelled(spec, field, value), name
        elif field not in spec.pointed[2:]:  # needed where the text is unclear
            other = spec.columns.get(field, field)
            known = isinstance(other, int) or other == field
            also = "" if known else f", or {other!r}"
            expected = f"the field{also}; it has: {listed(fields)}"
            raise place.fault(field, "nothing", expected)
    if spec.group:
        index = fields.get("idx")
        if spec.group in fields:
            raw[spec.group] = fields[spec.group]
        elif isinstance(index, dict):
            parts = (index.get("paragraph"), index.get("question"))
            raw[spec.group] = "-".join(map(str, parts))
    return place._replace(names=names), raw


def _names(spec: TaskSpec, field: str) -> Iterator[str]:
    """What rows may call a field: as the task's files, by its name, as TFDS."""
    column = spec.columns.get(field, field)
    yield f"column {column}" if isinstance(column, int) else column
    yield field
    if field in spec.tfds_columns:
        yield spec.tfds_columns[field]
    if field == "words":
        yield "tokens"


def _look_up(fields: Mapping[str, Any], name: str) -> Any:
    if name in fields:
        return fields[name]
    found: Any = fields
    for part in name.split("."):
        if not isinstance(found, Mapping) or part not in found:
            return _MISSING
        found = found[part]
    return found


def _spelled(spec: TaskSpec, field: str, value: Any) -> Any:
    """Lists and positions, which a cell of a table can but spell."""
    if not isinstance(value, str):
        return value
    if field == "words":
        return value.split()
    if field in ("predicate", *spec.pointed[2:]):
        return int(value) if re.fullmatch(r"[0-9]{1,9}", value) else value
    if spec.listed_choices and field == spec.choices[0]:
        try:
            found = parse_json(value)
        except ValueError:
            return value
        return found if isinstance(found, list) else value
    return value


def _key(
    spec: TaskSpec, place: Place, fields: Mapping[str, Any], number: int
) -> dict[str, Any]:
    """The field that a row is known by, unless the task reads it as a text."""
    taken = set(spec.columns.values()) if spec.reader == own.READER else ()
    for name in KEYS:
        value = fields.get(name)
        if name in taken or value is None or value == "":
            continue
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # pandas' column of ids of which some lack
        if isinstance(value, dict):
            value = {str(k): v for k, v in value.items() if v is not None}
            if not value:
                continue
        parts = value.values() if isinstance(value, dict) else [value]
        if not all(map(_is_key, parts)):
            raise place.fault(name, value, "a whole number or a text")
        return {name: value}
    return {NUMBER: number}


def _is_key(value: Any) -> bool:
    """Whether rows can be known by it, and a file can hold it."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return False
        return True
    return isinstance(value, int) and not isinstance(value, bool)


def plain(value: Any) -> Any:
    """A field as JSON and UTF-8 can hold it, whatever a file had there."""
    if isinstance(value, dict):
        return {plain(str(k)): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return None if isinstance(value, float) else plain(str(value))
    return value
