"""The report of an experiment: a pure function of its result files."""

import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from panda_jax import csv_rows, ownership, pictures
from panda_jax.errors import UserError, unknown_name
from panda_jax.experiments import (
    html_page,
    report_sections,
    report_summary,
    report_text,
)
from panda_jax.experiments.board import Board, Gain
from panda_jax.experiments.boards import make_boards
from panda_jax.experiments.comparisons import compare
from panda_jax.experiments.layout import Picture, Section
from panda_jax.experiments.pairs import alike
from panda_jax.experiments.results import Results, read_results
from panda_jax.files import PathLike, write_text
from panda_jax.scores import Scores, file_names

TITLE = "Prompt transfer: results"


def write_report(
    runs_dir: PathLike,
    out_dir: PathLike,
    *,
    scores: str | None = None,
    value: str = "best",
    confidence: float = 0.95,
    overwrite: bool = False,
) -> list[pathlib.Path]:
    """Writes everything that the runs below a folder show.

    The same result files give the same bytes. What a former report wrote there
    and this one does not is removed, unless it was changed since.

    Args:
      runs_dir: a folder with run folders at any depth.
      out_dir: gets report.html, report.md, report.tex, a `.csv` of each table
        and of all runs, and heat maps with their figures beside them.
      scores: score files with commas between them, as `panda-jax score` writes
        them, for the source that each metric would have chosen.
      value: the score of a run that counts: `best`, `final` or `first_epoch`.
      confidence: of the intervals.
      overwrite: files in the way are replaced, whoever wrote them.

    Returns:
      The files, without the `.csv` beside each heat map.

    Raises:
      UserError: no run is found or none is done, a score file is bad, or files
        are in the way that no report wrote.
    """
    _check(confidence)
    results = read_results(runs_dir, value=value)
    if not results.runs:
        first = results.left_out[0]
        raise UserError(
            f"None of the {len(results.left_out)} runs below "
            f"{str(runs_dir)!r} has a result: {first.folder} is "
            f"{first.status} ({first.reason})."
        )
    boards = make_boards(results)
    folder = pathlib.Path(out_dir)
    gains = [
        (board, board.gain(first, second))
        for board in boards
        for first in board.labels("panda")
        for second in alike(board, first, board.labels("pot"))
    ]
    gains = [(board, g) for board, g in gains if np.isfinite(g.matrix).any()]
    comparisons = compare(boards, confidence=confidence)
    tables = _read_scores(scores, boards)
    with ownership.writing(
        folder, "report", overwrite=overwrite, removes=True
    ) as new:
        drawn, paths = _draw(list(_maps(boards, gains)), new)
        sections = [
            report_summary.summary(results, boards, comparisons),
            *(
                report_sections.of_backbone(
                    board,
                    gains,
                    tables.get(board.backbone, tables.get("")),
                    drawn.get(board.backbone, ()),
                )
                for board in boards
            ),
            report_sections.statistics(boards, gains, comparisons, confidence),
            report_sections.published(boards, confidence),
            *report_sections.rest(results, boards),
        ]
        paths += _write(new, sections, results)
    return [folder / path.name for path in paths]


def _check(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise UserError(
            f"confidence is {confidence}, expected a number between 0 and 1."
        )


def _read_scores(
    files: str | None, boards: Sequence[Board]
) -> dict[str, Scores]:
    """Backbone -> its scores; "" -> those that do not say of which.

    Raises:
      UserError: a file is bad, or two are of the same backbone, or one is of a
        backbone without a run.
    """
    tables: dict[str, Scores] = {}
    known = [board.backbone for board in boards]
    for path in filter(None, map(str.strip, (files or "").split(","))):
        for name, table in Scores.by_backbone(path).items():
            if name in tables:
                raise UserError(
                    f"{path}: a second file with scores of "
                    f"{name or 'a backbone that it does not name'}. Score all "
                    "metrics at once, or add a column 'backbone'."
                )
            if name and name not in known:
                raise unknown_name(f"backbone in {path}:", name, known)
            if not name and len(boards) > 1:
                raise UserError(
                    f"{path} does not say of which backbone its scores are, "
                    f"and there are {', '.join(known)}: add a column "
                    "'backbone'."
                )
            tables[name] = table
    return tables


class _Map(NamedTuple):
    """A heat map that is to be drawn: what of which board."""

    board: Board
    title: str
    sources: Sequence[str]
    matrix: np.ndarray


def _maps(
    boards: Sequence[Board], gains: Sequence[tuple[Board, Gain]]
) -> Iterator[_Map]:
    """PoT, and what PANDA gains over it."""
    for board in boards:
        for label in board.labels("pot"):
            rows = board.of(label)
            matrix = [
                [board.cell(r, t).mean for t in board.targets] for r in rows
            ]
            title = f"{label} on {board.backbone}"
            if board.done(label):
                sources = [row.source for row in rows]
                yield _Map(board, title, sources, np.array(matrix))
    for board, gain in gains:
        title = f"{gain.first} minus {gain.second} on {board.backbone}"
        yield _Map(board, title, gain.sources, gain.matrix)


def _draw(
    maps: Sequence[_Map], folder: pathlib.Path
) -> tuple[dict[str, list[Picture]], list[pathlib.Path]]:
    """The heat maps by backbone, and their files."""
    drawn: dict[str, list[Picture]] = {}
    paths = []
    stems = file_names(each.title for each in maps)
    for board, title, sources, matrix in maps:
        name = f"heatmap_{stems[title]}.png"
        title += ", points of 100"
        pictures.heatmap(
            folder / name,
            matrix,
            rows=sources,
            columns=board.targets,
            title=title,
        )
        paths.append(folder / name)
        drawn.setdefault(board.backbone, []).append(Picture(name, title))
    return drawn, paths


def _write(
    folder: pathlib.Path, sections: Sequence[Section], results: Results
) -> list[pathlib.Path]:
    """The files of all sections, and the runs that count."""
    tables = [table for section in sections for table in section.tables]
    paths = [folder / "runs.csv"]
    columns = "run_id,folder,backbone,label,source,target,seed,metric,value"
    names = columns.split(",")
    csv_rows.write_rows(
        paths[0],
        [names, *([getattr(r, n) for n in names] for r in results.runs)],
    )
    stems = file_names(table.stem for table in tables if table.data)
    for table in tables:
        if table.data:
            paths.append(folder / f"{stems[table.stem]}.csv")
            csv_rows.write_rows(paths[-1], table.data)
    for name, text in (
        ("report.md", report_text.markdown(TITLE, sections)),
        ("report.tex", report_text.latex(TITLE, sections)),
        ("report.html", html_page.page(TITLE, sections, folder)),
    ):
        paths.append(folder / name)
        write_text(paths[-1], text)
    return paths
