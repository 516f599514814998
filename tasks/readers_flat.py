"""Text files as lines, and the formats with one row a line.

A reader takes a task and a split's files and yields raw rows: where each was
found, and its fields as `tasks.rows.checked` takes them.
"""

import dataclasses
import pathlib
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from panda_jax.tasks.rows import Place, listed, row_fields
from panda_jax.tasks.spec import TaskSpec

from panda_jax.errors import UserError
from panda_jax.io.files import parse_json

Found = Iterator[tuple[Place, dict[str, Any]]]


@dataclasses.dataclass(frozen=True)
class Stream:
    """What stdin said, where a reader expects a file.

    Attributes:
      data: all of it.
      name: for messages.
    """

    data: bytes
    name: str = "stdin"

    def __str__(self) -> str:
        return self.name

    def read_bytes(self) -> bytes:
        """As `pathlib.Path`'s."""
        return self.data


File = pathlib.Path | Stream


def stdin() -> Stream:
    """All that stdin says.

    Raises:
      UserError: it cannot be read.
    """
    try:
        given: Any = sys.stdin
        if hasattr(given, "buffer"):
            return Stream(given.buffer.read())
        # A program may have put a text in its place.
        return Stream(given.read().encode("utf-8", "surrogatepass"))
    except (AttributeError, OSError, ValueError) as error:
        raise UserError(f"stdin cannot be read: {error}.") from None


def jsonl(spec: TaskSpec, paths: Sequence[File]) -> Found:
    """One JSON object a line."""
    keys = {
        field: str(spec.columns.get(field, field)) for field in row_fields(spec)
    }
    for place, value in json_lines(paths):
        yield (
            place,
            {
                field: _lookup(place, value, field, key)
                for field, key in keys.items()
            },
        )


def tsv(spec: TaskSpec, paths: Sequence[File]) -> Found:
    """Tab-separated columns under a header; quotes are text."""
    columns = {
        field: spec.columns.get(field, field) for field in row_fields(spec)
    }
    for path in paths:
        rest = lines(path)
        header = next(rest)[1].split("\t")
        for field, column in columns.items():
            if column not in header:
                expected = f"a header with the column {column!r}"
                raise Place(str(path), 1).fault(
                    field, "\t".join(header), expected
                )
        at = {field: header.index(str(name)) for field, name in columns.items()}
        yield from _cells(spec, path, rest, at, width=len(header))


def tsv_plain(spec: TaskSpec, paths: Sequence[File]) -> Found:
    """Tab-separated columns without a header; quotes are text."""
    at = {field: int(number) for field, number in spec.columns.items()}
    for path in paths:
        yield from _cells(spec, path, lines(path), at, width=spec.width)


def json_lines(paths: Sequence[File], *, gaps: bool = False) -> Found:
    """The JSON object on each line.

    Args:
      paths: of the files.
      gaps: whether lines may be blank, and are passed over.

    Raises:
      UserError: a line is not JSON, or not an object.
    """
    for path in paths:
        for number, line in lines(path):
            place = Place(str(path), number)
            if line.strip() or not gaps:
                yield place, json_object(place, line)


def json_object(place: Place, line: str) -> dict[str, Any]:
    """The JSON object that a line says.

    Raises:
      UserError: it says none.
    """
    try:
        value = parse_json(line)
    except ValueError as error:
        raise place.fault("(whole line)", line, f"JSON ({error})") from None
    if not isinstance(value, dict):
        raise place.fault("(whole line)", value, "a JSON object")
    return value


def lines(path: File) -> Iterator[tuple[int, str]]:
    """Numbered lines from 1; BOM, CR and blank lines at the end removed.

    Only a line feed ends a line: texts hold other characters that Python
    calls line ends.

    Raises:
      UserError: as `text`.
    """
    found = text(path).rstrip("\r\n").split("\n")
    for number, line in enumerate(found, start=1):
        yield number, line.rstrip("\r")


def text(path: File) -> str:
    """A file's text without BOM.

    Raises:
      UserError: it cannot be read, is blank or is not UTF-8.
    """
    data = contents(path)
    nul = data.find(b"\0")
    if nul >= 0:
        place = Place(str(path), data.count(b"\n", 0, nul) + 1)
        raise place.fault("(whole line)", "a NUL byte", "UTF-8 text")
    try:
        found = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # `error.start` does not count a BOM that the codec took off.
        bom = len(data) - len(error.object)
        place = Place(str(path), data.count(b"\n", 0, bom + error.start) + 1)
        got = error.object[error.start : error.start + 8]
        raise place.fault("(whole line)", got, "UTF-8 text") from None
    if not found.strip():
        raise no_rows(path)
    return found


def contents(path: File) -> bytes:
    """A file's bytes.

    Raises:
      UserError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"The file '{path}' cannot be read: {error}.") from None


def no_rows(path: File) -> UserError:
    """The error for a file that holds nothing."""
    return UserError(
        f"{path} has no rows, expected at least one. The file is incomplete: "
        "get or write it again."
    )


def _lookup(
    place: Place, value: Mapping[str, Any], field: str, key: str
) -> Any:
    found: Any = value
    for part in key.split("."):
        if not isinstance(found, dict) or part not in found:
            expected = f"the key {key!r}; it has: {listed(value)}"
            raise place.fault(field, "nothing", expected)
        found = found[part]
    return found


def _cells(
    spec: TaskSpec,
    path: File,
    rest: Iterator[tuple[int, str]],
    at: Mapping[str, int],
    *,
    width: int,
) -> Found:
    torn = 0
    for number, line in rest:
        place = Place(str(path), number)
        cells = line.split("\t")
        if spec.lenient and (len(cells) < width or not cells[at["label"]]):
            # A line end within a text: neither part of the row is one.
            torn += 1
            continue
        if len(cells) != width:
            expected = f"{width} tab-separated columns, not {len(cells)}"
            raise place.fault("(whole line)", line, expected)
        yield place, {field: cells[i] for field, i in at.items()}
    if torn:
        warnings.warn(
            f"{path}: {torn} lines lack a column and are left out.",
            RuntimeWarning,
            stacklevel=2,
        )
