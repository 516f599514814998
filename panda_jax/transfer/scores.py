"""The scores of every source x target pair, as tables and heat maps."""

import dataclasses
import math
import pathlib
import re
from collections.abc import Iterable, Iterator

import numpy as np

from panda_jax.errors import UserError, unknown_name
from panda_jax.io import csv_rows, ownership
from panda_jax.io.files import PathLike
from panda_jax.transfer import pictures

COLUMNS = ("source", "target", "metric", "score")


@dataclasses.dataclass(frozen=True)
class Scores:
    """Transferability of M sources to N targets under one metric or more.

    Attributes:
      sources: M names, the rows.
      targets: N names, the columns.
      values: metric -> [M, N] float64; higher = more transferable; NaN where
        a pair has no score.
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    values: dict[str, np.ndarray]

    def __post_init__(self) -> None:
        shape = (len(self.sources), len(self.targets))
        for names in (self.sources, self.targets, tuple(self.values)):
            if len(set(names)) != len(names):
                raise ValueError(f"names must be unique, got {names}")
        for metric, matrix in self.values.items():
            if matrix.shape != shape:
                raise ValueError(
                    f"{metric}: shape {matrix.shape}, expected {shape}"
                )

    def top(
        self,
        target: str,
        *,
        k: int | None = 5,
        metric: str | None = None,
        include_self: bool = False,
    ) -> list[tuple[str, float]]:
        """The k best sources for a target, best first.

        Sources of equal score stay in the order of `sources`; those without a
        score are left out.

        Args:
          target: its name.
          k: how many at most; None for all.
          metric: which; None for the first.
          include_self: whether the source of the target's own name counts.

        Raises:
          UserError: no such target or metric.
        """
        if target not in self.targets:
            raise unknown_name("target", target, self.targets)
        column = self._matrix(metric)[:, self.targets.index(target)]
        pairs = [
            (source, float(score))
            for source, score in zip(self.sources, column, strict=True)
            if not math.isnan(score) and (include_self or source != target)
        ]
        return sorted(pairs, key=lambda pair: -pair[1])[:k]

    def rows(self) -> Iterator[tuple[str, str, str, float]]:
        """(source, target, metric, score) of every pair, target by target."""
        for metric, matrix in self.values.items():
            for n, target in enumerate(self.targets):
                for m, source in enumerate(self.sources):
                    yield source, target, metric, float(matrix[m, n])

    def to_csv(self, path: PathLike) -> None:
        """Writes `source,target,metric,score`; floats read back exactly."""
        csv_rows.write_rows(path, [COLUMNS, *self.rows()])

    @classmethod
    def from_csv(cls, path: PathLike) -> "Scores":
        """Reads what `to_csv` wrote; further columns are ignored.

        Pairs that the file does not list are NaN.

        Raises:
          UserError: the file is missing or a line is malformed or double; the
            message names file and line.
        """
        return cls._of_cells(_read_cells(path)[""], path)

    @classmethod
    def by_backbone(cls, path: PathLike) -> "dict[str, Scores]":
        """Reads a file that may say in a column `backbone` what each is of.

        Returns:
          Backbone -> its scores, in the file's order; one named "" where the
          file has no such column.

        Raises:
          UserError: as `from_csv`.
        """
        cells = _read_cells(path, optional=("backbone",))
        return {name: cls._of_cells(part, path) for name, part in cells.items()}

    @classmethod
    def _of_cells(
        cls, cells: dict[tuple[str, str, str], float], path: PathLike
    ) -> "Scores":
        sources, targets, metrics = (
            tuple(dict.fromkeys(names)) for names in zip(*cells, strict=True)
        )
        csv_rows.check_filled(path, len(cells), sources, targets, metrics)
        values = {
            metric: np.array(
                [
                    [cells.get((s, t, metric), math.nan) for t in targets]
                    for s in sources
                ]
            )
            for metric in metrics
        }
        return cls(sources, targets, values)

    def matrix_csv(self, path: PathLike, metric: str | None = None) -> None:
        """Writes one metric as a matrix: a row a source, a column a target."""
        matrix = self._matrix(metric).tolist()
        rows = [
            [source, *scores]
            for source, scores in zip(self.sources, matrix, strict=True)
        ]
        csv_rows.write_rows(path, [["source", *self.targets], *rows])

    def heatmap(
        self,
        path: PathLike,
        metric: str | None = None,
        *,
        title: str | None = None,
        data: bool = True,
    ) -> None:
        """Draws one metric, sources down and targets across, values printed.

        The colour scale spans the finite scores; a pair without one is grey.

        Args:
          path: a `.png`, or another format that Matplotlib writes.
          metric: which; None for the first.
          title: above the picture; None for the metric's name.
          data: whether the figures are written beside it (`x_data.csv`).
        """
        matrix = self._matrix(metric)
        name = title or metric or next(iter(self.values))
        pictures.heatmap(
            path,
            matrix,
            rows=self.sources,
            columns=self.targets,
            title=f"{name} (higher = more transferable)",
            data=data,
        )

    def clustermap(
        self,
        path: PathLike,
        metric: str | None = None,
        *,
        title: str | None = None,
    ) -> None:
        """Draws one metric with like sources (and targets) side by side.

        See `pictures.clustermap`, which also writes the matrix beside it.

        Args:
          path: a `.png`, or another format that Matplotlib writes.
          metric: which; None for the first.
          title: above the picture; None for the metric's name.
        """
        matrix = self._matrix(metric)
        name = title or metric or next(iter(self.values))
        pictures.clustermap(
            path,
            matrix,
            rows=self.sources,
            columns=self.targets,
            title=f"{name} (higher = more transferable)",
        )

    def write(
        self,
        out_dir: PathLike,
        *,
        overwrite: bool = False,
        by: str = "score",
    ) -> list[pathlib.Path]:
        """Writes scores.csv, and a matrix and a heat map for each metric.

        Args:
          out_dir: the folder.
          overwrite: files in the way are replaced, whoever wrote them.
          by: the verb whose files they are.

        Returns:
          The files written: `scores.csv`, `matrix_METRIC.csv` and
          `heatmap_METRIC.png`.

        Raises:
          UserError: files in the way that this verb did not write.
        """
        with ownership.writing(out_dir, by, overwrite=overwrite) as new:
            names = written(self.values)
            self.to_csv(new / names[0])
            for number, metric in enumerate(self.values):
                matrix, heatmap = names[1 + 2 * number : 3 + 2 * number]
                self.matrix_csv(new / matrix, metric)
                self.heatmap(new / heatmap, metric, data=False)
        return [pathlib.Path(out_dir) / name for name in names]

    def _matrix(self, metric: str | None) -> np.ndarray:
        metric = next(iter(self.values)) if metric is None else metric
        if metric not in self.values:
            raise unknown_name("metric", metric, self.values)
        return self.values[metric]


def written(metrics: Iterable[str]) -> list[str]:
    """The files that `Scores.write` writes of these metrics."""
    names = ["scores.csv"]
    for name in file_names(metrics).values():
        names += [f"matrix_{name}.csv", f"heatmap_{name}.png"]
    return names


def file_names(metrics: Iterable[str]) -> dict[str, str]:
    """A file name part for each metric, safe and distinct."""
    names: dict[str, str] = {}
    for metric in metrics:
        name = base = re.sub(r"[^A-Za-z0-9._-]+", "_", metric).lower()
        number = 2
        while name in names.values():
            name, number = f"{base}_{number}", number + 1
        names[metric] = name
    return names


def _read_cells(
    path: PathLike, optional: tuple[str, ...] = ()
) -> dict[str, dict[tuple[str, str, str], float]]:
    """Backbone ("" without one) -> (source, target, metric) -> score."""
    found: dict[str, dict[tuple[str, str, str], float]] = {}
    for line, row in csv_rows.read_rows(
        path, COLUMNS, optional=optional, what="score file"
    ):
        score = csv_rows.number(path, line, "score", row.pop("score"))
        if not all(row.values()):
            raise UserError(
                f"{path}:{line}: got {list(row.values())}, expected names for "
                f"{', '.join(row)}."
            )
        cells = found.setdefault(row.get("backbone", ""), {})
        source, target, metric = (row[name] for name in COLUMNS[:3])
        if (source, target, metric) in cells:
            raise UserError(
                f"{path}:{line}: a second {metric} score of {source} for "
                f"{target}; remove one."
            )
        cells[source, target, metric] = score
    if not found:
        raise UserError(f"{path}: no scores, expected a line a pair.")
    return found
