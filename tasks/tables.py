"""Tables that users bring: CSV, TSV, JSON lines, Parquet, and rows in memory.

Rows come with their place, for messages, and with fields by name. Columns of a
file without a header are called `column 0`, `column 1` and so on.
"""

import csv
import io
import os
import pathlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from panda_jax.tasks import readers_flat
from panda_jax.tasks.rows import Place, listed

from panda_jax.errors import UserError, needs_extra

Rows = list[tuple[Place, dict[str, Any]]]
ENDINGS = (".csv", ".tsv", ".jsonl", ".parquet")


def read(path: str | os.PathLike[str], *, header: bool = True) -> Rows:
    """The rows of a file, by its ending; `-` is JSON lines on stdin.

    CSV may have line ends and commas in quotes; quotes in TSV are text.

    Args:
      path: of the file.
      header: whether the first line of CSV and TSV names the columns.

    Raises:
      UserError: another ending, no such file, or a line that is none of the
        format; names it.
    """
    if str(path) == "-":
        lines = enumerate(sys.stdin.read().splitlines(), start=1)
        return [
            (Place("stdin", n), readers_flat.json_object(Place("stdin", n), x))
            for n, x in lines
            if x.strip()
        ]
    file = pathlib.Path(path).expanduser()
    if file.suffix not in ENDINGS:
        raise UserError(
            f"The file '{file}' is none that is read as a table, expected the "
            f"ending {', '.join(ENDINGS)}."
        )
    if file.suffix == ".jsonl":
        rows = list(readers_flat.json_lines([file]))
    elif file.suffix == ".csv":
        rows = _csv(file, header)
    elif file.suffix == ".tsv":
        cells = [(n, x.split("\t")) for n, x in readers_flat.lines(file)]
        rows = _named(file, cells, header)
    else:
        rows = _parquet(file)
    if not rows:
        raise readers_flat.no_rows(file)
    return rows


def in_memory(rows: Any, what: str) -> Rows:
    """Rows that a program has: mappings, a pandas or a `datasets` table.

    Args:
      rows: an iterable of mappings, or what has `to_dict("records")`.
      what: they are called in messages.

    Raises:
      UserError: a row is no mapping, or there is none.
    """
    if hasattr(rows, "to_dict") and hasattr(rows, "columns"):
        rows = rows.to_dict("records")
    if isinstance(rows, Mapping) or not isinstance(rows, Iterable):
        raise UserError(
            f"{what} is of type {type(rows).__name__}, expected rows: a list "
            "of dictionaries, a pandas or a datasets table, or a file's path."
        )
    found = []
    for number, row in enumerate(rows, start=1):
        place = Place(what, number, unit="row")
        if not isinstance(row, Mapping):
            raise place.fault("(whole row)", row, "a dictionary of fields")
        found.append((place, {str(k): _plain(v) for k, v in row.items()}))
    if not found:
        raise UserError(f"{what} has no rows, expected at least one.")
    return found


def look_up(place: Place, row: Mapping[str, Any], name: str) -> Any:
    """A field by its name; `a.b` is also field b of the field a.

    Raises:
      UserError: there is none; says which there are.
    """
    found: Any = row
    if name in row:
        return row[name]
    for part in name.split("."):
        if not isinstance(found, Mapping) or part not in found:
            expected = f"the field; it has: {listed(row)}"
            raise place.fault(name, "nothing", expected)
        found = found[part]
    return found


def _csv(file: pathlib.Path, header: bool) -> Rows:
    lines = csv.reader(io.StringIO(readers_flat.text(file), newline=""))
    cells, begin = [], 1
    try:
        for row in lines:
            if row:
                cells.append((begin, row))
            begin = lines.line_num + 1
    except csv.Error as error:
        place = Place(str(file), lines.line_num)
        raise place.fault("(whole line)", str(error), "CSV") from None
    return _named(file, cells, header)


def _named(
    file: pathlib.Path,
    cells: Sequence[tuple[int, list[str]]],
    header: bool,
) -> Rows:
    """Cells under the names of their columns."""
    number, names = cells[0]
    if header:
        cells = cells[1:]
        twice = [name for name in names if names.count(name) > 1]
        if twice or "" in names:
            raise Place(str(file), number).fault(
                "(header)", ",".join(names), "a name a column, each once"
            )
    else:
        names = [f"column {i}" for i in range(len(names))]
    rows = []
    for number, row in cells:
        if len(row) != len(names):
            expected = f"{len(names)} columns, not {len(row)}"
            place = Place(str(file), number)
            raise place.fault("(whole line)", ",".join(row), expected)
        rows.append(
            (Place(str(file), number), dict(zip(names, row, strict=True)))
        )
    return rows


def _parquet(file: pathlib.Path) -> Rows:
    with needs_extra("data", f"Reading '{file}'"):
        from pyarrow import parquet
    try:
        rows = parquet.read_table(file).to_pylist()
    except (OSError, ValueError) as error:
        raise UserError(
            f"The file '{file}' is no Parquet file: {error}."
        ) from None
    return [
        (Place(str(file), n, unit="row"), row)
        for n, row in enumerate(rows, start=1)
    ]


def _plain(value: Any) -> Any:
    """NumPy's numbers and arrays as Python's."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return list(value) if isinstance(value, tuple) else value
