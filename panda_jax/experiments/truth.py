"""What metrics are judged by: results of transfers, matched with scores."""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from panda_jax import csv_rows
from panda_jax.errors import UserError
from panda_jax.files import PathLike
from panda_jax.scores import Scores

COLUMNS = ("source", "target", "score")

# The figures of the paper's appendix; README.md there says more.
PUBLISHED = pathlib.Path(__file__).resolve().parent / "published"


@dataclasses.dataclass(frozen=True)
class Truth:
    """What M sources did on N targets, once or with several seeds.

    Attributes:
      sources: M names.
      targets: N names.
      seeds: [K, M, N] results of K seeds, higher = better; NaN where a seed
        has none.
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    seeds: np.ndarray

    def __post_init__(self) -> None:
        shape = (len(self.sources), len(self.targets))
        if self.seeds.ndim != 3 or self.seeds.shape[1:] != shape:
            raise ValueError(
                f"seeds: shape {self.seeds.shape}, expected (K, {shape[0]}, "
                f"{shape[1]})"
            )

    @functools.cached_property
    def values(self) -> np.ndarray:
        """[M, N], the mean over the seeds that a pair has, NaN without any."""
        known = np.isfinite(self.seeds)
        total = np.where(known, self.seeds, 0.0).sum(axis=0)
        count = known.sum(axis=0)
        return np.where(count, total / np.maximum(count, 1), np.nan)

    @classmethod
    def by_backbone(cls, path: PathLike) -> "dict[str, Truth]":
        """Reads `source,target,score`, with `backbone` and `seed` if it has.

        Further columns are ignored.

        Returns:
          Backbone -> its results, in the file's order; one named "" where the
          file has no such column.

        Raises:
          UserError: the file is missing or empty, or a line is malformed,
            double or no finite number; the message names file and line.
        """
        found: dict[str, dict[tuple[str, str, str], float]] = {}
        for line, row in csv_rows.read_rows(
            path, COLUMNS, optional=("backbone", "seed"), what="truth file"
        ):
            score = csv_rows.number(path, line, "score", row.pop("score"))
            if not math.isfinite(score):
                raise UserError(
                    f"{path}:{line}: score is {score}, expected a finite "
                    "number; leave out the line of a run without a result."
                )
            if not all(row.values()):
                raise UserError(
                    f"{path}:{line}: got {list(row.values())}, expected names "
                    f"for {', '.join(row)}."
                )
            cells = found.setdefault(row.get("backbone", ""), {})
            key = (row.get("seed", ""), row["source"], row["target"])
            if key in cells:
                raise UserError(
                    f"{path}:{line}: a second result of {key[1]} on {key[2]}; "
                    "remove one, or tell them apart in a column 'seed' or "
                    "'backbone'."
                )
            cells[key] = score
        if not found:
            raise UserError(f"{path}: no results, expected a line a pair.")
        return {
            name: cls._of_cells(cells, path) for name, cells in found.items()
        }

    @classmethod
    def _of_cells(
        cls, cells: dict[tuple[str, str, str], float], path: PathLike
    ) -> "Truth":
        seeds, sources, targets = (
            {name: i for i, name in enumerate(dict.fromkeys(names))}
            for names in zip(*cells, strict=True)
        )
        csv_rows.check_filled(path, len(cells), seeds, sources, targets)
        values = np.full((len(seeds), len(sources), len(targets)), np.nan)
        for (seed, source, target), score in cells.items():
            values[seeds[seed], sources[source], targets[target]] = score
        return cls(tuple(sources), tuple(targets), values)


class Group(NamedTuple):
    """Scores and truth of one backbone.

    Attributes:
      name: the backbone, or its file's stem; "" where there is but one.
      scores: of every metric.
      truth: what they are judged by.
      ceiling: another truth, which is judged beside the metrics.
    """

    name: str
    scores: Scores
    truth: Truth
    ceiling: Truth | None


ScoresLike = Scores | Mapping[str, Scores] | PathLike | Sequence[PathLike]
TruthLike = Truth | Mapping[str, Truth] | PathLike | Sequence[PathLike]


def match(
    scores: ScoresLike, truth: TruthLike, ceiling: TruthLike | None = None
) -> tuple[list[Group], list[tuple[str, str]]]:
    """Brings together what is of the same backbone.

    Args:
      scores: a table; one a backbone, by name; a file, or several in a list or
        with commas between them. A file may have a column `backbone`; several
        files without one are backbones named by their stems. "published" is
        the paper's own.
      truth: likewise; where there are as many files as of scores they go
        together in order, else it is one for all.
      ceiling: likewise.

    Returns:
      The groups, and (name, what it lacks) of the backbones that were left out.

    Raises:
      UserError: a file is bad, two backbones share a name, or none has both.
    """
    files = _read(scores, Scores, "scores.csv")
    truths = _paired(_read(truth, Truth, "truth.csv"), len(files), "truth")
    ceilings = [("", {})] * len(files)
    if ceiling is not None:
        read = _read(ceiling, Truth, "final.csv")
        ceilings = _paired(read, len(files), "ceiling")
    groups: list[Group] = []
    lacking: list[tuple[str, str]] = []
    used: set[str] = set()
    for (stem, tables), (_, results), (_, tops) in zip(
        files, truths, ceilings, strict=True
    ):
        for backbone, table in tables.items():
            name = backbone or _name(stem, results, len(files))
            found = _of(results, name)
            top = _of(tops, name)
            used.add(name)
            if found is None:
                lacking.append((name, "has scores and no truth"))
                continue
            if name in (group.name for group in groups):
                raise UserError(
                    f"Two tables of scores are of backbone {name!r}; name the "
                    "files differently, or give them a column 'backbone'."
                )
            if ceiling is not None and top is None:
                lacking.append((name, "has no ceiling"))
            groups.append(Group(name, table, found, top))
    unused = {name for _, results in truths for name in results if name} - used
    lacking += [(name, "has truth and no scores") for name in sorted(unused)]
    if not groups:
        raise UserError(
            "No backbone has both scores and truth: "
            f"{'; '.join(f'{name!r} {what}' for name, what in lacking)}. Use "
            "the same names in the column 'backbone', or leave it out."
        )
    return groups, lacking


def _read(given: Any, cls: type, published: str) -> list[tuple[str, dict]]:
    """(stem, backbone -> table) of every file, or of what is in memory."""
    if isinstance(given, cls):
        return [("", {"": given})]
    if isinstance(given, Mapping):
        return [("", dict(given))]
    if isinstance(given, str):
        paths = (
            [PUBLISHED / published]
            if given == "published"
            else [
                pathlib.Path(part.strip()) for part in given.split(",") if part
            ]
        )
    elif isinstance(given, Sequence):
        paths = [pathlib.Path(part) for part in given]
    else:
        paths = [pathlib.Path(given)]
    if not paths:
        raise UserError(f"Got no file, expected one such as {published}.")
    return [(path.stem, cls.by_backbone(path)) for path in paths]


def _paired(
    read: list[tuple[str, dict]], count: int, what: str
) -> list[tuple[str, dict]]:
    """As many as there are score files: in order, or one for all."""
    if len(read) == 1:
        return read * count
    if len(read) != count:
        raise UserError(
            f"Got {len(read)} {what} files for {count} score files, expected "
            f"as many (they go together in order) or one for all."
        )
    return read


def _name(stem: str, results: Mapping[str, Truth], files: int) -> str:
    """What the one backbone of a file without such a column is called."""
    if stem in results or files > 1:
        return stem
    return next(iter(results)) if len(results) == 1 else ""


def _of(results: Mapping[str, Truth], name: str) -> Truth | None:
    """A backbone's own results, or those that are for all."""
    return results.get(name, results.get(""))
