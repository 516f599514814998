"""Small CSV tables, read with care: an error names file and line."""

import csv
import io
import math
import pathlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

from panda_jax.errors import UserError
from panda_jax.io.files import PathLike, write_text

# Places that a table may have whatever it says of them.
_ROOM = 1 << 18


def read_rows(
    path: PathLike,
    columns: Sequence[str],
    *,
    optional: Sequence[str] = (),
    what: str = "table",
) -> Iterator[tuple[int, dict[str, str]]]:
    """Yields each line's number and its cells by name, stripped.

    Args:
      path: the file, its first line the columns' names.
      columns: that it must have; further ones are ignored.
      optional: that it may have; only what it has is in the cells.
      what: what the file is, for the error message.

    Raises:
      UserError: the file is missing, lacks a column or has one twice, or a
        line has another number of cells than the first.
    """
    path = pathlib.Path(path)
    try:
        # Spreadsheets put a byte-order mark before the first column's name.
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"The {what} {str(path)!r} cannot be read: {error}."
        ) from None
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        wanted = [*columns, *(name for name in optional if name in header)]
        if any(header.count(name) != 1 for name in wanted):
            raise UserError(
                f"{path}:1: got the columns {header}, expected "
                f"{','.join(columns)}, each once."
            )
        places = {name: header.index(name) for name in wanted}
        for row in reader:
            if not row:
                continue  # An empty line, such as editors leave at the end.
            if len(row) != len(header):
                raise UserError(
                    f"{path}:{reader.line_num}: got {len(row)} cells, "
                    f"expected {len(header)}."
                )
            yield (
                reader.line_num,
                {name: row[i].strip() for name, i in places.items()},
            )
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num}: {error}.") from None


def number(path: PathLike, line: int, name: str, text: str) -> float:
    """A cell as a number, NaN and the infinities included.

    Raises:
      UserError: it is none; the message names file and line.
    """
    try:
        return float(text)
    except ValueError:
        raise UserError(
            f"{path}:{line}: {name} is {text!r}, expected a number."
        ) from None


def check_filled(path: PathLike, cells: int, *axes: Collection[str]) -> None:
    """Refuses a table of many names and few lines, which is mostly empty.

    A line may name a source, a target and a metric that no other names, so
    that a thousand lines are a billion places.

    Args:
      path: of the file.
      cells: how many lines it has.
      *axes: the names on each side.

    Raises:
      UserError: more than 16 places a line, and many in all.
    """
    places = math.prod(map(len, axes))
    if places > max(_ROOM, 16 * cells):
        sides = " x ".join(str(len(names)) for names in axes)
        raise UserError(
            f"{path}: {cells} lines for {sides} names, expected most pairs. "
            "Is it another table? Else split it."
        )


def write_rows(path: PathLike, rows: Iterable[Sequence[Any]]) -> None:
    """Writes rows, the first the columns' names; floats read back exactly."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_text(path, text.getvalue())
