"""Reads the distribution files of a task and checks every row.

A row is a dict of the task's text fields and `label`: a class id, or a float
for regression.  Every fault is a `UserError` that names file, line and field.
"""

import hashlib
import json
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from panda_jax.tasks.spec import TaskSpec

from panda_jax.errors import UserError

Row = dict[str, str | int | float]


class Place(NamedTuple):
    """Where a raw row was found, for messages."""

    path: str
    line: int
    unit: str = "line"

    def fault(self, field: str, got: object, expected: str) -> UserError:
        """The error for one field of this row."""
        shown = repr(got)
        shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
        return UserError(
            f"{self.path}, {self.unit} {self.line}, field {field!r}: got "
            f"{shown}, expected {expected}."
        )


def paths(spec: TaskSpec, split: str, folder: str) -> list[pathlib.Path]:
    """The files of a split.

    Raises:
      UserError: the folder or a file is missing; says the layout expected.
    """
    root = pathlib.Path(folder).expanduser()
    wanted = [root / name for name in spec.files[split]]
    missing = [path for path in wanted if not path.is_file()]
    if not missing:
        return wanted
    what = (
        f"The file '{missing[0]}'"
        if root.is_dir()
        else f"The data folder '{root}'"
    )
    layout = ", ".join(name for names in spec.files.values() for name in names)
    raise UserError(
        f"{what} does not exist. Task {spec.name!r} expects {layout} under "
        "the folder given by --data_dir (or PANDA_DATA_DIR), as the "
        "data set's authors ship them. Without a data folder TFDS is used."
    )


def fingerprint(spec: TaskSpec, split: str, folder: str) -> str:
    """sha256 of the contents of a split's files."""
    digest = hashlib.sha256()
    for path in paths(spec, split, folder):
        digest.update(hashlib.sha256(_bytes(path)).digest())
    return digest.hexdigest()


def read(spec: TaskSpec, split: str, folder: str) -> list[Row]:
    """All rows of a split, in file order, checked.

    Raises:
      UserError: a file is missing, unreadable, empty or holds a bad row.
    """
    rows = []
    for path in paths(spec, split, folder):
        found = [
            checked(spec, place, raw)
            for place, raw in READERS[spec.reader](spec, path)
        ]
        if not found:
            raise UserError(
                f"{path} has no rows, expected at least one. The download "
                "is incomplete: get the file again."
            )
        rows += found
    return rows


def checked(
    spec: TaskSpec, place: Place, raw: Mapping[str, Any], *, coded: bool = True
) -> Row:
    """A row from raw fields: texts as they are, the label as id or float.

    Args:
      spec: the task.
      place: where the row is, for messages.
      raw: the fields and `label` as found.
      coded: whether the label is written as the task's files write it, else
        as the class name.

    Raises:
      UserError: a field is missing or cannot be right.
    """
    for field in (*spec.fields, "label"):
        if field not in raw:
            keys = ", ".join(map(str, raw)) or "none"
            raise place.fault(field, "nothing", f"the field; it has: {keys}")
    row: Row = {}
    for field in spec.fields:
        text = raw[field]
        if not isinstance(text, str) or not text.strip():
            raise place.fault(field, text, "a text that is not empty")
        try:
            text.encode()
        except UnicodeEncodeError:
            # JSON can spell half of a surrogate pair, which is no character.
            raise place.fault(field, text, "Unicode text") from None
        row[field] = text
    label = raw["label"]
    if spec.kind == "regression":
        row["label"] = _score(spec, place, label)
    else:
        row["label"] = _class_id(
            spec.label_values if coded else {}, spec.labels, place, label
        )
    return row


def _score(spec: TaskSpec, place: Place, value: Any) -> float:
    low, high = spec.score_range
    try:
        score = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
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
        expected = " or ".join(map(repr, codes or labels))
        raise place.fault("label", value, expected)
    return labels.index(name)


def _jsonl(
    spec: TaskSpec, path: pathlib.Path
) -> Iterator[tuple[Place, dict[str, Any]]]:
    """One JSON object a line."""
    keys = {field: field for field in (*spec.fields, "label")} | spec.columns
    for number, line in _lines(path):
        place = Place(str(path), number)
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise place.fault("(whole line)", line, f"JSON ({error})") from None
        if not isinstance(value, dict):
            raise place.fault("(whole line)", line, "a JSON object")
        if any(key not in value for key in keys.values()):
            yield place, value
        else:
            yield place, {field: value[key] for field, key in keys.items()}


def _tsv(
    spec: TaskSpec, path: pathlib.Path
) -> Iterator[tuple[Place, dict[str, Any]]]:
    """Tab-separated columns under a header; quotes are text."""
    lines = _lines(path)
    header = next(lines, (1, ""))[1].split("\t")
    columns: dict[str, str | int] = {
        field: field for field in (*spec.fields, "label")
    }
    columns |= spec.columns
    for field, column in columns.items():
        if column not in header:
            expected = f"a header with the column {column!r}"
            raise Place(str(path), 1).fault(field, "\t".join(header), expected)
    at = {field: header.index(str(name)) for field, name in columns.items()}
    yield from _cells(path, lines, at, width=len(header))


def _tsv_plain(
    spec: TaskSpec, path: pathlib.Path
) -> Iterator[tuple[Place, dict[str, Any]]]:
    """Tab-separated columns without a header; quotes are text."""
    at = {field: int(number) for field, number in spec.columns.items()}
    yield from _cells(path, _lines(path), at, width=spec.width)


def _cells(
    path: pathlib.Path,
    lines: Iterator[tuple[int, str]],
    at: Mapping[str, int],
    *,
    width: int,
) -> Iterator[tuple[Place, dict[str, Any]]]:
    for number, line in lines:
        place = Place(str(path), number)
        cells = line.split("\t")
        if len(cells) != width:
            expected = f"{width} tab-separated columns, not {len(cells)}"
            raise place.fault("(whole line)", line, expected)
        yield place, {field: cells[i] for field, i in at.items()}


def _lines(path: pathlib.Path) -> Iterator[tuple[int, str]]:
    """Numbered lines from 1; BOM, CR and blank lines at the end removed.

    Only a line feed ends a line: texts hold other characters that Python
    calls line ends.
    """
    data = _bytes(path)
    nul = data.find(b"\0")
    if nul >= 0:
        place = Place(str(path), data.count(b"\n", 0, nul) + 1)
        raise place.fault("(whole line)", "a NUL byte", "UTF-8 text")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # `error.start` does not count a BOM that the codec took off.
        bom = len(data) - len(error.object)
        place = Place(str(path), data.count(b"\n", 0, bom + error.start) + 1)
        got = error.object[error.start : error.start + 8]
        raise place.fault("(whole line)", got, "UTF-8 text") from None
    lines = text.rstrip("\r\n").split("\n") if text.strip() else []
    for number, line in enumerate(lines, start=1):
        yield number, line.rstrip("\r")


def _bytes(path: pathlib.Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"The file '{path}' cannot be read: {error}.") from None


READERS = {"jsonl": _jsonl, "tsv": _tsv, "tsv_plain": _tsv_plain}
