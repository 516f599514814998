"""What a report is made of: sections of tables and pictures, and numbers."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from panda_jax.experiments.summaries import Spread

MISSING = "–"
# Behind a cell some of whose runs failed, are unfinished or not begun.
LOST = "†"


class Table(NamedTuple):
    """A table as people read it, and as programs do.

    Attributes:
      stem: of its `.csv`, but for signs that no file's name should have; no
        other table's.
      title: above it.
      head: the columns' names.
      rows: cells as text, as many as columns.
      data: rows of its `.csv`, the first the columns' names; empty for none.
      notes: below it.
      words: columns from the left that hold words rather than numbers.
      ends: columns at the right that hold words.
    """

    stem: str
    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    data: Sequence[Sequence[Any]] = ()
    notes: Sequence[str] = ()
    words: int = 1
    ends: int = 0

    def is_word(self, column: int) -> bool:
        """Whether a column holds words."""
        return column < self.words or column >= len(self.head) - self.ends


class Picture(NamedTuple):
    """A picture beside the tables.

    Attributes:
      name: of its file in the report's folder.
      title: what it shows.
    """

    name: str
    title: str


class Section(NamedTuple):
    """A heading with what stands below it.

    Attributes:
      title: the heading.
      text: paragraphs.
      tables: below the text.
      pictures: below the tables.
    """

    title: str
    text: Sequence[str] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()


def points(value: float, *, digits: int = 1) -> str:
    """A score in points, one decimal as in the paper; a dash for NaN."""
    return MISSING if math.isnan(value) else f"{value:z.{digits}f}"


def change(value: float, *, digits: int = 1) -> str:
    """A difference in points, with its sign; a dash for NaN."""
    return MISSING if math.isnan(value) else f"{value:+z.{digits}f}"


def interval(low: float, high: float) -> str:
    """An interval of a difference in points; a dash for NaN."""
    if math.isnan(low):
        return MISSING
    return f"[{change(low, digits=2)}, {change(high, digits=2)}]"


def chance(value: float) -> str:
    """A p-value; a dash for NaN."""
    return MISSING if math.isnan(value) else f"{value:.4f}"


def cell(found: Spread, *, lost: bool = False, count: bool = False) -> str:
    """Mean, sd and n of a cell.

    Args:
      found: over seeds.
      lost: whether a run of the cell failed or is unfinished.
      count: whether n is shown.
    """
    mark = LOST if lost else ""
    if not found.n:
        return mark or MISSING
    sd = "" if math.isnan(found.sd) else f" ± {points(found.sd)}"
    n = f" ({found.n})" if count else ""
    return f"{points(found.mean)}{sd}{n}{mark}"


def mean_of(found: Spread, targets: int) -> str:
    """An average over targets; of how many, where some are missing."""
    if math.isnan(found.mean):
        return MISSING
    sd = "" if math.isnan(found.sd) else f" ± {points(found.sd)}"
    part = f" ({found.of}/{targets})" if found.of < targets else ""
    return f"{points(found.mean)}{sd}{part}"
