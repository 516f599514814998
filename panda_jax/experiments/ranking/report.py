"""What a judge of metrics finds: values, a table as text, files, pictures."""

import dataclasses
import itertools
import math
import pathlib
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from panda_jax.errors import UserError, unknown_name
from panda_jax.experiments.ranking.data import Cells, LeftOut
from panda_jax.experiments.ranking.statistics import Reliability
from panda_jax.experiments.tables import Table, chance, plain, write_csv
from panda_jax.io import ownership
from panda_jax.io.files import PathLike, write_json, write_text
from panda_jax.transfer import pictures
from panda_jax.transfer.scores import file_names

# Rows beside the metrics'; no metric of a file should be spelt so.
CHANCE = "[chance]"
CEILING = "[ceiling]"
# Of a block of text, in characters.
_WIDTH = 100
# Behind an interval of few targets or sources.
_FEW_MARK = "(!)"


class Estimate(NamedTuple):
    """One statistic of one metric; NaN where nothing can be said.

    Attributes:
      metric: its name, or `[chance]` or `[ceiling]`.
      statistic: spearman, tau, ndcg@K, regret@K or gain@1.
      backbone, target: names; "" for the mean over all.
      value: lower is better for regret, else higher; low, high: its interval.
      p: one-sided, of spearman against shuffled sources; else NaN.
      cells: how many targets (of all backbones) have a value.
      caution: what stands beside it where targets or sources are few.
    """

    metric: str
    statistic: str
    backbone: str
    target: str
    value: float
    low: float
    high: float
    p: float
    cells: int
    caution: str


class Comparison(NamedTuple):
    """One metric against another on the targets that both have.

    Attributes:
      difference: the first's average minus the second's.
      low, high: of the interval; NaN where nothing can be said.
      p: two-sided, of spearman and tau; else NaN.
      holm: p corrected for the number of pairs of metrics.
      caution: what stands beside it where targets or sources are few.
    """

    first: str
    second: str
    statistic: str
    difference: float
    low: float
    high: float
    p: float
    holm: float
    caution: str


@dataclasses.dataclass(frozen=True)
class RankingReport:
    """What `evaluate_ranking` found.

    Attributes:
      metrics: their names, combinations last.
      backbones: their names; one "" where they have none.
      about: the counts and settings.
      estimates: every statistic: averages, by backbone, by target, by both.
      comparisons: of every two metrics.
      other_self: metric -> mean Spearman by the other choice about self-pairs;
        empty where there are none.
      reliability: of a truth with several seeds, else None.
      judged: the pairs, and what was left out.
    """

    metrics: tuple[str, ...]
    backbones: tuple[str, ...]
    targets: tuple[str, ...]
    about: dict[str, Any]
    estimates: tuple[Estimate, ...]
    comparisons: tuple[Comparison, ...]
    other_self: dict[str, float]
    reliability: Reliability | None
    judged: Cells

    @property
    def left_out(self) -> list[LeftOut]:
        """What was not judged, by name."""
        return self.judged.left_out

    def get(
        self,
        metric: str,
        statistic: str = "spearman",
        *,
        backbone: str = "",
        target: str = "",
    ) -> Estimate:
        """One estimate; by default the mean over targets and backbones.

        Raises:
          UserError: there is none of these names.
        """
        for estimate in self.estimates:
            if estimate[:4] == (metric, statistic, backbone, target):
                return estimate
        raise UserError(
            f"No {statistic!r} of {metric!r} (backbone {backbone!r}, target "
            f"{target!r}). Metrics: {', '.join(self.metrics)}; backbones: "
            f"{', '.join(self.backbones)}; targets: {', '.join(self.targets)}."
        )

    def table(self) -> str:
        """All averages and comparisons, and what was left out, as text."""
        blocks = [_heading(self)]
        for table in _tables(self):
            blocks += plain(table, _WIDTH)
        found, lines = self.reliability, ["Left out:"]
        if found is not None:
            blocks.append(
                f"The truth has {found.seeds} seeds. Halves of them correlate "
                f"at {found.halves:.3f}, so that the reliability of their mean "
                f"is {found.reliability:.3f}: a perfect predictor would have a "
                f"Spearman of about {found.ceiling:.3f}."
            )
        for entry in self.left_out:
            alike = set(entry.backbones) == set(self.backbones)
            names = "all backbones" if alike else ", ".join(entry.backbones)
            where = f" ({names})" if len(self.backbones) > 1 else ""
            lines.append(f"  {entry}{where}")
        blocks += ["\n".join(lines)] * bool(self.left_out)
        return "\n\n".join(blocks)

    def to_json(self, path: PathLike) -> None:
        """Writes everything but the pairs; null stands for NaN."""
        fields = {field.name for field in dataclasses.fields(self)}
        values = {name: getattr(self, name) for name in fields - {"judged"}}
        left_out = [dataclasses.asdict(entry) for entry in self.left_out]
        ordered = dict(sorted({**values, "left_out": left_out}.items()))
        write_json(path, _jsonable(ordered))

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
        verb = "evaluate-ranking"
        with ownership.writing(out_dir, verb, overwrite=overwrite) as new:
            paths = [new / "ranking.txt", new / "ranking.json"]
            write_text(paths[0], self.table() + "\n")
            self.to_json(paths[1])
            data = {"ranking": [Estimate._fields, *self.estimates]}
            data["comparisons"] = [Comparison._fields, *self.comparisons]
            tables = [Table(n, "", (), (), rows) for n, rows in data.items()]
            paths += write_csv(new, tables)
            pairs = itertools.product(self.metrics, self.backbones)
            several = len(self.backbones) > 1
            names = {"_".join(p) if several else p[0]: p for p in pairs}
            for name, stem in file_names(names if scatters else ()).items():
                paths.append(new / f"scatter_{stem}.png")
                self.scatter(paths[-1], names[name][0], backbone=names[name][1])
        return [pathlib.Path(out_dir) / path.name for path in paths]


