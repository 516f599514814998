"""The paper's tables, and its headline figures computed from them."""

import functools
import math
import statistics
from collections.abc import Mapping
from typing import NamedTuple

from panda_jax import csv_rows
from panda_jax.experiments.truth import PUBLISHED

# What the abstract says of PANDA over vanilla PoT: "2.3% average score (up to
# 24.1%) among all tasks and model sizes".
CLAIMED_MEAN = 2.3
CLAIMED_MAXIMUM = 24.1
METHODS = ("model", "prompt", "pot", "panda")

# Backbone, method, source, target.
Place = tuple[str, str, str, str]
Cells = Mapping[Place, float]


class Paper(NamedTuple):
    """The published tables.

    Attributes:
      cells: (backbone, method, source, target) -> points of 100, of the
        methods `METHODS`, `prompt_first_epoch` and `pot_first_epoch`; the
        source is "" where there is none.
      averages: (backbone, method, source) -> the average as printed.
      backbones: in the paper's order, as are `sources` and `targets`.
    """

    cells: Cells
    averages: Mapping[tuple[str, str, str], float]
    backbones: tuple[str, ...]
    sources: tuple[str, ...]
    targets: tuple[str, ...]


class Figure(NamedTuple):
    """A figure computed from the cells beside the one that is printed.

    Attributes:
      name: what it is.
      value: points, from the cells.
      printed: points, from what the paper prints; NaN where it prints none.
      how: its definition.
    """

    name: str
    value: float
    printed: float
    how: str


@functools.cache
def read() -> Paper:
    """The tables that come with the package."""
    cells: dict[Place, float] = {}
    for name, method in (("results", ""), ("truth", "pot_first_epoch")):
        path = PUBLISHED / f"{name}.csv"
        columns = ("backbone", "source", "target", "score")
        for line, row in csv_rows.read_rows(
            path, columns, optional=("method",)
        ):
            key = (
                row["backbone"],
                row.get("method", method),
                row["source"],
                row["target"],
            )
            cells[key] = csv_rows.number(path, line, "score", row["score"])
    path = PUBLISHED / "averages.csv"
    averages = {
        (row["backbone"], row["method"], row["source"]): csv_rows.number(
            path, line, "score", row["score"]
        )
        for line, row in csv_rows.read_rows(
            path, ("backbone", "method", "source", "score")
        )
    }
    backbones, _, sources, targets = (
        tuple(dict.fromkeys(filter(None, names)))
        for names in zip(*cells, strict=True)
    )
    return Paper(cells, averages, backbones, sources, targets)


def headline(paper: Paper) -> list[Figure]:
    """The paper's gain of PANDA over PoT, and its averages, from the cells.

    2.27 and 24.1 are of the same thing: a source's PANDA average over the
    targets minus its PoT average. The mean is over the sources of all
    backbones, the maximum over the same. Over single cells the mean is the
    same, and the maximum another.
    """
    by_source = {
        (backbone, source): row_mean(paper, backbone, "panda", source)
        - row_mean(paper, backbone, "pot", source)
        for backbone in paper.backbones
        for source in paper.sources
    }
    by_cell = {
        (backbone, source, target): value
        - paper.cells[backbone, "pot", source, target]
        for (backbone, method, source, target), value in paper.cells.items()
        if method == "panda"
    }
    most = max(by_source, key=lambda key: by_source[key])
    most_cell = max(by_cell, key=lambda key: by_cell[key])
    of = (
        f"average over {len(paper.targets)} targets, PANDA minus PoT of the "
        "same source"
    )
    rows = (
        f"{len(by_source)} rows ({len(paper.backbones)} backbones x "
        f"{len(paper.sources)} sources)"
    )
    return [
        Figure(
            "mean gain",
            statistics.fmean(by_source.values()),
            CLAIMED_MEAN,
            f"{of}; mean over {rows}",
        ),
        Figure(
            "maximum gain",
            by_source[most],
            CLAIMED_MAXIMUM,
            f"{of}; maximum over {rows}: {most[0]}, {most[1]}",
        ),
        Figure(
            "maximum gain of one cell",
            by_cell[most_cell],
            math.nan,
            f"one target in place of the average: {most_cell[0]}, "
            f"{most_cell[1]} on {most_cell[2]}",
        ),
        *_averages(paper),
        *_best(paper),
    ]


def _averages(paper: Paper) -> list[Figure]:
    return [
        Figure(
            f"{backbone} {method}",
            statistics.fmean(
                row_mean(paper, backbone, method, source) for source in sources
            ),
            statistics.fmean(
                paper.averages[backbone, method, source] for source in sources
            ),
            f"average over {len(paper.targets)} targets"
            + (f", mean of {len(sources)} sources" if len(sources) > 1 else ""),
        )
        for backbone in paper.backbones
        for method in METHODS
        for sources in [paper.sources if method in ("pot", "panda") else ("",)]
    ]


def _best(paper: Paper) -> list[Figure]:
    return [
        Figure(
            f"{backbone} {method}, best source",
            statistics.fmean(
                max(
                    paper.cells[backbone, method, source, target]
                    for source in paper.sources
                )
                for target in paper.targets
            ),
            math.nan,
            "the best source of each target, chosen by the score itself",
        )
        for backbone in paper.backbones
        for method in ("pot", "panda")
    ]


def row_mean(paper: Paper, backbone: str, method: str, source: str) -> float:
    """A row's average over all targets, from its cells."""
    return statistics.fmean(
        paper.cells[backbone, method, source, target]
        for target in paper.targets
    )
