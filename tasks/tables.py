"""Tables that users bring: files of several formats, and rows in memory.

Rows come with their place, for messages, and with fields by name. Columns of a
file without a header are called `column 0`, `column 1` and so on.
"""

import csv
import io
import json
import math
import os
import pathlib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from panda_jax.tasks import readers_conll, readers_flat, readers_nested
from panda_jax.tasks.readers_flat import File
from panda_jax.tasks.rows import Place, listed

from panda_jax.errors import UserError, first_line, needs_extra
from panda_jax.io.files import parse_json

Rows = list[tuple[Place, dict[str, Any]]]
FORMATS = {
    "csv": "CSV",
    "tsv": "tab-separated columns",
    "jsonl": "JSON lines",
    "json": "one JSON value",
    "conll": "columns, a word a line",
    "parquet": "Parquet",
}
ENDINGS = tuple(f".{name}" for name in FORMATS)


def opened(path: str | os.PathLike[str]) -> File:
    """The file, which may be missing; `-` is what stdin says."""
    if str(path) == "-":
        return readers_flat.stdin()
    return pathlib.Path(path).expanduser()


def format_of(file: File) -> str | None:
    """The format that a file's ending names."""
    if isinstance(file, readers_flat.Stream) or file.suffix not in ENDINGS:
        return None
    return file.suffix[1:]


def sniffed(file: File) -> str:
    """The format that a file looks to be of.

    Raises:
      UserError: it cannot be read.
    """
    data = readers_flat.contents(file)
    if data.startswith(b"PAR1"):
        return "parquet"
    first = data.removeprefix(b"\xef\xbb\xbf").lstrip()
    line = first.partition(b"\n")[0].rstrip()
    if first.startswith(b"{"):
        # A value on several lines ends none of them but the last.
        return "jsonl" if line.endswith(b"}") else "json"
    if first.startswith(b"["):
        return "json"
    return "tsv" if b"\t" in line else "csv"


def read(
    path: str | os.PathLike[str],
    *,
    header: bool = True,
    format: str | None = None,
) -> Rows:
    """The rows of a file, by its ending; stdin's, by what they look like.

    CSV may have line ends and commas in quotes; quotes in TSV are text.

    Args:
      path: of the file; `-` is stdin.
      header: whether the first line of CSV and TSV names the columns.
      format: one of `FORMATS`, whatever the ending.

    Raises:
      UserError: another ending, no such file, or a line that is none of the
        format; names it.
    """
    file = opened(path)
    format = format or format_of(file)
    if format is None and isinstance(file, pathlib.Path):
        raise UserError(
            f"The file '{file}' is none that is read as a table, expected the "
            f"ending {', '.join(ENDINGS)}."
        )
    return parsed(file, format or sniffed(file), header=header)


def parsed(
    file: File, format: str, *, header: bool = True, torn: bool = False
) -> Rows:
    """The rows of a file of a known format.

    Args:
      file: what is read.
      format: one of `FORMATS`.
      header: as in `read`.
      torn: whether lines of TSV that lack a column are left out, with a
        warning, as some published files have them.

    Raises:
      UserError: as `read`.
    """
    if format == "jsonl":
        rows = list(readers_flat.json_lines([file], gaps=True))
    elif format == "json":
        rows = _json(file)
    elif format == "csv":
        rows = _csv(file, header)
    elif format == "conll":
        rows = list(readers_conll.columns([file]))
    elif format == "tsv":
        cells = [(n, x.split("\t")) for n, x in readers_flat.lines(file) if x]
        rows = _named(file, cells, header, torn)
    else:
        rows = _parquet(file)
    if not rows:
        raise readers_flat.no_rows(file)
    return rows


def in_memory(rows: Any, what: str) -> Rows:
    """Rows that a program has: mappings, a pandas or a `datasets` table.

    What is missing in a pandas table is None. Of `datasets`, classes are
    their names, as files have them.

    Args:
      rows: an iterable of mappings, or what has `to_dict("records")`.
      what: they are called in messages.

    Raises:
      UserError: a row is no mapping, or there is none.
    """
    classes = _classes(getattr(rows, "features", None))
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
        plain = {str(k): _plain(v) for k, v in row.items()}
        for field, names in classes.items():
            plain[field] = _class_names(plain.get(field), names)
        found.append((place, plain))
    if not found:
        raise UserError(f"{what} has no rows, expected at least one.")
    return found


