"""Rows and cells of a table that cannot be right."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from panda_jax.experiments.paper import Cells
from panda_jax.tasks import specs

# A printed figure is within half of its last digit.
_ROUNDING = 0.05 + 1e-9


class Flag(NamedTuple):
    """A row or cell that cannot be right, or not be what it says.

    Attributes:
      backbone, method, source, target: where; the target is "" for a row.
      value: the cell's points; NaN for a row.
      reason: in words.
    """

    backbone: str
    method: str
    source: str
    target: str
    value: float
    reason: str


def doubts(cells: Cells, counts: Mapping[str, int]) -> list[Flag]:
    """Duplicated rows and impossible cells of a table.

    A row is duplicated where another source of the same backbone and method has
    the same figure on every target (of at least 3). A cell is impossible where
    it is no number, lies outside of its metric's range, is no rounded k / n of
    an accuracy over n questions, or is an epoch's that beats the best epoch.

    Args:
      cells: (backbone, method, source, target) -> points, to one decimal.
      counts: target -> n questions of its development split, of those whose
        score is an accuracy.
    """
    found = _duplicates(cells)
    for (backbone, method, source, target), value in cells.items():
        reasons = [
            _range(value, target),
            _fraction(value, counts.get(target, 0)),
        ]
        whole = method.removesuffix("_first_epoch")
        best = cells.get((backbone, whole, source, target), math.inf)
        if value > best:
            reasons.append(f"the best epoch is printed as {best:g}")
        found += [
            Flag(backbone, method, source, target, value, reason)
            for reason in reasons
            if reason
        ]
    return found


def _duplicates(cells: Cells) -> list[Flag]:
    rows: dict[tuple[str, str], dict[str, dict[str, float]]] = {}
    for (backbone, method, source, target), value in cells.items():
        group = rows.setdefault((backbone, method), {})
        group.setdefault(source, {})[target] = value
    return [
        Flag(
            backbone,
            method,
            f"{first}, {second}",
            "",
            math.nan,
            f"the same {len(group[first])} figures for both sources",
        )
        for (backbone, method), group in rows.items()
        for first, second in itertools.combinations(group, 2)
        if len(group[first]) > 2 and group[first] == group[second]
    ]


def _range(value: float, target: str) -> str:
    signed = {"matthews", "pearson_spearman"}
    lowest = -100.0 if specs.get(target).metrics[0] in signed else 0.0
    if lowest <= value <= 100.0:
        return ""
    return f"outside of {lowest:g} to 100"


def _fraction(value: float, n: int) -> str:
    """Why a score is no accuracy over n questions; "" where it may be."""
    if not n or not math.isfinite(value):
        return ""
    right = value * n / 100
    below, above = math.floor(right), math.ceil(right)
    less, more = 100 * below / n, 100 * above / n
    if min(value - less, more - value) <= _ROUNDING:
        return ""
    cut = " (cut off, not rounded, it would be)" if more - value < 0.1 else ""
    return (
        f"no number of right answers among {n} gives it: {below} are "
        f"{less:.2f}, {above} are {more:.2f}{cut}"
    )


def question_counts(targets: Sequence[str]) -> dict[str, int]:
    """Target -> questions of its development split, of those whose main metric
    is the accuracy over them."""
    found = {target: specs.get(target) for target in targets}
    return {
        target: spec.rows["validation"]
        for target, spec in found.items()
        if spec.metrics[0] == "accuracy" and "validation" in spec.rows
    }