def _jsonable(value: Any) -> Any:
    """What JSON can hold: tables by name, no NaN."""
    if isinstance(value, dict):
        return {key: _jsonable(part) for key, part in value.items()}
    if fields := getattr(value, "_fields", None):
        return _jsonable(dict(zip(fields, value, strict=True)))
    if isinstance(value, (list, tuple)):
        return [_jsonable(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _heading(report: RankingReport) -> str:
    about = report.about
    many = len(report.backbones) > 1
    backbones = f"{len(report.backbones)} backbones x " if many else ""
    own = about["self_pairs"]
    counted = f"{own} self-pairs included" if own else "no self-pairs"
    if not about["include_self"]:
        counted = "self-pairs left out"
    # Of the intervals that are marked, but a single target's.
    cautions = {e.caution for e in report.estimates if not e.target} - {""}
    return (
        f"{backbones}{len(report.targets)} targets, {about['sources']} "
        f"sources: {about['pairs']} pairs, {counted}.\n"
        f"[low, high]: {100 * about['confidence']:g}%, over other sources and "
        "targets: spearman and tau by\ncrossed variances, the others by "
        f"{about['resamples']} resamples.\n"
        "p: one-sided, Spearman against sources shuffled alike for all targets "
        f"({about['permutations']} times)."
        + ("\nself: pairs of a task with itself." if report.other_self else "")
        + "".join(f"\n{_FEW_MARK}: {caution}." for caution in sorted(cautions))
    )


def _tables(report: RankingReport) -> Iterable[Table]:
    """Averages, then Spearman by backbone and target, then differences."""
    by = {(e.metric, e.statistic, *e[2:4]): e for e in report.estimates}
    statistics = dict.fromkeys(e.statistic for e in report.estimates)
    rows = list(dict.fromkeys(e.metric for e in report.estimates))
    several, other = len(report.backbones) > 1, report.other_self
    total = report.about["cells"]
    average = [by[row, "spearman", "", ""] for row in rows]
    columns = {
        "spearman": list(map(_bounds, average)),
        "p": [chance(one.p, none="") for one in average],
    }
    if other:
        name = "no self" if report.about["include_self"] else "with self"
        shown = [_number(other[row]) if row in other else "" for row in rows]
        columns[name] = shown
    some = [by[m, s, "", ""].cells for m in report.metrics for s in statistics]
    if min(some) < total:
        columns["of targets"] = [f"{one.cells}/{total}" for one in average]
    for name in statistics:
        if name != "spearman":
            columns[name] = [_bounds(by[row, name, "", ""]) for row in rows]
    then = ", then backbones" if several else ""
    title = f"Mean over targets{then}; higher is better, but for regret"
    yield _table(title, rows, columns)
    scopes = {"target (intervals over sources alone)": report.targets}
    if several:
        scopes = {"backbone": report.backbones, **scopes}
    for what, names in scopes.items():
        at = [(n, "") if what == "backbone" else ("", n) for n in names]
        columns = {
            metric: [_bounds(by[metric, "spearman", *place]) for place in at]
            for metric in rows
            if metric != CHANCE
        }
        yield _table(f"Spearman by {what}", names, columns)
    told = [c for c in report.comparisons if c.statistic == "spearman"]
    if told:
        columns = {
            "difference": list(map(_bounds, told)),
            "p": [chance(c.p, none="") for c in told],
            "Holm": [chance(c.holm, none="") for c in told],
        }
        title = (
            "Differences of Spearman (p: two-sided, other sources and targets)"
        )
        yield _table(title, [f"{c.first} - {c.second}" for c in told], columns)


def _table(
    title: str, rows: Iterable[str], columns: dict[str, list[str]]
) -> Table:
    cells = zip(rows, *columns.values(), strict=True)
    return Table("", title, ["", *columns], list(cells))


def _bounds(entry: Estimate | Comparison) -> str:
    """A value and its interval, marked where that is of few, but of one."""
    is_one = isinstance(entry, Estimate)
    value = _number(entry.value if is_one else entry.difference)
    if math.isnan(entry.low):
        return value
    mark = _FEW_MARK if entry.caution and not (is_one and entry.target) else ""
    return f"{value} [{entry.low:z.2f}, {entry.high:z.2f}]{mark}"


def _number(value: float) -> str:
    return "nan" if math.isnan(value) else f"{value:z.3f}"
