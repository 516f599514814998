"""A ranking report: its table, its files, its pictures."""

import dataclasses
import math
import pathlib
from typing import Any

import numpy as np

from panda_jax import csv_rows, ownership, pictures
from panda_jax.errors import unknown_name
from panda_jax.experiments import ranking_text
from panda_jax.experiments.findings import Comparison, Estimate, Findings
from panda_jax.files import PathLike, write_json, write_text
from panda_jax.scores import file_names


class RankingReport(Findings):
    """What `evaluate_ranking` found; `Findings` says what it holds."""

    def table(self) -> str:
        """All averages and comparisons, and what was left out, as text."""
        return ranking_text.text(self)

    def to_json(self, path: PathLike) -> None:
        """Writes everything but the pairs; null stands for NaN."""
        fields = {field.name for field in dataclasses.fields(self)}
        values = {name: getattr(self, name) for name in fields - {"judged"}}
        left_out = [dataclasses.asdict(entry) for entry in self.left_out]
        ordered = dict(sorted({**values, "left_out": left_out}.items()))
        write_json(path, _plain(ordered))

    def scatter(
        self, path: PathLike, metric: str, *, backbone: str | None = None
    ) -> None:
        """Draws truth against score: a panel a target, a point a source.

        The points are written beside it, as `.csv` (see `pictures.scatter`).

        Args:
          path: a `.png`, or another format that Matplotlib writes.
          metric: which.
          backbone: which; None for the first.

        Raises:
          UserError: no such metric or backbone.
        """
        backbone = self.backbones[0] if backbone is None else backbone
        for what, name, known in (
            ("metric", metric, self.metrics),
            ("backbone", backbone, self.backbones),
        ):
            if name not in known:
                raise unknown_name(what, name, known)
        cells = [c for c in self.judged.cells if c.backbone == backbone]
        sources = self.judged.sources
        score = np.full((len(sources), len(cells)), np.nan)
        truth = score.copy()
        for n, cell in enumerate(cells):
            truth[cell.sources, n] = cell.truth
            if metric in cell.scores:
                score[cell.sources, n] = cell.scores[metric]
        pictures.scatter(
            path,
            score,
            truth,
            sources=sources,
            targets=[cell.target for cell in cells],
            score_name=f"{metric} (higher = more transferable)",
            gain_name="truth",
            title=backbone,
        )

    def write(
        self,
        out_dir: PathLike,
        *,
        scatters: bool = True,
        overwrite: bool = False,
    ) -> list[pathlib.Path]:
        """Writes ranking.txt, .json and .csv, comparisons.csv and pictures.

        Args:
          out_dir: the folder.
          scatters: whether to draw `scatter_METRIC.png` of every metric (with
            several backbones `scatter_METRIC_BACKBONE.png`).
          overwrite: files in the way are replaced, whoever wrote them.

        Returns:
          The files, without the `.csv` beside each picture.

        Raises:
          UserError: files in the way that no such report wrote.
        """
        with ownership.writing(
            out_dir, "evaluate-ranking", overwrite=overwrite
        ) as new:
            paths = self._write(new, scatters=scatters)
        return [pathlib.Path(out_dir) / path.name for path in paths]

    def _write(
        self, folder: pathlib.Path, *, scatters: bool
    ) -> list[pathlib.Path]:
        text, data, estimates, comparisons = paths = [
            folder / "ranking.txt",
            folder / "ranking.json",
            folder / "ranking.csv",
            folder / "comparisons.csv",
        ]
        write_text(text, self.table() + "\n")
        self.to_json(data)
        csv_rows.write_rows(estimates, [Estimate._fields, *self.estimates])
        csv_rows.write_rows(
            comparisons, [Comparison._fields, *self.comparisons]
        )
        if scatters:
            several = len(self.backbones) > 1
            names = {
                f"{metric}_{backbone}" if several else metric: (
                    metric,
                    backbone,
                )
                for metric in self.metrics
                for backbone in self.backbones
            }
            for name, stem in file_names(names).items():
                metric, backbone = names[name]
                paths.append(folder / f"scatter_{stem}.png")
                self.scatter(paths[-1], metric, backbone=backbone)
        return paths


def _plain(value: Any) -> Any:
    """What JSON can hold: tables by name, no NaN."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if fields := getattr(value, "_fields", None):
        return _plain(dict(zip(fields, value, strict=True)))
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
