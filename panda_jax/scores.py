"""The scores of every source x target pair, as tables and heat maps."""

import csv
import dataclasses
import io
import math
import pathlib
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from panda_jax.errors import UserError, unknown_name
from panda_jax.files import PathLike, atomic_file, write_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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
        _write_rows(path, [COLUMNS, *self.rows()])

    @classmethod
    def from_csv(cls, path: PathLike) -> "Scores":
        """Reads what `to_csv` wrote; further columns are ignored.

        Pairs that the file does not list are NaN.

        Raises:
          UserError: the file is missing or a line is malformed or double; the
            message names file and line.
        """
        cells: dict[tuple[str, str, str], float] = {}
        for line, row in _read_rows(pathlib.Path(path)):
            source, target, metric, text = row
            try:
                score = float(text)
            except ValueError:
                raise UserError(
                    f"{path}:{line}: score is {text!r}, expected a number."
                ) from None
            if not (source and target and metric):
                raise UserError(
                    f"{path}:{line}: got {row}, expected names for source, "
                    "target and metric."
                )
            if (source, target, metric) in cells:
                raise UserError(
                    f"{path}:{line}: a second {metric} score of {source} for "
                    f"{target}; remove one."
                )
            cells[source, target, metric] = score
        if not cells:
            raise UserError(f"{path}: no scores, expected a line a pair.")
        sources, targets, metrics = (
            tuple(dict.fromkeys(names)) for names in zip(*cells, strict=True)
        )
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
        _write_rows(path, [["source", *self.targets], *rows])

    def heatmap(
        self,
        path: PathLike,
        metric: str | None = None,
        *,
        title: str | None = None,
    ) -> None:
        """Draws one metric, sources down and targets across, values printed.

        The colour scale spans the finite scores; a pair without one is grey.

        Args:
          path: a `.png`, or another format that Matplotlib writes.
          metric: which; None for the first.
          title: above the picture; None for the metric's name.
        """
        # Matplotlib takes half a second to import; its pyplot keeps global
        # state and wants a display, so figures are made without it.
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        matrix = self._matrix(metric)
        M, N = matrix.shape
        longest = max(map(len, self.sources))
        size = (1.8 + 0.09 * longest + 0.55 * N, 1.5 + 0.32 * M)
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        _draw(axes, matrix)
        axes.set_xticks(range(N), self.targets, rotation=45, ha="left")
        axes.set_yticks(range(M), self.sources)
        axes.set_xlabel("target")
        axes.set_ylabel("source")
        name = title or metric or next(iter(self.values))
        figure.suptitle(f"{name} (higher = more transferable)", fontsize=10)
        with atomic_file(path) as temporary:
            figure.savefig(temporary, dpi=150)

    def write(self, out_dir: PathLike) -> list[pathlib.Path]:
        """Writes scores.csv, and a matrix and a heat map for each metric.

        Returns:
          The files written: `scores.csv`, `matrix_METRIC.csv` and
          `heatmap_METRIC.png`.
        """
        folder = pathlib.Path(out_dir)
        paths = [folder / "scores.csv"]
        self.to_csv(paths[0])
        for metric, name in _file_names(self.values).items():
            matrix = folder / f"matrix_{name}.csv"
            heatmap = folder / f"heatmap_{name}.png"
            self.matrix_csv(matrix, metric)
            self.heatmap(heatmap, metric)
            paths += [matrix, heatmap]
        return paths

    def _matrix(self, metric: str | None) -> np.ndarray:
        metric = next(iter(self.values)) if metric is None else metric
        if metric not in self.values:
            raise unknown_name("metric", metric, self.values)
        return self.values[metric]


def _draw(axes: "Axes", matrix: np.ndarray) -> None:
    """The coloured cells and the numbers in them."""
    from matplotlib import colormaps

    finite = matrix[np.isfinite(matrix)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 1.0)
    # cividis reads the same with and without colour blindness.
    colours = colormaps["cividis"].with_extremes(bad="0.8")
    shown = np.ma.masked_invalid(matrix)
    image = axes.imshow(shown, cmap=colours, vmin=low, vmax=high, aspect="auto")
    axes.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False)
    axes.figure.colorbar(image, ax=axes)
    middle = (low + high) / 2
    digits = 2 if high - low >= 0.1 else 3
    for (m, n), score in np.ndenumerate(matrix):
        dark = math.isfinite(score) and score < middle
        axes.text(
            n,
            m,
            "–" if math.isnan(score) else f"{score:z.{digits}f}",
            color="white" if dark else "black",
            ha="center",
            va="center",
            fontsize=8,
        )


def _file_names(metrics: dict[str, np.ndarray]) -> dict[str, str]:
    """A file name part for each metric, safe and distinct."""
    names: dict[str, str] = {}
    for metric in metrics:
        name = base = re.sub(r"[^A-Za-z0-9._-]+", "_", metric).lower()
        number = 2
        while name in names.values():
            name, number = f"{base}_{number}", number + 1
        names[metric] = name
    return names


def _write_rows(path: PathLike, rows: list) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_text(path, text.getvalue())


def _read_rows(path: pathlib.Path) -> Iterator[tuple[int, list[str]]]:
    """Yields each line's number and its four cells, in `COLUMNS`' order."""
    try:
        # Spreadsheets put a byte-order mark before the first column's name.
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"The score file {str(path)!r} cannot be read: {error}."
        ) from None
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(reader, [])
        missing = [name for name in COLUMNS if name not in header]
        if missing:
            raise UserError(
                f"{path}:1: got the columns {header}, expected "
                f"{','.join(COLUMNS)}."
            )
        wanted = [header.index(name) for name in COLUMNS]
        for row in reader:
            if len(row) != len(header):
                raise UserError(
                    f"{path}:{reader.line_num}: got {len(row)} cells, "
                    f"expected {len(header)}."
                )
            yield reader.line_num, [row[i].strip() for i in wanted]
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num}: {error}.") from None