def _classes(features: Any) -> dict[str, list[str]]:
    """Field -> names of its classes, of a `datasets` table's features."""
    found = {}
    if not isinstance(features, Mapping):
        return {}
    for field, feature in features.items():
        # Of a list of classes, those of its parts.
        names = getattr(getattr(feature, "feature", feature), "names", None)
        if isinstance(names, list):
            found[field] = names
    return found


def _class_names(value: Any, names: Sequence[str]) -> Any:
    """The names of class ids; an id of no class stays, as -1 for no label."""
    if isinstance(value, list):
        return [_class_names(each, names) for each in value]
    whole = isinstance(value, int) and not isinstance(value, bool)
    return names[value] if whole and 0 <= value < len(names) else value


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


def _json(file: File) -> Rows:
    """The objects of a list, alone, or beside others of which each is one."""
    text = readers_flat.text(file)
    try:
        value = parse_json(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # JSON lines under another name
            return list(readers_flat.json_lines([file], gaps=True))
        value = readers_nested.json_file(file)  # which says where it is wrong
    except ValueError:
        value = readers_nested.json_file(file)
    if isinstance(value, dict):
        return [(Place(str(file), 1, unit="row"), value)]
    if not isinstance(value, list):
        expected = "a list of JSON objects"
        raise Place(str(file), 1).fault("(whole file)", value, expected)
    places = [Place(str(file), n, "row") for n in range(1, len(value) + 1)]
    for place, row in zip(places, value, strict=True):
        if not isinstance(row, dict):
            raise place.fault("(whole row)", row, "a JSON object")
    return list(zip(places, value, strict=True))


def _csv(file: File, header: bool) -> Rows:
    text = readers_flat.text(file)
    # Strict, or a quote left open takes the rest of the file for a cell.
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    cells, begin = [], 1
    # Python's own limit is 128 KiB a cell; texts may be longer.
    limit = csv.field_size_limit(len(text) + 1)
    try:
        for row in lines:
            if row:
                cells.append((begin, row))
            begin = lines.line_num + 1
    except csv.Error as error:
        place = Place(str(file), begin)
        raise place.fault("(whole line)", str(error), "CSV") from None
    finally:
        csv.field_size_limit(limit)
    return _named(file, cells, header)


def _named(
    file: File,
    cells: Sequence[tuple[int, list[str]]],
    header: bool,
    torn: bool = False,
) -> Rows:
    """Cells under the names of their columns."""
    number, names = cells[0]
    left_out = 0
    if header:
        if names[0] == "" and "index" not in names:
            names = ["index", *names[1:]]  # as pandas leaves it
        cells = cells[1:]
        if len(set(names)) < len(names) or "" in names:
            raise Place(str(file), number).fault(
                "(header)", ",".join(names), "a name a column, each once"
            )
    else:
        names = [f"column {i}" for i in range(len(names))]
    rows = []
    for number, row in cells:
        if torn and len(row) < len(names):
            # A line end within a text: neither part of the row is one.
            left_out += 1
            continue
        if len(row) != len(names):
            expected = f"{len(names)} columns, not {len(row)}"
            place = Place(str(file), number)
            raise place.fault("(whole line)", ",".join(row), expected)
        rows.append(
            (Place(str(file), number), dict(zip(names, row, strict=True)))
        )
    if left_out:
        warnings.warn(
            f"{file}: {left_out} lines lack a column and are left out.",
            RuntimeWarning,
            stacklevel=2,
        )
    return rows


def _parquet(file: File) -> Rows:
    with needs_extra("data", f"Reading '{file}'"):
        import pyarrow
        from pyarrow import parquet
    data = readers_flat.contents(file)
    try:
        rows = parquet.read_table(pyarrow.BufferReader(data)).to_pylist()
    except Exception as error:  # pyarrow raises whatever its parts raise
        raise UserError(
            f"The file '{file}' is no Parquet file that can be read: "
            f"{first_line(error)}."
        ) from None
    return [
        (Place(str(file), n, unit="row"), _plain(row))
        for n, row in enumerate(rows, start=1)
    ]


def _plain(value: Any) -> Any:
    """NumPy's numbers and arrays as Python's; what is not there as None."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value
